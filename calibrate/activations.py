"""Find the activation functions of an ONNX graph, whether one node each or spelled out in several.

A gated activation such as SiLU, x * sigmoid(x), or GELU, x * (1 + erf(x / sqrt 2)) / 2, is a small tree of elementwise
nodes over one tensor x. Whatever its spelling, it is recognised by that: a product whose two factors both come from
the same x by elementwise nodes, one of them through a nonlinear function.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx

__all__ = ["ACTIVATION_OPS", "Activation", "find_activations"]

ACTIVATION_OPS = frozenset({
    "Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Clip", "Sigmoid", "HardSigmoid",
    "HardSwish", "Swish", "Mish", "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "Softplus", "Softsign", "Tanh",
})  # fmt: skip
"""Operators that are an activation function by themselves (ai.onnx, and onnxruntime's fused forms)."""

_NONLINEAR = ACTIVATION_OPS | {"Erf", "Exp"}
_ELEMENTWISE = _NONLINEAR | {"Mul", "Div", "Add", "Sub", "Pow", "Neg", "Identity", "Cast", "Sqrt", "Reciprocal", "Log"}
_SCALING = ("Mul", "Div")
_PASS_THROUGH = ("Identity", "Cast", "Dropout")
_MAX_DEPTH = 12
_LINEAR = {"MatMul": True, "Gemm": True, "LayerNormalization": True, "Conv": False, "ConvTranspose": False,
           "BatchNormalization": False, "MaxPool": False, "AveragePool": False, "GlobalAveragePool": False}  # fmt: skip
"""Whether what an operator gives has its channels last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """The output of one activation function.

    Args:
        tensor: The tensor's name.
        function: Its operator, or the nonlinear operator inside a spelled-out one with ``Gated`` before it.
        channels_last: Whether the channel axis is the last, as after a matrix product, rather than the second.
    """

    tensor: str
    function: str
    channels_last: bool


def find_activations(graph: onnx.GraphProto) -> tuple[Activation, ...]:
    """Return the activations that depend on a graph input, in the order of the graph."""
    reading = _Graph.read(graph)
    found: dict[str, str] = {}
    inner: set[str] = set()
    for node in graph.node:
        tensor = node.output[0] if node.output else ""
        if tensor not in reading.live:
            continue
        if node.op_type in ACTIVATION_OPS:
            found[tensor] = node.op_type
        elif (gated := _gated(node, reading)) is not None:
            found[tensor] = gated.function
            inner |= gated.inside
    merged = _absorb_scaling({t: f for t, f in found.items() if t not in inner}, reading)
    order = {name: i for i, node in enumerate(graph.node) for name in node.output}
    return tuple(
        Activation(tensor=t, function=f, channels_last=_channels_last(t, reading))
        for t, f in sorted(merged.items(), key=lambda item: order[item[0]])
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Graph:
    producers: Mapping[str, onnx.NodeProto]
    consumers: Mapping[str, list[onnx.NodeProto]]
    live: frozenset[str]  # tensors that depend on a graph input

    @classmethod
    def read(cls, graph: onnx.GraphProto) -> "_Graph":
        weights = {i.name for i in graph.initializer}
        live = {i.name for i in graph.input} - weights
        consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            if live.intersection(node.input) and node.op_type not in ("Shape", "Size"):
                live.update(node.output)
            for name in node.input:
                consumers.setdefault(name, []).append(node)
        producers = {name: node for node in graph.node for name in node.output}
        return cls(producers=producers, consumers=consumers, live=frozenset(live))

    def sources(self, node: onnx.NodeProto) -> list[str]:
        """Return the node's inputs that depend on the graph's input."""
        return [name for name in node.input if name in self.live]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gated:
    function: str
    inside: frozenset[str]


def _gated(node: onnx.NodeProto, graph: _Graph) -> _Gated | None:
    """Recognise a product of two elementwise functions of one tensor, one of them nonlinear."""
    factors = graph.sources(node)
    if node.op_type != "Mul" or len(factors) != 2:
        return None
    paths = [dict(_upstream(f, graph)) for f in factors]
    shared = [t for t in paths[0] if t in paths[1]]
    if not shared:
        return None
    inside = {t for path in paths for t in _between(path, shared[0])}
    nonlinear = [graph.producers[t].op_type for t in sorted(inside) if graph.producers[t].op_type in _NONLINEAR]
    if not nonlinear or not _closed(inside, shared[0], graph):
        return None
    return _Gated(function=f"Gated{nonlinear[0]}", inside=frozenset(inside))


def _upstream(tensor: str, graph: _Graph) -> Iterator[tuple[str, int]]:
    """Yield the tensors that this one comes from by elementwise nodes, itself first, with their distance."""
    frontier, seen = [(tensor, 0)], {tensor}
    while frontier:
        name, depth = frontier.pop(0)
        yield name, depth
        node = graph.producers.get(name)
        if node is None or node.op_type not in _ELEMENTWISE or depth >= _MAX_DEPTH:
            continue
        fresh = [s for s in graph.sources(node) if s not in seen]
        seen.update(fresh)
        frontier += [(s, depth + 1) for s in fresh]


def _between(path: Mapping[str, int], source: str) -> set[str]:
    return {t for t, depth in path.items() if depth < path[source]}


def _closed(inside: set[str], source: str, graph: _Graph) -> bool:
    """Say whether everything inside comes from the source alone."""
    return all(set(graph.sources(graph.producers[t])) <= inside | {source} for t in inside)


def _absorb_scaling(found: dict[str, str], graph: _Graph) -> dict[str, str]:
    """Move a gated activation past constant factors that end it, as in x * (1 + erf(x)) * 0.5."""
    merged = {}
    for tensor, function in found.items():
        end = tensor
        while function.startswith("Gated") and (following := _only_scaling(end, graph)) is not None:
            end = following
        merged[end] = function
    return merged


def _only_scaling(tensor: str, graph: _Graph) -> str | None:
    consumers = graph.consumers.get(tensor, [])
    if len(consumers) == 1 and consumers[0].op_type in _SCALING and len(graph.sources(consumers[0])) == 1:
        return str(consumers[0].output[0])
    return None


def _channels_last(tensor: str, graph: _Graph) -> bool:
    """Follow the activation back to the operator that made its channels."""
    frontier, seen = [tensor], {tensor}
    while frontier:
        node = graph.producers.get(frontier.pop(0))
        if node is None:
            continue
        if node.op_type in _LINEAR:
            return _LINEAR[node.op_type]
        if node.op_type in _ELEMENTWISE or node.op_type in _PASS_THROUGH:
            fresh = [s for s in graph.sources(node) if s not in seen]
            seen.update(fresh)
            frontier += fresh
    return False
