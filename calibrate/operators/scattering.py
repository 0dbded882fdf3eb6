"""Operators whose indices are data: gathering and scattering, masks, running sums."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.operators.node import TORCH_TYPES, Node, Operator

__all__ = ["OPERATORS"]

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Let a negative index count from the end."""
    return torch.where(indices < 0, indices + size, indices).long()


def _scatter(node: Node, x: Tensor, axis: int, indices: Tensor, updates: Tensor) -> Tensor:
    reduction = node.text("reduction", "none")
    if reduction == "none":
        return x.scatter(axis, indices, updates)
    return x.scatter_reduce(axis, indices, updates, _REDUCTIONS[reduction], include_self=True)


def _scatter_elements(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis = node.integer("axis")
    return _scatter(node, x, axis, _wrapped(indices, x.shape[axis]), updates)


def _flat_places(indices: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return (...) the places that (..., k) indices mean in an array of these k sizes, row by row."""
    places = torch.zeros_like(indices[..., 0], dtype=torch.int64)
    for axis, size in enumerate(sizes):
        places = places * size + _wrapped(indices[..., axis], size)
    return places


def _scatter_nd(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    k = indices.shape[-1]
    rows = x.reshape(x.shape[:k].numel(), -1)
    places = _flat_places(indices, x.shape[:k]).reshape(-1, 1).expand(-1, rows.shape[1])
    return _scatter(node, rows, 0, places, updates.reshape(places.shape)).reshape(x.shape)


def _gather_nd(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    n_batch, k = node.integer("batch_dims"), indices.shape[-1]
    batch, sizes, rest = x.shape[:n_batch], x.shape[n_batch : n_batch + k], x.shape[n_batch + k :]
    rows = x.reshape(batch.numel(), sizes.numel(), *rest)
    places = _flat_places(indices, sizes).reshape(batch.numel(), -1)
    picked = rows[torch.arange(len(rows), device=x.device)[:, None], places]
    return picked.reshape([*indices.shape[:-1], *rest])


def _one_hot(node: Node, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    n = int(depth)
    within = (indices >= -n) & (indices < n)
    hot = F.one_hot(torch.where(within, _wrapped(indices, n), 0), n).bool() & within.unsqueeze(-1)
    off, on = values
    return torch.where(hot, on, off).movedim(-1, node.integer("axis", -1))


def _hardmax(node: Node, x: Tensor) -> Tensor:
    axis = node.integer("axis", -1 if node.opset >= 13 else 1)
    if node.opset >= 13:
        return F.one_hot(x.argmax(axis), x.shape[axis]).movedim(-1, axis).to(x.dtype)
    rows = x.flatten(axis % x.ndim).flatten(0, axis % x.ndim - 1) if axis % x.ndim else x.flatten()[None]
    return F.one_hot(rows.argmax(1), rows.shape[1]).reshape(x.shape).to(x.dtype)


def _cumulative_sum(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    along = int(axis) % x.ndim
    x = x.flip(along) if node.integer("reverse") else x
    sums = x.cumsum(along, dtype=x.dtype)
    if node.integer("exclusive"):
        sums = sums - x
    return sums.flip(along) if node.integer("reverse") else sums


def _non_zero(_node: Node, x: Tensor) -> Tensor:
    return x.nonzero().T


def _compress(node: Node, x: Tensor, condition: Tensor) -> Tensor:
    axis = node.attributes.get("axis")
    x, along = (x.flatten(), 0) if axis is None else (x, int(axis))
    return x.index_select(along, condition.nonzero().flatten())


def _eye_like(node: Node, x: Tensor) -> Tensor:
    dtype = TORCH_TYPES[node.integer("dtype")] if "dtype" in node.attributes else x.dtype
    diagonal = torch.ones(x.shape, device=x.device).triu(node.integer("k")).tril(node.integer("k"))
    return diagonal.to(dtype)


OPERATORS: Mapping[str, Operator] = {
    "Compress": _compress,
    "CumSum": _cumulative_sum,
    "EyeLike": _eye_like,
    "GatherND": _gather_nd,
    "Hardmax": _hardmax,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
}
