"""Find the activation functions of an ONNX graph, whether one node each or spelled out in several.

A gated activation such as SiLU, x * sigmoid(x), or GELU, x * (1 + erf(x / sqrt 2)) / 2, is a small tree of elementwise
nodes over one tensor x. Whatever its spelling, it is recognised by that: a product whose two factors both come from
the same x by elementwise nodes, one of them through a nonlinear function.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from calibrate.graph_reading import LINEAR_AXES, GraphReading

__all__ = ["ACTIVATION_OPS", "Activation", "channel_axis", "find_activations"]

ACTIVATION_OPS = frozenset({
    "Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Clip", "Sigmoid", "HardSigmoid",
    "HardSwish", "Swish", "Mish", "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "Softplus", "Softsign", "Tanh",
})  # fmt: skip
"""Operators that are an activation function by themselves (ai.onnx, and onnxruntime's fused forms)."""

_NONLINEAR = ACTIVATION_OPS | {"Erf", "Exp"}
_ELEMENTWISE = _NONLINEAR | {"Mul", "Div", "Add", "Sub", "Pow", "Neg", "Identity", "Cast", "Sqrt", "Reciprocal", "Log"}
_PASS_THROUGH = ("Identity", "Cast", "Dropout")
_WITH_ACTIVATION = ("FusedConv", "FusedGemm")  # onnxruntime's, as it saves graphs that it has optimised
_ANSWERING = frozenset({"Identity", "Cast", "Sub", "Concat", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_MAX_DEPTH = 12
_CHANNEL_AXES = {**LINEAR_AXES, "LayerNormalization": -1, "BatchNormalization": 1, "MaxPool": 1, "AveragePool": 1,
                 "GlobalAveragePool": 1}  # fmt: skip
"""Of what an operator gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """The output of one activation function.

    Args:
        tensor: The tensor's name.
        function: Its operator, or the nonlinear operator inside a spelled-out one with ``Gated`` before it.
        channel_axis: The axis of its channels: 1, -1 for the last, as after a matrix product, or where transposing
            has put it.
    """

    tensor: str
    function: str
    channel_axis: int


def find_activations(graph: onnx.GraphProto) -> tuple[Activation, ...]:
    """Return the activations that depend on a graph input, in the order of the graph."""
    reading = GraphReading.of(graph, through_shapes=False)
    found: dict[str, str] = {}
    inner: set[str] = set()
    for node in graph.node:
        tensor = node.output[0] if node.output else ""
        if tensor not in reading.live:
            continue
        if (function := _own_function(node)) is not None:
            found[tensor] = function
        elif (gated := _gated(node, reading)) is not None:
            found[tensor] = gated.function
            inner |= gated.inside
    kept = {t: f for t, f in found.items() if t not in inner and not (f == "Sigmoid" and _is_answer(t, reading))}
    ends = {_past_scaling(t, f, reading): f for t, f in kept.items()}
    in_order = (t for node in reading.nodes for t in node.output if t in ends)
    return tuple(Activation(tensor=t, function=ends[t], channel_axis=channel_axis(t, reading)) for t in in_order)


def _own_function(node: onnx.NodeProto) -> str | None:
    """Return the activation function that a node applies all by itself."""
    if node.op_type in _WITH_ACTIVATION:
        return next((a.s.decode() for a in node.attribute if a.name == "activation" and a.s), None)
    return node.op_type if node.op_type in ACTIVATION_OPS else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gated:
    function: str
    inside: frozenset[str]  # tensors that nobody else reads


def _gated(node: onnx.NodeProto, graph: GraphReading) -> _Gated | None:
    """Recognise a product of two elementwise functions of one tensor, one of them nonlinear.

    A quotient counts too: x / (1 + exp(-x)).
    """
    factors = graph.sources(node)
    if node.op_type not in ("Mul", "Div") or len(set(factors)) != 2:
        return None
    first, second = (_upstream(factor, graph) for factor in factors)
    for source in first:
        inside = _between(source, factors, graph) if source in second else None
        if inside is not None and (function := _first_nonlinear(inside, graph)) is not None:
            makers = inside | set(node.output)
            private = frozenset(t for t in inside if _stays_within(t, makers, graph))
            return _Gated(function=f"Gated{function}", inside=private)
    return None


def _stays_within(tensor: str, makers: frozenset[str], graph: GraphReading) -> bool:
    """Say whether nobody reads the tensor but the nodes that make these."""
    consumers = graph.consumers.get(tensor, ())
    return tensor not in graph.outputs and all(makers.issuperset(consumer.output) for consumer in consumers)


def _upstream(tensor: str, graph: GraphReading) -> Mapping[str, int]:
    """Return the tensors that this one comes from by elementwise nodes, nearest first, with their distance."""
    depths, frontier = {tensor: 0}, [tensor]
    for name in frontier:
        node = graph.producers.get(name)
        if node is None or node.op_type not in _ELEMENTWISE or depths[name] >= _MAX_DEPTH:
            continue
        fresh = [s for s in dict.fromkeys(graph.sources(node)) if s not in depths]
        depths.update((s, depths[name] + 1) for s in fresh)
        frontier += fresh
    return depths


def _between(source: str, factors: list[str], graph: GraphReading) -> frozenset[str] | None:
    """Return the tensors on the way from the source to the factors; None where they come from anything else too."""
    inside: set[str] = set()
    frontier = [f for f in factors if f != source]
    for name in frontier:
        node = graph.producers.get(name)
        if node is None or node.op_type not in _ELEMENTWISE or len(inside) > 2 * _MAX_DEPTH:
            return None
        inside.add(name)
        frontier += [s for s in graph.sources(node) if s != source and s not in inside]
    return frozenset(inside)


def _first_nonlinear(tensors: frozenset[str], graph: GraphReading) -> str | None:
    made_by = (str(node.op_type) for node in graph.nodes if not tensors.isdisjoint(node.output))
    return next((op for op in made_by if op in _NONLINEAR), None)


def _is_answer(tensor: str, graph: GraphReading) -> bool:
    """Say whether this goes to the outputs as it is, or as 1 - p beside p: a probability, which no bound should cut."""
    frontier = [tensor]
    for name in frontier:
        consumers = graph.consumers.get(name, [])
        if not consumers and name not in graph.outputs:
            return False
        for node in consumers:
            if node.op_type not in _ANSWERING:
                return False
            frontier += [t for t in node.output if t not in frontier]
    return True


def _past_scaling(tensor: str, function: str, graph: GraphReading) -> str:
    """Return where a gated activation ends: after positive scalar factors, as in x * (1 + erf(x)) * 0.5.

    A factor per channel is left alone: it is a normalisation's, belongs to what follows, and may be negative.
    """
    while function.startswith("Gated") and (scaled := _only_scaled(tensor, graph)) is not None:
        tensor = scaled
    return tensor


def _only_scaled(tensor: str, graph: GraphReading) -> str | None:
    consumers = graph.consumers.get(tensor, [])
    if len(consumers) != 1 or tensor in graph.outputs:
        return None
    (node,) = consumers
    is_scaling = node.op_type == "Mul" or (node.op_type == "Div" and node.input[0] == tensor)
    factors = [graph.scalar(name) or 0.0 for name in node.input if name != tensor]
    return str(node.output[0]) if is_scaling and len(factors) == 1 and factors[0] > 0 else None


def channel_axis(tensor: str, graph: GraphReading) -> int:
    """Follow a tensor back to the operator that made its channels, through what transposes them; 1 without one."""
    seen = {tensor}
    frontier: list[tuple[str, tuple[Sequence[int], ...]]] = [(tensor, ())]
    for name, orders in frontier:
        node = graph.producers.get(name)
        if node is None:
            continue
        if node.op_type in _CHANNEL_AXES:
            return _transposed(_CHANNEL_AXES[node.op_type], orders)
        if node.op_type in _ELEMENTWISE or node.op_type in _PASS_THROUGH or node.op_type == "Transpose":
            order = next((tuple(a.ints) for a in node.attribute if a.name == "perm"), None)
            fresh = [s for s in graph.sources(node) if s not in seen]
            seen.update(fresh)
            frontier += [(s, orders if order is None else (*orders, order)) for s in fresh]
    return 1


def _transposed(axis: int, orders: Sequence[Sequence[int]]) -> int:
    """Return where an axis ends up, the last order applied first."""
    for order in reversed(orders):
        axis = order.index(axis % len(order))
    return axis
