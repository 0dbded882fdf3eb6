"""ONNX operators in torch, one module per family.

Each of ONNX's own is proven against the node tests that ship with it; one that lacks that proof has no place here.
Those of other domains have no such tests and are proven against onnxruntime.
"""

from collections.abc import Mapping

from calibrate.graph import OLDEST_OPSET
from calibrate.operators import (
    activations,
    classical,
    elementwise,
    fused,
    indexing,
    linear,
    normalization,
    pooling,
    reductions,
    resizing,
    scattering,
    shapes,
)
from calibrate.operators.node import TORCH_TYPES, Node, Operator, read_node, read_tensor

__all__ = [
    "DOMAINS",
    "OLDEST_OPSET",
    "OPERATORS",
    "TORCH_TYPES",
    "Node",
    "Operator",
    "find_obstacle",
    "operator_of",
    "read_node",
    "read_tensor",
]


OPERATORS: Mapping[str, Operator] = {
    **activations.OPERATORS,
    **elementwise.OPERATORS,
    **indexing.OPERATORS,
    **linear.OPERATORS,
    **normalization.OPERATORS,
    **pooling.OPERATORS,
    **reductions.OPERATORS,
    **resizing.OPERATORS,
    **scattering.OPERATORS,
    **shapes.OPERATORS,
}
"""By name, in ONNX's own domain, from OLDEST_OPSET on."""

DOMAINS: Mapping[str, Mapping[str, Operator]] = {
    "": OPERATORS,
    "ai.onnx.ml": classical.OPERATORS,
    "com.microsoft": fused.OPERATORS,
}
"""Operators by domain and name."""

_TREES = "a tree ensemble is a step function, whose gradient is zero everywhere"
_REPEATS = "it repeats a sub-graph as often as the data say"
_ROUNDS = "it rounds, so that its gradient is zero everywhere: calibrate the model that was quantised"
_REASONS = {
    **dict.fromkeys(("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"), _TREES),
    **dict.fromkeys(("Loop", "Scan"), _REPEATS),
    **dict.fromkeys(
        ("ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul",
         "QuantizeLinear"),
        _ROUNDS,
    ),
}  # fmt: skip

_CONSTANTS = {"value", "value_float", "value_floats", "value_int", "value_ints"}


def _in_form(node: Node) -> str | None:
    """Say which form of a known operator is not known."""
    match node.op_type:
        case "BatchNormalization" if node.integer("training_mode"):
            return "runs in training mode: export the model after model.eval()"
        case "MaxPool" if any(node.outputs[1:]):
            return "has an output of indices"
        case "Cast" if node.integer("to") not in TORCH_TYPES:
            return f"casts to the element type {node.integer('to')}, with which torch does not compute"
        case "Constant" if not _CONSTANTS.issuperset(node.attributes):
            return f"holds {', '.join(node.attributes)}"
        case "Constant" | "ConstantOfShape" if "value" in node.attributes:
            data_type = node.attributes["value"].data_type
            return None if data_type in TORCH_TYPES else f"holds the element type {data_type}"
    return None


def _foreign_form(node: Node) -> str | None:
    """Say which form of a known operator of another domain is not known."""
    applied, known = node.text("activation", ""), {"", *fused.FUSED_ACTIVATIONS}
    if node.op_type == "LinearClassifier":
        applied, known = node.text("post_transform", "NONE"), set(classical.TRANSFORMS)
    return None if applied in known else f"applies {applied}, which is not known here"


def operator_of(node: Node) -> Operator | None:
    """Return the operator that runs a node, or None where it is not known."""
    return DOMAINS.get(node.domain, {}).get(node.op_type)


def find_obstacle(node: Node) -> str | None:
    """Say why a node cannot be run in torch, or return None if it can."""
    if node.op_type == "If" and not node.domain:
        inner = (find_obstacle(step) for branch in node.branches.values() for step in branch.nodes)
        return next((obstacle for obstacle in inner if obstacle is not None), None)
    if operator_of(node) is None:
        reason = _REASONS.get(node.op_type)
        return f"{node}" if reason is None else f"{node}: {reason}"
    if not node.domain and node.opset < OLDEST_OPSET:
        return f"{node} is older than opset {OLDEST_OPSET}: convert with onnx.version_converter"
    reason = _in_form(node) if not node.domain else _foreign_form(node)
    return None if reason is None else f"{node} {reason}"
