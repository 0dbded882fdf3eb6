"""Write out the activation functions that onnxruntime fuses into layers, so that what comes before them has a name."""

from collections.abc import Iterator
from typing import Any

import onnx
from onnx import helper

from calibrate.operators.fused import FUSED_ACTIVATIONS

__all__ = ["unfused"]

_PARAMETERS = ("activation_alpha", "activation_beta", "activation_gamma")  # FusedGemm's; FusedConv lists them


def unfused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every fused activation function as a node of its own; tensors keep their names."""
    if not any(_function(node) for node in model.graph.node):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    for node in model.graph.node:
        copy.graph.node.extend(_written_out(node) if _function(node) else [node])
    return copy


def _function(node: onnx.NodeProto) -> str:
    """Return the known activation function that is fused into a node, or nothing."""
    name = next((a.s.decode() for a in node.attribute if a.name == "activation"), "")
    return name if name in FUSED_ACTIVATIONS else ""


def _written_out(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Yield the layer, the bounds of a Clip, and the activation function."""
    name, tensor = _function(node), node.output[0]
    layer = onnx.NodeProto()
    layer.CopyFrom(node)
    del layer.attribute[:], layer.output[:]
    layer.attribute.extend(a for a in node.attribute if not a.name.startswith("activation"))
    layer.output.append(f"{tensor}/before_{name}")
    yield layer
    if name != "Clip":
        yield helper.make_node(name, layer.output, [tensor], **_parameters(node))
        return
    bounds = _parameters(node)
    for key, value in bounds.items():
        held = helper.make_tensor(key, onnx.TensorProto.FLOAT, [], [value])
        yield helper.make_node("Constant", [], [f"{tensor}/{key}"], value=held)
    yield helper.make_node("Clip", [*layer.output, *(f"{tensor}/{key}" for key in bounds)], [tensor])


def _parameters(node: onnx.NodeProto) -> dict[str, Any]:
    listed = [value for a in node.attribute if a.name == "activation_params" for value in a.floats]
    single = [a.f for key in _PARAMETERS for a in node.attribute if a.name == key]
    return dict(zip(FUSED_ACTIVATIONS[_function(node)], listed or single, strict=False))
