"""Arithmetic, comparison, logic and choice: operators that broadcast element by element."""

from collections.abc import Callable, Mapping
from functools import reduce

import torch
from torch import Tensor

from calibrate.operators.node import TORCH_TYPES, Node, Operator

__all__ = ["OPERATORS", "plain"]


def plain(function: Callable[..., Tensor]) -> Operator:
    """Make an operator of a function that needs nothing but the inputs."""

    def operator(_node: Node, *inputs: Tensor | None) -> Tensor:
        return function(*inputs)

    return operator


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def operator(_node: Node, *inputs: Tensor) -> Tensor:
        return reduce(function, inputs)

    return operator


def _mean(_node: Node, *inputs: Tensor) -> Tensor:
    return reduce(torch.add, inputs) / len(inputs)


def _div(_node: Node, a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


def _mod(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if node.integer("fmod") else torch.remainder(a, b)


def _pow(_node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def _clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if node.attributes:
        return torch.clamp(x, node.attributes.get("min"), node.attributes.get("max"))
    return x if low is None and high is None else torch.clamp(x, low, high)


def _cast(node: Node, x: Tensor) -> Tensor:
    return x.to(TORCH_TYPES[node.integer("to")])


def _is_infinite(node: Node, x: Tensor) -> Tensor:
    positive = torch.isposinf(x) & bool(node.integer("detect_positive", 1))
    negative = torch.isneginf(x) & bool(node.integer("detect_negative", 1))
    return positive | negative


OPERATORS: Mapping[str, Operator] = {
    "Abs": plain(torch.abs),
    "Acos": plain(torch.acos),
    "Acosh": plain(torch.acosh),
    "Add": plain(torch.add),
    "And": plain(torch.logical_and),
    "Asin": plain(torch.asin),
    "Asinh": plain(torch.asinh),
    "Atan": plain(torch.atan),
    "Atanh": plain(torch.atanh),
    "BitwiseAnd": plain(torch.bitwise_and),
    "BitwiseNot": plain(torch.bitwise_not),
    "BitwiseOr": plain(torch.bitwise_or),
    "BitwiseXor": plain(torch.bitwise_xor),
    "Cast": _cast,
    "CastLike": plain(Tensor.type_as),
    "Ceil": plain(torch.ceil),
    "Clip": _clip,
    "Cos": plain(torch.cos),
    "Cosh": plain(torch.cosh),
    "Div": _div,
    "Equal": plain(torch.eq),
    "Erf": plain(torch.erf),
    "Exp": plain(torch.exp),
    "Floor": plain(torch.floor),
    "Greater": plain(torch.gt),
    "GreaterOrEqual": plain(torch.ge),
    "Identity": plain(lambda x: x),
    "IsInf": _is_infinite,
    "IsNaN": plain(torch.isnan),
    "Less": plain(torch.lt),
    "LessOrEqual": plain(torch.le),
    "Log": plain(torch.log),
    "Max": _variadic(torch.maximum),
    "Mean": _mean,
    "Min": _variadic(torch.minimum),
    "Mod": _mod,
    "Mul": plain(torch.mul),
    "Neg": plain(torch.neg),
    "Not": plain(torch.logical_not),
    "Or": plain(torch.logical_or),
    "Pow": _pow,
    "Reciprocal": plain(torch.reciprocal),
    "Round": plain(torch.round),
    "Sign": plain(torch.sign),
    "Sin": plain(torch.sin),
    "Sinh": plain(torch.sinh),
    "Sqrt": plain(torch.sqrt),
    "Sub": plain(torch.sub),
    "Sum": _variadic(torch.add),
    "Tan": plain(torch.tan),
    "Where": plain(torch.where),
    "Xor": plain(torch.logical_xor),
}
