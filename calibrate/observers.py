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
from guard.detector import N_NUMBERS
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
    names["profile"] = _profile(writer, sites, [standards[site.tensor] for site in sites])
    writer.output(names["profile"], "float32", ["batch", N_NUMBERS * len(sites)])
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


def _profile(writer: GraphWriter, sites: Sequence[Site], standards: Sequence[Standards]) -> str:
    """Add the numbers (N, 4 S) of all sites, in the order of guard.detector.

    The channels of all sites lie side by side (N, sum of K): a few nodes on them cost less than a few per site.
    """
    largest = _pooled(writer, sites, "Max", f"{_PREFIX}/largest")
    usual = _pooled(writer, sites, "Average", f"{_PREFIX}/usual")
    peak = _standardised(writer, largest, [of.activation for of in standards], f"{_PREFIX}/peak")
    level = _standardised(writer, usual, [of.level for of in standards], f"{_PREFIX}/level")
    reach = _standardised(writer, largest, [of.reach for of in standards], f"{_PREFIX}/reach")
    n_channels = [len(of.level.mean) for of in standards]
    numbers = [
        _greatest(writer, peak, n_channels, f"{_PREFIX}/peak"),
        _root_mean_square(writer, level, n_channels, f"{_PREFIX}/level"),
        _greatest(writer, level, n_channels, f"{_PREFIX}/level_of_one"),
        _root_mean_square(writer, reach, n_channels, f"{_PREFIX}/reach"),
    ]
    return writer.node("Concat", numbers, f"{_PREFIX}/profile", axis=1)


def _greatest(writer: GraphWriter, tensor: str, n_channels: Sequence[int], name: str) -> str:
    """Add (N, S), log(1 + max(0, the greatest of a site's channels))."""
    last = np.cumsum(n_channels) - 1
    # A site with fewer channels than the widest names its last one again and again.
    channels = np.array(
        [np.minimum(end - n + 1 + np.arange(max(n_channels)), end) for n, end in zip(n_channels, last, strict=True)]
    )
    of_sites = writer.node(
        "Gather", [tensor, writer.constant(channels, f"{name}/channels")], f"{name}/of_sites", axis=1
    )
    top = writer.reduce("ReduceMax", of_sites, [2], f"{name}/top", keepdims=False)
    return _logarithm(writer, writer.node("Relu", [top], f"{name}/above"), 1.0, name)


def _root_mean_square(writer: GraphWriter, tensor: str, n_channels: Sequence[int], name: str) -> str:
    """Add (N, S), log(.1 + the root mean square over a site's channels)."""
    shares = np.repeat(np.diag(1 / np.array(n_channels)), n_channels, axis=0).astype(np.float32)
    square = writer.node("Mul", [tensor, tensor], f"{name}/square")
    mean = writer.node("MatMul", [square, writer.constant(shares, f"{name}/shares")], f"{name}/mean_square")
    return _logarithm(writer, writer.node("Sqrt", [mean], f"{name}/root"), 0.1, name)


def _logarithm(writer: GraphWriter, tensor: str, offset: float, name: str) -> str:
    plus = writer.constant(np.array(offset, dtype=np.float32), f"{name}/offset")
    return writer.node("Log", [writer.node("Add", [tensor, plus], f"{name}/sum")], f"{name}/log")


def _pooled(writer: GraphWriter, sites: Sequence[Site], how: str, name: str) -> str:
    """Add (N, sum of K) in float32, the largest or mean value over places of every channel of every site."""
    parts = []
    for i, site in enumerate(sites):
        # A pooling keeps onnxruntime's blocked layout, which a reduction would undo at every site.
        if len(site.shape) == _IMAGE_RANK and site.channel_axis == 1 and site.dtype == "float32":
            pooled = writer.node(f"Global{how}Pool", [site.tensor], f"{name}/{i}/pooled")
        else:
            places = [a for a in range(1, len(site.shape)) if a != site.channel_axis]
            reduction = {"Max": "ReduceMax", "Average": "ReduceMean"}[how]
            pooled = writer.reduce(reduction, site.tensor, places, f"{name}/{i}/pooled")
        flat = writer.node("Flatten", [pooled], f"{name}/{i}/flat", axis=1)
        parts.append(writer.float32(flat, f"{name}/{i}/float32"))
    return writer.node("Concat", parts, name, axis=1)


def _standardised(writer: GraphWriter, tensor: str, usual: Sequence[MeanStd], name: str) -> str:
    """Add (tensor - mean) / std per channel, in float32: an inverse deviation may be more than float16 can hold."""
    means, inverses = np.concatenate([of.mean for of in usual]), np.concatenate([1 / of.std for of in usual])
    mean = writer.constant(representable(name, means, "float32"), f"{name}/mean")
    per_std = writer.constant(representable(name, inverses, "float32"), f"{name}/per_std")
    return writer.node("Mul", [writer.node("Sub", [tensor, mean], f"{name}/centred"), per_std], f"{name}/scaled")


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
