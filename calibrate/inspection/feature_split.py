"""Cut a classifier f = h o g at its last feature map: g from input to features, h from features to logits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from calibrate.activations import channel_axis
from calibrate.graph_reading import LINEAR_OPS, GraphReading, names_read, needed_nodes
from guard.errors import CalibrationError

__all__ = ["FeatureSplit", "find_cuts", "head_model", "split_features"]

_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool", "ReduceMean"})
_MOST_HEAD_LAYERS = 3  # VGG's head


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSplit:
    """Where a classifier is cut.

    Args:
        tensor: The features' name in the graph.
        channel_axis: The axis of K, N being axis 0.
        head: h: the features in, the logits out.
    """

    tensor: str
    channel_axis: int
    head: onnx.ModelProto


def find_cuts(graph: onnx.GraphProto, logits: str) -> tuple[str, ...]:
    """Return the tensors through which everything that the logits know of the input passes, in the graph's order."""
    reading = GraphReading.of(graph, upto=logits)
    nodes, live = reading.nodes, reading.live
    last_use = {name: place for place, node in enumerate(nodes) for name in names_read(node) if name in live}
    last_use[logits] = len(nodes)
    is_open = inputs = {i.name for i in graph.input} & last_use.keys()
    cuts: list[str] = []
    for place, node in enumerate(nodes):
        is_open = {name for name in is_open if last_use[name] > place}
        is_open.update(name for name in node.output if last_use.get(name, -1) > place)
        if len(is_open) == 1 and is_open.isdisjoint(inputs):
            cuts.extend(is_open)
    return tuple(dict.fromkeys(cuts))


def split_features(model: onnx.ModelProto, logits: str, shapes: Mapping[str, Sequence[int]]) -> FeatureSplit:
    """Cut at the last map before the pooling, or else at the input of the last linear layer.

    A map has at least four axes and more than one position, is not what a pooling gives, and has at most three linear
    layers behind it, as VGG has.

    Args:
        model: The classifier.
        logits: The name of the tensor (N, C) that holds the logits.
        shapes: Of every cut (see find_cuts), N included.

    Raises:
        CalibrationError: There is no linear layer to cut in front of.
    """
    cuts, reading = find_cuts(model.graph, logits), GraphReading.of(model.graph, upto=logits)
    behind = {cut: _layers_behind(reading, cut) for cut in cuts}
    usable = [cut for cut in cuts if behind[cut] >= 1]
    if not usable:
        raise CalibrationError(
            "BAN cuts a classifier in front of its last linear layer, but nothing that its logits are made of passes "
            "through one tensor there; expected a chain that ends in Conv, Gemm or MatMul"
        )
    maps = [
        cut for cut in usable
        if len(shapes[cut]) >= 4 and _has_positions(shapes[cut]) and behind[cut] <= _MOST_HEAD_LAYERS
        and reading.producers[cut].op_type not in _POOLS
    ]  # fmt: skip
    tensor = maps[-1] if maps else usable[-1]
    n_axes = len(shapes[tensor])
    axis = channel_axis(tensor, reading) % n_axes if n_axes > 2 else 1
    return FeatureSplit(tensor=tensor, channel_axis=axis, head=head_model(model, tensor, logits))


def head_model(model: onnx.ModelProto, tensor: str, logits: str) -> onnx.ModelProto:
    """Return the part of the model from a cut to the logits."""
    head = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    head.graph.name = model.graph.name
    head.graph.input.append(onnx.ValueInfoProto(name=tensor))
    head.graph.output.append(onnx.ValueInfoProto(name=logits))
    nodes = needed_nodes([node for node in model.graph.node if tensor not in node.output], [logits])
    read = {name for node in nodes for name in names_read(node)}
    head.graph.node.extend(nodes)
    head.graph.initializer.extend(i for i in model.graph.initializer if i.name in read)
    return head


def _layers_behind(graph: GraphReading, cut: str) -> int:
    after = {cut}
    count = 0
    for node in graph.nodes:
        if not after.isdisjoint(names_read(node)):
            after.update(node.output)
            count += node.op_type in LINEAR_OPS
    return count


def _has_positions(shape: Sequence[int]) -> bool:
    """Say whether two axes are larger than 1: channels, whichever axis they are on, and positions."""
    return sum(n > 1 for n in shape[1:]) > 1
