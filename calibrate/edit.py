"""Put bounds into an ONNX graph: the original plus one Clip or Min node per site, and nothing else.

The producer of a bounded tensor is made to write ``NAME/unbounded``, and the new node writes NAME: every consumer, in
sub-graphs too, keeps reading the name it knows. One bound per site is a Clip, whose limits are scalars; a bound per
channel or neuron is a Min with a broadcast initializer, the cheapest exact form measured (benchmarks/results.md).
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from calibrate.sites import ActivationBounds, Site
from guard.errors import CalibrationError
from guard.types import FloatArray

__all__ = ["MARK", "check_edited", "insert_bounds"]

MARK = "trigger_guard.bounds"
"""The key of the metadata that an edited model carries: the name of the method."""

_UNBOUNDED = "/unbounded"
_UPPER = "/upper_bound"


def insert_bounds(model: onnx.ModelProto, bounds: ActivationBounds, sites: Sequence[Site]) -> onnx.ModelProto:
    """Return a copy of the model in which every activation x of a bounded site is min(x, upper).

    Args:
        model: The original; it is left as it is.
        bounds: An upper bound per site tensor.
        sites: The sites of the bounds.

    Raises:
        CalibrationError: The model carries bounds already, or a site is no tensor of its graph.
    """
    if any(entry.key == MARK for entry in model.metadata_props):
        raise CalibrationError("the model carries activation bounds already; start from the original")
    bounded = onnx.ModelProto()
    bounded.CopyFrom(model)
    graph = bounded.graph
    dtypes = {site.tensor: site.dtype for site in sites}
    nodes: list[onnx.NodeProto] = []
    placed: set[str] = set()
    for node in graph.node:
        nodes.append(node)
        for tensor in [t for t in node.output if t in bounds.upper]:
            upper = _representable(bounds.upper[tensor], dtypes[tensor])
            nodes.append(_bound_node(graph, node, tensor, upper))
            placed.add(tensor)
    if missing := sorted(bounds.upper.keys() - placed):
        raise CalibrationError(f"{missing[0]!r} is no tensor that a node of the graph gives; find the sites again")
    _replace_nodes(graph, nodes)
    bounded.metadata_props.add(key=MARK, value=bounds.method)
    return bounded


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


def _bound_node(graph: onnx.GraphProto, node: onnx.NodeProto, tensor: str, upper: FloatArray) -> onnx.NodeProto:
    """Let the node write the unbounded tensor, and return the node that bounds it."""
    outputs = [tensor + _UNBOUNDED if name == tensor else name for name in node.output]
    del node.output[:]
    node.output.extend(outputs)
    is_scalar = bool((upper == upper.flat[0]).all())
    graph.initializer.append(numpy_helper.from_array(upper.reshape(-1)[0] if is_scalar else upper, tensor + _UPPER))
    name = f"{tensor}/bound"
    if is_scalar:
        return helper.make_node("Clip", [tensor + _UNBOUNDED, "", tensor + _UPPER], [tensor], name=name)
    return helper.make_node("Min", [tensor + _UNBOUNDED, tensor + _UPPER], [tensor], name=name)


def _representable(upper: FloatArray, dtype: str) -> FloatArray:
    limits = np.finfo(dtype)
    return np.asarray(np.clip(upper, limits.min, limits.max), dtype=dtype)


def _replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copies)
