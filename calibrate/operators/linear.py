"""Convolutions and matrix products."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from calibrate.operators.elementwise import plain
from calibrate.operators.node import Node, Operator
from calibrate.operators.windows import pad_space, read_window

__all__ = ["OPERATORS"]


def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    window = read_window(node, x.shape[2:], weight.shape[2:])
    padding = window.before
    if window.before != window.after:
        x, padding = pad_space(x, window.before, window.after), (0,) * len(window.kernel)
    none = (0,) * len(window.kernel)
    groups = node.integer("group", 1)
    return torch.convolution(
        x,
        weight,
        bias,
        window.strides,
        padding,
        window.dilations,
        False,
        none,
        groups,
    )


def _crops(node: Node, space: Sequence[int], full: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return what to cut in front and at the end of the output that no padding shortens."""
    n_axes = len(space)
    shape = node.integers("output_shape")
    auto_pad = node.text("auto_pad", "NOTSET")
    if shape is None and auto_pad.startswith("SAME"):
        strides = node.integers("strides") or (1,) * n_axes
        shape = tuple(size * stride for size, stride in zip(space, strides, strict=True))
    if shape is None:
        pads = node.integers("pads") or (0,) * (2 * n_axes)
        return list(pads[:n_axes]), list(pads[n_axes:])
    totals = [size - wanted for size, wanted in zip(full, shape[-n_axes:], strict=True)]
    smaller, larger = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (smaller, larger) if auto_pad == "SAME_UPPER" else (larger, smaller)


def _conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    n_axes = x.ndim - 2
    ones, none = (1,) * n_axes, (0,) * n_axes
    strides, dilations = node.integers("strides") or ones, node.integers("dilations") or ones
    groups = node.integer("group", 1)
    y = torch.convolution(x, weight, None, strides, none, dilations, True, none, groups)
    extra = node.integers("output_padding") or none
    full = [size + more for size, more in zip(y.shape[2:], extra, strict=True)]
    before, after = _crops(node, x.shape[2:], full)
    ends = [more - cut for more, cut in zip(extra, after, strict=True)]
    y = pad_space(y, [-cut for cut in before], ends)
    return y if bias is None else y + bias.view(-1, *ones)


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if node.integer("transA") else a
    b = b.T if node.integer("transB") else b
    alpha, beta = node.real("alpha", 1.0), node.real("beta", 1.0)
    y = a @ b if alpha == 1 else (alpha * (a @ b)).to(a.dtype)
    if c is None:
        return y
    return y + (c if beta == 1 else (beta * c).to(c.dtype))


def _einsum(node: Node, *inputs: Tensor) -> Tensor:
    return torch.einsum(node.text("equation", ""), *inputs)


OPERATORS: Mapping[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": plain(torch.matmul),
}
