"""Let a model show what the one-pass detector reads: the profile, the head run again, and how far bounds were passed.

The observed original is the original plus a few reductions per site, from which come the four numbers of its profile
(guard.detector), and a copy of the nodes behind the last site that reads it bounded. The bounded model shows beside its
answers how far activations went past their bounds, per channel and per place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from calibrate.edit import representable
from calibrate.graph_reading import names_read, needed_nodes
from calibrate.graph_writing import GraphWriter
from calibrate.sites import ActivationBounds, Site
from guard.types import FloatArray

__all__ = ["MeanStd", "Standards", "show_excess", "show_profile_and_head"]

_PREFIX = "trigger_guard"
_IMAGE_RANK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanStd:
    """Mean (K,) and positive standard deviation (K,) per channel."""

    mean: FloatArray
    std: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Standards:
    """What clean activations are like at one site, mean and standard deviation (K,) per channel.

    Args:
        activation: Over inputs and places.
        level: Over inputs, of the mean over places.
        reach: Over inputs, of the maximum over places.
    """

    activation: MeanStd
    level: MeanStd
    reach: MeanStd


def show_profile_and_head(
    model: onnx.ModelProto,
    logits: str,
    sites: Sequence[Site],
    standards: Mapping[str, Standards],
    last: Mapping[str, FloatArray],
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Return the observed original, and the names of its outputs profile (N, 4 S) and head (N, C).

    Args:
        model: The original, with its logits among its outputs.
        logits: The tensor whose copy behind the last site is the head's.
        sites: The S sites to show, in order.
        standards: Of each of them.
        last: The upper bound of the last site, by its tensor.
    """
    writer, names = GraphWriter(model), {}
    rows = [_numbers(writer, site, standards[site.tensor], f"{_PREFIX}/{i}") for i, site in enumerate(sites)]
    columns = [number for numbers in zip(*rows, strict=True) for number in numbers]
    names["profile"] = writer.node("Concat", columns, f"{_PREFIX}/profile", axis=1)
    writer.output(names["profile"], "float32", ["batch", len(columns)])
    names["head"] = _head(writer, model, logits, last)
    writer.model.graph.output.append(next(o for o in model.graph.output if o.name == logits))
    writer.model.graph.output[-1].name = names["head"]
    return writer.model, names


def show_excess(
    model: onnx.ModelProto, sites: Sequence[Site], bounds: ActivationBounds, standards: Mapping[str, Standards]
) -> tuple[onnx.ModelProto, dict[str, str], dict[str, str]]:
    """Return the bounded model with how far activations pass their bounds, in clean standard deviations.

    Args:
        model: The bounded model, whose unbounded activations are named as calibrate.edit names them.
        sites: Those to show.
        bounds: What was inserted.
        standards: Of each of these sites.

    Returns:
        The model, and by site the names of its outputs capped (N, K), and where a site has two axes of places
        capped_at (N, h, w).
    """
    writer = GraphWriter(model)
    capped, capped_at = {}, {}
    for i, site in enumerate(sites):
        name = f"{_PREFIX}/{i}"
        excess = _excess(writer, site, bounds.upper[site.tensor], standards[site.tensor], name)
        axis = site.channel_axis
        places = [a for a in range(1, len(site.shape)) if a != axis]
        channels = writer.reduce("ReduceMax", excess, places, f"{name}/capped", keepdims=False)
        capped[site.tensor] = writer.node("Identity", [channels], f"{name}/capped_channels")
        writer.output(capped[site.tensor], "float32", [f"rows_{i}", len(standards[site.tensor].activation.mean)])
        if len(places) == _IMAGE_RANK - 2:
            capped_at[site.tensor] = writer.reduce("ReduceMax", excess, [axis], f"{name}/capped_at", keepdims=False)
            writer.output(capped_at[site.tensor], "float32", [f"rows_{i}", f"height_{i}", f"width_{i}"])
    return writer.model, capped, capped_at


def _numbers(writer: GraphWriter, site: Site, standards: Standards, name: str) -> list[str]:
    """Add the four numbers (N, 1) of a site, in the order of guard.detector."""
    largest = _pooled(writer, site, "Max", f"{name}/largest")
    usual = _pooled(writer, site, "Average", f"{name}/usual")
    peak = _standardised(writer, site, largest, standards.activation, f"{name}/peak")
    level = _standardised(writer, site, usual, standards.level, f"{name}/level")
    reach = _standardised(writer, site, largest, standards.reach, f"{name}/reach")
    return [
        _greatest(writer, site, peak, f"{name}/peak"),
        _root_mean_square(writer, site, level, f"{name}/level"),
        _greatest(writer, site, level, f"{name}/level_of_one"),
        _root_mean_square(writer, site, reach, f"{name}/reach"),
    ]


def _greatest(writer: GraphWriter, site: Site, tensor: str, name: str) -> str:
    """Add (N, 1), log(1 + max(0, the greatest of the channels))."""
    top = writer.reduce("ReduceMax", tensor, range(1, len(site.shape)), f"{name}/top")
    return _logarithm(writer, writer.node("Relu", [top], f"{name}/above"), 1.0, name)


def _root_mean_square(writer: GraphWriter, site: Site, tensor: str, name: str) -> str:
    """Add (N, 1), log(.1 + the root mean square over channels)."""
    square = writer.node("Mul", [tensor, tensor], f"{name}/square")
    mean = writer.reduce("ReduceMean", square, range(1, len(site.shape)), f"{name}/mean_square")
    return _logarithm(writer, writer.node("Sqrt", [mean], f"{name}/root"), 0.1, name)


def _logarithm(writer: GraphWriter, tensor: str, offset: float, name: str) -> str:
    plus = writer.constant(np.array(offset, dtype=np.float32), f"{name}/offset")
    log = writer.node("Log", [writer.node("Add", [tensor, plus], f"{name}/sum")], f"{name}/log")
    return writer.node("Flatten", [log], f"{name}/number", axis=1)


def _pooled(writer: GraphWriter, site: Site, how: str, name: str) -> str:
    """Add each channel's largest or mean value over positions."""
    # A pooling keeps onnxruntime's blocked layout, which a reduction would undo at every site.
    if len(site.shape) == _IMAGE_RANK and site.channel_axis == 1 and site.dtype == "float32":
        return writer.node(f"Global{how}Pool", [site.tensor], name)
    places = [a for a in range(1, len(site.shape)) if a != site.channel_axis]
    return writer.reduce({"Max": "ReduceMax", "Average": "ReduceMean"}[how], site.tensor, places, name)


def _standardised(writer: GraphWriter, site: Site, tensor: str, usual: MeanStd, name: str) -> str:
    """Add (tensor - mean) / std per channel, in float32."""
    mean = writer.constant(_shaped(usual.mean, site), f"{name}/mean")
    per_std = writer.constant(_shaped(1 / usual.std, site), f"{name}/per_std")
    centred = writer.node("Sub", [writer.float32(tensor, f"{name}/float32"), mean], f"{name}/centred")
    return writer.node("Mul", [centred, per_std], f"{name}/scaled")


def _excess(writer: GraphWriter, site: Site, upper: FloatArray, standards: Standards, name: str) -> str:
    bound = writer.constant(representable(site.tensor, upper, site.dtype), f"{name}/upper")
    per_std = writer.constant(_shaped(1 / standards.activation.std, site), f"{name}/per_std")
    past = writer.node(
        "Relu", [writer.node("Sub", [_unbounded(writer, site), bound], f"{name}/past")], f"{name}/excess"
    )
    return writer.node("Mul", [writer.float32(past, f"{name}/excess32"), per_std], f"{name}/excess_scaled")


def _unbounded(writer: GraphWriter, site: Site) -> str:
    """Return the name of the activation before its bounds: the first input of the last of the nodes that bound it."""
    producers = {output: node for node in writer.model.graph.node for output in node.output}
    tensor = producers[site.tensor].input[0]
    return producers[tensor].input[0] if producers[tensor].op_type == "Max" else tensor


def _shaped(values: FloatArray, site: Site) -> FloatArray:
    """Return float32 per channel: a standard deviation may be less, or its inverse more, than float16 can hold."""
    return representable(site.tensor, site.per_channel(values), "float32")


def _head(writer: GraphWriter, model: onnx.ModelProto, logits: str, last: Mapping[str, FloatArray]) -> str:
    """Copy the nodes between the last site and the logits, reading the site bounded; return the copy of the logits."""
    ((site, upper),) = last.items()
    bound = writer.constant(upper, f"{_PREFIX}/head/upper")
    copies = {site: writer.node("Min", [site, bound], f"{_PREFIX}/head/bounded")}
    for node in needed_nodes(model.graph.node, [logits]):
        if copies.keys().isdisjoint(names_read(node)):
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        _rename(copy, copies)
        for i, output in enumerate(node.output):
            if output:
                copies[output] = copy.output[i] = writer.fresh(f"{_PREFIX}/head/{output}")
        copy.name = writer.fresh(f"{_PREFIX}/head/{node.name or node.op_type}")
        writer.model.graph.node.append(copy)
    return copies[logits]


def _rename(node: onnx.NodeProto, copies: Mapping[str, str]) -> None:
    """Let a node, its sub-graphs included, read the copies."""
    for i, name in enumerate(node.input):
        node.input[i] = copies.get(name, name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                _rename(inner, copies)
            for output in graph.output:
                output.name = copies.get(output.name, output.name)
