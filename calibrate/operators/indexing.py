"""Operators that pick, join or frame parts of tensors."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.operators.node import Node, Operator

__all__ = ["OPERATORS"]


def _concat(node: Node, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, node.integer("axis"))


def _even_parts(size: int, n_parts: int) -> list[int]:
    """Cut a size into parts of which only the last may be smaller."""
    part = -(-size // n_parts)
    return [part] * (n_parts - 1) + [size - part * (n_parts - 1)]


def _split(node: Node, x: Tensor, split: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = node.integer("axis")
    sizes = node.integers("split") if split is None else split.tolist()
    if sizes is None:
        sizes = _even_parts(x.shape[axis], node.integer("num_outputs", len(node.outputs)))
    return torch.split(x, list(sizes), axis)


def _slice(
    _node: Node,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    n = len(starts)
    along = range(n) if axes is None else axes.tolist()
    strides = [1] * n if steps is None else steps.tolist()
    for axis, start, end, step in zip(along, starts.tolist(), ends.tolist(), strides, strict=True):
        x = _slice_axis(x, axis, slice(start, end, step))
    return x


def _slice_axis(x: Tensor, axis: int, part: slice) -> Tensor:
    rows = range(*part.indices(x.shape[axis]))
    return x.narrow(axis, rows.start, len(rows)) if rows.step == 1 else _take(x, axis, rows)


def _take(x: Tensor, axis: int, rows: Sequence[int]) -> Tensor:
    return x.index_select(axis, torch.tensor(list(rows), dtype=torch.int64, device=x.device))


def _wrap(indices: Tensor, size: int) -> Tensor:
    """Let a negative index count from the end."""
    return torch.where(indices < 0, indices + size, indices).long()


def _gather(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.integer("axis") % x.ndim
    picked = x.index_select(axis, _wrap(indices, x.shape[axis]).flatten())
    return picked.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _gather_elements(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.integer("axis")
    return torch.gather(x, axis, _wrap(indices, x.shape[axis]))


def _mirror(index: int, size: int) -> int:
    period = max(2 * (size - 1), 1)
    index %= period
    return index if index < size else period - index


def _framed_rows(mode: str, size: int, before: int, after: int) -> list[int]:
    places = range(-before, size + after)
    if mode == "edge":
        return [min(max(place, 0), size - 1) for place in places]
    if mode == "wrap":
        return [place % size for place in places]
    return [_mirror(place, size) for place in places]


def _pads(x: Tensor, pads: Tensor, axes: Tensor | None) -> list[tuple[int, int, int]]:
    """Return (axis, before, after) for each axis that is padded."""
    sizes = pads.tolist()
    along = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes.tolist()]
    return list(zip(along, sizes[: len(along)], sizes[len(along) :], strict=True))


def _pad(node: Node, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    mode = node.text("mode", "constant")
    frames = _pads(x, pads, axes)
    if mode == "constant":
        return _pad_constant(x, frames, 0 if value is None else value.item())
    for axis, before, after in frames:
        x = _take(x, axis, _framed_rows(mode, x.shape[axis], before, after))
    return x


def _pad_constant(x: Tensor, frames: Sequence[tuple[int, int, int]], value: float) -> Tensor:
    sizes = [0] * (2 * x.ndim)
    for axis, before, after in frames:
        last = x.ndim - 1 - axis  # torch lists the last axis first
        sizes[2 * last], sizes[2 * last + 1] = before, after
    return F.pad(x, sizes, value=value)


def _trilu(node: Node, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return torch.triu(x, diagonal) if node.integer("upper", 1) else torch.tril(x, diagonal)


OPERATORS: Mapping[str, Operator] = {
    "Concat": _concat,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
    "Trilu": _trilu,
}
