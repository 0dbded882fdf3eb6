"""Read an ONNX graph: which node makes a tensor, which ones read it, what depends on the input, what is constant."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import onnx
from onnx import numpy_helper

from guard.types import FloatArray

__all__ = ["LINEAR_AXES", "LINEAR_OPS", "GraphReading", "names_read", "needed_nodes"]

LINEAR_AXES: Mapping[str, int] = MappingProxyType({
    "Conv": 1, "FusedConv": 1, "ConvTranspose": 1,
    "Gemm": -1, "FusedGemm": -1, "MatMul": -1, "FusedMatMul": -1,
})  # fmt: skip
"""Linear layers whose second input are the weights, with the axis of the channels that they give."""

LINEAR_OPS = frozenset(LINEAR_AXES) | {"Einsum"}

_SHAPES = ("Shape", "Size")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphReading:
    """An ONNX graph by its tensors. What a sub-graph reads of the graph around it, the node that holds it reads.

    Args:
        nodes: In the order of the graph.
        producers: By tensor the node that makes it.
        consumers: By tensor the nodes that read it, in order.
        live: The tensors that depend on a graph input.
        outputs: Of the graph.
        constants: By name, initializers and what Constant nodes hold.
    """

    nodes: Sequence[onnx.NodeProto]
    producers: Mapping[str, onnx.NodeProto]
    consumers: Mapping[str, Sequence[onnx.NodeProto]]
    live: frozenset[str]
    outputs: frozenset[str]
    constants: Mapping[str, onnx.TensorProto]

    @classmethod
    def of(cls, graph: onnx.GraphProto, *, upto: str | None = None, through_shapes: bool = True) -> "GraphReading":
        """Read a graph.

        Args:
            graph: The graph.
            upto: Read only the nodes that this tensor is made by.
            through_shapes: Whether what depends on an input's shape alone counts as live.
        """
        nodes = list(graph.node) if upto is None else needed_nodes(graph.node, [upto])
        consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes:
            for name in dict.fromkeys(names_read(node)):
                consumers.setdefault(name, []).append(node)
        held = (node for node in nodes if node.op_type == "Constant")
        constants = {i.name: i for i in graph.initializer}
        constants.update((node.output[0], a.t) for node in held for a in node.attribute if a.name == "value")
        return cls(
            nodes=nodes,
            producers={name: node for node in nodes for name in node.output},
            consumers=consumers,
            live=_live(graph, through_shapes=through_shapes),
            outputs=frozenset(o.name for o in graph.output),
            constants=constants,
        )

    def sources(self, node: onnx.NodeProto) -> list[str]:
        """Return the node's own inputs that are live."""
        return [name for name in node.input if name in self.live]

    def constant(self, name: str) -> FloatArray | None:
        """Return a constant's values, through Identity and Transpose; None where it is none."""
        if name in self.constants:
            return numpy_helper.to_array(self.constants[name])
        node = self.producers.get(name)
        if node is None or node.op_type not in ("Identity", "Transpose"):
            return None
        values = self.constant(node.input[0])
        axes = next((tuple(a.ints) for a in node.attribute if a.name == "perm"), None)
        return values if values is None or node.op_type == "Identity" else values.transpose(axes)

    def scalar(self, name: str) -> float | None:
        """Return the number that a constant of one element holds; None where it is no such constant."""
        tensor = self.constants.get(name)
        if tensor is None or any(n != 1 for n in tensor.dims) or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        value = numpy_helper.to_array(tensor)
        return float(value.reshape(())) if value.dtype.kind in "fiu" else None


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node reads, its sub-graphs included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from names_read(inner)
            yield from (output.name for output in graph.output)


def needed_nodes(nodes: Iterable[onnx.NodeProto], tensors: Iterable[str]) -> list[onnx.NodeProto]:
    """Return the nodes that tensors are made by, in order."""
    wanted, found = set(tensors), []
    for node in reversed(list(nodes)):
        if not wanted.isdisjoint(node.output):
            found.append(node)
            wanted.update(filter(None, names_read(node)))
    return found[::-1]


def _live(graph: onnx.GraphProto, *, through_shapes: bool) -> frozenset[str]:
    live = {i.name for i in graph.input} - {i.name for i in graph.initializer}
    for node in graph.node:
        if not live.isdisjoint(names_read(node)) and (through_shapes or node.op_type not in _SHAPES):
            live.update(filter(None, node.output))
    return frozenset(live)
