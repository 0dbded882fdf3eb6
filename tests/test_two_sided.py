"""Bounds from below as well as from above: in the graph, in torch, in sigma, in the manifest and in the report."""

import numpy as np
import pytest
import torch
from digits import fit
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from small_graphs import model_of, node, values_of
from torch import nn

from calibrate.bounds.clipped_classifier import ClippedClassifier, clip_at
from calibrate.bounds.sigma import SigmaSettings, fit_sigma
from calibrate.edit import check_edited, insert_bounds
from calibrate.forward import predict
from calibrate.graph import find_sites
from calibrate.sites import ActivationBounds, BoundsProblem
from calibrate.statistics import observe, site_moments
from guard.bundle import REPORT
from guard.errors import CalibrationError
from guard.runtime import Guard

X = np.random.default_rng(0).normal(0, 2, (50, 3)).astype(np.float32)
TANH = model_of(node("Tanh", ["x"], ["tanh"]), node("Neg", ["tanh"], ["y"]))
SIDES = hnp.arrays(np.float32, (1, 3), elements=st.floats(-1, 1, width=32))


def _silent(stage, done, total):
    pass


def _two_sided(lower, upper, *, model=TANH, tensor="tanh"):
    sides = {
        "lower": {tensor: np.asarray(lower, dtype=np.float32)},
        "upper": {tensor: np.asarray(upper, dtype=np.float32)},
    }
    bounds = ActivationBounds(method="by-hand", settings={}, **sides)
    return check_edited(insert_bounds(model, bounds, find_sites(model)))


def _problem(model, inputs, *, allowed=0.5):
    return BoundsProblem(
        model=model,
        logits=model.graph.output[0].name,
        sites=find_sites(model),
        n_classes=3,
        inputs=inputs,
        labels=predict(model, model.graph.output[0].name, inputs),
        max_accuracy_drop=allowed,
        seed=0,
        progress=_silent,
    )


@pytest.mark.parametrize(
    ("lower", "upper", "operators"),
    [
        (-0.5, 0.25, ["Clip"]),
        ([[-0.5, -0.5, -0.5]], [[0.25]], ["Clip"]),
        ([[-0.5, 0.0, 0.1]], 0.25, ["Max", "Min"]),
        (-0.5, [[0.25, 0.5, 0.75]], ["Max", "Min"]),
        ([[-0.5, 0.0, 0.1]], [[0.25, 0.5, 0.75]], ["Max", "Min"]),
        (-np.inf, 0.25, ["Clip"]),
        (-np.inf, [[0.25, 0.5, 0.75]], ["Min"]),
    ],
)
def test_both_bounds_hold_with_no_more_nodes_than_they_need(lower, upper, operators):
    bounded = _two_sided(lower, upper)
    assert [n.op_type for n in bounded.graph.node] == ["Tanh", *operators, "Neg"]
    assert len(bounded.graph.initializer) == (1 if np.isinf(lower).any() else 2)
    expected = -np.clip(values_of(TANH, "tanh", X), np.float32(lower), np.float32(upper))
    np.testing.assert_array_equal(values_of(bounded, "y", X), expected)


@given(SIDES, SIDES)
def test_the_graph_and_torch_clip_alike(one, other):
    lower, upper = np.minimum(one, other), np.maximum(one, other)
    clip = clip_at(torch.from_numpy(upper), torch.from_numpy(lower))
    bounded = values_of(_two_sided(lower, upper), "tanh", X)
    np.testing.assert_array_equal(bounded, clip(torch.from_numpy(values_of(TANH, "tanh", X))).numpy())
    assert ((bounded >= lower) & (bounded <= upper)).all()


@pytest.mark.parametrize("lower", [0.25, [[0.0, 0.125, 0.25]]])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE])
@pytest.mark.parametrize("opset", [11, 17, 21])
def test_both_bounds_take_the_element_type_of_the_graph(lower, dtype, opset):
    model = model_of(node("Relu", ["x"], ["relu"]), node("Neg", ["relu"], ["y"]), dtype=dtype, opset=opset)
    x = X.astype(helper.tensor_dtype_to_np_dtype(dtype))
    answers = values_of(_two_sided(lower, 0.5, model=model, tensor="relu"), "y", x)
    assert answers.dtype == x.dtype
    np.testing.assert_array_equal(answers, -np.clip(np.maximum(x, 0), x.dtype.type(lower), x.dtype.type(0.5)))


def test_names_that_are_taken_stay_apart():
    model = model_of(node("Tanh", ["x"], ["tanh/lower_bound"]), node("Tanh", ["tanh/lower_bound"], ["tanh"]),
                     node("Neg", ["tanh"], ["y"]))  # fmt: skip
    bounded = _two_sided([[-0.5, 0.0, 0.1]], 0.25, model=model)
    expected = -np.clip(np.tanh(np.tanh(X)), np.float32([-0.5, 0.0, 0.1]), np.float32(0.25))
    np.testing.assert_allclose(values_of(bounded, "y", X), expected, rtol=1e-6)


def test_a_model_whose_weights_are_all_inputs_takes_both_bounds():
    model = model_of(node("Tanh", ["x"], ["tanh"]), node("Neg", ["tanh"], ["y"]), opset=11, ir_version=3)
    bounded = _two_sided([[-0.5, 0.0, 0.1]], 0.25, model=model)
    assert [i.name for i in bounded.graph.input] == ["x"]
    np.testing.assert_array_equal(values_of(bounded, "tanh", X).min(axis=0), np.float32([-0.5, 0.0, 0.1]))


def test_bounds_that_cross_are_refused():
    with pytest.raises(CalibrationError, match="lower bound of 'tanh' lies above its upper"):
        _two_sided([[0.0, 0.0, 0.5]], 0.25)


def test_a_lower_bound_that_is_no_number_is_refused():
    with pytest.raises(CalibrationError, match="bound of 'tanh' is not a number"):
        _two_sided(np.nan, 0.25)


def test_a_lower_bound_needs_an_upper_one():
    with pytest.raises(ValueError, match="'tanh' has a lower bound but no upper"):
        ActivationBounds(method="by-hand", settings={}, upper={}, lower={"tanh": np.zeros(1)})


def test_gradients_reach_the_bound_that_holds():
    problem = _problem(TANH, X)
    lower, upper = (torch.tensor([[v, v, v]], requires_grad=True) for v in (-0.5, 0.25))
    classifier = ClippedClassifier(TANH, "y", problem.sites, batch_size=8)
    classifier.logits(torch.from_numpy(X), {"tanh": upper}, {"tanh": lower}).sum().backward()
    tanh = np.tanh(X)
    np.testing.assert_array_equal(upper.grad[0], -(tanh > 0.25).sum(axis=0))
    np.testing.assert_array_equal(lower.grad[0], -(tanh < -0.5).sum(axis=0))


def test_minima_and_maxima_come_from_one_pass_as_they_do_alone():
    model = model_of(node("Tanh", ["x"], ["tanh"]), node("Neg", ["tanh"], ["y"]), x=("N", 3, 4), y=("N", 3, 4))
    inputs = np.random.default_rng(1).normal(size=(100, 3, 4)).astype(np.float32)
    told = []
    both = observe(model, "y", find_sites(model), inputs, poolings=["maximum", "minimum"],
                   progress=lambda *s: told.append(s)).moments  # fmt: skip
    assert told[-1] == ("activation statistics", 100, 100)
    np.testing.assert_allclose(both["minimum"]["tanh"].mean[0, :, 0], np.tanh(inputs).min(axis=2).mean(axis=0), 1e-6)
    alone = site_moments(model, find_sites(model), inputs, pooling="maximum", progress=_silent)
    np.testing.assert_array_equal(both["maximum"]["tanh"].std, alone["tanh"].std)


def test_sigma_bounds_what_goes_negative_on_both_sides():
    bounds = fit_sigma(_problem(TANH, X), settings=SigmaSettings(candidates=(1.0,), late_share=1.0))
    tanh = np.tanh(X.astype(np.float64))
    for found, sign in ((bounds.upper, 1), (bounds.lower, -1)):
        expected = tanh.mean(axis=0) + sign * tanh.std(axis=0, ddof=1)
        np.testing.assert_allclose(found["tanh"][0], expected, rtol=1e-5)


@pytest.mark.parametrize("function", ["Relu", "Sigmoid", "Softplus"])
def test_sigma_bounds_what_stays_positive_from_above_alone(function):
    model = model_of(node(function, ["x"], ["a"]), node("Neg", ["a"], ["y"]))
    assert fit_sigma(_problem(model, X)).lower == {}


@pytest.fixture(scope="module")
def tanh_bundle(digits, tmp_path_factory):
    """Return a bundle of a digits classifier, untrained, whose activations go to both sides."""
    folder = tmp_path_factory.mktemp("tanh")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).eval()
    digits.export_to(folder / "tanh.onnx", network)
    np.save(folder / "unlabelled.npy", np.load(digits.clean)["inputs"])  # it is right about nothing
    return fit(folder / "tanh.onnx", folder / "unlabelled.npy", folder / "bundle", max_accuracy_drop=0.9)


def test_the_manifest_tells_lower_bounds_where_there_are_any(tanh_bundle, digits_bundle):
    (site,) = Guard.load(tanh_bundle).manifest.sites
    assert (site["n_bounds"], site["n_lower_bounds"]) == (16, 16)
    assert site["least_lower_bound"] < 0 < site["greatest_bound"]
    assert site["least_lower_bound"] <= site["greatest_lower_bound"] <= site["greatest_bound"]
    assert all("least_lower_bound" not in site for site in Guard.load(digits_bundle).manifest.sites)


def test_the_report_draws_lower_bounds_where_there_are_any(tanh_bundle, digits_bundle):
    two_sided, one_sided = ((bundle / REPORT).read_text() for bundle in (tanh_bundle, digits_bundle))
    assert "from below" in two_sided
    assert "from below" not in one_sided
    assert two_sided.count("<svg") == 2
