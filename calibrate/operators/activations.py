"""Activation functions."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.operators.elementwise import plain
from calibrate.operators.node import Node, Operator

__all__ = ["OPERATORS"]


def _leaky_relu(node: Node, x: Tensor) -> Tensor:
    return F.leaky_relu(x, node.real("alpha", 0.01))


def _prelu(_node: Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _elu(node: Node, x: Tensor) -> Tensor:
    return F.elu(x, node.real("alpha", 1.0))


def _selu(node: Node, x: Tensor) -> Tensor:
    alpha = node.real("alpha", 1.67326319217681884765625)
    return node.real("gamma", 1.05070102214813232421875) * F.elu(x, alpha)


def _celu(node: Node, x: Tensor) -> Tensor:
    return F.celu(x, node.real("alpha", 1.0))


def _thresholded_relu(node: Node, x: Tensor) -> Tensor:
    return torch.where(x > node.real("alpha", 1.0), x, torch.zeros_like(x))


def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    return torch.clamp(node.real("alpha", 0.2) * x + node.real("beta", 0.5), 0, 1)


def _swish(node: Node, x: Tensor) -> Tensor:
    return x * torch.sigmoid(node.real("alpha", 1.0) * x)


def _gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=node.text("approximate", "none"))


def _shrink(node: Node, x: Tensor) -> Tensor:
    threshold, bias = node.real("lambd", 0.5), node.real("bias", 0.0)
    shrunk = torch.where(x < -threshold, x + bias, x - bias)
    return torch.where(x.abs() > threshold, shrunk, torch.zeros_like(x))


def _over_axis(function: Callable[[Tensor, int], Tensor]) -> Operator:
    def operator(node: Node, x: Tensor) -> Tensor:
        if node.opset >= 13:
            return function(x, node.integer("axis", -1))
        # Up to opset 12 all axes from `axis` on are one.
        axis = node.integer("axis", 1) % max(x.ndim, 1)
        return function(x.flatten(axis), axis).reshape(x.shape)

    return operator


OPERATORS: Mapping[str, Operator] = {
    "Celu": _celu,
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": plain(F.hardswish),
    "LeakyRelu": _leaky_relu,
    "LogSoftmax": _over_axis(torch.log_softmax),
    "Mish": plain(F.mish),
    "PRelu": _prelu,
    "Relu": plain(torch.relu),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": plain(torch.sigmoid),
    "Softmax": _over_axis(torch.softmax),
    "Softplus": plain(F.softplus),
    "Softsign": plain(F.softsign),
    "Swish": _swish,
    "Tanh": plain(torch.tanh),
    "ThresholdedRelu": _thresholded_relu,
}
