"""Look at a model's weights for values that are stored twice, replaced, broken or left over."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from calibrate.inspection.flat_graph import FlatGraph
from calibrate.inspection.lint_finding import LintFinding

__all__ = ["lint_weights"]

_INLINE = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_LEAST_ENTRIES = 64  # below, weights may agree by chance
_PROBES = 256
_SHARED, _DISTINCT = 0.5, 0.5
_FIRST_WITHOUT_DEFAULTS = 4  # the IR version from which weights need not be inputs


def lint_weights(model: onnx.ModelProto, flat: FlatGraph, source: bytes) -> Iterator[LintFinding]:
    """Yield what stands out in the weights.

    Args:
        model: The parsed model, external data loaded.
        flat: Its graph written out.
        source: The file's bytes, which still say where each weight lies.
    """
    stored = onnx.load_model_from_string(source)
    yield from _doubly_stored(stored)
    yield from _shadowed(stored.graph, {})
    yield from _defaults(model)
    weights = dict(_float_weights(flat.constants))
    yield from _broken(weights)
    yield from _nearly_alike(weights)
    yield from _unused(flat)


def _doubly_stored(stored: onnx.ModelProto) -> Iterator[LintFinding]:
    """Yield the tensors of which two readers may read different values."""
    inner = (tensor for function in stored.functions for tensor in _held_by(function.node))
    for tensor in (*_tensors(stored.graph), *inner):
        fields = [name for name in _INLINE if len(getattr(tensor, name))]
        places = fields + (["a file beside the model"] if tensor.data_location == TensorProto.EXTERNAL else [])
        if len(places) > 1:
            message = f"it is stored twice, as {' and as '.join(places)}: which one is run depends on the reader"
            yield LintFinding(kind="stored_twice", severity="alarm", place=tensor.name, message=message)


def _shadowed(graph: onnx.GraphProto, outer: Mapping[str, bytes]) -> Iterator[LintFinding]:
    """Yield the names that a sub-graph gives to other content than the graph around it."""
    own = dict(_contents(graph))
    for name in sorted(own.keys() & outer.keys()):
        if own[name] != outer[name]:
            message = "a sub-graph gives this name to other values than the graph around it: which is meant is hidden"
            yield LintFinding(kind="stored_twice", severity="alarm", place=name, message=message)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _shadowed(inner, {**outer, **own})


def _contents(graph: onnx.GraphProto) -> Iterator[tuple[str, bytes]]:
    """Yield the names that a graph defines, with what tells their content apart."""
    yield from ((tensor.name, _canonical(tensor)) for tensor in graph.initializer)
    for node in graph.node:
        tensors = [a.t for a in node.attribute if a.HasField("t")] if node.op_type == "Constant" else []
        for name in filter(None, node.output):
            yield name, _canonical(tensors[0]) if tensors else node.SerializeToString(deterministic=True)


def _canonical(tensor: TensorProto) -> bytes:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.name = copy.doc_string = ""
    return bytes(copy.SerializeToString(deterministic=True))


def _defaults(model: onnx.ModelProto) -> Iterator[LintFinding]:
    held = {tensor.name for tensor in model.graph.initializer}
    names = [i.name for i in model.graph.input if i.name in held]
    if names and model.ir_version >= _FIRST_WITHOUT_DEFAULTS:
        message = f"whoever runs the model may replace this weight{_and_others(names)}: an input with a default"
        yield LintFinding(kind="replaceable_weight", severity="note", place=names[0], message=message)


def _float_weights(constants: Mapping[str, TensorProto]) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, tensor in constants.items():
        if tensor.data_location != TensorProto.EXTERNAL and tensor.data_type != TensorProto.STRING:
            values = numpy_helper.to_array(tensor)
            if values.dtype.kind == "f":
                yield name, values


def _broken(weights: Mapping[str, NDArray[Any]]) -> Iterator[LintFinding]:
    """Yield weights with NaN or plus infinity; minus infinity is how attention masks are written."""
    for name, values in weights.items():
        n = int(np.count_nonzero(np.isnan(values) | np.isposinf(values)))
        if n:
            message = f"{n} of its {values.size} values are NaN or infinite"
            yield LintFinding(kind="not_finite", severity="warning", place=name, message=message)


def _nearly_alike(weights: Mapping[str, NDArray[Any]]) -> Iterator[LintFinding]:
    """Yield pairs of weights that share most of their values, but not all: training does not make such pairs."""
    alike: dict[tuple[int, ...], list[tuple[str, NDArray[Any]]]] = defaultdict(list)
    for name, values in weights.items():
        if values.size >= _LEAST_ENTRIES:
            alike[values.shape].append((name, values.ravel()))
    for shape, group in alike.items():
        for (first, one), (second, other) in combinations(group, 2):
            places = np.linspace(0, one.size - 1, _PROBES).astype(np.int64)
            if _share_equal(one[places], other[places]) <= _SHARED or not _is_varied(one):
                continue
            if _SHARED < (share := _share_equal(one, other)) < 1:
                message = f"it shares {share:.1%} of its values with '{first}', also of shape {shape}, but not all"
                yield LintFinding(kind="stored_twice", severity="warning", place=second, message=message)


def _share_equal(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.mean(one == other))


def _is_varied(values: NDArray[Any]) -> bool:
    """Say whether most values occur once, so that two tensors do not agree by being mostly zeros or ones."""
    return len(np.unique(values)) > _DISTINCT * values.size


def _unused(flat: FlatGraph) -> Iterator[LintFinding]:
    read = {name for operator in flat.operators for name in operator.inputs}.union(flat.outputs)
    names = [name for name in flat.constants if name not in read]
    if names:
        message = f"no operator reads this constant{_and_others(names)}"
        yield LintFinding(kind="unused_constant", severity="note", place=names[0], message=message)


def _and_others(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _held_by(graph.node)


def _held_by(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for attribute in (a for node in nodes for a in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)
