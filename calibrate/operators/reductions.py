"""Reductions along axes."""

from collections.abc import Callable, Mapping
from functools import reduce
from math import prod

import torch
from torch import Tensor

from calibrate.operators.node import Node, Operator

__all__ = ["OPERATORS"]

_Axes = tuple[int, ...]
_Reduction = Callable[[Tensor, _Axes, bool], Tensor]


def _axes(node: Node, x: Tensor, axes: Tensor | None) -> _Axes:
    given = node.integers("axes") if axes is None else tuple(axes.tolist())
    if given:
        return tuple(axis % x.ndim for axis in given)
    return () if node.integer("noop_with_empty_axes") else tuple(range(x.ndim))


def _over_axes(function: _Reduction) -> Operator:
    """Make an operator of function(x, axes, keepdim); ``axes`` was an attribute, later an input."""

    def operator(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        along = _axes(node, x, axes)
        if not along:  # torch reads no axes as all of them
            return function(x.unsqueeze(0), (0,), False).to(x.dtype)
        return function(x, along, bool(node.integer("keepdims", 1))).to(x.dtype)

    return operator


def _float(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.double()


def _smallest(dtype: torch.dtype) -> float:
    if dtype.is_floating_point:
        return -torch.inf
    return 0 if dtype == torch.bool else torch.iinfo(dtype).min


def _largest(dtype: torch.dtype) -> float:
    if dtype.is_floating_point:
        return torch.inf
    return 1 if dtype == torch.bool else torch.iinfo(dtype).max


def _is_empty(x: Tensor, axes: _Axes) -> bool:
    return prod(x.shape[axis] for axis in axes) == 0


def _constant(x: Tensor, axes: _Axes, keepdim: bool, value: float) -> Tensor:
    return torch.full_like(x.sum(axes, keepdim), value, dtype=x.dtype)


def _max(x: Tensor, axes: _Axes, keepdim: bool) -> Tensor:
    if _is_empty(x, axes):
        return _constant(x, axes, keepdim, _smallest(x.dtype))
    return x.amax(axes, keepdim)


def _min(x: Tensor, axes: _Axes, keepdim: bool) -> Tensor:
    if _is_empty(x, axes):
        return _constant(x, axes, keepdim, _largest(x.dtype))
    return x.amin(axes, keepdim)


def _product(x: Tensor, axes: _Axes, keepdim: bool) -> Tensor:
    return reduce(lambda y, axis: y.prod(axis, keepdim), sorted(axes, reverse=True), x)


def _norm(order: float) -> _Reduction:
    # The norm has a gradient at zero, the square root of a sum has none.
    return lambda x, axes, keepdim: torch.linalg.vector_norm(_float(x), order, axes, keepdim)


def _extreme(function: Callable[[Tensor, int, bool], Tensor]) -> Operator:
    def operator(node: Node, x: Tensor) -> Tensor:
        axis, keepdims = node.integer("axis"), bool(node.integer("keepdims", 1))
        if not node.integer("select_last_index"):
            return function(x, axis, keepdims)
        return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdims)

    return operator


def _top_k(node: Node, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    axis = node.integer("axis", -1)
    values, indices = torch.sort(x, dim=axis, descending=bool(node.integer("largest", 1)), stable=True)
    return values.narrow(axis, 0, int(k)), indices.narrow(axis, 0, int(k))


OPERATORS: Mapping[str, Operator] = {
    "ArgMax": _extreme(torch.argmax),
    "ArgMin": _extreme(torch.argmin),
    "ReduceL1": _over_axes(_norm(1)),
    "ReduceL2": _over_axes(_norm(2)),
    "ReduceLogSum": _over_axes(lambda x, axes, keepdim: x.sum(axes, keepdim).log()),
    "ReduceLogSumExp": _over_axes(lambda x, axes, keepdim: _float(x).logsumexp(axes, keepdim)),
    "ReduceMax": _over_axes(_max),
    "ReduceMean": _over_axes(lambda x, axes, keepdim: _float(x).mean(axes, keepdim)),
    "ReduceMin": _over_axes(_min),
    "ReduceProd": _over_axes(_product),
    "ReduceSum": _over_axes(lambda x, axes, keepdim: x.sum(axes, keepdim)),
    "ReduceSumSquare": _over_axes(lambda x, axes, keepdim: x.square().sum(axes, keepdim)),
    "TopK": _top_k,
}
