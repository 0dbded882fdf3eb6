"""Which of a graph's outputs is the classifier's, and the graph without the others."""

from collections.abc import Sequence
from typing import Any

import onnx

from calibrate.graph_reading import names_read, needed_nodes
from guard.errors import InputError
from guard.types import TensorSpec

__all__ = ["choose_output", "numeric_outputs", "with_only_outputs"]

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
    nodes = needed_nodes(model.graph.node, names)
    needed = {*names, *(name for node in nodes for name in names_read(node))}
    unneeded = {t.name for t in model.graph.initializer} - needed
    _keep(copy.graph.output, [o for o in model.graph.output if o.name in names])
    _keep(copy.graph.node, nodes)
    _keep(copy.graph.initializer, [t for t in model.graph.initializer if t.name in needed])
    # In IR version 3 every weight is an input too.
    _keep(copy.graph.input, [i for i in model.graph.input if i.name not in unneeded])
    return copy


def _keep(field: Any, values: Sequence[Any]) -> None:
    del field[:]
    field.extend(values)
