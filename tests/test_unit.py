"""UNIT, ours: bounds that keep what the model says, whatever the scale of its activations, and honest validation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import helper
from unit_problems import problem_of, two_classes, with_fixed_batch

from calibrate.bounds.clipped_classifier import ClippedClassifier, LabelledInputs
from calibrate.bounds.unit import UnitSettings, fit_unit
from calibrate.bounds.unit_schedule import CostSchedule
from calibrate.bounds.validation import split_in_classes
from calibrate.evaluation import accuracy_drop_limit
from guard.errors import CalibrationError

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = UnitSettings(steps=40)


def _problem(**changes):
    return replace(two_classes(n=200), max_accuracy_drop=0.2, **changes)


def test_bounds_start_at_the_mean_and_deviations_of_the_maxima_over_positions():
    problem = _problem()
    upper = fit_unit(problem, settings=UnitSettings(steps=1, deviations=3.0)).upper["a"]
    rows, _ = split_in_classes(problem.labels, fraction=0.5, seed=0)
    maxima = np.maximum(problem.inputs[rows], 0).max(axis=(2, 3), keepdims=True).astype(np.float64)
    expected = maxima.mean(0, keepdims=True) + 3 * maxima.std(0, ddof=1, keepdims=True)
    np.testing.assert_allclose(upper, expected, rtol=1e-5)


def test_the_kept_bounds_have_the_limit_that_they_report():
    problem = _problem()
    bounds = fit_unit(problem, settings=SHORT)
    _, rows = split_in_classes(problem.labels, fraction=0.5, seed=0)
    data = LabelledInputs.of(problem.inputs[rows], problem.labels[rows])
    classifier = ClippedClassifier(problem.model, "logits", problem.sites, batch_size=8)
    right = [classifier.is_right(data, {s: torch.from_numpy(u) for s, u in b.items()}) for b in ({}, bounds.upper)]
    limit = accuracy_drop_limit(*right, confidence=0.95)
    assert bounds.settings["drop_limit"] == pytest.approx(limit, abs=0.02)  # bfloat16 may turn a row
    assert bounds.settings["drop_limit"] <= 0.2
    assert bounds.settings["drop"] <= 0.06


def test_bounds_grow_with_the_scale_of_the_activations():
    small = _problem()
    head = np.eye(2) / 64
    large = problem_of(64 * small.inputs, small.labels, head, max_accuracy_drop=0.2)
    bounds = [fit_unit(problem, settings=SHORT) for problem in (small, large)]
    np.testing.assert_allclose(bounds[1].upper["a"], 64 * bounds[0].upper["a"], rtol=1e-3)


def test_bounds_become_tighter_than_they_start():
    start, end = (fit_unit(_problem(), settings=UnitSettings(steps=steps)) for steps in (1, 40))
    assert (end.upper["a"] < start.upper["a"]).all()
    assert end.settings["penalty"] < start.settings["penalty"] / 2


def test_a_trigger_that_drives_one_unit_no_longer_decides():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    inputs = np.stack([labels == 0, labels == 1, rng.uniform(0, 0.2, 200)], axis=1) + rng.normal(0, 0.05, (200, 3))
    problem = problem_of(inputs, labels, np.array([[9, 0], [0, 9], [0, 9]]))
    upper = {"a": torch.from_numpy(fit_unit(problem).upper["a"])}
    classifier = ClippedClassifier(problem.model, "logits", problem.sites, batch_size=8)
    triggered = torch.tensor([[1.0, 0.0, 50.0]])
    assert classifier.logits(triggered, {}).argmax() == 1
    assert classifier.logits(triggered, upper).argmax() == 0


def test_what_goes_negative_is_bounded_on_both_sides():
    problem = _problem()
    problem.model.graph.node[0].CopyFrom(helper.make_node("Tanh", ["x"], ["a"]))
    bounds = fit_unit(problem, settings=SHORT)
    assert (bounds.lower["a"] < 0).all()
    assert (bounds.lower["a"] < bounds.upper["a"]).all()


@pytest.mark.parametrize("n", [7, 300])
def test_a_fixed_batch_changes_nothing(n):
    expected, found = (fit_unit(p, settings=SHORT) for p in (_problem(), with_fixed_batch(_problem(), n)))
    np.testing.assert_allclose(found.upper["a"], expected.upper["a"], rtol=0.05)


def test_the_same_seed_gives_the_same_bounds_and_another_seed_others():
    bounds = [fit_unit(_problem(seed=seed), settings=SHORT).upper["a"] for seed in (0, 0, 1)]
    assert (bounds[0] == bounds[1]).all()
    assert (bounds[0] != bounds[2]).any()


def test_it_stops_when_no_better_bounds_come():
    told = []
    problem = _problem(progress=lambda *step: told.append(step[1:]))
    bounds = fit_unit(problem, settings=UnitSettings(learning_rate=0.0, stop_after=3))
    assert bounds.settings["step"] == 0
    assert told[-2:] == [(12, 240), (240, 240)]


def test_bounds_that_cost_too_much_from_the_start_are_refused():
    with pytest.raises(CalibrationError, match=r"no bounds passed on 100 samples: the loosest cost 0\.000"):
        fit_unit(_problem(), settings=UnitSettings(steps=4, drop_share=-0.1))


def test_a_loss_that_is_no_number_ends_the_descent_at_the_last_bounds_that_passed():
    soaring = CostSchedule(patience=1, cost_up=1e42)
    bounds = fit_unit(_problem(), settings=UnitSettings(steps=8, schedule=soaring))
    assert bounds.settings["stopped"] == "the loss was inf at step 5"
    assert bounds.settings["step"] == 4


def test_too_few_samples_for_validation_are_refused():
    with pytest.raises(CalibrationError, match="1 samples leave none for validation"):
        fit_unit(two_classes(n=1))
