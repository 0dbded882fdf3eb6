"""Which of a graph's outputs is the classifier's, and the graph without the others."""

from collections.abc import Iterator, Sequence
from typing import Any

import onnx

from guard.errors import InputError
from guard.types import TensorSpec

__all__ = ["choose_output", "names_read", "numeric_outputs", "with_only_outputs"]

_FLOATS = ("float16", "float32", "float64")
_FLOAT_TYPES = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE})


def numeric_outputs(graph: onnx.GraphProto, *, label: str) -> tuple[str, ...]:
    """Return the outputs that are, as far as the graph declares it, tensors of floats; all of them if none is.

    scikit-learn's converter gives the predicted label too, an integer or a text.

    Raises:
        InputError: The probabilities are a sequence of maps.
    """
    maps = [o.name for o in graph.output if o.type.WhichOneof("value") in ("sequence_type", "map_type")]
    declared = (onnx.TensorProto.UNDEFINED, *_FLOAT_TYPES)
    floats = [o.name for o in graph.output if o.name not in maps and o.type.tensor_type.elem_type in declared]
    if maps and not floats:
        raise InputError(
            f"{label} gives {maps[0]!r} as a sequence of maps; convert it again with plain probabilities:"
            " to_onnx(model, X, options={'zipmap': False})"
        )
    return tuple(floats or (o.name for o in graph.output))


def choose_output(outputs: Sequence[TensorSpec], *, label: str) -> TensorSpec:
    """Return the one output (N, C) of floats.

    Raises:
        InputError: There is none, or more than one.
    """
    fitting = [o for o in outputs if o.dtype in _FLOATS and len(o.shape) == 2 and (o.shape[1] or 0) >= 2]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(o.name for o in fitting)
        raise InputError(
            f"{label} has {len(fitting)} outputs that may be its classes ({names}); keep one of them, as"
            " onnx.utils.extract_model does"
        )
    found = " and ".join(map(str, outputs))
    raise InputError(f"{label} has the output {found}; a classifier's output is floats (N, C) with C of 2 or more")


def with_only_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return the model with these outputs and what they need; the model itself if it gives no others."""
    if all(o.name in names for o in model.graph.output):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    needed = set(names)
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(names_read(node))
    _keep(copy.graph.output, [o for o in model.graph.output if o.name in names])
    _keep(copy.graph.node, [n for n in model.graph.node if not needed.isdisjoint(n.output)])
    _keep(copy.graph.initializer, [t for t in model.graph.initializer if t.name in needed])
    return copy


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node reads, its sub-graphs included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from names_read(inner)
            yield from (output.name for output in graph.output)


def _keep(field: Any, values: Sequence[Any]) -> None:
    del field[:]
    field.extend(values)
