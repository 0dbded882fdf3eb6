"""BAN: what proves its noise equal to the official code's, and its settings to their source."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_graphs import exported
from torch_models import N_CLASSES, example_of

from calibrate.graph import find_sites
from calibrate.inspection.ban import BanSettings, detect_ban
from calibrate.inspection.neuron_noise import ChannelMoments, NeuronNoise, Reference
from calibrate.inspection.noise_places import Place
from calibrate.inspection.problem import InspectionProblem
from calibrate.sites import RowsInMemory

Z = Place(tensor="z", kind="pre-activations", channel_axis=1)


def _noise(reference: Reference, *, size: float = 0.3) -> NeuronNoise:
    generator = torch.Generator().manual_seed(0)
    return NeuronNoise([Z], {"z": reference}, size=size, batch_statistics=True, generator=generator)


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("limit", [0.3, None])
@pytest.mark.parametrize("slope", [7.0, -7.0])
def test_thirty_steps_climb_by_the_size_of_the_noise_whatever_the_gradients_size(slope, limit):
    noise = _noise(Reference(scale=torch.ones(500), shift=torch.ones(500)))
    before = [parameter.detach().clone() for parameter in noise.parameters]
    for _ in range(30):
        for parameter in noise.parameters:
            parameter.grad = torch.full_like(parameter, slope)
        noise.ascend(0.3 / 30, limit=limit)
    within = 1.0 if limit is None else limit
    for start, end in zip(before, noise.parameters, strict=True):
        expected = (start + np.sign(slope) * 0.3).clamp(-within, within)
        torch.testing.assert_close(end.detach(), expected, rtol=0, atol=1e-5)


def test_after_thirty_noisy_batches_the_running_statistics_hold_4_percent_of_the_clean_ones():
    z, old = 5 + 2 * _normal(64, 3, 4, 4), 0.9**30
    noise = _noise(Reference(scale=torch.ones(3), shift=torch.zeros(3)), size=0.0)
    for _ in range(30):
        noise.changes(training=True)["z"](z)
    mean, variance = (1 - old) * z.mean((0, 2, 3)), old + (1 - old) * z.var((0, 2, 3))
    expected = (z - mean[:, None, None]) / variance.sqrt()[:, None, None]
    assert old == pytest.approx(0.042, abs=1e-3)
    torch.testing.assert_close(noise.changes(training=False)["z"](z), expected, rtol=1e-4, atol=1e-4)


def test_noise_with_measured_moments_is_noise_on_a_batchnorms_scale_and_shift():
    x = _normal(32, 6, 5, 5)
    gamma, beta = torch.linspace(-1, 2, 6), torch.linspace(1, -2, 6)
    z = F.batch_norm(x, None, None, gamma, beta, training=True, eps=1e-9)
    moments = ChannelMoments(Z)
    for batch in z.split(8):
        moments.record(batch)
    noise = _noise(moments.reference({}))
    found = noise.changes(training=True)["z"](z)
    delta, xi = noise.deltas["z"], noise.xis["z"]
    expected = F.batch_norm(x, None, None, gamma * (1 + delta), beta * (1 + xi), training=True, eps=1e-9)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def _problem() -> InspectionProblem:
    model = exported("mlp", "torchscript", 17)
    return InspectionProblem(
        model=model, logits="logits", sites=find_sites(model), n_classes=N_CLASSES,
        inputs=RowsInMemory(inputs=example_of(64).numpy()), labels=np.arange(64) % N_CLASSES, seed=0,
        progress=lambda *_: None,
    )  # fmt: skip


@pytest.mark.parametrize(("project", "limit"), [(True, 0.3), (False, None)])
def test_every_seed_takes_thirty_steps_of_a_thirtieth_and_projects_as_the_settings_say(monkeypatch, project, limit):
    taken, plain = [], NeuronNoise.ascend

    def recorded(noise, step, *, limit):
        taken.append((step, limit))
        plain(noise, step, limit=limit)

    monkeypatch.setattr(NeuronNoise, "ascend", recorded)
    detect_ban(_problem(), settings=BanSettings(seeds=2, mask_steps=5, batch_size=32, n_fitting=64, project=project))
    assert taken == 60 * [(pytest.approx(0.01), limit)]


def test_the_defaults_are_those_of_the_official_readme_and_ours_where_the_docs_say_so():
    assert asdict(BanSettings()) == {
        "seeds": 5, "noise": 0.3, "noise_steps": 30, "project": True, "mask_weight": None, "mask_penalty": "mean",
        "mask_steps": 400, "mask_learning_rate": 0.01, "batch_size": 128, "n_fitting": 500, "n_votes": 5000,
    }  # fmt: skip
