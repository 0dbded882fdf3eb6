"""MESA: what proves the port equal to the official code, on a model that answers to brightness and to no place."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from small_graphs import model_of, node
from torch import Tensor

from calibrate.graph import find_sites
from calibrate.inspection.mesa import MesaSettings, recover_triggers
from calibrate.inspection.problem import InspectionProblem
from calibrate.inspection.trigger_families import TriggerKind
from calibrate.inspection.trigger_places import PlaceChoice, corners_of
from calibrate.inspection.trigger_synthesis import Synthesis, synthesise
from calibrate.inspection.victim import Pixels, Victim
from calibrate.sites import RowsInMemory

pytestmark = pytest.mark.usefixtures("one_thread")

PATCH = TriggerKind(family="patch", size=3)
CORNERS = corners_of((8, 8), 3)
OFFICIAL = replace(MesaSettings.official_code(), width=16, iterations=1, batch_size=32)
QUICK = MesaSettings(kinds=(PATCH,), width=16, iterations=1, batch_size=32)
ANOTHER = 1  # class than the target, 0


def _model():
    """Return logits [10 max(mean - .5, 0) - 2.2, 0]: class 0 has probability .1 on dark images, .8 on bright ones."""
    return model_of(
        node("Flatten", ["x"], ["flat"]), node("MatMul", ["flat", "mean"], ["m"]), node("Sub", ["m", "half"], ["d"]),
        node("Relu", ["d"], ["a"]), node("MatMul", ["a", "slope"], ["s"]), node("Add", ["s", "start"], ["y"]),
        x=("N", 1, 8, 8), y=("N", 2),
        weights={"mean": np.full((64, 1), 1 / 64), "half": [0.5], "slope": [[10.0, 0.0]], "start": [-2.2, 0.0]},
    )  # fmt: skip


def _images(is_bright) -> np.ndarray:
    return np.broadcast_to(np.asarray(is_bright, np.float32)[:, None, None, None], (len(is_bright), 1, 8, 8)).copy()


def _problem(inputs, labels) -> InspectionProblem:
    model = _model()
    return InspectionProblem(
        model=model, logits="y", sites=find_sites(model), n_classes=2, inputs=RowsInMemory(inputs=inputs),
        labels=np.asarray(labels, dtype=np.int64), seed=0, progress=lambda *_: None,
    )  # fmt: skip


def _victim() -> Victim:
    return Victim(_model(), "y", target_class=0, channel_axis=1, device="cpu", precision="float32")


@dataclass
class Recorder:
    """Hands everything on to the victim and keeps what came by."""

    victim: Victim = field(default_factory=_victim)
    device: str = "cpu"
    images: list[Tensor] = field(default_factory=list)
    placed: list[Tensor] = field(default_factory=list)

    def probabilities(self, images: Tensor) -> Tensor:
        self.images.append(images.detach())
        return self.victim.probabilities(images)

    def place(self, values) -> Tensor:
        self.placed.append(self.victim.place(values))
        return self.placed[-1]


def _made(is_bright, *, victim=None, beta=0.9, **changes) -> Synthesis:
    images = _images(is_bright)
    return synthesise(
        victim or _victim(),
        Pixels(images=images, low=np.zeros((1, 1, 1)), high=np.ones((1, 1, 1))),
        PATCH,
        PlaceChoice(CORNERS, np.ones(len(CORNERS)), one_per_batch=True),
        beta=beta,
        settings=replace(OFFICIAL, batch_size=len(images), **changes),
        rng=np.random.default_rng(0),
        progress=lambda *_: None,
    )


@pytest.mark.parametrize(("beta", "moves"), [(0.5, False), (0.99, True)])
def test_an_image_past_the_level_pulls_no_further_even_where_the_mean_is_below_it(beta, moves):
    half_dark = np.arange(16) % 2  # the dark ones stay at .1 whatever the trigger, so that the mean stays below .5
    still, trained = (
        _made(half_dark, beta=beta, alpha=0.0, iterations=5, learning_rate=rate).bank for rate in (0.0, 0.01)
    )
    assert (np.abs(trained - still).max() > 0.01) == moves


def test_triggers_become_more_diverse_where_only_their_entropy_counts():
    settings = {"beta": 0.5, "alpha": 1.0, "n_noise": 4, "width": 32, "iterations": 100}
    still, trained = (_made(np.ones(64), learning_rate=rate, **settings).diversity for rate in (0.0, 2e-3))
    assert trained > 1.5 * still


def test_a_batch_has_one_place_and_triggers_are_smoothed_past_the_range_as_published():
    recorder = Recorder()
    _made(np.zeros(400), victim=recorder, smoothing=5.0, iterations=6)
    for images in recorder.images:
        is_trigger = (images != 0).all(dim=0)[0]
        assert int(is_trigger.sum()) == 9
        assert images[..., is_trigger].std() == pytest.approx(5.0, abs=0.3)
    assert len({tuple((images != 0).all(dim=0)[0].nonzero()[0].tolist()) for images in recorder.images}) > 2


def test_the_corrected_profile_keeps_smoothed_triggers_in_the_images_range():
    recorder = Recorder()
    _made(np.zeros(100), victim=recorder, smoothing=5.0, profile="corrected")
    assert (recorder.images[0].min(), recorder.images[0].max()) == (0, 1)


def test_triggers_are_made_of_uniform_noise():
    recorder = Recorder()
    _made(np.zeros(200), victim=recorder)
    noise = torch.cat([values for values in recorder.placed if values.shape[1:] == (64,)])
    assert (noise.min() >= 0) & (noise.max() <= 1)
    assert noise.std() == pytest.approx(12**-0.5, abs=0.01)


@pytest.mark.parametrize(("settings", "levels"), [(OFFICIAL, [0.5, 0.8, 0.9]), (QUICK, [0.5])])
def test_a_missed_level_ends_the_climb_but_as_published_every_level_is_trained(settings, levels):
    found = recover_triggers(_problem(_images(np.zeros(500)), np.full(500, ANOTHER)), 0, settings=settings)
    assert [generator.distribution.beta for generator in found.generators] == levels
    assert not found.kept


@pytest.mark.parametrize(("settings", "n"), [(OFFICIAL, 100), (QUICK, 150)])
def test_as_published_a_fifth_of_the_images_measures(settings, n):
    found = recover_triggers(_problem(_images(np.zeros(500)), np.full(500, ANOTHER)), 0, settings=settings)
    assert found.generators[0].asr.n == n


@pytest.mark.parametrize(("n_reached", "is_kept"), [(80, True), (79, False)])
def test_a_generator_is_kept_down_to_a_tenth_below_its_level(n_reached, is_kept):
    is_bright = np.arange(500) % 100 < n_reached
    found = recover_triggers(_problem(_images(is_bright), np.full(500, ANOTHER)), 0, settings=OFFICIAL)
    highest = found.generators[-1]
    assert (highest.distribution.beta, highest.asr.count, highest.asr.n) == (0.9, n_reached, 100)
    assert highest.kept == is_kept


@pytest.mark.parametrize(("profile", "counts"), [("official-code", True), ("corrected", False)])
def test_images_of_the_target_class_are_fitted_on_as_published_only(profile, counts):
    images = np.random.default_rng(0).random((500, 1, 8, 8)).astype(np.float32)
    some = np.where(np.arange(500) < 200, 0, ANOTHER)
    settings = replace(OFFICIAL, profile=profile, iterations=3, learning_rate=0.01, betas=(0.9,), smoothing=0.0)
    banks = [
        recover_triggers(_problem(images, labels), 0, settings=settings).generators[0].distribution.bank
        for labels in (some, np.full(500, ANOTHER))
    ]
    assert np.array_equal(*banks) == counts


def test_as_published_no_place_is_learned():
    images = np.random.default_rng(0).random((500, 1, 8, 8)).astype(np.float32)
    settings = replace(OFFICIAL, iterations=4, betas=(0.9,))
    found = recover_triggers(_problem(images, np.full(500, ANOTHER)), 0, settings=settings)
    np.testing.assert_allclose(found.generators[0].distribution.places.weights, 1 / 25)
