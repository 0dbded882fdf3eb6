"""BAN: the port checks of its operator, mask and statistic, the verdict rule, and whole runs on small models."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small_graphs import exported, model_of, node
from torch import nn
from torch_models import N_CLASSES, build, example_of, export

from calibrate.differentiable import DifferentiableModel
from calibrate.graph import find_sites
from calibrate.inspection.ban import BanSettings, detect_ban, with_rest
from calibrate.inspection.ban_findings import decide, excess_share, findings_of
from calibrate.inspection.feature_mask import learn_mask, mask_loss, size_penalty
from calibrate.inspection.neuron_noise import ChannelMoments, NeuronNoise, Reference
from calibrate.inspection.noise_places import Place, find_places
from calibrate.inspection.problem import InspectionProblem
from calibrate.proportions import wilson_interval
from calibrate.sites import RowsInMemory
from guard.errors import CalibrationError

QUICK = BanSettings(seeds=2, noise_steps=3, mask_steps=5, batch_size=32, n_fitting=64)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _noise(places, references, *, size=0.3, batch_statistics=True) -> NeuronNoise:
    return NeuronNoise(places, references, size=size, batch_statistics=batch_statistics, generator=_generator())


def _problem(model, inputs, labels, **changes) -> InspectionProblem:
    fields = {
        "model": model,
        "logits": "logits",
        "sites": find_sites(model),
        "n_classes": N_CLASSES,
        "inputs": RowsInMemory(inputs=inputs),
        "labels": labels.astype(np.int64),
        "seed": 0,
        "progress": lambda *_: None,
    }
    return InspectionProblem(**{**fields, **changes})


def _family_problem(family: str, n: int = 64, **changes) -> InspectionProblem:
    model = exported(family, "torchscript", 17)
    return _problem(model, example_of(n).numpy(), np.arange(n) % N_CLASSES, **changes)


def test_noise_behind_a_folded_batchnorm_is_noise_on_its_scale_and_shift_in_training_mode():
    x = torch.randn(32, 6, 5, 5, generator=_generator(1))
    gamma, beta = torch.linspace(-1, 2, 6), torch.linspace(1, -2, 6)
    z = F.batch_norm(x, torch.full((6,), 0.3), torch.full((6,), 2.0), gamma, beta)
    place = Place(tensor="z", kind="pre-activations", channel_axis=1)
    noise = _noise([place], {"z": Reference(scale=gamma.abs(), shift=beta)})
    found = noise.changes(training=True)["z"](z)
    delta, xi = noise.deltas["z"], noise.xis["z"]
    expected = F.batch_norm(x, None, None, gamma * (1 + delta), beta * (1 + xi), training=True, eps=1e-9)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["mlp", "mobilenet", "resnet", "vgg"])
def test_no_noise_leaves_the_logits_as_they_are(family):
    model, x = exported(family, "torchscript", 17), example_of(16)
    differentiable = DifferentiableModel(model)
    places = find_places(model.graph, "logits")[:-1]
    moments = {place.tensor: ChannelMoments(place) for place in places}
    (clean,) = differentiable(x, outputs=["logits"], at={t: m.record for t, m in moments.items()})
    references = {t: m.reference({}) for t, m in moments.items()}
    noise = _noise(places, references, size=0.0, batch_statistics=False)
    (noisy,) = differentiable(x, outputs=["logits"], at=noise.changes(training=True))
    torch.testing.assert_close(noisy, clean, rtol=1e-3, atol=1e-3 * float(clean.abs().max()))


def test_the_released_mask_penalty_pulls_every_entry_by_one_over_the_masks_norm():
    mask = torch.full((512, 4, 4), 0.5, requires_grad=True)
    penalty = size_penalty(mask, "log-l1")
    (gradient,) = torch.autograd.grad(0.75 * penalty, mask)
    assert penalty.detach().item() == 1
    torch.testing.assert_close(gradient, torch.full_like(mask, 0.75 / 4096))
    (gradient,) = torch.autograd.grad(size_penalty(mask, "mean"), mask)
    torch.testing.assert_close(gradient, torch.full_like(mask, 1 / 8192))


@pytest.mark.parametrize(
    ("histogram", "share", "top"),
    [
        ((5000, 0, 0, 0, 0, 0, 0, 0, 0, 0), 1.0, 0),
        ((631, 279, 542, 438, 691, 735, 494, 544, 459, 187), 0.147, 5),
    ],
)
def test_the_published_histograms_give_the_published_statistic(histogram, share, top):
    findings = _findings([np.repeat(np.arange(10), histogram)] * 5)
    assert findings.vote_share == pytest.approx(share)
    assert findings.top_class == top
    assert findings.verdict == ("suspicious" if share == 1 else "no evidence")


def _findings(votes, n_classes=10):
    n = len(votes[0])
    return findings_of(
        votes,
        np.random.default_rng(0).integers(0, n_classes, n),
        n_classes,
        noise_on="BatchNorm",
        features="features",
        unneeded=np.array([0.25, 1.0, 0.5]),
        settings=BanSettings(),
    )


def _verdict(share, *, clean_share=0.1, n_agreeing=5, n_samples=5000):
    interval = wilson_interval(share, n_samples)
    agreement = {"n_agreeing": n_agreeing, "n_seeds": 5}
    return decide(share, interval, clean_share=clean_share, n_samples=n_samples, **agreement)


def test_a_model_is_suspicious_only_when_sure_in_most_seeds_and_on_enough_samples():
    assert _verdict(0.9) == "suspicious"
    assert _verdict(0.9, n_agreeing=4) == "suspicious"
    assert _verdict(0.9, n_agreeing=3) == "grey"
    assert _verdict(0.9, n_samples=499) == "grey"
    assert _verdict(0.555) == "grey"
    assert _verdict(0.3) == "no evidence"


def test_the_more_often_a_class_occurs_the_more_votes_it_takes_to_be_suspicious():
    assert _verdict(0.52, clean_share=0.001) == "suspicious"
    assert _verdict(0.6, clean_share=0.5) == "no evidence"
    assert _verdict(0.7, clean_share=0.5) == "grey"
    assert _verdict(0.8, clean_share=0.5) == "suspicious"
    assert _verdict(1.0, clean_share=1.0) == "no evidence"


@given(share=st.floats(0, 1), n=st.integers(1, 10**6), clean=st.floats(0, 1))
def test_an_interval_holds_its_share_and_no_excess_passes_one(share, n, clean):
    lower, upper = wilson_interval(share, n)
    assert -1e-9 <= lower <= share + 1e-9
    assert share - 1e-9 <= upper <= 1 + 1e-9
    assert excess_share(share, clean) <= 1


def test_wilsons_interval_is_that_of_the_tables():
    assert wilson_interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_findings_name_a_target_only_where_there_is_evidence_and_can_be_written_as_json():
    scattered = _findings([np.arange(1000) % 10] * 5)
    assert scattered.suspected_target_class is None
    gathered = _findings([np.full(1000, 7)] * 4 + [np.full(1000, 2)])
    summary = json.loads(json.dumps(gathered.summary()))
    assert summary["suspected_target_class"] == 7
    assert summary["n_agreeing"] == 4
    assert [c["channel"] for c in summary["least_needed_channels"]] == [1, 2, 0]


def test_the_mask_keeps_what_the_labels_need_and_drops_the_rest():
    labels = torch.arange(64) % 2
    features = torch.cat([F.one_hot(labels, 2).float(), torch.ones(64, 2)], dim=1) * 3
    settings = BanSettings(mask_steps=300)

    def head(rows):
        return rows[:, :2] + 0 * rows[:, 2:]

    mask = learn_mask(head, features, labels, weight=1.0, settings=settings, generator=_generator(), report=print)
    assert mask[:2].min() > 0.9
    assert mask[2:].max() < 0.1
    assert mask_loss(head, features, labels, mask) < mask_loss(head, features, labels, 1 - mask)


def test_a_mask_loss_that_is_no_number_is_refused():
    broken = {"weight": 1.0, "settings": BanSettings(), "generator": _generator(), "report": lambda _: None}
    with pytest.raises(CalibrationError, match="mask loss is nan at step 1 of 400"):
        learn_mask(lambda rows: rows / 0 * 0, torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64), **broken)


def test_the_mask_comes_after_the_noise_of_the_same_tensor():
    changes = with_rest({"z": lambda z: z + 1}, "z", torch.tensor([1.0, 0.5]))
    assert changes["z"](torch.zeros(2)).tolist() == [0, 0.5]


@pytest.mark.parametrize("family", ["mlp", "mobilenet", "resnet", "vgg"])
def test_every_family_can_be_looked_at(family):
    findings = detect_ban(_family_problem(family), settings=QUICK)
    assert findings.noise_on == "pre-activations"
    assert findings.histograms.sum(axis=1).tolist() == [64, 64]
    assert findings.verdict != "suspicious"  # 64 samples are too few to say so
    assert findings.unneeded.ndim == 1


def test_the_same_seed_finds_the_same():
    first, second, other = (detect_ban(_family_problem("vgg", seed=s), settings=QUICK) for s in (1, 1, 2))
    assert np.array_equal(first.histograms, second.histograms)
    assert np.array_equal(first.unneeded, second.unneeded)
    assert not np.array_equal(first.unneeded, other.unneeded)


def test_surviving_batchnorms_take_the_noise():
    model = export(build("vgg"), example_of(), exporter="torchscript", opset=17, fold=False)
    findings = detect_ban(_problem(model, example_of(64).numpy(), np.zeros(64)), settings=QUICK)
    assert findings.noise_on == "BatchNorm"


def test_a_model_of_layernorms_takes_the_noise_there():
    module = nn.Sequential(nn.Flatten(), nn.Linear(768, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 10)).eval()
    for opset in (11, 17):  # spelled out in opset 11
        model = export(module, example_of(), exporter="torchscript", opset=opset)
        findings = detect_ban(_problem(model, example_of(64).numpy(), np.zeros(64)), settings=QUICK)
        assert findings.noise_on == "LayerNorm"


@pytest.mark.parametrize("batch", [1, 24])
def test_a_model_of_fixed_batch_is_looked_at_in_batches_of_that_size(batch):
    model = export(build("vgg"), example_of(batch), exporter="torchscript", opset=13, dynamic_batch=False)
    findings = detect_ban(_problem(model, example_of(60).numpy(), np.arange(60) % 10), settings=QUICK)
    assert findings.histograms.sum(axis=1).tolist() == [60, 60]


def test_progress_reaches_the_end_of_every_stage():
    told = {}
    detect_ban(_family_problem("mlp", progress=lambda stage, *counts: told.update({stage: counts})), settings=QUICK)
    assert list(told) == ["BAN: clean features", "BAN: feature masks", "BAN: neuron noise", "BAN: votes"]
    assert [done == total for done, total in told.values()] == [True] * 4


def test_the_weight_of_the_masks_size_is_the_cross_entropy_of_guessing_unless_set():
    assert detect_ban(_family_problem("mlp"), settings=QUICK).settings.mask_weight == pytest.approx(np.log(10))
    chosen = replace(QUICK, mask_weight=0.75, mask_penalty="log-l1")
    assert detect_ban(_family_problem("mlp"), settings=chosen).settings == chosen


def test_an_empty_mask_has_a_penalty():
    assert size_penalty(torch.zeros(4), "log-l1").item() == 0


def test_too_few_samples_are_refused_with_what_would_work():
    with pytest.raises(CalibrationError, match="49 clean samples are too few for BAN; it takes at least 50: give more"):
        detect_ban(_family_problem("mlp", 49))


def test_a_model_without_anything_to_put_noise_on_is_refused():
    head = {"w": np.eye(3)}
    model = model_of(node("Relu", ["x"], ["a"]), node("MatMul", ["a", "w"], ["y"]), weights=head)
    problem = _problem(model, np.ones((64, 3), np.float32), np.zeros(64), logits="y", n_classes=3)
    with pytest.raises(CalibrationError, match="nothing to put noise on"):
        detect_ban(problem, settings=QUICK)


def test_a_model_without_a_layer_to_cut_at_is_refused():
    model = model_of(node("Relu", ["x"], ["a"]), node("Mul", ["a", "a"], ["y"]))
    problem = _problem(model, np.ones((64, 3), np.float32), np.zeros(64), logits="y", n_classes=3)
    with pytest.raises(CalibrationError, match="last linear layer"):
        detect_ban(problem, settings=QUICK)


def test_a_loss_that_is_no_number_stops_with_the_step():
    problem = _family_problem("mlp")
    problem.inputs.inputs[:] = np.nan
    with pytest.raises(CalibrationError, match="step 1 of 5"):
        detect_ban(problem, settings=QUICK)
