"""Bounds of mean + k sd: k is the tightest that the accuracy allows, on any graph that onnxruntime runs."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto
from small_graphs import exported, model_of, node
from torch_models import example_of

from calibrate.bounds.sigma import SigmaSettings, fit_sigma
from calibrate.differentiable import DifferentiableModel
from calibrate.forward import predict
from calibrate.graph import find_sites
from calibrate.sites import BoundsProblem
from guard.errors import CalibrationError

PLAIN = SigmaSettings(candidates=(1.0, 2.0, 3.0, 4.0, 20.0), early_factor=1.0)
CHANNEL = np.array([0.0] * 99 + [10.0], dtype=np.float32)


def _silent(stage, done, total):
    pass


def _problem(model, inputs, labels, *, allowed=0.0, progress=_silent):
    return BoundsProblem(
        model=model,
        logits=model.graph.output[0].name,
        sites=find_sites(model),
        n_classes=len(set(labels)),
        inputs=inputs,
        labels=labels,
        max_accuracy_drop=allowed,
        seed=0,
        progress=progress,
    )


def _one_loud_row(n_loud=1, *, allowed=0.02):
    """Let channel 0 be 10 on a few rows of 100, which alone are class 0: the logits are relu(x) and a constant 3.

    Its mean is .1 and its sd 1 where one row is loud, so the bound .1 + k stays below 3 until k is 3.
    """
    model = model_of(
        node("Relu", ["x"], ["relu"]), node("Add", ["relu", "offset"], ["y"]), x=("N", 2), y=("N", 2),
        weights={"offset": [0.0, 3.0]},
    )  # fmt: skip
    inputs = np.zeros((100, 2), dtype=np.float32)
    inputs[:n_loud, 0] = 10
    labels = np.array([0] * n_loud + [1] * (100 - n_loud))
    return _problem(model, inputs, labels, allowed=allowed)


def test_the_tightest_k_that_costs_nothing_is_chosen():
    bounds = fit_sigma(_one_loud_row(), settings=PLAIN)
    assert bounds.settings["k"] == 3.0
    expected = CHANNEL.mean() + 3 * CHANNEL.std(ddof=1)
    np.testing.assert_allclose(bounds.upper["relu"], [[expected, 0]], rtol=1e-6)
    assert bounds.upper["relu"].dtype == np.float32


def test_the_limit_of_every_k_tried_is_told():
    limits = fit_sigma(_one_loud_row(), settings=PLAIN).settings["accuracy_drop_limits"]
    one = 1 / 102 + 1.6448536 * np.sqrt((2 / 102 - 1 / 102**2) / 102)
    assert limits == pytest.approx({"1": one, "2": one, "3": 1.6448536 / 102}, abs=1e-6)


def test_a_k_that_costs_too_much_at_once_is_not_tried_on_the_rest():
    problem = _one_loud_row(6)
    order = np.r_[0:3, 6:90, 3:6, 90:100]  # half of the loud rows come first, half past the first batch
    problem = replace(problem, inputs=problem.inputs[order], labels=problem.labels[order])
    limit = fit_sigma(problem, settings=PLAIN).settings["accuracy_drop_limits"]["1"]
    assert limit == pytest.approx(3 / 102 + 1.6448536 * np.sqrt((4 / 102 - (3 / 102) ** 2) / 102), abs=1e-6)


@pytest.mark.parametrize(("allowed", "k"), [(0.032, 3.0), (0.033, 1.0)])
def test_what_is_allowed_is_compared_with_the_limit_and_not_the_drop(allowed, k):
    assert fit_sigma(_one_loud_row(allowed=allowed), settings=PLAIN).settings["k"] == k


def test_early_sites_are_bounded_more_loosely():
    model = exported("vgg", "torchscript", 17)
    inputs = example_of(40).numpy()
    problem = _problem(model, inputs, predict(model, "logits", inputs), allowed=0.9)
    loose = fit_sigma(problem, settings=SigmaSettings(candidates=(2.0,), early_factor=2.0, late_share=0.25)).upper
    plain = fit_sigma(problem, settings=SigmaSettings(candidates=(2.0,), early_factor=1.0)).upper
    *early, late = loose
    np.testing.assert_array_equal(loose[late], plain[late])
    assert all((loose[tensor] >= plain[tensor]).all() and (loose[tensor] > plain[tensor]).any() for tensor in early)


def test_a_model_that_no_bound_leaves_right_is_refused():
    tight = SigmaSettings(candidates=(0.5, 1.0), early_factor=1.0)
    with pytest.raises(CalibrationError, match=r"mean \+ 1 sd may still cost 0.033 of .*, more than the 0.02 allowed"):
        fit_sigma(_one_loud_row(), settings=tight)


def test_two_fits_give_the_same_bounds():
    model = exported("resnet", "torchscript", 17)
    inputs = example_of(40).numpy()
    problem = _problem(model, inputs, predict(model, "logits", inputs), allowed=0.5)
    first, second = fit_sigma(problem), fit_sigma(problem)
    assert first.settings == second.settings
    assert {t: u.tobytes() for t, u in first.upper.items()} == {t: u.tobytes() for t, u in second.upper.items()}


def test_every_site_gets_one_bound_per_channel():
    model = exported("mobilenet", "dynamo", 18)
    inputs = example_of(40).numpy()
    bounds = fit_sigma(_problem(model, inputs, predict(model, "logits", inputs), allowed=0.5))
    for site in find_sites(model):
        assert bounds.upper[site.tensor].shape == (1, site.shape[1], 1, 1)


def test_a_graph_through_which_no_gradient_goes_is_bounded_all_the_same():
    model = model_of(
        node("Gelu", ["x"], ["gelu"]), node("QuantizeLinear", ["gelu", "step"], ["rounded"]),
        node("DequantizeLinear", ["rounded", "step"], ["h"]), node("Neg", ["h"], ["y"]),
        weights={"step": 0.01}, opset=20, ir_version=9,
    )  # fmt: skip
    with pytest.raises(CalibrationError, match="no gradient"):
        DifferentiableModel(model)
    inputs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    bounds = fit_sigma(_problem(model, inputs, predict(model, "y", inputs), allowed=0.5))
    assert bounds.upper["gelu"].shape == (1, 3)


def test_a_float16_graph_is_bounded():
    model = model_of(node("Relu", ["x"], ["relu"]), node("Neg", ["relu"], ["y"]), dtype=TensorProto.FLOAT16)
    inputs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float16)
    bounds = fit_sigma(_problem(model, inputs, predict(model, "y", inputs), allowed=0.5))
    assert np.isfinite(bounds.upper["relu"]).all()


def test_progress_ends_at_the_last_candidate_even_where_an_early_one_is_chosen():
    told = []
    problem = _one_loud_row(allowed=0.9)
    fit_sigma(
        _problem(problem.model, problem.inputs, problem.labels, allowed=0.9, progress=lambda *s: told.append(s)),
        settings=PLAIN,
    )
    assert told[-1] == ("choosing k", 500, 500)
