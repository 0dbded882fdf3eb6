"""UNIT as published: the numbers that prove a port equal to the official code."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from unit_problems import problem_of, two_classes, with_fixed_batch

from calibrate.bounds.clipped_classifier import ClippedClassifier
from calibrate.bounds.unit_published import PublishedUnitSettings as Settings
from calibrate.bounds.unit_published import fit_unit_published as fit
from calibrate.bounds.validation import split_in_classes
from calibrate.sites import ActivationBounds, Site
from guard.errors import CalibrationError

pytestmark = pytest.mark.usefixtures("one_thread")

RNG = np.random.default_rng(0)


def _drift(n_channels: int, **changes) -> float:
    """Return how far a neuron that is never clipped moves when every step passes."""
    inputs = RNG.uniform(0, 4, size=(4, n_channels, 64, 64))
    problem = problem_of(inputs, np.zeros(4), np.ones((n_channels, 1)))
    start = fit(problem, settings=Settings(steps=1))
    return float((fit(problem, settings=Settings(steps=301, **changes)).upper["a"] - start.upper["a"]).mean())


@pytest.mark.parametrize(("n_channels", "drift"), [(16, -0.450), (2, -0.456)])
def test_a_bound_that_clips_nothing_drifts_as_far_as_in_the_official_code(n_channels, drift):
    assert _drift(n_channels) == pytest.approx(drift, abs=1e-3)


@pytest.mark.parametrize(("n_channels", "drift"), [(16, -0.181), (2, -0.277)])
def test_with_a_constant_cost_a_bound_drifts_less(n_channels, drift):
    assert _drift(n_channels, cost_up=1.0) == pytest.approx(drift, abs=1e-3)


@pytest.mark.parametrize(("granularity", "axes"), [("neuron", 0), ("channel", (0, 2, 3))])
def test_bounds_start_four_deviations_above_the_mean(granularity, axes):
    problem = two_classes()
    settings = Settings(steps=1, learning_rate=0.0, granularity=granularity)
    rows, _ = split_in_classes(problem.labels, fraction=0.2, seed=0)
    activations = np.maximum(problem.inputs[rows], 0).astype(np.float64)
    expected = activations.mean(axes, keepdims=True) + 4 * activations.std(axes, ddof=1, keepdims=True)
    upper = fit(problem, settings=settings).upper["a"]
    assert len(rows) == 64
    assert upper.shape == expected.shape
    np.testing.assert_allclose(upper, expected, rtol=1e-5)


def test_channels_lie_on_the_axis_that_the_site_says():
    site = Site(tensor="a", function="Relu", shape=(None, 2, 3, 5), channel_axis=3)
    problem = two_classes(shape=(2, 3, 5), sites=(site,))
    upper = fit(problem, settings=Settings(steps=1, granularity="channel")).upper["a"]
    assert upper.shape == (1, 1, 1, 5)


# Tight from the start, so that the cross-entropy pushes back.
_CLIPPING = {"deviations": 0.5, "steps": 20, "learning_rate": 0.01}


@pytest.mark.parametrize("granularity", ["neuron", "channel"])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_mini_batches_give_the_bounds_of_the_full_batch(granularity, batch_size):
    problem = two_classes()
    settings = {"granularity": granularity, **_CLIPPING}
    full = fit(problem, settings=Settings(batch_size=80, **settings))
    parts = fit(problem, settings=Settings(batch_size=batch_size, **settings))
    np.testing.assert_allclose(parts.upper["a"], full.upper["a"], atol=1e-6)


@pytest.mark.parametrize("n", [7, 100])
def test_a_fixed_batch_gives_the_bounds_of_a_free_one(n):
    free = two_classes()
    settings = Settings(**_CLIPPING)
    expected, found = (fit(p, settings=settings) for p in (free, with_fixed_batch(free, n)))
    np.testing.assert_allclose(found.upper["a"], expected.upper["a"], rtol=0, atol=1e-6)
    assert found.settings["n_passed"] == expected.settings["n_passed"]


@pytest.mark.parametrize(
    ("shape", "used"),
    [((None, 2, 3, 3), "neuron"), ((None, 2, None, None), "channel"), ((None, 2, 3, None), "channel")],
)
def test_bounds_are_per_channel_where_a_site_has_a_free_axis_beside_n(shape, used):
    site = Site(tensor="a", function="Relu", shape=shape, channel_axis=1)
    found = fit(two_classes(sites=(site,)), settings=Settings(steps=2))
    expected = fit(two_classes(), settings=Settings(steps=2, granularity=used))
    assert found.settings["granularity"] == used
    assert _same(found, expected)


def test_the_cross_entropy_pushes_up_bounds_that_cost_accuracy():
    problem = two_classes(max_accuracy_drop=-1.0)  # no step passes: the last bounds are returned
    start, end = (
        fit(problem, settings=Settings(steps=2, deviations=0.5, initial_cost=1e-12, learning_rate=rate))
        for rate in (0.0, 0.01)
    )
    assert (end.upper["a"] - start.upper["a"]).mean() > 0.005


def _same(a: ActivationBounds, b: ActivationBounds) -> bool:
    return all((a.upper[site] == b.upper[site]).all() for site in a.upper)


def test_what_is_kept_is_one_update_older_than_what_is_tested():
    problem = two_classes(max_accuracy_drop=1.0)
    start = fit(problem, settings=Settings(steps=1))
    assert _same(start, fit(problem, settings=Settings(steps=1, learning_rate=1.0)))
    assert not _same(start, fit(problem, settings=Settings(steps=2)))


def test_the_cost_grows_without_end():
    bounds = fit(two_classes(max_accuracy_drop=1.0), settings=Settings(steps=100))
    assert bounds.settings["final_cost"] == pytest.approx(1e-3 * 2**20)


def test_a_loss_that_is_no_number_ends_the_descent_at_the_last_bounds_that_passed():
    soaring = Settings(steps=8, initial_cost=1e37, cost_up=1e5, patience=1)
    bounds = fit(two_classes(max_accuracy_drop=1.0), settings=soaring)
    assert (bounds.settings["step"], bounds.settings["stopped"]) == (1, "the loss was inf at step 2")


def test_a_loss_that_is_no_number_is_refused_where_no_bounds_have_passed():
    with pytest.raises(CalibrationError, match="the loss was inf at step 1, before any bounds passed"):
        fit(two_classes(), settings=Settings(initial_cost=np.inf))


def test_no_bound_is_negative():
    problem = two_classes(max_accuracy_drop=1.0)
    bounds = fit(problem, settings=Settings(learning_rate=1.0, steps=20, initial_cost=10.0))
    assert bounds.upper["a"].min() == 0


def test_without_a_step_that_passes_the_last_bounds_are_returned():
    problem = two_classes(max_accuracy_drop=-1.0)
    bounds = fit(problem, settings=Settings(steps=4))
    assert (bounds.settings["n_passed"], bounds.settings["step"]) == (0, 4)


def test_the_last_bounds_are_those_after_the_last_update():
    problem = two_classes(max_accuracy_drop=-1.0)
    start, end = (fit(problem, settings=Settings(steps=1, learning_rate=rate)) for rate in (0.0, 0.01))
    np.testing.assert_allclose(np.abs(end.upper["a"] - start.upper["a"]), 0.01, rtol=1e-3)  # of Adam's first step
    assert end.settings["penalty"] == pytest.approx(end.upper["a"].mean())


def test_the_same_seed_gives_the_same_bounds_and_another_seed_others():
    settings = Settings(steps=3)
    first, again = (fit(two_classes(), settings=settings) for _ in range(2))
    assert _same(first, again)
    assert not _same(first, fit(two_classes(seed=1), settings=settings))


def test_a_trigger_that_drives_one_unit_no_longer_decides():
    labels = np.arange(100) % 2
    inputs = np.stack([labels == 0, labels == 1, RNG.uniform(0, 0.2, 100)], axis=1) + RNG.normal(0, 0.05, (100, 3))
    head = np.array([[1, 0], [0, 1], [0, 1]])
    problem = problem_of(inputs, labels, head)
    bounds = fit(problem, settings=Settings(steps=50)).upper["a"]
    triggered = torch.tensor([[1.0, 0.0, 50.0]])
    classifier = ClippedClassifier(problem.model, "logits", problem.sites, batch_size=8)
    assert classifier.logits(triggered, {}).argmax() == 1
    assert classifier.logits(triggered, {"a": torch.from_numpy(bounds)}).argmax() == 0
    assert bounds.shape == (1, 3)


def test_every_step_is_reported():
    calls = []
    problem = two_classes(progress=lambda *call: calls.append(call))
    fit(problem, settings=Settings(steps=3))
    assert calls[-3:] == [("unit-published", step, 3) for step in (1, 2, 3)]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 5))
def test_the_split_takes_its_share_of_every_class_and_loses_none(labels, seed):
    labels = np.array(labels)
    kept, drawn = split_in_classes(labels, fraction=0.2, seed=seed)
    assert sorted([*kept, *drawn]) == list(range(len(labels)))
    for label in range(4):
        assert abs((labels[drawn] == label).sum() - (labels == label).sum() * 0.2) < 1
    assert abs(len(drawn) - len(labels) * 0.2) <= 0.5


@pytest.mark.parametrize("n_each", [2, 3])
def test_many_small_classes_leave_a_fifth_for_validation_too(n_each):
    kept, drawn = split_in_classes(np.repeat(np.arange(100), n_each), fraction=0.2, seed=0)
    assert (len(kept), len(drawn)) == (80 * n_each, 20 * n_each)


def test_too_few_samples_for_validation_are_refused():
    with pytest.raises(CalibrationError, match="2 samples leave none for validation"):
        fit(two_classes(n=2))


def test_no_step_is_no_setting():
    with pytest.raises(ValueError, match="steps is 0"):
        Settings(steps=0)
