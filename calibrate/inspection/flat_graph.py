"""An ONNX graph with its sub-graphs written out, and what can be reached in it. Nothing is run."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

__all__ = ["FlatGraph", "Operator", "Stops", "flatten"]

_WITHOUT_VALUES = frozenset({"Shape", "Size"})
_STANDARD = frozenset({"", "ai.onnx"})
_DECIDING = {"If": 1, "Loop": 2}  # the first inputs, which decide what of a sub-graph runs and how often


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One node.

    Args:
        op_type: Its operator; ``domain.Name`` outside of the standard domain.
        name: The node's name, else its first output.
        inputs: The tensors that it reads, '' where one is left out.
        outputs: The tensors that it makes.
    """

    op_type: str
    name: str
    inputs: Sequence[str]
    outputs: Sequence[str]

    def __str__(self) -> str:
        """Name it for a reader."""
        return f"{self.op_type} '{self.name}'"


Stops = Callable[[Operator], bool]
"""Says of an operator that it is no way to go."""


def _nowhere(operator: Operator) -> bool:  # noqa: ARG001
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatGraph:
    """A graph whose sub-graphs stand in line, each before the node that holds it.

    Args:
        operators: In an order in which they can be computed.
        inputs: The tensors that a caller must give, with their types.
        outputs: The tensors that it gives.
        constants: The weights, of sub-graphs too.
    """

    operators: Sequence[Operator]
    inputs: Mapping[str, onnx.TypeProto]
    outputs: Sequence[str]
    constants: Mapping[str, onnx.TensorProto]

    def reach(
        self, sources: Iterable[str], *, stops: Stops = _nowhere, barred: Collection[str] = ()
    ) -> dict[str, Operator | None]:
        """Return what depends on the values of the sources, each tensor with the operator that was the way to it.

        Args:
            sources: Tensors to start from.
            stops: Says which operators are no way.
            barred: Tensors that are no way.
        """
        found: dict[str, Operator | None] = dict.fromkeys(sources)
        for operator in self.operators:
            if operator.op_type in _WITHOUT_VALUES or found.keys().isdisjoint(operator.inputs) or stops(operator):
                continue
            found.update((o, operator) for o in operator.outputs if o and o not in barred and o not in found)
        return found

    def lead(self, targets: Iterable[str], *, stops: Stops = _nowhere) -> set[str]:
        """Return the targets and the tensors that they depend on, back to operators that are no way."""
        found = set(targets)
        for operator in reversed(self.operators):
            if not found.isdisjoint(operator.outputs) and not stops(operator):
                found.update(filter(None, operator.inputs))
        return found

    def way(self, tensor: str, reached: Mapping[str, Operator | None]) -> list[str]:
        """Return the operators on one way to a tensor that was reached, in the order in which they run."""
        way: list[str] = []
        while (operator := reached[tensor]) is not None:
            way.append(str(operator))
            tensor = next(name for name in operator.inputs if name in reached)
        return way[::-1]


def flatten(graph: onnx.GraphProto) -> FlatGraph:
    """Write out a graph; a name that a sub-graph makes gets the holding node's name before it."""
    constants: dict[str, onnx.TensorProto] = {}
    operators = list(_operators(graph, {}, "", constants))
    held = {i.name for i in graph.initializer}
    return FlatGraph(
        operators=operators,
        inputs={i.name: i.type for i in graph.input if i.name not in held},
        outputs=[o.name for o in graph.output],
        constants=constants,
    )


def _operators(
    graph: onnx.GraphProto, outer: Mapping[str, str], scope: str, constants: dict[str, onnx.TensorProto]
) -> Iterator[Operator]:
    """Yield a graph's operators under names that are unique in the whole model; note its constants."""
    made = [i.name for i in graph.initializer] + [i.name for i in graph.input]
    made += [o for node in graph.node for o in node.output]
    names = {**outer, **{name: scope + name for name in made if name}}
    constants.update((names[tensor.name], tensor) for tensor in graph.initializer)
    for place, node in enumerate(graph.node):
        label = scope + (node.name or next(iter(node.output), "") or f"{node.op_type} {place}")
        inputs, outputs = ([names.get(name, name) for name in side] for side in (node.input, node.output))
        inner = [(f"{label}/{a.name}{k or ''}/", g) for a in node.attribute for k, g in enumerate(_graphs(a))]
        for within, body in inner:
            entered, left = _passed(node, body, inputs, outputs)
            yield from (_identity(source, within + target) for source, target in entered)
            yield from _operators(body, names, within, constants)
            yield from (_identity(within + source, target) for source, target in left)
        constants.update((outputs[0], a.t) for a in node.attribute if node.op_type == "Constant" and a.HasField("t"))
        domain = "" if node.domain in _STANDARD else f"{node.domain}."
        own = inputs[: _DECIDING.get(node.op_type, 0)] if inner else inputs
        yield Operator(op_type=domain + node.op_type, name=label, inputs=own, outputs=outputs)


def _graphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return [attribute.g] if attribute.HasField("g") else list(attribute.graphs)


def _passed(
    node: onnx.NodeProto, body: onnx.GraphProto, inputs: Sequence[str], outputs: Sequence[str]
) -> tuple[Iterator[tuple[str, str]], Iterator[tuple[str, str]]]:
    """Pair what a node hands to its sub-graph, and what the sub-graph hands back."""
    results = [o.name for o in body.output][1 if node.op_type == "Loop" else 0 :]  # a loop's first: whether to go on
    return (
        zip(inputs, (i.name for i in body.input), strict=False),
        zip(results, outputs, strict=False),
    )


def _identity(source: str, target: str) -> Operator:
    return Operator(op_type="Identity", name=target, inputs=[source], outputs=[target])
