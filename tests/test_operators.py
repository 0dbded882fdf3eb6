"""Every operator that the differentiable model claims, against the node tests that ship with ONNX."""

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from calibrate.differentiable import DifferentiableModel
from calibrate.operators import OLDEST_OPSET, OPERATORS, TORCH_TYPES

with warnings.catch_warnings():
    # ONNX makes its tests when they are loaded, casts that overflow among them.
    warnings.simplefilter("ignore", RuntimeWarning)
    from onnx.backend.test.loader import load_model_tests

    _LOADED = load_model_tests(kind="node")

_TRAINING = "runs in training mode, which is no inference"
_INDICES = "asks for the second output of MaxPool, which is refused"
_ROUNDING = "rounds to 16 bits inside the expanded function at other places than the reference"
EXCLUDED = {
    "test_attention_3d_causal_bf16_expanded": _ROUNDING,
    "test_attention_4d_attn_mask_causal_bf16_expanded": _ROUNDING,
    "test_attention_4d_causal_bf16_expanded": _ROUNDING,
    "test_attention_4d_causal_fp16_expanded": _ROUNDING,
    "test_attention_4d_causal_padded_kv_bf16_expanded": _ROUNDING,
    "test_attention_4d_padded_kv_bf16_expanded": _ROUNDING,
    "test_batchnorm_epsilon_training_mode": _TRAINING,
    "test_batchnorm_example_training_mode": _TRAINING,
    "test_maxpool_with_argmax_2d_precomputed_pads": _INDICES,
    "test_maxpool_with_argmax_2d_precomputed_strides": _INDICES,
    "test_training_dropout": _TRAINING,
    "test_training_dropout_default": _TRAINING,
    "test_training_dropout_default_mask": _TRAINING,
    "test_training_dropout_mask": _TRAINING,
    "test_training_dropout_zero_ratio": _TRAINING,
    "test_training_dropout_zero_ratio_mask": _TRAINING,
}


WRITTEN_OUT = (
    "test_affine_grid_2d", "test_attention_4d", "test_attention_4d_causal", "test_mvn", "test_rotary_embedding",
)  # fmt: skip


def _operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


def _means_the_same(op_type: str, old: int, new: int) -> bool:
    versions = {onnx.defs.get_schema(op_type, opset, "").since_version for opset in (old, new)}
    return len(versions) == 1


def _raised(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Import the oldest known opset if the operators of an older test have not changed until then."""
    (version,) = [o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}]
    if version >= OLDEST_OPSET:
        return model
    if not all(_means_the_same(op_type, version, OLDEST_OPSET) for op_type in _operators(model)):
        return None
    raised = onnx.ModelProto()
    raised.CopyFrom(model)
    del raised.opset_import[:]
    raised.opset_import.append(helper.make_opsetid("", OLDEST_OPSET))
    return raised


def _is_claimed(model: onnx.ModelProto) -> bool:
    values = [*model.graph.input, *model.graph.output]
    types = {value.type.tensor_type.elem_type for value in values}
    ours = all(node.domain in {"", "ai.onnx"} for node in model.graph.node)
    return ours and _operators(model) <= OPERATORS.keys() | {"If"} and types <= TORCH_TYPES.keys()


def _cases() -> Iterator[object]:
    for case in _LOADED:
        model = _raised(case.model) if _is_claimed(case.model) else None
        if model is not None and case.name not in EXCLUDED:
            yield pytest.param(model, case, id=case.name)


CASES = list(_cases())


def _tensor(value: np.ndarray | TensorProto) -> Tensor:
    array = numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    return torch.from_numpy(np.array(array))


@pytest.mark.parametrize(("model", "case"), CASES)
def test_a_node_test_of_onnx_passes(model, case):
    differentiable = DifferentiableModel(model)
    names = [value.name for value in model.graph.input]
    for inputs, expected in case.data_sets:
        given = dict(zip(names, map(_tensor, inputs), strict=True))
        outputs = differentiable(given, outputs=[value.name for value in model.graph.output])
        for output, value in zip(outputs, map(_tensor, expected), strict=True):
            torch.testing.assert_close(output, value, rtol=case.rtol, atol=case.atol, equal_nan=True)


def test_every_claimed_operator_is_in_a_node_test():
    covered = set().union(*(_operators(case.values[0]) for case in CASES))
    assert (OPERATORS.keys() | {"If"}) - covered == set()


@pytest.mark.parametrize("case", [c for c in _LOADED if c.name in WRITTEN_OUT], ids=lambda case: case.name)
def test_an_operator_that_is_written_out_keeps_its_defaults(case):
    test_a_node_test_of_onnx_passes(case.model, case)


def test_every_exclusion_is_a_node_test_that_would_run():
    claimed = {case.name for case in _LOADED if _is_claimed(case.model)}
    assert EXCLUDED.keys() - claimed == set()


def _ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


X = np.random.default_rng(0).normal(size=(2, 4, 3, 6)).astype(np.float32)
K = np.random.default_rng(1).uniform(0.5, 1.5, size=4).astype(np.float32)
G = K[:2]
NONE = np.zeros(0, np.float32)
SIZES, FACTORS = _ints(2, 4, 7, 4), np.array([1, 1, 2, 0.5], np.float32)
# (operator, opset, attributes, inputs): forms that today's node tests no longer hold.
OLDER_FORMS = [
    ("ArgMax", 11, {"axis": 1, "keepdims": 0}, (X,)),
    ("AveragePool", 11, {"kernel_shape": [2, 2], "pads": [0, 1, 1, 0], "count_include_pad": 1}, (X,)),
    ("AveragePool", 11, {"kernel_shape": [2, 2], "pads": [0, 1, 1, 0]}, (X,)),
    ("AveragePool", 11, {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER", "strides": [2, 2]}, (X,)),
    ("BatchNormalization", 9, {"epsilon": 1e-2, "momentum": 0.5}, (X, K, K, K, K)),
    ("BatchNormalization", 14, {"epsilon": 1e-2}, (X, K, K, K, K)),
    ("Clip", 11, {}, (X, np.array(-0.5, np.float32))),
    ("Dropout", 11, {"ratio": 0.3}, (X,)),
    ("Dropout", 12, {}, (X, np.array(0.3, np.float32))),
    ("CumSum", 11, {"reverse": 1, "exclusive": 1}, (X, np.array(-2))),
    ("GatherND", 11, {}, (X, np.array([[0, 1], [-1, -4]]))),
    ("GroupNormalization", 18, {"num_groups": 2}, (X, G, G)),
    ("Hardmax", 11, {}, (X,)),
    ("Hardmax", 11, {"axis": -2}, (X,)),
    ("LogSoftmax", 11, {}, (X,)),
    ("LogSoftmax", 11, {"axis": -2}, (X,)),
    ("MaxPool", 11, {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER", "strides": [2, 2]}, (X,)),
    ("MaxPool", 11, {"kernel_shape": [2, 3], "pads": [0, 1, 1, 0], "strides": [2, 2]}, (X,)),
    ("Pad", 11, {"mode": "reflect"}, (X, _ints(0, 0, 1, 2, 0, 0, 1, 0))),
    ("ReduceL2", 11, {"axes": [1, -1]}, (X,)),
    ("ReduceLogSumExp", 13, {"axes": [2]}, (X,)),
    ("ReduceMax", 12, {"axes": [-1], "keepdims": 0}, (X,)),
    ("ReduceMean", 11, {"axes": [2, 3]}, (X,)),
    ("ReduceMean", 17, {"axes": [2, 3], "keepdims": 0}, (X,)),
    ("ReduceMin", 13, {}, (X,)),
    ("ReduceSum", 11, {"axes": [1, 2]}, (X,)),
    ("Resize", 11, {"mode": "linear", "coordinate_transformation_mode": "align_corners"}, (X, NONE, NONE, SIZES)),
    ("Resize", 11, {"mode": "cubic", "coordinate_transformation_mode": "pytorch_half_pixel"}, (X, NONE, NONE, SIZES)),
    ("Resize", 11, {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, (X, NONE, FACTORS)),
    ("ScatterElements", 11, {"axis": 1}, (X, np.array([[[[-1]], [[0]]]]), X[:1, :2, :1, :1])),
    ("ScatterND", 11, {}, (X, np.array([[1, -4, 2]]), X[0, 0, :1])),
    ("Softmax", 11, {}, (X,)),
    ("Softmax", 12, {"axis": 2}, (X,)),
    ("Softmax", 11, {"axis": 0}, (X,)),
    ("Split", 11, {"axis": 1, "split": [1, 3]}, (X,)),
    ("Split", 13, {"axis": 3}, (X,)),
    ("Squeeze", 11, {"axes": [0, -1]}, (X[:1, :, :, :1],)),
    ("Squeeze", 11, {}, (X[:1, :, :, :1],)),
    ("TopK", 11, {"axis": 1, "largest": 0}, (X, _ints(2))),
    ("Unsqueeze", 11, {"axes": [-1, 0]}, (X,)),
]


def _node_model(op_type: str, opset: int, attributes: dict, inputs: tuple) -> onnx.ModelProto:
    outputs = ["y", "z"] if op_type in {"Split", "TopK"} else ["y"]
    names = [f"x{i}" for i in range(len(inputs))]
    node = helper.make_node(op_type, names, outputs, **attributes)
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in zip(names, inputs, strict=True)
    ]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph([node], "node", values, results)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", max(opset, OLDEST_OPSET))], ir_version=8)


@pytest.mark.parametrize(("op_type", "opset", "attributes", "inputs"), OLDER_FORMS)
def test_an_older_form_agrees_with_onnxruntime(op_type, opset, attributes, inputs, run_onnx: Callable):
    model = onnx.shape_inference.infer_shapes(_node_model(op_type, opset, attributes, inputs))
    given = {value.name: array for value, array in zip(model.graph.input, inputs, strict=True)}
    names = [value.name for value in model.graph.output]
    outputs = DifferentiableModel(model)({name: _tensor(array) for name, array in given.items()}, outputs=names)
    for output, expected in zip(outputs, run_onnx(model, given), strict=True):
        torch.testing.assert_close(output, torch.from_numpy(expected), rtol=1e-5, atol=1e-6)


@pytest.fixture
def run_onnx() -> Callable:
    ort = pytest.importorskip("onnxruntime")

    def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, inputs)

    return run
