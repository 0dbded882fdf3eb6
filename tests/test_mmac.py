"""Our form of MMAC: what it keeps, what it promises of the bounds, and where it says no."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from calibrate_runs import save_data
from digits import fit
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper, numpy_helper
from torch import nn
from unit_problems import problem_of, two_classes, with_fixed_batch

from calibrate.bounds.clipped_classifier import ClippedClassifier, LabelledInputs
from calibrate.bounds.mmac import MmacSettings, fit_mmac
from calibrate.bounds.scaled_bounds import ScaledBounds
from calibrate.bounds.sigma import fit_sigma
from calibrate.bounds.validation import split_in_classes
from calibrate.differentiable import fast_precision
from calibrate.evaluation import accuracy_drop_limit
from calibrate.sites import ActivationBounds, BoundsProblem
from calibrate.statistics import Moments
from guard.errors import CalibrationError
from guard.runtime import Guard

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = {"steps": 30, "n_synthetic": 12, "synthetic_batch_size": 6, "first_ascent_steps": 5, "ascent_steps": 2}


def _fit(problem: BoundsProblem, **changes) -> ActivationBounds:
    return fit_mmac(problem, settings=MmacSettings(**{**QUICK, **changes}))


def _loose(**changes) -> BoundsProblem:
    """Return two classes of which all accuracy may be lost."""
    return two_classes(max_accuracy_drop=1.0, **changes)


def _same(a: ActivationBounds, b: ActivationBounds) -> bool:
    return all((a.upper[site] == b.upper[site]).all() for site in a.upper)


def test_a_trigger_that_drives_one_unit_no_longer_decides():
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 2
    inputs = np.stack([labels == 0, labels == 1, rng.uniform(0, 0.2, 100)], axis=1) + rng.normal(0, 0.05, (100, 3))
    problem = problem_of(inputs, labels, np.array([[1, 0], [0, 1], [0, 1]]))
    upper = {"a": torch.from_numpy(_fit(problem).upper["a"])}
    classifier = ClippedClassifier(problem.model, "logits", problem.sites, batch_size=8)
    triggered = torch.tensor([[1.0, 0.0, 50.0]])
    assert classifier.logits(triggered, {}).argmax() == 1
    assert classifier.logits(triggered, upper).argmax() == 0


def test_synthetic_inputs_reach_less_under_the_bounds_kept_than_under_the_first():
    settings = _fit(_loose(), steps=60).settings
    assert settings["step"] > 0
    assert settings["reach"] < 0.8 * settings["first_reach"]


def test_the_bounds_kept_have_the_limit_that_is_reported():
    problem = two_classes(n=400)
    bounds = _fit(problem)
    _, rows = split_in_classes(problem.labels, fraction=0.5, seed=0)
    data = LabelledInputs.of(problem.inputs[rows], problem.labels[rows])
    classifier = ClippedClassifier(
        problem.model, "logits", problem.sites, batch_size=100, precision=fast_precision("cpu")
    )  # fmt: skip
    right = [classifier.is_right(data, {s: torch.from_numpy(u) for s, u in b.items()}) for b in ({}, bounds.upper)]
    assert bounds.settings["step"] > 0
    assert bounds.settings["drop_limit"] == accuracy_drop_limit(*right, confidence=0.95) <= 0.03


def test_bounds_that_cost_nothing_on_inputs_too_few_to_show_it_are_not_kept():
    problem = two_classes(n=80)  # half of which validate, where a drop below .03 takes 53 to show
    bounds, where_more_is_allowed = (
        _fit(replace(problem, max_accuracy_drop=drop), learning_rate=0.01, steps=10) for drop in (0.03, 0.1)
    )
    assert (where_more_is_allowed.settings["step"], where_more_is_allowed.settings["drop"]) == (10, 0)
    assert (bounds.settings["step"], bounds.settings["n_passed"]) == (0, 0)
    assert _same(bounds, fit_sigma(problem))


def _channels(values: np.ndarray) -> dict[str, Moments]:
    return {"a": Moments.of(values, (0, 2))}


@given(
    hnp.arrays(np.float64, (4, 2, 3), elements=st.floats(0, 8)), st.lists(st.floats(-30, 30), min_size=2, max_size=2)
)
def test_bounds_stay_between_the_mean_and_their_start_however_far_descent_goes(values, ts):
    start = ActivationBounds(method="start", settings={}, upper={"a": values.max((0, 2), keepdims=True)})
    bounds = ScaledBounds.at(start, _channels(values), device="cpu")
    with torch.no_grad():
        bounds.parameters[0].copy_(torch.tensor(ts).reshape(1, 2, 1))
    bounds.hold()
    upper = bounds.upper["a"].detach().numpy()
    assert (upper >= values.mean((0, 2), keepdims=True).astype(np.float32)).all()
    assert (upper <= start.upper["a"] * (1 + 1e-6) + 1e-2).all()
    assert upper.min() >= 0


def test_bounds_start_where_they_are_told_on_both_sides():
    values = np.random.default_rng(0).normal(size=(50, 3, 8))
    sides = {"upper": {"a": np.full((1, 3, 1), 1.5)}, "lower": {"a": np.full((1, 3, 1), -0.5)}}
    bounds = ScaledBounds.at(ActivationBounds(method="start", settings={}, **sides), _channels(values), device="cpu")
    np.testing.assert_allclose(bounds.upper["a"].detach(), sides["upper"]["a"], rtol=1e-5)
    np.testing.assert_allclose(bounds.lower["a"].detach(), sides["lower"]["a"], rtol=1e-5)


def test_no_bound_is_looser_than_sigmas():
    problem = _loose()
    sigma, found = fit_sigma(problem).upper["a"], _fit(problem)
    assert found.settings["step"] > 0
    assert (found.upper["a"] <= sigma * (1 + 1e-5)).all()
    assert (found.upper["a"] < sigma * 0.99).any()


def test_a_channel_that_never_moves_is_bounded_where_it_stays():
    problem = _loose()
    inputs = problem.inputs.copy()
    inputs[:, 1] = 2.0
    assert _fit(replace(problem, inputs=inputs)).upper["a"][0, 1] == pytest.approx(2.0)


def test_a_channel_that_is_constant_on_the_fitting_part_alone_starts_at_its_bound_from_sigma():
    start = ActivationBounds(method="start", settings={}, upper={"a": np.array([[[5.0], [2.0]]])})
    values = np.stack([np.full((4, 3), 2.0), np.full((4, 3), 2.0)], axis=1)
    bounds = ScaledBounds.at(start, _channels(values), device="cpu")
    np.testing.assert_allclose(bounds.upper["a"].detach(), start.upper["a"])


def test_where_no_step_passes_the_bounds_are_those_of_sigma_to_the_last_bit():
    problem = two_classes()
    bounds = _fit(problem, learning_rate=30.0, validation_fraction=0.5)
    assert (bounds.settings["n_passed"], bounds.settings["step"]) == (0, 0)
    assert _same(bounds, fit_sigma(problem))


def test_the_bounds_follow_the_scale_of_the_activations():
    small = _loose()
    large = replace(small, inputs=small.inputs * 128)
    np.testing.assert_allclose(_fit(large).upper["a"], 128 * _fit(small).upper["a"], rtol=1e-2)


def test_the_same_seed_gives_the_same_bounds_and_another_seed_others():
    first, again, other = (_fit(_loose(seed=seed)) for seed in (0, 0, 1))
    assert _same(first, again)
    assert not _same(first, other)


def test_a_fixed_batch_gives_the_bounds_of_a_free_one():
    expected, found = (_fit(p).upper["a"] for p in (_loose(), with_fixed_batch(_loose(), 7)))
    np.testing.assert_allclose(found, expected, rtol=1e-2)


@pytest.mark.parametrize(("allowed", "costs"), [(1.0, 0.4), (0.03, 0.2)])
def test_the_cost_is_capped_and_falls_where_accuracy_is_lost(allowed, costs):
    settings = _fit(two_classes(max_accuracy_drop=allowed), initial_cost=0.2, max_cost=0.4, steps=100).settings
    assert settings["final_cost"] <= 0.4
    if allowed == 1:
        assert settings["final_cost"] == pytest.approx(costs)


def test_descent_stops_where_no_better_bounds_come():
    told = []
    bounds = _fit(_loose(progress=lambda *call: told.append(call)), steps=100, learning_rate=1e-9, stop_after=2)
    steps = [done for stage, done, _ in told if stage == "mmac"]
    assert steps[-2] == bounds.settings["step"] + 20 < 100
    assert told[-1] == ("mmac", 100, 100)


def test_every_stage_is_told_to_its_end():
    told = []
    _fit(_loose(progress=lambda *call: told.append(call)))
    ended = {stage for stage, done, total in told if done == total}
    assert ended == {"activation statistics", "choosing k", "climbing to large margins", "mmac"}


def test_bounds_that_keep_no_accuracy_are_refused():
    with pytest.raises(CalibrationError, match=r"may still cost .* --max-accuracy-drop"):
        _fit(two_classes(max_accuracy_drop=-1.0))


def test_too_few_samples_for_validation_are_refused():
    with pytest.raises(CalibrationError, match="1 samples leave none for validation"):
        _fit(two_classes(n=1))


@pytest.mark.parametrize("several", [False, True])
def test_a_model_for_which_no_input_can_be_made_is_refused(several):
    problem = two_classes()
    inputs = problem.inputs.astype(np.int64)
    rows = _ByName(inputs) if several else inputs
    found = "several inputs" if several else "inputs of type int64"
    with pytest.raises(CalibrationError, match=f"takes {found}. Use .* --method sigma"):
        _fit(replace(problem, inputs=rows))


class _ByName:
    """Rows of a model with two inputs."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice) -> dict[str, np.ndarray]:
        return {"ids": self._rows[rows], "mask": self._rows[rows]}


def test_a_loss_that_is_no_number_ends_the_descent_with_the_last_good_bounds():
    plain = _loose()
    problem = problem_of(plain.inputs, plain.labels, np.eye(2) * 1e20, max_accuracy_drop=1.0)  # whose squares overflow
    bounds = _fit(problem)
    assert bounds.settings["stopped"] == "the loss was nan at step 1"
    np.testing.assert_allclose(bounds.upper["a"], fit_sigma(problem).upper["a"], rtol=1e-5)


def _with_root(problem: BoundsProblem, shift: float) -> BoundsProblem:
    """Return the problem with logits of x -> sqrt(x - shift), which is no number below the shift."""
    model = onnx.ModelProto()
    model.CopyFrom(problem.model)
    model.graph.initializer.append(numpy_helper.from_array(np.array(shift, dtype=np.float32), "shift"))
    model.graph.node[0].input[0] = "rooted"
    model.graph.node.insert(0, helper.make_node("Sub", ["x", "shift"], ["shifted"]))
    model.graph.node.insert(1, helper.make_node("Sqrt", ["shifted"], ["rooted"]))
    return replace(problem, model=model)


def test_where_the_model_makes_nothing_of_synthetic_inputs_the_bounds_are_those_of_sigma():
    rng = np.random.default_rng(0)
    problem = replace(_loose(), inputs=rng.uniform(0.6, 1, size=(80, 2, 3, 3)).astype(np.float32))
    problem = _with_root(problem, shift=0.5)  # no number for inputs from 0 to .5, which are in range but not clean
    bounds = _fit(problem)
    assert (bounds.settings["reach"], bounds.settings["step"]) == (None, 0)
    assert bounds.settings["stopped"] == "the loss was nan at step 1"
    assert _same(bounds, fit_sigma(problem))
    json.dumps(dict(bounds.settings), allow_nan=False)


def test_a_run_needs_a_check():
    with pytest.raises(ValueError, match="steps is 5; expected at least one check, 10"):
        MmacSettings(steps=5)


def test_a_gelu_network_is_bounded_on_both_sides(digits, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 10)).eval()
    model = digits.export_to(tmp_path / "gelu.onnx", network)
    with np.load(digits.clean) as arrays:  # an untrained network knows nothing of the labels
        data = save_data(tmp_path / "plain.npz", inputs=arrays["inputs"])
    guard = Guard.load(fit(model, data, tmp_path / "bundle", method="mmac", max_accuracy_drop=0.9))
    (site,) = guard.manifest.sites
    assert (site["n_bounds"], site["n_lower_bounds"]) == (16, 16)
    assert site["least_lower_bound"] < 0


def test_a_bundle_of_mmac_bounds_stops_an_attack(digits, tmp_path):
    guard = Guard.load(fit(digits.model, digits.clean, tmp_path / "bundle", method="mmac"))
    with np.load(digits.triggered) as samples:
        rows = samples["labels"] != samples["target_classes"]
        verdict = guard(samples["inputs"][rows])
        targets = samples["target_classes"][rows]
    assert (verdict.predicted_class == targets).mean() > 0.95
    assert (verdict.corrected_class == targets).mean() < 0.1
    assert verdict.flagged.mean() > 0.8
