"""Where the logits of a classifier are, and how they become an output of its graph."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto
from small_graphs import exported, model_of, node

from calibrate.graph import expose_logits, read_classifier, serialize, with_outputs


def _save(folder: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def _relu() -> onnx.ModelProto:
    return model_of(node("Relu", ["x"], ["relu"]), node("Neg", ["relu"], ["y"]))


def _ending(*nodes: onnx.NodeProto, **changes) -> onnx.ModelProto:
    """Return a graph that ends in these nodes, from h to y."""
    return model_of(node("Relu", ["x"], ["relu"]), node("Neg", ["relu"], ["h"]), *nodes, **changes)


@pytest.mark.parametrize(
    ("nodes", "opset"),
    [
        pytest.param([node("Softmax", ["h"], ["y"])], 11, id="default axis of opset 11"),
        pytest.param([node("Softmax", ["h"], ["y"], axis=1)], 11, id="opset 11"),
        pytest.param([node("Softmax", ["h"], ["y"])], 13, id="default axis of opset 13"),
        pytest.param([node("Softmax", ["h"], ["y"], axis=-1)], 17, id="last axis"),
        pytest.param([node("Softmax", ["h"], ["p"], axis=1), node("Identity", ["p"], ["y"])], 17, id="identity"),
        pytest.param([node("Softmax", ["h"], ["p"]), node("Cast", ["p"], ["y"], to=TensorProto.FLOAT)], 17, id="cast"),
    ],
)
def test_the_logits_before_a_trailing_softmax_are_found(tmp_path, nodes, opset):
    classifier = read_classifier(_save(tmp_path, _ending(*nodes, opset=opset)))
    assert (classifier.logits, classifier.ends_in_softmax) == ("h", True)


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([node("LogSoftmax", ["h"], ["y"])], id="log softmax"),
        pytest.param([node("Softmax", ["h"], ["y"], axis=0)], id="over the batch"),
        pytest.param([node("Softmax", ["h"], ["p"]), node("Neg", ["p"], ["y"])], id="not at the end"),
        pytest.param([node("Identity", ["h"], ["y"])], id="none"),
    ],
)
def test_no_softmax_is_seen_where_none_ends_the_graph(tmp_path, nodes):
    classifier = read_classifier(_save(tmp_path, _ending(*nodes)))
    assert (classifier.logits, classifier.ends_in_softmax) == ("y", False)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("batch", ["N", 4])
def test_exposed_logits_are_a_declared_output_beside_the_original_one(tmp_path, dtype, batch):
    model = _ending(node("Softmax", ["h"], ["y"]), dtype=dtype, x=(batch, 3), y=(batch, 3))
    exposed = expose_logits(read_classifier(_save(tmp_path, model)))
    onnx.checker.check_model(exposed, full_check=True)
    assert [o.name for o in exposed.graph.output] == ["y", "h"]
    assert exposed.graph.output[0].type == exposed.graph.output[1].type


def test_a_model_that_gives_logits_is_exposed_as_it_is(tmp_path):
    model = _relu()
    assert expose_logits(read_classifier(_save(tmp_path, model))) == model


def test_outputs_are_added_once_and_to_a_copy():
    model = _relu()
    assert [o.name for o in with_outputs(model, ["relu", "y"]).graph.output] == ["y", "relu"]
    assert len(model.graph.output) == 1


def test_a_model_serialises_to_the_same_bytes_each_time():
    model = exported("resnet", "torchscript", 17)
    copy = onnx.load_model_from_string(serialize(model))
    assert serialize(copy) == serialize(model)
