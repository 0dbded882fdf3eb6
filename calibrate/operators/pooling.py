"""Pools."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.operators.node import Node, Operator
from calibrate.operators.windows import Window, pad_space, read_window

__all__ = ["OPERATORS"]

_MAX_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGE_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def _window(node: Node, x: Tensor) -> Window:
    return read_window(node, x.shape[2:], node.integers("kernel_shape") or ())


def _ends(window: Window) -> list[int]:
    return [after + over for after, over in zip(window.after, window.overhang, strict=True)]


def _max_pool(node: Node, x: Tensor) -> Tensor:
    window = _window(node, x)
    values = x if x.is_floating_point() else x.double()
    padding = window.before
    if not window.is_even:
        values = pad_space(values, window.before, _ends(window), -torch.inf)
        padding = (0,) * len(padding)
    pool = _MAX_POOLS[x.ndim - 3]
    return pool(values, window.kernel, window.strides, padding, window.dilations).to(x.dtype)


def _sum_windows(x: Tensor, window: Window) -> Tensor:
    """Sum each window of an input that is already padded."""
    none = (0,) * len(window.kernel)
    ones = x.new_ones(1, 1, *window.kernel)
    flat = x.flatten(0, 1).unsqueeze(1)
    sums = torch.convolution(
        flat,
        ones,
        None,
        window.strides,
        none,
        window.dilations,
        False,
        none,
        1,
    )
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


def _count_windows(x: Tensor, window: Window, *, padding_counts: bool) -> Tensor:
    inside = pad_space(x.new_ones(1, 1, *x.shape[2:]), window.before, window.after, float(padding_counts))
    return _sum_windows(pad_space(inside, (0,) * len(window.overhang), window.overhang), window)


def _average_pool(node: Node, x: Tensor) -> Tensor:
    window = _window(node, x)
    padding_counts = bool(node.integer("count_include_pad"))
    if window.is_even and set(window.dilations) == {1}:
        pool = _AVERAGE_POOLS[x.ndim - 3]
        return pool(x, window.kernel, window.strides, window.before, ceil_mode=False, count_include_pad=padding_counts)
    sums = _sum_windows(pad_space(x, window.before, _ends(window)), window)
    return sums / _count_windows(x, window, padding_counts=padding_counts)


def _lp_pool(node: Node, x: Tensor) -> Tensor:
    window = _window(node, x)
    p = node.integer("p", 2)
    powers = pad_space(x.abs().pow(p), window.before, _ends(window))
    return _sum_windows(powers, window).pow(1 / p)


def _space(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _global_average_pool(_node: Node, x: Tensor) -> Tensor:
    return x.mean(_space(x), keepdim=True)


def _global_max_pool(_node: Node, x: Tensor) -> Tensor:
    return x.amax(_space(x), keepdim=True)


OPERATORS: Mapping[str, Operator] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
}
