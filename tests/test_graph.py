"""Reading a classifier: what can be guarded is read right, everything else is refused in a sentence."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_graphs import exported, model_of, node, values_of

from calibrate.graph import find_sites, read_classifier
from guard.errors import GuardError, InputError
from guard.types import TensorSpec

X = np.array([[-3, 1, 5], [2, 2, 2]], dtype=np.float32)
CUTS = [k / 31 for k in range(31)]


def _save(folder: Path, model: onnx.ModelProto | bytes, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def _relu(**changes) -> onnx.ModelProto:
    return model_of(node("Relu", ["x"], ["relu"]), node("Neg", ["relu"], ["y"]), **changes)


def _ending(*nodes: onnx.NodeProto, **changes) -> onnx.ModelProto:
    """Return a graph that ends in these nodes, from h to y."""
    return model_of(node("Relu", ["x"], ["relu"]), node("Neg", ["relu"], ["h"]), *nodes, **changes)


def _with_external_weights(folder: Path, location: str = "weights.bin") -> Path:
    """Save a network whose weights lie in weights.bin, and let it say that they lie elsewhere."""
    model = onnx.ModelProto()
    model.CopyFrom(exported("mlp", "torchscript", 17))
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    told = onnx.load(path, load_external_data=False)
    for entry in (e for tensor in told.graph.initializer for e in tensor.external_data if e.key == "location"):
        entry.value = location
    return _save(folder, told)


def _refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_classifier(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_classifier_is_read_as_it_is(tmp_path):
    model = _relu()
    classifier = read_classifier(_save(tmp_path, model, "wide resnet.onnx"))
    assert classifier.name == "wide resnet"
    assert classifier.source == model.SerializeToString()
    assert classifier.inputs == (TensorSpec(name="x", dtype="float32", shape=(None, 3)),)
    assert classifier.output == TensorSpec(name="y", dtype="float32", shape=(None, 3))
    assert (classifier.logits, classifier.n_classes, classifier.has_external_data) == ("y", 3, False)


def test_a_missing_file_is_refused(tmp_path):
    assert "is no file" in _refusal(tmp_path / "none.onnx")


def test_a_directory_is_refused(tmp_path):
    assert "is no file" in _refusal(tmp_path)


@pytest.mark.parametrize("name", ["model.onnx", "model.json", "model.textproto", "model"])
@pytest.mark.parametrize("content", [b"", b"This is a text.\n", b"{}", np.random.default_rng(0).bytes(4096)])
def test_what_is_not_onnx_is_refused_whatever_its_name(tmp_path, content, name):
    assert "no valid ONNX" in _refusal(_save(tmp_path, content, name))


def test_a_pytorch_checkpoint_is_refused(tmp_path):
    import torch

    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    assert "no valid ONNX" in _refusal(tmp_path / "model.pt")


@pytest.mark.parametrize("share", CUTS)
def test_a_truncated_network_is_refused(tmp_path, share):
    source = exported("mlp", "torchscript", 17).SerializeToString()
    assert "truncated" in _refusal(_save(tmp_path, source[: int(share * len(source))]))


def test_a_small_model_cut_anywhere_is_refused_or_whole(tmp_path):
    source = _relu().SerializeToString()
    for n_bytes in range(len(source)):
        path = _save(tmp_path, source[:n_bytes])
        with pytest.raises(InputError):
            read_classifier(path)


def test_a_model_with_any_byte_changed_is_read_or_refused(tmp_path):
    source = bytearray(_relu().SerializeToString())
    n_refused = 0
    for place in range(len(source)):
        changed = bytes([*source[:place], source[place] ^ 0x55, *source[place + 1 :]])
        try:
            find_sites(read_classifier(_save(tmp_path, changed)).model)
        except GuardError:
            n_refused += 1
    assert n_refused > len(source) / 2


def test_an_old_opset_is_refused_by_its_number(tmp_path):
    assert "opset 10; opset 11 or newer" in _refusal(_save(tmp_path, _relu(opset=10)))


def test_the_oldest_opset_is_read(tmp_path):
    assert read_classifier(_save(tmp_path, _relu(opset=11))).n_classes == 3


def test_an_opset_that_onnxruntime_does_not_know_is_refused(tmp_path):
    _refusal(_save(tmp_path, _relu(opset=999)))


def test_two_outputs_that_may_be_the_classes_are_refused_by_name(tmp_path):
    model = _relu()
    model.graph.output.append(helper.make_tensor_value_info("relu", TensorProto.FLOAT, ["N", 3]))
    assert "2 outputs that may be its classes (y, relu)" in _refusal(_save(tmp_path, model))


def test_outputs_that_are_no_classes_are_dropped_with_the_nodes_that_only_they_need(tmp_path):
    model = _ending(
        node("ArgMax", ["h"], ["label"], axis=1), node("ReduceMax", ["relu"], ["top"], axes=[1]),
        node("Neg", ["h"], ["y"]),
    )  # fmt: skip
    model.graph.output.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, ["N", 1]))
    model.graph.output.append(helper.make_tensor_value_info("top", TensorProto.FLOAT, ["N", 1]))
    classifier = read_classifier(_save(tmp_path, model))
    assert (classifier.output.name, classifier.dropped) == ("y", ("label", "top"))
    assert [o.name for o in classifier.model.graph.output] == ["y"]
    assert [n.op_type for n in classifier.model.graph.node] == ["Relu", "Neg", "Neg"]


def test_weights_that_are_inputs_too_go_with_the_output_that_only_they_serve(tmp_path):
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"]), node("MatMul", ["h", "v"], ["more"])]
    model = model_of(*nodes, weights={"w": np.eye(3), "v": np.ones((3, 1))}, ir_version=3, opset=11)
    for name, shape in (("w", [3, 3]), ("v", [3, 1])):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["N", 1]))
    classifier = read_classifier(_save(tmp_path, model))
    assert [i.name for i in classifier.model.graph.input] == ["x", "w"]
    assert [i.name for i in classifier.inputs] == ["x"]


def test_two_inputs_are_read_in_their_order(tmp_path):
    model = model_of(node("Add", ["x", "z"], ["y"]))
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 3]))
    assert [(i.name, i.shape) for i in read_classifier(_save(tmp_path, model)).inputs] == [
        ("x", (None, 3)),
        ("z", (None, 3)),
    ]


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(_relu(x=("N", 3, 4), y=("N", 3, 4)), id="rank 3"),
        pytest.param(_relu(x=("N",), y=("N",)), id="rank 1"),
        pytest.param(_relu(x=("N", 1), y=("N", 1)), id="one class"),
        pytest.param(_relu(x=("N", "C"), y=("N", "C")), id="a free class axis"),
    ],
)
def test_an_output_that_is_no_row_of_classes_is_refused(tmp_path, model):
    assert "output is floats (N, C) with C of 2 or more" in _refusal(_save(tmp_path, model))


def test_an_output_of_integers_is_refused(tmp_path):
    model = _ending(node("Cast", ["h"], ["y"], to=TensorProto.INT64))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    assert "int64" in _refusal(_save(tmp_path, model))


def test_an_input_of_text_is_refused(tmp_path):
    model = model_of(node("StringNormalizer", ["x"], ["y"]), x=("N",), y=("N",), dtype=TensorProto.STRING)
    assert "numeric tensors" in _refusal(_save(tmp_path, model))


def test_an_operator_that_nobody_knows_is_refused(tmp_path):
    model = model_of(node("Magic", ["x"], ["y"], domain="org.nobody"), domains=["org.nobody"])
    _refusal(_save(tmp_path, model))


@pytest.mark.parametrize("name", ["input", "images", "0", "a b/c:0"])
def test_the_input_may_have_any_name(tmp_path, name):
    model = _relu()
    model.graph.input[0].name = model.graph.node[0].input[0] = name
    assert read_classifier(_save(tmp_path, model)).inputs[0].name == name


def test_a_fixed_batch_reads_as_a_free_one(tmp_path):
    classifier = read_classifier(_save(tmp_path, _relu(x=(4, 3), y=(4, 3))))
    assert classifier.inputs[0].shape == classifier.output.shape == (None, 3)
    assert find_sites(classifier.model)[0].shape == (None, 3)


def test_a_float16_classifier_is_read(tmp_path):
    classifier = read_classifier(_save(tmp_path, _relu(dtype=TensorProto.FLOAT16)))
    assert (classifier.inputs[0].dtype, classifier.output.dtype) == ("float16", "float16")


@pytest.mark.parametrize("operator", ["Gelu", "QuickGelu"])
def test_an_operator_of_onnxruntimes_own_is_read(tmp_path, operator):
    model = model_of(
        node(operator, ["x"], ["h"], domain="com.microsoft"), node("Neg", ["h"], ["y"]), domains=["com.microsoft"]
    )
    classifier = read_classifier(_save(tmp_path, model))
    assert [site.function for site in find_sites(classifier.model)] == [operator]


def test_weights_beside_the_model_are_loaded(tmp_path):
    classifier = read_classifier(_with_external_weights(tmp_path))
    inputs = np.ones((2, 3, 16, 16), dtype=np.float32)
    assert classifier.has_external_data
    expected = values_of(exported("mlp", "torchscript", 17), "logits", inputs)
    np.testing.assert_array_equal(values_of(classifier.model, "logits", inputs), expected)


def test_weights_that_are_missing_are_refused(tmp_path):
    path = _with_external_weights(tmp_path)
    (tmp_path / "weights.bin").unlink()
    assert "weights.bin" in _refusal(path)


def test_weights_that_are_cut_off_are_refused(tmp_path):
    path = _with_external_weights(tmp_path)
    os.truncate(tmp_path / "weights.bin", 100)
    _refusal(path)


@pytest.mark.parametrize("location", ["../../etc/passwd", "../weights.bin", "/etc/passwd"])
def test_weights_outside_of_the_models_folder_are_refused(tmp_path, location):
    (tmp_path / "inner").mkdir()
    path = _with_external_weights(tmp_path / "inner", location)
    (tmp_path / "inner" / "weights.bin").rename(tmp_path / "weights.bin")
    assert location in _refusal(path)


def test_weights_behind_a_link_are_refused(tmp_path):
    path = _with_external_weights(tmp_path, "link.bin")
    (tmp_path / "link.bin").symlink_to(tmp_path / "weights.bin")
    assert "link" in _refusal(path)


def test_activations_inside_the_models_own_functions_are_sites(tmp_path):
    inside = onnx.helper.make_function(
        "own", "Activate", ["a"], ["b"], [node("Relu", ["a"], ["b"])], [onnx.helper.make_opsetid("", 17)]
    )
    model = model_of(node("Activate", ["x"], ["h"], domain="own"), node("Neg", ["h"], ["y"]), domains=["own"])
    model.functions.append(inside)
    sites = find_sites(read_classifier(_save(tmp_path, model)).model)
    assert [site.function for site in sites] == ["Relu"]
