"""One ONNX node as the operators see it, and ONNX tensors as torch's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

__all__ = ["TORCH_TYPES", "Branch", "Node", "Operator", "read_node", "read_tensor"]

Operator = Callable[..., Tensor | tuple[Tensor, ...]]
"""Called as operator(node, *inputs), None where an optional input is left out; answers the node's outputs."""

TORCH_TYPES: Mapping[int, torch.dtype] = {
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.BOOL: torch.bool,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
}
"""ONNX element type to torch's, for those that torch computes with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A sub-graph: its nodes, weights among them as constants, and the tensors that it gives."""

    nodes: "tuple[Node, ...]"
    outputs: tuple[str, ...]

    def captured(self) -> set[str]:
        """Return the tensors of the surrounding graph that it reads."""
        read = {name for node in self.nodes for name in node.inputs}.union(self.outputs)
        return read.difference(("",), *(node.outputs for node in self.nodes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node of a graph.

    Args:
        op_type: The operator's name.
        domain: The operator's domain; empty for ONNX's own.
        name: The node's name, or that of its first output where it has none.
        opset: The version of the domain that the model imports.
        inputs: Names of tensors, empty where an optional input is left out; what only its branches read comes last.
        outputs: Names of tensors, empty where an optional output is left out.
        attributes: As ``onnx.helper.get_attribute_value`` gives them, text decoded.
        branches: Its sub-graphs by attribute name.
    """

    op_type: str
    domain: str
    name: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    branches: Mapping[str, Branch] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.domain or 'ai.onnx'}::{self.op_type}-{self.opset} (node '{self.name}')"

    def integer(self, name: str, default: int = 0) -> int:
        """Return an integer attribute."""
        return int(self.attributes.get(name, default))

    def integers(self, name: str) -> tuple[int, ...] | None:
        """Return an attribute that lists integers, or None where it is not given."""
        return tuple(self.attributes[name]) if name in self.attributes else None

    def real(self, name: str, default: float) -> float:
        """Return a float attribute."""
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """Return a text attribute."""
        return str(self.attributes.get(name, default))


def _attribute(proto: onnx.AttributeProto) -> object:
    value = onnx.helper.get_attribute_value(proto)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def read_node(proto: onnx.NodeProto, opsets: Mapping[str, int]) -> Node:
    """Read a node of a model that imports these opsets, by domain.

    A domain that the model forgot to import reads as version 0.
    """
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    branches = {a.name: _branch(a.g, opsets) for a in proto.attribute if a.type == onnx.AttributeProto.GRAPH}
    captured = set().union(*(branch.captured() for branch in branches.values())).difference(proto.input)
    return Node(
        op_type=proto.op_type,
        domain=domain,
        name=proto.name or next(iter(proto.output), ""),
        opset=opsets.get(domain, 0),
        inputs=(*proto.input, *sorted(captured)),
        outputs=tuple(proto.output),
        attributes={a.name: _attribute(a) for a in proto.attribute if a.name not in branches},
        branches=branches,
    )


def _branch(graph: onnx.GraphProto, opsets: Mapping[str, int]) -> Branch:
    weights = [onnx.helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in graph.initializer]
    return Branch(
        nodes=tuple(read_node(proto, opsets) for proto in [*weights, *graph.node]),
        outputs=tuple(output.name for output in graph.output),
    )


def read_tensor(proto: onnx.TensorProto) -> Tensor:
    """Copy an ONNX tensor whose element type is one of TORCH_TYPES."""
    array = numpy_helper.to_array(proto)
    if proto.data_type == onnx.TensorProto.BFLOAT16:
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    return torch.from_numpy(np.array(array))
