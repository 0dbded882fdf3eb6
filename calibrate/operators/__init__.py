"""ONNX operators in torch, one module per family.

Each is proven against the node tests that ship with ONNX; one that lacks that proof has no place here.
"""

from collections.abc import Mapping

from calibrate.graph import OLDEST_OPSET
from calibrate.operators import (
    activations,
    elementwise,
    indexing,
    linear,
    normalization,
    pooling,
    reductions,
    shapes,
)
from calibrate.operators.node import TORCH_TYPES, Node, Operator, read_node, read_tensor

__all__ = [
    "OLDEST_OPSET",
    "OPERATORS",
    "TORCH_TYPES",
    "Node",
    "Operator",
    "find_obstacle",
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
    **shapes.OPERATORS,
}
"""By name, in ONNX's own domain, from OLDEST_OPSET on."""

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


def find_obstacle(node: Node) -> str | None:
    """Say why a node cannot be run in torch, or return None if it can."""
    if node.domain or node.op_type not in OPERATORS:
        return f"{node}"
    if node.opset < OLDEST_OPSET:
        return f"{node} is older than opset {OLDEST_OPSET}: convert with onnx.version_converter"
    reason = _in_form(node)
    return None if reason is None else f"{node} {reason}"
