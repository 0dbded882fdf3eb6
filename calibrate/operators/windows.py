"""Where the windows of a convolution or a pool lie."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from calibrate.operators.node import Node

__all__ = ["Window", "pad_space", "read_window"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A sliding window over the space axes, one entry per axis.

    Args:
        kernel: Window sizes in elements taken.
        strides: Steps from one window to the next.
        dilations: Steps from one element of a window to the next.
        before: Padding in front.
        after: Padding at the end.
        overhang: How far the last window of ``ceil_mode`` reaches beyond the padding.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    overhang: tuple[int, ...]

    @property
    def is_even(self) -> bool:
        """Whether torch's own padding says it all: the same at both ends, at most half a kernel."""
        half = all(2 * pad <= size for pad, size in zip(self.before, self.kernel, strict=True))
        return half and self.before == self.after and not any(self.overhang)


def _same_pads(size: int, extent: int, stride: int, *, lower: bool) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + extent - size, 0)
    smaller, larger = total // 2, total - total // 2
    return (larger, smaller) if lower else (smaller, larger)


def _pads(node: Node, space: Sequence[int], extents: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    n_axes = len(space)
    auto_pad = node.text("auto_pad", "NOTSET")
    if auto_pad.startswith("SAME"):
        lower = auto_pad == "SAME_LOWER"
        sizes = zip(space, extents, strides, strict=True)
        return [_same_pads(size, extent, stride, lower=lower) for size, extent, stride in sizes]
    pads = (node.integers("pads") if auto_pad == "NOTSET" else None) or (0,) * (2 * n_axes)
    return list(zip(pads[:n_axes], pads[n_axes:], strict=True))


def _overhang(size: int, extent: int, stride: int, pads: tuple[int, int]) -> int:
    steps = -(-(size + sum(pads) - extent) // stride)
    if steps * stride >= size + pads[0]:  # a window that starts in the padding at the end does not count
        return 0
    return max(steps * stride + extent - size - sum(pads), 0)


def read_window(node: Node, space: Sequence[int], kernel: Sequence[int]) -> Window:
    """Read a node's window.

    Args:
        node: A convolution or a pool.
        space: The input's sizes along the space axes.
        kernel: The kernel's sizes along the same axes.
    """
    ones = (1,) * len(kernel)
    strides, dilations = node.integers("strides") or ones, node.integers("dilations") or ones
    extents = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    pads = _pads(node, space, extents, strides)
    overhang = (0,) * len(kernel)
    if node.integer("ceil_mode") and node.text("auto_pad", "NOTSET") == "NOTSET":
        axes = zip(space, extents, strides, pads, strict=True)
        overhang = tuple(_overhang(*axis) for axis in axes)
    return Window(
        kernel=tuple(kernel),
        strides=strides,
        dilations=dilations,
        before=tuple(before for before, _ in pads),
        after=tuple(after for _, after in pads),
        overhang=overhang,
    )


def pad_space(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the trailing axes, one entry per axis; a negative entry crops."""
    if not any(before) and not any(after):
        return x
    pairs = zip(reversed(before), reversed(after), strict=True)
    return F.pad(x, [size for pair in pairs for size in pair], value=value)
