"""Find where noise can be put on the neurons of an ONNX graph."""

from dataclasses import dataclass
from typing import Literal

import onnx

from calibrate.activations import ACTIVATION_OPS
from calibrate.graph_reading import LINEAR_AXES, LINEAR_OPS, GraphReading

__all__ = ["Place", "PlaceKind", "find_places"]

PlaceKind = Literal["BatchNorm", "LayerNorm", "pre-activations"]
"""``LayerNorm`` stands for every normalisation within one input."""

_OVER_POSITIONS = ("GroupNormalization", "InstanceNormalization")  # their scale is along axis 1
_OVER_TAIL = ("LayerNormalization", "RMSNormalization")  # their scale is along the last axes
_PASS_THROUGH = ("Cast", "Identity", "Reshape", "Transpose")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A tensor whose channels can be perturbed.

    Args:
        tensor: Its name in the graph.
        kind: What makes it.
        channel_axis: The axis of K.
        scale: The name of the normalisation's scale; empty at pre-activations.
        shift: The name of its shift; empty where it has none.
    """

    tensor: str
    kind: PlaceKind
    channel_axis: int
    scale: str = ""
    shift: str = ""


def find_places(graph: onnx.GraphProto, upto: str) -> tuple[Place, ...]:
    """Return where noise goes between the graph's input and a tensor, that tensor included.

    Where LayerNorms (or other normalisations within one input) remain in the graph: their outputs and those of
    BatchNorms. Else where BatchNorms remain: their outputs, and convolutions and matrix products that feed an
    activation function directly, into which a BatchNorm was folded. Else every convolution and matrix product.
    """
    reading = GraphReading.of(graph, upto=upto)
    norms = [place for node in reading.nodes if (place := _normalisation(node, reading)) is not None]
    linear = [node for node in reading.nodes if node.op_type in LINEAR_OPS and len(reading.sources(node)) == 1]
    if any(place.kind == "LayerNorm" for place in norms):
        return tuple(norms)
    if norms:
        linear = [node for node in linear if _feeds_activation(_past_shift(node, reading), reading)]
    return (*norms, *(_pre_activation(node, reading) for node in linear))


def _constant(node: onnx.NodeProto, graph: GraphReading) -> str:
    """Return the one constant among a node's two inputs, or nothing."""
    fixed = [name for name in node.input if name and name not in graph.live]
    return fixed[0] if len(fixed) == 1 and len(node.input) == 2 else ""


def _only_consumer(tensor: str, graph: GraphReading) -> onnx.NodeProto | None:
    consumers = graph.consumers.get(tensor, ())
    return consumers[0] if len(consumers) == 1 else None


def _feeds_activation(tensor: str, graph: GraphReading) -> bool:
    return any(node.op_type in ACTIVATION_OPS for node in graph.consumers.get(tensor, ()))


def _normalisation(node: onnx.NodeProto, graph: GraphReading) -> Place | None:
    if node.op_type == "Add":
        return _spelled_out(node, graph)
    if node.op_type == "BatchNormalization":
        return Place(tensor=node.output[0], kind="BatchNorm", channel_axis=1, scale=node.input[1], shift=node.input[2])
    if node.op_type not in _OVER_POSITIONS + _OVER_TAIL or _is_scaled_later(node, graph):
        return None
    return Place(
        tensor=node.output[0],
        kind="LayerNorm",
        channel_axis=1 if node.op_type in _OVER_POSITIONS else -1,
        scale=node.input[1],
        shift=node.input[2] if len(node.input) > 2 else "",
    )


def _spelled_out(node: onnx.NodeProto, graph: GraphReading) -> Place | None:
    """Recognise y / std * scale + shift, with y / std the work of a Div or of a normalisation of fixed scale."""
    shift, scaled = _constant(node, graph), graph.producers.get("".join(graph.sources(node)))
    if not shift or scaled is None or scaled.op_type != "Mul" or not (scale := _constant(scaled, graph)):
        return None
    maker = _maker(graph.sources(scaled)[0], graph)
    if maker is None or not (maker.op_type in _OVER_POSITIONS or _divides_by_live(maker, graph)):
        return None
    return Place(tensor=node.output[0], kind="LayerNorm", channel_axis=-1, scale=scale, shift=shift)


def _divides_by_live(node: onnx.NodeProto, graph: GraphReading) -> bool:
    return node.op_type == "Div" and len(graph.sources(node)) == 2


def _is_scaled_later(node: onnx.NodeProto, graph: GraphReading) -> bool:
    """Say whether a normalisation's scale and shift come as Mul and Add behind it, as torch exports GroupNorm."""
    tensor = node.output[0]
    while (after := _only_consumer(tensor, graph)) is not None and after.op_type in _PASS_THROUGH:
        tensor = after.output[0]
    if after is None or after.op_type != "Mul" or not _constant(after, graph):
        return False
    following = _only_consumer(after.output[0], graph)
    return following is not None and following.op_type == "Add" and bool(_constant(following, graph))


def _maker(tensor: str, graph: GraphReading) -> onnx.NodeProto | None:
    node = graph.producers.get(tensor)
    while node is not None and node.op_type in _PASS_THROUGH:
        node = graph.producers.get(node.input[0])
    return node


def _past_shift(node: onnx.NodeProto, graph: GraphReading) -> str:
    """Return the layer's output, after the Add of a constant that may hold its bias."""
    after = _only_consumer(node.output[0], graph)
    is_shift = after is not None and after.op_type == "Add" and bool(_constant(after, graph))
    return str(after.output[0] if after is not None and is_shift else node.output[0])


def _pre_activation(node: onnx.NodeProto, graph: GraphReading) -> Place:
    axis = LINEAR_AXES.get(node.op_type, -1)
    return Place(tensor=_past_shift(node, graph), kind="pre-activations", channel_axis=axis)
