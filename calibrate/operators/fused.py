"""What onnxruntime fuses when it saves a graph that it has optimised: the domain com.microsoft."""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.operators import activations, elementwise, linear, normalization
from calibrate.operators.node import Node, Operator

__all__ = ["FUSED_ACTIVATIONS", "OPERATORS"]

FUSED_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "Clip": ("min", "max"),
    "HardSigmoid": ("alpha", "beta"),
    "LeakyRelu": ("alpha",),
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
}
"""Activations that a convolution or a matrix product is fused with, and the names of their parameters."""


def _activated(node: Node, y: Tensor) -> Tensor:
    """Apply the activation that the node names."""
    name = node.text("activation", "")
    if not name:
        return y
    keys = ("activation_alpha", "activation_beta", "activation_gamma")  # FusedGemm's; FusedConv lists them
    single = [node.attributes[key] for key in keys if key in node.attributes]
    values = node.attributes.get("activation_params", single)
    parameters = dict(zip(FUSED_ACTIVATIONS[name], values, strict=False))
    known = {**activations.OPERATORS, "Clip": elementwise.OPERATORS["Clip"]}
    return cast("Tensor", known[name](replace(node, op_type=name, attributes=parameters), y))


def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None, added: Tensor | None = None) -> Tensor:
    y = cast("Tensor", linear.OPERATORS["Conv"](node, x, weight, bias))
    return _activated(node, y if added is None else y + added)


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    return _activated(node, cast("Tensor", linear.OPERATORS["Gemm"](node, a, b, c)))


def _matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    a = a.transpose(-1, -2) if node.integer("transA") else a
    b = b.transpose(-1, -2) if node.integer("transB") else b
    return node.real("alpha", 1.0) * (a @ b)


def _bias_gelu(_node: Node, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias)


def _fast_gelu(_node: Node, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def _quick_gelu(node: Node, x: Tensor) -> Tensor:
    return x * torch.sigmoid(node.real("alpha", 1.702) * x)


def _skip_layer_normalization(
    node: Node, x: Tensor, skip: Tensor, gamma: Tensor, beta: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    total = x + skip if bias is None else x + skip + bias
    attributes = {"epsilon": node.real("epsilon", 1e-12)}
    made = normalization.OPERATORS["LayerNormalization"](replace(node, attributes=attributes), total, gamma, beta)
    return (*made, total)


OPERATORS: Mapping[str, Operator] = {
    "BiasGelu": _bias_gelu,
    "FastGelu": _fast_gelu,
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "FusedMatMul": _matmul,
    "Gelu": _bias_gelu,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_layer_normalization,
}
