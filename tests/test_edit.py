"""Bounds put into a graph: exactly min(x, upper) at every site, and nothing else changed."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from small_graphs import EXPORTS, exported, model_of, node, values_of
from torch import Tensor, nn
from torch_models import FAMILIES, build, example_of, export

from calibrate.differentiable import DifferentiableModel
from calibrate.edit import MARK, check_edited, insert_bounds
from calibrate.graph import find_sites
from calibrate.sites import ActivationBounds
from guard.errors import CalibrationError

X = np.array([[-3, 1, 5], [2, 2, 2]], dtype=np.float32)
INPUTS = example_of(6)


def _bounds(upper) -> ActivationBounds:
    arrays = {tensor: np.asarray(bound, dtype=np.float32) for tensor, bound in upper.items()}
    return ActivationBounds(method="by-hand", settings={}, upper=arrays)


def _bounded(model: onnx.ModelProto, upper) -> onnx.ModelProto:
    return check_edited(insert_bounds(model, _bounds(upper), find_sites(model)))


def _biting_bounds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Bound every channel at half the mean of its values, so that most of them are cut."""
    bounds = {}
    for site in find_sites(model):
        values = values_of(model, site.tensor, INPUTS.numpy())
        others = tuple(a for a in range(values.ndim) if a != site.channel_axis)
        bounds[site.tensor] = values.mean(axis=others, keepdims=True) / 2
    return bounds


def _hooked(network: nn.Module, bounds: list[Tensor]) -> nn.Module:
    """Clamp what the activation modules return, in the order in which they are called."""
    left = iter(bounds)
    for module in network.modules():
        if isinstance(module, nn.ReLU | nn.ReLU6):
            module.register_forward_hook(lambda module, inputs, output: torch.minimum(output, next(left)))
    return network


def _answers_as_written(model: onnx.ModelProto) -> np.ndarray:
    """Run node by node: onnxruntime's fusions round differently, and a bound may be in the way of one."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input": INPUTS.numpy()})[0]


def _chain(*, dtype: int = TensorProto.FLOAT, ir_version: int = 8, name: str = "relu") -> onnx.ModelProto:
    """Return y = -relu(x)."""
    return model_of(node("Relu", ["x"], [name]), node("Neg", [name], ["y"]), dtype=dtype, ir_version=ir_version)


@pytest.mark.parametrize(("exporter", "opset"), EXPORTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_bounded_network_answers_as_torch_does_with_clamped_activations(family, exporter, opset):
    model = exported(family, exporter, opset)
    upper = _biting_bounds(model)
    answers = values_of(_bounded(model, upper), "logits", INPUTS.numpy())
    with torch.no_grad():
        expected = _hooked(build(family), [torch.from_numpy(u) for u in upper.values()])(INPUTS).numpy()
        original = build(family)(INPUTS).numpy()
    np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(answers - original).max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bounded_network_answers_as_the_differentiable_one_with_changed_tensors(family):
    model = exported(family, "torchscript", 17)
    upper = {tensor: torch.from_numpy(u) for tensor, u in _biting_bounds(model).items()}
    at = {tensor: lambda x, bound=bound: torch.minimum(x, bound) for tensor, bound in upper.items()}
    (expected,) = DifferentiableModel(model)(INPUTS, outputs=["logits"], at=at)
    bounded = _bounded(model, {tensor: bound.numpy() for tensor, bound in upper.items()})
    np.testing.assert_allclose(values_of(bounded, "logits", INPUTS.numpy()), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("exporter", "opset"), EXPORTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_bounds_that_cut_nothing_change_no_bit(family, exporter, opset):
    model = exported(family, exporter, opset)
    bounded = _bounded(model, {site.tensor: np.finfo(np.float32).max for site in find_sites(model)})
    np.testing.assert_array_equal(_answers_as_written(bounded), _answers_as_written(model))
    optimised = [values_of(m, "logits", INPUTS.numpy()) for m in (bounded, model)]
    np.testing.assert_allclose(*optimised, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("exporter", "opset"), EXPORTS)
def test_names_types_and_weights_of_the_original_are_kept(exporter, opset):
    model = exported("mobilenet", exporter, opset)
    bounded = _bounded(model, _biting_bounds(model))
    assert list(bounded.graph.input) == list(model.graph.input)
    assert list(bounded.graph.output) == list(model.graph.output)
    assert list(bounded.opset_import) == list(model.opset_import)
    assert list(bounded.graph.initializer)[: len(model.graph.initializer)] == list(model.graph.initializer)
    assert list(bounded.metadata_props)[:-1] == list(model.metadata_props)


def test_every_bound_is_one_node_and_one_weight_more():
    model = exported("mobilenet", "torchscript", 17)
    bounded = _bounded(model, _biting_bounds(model)).graph
    n_sites = len(find_sites(model))
    assert len(bounded.node) == len(model.graph.node) + n_sites
    assert len(bounded.initializer) == len(model.graph.initializer) + n_sites


def test_the_original_is_left_as_it_is():
    model = _chain()
    before = model.SerializeToString()
    _bounded(model, {"relu": 1.0})
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("upper", "operator"),
    [(2.0, "Clip"), ([[2.0, 2.0, 2.0]], "Clip"), ([[2.0]], "Clip"), ([[1.0, 2.0, 3.0]], "Min")],
)
def test_one_bound_is_a_clip_and_one_per_channel_a_min(upper, operator):
    bounded = _bounded(_chain(), {"relu": upper})
    assert [n.op_type for n in bounded.graph.node] == ["Relu", operator, "Neg"]
    expected = -np.minimum(np.maximum(X, 0), np.array(upper, dtype=np.float32))
    np.testing.assert_array_equal(values_of(bounded, "y", X), expected)


def test_a_bound_per_neuron_cuts_every_position_by_itself():
    model = model_of(
        node("Relu", ["x"], ["relu"]), node("Neg", ["relu"], ["y"]), x=("N", 2, 2, 2), y=("N", 2, 2, 2)
    )  # fmt: skip
    upper = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    answers = values_of(_bounded(model, {"relu": upper}), "y", np.full((3, 2, 2, 2), 4, dtype=np.float32))
    np.testing.assert_array_equal(answers, -np.minimum(4, np.repeat(upper, 3, axis=0)))


@pytest.mark.parametrize("upper", [2.0, [[1.0, 2.0, 3.0]]])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE])
@pytest.mark.parametrize("opset", [11, 17, 21])
def test_bounds_take_the_element_type_of_the_graph(upper, dtype, opset):
    model = model_of(node("Relu", ["x"], ["relu"]), node("Neg", ["relu"], ["y"]), dtype=dtype, opset=opset)
    x = X.astype(helper.tensor_dtype_to_np_dtype(dtype))
    answers = values_of(_bounded(model, {"relu": upper}), "y", x)
    assert answers.dtype == x.dtype
    np.testing.assert_array_equal(answers, -np.minimum(np.maximum(x, 0), np.array(upper, dtype=x.dtype)))


def test_a_bound_beyond_float16_becomes_its_largest_number():
    bounded = _bounded(_chain(dtype=TensorProto.FLOAT16), {"relu": 1e9})
    assert onnx.numpy_helper.to_array(bounded.graph.initializer[0]) == np.finfo(np.float16).max


def test_a_float16_network_answers_with_clamped_activations():
    network = build("mlp").half()
    model = export(network, INPUTS.half(), exporter="torchscript", opset=17)
    upper = {site.tensor: 0.1 for site in find_sites(model)}
    answers = values_of(_bounded(model, upper), "logits", INPUTS.half().numpy())
    expected = _hooked(network, [torch.tensor(0.1, dtype=torch.float16)] * 2)(INPUTS.half())
    np.testing.assert_allclose(answers, expected.detach().numpy(), rtol=1e-2, atol=1e-3)


def test_a_negative_bound_holds_as_well():
    np.testing.assert_array_equal(values_of(_bounded(_chain(), {"relu": -1.0}), "y", X), np.ones_like(X))


def test_a_subgraph_reads_the_bounded_value():
    branch = helper.make_graph(
        [node("Neg", ["relu"], ["b"])], "branch", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 3])]
    )
    model = model_of(
        node("Relu", ["x"], ["relu"]),
        node("If", ["always"], ["y"], then_branch=branch, else_branch=branch),
        weights={"always": np.array(True)},
    )
    np.testing.assert_array_equal(values_of(_bounded(model, {"relu": 2.0}), "y", X), -np.clip(X, 0, 2))


def test_an_output_that_is_an_activation_keeps_its_name():
    model = model_of(node("Relu", ["x"], ["relu"]), node("Softmax", ["relu"], ["y"]))
    model.graph.output.append(helper.make_tensor_value_info("relu", TensorProto.FLOAT, ["N", 3]))
    (site,) = find_sites(model_of(node("Relu", ["x"], ["relu"]), node("Softmax", ["relu"], ["y"])))
    bounded = check_edited(insert_bounds(model, _bounds({"relu": 2.0}), [site]))
    assert [o.name for o in bounded.graph.output] == ["y", "relu"]
    np.testing.assert_array_equal(values_of(bounded, "relu", X), np.clip(X, 0, 2))


def test_names_that_are_taken_are_left_alone():
    model = model_of(
        node("Neg", ["x"], ["relu/unbounded"], name="relu/bound"),
        node("Add", ["relu/unbounded", "relu/upper_bound"], ["h"]),
        node("Relu", ["h"], ["relu"]),
        node("Neg", ["relu"], ["y"]),
        weights={"relu/upper_bound": [1.0, 1.0, 1.0]},
    )
    bounded = _bounded(model, {"relu": 2.0})
    np.testing.assert_array_equal(values_of(bounded, "y", X), -np.clip(1 - X, 0, 2))
    names = [name for n in bounded.graph.node for name in (n.name, *n.output) if name]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("upper", [2.0, [[1.0, 2.0, 3.0]]])
def test_a_model_whose_weights_are_all_inputs_gets_no_further_input(upper):
    model = model_of(
        node("Add", ["x", "w"], ["h"]), node("Relu", ["h"], ["relu"]), node("Neg", ["relu"], ["y"]),
        weights={"w": [1.0, 1.0, 1.0]}, opset=11, ir_version=3,
    )  # fmt: skip
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3]))
    bounded = _bounded(model, {"relu": upper})
    assert [i.name for i in bounded.graph.input] == ["x", "w"]
    np.testing.assert_array_equal(values_of(bounded, "y", X), -np.minimum(np.maximum(X + 1, 0), np.float32(upper)))


def test_a_function_of_the_models_own_is_bounded():
    body = helper.make_function(
        "local", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    model = model_of(
        node("Twice", ["x"], ["h"], domain="local"), node("Relu", ["h"], ["relu"]), node("Neg", ["relu"], ["y"]),
        domains=["local"],
    )  # fmt: skip
    model.functions.append(body)
    np.testing.assert_array_equal(values_of(_bounded(model, {"relu": 3.0}), "y", X), -np.clip(2 * X, 0, 3))


def test_a_graph_with_an_operator_of_onnxruntimes_own_is_bounded():
    model = model_of(
        node("Gelu", ["x"], ["gelu"], domain="com.microsoft"), node("Neg", ["gelu"], ["y"]), domains=["com.microsoft"]
    )
    assert -values_of(_bounded(model, {"gelu": 1.5}), "y", X).min() == 1.5


def test_editing_twice_is_refused():
    bounded = _bounded(_chain(), {"relu": 2.0})
    assert [(e.key, e.value) for e in bounded.metadata_props] == [(MARK, "by-hand")]
    with pytest.raises(CalibrationError, match="bounds already; start from the original"):
        _bounded(bounded, {"relu": 1.0})


def test_a_site_of_another_graph_is_refused():
    with pytest.raises(CalibrationError, match="'gelu' is no tensor"):
        insert_bounds(_chain(), _bounds({"gelu": 1.0}), find_sites(_chain(name="gelu")))


def test_a_bound_on_what_is_no_site_is_refused():
    with pytest.raises(CalibrationError, match="'y' has a bound but is none of the sites"):
        insert_bounds(_chain(), _bounds({"relu": 1.0, "y": 1.0}), find_sites(_chain()))


def test_a_bound_that_is_no_number_is_refused():
    with pytest.raises(CalibrationError, match="bound of 'relu' is not a number"):
        _bounded(_chain(), {"relu": [[1.0, np.nan, 2.0]]})


def test_a_graph_that_is_no_longer_valid_is_refused():
    model = _chain()
    model.graph.node[1].input[0] = "nowhere"
    with pytest.raises(CalibrationError, match="no valid ONNX"):
        check_edited(model)


def test_the_same_bounds_give_the_same_bytes():
    model = exported("resnet", "torchscript", 17)
    first, second = (_bounded(model, _biting_bounds(model)).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
