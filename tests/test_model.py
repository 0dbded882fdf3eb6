"""An ONNX model in onnxruntime: rows in, rows out, whatever its batch axis is; and what it refuses."""

import os

import numpy as np
import pytest
from bundles import original_model
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from guard.errors import InputError, ModelError
from guard.input_checks import check_inputs
from guard.model import CPU, CUDA, OrtModel
from guard.types import TensorSpec

FLOAT, FLOAT16, DOUBLE, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64
TYPES = {"float16": FLOAT16, "float32": FLOAT, "float64": DOUBLE}
SPEC = TensorSpec(name="x", dtype="float32", shape=(None, 3))


def onnx_model(nodes, *, inputs, outputs, initializers=()):
    """Return a graph as bytes; inputs and outputs are {name: (type, shape)}."""
    infos = [[helper.make_tensor_value_info(n, t, s) for n, (t, s) in part.items()] for part in (inputs, outputs)]
    graph = helper.make_graph(nodes, "tiny", *infos, initializer=list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def doubling(batch="N", *, dtype=FLOAT, axes=(3,)):
    """Return y = x + x."""
    inputs, outputs = {"x": (dtype, [batch, *axes])}, {"y": (dtype, [batch, *axes])}
    return onnx_model([helper.make_node("Add", ["x", "x"], ["y"])], inputs=inputs, outputs=outputs)


def rows(n, dtype=np.float32):
    return np.arange(n * 3, dtype=dtype).reshape(n, 3)


def opened(model, **kwargs):
    return OrtModel(model, label="tiny", threads=1, **kwargs)


@pytest.mark.parametrize("batch", [1, 2, 4, "N"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 9])
def test_any_number_of_rows_runs_whatever_the_batch_axis_is(batch, n):
    (y,) = opened(doubling(batch)).run(rows(n), ["y"])
    assert y.dtype == np.float32
    assert y.tolist() == (2 * rows(n)).tolist()


@pytest.mark.parametrize("batch", [4, "N"])
@pytest.mark.parametrize("name", TYPES)
def test_every_floating_type_runs_in_its_own(name, batch):
    model = opened(doubling(batch, dtype=TYPES[name]))
    (y,) = model.run(rows(3, name), ["y"])
    assert (model.inputs[0].dtype, model.outputs[0].dtype, y.dtype) == (name, name, np.dtype(name))
    assert y.tolist() == (2 * rows(3)).tolist()


@pytest.mark.parametrize("batch", [4, "N"])
def test_a_batch_axis_is_shown_as_free(batch):
    assert opened(doubling(batch)).inputs == (SPEC,)


def test_axes_with_a_name_are_free_and_others_are_not():
    model = opened(doubling("N", axes=(3, "H", "W")))
    assert model.inputs[0].shape == (None, 3, None, None)
    assert opened(doubling(2)).outputs == (TensorSpec(name="y", dtype="float32", shape=(2, 3)),)


def test_several_outputs_come_in_the_order_asked_for():
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])]
    both = {"y": (FLOAT, [2, 3]), "z": (FLOAT, [2, 3])}
    z, y = opened(onnx_model(nodes, inputs={"x": (FLOAT, [2, 3])}, outputs=both)).run(rows(3), ["z", "y"])
    assert (y == 2 * rows(3)).all()
    assert (z == -rows(3)).all()


@given(n=st.integers(1, 9), batch=st.sampled_from([1, 3, 4]), cut=st.integers(0, 9), seed=st.integers(0, 99))
def test_no_rows_answer_depends_on_who_shares_the_batch(n, batch, cut, seed):
    model, inputs = opened(doubling(batch)), np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    (together,) = model.run(inputs, ["y"])
    parts = [model.run(part, ["y"])[0] for part in (inputs[:cut], inputs[cut:]) if len(part)]
    assert np.concatenate(parts).tobytes() == together.tobytes()


def test_the_padding_of_a_fixed_batch_is_one_of_its_own_rows():
    # The sum over the batch shows what the padding was; padding by zeros could be a row no model was made for.
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["sum"]), helper.make_node("Sub", ["x", "sum"], ["y"])]
    axes = helper.make_tensor("axes", INT64, [1], [0])
    ends = {"inputs": {"x": (FLOAT, [4, 3])}, "outputs": {"y": (FLOAT, [4, 3])}}
    (y,) = opened(onnx_model(nodes, initializers=[axes], **ends)).run(np.ones((1, 3), np.float32), ["y"])
    assert y.tolist() == [[1 - 4] * 3]


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_an_axis_that_joins_rows_with_others_is_cut_with_the_rows(n):
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    shape = helper.make_tensor("shape", INT64, [2], [6, 1])
    ends = {"inputs": {"x": (FLOAT, [2, 3])}, "outputs": {"y": (FLOAT, [6, 1])}}
    (y,) = opened(onnx_model(nodes, initializers=[shape], **ends)).run(rows(n), ["y"])
    assert y.ravel().tolist() == list(range(3 * n))


@pytest.mark.parametrize(("axes", "keep", "shape"), [([0, 1], 0, []), ([0], 0, [3])])
def test_an_output_without_rows_is_refused_where_the_batch_is_fixed(axes, keep, shape):
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=keep)]
    constant = helper.make_tensor("axes", INT64, [len(axes)], axes)
    ends = {"inputs": {"x": (FLOAT, [4, 3])}, "outputs": {"y": (FLOAT, shape)}}
    with pytest.raises(ModelError, match=r"tiny model's y has shape .* no rows for a batch of 4"):
        opened(onnx_model(nodes, initializers=[constant], **ends)).run(rows(4), ["y"])


@pytest.mark.parametrize("view", [rows(8)[::-2], np.asfortranarray(rows(5)), np.repeat(rows(1), 4, axis=1)[:, ::4]])
@pytest.mark.parametrize("batch", [2, "N"])
def test_rows_run_however_they_lie_in_memory(view, batch):
    axes = (view.shape[1],)
    (y,) = opened(doubling(batch, axes=axes)).run(view, ["y"])
    assert y.tolist() == (2 * view).tolist()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (rows(2, np.float64), "has dtype float64; the model takes float32"),
        (rows(2, ">f4"), "has dtype >f4; the model takes float32"),
        (rows(2).astype(object), "has dtype object; the model takes float32"),
        (rows(2)[0], r"has shape \(3,\); the model takes x: float32 \(\?, 3\)"),
        (rows(2)[:, :2], r"has shape \(2, 2\); the model takes x: float32 \(\?, 3\)"),
        (rows(2)[None], r"has shape \(1, 2, 3\); the model takes"),
        (np.float32(1).reshape(()), r"has shape \(\); the model takes"),
        (rows(0), r"has shape \(0, 3\), which holds no values; send at least one row"),
        (np.float32([[0, 0, 0], [0, np.nan, 0]]), "NaN or infinity in 1 of 2 rows, the first is row 1"),
        (np.float32([[0, 0, -np.inf], [np.inf, np.nan, 0]]), "NaN or infinity in 2 of 2 rows, the first is row 0"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(inputs, message):
    for model in (opened(doubling("N")), opened(doubling(2))):
        with pytest.raises(InputError, match=f"^input x .*{message}"):
            model.run(inputs, ["y"])


def test_free_axes_take_any_length_but_none():
    spec = TensorSpec(name="x", dtype="int64", shape=(None, 3, None))
    check_inputs(np.zeros((2, 3, 7), dtype=np.int64), [spec])
    with pytest.raises(InputError, match="no values"):
        check_inputs(np.zeros((2, 3, 0), dtype=np.int64), [spec])


def adding(a_batch, b_batch, *, sums=False):
    """Return y = a + b, or y = a + the sum of all b."""
    both = {"a": (FLOAT, [a_batch, 3]), "b": (FLOAT, [b_batch, 3])}
    nodes = [
        helper.make_node("ReduceSum" if sums else "Identity", ["b"], ["c"]),
        helper.make_node("Add", ["a", "c"], ["y"]),
    ]
    return onnx_model(nodes, inputs=both, outputs={"y": (FLOAT, ["N", 3])})


@pytest.mark.parametrize("batches", [("N", "N"), (2, 2), (4, "N"), ("N", 4)])
@pytest.mark.parametrize("n", [1, 4, 5])
def test_several_inputs_run_by_name_whatever_the_batch_axes_are(batches, n):
    model = opened(adding(*batches))
    assert [spec.name for spec in model.inputs] == ["a", "b"]
    (y,) = model.run({"b": rows(n), "a": 2 * rows(n)}, ["y"])
    assert y.tolist() == (3 * rows(n)).tolist()


@pytest.mark.parametrize("names", [("L", "L"), ("L", "M"), (None, None)])
def test_axes_that_share_a_name_must_be_as_long_as_each_other(names):
    both = {name: (FLOAT, ["N", axis]) for name, axis in zip("ab", names, strict=True)}
    node = helper.make_node("Concat", ["a", "b"], ["y"], axis=1)
    model = opened(onnx_model([node], inputs=both, outputs={"y": (FLOAT, ["N", "K"])}))
    inputs = {"a": rows(2), "b": rows(2)[:, :2]}
    if names == ("L", "L"):
        with pytest.raises(InputError, match=r"input b has shape \(2, 2\) and input a has shape \(2, 3\); .* axis 1"):
            model.run(inputs, ["y"])
    else:
        assert model.run(inputs, ["y"])[0].shape == (2, 5)


@pytest.mark.parametrize("inputs", [rows(2).tolist(), {"x": rows(2).tolist()}, None])
def test_what_is_no_array_is_refused(inputs):
    with pytest.raises(InputError, match=r"^input x is a \w+; give a numpy array of float32$"):
        opened(doubling()).run(inputs, ["y"])


def test_a_single_input_may_come_by_name_too():
    assert opened(doubling()).run({"x": rows(2)}, ["y"])[0].tolist() == (2 * rows(2)).tolist()


def test_inputs_of_two_batch_sizes_are_refused():
    with pytest.raises(ModelError, match=r"tiny model's inputs are a: float32 \(2, 3\); b: float32 \(4, 3\)"):
        opened(adding(2, 4, sums=True))


def test_a_model_without_inputs_is_refused():
    constant = helper.make_node("Constant", [], ["y"], value=helper.make_tensor("c", FLOAT, [1, 3], [1, 2, 3]))
    with pytest.raises(ModelError, match="tiny model's inputs are none; a guarded model has one or more"):
        opened(onnx_model([constant], inputs={}, outputs={"y": (FLOAT, [1, 3])}))


def test_a_model_of_texts_is_refused():
    texts = (TensorProto.STRING, ["N", 3])
    model = onnx_model([helper.make_node("Identity", ["x"], ["y"])], inputs={"x": texts}, outputs={"y": texts})
    with pytest.raises(ModelError, match=r"tensor x has type tensor\(string\)"):
        opened(model)


@pytest.mark.parametrize("model", [b"", b"garbage", doubling()[:-9], doubling()[: len(doubling()) // 2], b"\x00" * 99])
def test_bytes_that_are_no_model_are_refused_in_one_line(model, capfd):
    with pytest.raises(ModelError, match=r"^onnxruntime cannot load the tiny model: .+$") as refusal:
        opened(model)
    assert "\n" not in str(refusal.value)


def test_a_model_with_an_unknown_operator_is_refused(capfd):
    node = helper.make_node("NoSuchOperator", ["x"], ["y"])
    ends = {"inputs": {"x": (FLOAT, ["N", 3])}, "outputs": {"y": (FLOAT, ["N", 3])}}
    with pytest.raises(ModelError, match="NoSuchOperator"):
        opened(onnx_model([node], **ends))


@pytest.mark.parametrize("up", ["", "../" * 12])
def test_weights_outside_the_models_own_bytes_are_never_read(tmp_path, monkeypatch, capfd, up):
    (tmp_path / "weights").write_bytes(np.full(9, 7, dtype=np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    weights = TensorProto(name="w", data_type=FLOAT, dims=[3, 3], data_location=TensorProto.EXTERNAL)
    location = f"{up}{tmp_path.relative_to('/')}/weights" if up else "weights"
    for key, value in (("location", location), ("offset", "0"), ("length", "36")):
        weights.external_data.add(key=key, value=value)
    ends = {"inputs": {"x": (FLOAT, ["N", 3])}, "outputs": {"y": (FLOAT, ["N", 3])}}
    model = onnx_model([helper.make_node("MatMul", ["x", "w"], ["y"])], initializers=[weights], **ends)
    with pytest.raises(ModelError, match=r"cannot load the tiny model: .*[Ee]xternal"):
        opened(model)


def test_a_provider_that_onnxruntime_lacks_is_refused():
    with pytest.raises(ModelError, match=f"onnxruntime has no NoSuchProvider here; it has .*{CPU}"):
        opened(doubling(), provider="NoSuchProvider")


def test_a_gpu_that_is_not_there_is_an_error_and_never_the_cpu(capfd):
    try:
        told = opened(doubling(), provider=CUDA)._session.get_providers()[0]
    except ModelError as error:
        told = str(error)
    assert CUDA in told
    assert "Falling back" not in capfd.readouterr().out


def test_an_output_that_the_model_lacks_is_refused():
    with pytest.raises(ModelError, match=r"the tiny model failed to run: .*nothing"):
        opened(doubling()).run(rows(1), ["nothing"])


@pytest.mark.parametrize("batch", [2, "N"])
def test_a_run_that_fails_is_a_model_error_in_one_line(capfd, batch):
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    shape = helper.make_tensor("shape", INT64, [2], [7, -1])
    ends = {"inputs": {"x": (FLOAT, [batch, "M"])}, "outputs": {"y": (FLOAT, [7, "K"])}}
    model = opened(onnx_model(nodes, initializers=[shape], **ends))
    with pytest.raises(ModelError, match=r"^the tiny model failed to run: .+$") as failure:
        model.run(rows(2), ["y"])
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(("asked", "used"), [(1, 1), (2, 2), (None, len(os.sched_getaffinity(0)))])
def test_a_run_uses_the_threads_asked_for(asked, used):
    options = OrtModel(original_model(), label="tiny", threads=asked)._session.get_session_options()
    assert options.intra_op_num_threads == used
