"""Put bounds into an ONNX graph: the original plus a Clip or Min node per site, or Max and Min, and nothing else.

The producer of a bounded tensor is made to write ``NAME/unbounded``, and the last new node writes NAME: every consumer,
in sub-graphs too, keeps reading the name it knows. One bound per site is a Clip, whose limits are scalars; a bound per
channel or neuron is a Min with a broadcast initializer, the cheapest exact form measured (benchmarks/results.md), after
a Max where there is a lower bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from calibrate.names import all_names, fresh_name
from calibrate.sites import ActivationBounds, Site
from guard.errors import CalibrationError
from guard.types import FloatArray

__all__ = ["MARK", "check_edited", "check_unbounded", "insert_bounds", "representable"]

MARK = "trigger_guard.bounds"
"""The key of the metadata that an edited model carries: the name of the method."""

_UNBOUNDED = "/unbounded"
_UPPER = "/upper_bound"
_BOUND = "/bound"
_LOWER = "/lower_bound"
_BOUND_BELOW = "/bound_below"
_CLIPS_DOUBLES = 12
_FREE_INITIALIZERS = 4  # the IR version since which an initializer need not be an input of the graph


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    """Both bounds of a site in its element type; None where nothing is bounded from below."""

    lower: FloatArray | None
    upper: FloatArray

    @classmethod
    def of(cls, bounds: ActivationBounds, tensor: str, dtype: str) -> "_Limits":
        upper = representable(tensor, bounds.upper[tensor], dtype)
        if tensor not in bounds.lower:
            return cls(lower=None, upper=upper)
        lower = representable(tensor, bounds.lower[tensor], dtype)
        if (lower > upper).any():
            raise CalibrationError(f"a lower bound of {tensor!r} lies above its upper bound; check the clean samples")
        return cls(lower=None if (lower == np.finfo(dtype).min).all() else lower, upper=upper)

    @property
    def are_scalars(self) -> bool:
        """Whether one number a side bounds the whole site."""
        sides = (self.upper,) if self.lower is None else (self.lower, self.upper)
        return all(bool((side == side.flat[0]).all()) for side in sides)


def insert_bounds(model: onnx.ModelProto, bounds: ActivationBounds, sites: Sequence[Site]) -> onnx.ModelProto:
    """Return a copy of the model in which every activation x of a bounded site is min(max(x, lower), upper).

    Args:
        model: The original; it is left as it is.
        bounds: An upper bound per site tensor, and lower ones where there are any.
        sites: The sites of the bounds.

    Raises:
        CalibrationError: The model carries bounds already, a site is no tensor of its graph, or a lower bound lies
            above the upper.
    """
    check_unbounded(model)
    bounded = onnx.ModelProto()
    bounded.CopyFrom(model)
    graph = bounded.graph
    dtypes = {site.tensor: site.dtype for site in sites}
    if strangers := sorted(bounds.upper.keys() - dtypes.keys()):
        raise CalibrationError(f"{strangers[0]!r} has a bound but is none of the sites; find the sites again")
    taken = set(all_names(graph))
    nodes: list[onnx.NodeProto] = []
    placed: set[str] = set()
    for node in graph.node:
        nodes.append(node)
        for tensor in [t for t in node.output if t in bounds.upper]:
            limits = _Limits.of(bounds, tensor, dtypes[tensor])
            constants, made = _bound_nodes(node, tensor, limits, taken, clips=_can_clip(model, limits))
            nodes += _hold(graph, constants, as_initializers=model.ir_version >= _FREE_INITIALIZERS)
            nodes += made
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
    node: onnx.NodeProto, tensor: str, limits: _Limits, taken: set[str], *, clips: bool
) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]]:
    """Let the node write the unbounded tensor; return the bounds as constants, and the nodes that apply them."""
    unbounded, upper, name = (fresh_name(tensor + ending, taken) for ending in (_UNBOUNDED, _UPPER, _BOUND))
    outputs = [unbounded if output == tensor else output for output in node.output]
    del node.output[:]
    node.output.extend(outputs)
    constants = [_constant(limits.upper, upper, is_scalar=clips)]
    lower = ""
    if limits.lower is not None:
        lower = fresh_name(tensor + _LOWER, taken)
        constants.append(_constant(limits.lower, lower, is_scalar=clips))
    if clips:
        return constants, [helper.make_node("Clip", [unbounded, lower, upper], [tensor], name=name)]
    if not lower:
        return constants, [helper.make_node("Min", [unbounded, upper], [tensor], name=name)]
    below = fresh_name(tensor + _BOUND_BELOW, taken)
    return constants, [
        helper.make_node("Max", [unbounded, lower], [below], name=below),
        helper.make_node("Min", [below, upper], [tensor], name=name),
    ]


def _constant(values: FloatArray, name: str, *, is_scalar: bool) -> onnx.TensorProto:
    return numpy_helper.from_array(values.reshape(-1)[0] if is_scalar else values, name)


def _can_clip(model: onnx.ModelProto, limits: _Limits) -> bool:
    """Say whether scalars bound the site, in a type that onnxruntime clips.

    That is doubles only since opset 12, and then only from above: its fusion of Relu and Clip refuses a lower double.
    """
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    clips_doubles = opset >= _CLIPS_DOUBLES and limits.lower is None
    return limits.are_scalars and (limits.upper.dtype != np.float64 or clips_doubles)


def _hold(
    graph: onnx.GraphProto, constants: Sequence[onnx.TensorProto], *, as_initializers: bool
) -> list[onnx.NodeProto]:
    """Put constants into the graph; return the nodes that takes, where initializers would have to be inputs."""
    if as_initializers:
        graph.initializer.extend(constants)
        return []
    return [helper.make_node("Constant", [], [constant.name], value=constant) for constant in constants]


def representable(tensor: str, bound: FloatArray, dtype: str) -> FloatArray:
    """Return the bound of a tensor in its element type, cut to what that can hold.

    Raises:
        CalibrationError: It is not a number.
    """
    if np.isnan(bound).any():
        raise CalibrationError(f"the bound of {tensor!r} is not a number; check the clean samples and their scale")
    limits = np.finfo(dtype)
    return np.asarray(np.clip(bound, limits.min, limits.max), dtype=dtype)


def _replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copies)
