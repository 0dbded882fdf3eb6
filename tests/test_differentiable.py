"""The differentiable model: whole networks, gradients, changed tensors, refusals."""

import weakref
from functools import lru_cache

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch_models import FAMILIES, Exporter, build, example_of, export

from calibrate.differentiable import DifferentiableModel, fast_precision
from guard.errors import CalibrationError, InputError

_OPSETS = {"torchscript": (11, 13, 17, 18, 20), "dynamo": (18,)}
EXPORTS = [
    *((family, exporter, opset) for family in FAMILIES for exporter in _OPSETS for opset in _OPSETS[exporter]),
    ("mlp", "dynamo", 23),
]


@lru_cache
def _exported(family: str, exporter: Exporter, opset: int, *, fold: bool = True) -> onnx.ModelProto:
    return export(build(family), example_of(), exporter=exporter, opset=opset, fold=fold)


def _with_gradient(function, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    return y.detach(), gradient


def _assert_agrees(family: str, model: onnx.ModelProto, x: Tensor) -> None:
    differentiable = DifferentiableModel(model)
    y, gradient = _with_gradient(lambda x: differentiable(x, outputs=["logits"])[0], x)
    expected, expected_gradient = _with_gradient(build(family), x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4 * expected_gradient.abs().max())


@pytest.mark.parametrize(("family", "exporter", "opset"), EXPORTS)
def test_an_exported_network_answers_and_differentiates_as_in_torch(family, exporter, opset):
    _assert_agrees(family, _exported(family, exporter, opset), example_of(5))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("opset", [11, 20])
def test_an_unfolded_export_answers_and_differentiates_as_in_torch(family, opset):
    model = _exported(family, "torchscript", opset, fold=False)
    assert family == "mlp" or "BatchNormalization" in {node.op_type for node in model.graph.node}
    _assert_agrees(family, model, example_of(3))


def test_an_unfolded_export_of_dynamo_answers_and_differentiates_as_in_torch():
    _assert_agrees("mobilenet", _exported("mobilenet", "dynamo", 18, fold=False), example_of(3))


@pytest.mark.parametrize("n", [1, 2, 7])
def test_shapes_computed_in_the_graph_follow_the_batch(n):
    model = _exported("vgg", "torchscript", 11)
    assert {"Shape", "Gather", "Concat"} <= {node.op_type for node in model.graph.node}
    _assert_agrees("vgg", model, example_of(n))


def test_a_network_with_a_fixed_batch_runs_at_that_batch():
    model = export(build("vgg"), example_of(2), exporter="torchscript", opset=13, dynamic_batch=False)
    assert DifferentiableModel(model).fixed_batch == 2
    assert DifferentiableModel(_chain()).fixed_batch is None
    _assert_agrees("vgg", model, example_of(2))


def test_a_float16_network_answers_as_in_float16():
    module = build("mlp").half()
    model = export(module, example_of().half(), exporter="torchscript", opset=17)
    (logits,) = DifferentiableModel(model)(example_of(4).half(), outputs=["logits"])
    assert logits.dtype == torch.float16
    torch.testing.assert_close(logits, module(example_of(4).half()), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_narrow_precision_answers_float32_of_about_three_digits(family):
    model = _exported(family, "dynamo", 18)
    exact, exact_gradient = _with_gradient(lambda x: DifferentiableModel(model)(x, outputs=["logits"])[0], example_of())
    narrow = DifferentiableModel(model, precision="bfloat16")
    y, gradient = _with_gradient(lambda x: narrow(x, outputs=["logits"])[0], example_of())
    assert y.dtype == gradient.dtype == torch.float32
    assert not torch.equal(y, exact)
    assert (y - exact).norm() < 0.05 * exact.norm()
    assert torch.cosine_similarity(gradient.flatten(), exact_gradient.flatten(), dim=0) > 0.95


def test_a_change_may_widen_what_is_computed_narrowly():
    narrow = DifferentiableModel(_exported("resnet", "dynamo", 18), precision="bfloat16")
    tensors = [name for node in narrow._nodes if node.op_type == "Relu" for name in node.outputs]
    (y,) = narrow(example_of(), outputs=["logits"], at=dict.fromkeys(tensors, torch.Tensor.float))
    assert torch.isfinite(y).all()


def test_the_precision_called_fast_can_be_asked_for():
    (y,) = DifferentiableModel(_exported("mlp", "dynamo", 18), precision=fast_precision("cpu"))(
        example_of(), outputs=["logits"]
    )
    assert y.dtype == torch.float32


def _graph(*nodes: onnx.NodeProto, inputs=("x",), output="y", **weights: np.ndarray) -> onnx.GraphProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in inputs]
    initializers = [numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), "graph", values, [result], initializers)


def _model(*nodes: onnx.NodeProto, opset: int = 18, **parts) -> onnx.ModelProto:
    return helper.make_model(_graph(*nodes, **parts), opset_imports=[helper.make_opsetid("", opset)])


def _chain() -> onnx.ModelProto:
    """x -> a = relu(x) -> b = 2a -> y = a + b."""
    return _model(
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Mul", ["a", "two"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
        two=np.float32([2]),
    )


X = torch.tensor([[-1.0, 2.0], [3.0, 4.0]])


def test_a_change_is_seen_by_every_consumer_and_by_the_output():
    model = DifferentiableModel(_chain())
    a, y = model(X, outputs=["a", "y"], at={"a": lambda a: a.clamp(max=2.5)})
    assert a.tolist() == [[0, 2], [2.5, 2.5]]
    assert y.tolist() == [[0, 6], [7.5, 7.5]]


def test_a_change_to_an_input_takes_effect():
    (y,) = DifferentiableModel(_chain())(X, outputs=["y"], at={"x": lambda x: -x})
    assert y.tolist() == [[3, 0], [0, 0]]


def test_a_bound_put_in_receives_its_gradient():
    bound = torch.tensor([2.5, 10.0], requires_grad=True)
    (y,) = DifferentiableModel(_chain())(X, outputs=["y"], at={"a": lambda a: torch.minimum(a, bound)})
    y.sum().backward()
    assert bound.grad.tolist() == [3, 0]


def test_only_what_an_output_needs_is_computed():
    seen = []
    (a,) = DifferentiableModel(_chain())(X, outputs=["a"], at={"b": seen.append})
    assert a.tolist() == [[0, 2], [3, 4]]
    assert seen == []


def test_an_input_and_a_weight_can_be_asked_for():
    x, two = DifferentiableModel(_chain())(X, outputs=["x", "two"])
    assert x.tolist() == X.tolist()
    assert two.tolist() == [2]


def test_weights_take_no_gradient():
    (y,) = DifferentiableModel(_chain())(X, outputs=["y"])
    assert not y.requires_grad


def test_tensors_are_freed_after_their_last_use():
    alive, seen = [], []

    def watch(value: Tensor) -> Tensor:
        seen.append(sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(value))
        return value

    nodes = [helper.make_node("Exp", [f"t{i}"], [f"t{i + 1}"]) for i in range(6)]
    model = DifferentiableModel(_model(*nodes, inputs=("t0",), output="t6"))
    model(X, outputs=["t6"], at={f"t{i}": watch for i in range(1, 7)})
    assert max(seen) == 1


@pytest.mark.parametrize("argument", [{"outputs": ["nowhere"]}, {"outputs": ["y"], "at": {"nowhere": abs}}])
def test_a_name_that_is_not_in_the_graph_is_refused(argument):
    with pytest.raises(ValueError, match="nowhere"):
        DifferentiableModel(_chain())(X, **argument)


def test_a_change_to_a_weight_is_refused():
    with pytest.raises(ValueError, match="two"):
        DifferentiableModel(_chain())(X, outputs=["y"], at={"two": abs})


@pytest.mark.parametrize("n", [1, 4, 6, 8])
def test_any_number_of_rows_is_computed_by_a_graph_of_fixed_batch(n):
    fixed = export(build("mlp"), example_of(4), exporter="torchscript", opset=17, dynamic_batch=False)
    x, free = example_of(n), _exported("mlp", "torchscript", 17)
    (expected,) = DifferentiableModel(free)(x, outputs=["logits"])
    found = DifferentiableModel(fixed).rows(x, output="logits")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(DifferentiableModel(free).rows(x, output="logits", size=4), expected)


def test_a_change_that_fails_is_told_in_one_line():
    model = DifferentiableModel(_model(helper.make_node("Relu", ["x"], ["y"])))
    with pytest.raises(CalibrationError, match="what is put on the tensor 'y' fails in torch: The size of tensor a"):
        model(X, outputs=["y"], at={"y": lambda y: y + torch.ones(7)})


def test_two_inputs_are_given_by_name():
    model = DifferentiableModel(_model(helper.make_node("Sub", ["x", "z"], ["y"]), inputs=("x", "z")))
    assert model.input_names == ("x", "z")
    (y,) = model({"z": torch.ones(1, 2), "x": torch.zeros(1, 2)}, outputs=["y"])
    assert y.tolist() == [[-1, -1]]
    with pytest.raises(InputError, match="'z'"):
        model({"x": X}, outputs=["y"])
    with pytest.raises(InputError, match="mapping"):
        model(X, outputs=["y"])


def test_every_unknown_operator_is_named_at_construction():
    model = _model(
        helper.make_node("Det", ["x"], ["a"], name="odd"),
        helper.make_node("Own", ["x"], ["y"], name="stranger", domain="com.example"),
    )
    model.opset_import.append(helper.make_opsetid("com.example", 3))
    with pytest.raises(CalibrationError, match=r"ai\.onnx::Det-18 \(node 'odd'\)") as caught:
        DifferentiableModel(model)
    assert "com.example::Own-3 (node 'stranger')" in str(caught.value)


@pytest.mark.parametrize(
    ("node", "opset", "reason"),
    [
        (helper.make_node("Relu", ["x"], ["y"]), 10, "older than opset 11"),
        (helper.make_node("MaxPool", ["x"], ["y", "where"], kernel_shape=[1]), 18, "indices"),
        (helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING), 18, "element type 8"),
        (helper.make_node("BatchNormalization", ["x"] * 5, ["y"], training_mode=1), 18, "training mode"),
        (helper.make_node("Constant", [], ["y"], value_string="text"), 18, "value_string"),
    ],
)
def test_a_form_of_an_operator_that_is_not_known_is_refused(node, opset, reason):
    with pytest.raises(CalibrationError, match=reason):
        DifferentiableModel(_model(node, opset=opset))


def test_a_weight_of_an_unknown_type_is_refused():
    model = _model(helper.make_node("Identity", ["x"], ["y"]), words=np.array(["a"], dtype=object))
    with pytest.raises(CalibrationError, match="'words' is of type STRING"):
        DifferentiableModel(model)


def test_dropout_in_training_mode_is_refused():
    dropout = helper.make_node("Dropout", ["x", "ratio", "training"], ["y"])
    model = _model(dropout, ratio=np.float32(0.5), training=np.array(True))
    with pytest.raises(CalibrationError, match=r"model\.eval\(\)"):
        DifferentiableModel(model)(X, outputs=["y"])


def test_a_node_that_fails_is_named_with_its_operator_in_one_line():
    add = helper.make_node("Add", ["x", "w"], ["y"], name="sum")
    model = DifferentiableModel(_model(add, w=np.ones(3, np.float32)))
    with pytest.raises(CalibrationError, match=r"ai\.onnx::Add-18 \(node 'sum'\) fails in torch: The size") as caught:
        model(X, outputs=["y"])
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_functions_of_the_model_are_inlined():
    node = helper.make_node("Double", ["x"], ["y"], domain="local")
    double = helper.make_function(
        "local", "Double", ["v"], ["w"], [helper.make_node("Add", ["v", "v"], ["w"])], [helper.make_opsetid("", 18)]
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    model = helper.make_model(_graph(node), functions=[double], opset_imports=imports)
    (y,) = DifferentiableModel(model)(X, outputs=["y"])
    assert y.tolist() == [[-2, 4], [6, 8]]


def test_an_operator_that_onnx_defines_by_others_is_written_out():
    names = ("query", "key", "value")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2, 5, 8]) for name in names]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, 5, 8])
    graph = helper.make_graph([helper.make_node("Attention", names, ["y"])], "graph", values, [result])
    model = DifferentiableModel(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]))
    parts = torch.rand(3, 4, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    (y,) = model(dict(zip(names, parts, strict=True)), outputs=["y"])
    torch.testing.assert_close(y, torch.nn.functional.scaled_dot_product_attention(*parts))
