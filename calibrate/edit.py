"""Put bounds into an ONNX graph: the original plus one Clip or Min node per site, and nothing else.

The producer of a bounded tensor is made to write ``NAME/unbounded``, and the new node writes NAME: every consumer, in
sub-graphs too, keeps reading the name it knows. One bound per site is a Clip, whose limits are scalars; a bound per
channel or neuron is a Min with a broadcast initializer, the cheapest exact form measured (benchmarks/results.md).
"""

from collections.abc import Iterator, Sequence
from itertools import chain, count

import numpy as np
import onnx
from onnx import helper, numpy_helper

from calibrate.sites import ActivationBounds, Site
from guard.errors import CalibrationError
from guard.types import FloatArray

__all__ = ["MARK", "check_edited", "check_unbounded", "insert_bounds"]

MARK = "trigger_guard.bounds"
"""The key of the metadata that an edited model carries: the name of the method."""

_UNBOUNDED = "/unbounded"
_UPPER = "/upper_bound"
_BOUND = "/bound"
_CLIPS_DOUBLES = 12
_FREE_INITIALIZERS = 4  # the IR version since which an initializer need not be an input of the graph


def insert_bounds(model: onnx.ModelProto, bounds: ActivationBounds, sites: Sequence[Site]) -> onnx.ModelProto:
    """Return a copy of the model in which every activation x of a bounded site is min(x, upper).

    Args:
        model: The original; it is left as it is.
        bounds: An upper bound per site tensor.
        sites: The sites of the bounds.

    Raises:
        CalibrationError: The model carries bounds already, or a site is no tensor of its graph.
    """
    check_unbounded(model)
    bounded = onnx.ModelProto()
    bounded.CopyFrom(model)
    graph = bounded.graph
    dtypes = {site.tensor: site.dtype for site in sites}
    if strangers := sorted(bounds.upper.keys() - dtypes.keys()):
        raise CalibrationError(f"{strangers[0]!r} has a bound but is none of the sites; find the sites again")
    taken = set(_names(graph))
    nodes: list[onnx.NodeProto] = []
    placed: set[str] = set()
    for node in graph.node:
        nodes.append(node)
        for tensor in [t for t in node.output if t in bounds.upper]:
            upper = _representable(tensor, bounds.upper[tensor], dtypes[tensor])
            constant, bound = _bound_nodes(node, tensor, upper, taken, clips=_can_clip(model, upper))
            nodes += _hold(graph, constant, as_initializer=model.ir_version >= _FREE_INITIALIZERS)
            nodes.append(bound)
            placed.add(tensor)
    if missing := sorted(bounds.upper.keys() - placed):
        raise CalibrationError(f"{missing[0]!r} is no tensor that a node of the graph gives; find the sites again")
    _replace_nodes(graph, nodes)
    bounded.metadata_props.add(key=MARK, value=bounds.method)
    return bounded


def check_unbounded(model: onnx.ModelProto) -> None:
    """Refuse a model that was edited before.

    Raises:
        CalibrationError: It carries the mark of an edit.
    """
    if any(entry.key == MARK for entry in model.metadata_props):
        raise CalibrationError("the model carries activation bounds already; start from the original")


def check_edited(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model if it passes ONNX's checker and, as far as ONNX knows its operators, strict shape inference.

    Raises:
        CalibrationError: It does not.
    """
    is_standard = all(node.domain in ("", "ai.onnx") for node in model.graph.node)
    try:
        onnx.checker.check_model(model)
        if is_standard:
            onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CalibrationError(f"the bounded graph is no valid ONNX: {str(error).splitlines()[0][:200]}") from error
    return model


def _bound_nodes(
    node: onnx.NodeProto, tensor: str, upper: FloatArray, taken: set[str], *, clips: bool
) -> tuple[onnx.TensorProto, onnx.NodeProto]:
    """Let the node write the unbounded tensor; return the bound as a constant, and the node that applies it."""
    unbounded, limit, name = (_fresh(tensor + ending, taken) for ending in (_UNBOUNDED, _UPPER, _BOUND))
    outputs = [unbounded if output == tensor else output for output in node.output]
    del node.output[:]
    node.output.extend(outputs)
    constant = numpy_helper.from_array(upper.reshape(-1)[0] if clips else upper, limit)
    if clips:
        return constant, helper.make_node("Clip", [unbounded, "", limit], [tensor], name=name)
    return constant, helper.make_node("Min", [unbounded, limit], [tensor], name=name)


def _can_clip(model: onnx.ModelProto, upper: FloatArray) -> bool:
    """Say whether one scalar bounds the site, in a type that onnxruntime clips: doubles only since opset 12."""
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return bool((upper == upper.flat[0]).all()) and (upper.dtype != np.float64 or opset >= _CLIPS_DOUBLES)


def _hold(graph: onnx.GraphProto, constant: onnx.TensorProto, *, as_initializer: bool) -> list[onnx.NodeProto]:
    """Put the constant into the graph; return the node that takes, where an initializer would have to be an input."""
    if as_initializer:
        graph.initializer.append(constant)
        return []
    return [helper.make_node("Constant", [], [constant.name], value=constant)]


def _representable(tensor: str, upper: FloatArray, dtype: str) -> FloatArray:
    if np.isnan(upper).any():
        raise CalibrationError(f"the bound of {tensor!r} is not a number; check the clean samples and their scale")
    limits = np.finfo(dtype)
    return np.asarray(np.clip(upper, limits.min, limits.max), dtype=dtype)


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield every name that a graph uses, its sub-graphs included."""
    yield from (value.name for value in chain(graph.input, graph.output, graph.value_info))
    yield from (tensor.name for tensor in graph.initializer)
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    for node in graph.node:
        yield from (node.name, *node.input, *node.output)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _names(inner)


def _fresh(name: str, taken: set[str]) -> str:
    """Return the name, numbered where it is taken, and take it."""
    numbered = (f"{name}_{k}" for k in count(2))
    fresh = name if name not in taken else next(n for n in numbered if n not in taken)
    taken.add(fresh)
    return fresh


def _replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copies)
