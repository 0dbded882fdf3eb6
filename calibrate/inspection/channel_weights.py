"""For each site's channels, the weights that make them and the weights that read them, from the ONNX graph alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from calibrate.activations import ACTIVATION_OPS
from calibrate.graph_reading import LINEAR_AXES, GraphReading
from calibrate.sites import Site
from guard.types import FloatArray

__all__ = ["ChannelWeights", "find_channel_weights", "find_head"]

_FLATTENING = frozenset({"Flatten", "Reshape", "Squeeze"})
_PASSING = ACTIVATION_OPS | {
    "Identity", "Cast", "Dropout", "Pad", "Resize", "Upsample", "MaxPool", "AveragePool", "GlobalAveragePool",
    "GlobalMaxPool", "ReduceMean", "ReduceMax", "Add", "Sum", "Sub", "Mul", "Div", "Neg", "Erf", "Exp", "Pow", "Sqrt",
    "Reciprocal", "BatchNormalization",
}  # fmt: skip
"""Operators behind which channel j is still channel j."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelWeights:
    """What is linear right before and right behind a site of K channels; empty where nothing was found.

    Args:
        producing: One array (K, n_in, area) per layer whose output the activation is applied to, BatchNorm's and other
            per-channel factors multiplied in. A residual sum has one per branch; a branch without weights has none.
        consuming: One array (n_out, K, area) per layer that reads the site before any other site does.
    """

    producing: tuple[FloatArray, ...]
    consuming: tuple[FloatArray, ...]


def find_channel_weights(
    model: onnx.ModelProto, sites: Sequence[Site], n_channels: Mapping[str, int]
) -> Mapping[str, ChannelWeights]:
    """Return the weights before and behind each site.

    Args:
        model: The classifier.
        sites: Its activations.
        n_channels: K by site.
    """
    graph = GraphReading.of(model.graph)
    stops = frozenset(site.tensor for site in sites)
    return {
        site.tensor: ChannelWeights(
            producing=tuple(_producing(graph, site.tensor, n_channels[site.tensor], stops)),
            consuming=tuple(_consuming(graph, site, n_channels[site.tensor], stops)),
        )
        for site in sites
    }


def find_head(model: onnx.ModelProto, logits: str, *, n_classes: int) -> FloatArray | None:
    """Return the weights (C, n_in) of the last linear layer; None where the logits come from none of C rows."""
    graph = GraphReading.of(model.graph)
    node = _head_node(graph, logits)
    rows = None if node is None else _rows(graph, node)
    return None if rows is None or len(rows) != n_classes else rows.reshape(n_classes, -1)


def _head_node(graph: GraphReading, logits: str) -> onnx.NodeProto | None:
    """Follow the logits back, through biases and pools, to the layer that makes them."""
    node = graph.producers.get(logits)
    while node is not None and not _is_linear(node):
        sources = _variables(graph, node)
        is_passed = node.op_type in (_PASSING | _FLATTENING) - ACTIVATION_OPS and len(sources) == 1
        node = graph.producers.get(sources[0]) if is_passed else None
    return node


def _producing(graph: GraphReading, tensor: str, k: int, stops: frozenset[str]) -> Iterator[FloatArray]:
    seen = {tensor}
    frontier: list[tuple[str, FloatArray]] = [(tensor, np.ones(1))]
    for name, scale in frontier:
        node = graph.producers.get(name)
        if node is None or (name in stops and name != tensor):
            continue
        if _is_linear(node):
            rows = _rows(graph, node)
            if rows is not None and len(rows) == k:
                yield rows * scale[:, None, None]
        elif node.op_type in _PASSING and (factor := _factor(graph, node, k)) is not None:
            fresh = [source for source in _variables(graph, node) if source not in seen]
            seen.update(fresh)
            frontier += [(source, scale * factor) for source in fresh]


def _consuming(graph: GraphReading, site: Site, k: int, stops: frozenset[str]) -> Iterator[FloatArray]:
    is_last = site.channel_axis == len(site.shape) - 1
    seen = {site.tensor}
    frontier: list[tuple[str, FloatArray]] = [(site.tensor, np.ones(1))]
    for name, scale in frontier:
        for node in graph.consumers.get(name, ()):
            if _is_linear(node):
                columns = _columns(graph, node, name, k, channels_last=is_last)
                if columns is not None:
                    yield columns * scale[:, None]
            elif node.op_type in _PASSING | _FLATTENING and not stops.intersection(node.output):
                factor = _factor(graph, node, k)
                if factor is not None and node.output[0] not in seen:
                    seen.add(node.output[0])
                    frontier.append((node.output[0], scale * factor))


def _is_linear(node: onnx.NodeProto) -> bool:
    return node.op_type in LINEAR_AXES and len(node.input) > 1


def _is_constant(graph: GraphReading, name: str) -> bool:
    return not name or name in graph.constants or graph.constant(name) is not None


def _variables(graph: GraphReading, node: onnx.NodeProto) -> list[str]:
    return [name for name in node.input if not _is_constant(graph, name)]


def _rows(graph: GraphReading, node: onnx.NodeProto) -> FloatArray | None:
    """Return a layer's weights as (n_out, n_in, area), n_in being that of one group."""
    weights = graph.constant(node.input[1])
    attributes = {a.name: a.i for a in node.attribute}
    if weights is None or weights.ndim < 2 or attributes.get("transA"):
        return None
    weights = weights.astype(np.float64)
    if node.op_type in ("Conv", "FusedConv"):
        return weights.reshape(*weights.shape[:2], -1)
    if node.op_type == "ConvTranspose":
        one_group = attributes.get("group", 1) == 1
        return weights.reshape(*weights.shape[:2], -1).swapaxes(0, 1) if one_group else None
    if weights.ndim != 2:
        return None
    return (weights if attributes.get("transB") else weights.T)[:, :, None]


def _columns(graph: GraphReading, node: onnx.NodeProto, read: str, k: int, *, channels_last: bool) -> FloatArray | None:
    """Return a layer's weights as (n_out, K, area), for the K channels that it reads, flattened or not."""
    rows = _rows(graph, node) if node.input[0] == read else None
    if rows is None:
        return None
    n_out, n_in, area = rows.shape
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    if groups > 1:
        return _ungrouped(rows, groups) if groups * n_in == k else None
    if n_in % k or (n_in != k and area != 1):
        return None
    if channels_last:
        return rows.reshape(n_out, n_in // k, k).swapaxes(1, 2) if area == 1 else rows
    return rows.reshape(n_out, k, -1)


def _ungrouped(rows: FloatArray, groups: int) -> FloatArray:
    """Spread (n_out, n_in, area) of a grouped layer so that axis 1 is all its inputs; n_out stays that of a group."""
    n_out, n_in, area = rows.shape
    grouped = rows.reshape(groups, n_out // groups, n_in, area)
    return grouped.swapaxes(0, 1).reshape(n_out // groups, groups * n_in, area)


def _factor(graph: GraphReading, node: onnx.NodeProto, k: int) -> FloatArray | None:
    """Return what a node multiplies channels by, (K,) or (1,); None where that differs by position."""
    if node.op_type == "BatchNormalization":
        gamma, variance = (graph.constant(node.input[place]) for place in (1, 4))
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        if gamma is None or variance is None or len(gamma) != k:
            return None
        return np.asarray(gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon))
    if node.op_type not in ("Mul", "Div"):
        return np.ones(1)
    constants = [c for name in node.input if name and (c := graph.constant(name)) is not None]
    if not constants:
        return np.ones(1)
    values = constants[0].astype(np.float64).reshape(-1)
    if values.size not in (1, k) or (node.op_type == "Div" and _is_constant(graph, node.input[0])):
        return None
    return np.asarray(values if node.op_type == "Mul" else 1 / values)
