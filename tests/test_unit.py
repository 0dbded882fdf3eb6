"""UNIT: the numbers that prove a port equal to the official code, and what the corrected profile promises."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from unit_problems import problem_of, two_classes, with_fixed_batch

from calibrate.bounds.clipped_classifier import ClippedClassifier, LabelledInputs
from calibrate.bounds.unit import UnitSettings, fit_unit, split_in_classes
from calibrate.sites import ActivationBounds, Site
from guard.errors import CalibrationError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch's threads from waiting for each other over tensors this small."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def _drift(n_channels: int, **changes) -> float:
    """Return how far a neuron that is never clipped moves when every step passes."""
    inputs = RNG.uniform(0, 4, size=(4, n_channels, 64, 64))
    problem = problem_of(inputs, np.zeros(4), np.ones((n_channels, 1)))
    settings = {"max_cost": np.inf, **changes}
    start = fit_unit(problem, settings=UnitSettings(steps=1, learning_rate=0.0))
    return float((fit_unit(problem, settings=UnitSettings(**settings)).upper["a"] - start.upper["a"]).mean())


@pytest.mark.parametrize(("n_channels", "drift"), [(16, -0.450), (2, -0.456)])
def test_a_bound_that_clips_nothing_drifts_as_far_as_in_the_official_code(n_channels, drift):
    assert _drift(n_channels) == pytest.approx(drift, abs=1e-3)


@pytest.mark.parametrize(("n_channels", "drift"), [(16, -0.181), (2, -0.277)])
def test_with_a_constant_cost_a_bound_drifts_less(n_channels, drift):
    assert _drift(n_channels, cost_up=1.0) == pytest.approx(drift, abs=1e-3)


@pytest.mark.parametrize(("granularity", "axes"), [("neuron", 0), ("channel", (0, 2, 3))])
def test_bounds_start_four_deviations_above_the_mean(granularity, axes):
    problem = two_classes()
    settings = UnitSettings(steps=1, learning_rate=0.0, granularity=granularity)
    rows, _ = split_in_classes(problem.labels, fraction=0.2, seed=0)
    activations = np.maximum(problem.inputs[rows], 0).astype(np.float64)
    expected = activations.mean(axes, keepdims=True) + 4 * activations.std(axes, ddof=1, keepdims=True)
    upper = fit_unit(problem, settings=settings).upper["a"]
    assert len(rows) == 64
    assert upper.shape == expected.shape
    np.testing.assert_allclose(upper, expected, rtol=1e-5)


def test_channels_lie_on_the_axis_that_the_site_says():
    site = Site(tensor="a", function="Relu", shape=(None, 2, 3, 5), channel_axis=3)
    problem = two_classes(shape=(2, 3, 5), sites=(site,))
    upper = fit_unit(problem, settings=UnitSettings(steps=1, granularity="channel")).upper["a"]
    assert upper.shape == (1, 1, 1, 5)


# Tight from the start, so that the cross-entropy pushes back.
_CLIPPING = {"deviations": 0.5, "steps": 20, "learning_rate": 0.01}


@pytest.mark.parametrize("granularity", ["neuron", "channel"])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_mini_batches_give_the_bounds_of_the_full_batch(granularity, batch_size):
    problem = two_classes()
    settings = {"granularity": granularity, **_CLIPPING}
    full = fit_unit(problem, settings=UnitSettings(batch_size=80, **settings))
    parts = fit_unit(problem, settings=UnitSettings(batch_size=batch_size, **settings))
    np.testing.assert_allclose(parts.upper["a"], full.upper["a"], atol=1e-6)


@pytest.mark.parametrize("n", [7, 100])
def test_a_fixed_batch_gives_the_bounds_of_a_free_one(n):
    free = two_classes()
    settings = UnitSettings(**_CLIPPING)
    expected, found = (fit_unit(p, settings=settings) for p in (free, with_fixed_batch(free, n)))
    np.testing.assert_allclose(found.upper["a"], expected.upper["a"], rtol=0, atol=1e-6)
    assert found.settings["n_passed"] == expected.settings["n_passed"]


@pytest.mark.parametrize(
    ("shape", "used"),
    [((None, 2, 3, 3), "neuron"), ((None, 2, None, None), "channel"), ((None, 2, 3, None), "channel")],
)
def test_bounds_are_per_channel_where_a_site_has_a_free_axis_beside_n(shape, used):
    site = Site(tensor="a", function="Relu", shape=shape, channel_axis=1)
    found = fit_unit(two_classes(sites=(site,)), settings=UnitSettings(steps=2))
    expected = fit_unit(two_classes(), settings=UnitSettings(steps=2, granularity=used))
    assert found.settings["granularity"] == used
    assert _same(found, expected)


def test_the_cross_entropy_pushes_up_bounds_that_cost_accuracy():
    problem = two_classes(max_accuracy_drop=1.0)
    start, end = (
        fit_unit(problem, settings=UnitSettings(steps=1, deviations=0.5, initial_cost=1e-12, learning_rate=rate))
        for rate in (0.0, 0.01)
    )
    assert (end.upper["a"] - start.upper["a"]).mean() > 0.005


def _same(a: ActivationBounds, b: ActivationBounds) -> bool:
    return all((a.upper[site] == b.upper[site]).all() for site in a.upper)


def test_the_official_profile_keeps_bounds_one_update_older_than_tested():
    problem = two_classes(max_accuracy_drop=1.0)
    official = fit_unit(problem, settings=UnitSettings(profile="official-code", steps=6))
    assert _same(official, fit_unit(problem, settings=UnitSettings(steps=5)))
    assert not _same(official, fit_unit(problem, settings=UnitSettings(steps=6)))


def test_the_corrected_profile_keeps_bounds_of_the_accuracy_it_reports():
    problem = two_classes()
    bounds = fit_unit(problem, settings=UnitSettings(deviations=1.5, learning_rate=0.1, steps=60))
    _, rows = split_in_classes(problem.labels, fraction=0.2, seed=0)
    data = LabelledInputs.of(problem.inputs[rows], problem.labels[rows])
    upper = {site: torch.from_numpy(bound) for site, bound in bounds.upper.items()}
    classifier = ClippedClassifier(problem.model, "logits", problem.sites, batch_size=8)
    assert classifier.accuracy(data, upper) == bounds.settings["validation_accuracy"]
    assert 0 < bounds.settings["n_passed"] < 60
    assert bounds.settings["validation_accuracy"] >= bounds.settings["original_accuracy"] - 0.03 - 1e-9


@pytest.mark.parametrize(("profile", "cost"), [("corrected", 1e2), ("official-code", 1e-3 * 2**20)])
def test_only_the_corrected_profile_caps_the_cost(profile, cost):
    problem = two_classes(max_accuracy_drop=1.0)
    bounds = fit_unit(problem, settings=UnitSettings(profile=profile, steps=100))
    assert bounds.settings["final_cost"] == pytest.approx(cost)


@pytest.mark.parametrize(("profile", "stops_early"), [("corrected", True), ("official-code", False)])
def test_only_the_corrected_profile_stops_when_no_better_bounds_come(profile, stops_early):
    calls = []
    problem = two_classes(progress=lambda stage, done, _: calls.append(done))
    settings = UnitSettings(profile=profile, learning_rate=0.3, steps=40, stop_after=4)
    best = fit_unit(problem, settings=settings).settings["step"]
    assert calls[-1] == (best + 4 if stops_early else 40)
    assert (calls[-1] < 40) == stops_early


def test_no_bound_is_negative():
    problem = two_classes(max_accuracy_drop=1.0)
    bounds = fit_unit(problem, settings=UnitSettings(learning_rate=1.0, steps=20, initial_cost=10.0))
    assert bounds.upper["a"].min() == 0


def test_without_a_step_that_passes_the_last_bounds_are_returned():
    problem = two_classes(max_accuracy_drop=-1.0)
    bounds = fit_unit(problem, settings=UnitSettings(steps=4))
    assert (bounds.settings["n_passed"], bounds.settings["step"]) == (0, 4)


def test_the_same_seed_gives_the_same_bounds_and_another_seed_others():
    settings = UnitSettings(steps=3)
    first, again = (fit_unit(two_classes(), settings=settings) for _ in range(2))
    assert _same(first, again)
    assert not _same(first, fit_unit(two_classes(seed=1), settings=settings))


def test_scaled_learning_rates_make_the_bounds_follow_the_scale_of_the_activations():
    settings = UnitSettings(steps=5, scale_learning_rate=True)
    small = two_classes(max_accuracy_drop=1.0)
    large = replace(small, inputs=small.inputs * 100)
    reach = [
        fit_unit(p, settings=settings).upper["a"]
        - fit_unit(p, settings=UnitSettings(steps=1, learning_rate=0.0)).upper["a"]
        for p in (small, large)
    ]
    np.testing.assert_allclose(reach[1], 100 * reach[0], rtol=2e-2)


def test_a_trigger_that_drives_one_unit_no_longer_decides():
    labels = np.arange(100) % 2
    inputs = np.stack([labels == 0, labels == 1, RNG.uniform(0, 0.2, 100)], axis=1) + RNG.normal(0, 0.05, (100, 3))
    head = np.array([[1, 0], [0, 1], [0, 1]])
    problem = problem_of(inputs, labels, head)
    bounds = fit_unit(problem, settings=UnitSettings(steps=50)).upper["a"]
    triggered = torch.tensor([[1.0, 0.0, 50.0]])
    classifier = ClippedClassifier(problem.model, "logits", problem.sites, batch_size=8)
    assert classifier.logits(triggered, {}).argmax() == 1
    assert classifier.logits(triggered, {"a": torch.from_numpy(bounds)}).argmax() == 0
    assert bounds.shape == (1, 3)


def test_every_step_is_reported():
    calls = []
    problem = two_classes(progress=lambda *call: calls.append(call))
    fit_unit(problem, settings=UnitSettings(steps=3))
    assert [call for call in calls if call[0] == "unit"] == [("unit", 1, 3), ("unit", 2, 3), ("unit", 3, 3)]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 5))
def test_the_split_takes_its_share_of_every_class_and_loses_none(labels, seed):
    labels = np.array(labels)
    kept, drawn = split_in_classes(labels, fraction=0.2, seed=seed)
    assert sorted([*kept, *drawn]) == list(range(len(labels)))
    for label in range(4):
        assert (labels[drawn] == label).sum() == round((labels == label).sum() * 0.2)


def test_too_few_samples_for_validation_are_refused():
    with pytest.raises(CalibrationError, match="4 samples leave none for validation"):
        fit_unit(two_classes(n=4))


def test_no_step_is_no_setting():
    with pytest.raises(ValueError, match="steps is 0"):
        UnitSettings(steps=0)
