"""Find where noise can be put on the neurons of an ONNX graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx

from calibrate.activations import ACTIVATION_OPS
from calibrate.inspection.feature_split import LINEAR_OPS, live_tensors, needed_nodes

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
    flow = _Flow.read(graph, upto)
    norms = [place for node in flow.nodes if (place := _normalisation(node, flow)) is not None]
    linear = [node for node in flow.nodes if node.op_type in LINEAR_OPS and len(flow.sources(node)) == 1]
    if any(place.kind == "LayerNorm" for place in norms):
        return tuple(norms)
    if norms:
        linear = [node for node in linear if flow.feeds_activation(_past_shift(node, flow))]
    return (*norms, *(_pre_activation(node, flow) for node in linear))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flow:
    nodes: Sequence[onnx.NodeProto]
    producers: Mapping[str, onnx.NodeProto]
    consumers: Mapping[str, Sequence[onnx.NodeProto]]
    live: frozenset[str]

    @classmethod
    def read(cls, graph: onnx.GraphProto, upto: str) -> "_Flow":
        nodes = needed_nodes(graph.node, upto)
        consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes:
            for name in set(node.input):
                consumers.setdefault(name, []).append(node)
        producers = {name: node for node in nodes for name in node.output}
        return cls(nodes=nodes, producers=producers, consumers=consumers, live=live_tensors(graph))

    def sources(self, node: onnx.NodeProto) -> list[str]:
        return [name for name in node.input if name in self.live]

    def constant(self, node: onnx.NodeProto) -> str:
        """Return the one constant among a node's two inputs, or nothing."""
        fixed = [name for name in node.input if name and name not in self.live]
        return fixed[0] if len(fixed) == 1 and len(node.input) == 2 else ""

    def only_consumer(self, tensor: str) -> onnx.NodeProto | None:
        consumers = self.consumers.get(tensor, ())
        return consumers[0] if len(consumers) == 1 else None

    def feeds_activation(self, tensor: str) -> bool:
        return any(node.op_type in ACTIVATION_OPS for node in self.consumers.get(tensor, ()))


def _normalisation(node: onnx.NodeProto, flow: _Flow) -> Place | None:
    if node.op_type == "Add":
        return _spelled_out(node, flow)
    if node.op_type == "BatchNormalization":
        return Place(tensor=node.output[0], kind="BatchNorm", channel_axis=1, scale=node.input[1], shift=node.input[2])
    if node.op_type not in _OVER_POSITIONS + _OVER_TAIL or _is_scaled_later(node, flow):
        return None
    return Place(
        tensor=node.output[0],
        kind="LayerNorm",
        channel_axis=1 if node.op_type in _OVER_POSITIONS else -1,
        scale=node.input[1],
        shift=node.input[2] if len(node.input) > 2 else "",
    )


def _spelled_out(node: onnx.NodeProto, flow: _Flow) -> Place | None:
    """Recognise y / std * scale + shift, with y / std the work of a Div or of a normalisation of fixed scale."""
    shift, scaled = flow.constant(node), flow.producers.get("".join(flow.sources(node)))
    if not shift or scaled is None or scaled.op_type != "Mul" or not (scale := flow.constant(scaled)):
        return None
    maker = _maker(flow.sources(scaled)[0], flow)
    if maker is None or not (maker.op_type in _OVER_POSITIONS or _divides_by_live(maker, flow)):
        return None
    return Place(tensor=node.output[0], kind="LayerNorm", channel_axis=-1, scale=scale, shift=shift)


def _divides_by_live(node: onnx.NodeProto, flow: _Flow) -> bool:
    return node.op_type == "Div" and len(flow.sources(node)) == 2


def _is_scaled_later(node: onnx.NodeProto, flow: _Flow) -> bool:
    """Say whether a normalisation's scale and shift come as Mul and Add behind it, as torch exports GroupNorm."""
    tensor = node.output[0]
    while (after := flow.only_consumer(tensor)) is not None and after.op_type in _PASS_THROUGH:
        tensor = after.output[0]
    if after is None or after.op_type != "Mul" or not flow.constant(after):
        return False
    following = flow.only_consumer(after.output[0])
    return following is not None and following.op_type == "Add" and bool(flow.constant(following))


def _maker(tensor: str, flow: _Flow) -> onnx.NodeProto | None:
    node = flow.producers.get(tensor)
    while node is not None and node.op_type in _PASS_THROUGH:
        node = flow.producers.get(node.input[0])
    return node


def _past_shift(node: onnx.NodeProto, flow: _Flow) -> str:
    """Return the layer's output, after the Add of a constant that may hold its bias."""
    after = flow.only_consumer(node.output[0])
    is_shift = after is not None and after.op_type == "Add" and bool(flow.constant(after))
    return str(after.output[0] if after is not None and is_shift else node.output[0])


def _pre_activation(node: onnx.NodeProto, flow: _Flow) -> Place:
    axis = 1 if node.op_type in ("Conv", "ConvTranspose") else -1
    return Place(tensor=_past_shift(node, flow), kind="pre-activations", channel_axis=axis)
