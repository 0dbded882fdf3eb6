"""Normalisations, as they run at inference."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.operators.node import TORCH_TYPES, Node, Operator
from guard.errors import CalibrationError

__all__ = ["OPERATORS"]

_FLOAT = 1  # onnx.TensorProto.FLOAT, the type that statistics are computed in unless a node says otherwise


def _batch_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    scale, bias, mean, variance = (value.to(x.dtype) for value in (scale, bias, mean, variance))
    return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=node.real("epsilon", 1e-5))


def _instance_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return torch.group_norm(x, x.shape[1], scale, bias, node.real("epsilon", 1e-5))


def _group_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.integer("num_groups")
    if node.opset < 21:  # one scale per group; from opset 21 on one per channel
        scale, bias = (value.repeat_interleave(x.shape[1] // groups) for value in (scale, bias))
    return torch.group_norm(x, groups, scale, bias, node.real("epsilon", 1e-5))


def _tail_axes(node: Node, x: Tensor) -> tuple[int, ...]:
    return tuple(range(node.integer("axis", -1) % x.ndim, x.ndim))


def _layer_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
    axes = _tail_axes(node, x)
    values = x.to(TORCH_TYPES[node.integer("stash_type", _FLOAT)])
    mean = values.mean(axes, keepdim=True)
    centred = values - mean
    inverse = torch.rsqrt(centred.square().mean(axes, keepdim=True) + node.real("epsilon", 1e-5))
    y = (centred * inverse).to(x.dtype) * scale
    return (y if bias is None else y + bias), mean, inverse


def _rms_normalization(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    values = x.to(TORCH_TYPES[node.integer("stash_type", _FLOAT)])
    square = values.square().mean(_tail_axes(node, x), keepdim=True)
    return (values * torch.rsqrt(square + node.real("epsilon", 1e-5))).to(x.dtype) * scale


def _lp_normalization(node: Node, x: Tensor) -> Tensor:
    axis = node.integer("axis", -1)
    norm = torch.linalg.vector_norm(x, node.integer("p", 2), axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def _local_response_normalization(node: Node, x: Tensor) -> Tensor:
    size = node.integer("size", 1)
    pads = [0, 0] * (x.ndim - 2) + [(size - 1) // 2, size // 2]
    sums = F.pad(x.square(), pads).unfold(1, size, 1).sum(-1)
    base = node.real("bias", 1.0) + node.real("alpha", 1e-4) / size * sums
    return x / base.pow(node.real("beta", 0.75))


def _dropout(
    node: Node, x: Tensor, _ratio: Tensor | None = None, training: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    if training is not None and bool(training):
        raise CalibrationError(
            f"{node} runs in training mode and answers at random; expected a model exported for inference: "
            "call model.eval() before exporting"
        )
    return x, torch.ones_like(x, dtype=torch.bool)


OPERATORS: Mapping[str, Operator] = {
    "BatchNormalization": _batch_normalization,
    "Dropout": _dropout,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LRN": _local_response_normalization,
    "LayerNormalization": _layer_normalization,
    "LpNormalization": _lp_normalization,
    "RMSNormalization": _rms_normalization,
}
