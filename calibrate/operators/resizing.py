"""Resize: along each axis a matrix of interpolation weights, built once from the sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor

import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.operators.node import Node, Operator

__all__ = ["OPERATORS"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """One axis that is resized from n to m places; start and end are the part that tf_crop_and_resize cuts out."""

    axis: int
    n: int
    m: int
    scale: float
    start: float
    end: float


def _fitted(node: Node, lengths: Sequence[int], wanted: Sequence[int]) -> list[tuple[int, float]]:
    """Return the new length and the scale of each axis."""
    scales = [size / n for size, n in zip(wanted, lengths, strict=True)]
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return list(zip(wanted, scales, strict=True))
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [(floor(n * scale + 0.5), scale) for n in lengths]


def _axes(node: Node, x: Tensor, roi: Tensor | None, scales: Tensor | None, sizes: Tensor | None) -> list[_Axis]:
    along = [axis % x.ndim for axis in node.integers("axes") or range(x.ndim)]
    lengths = [x.shape[axis] for axis in along]
    if sizes is not None and sizes.numel():
        fitted = _fitted(node, lengths, sizes.tolist())
    else:
        factors = [] if scales is None else scales.tolist()
        fitted = [(floor(n * factor), factor) for n, factor in zip(lengths, factors, strict=True)]
    is_cropping = node.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    parts = [0.0] * len(along) + [1.0] * len(along) if roi is None or not is_cropping else roi.tolist()
    return [
        _Axis(axis=axis, n=n, m=m, scale=scale, start=parts[i], end=parts[i + len(along)])
        for i, (axis, n, (m, scale)) in enumerate(zip(along, lengths, fitted, strict=True))
        if is_cropping or n != m
    ]


def _places(node: Node, a: _Axis) -> Tensor:
    """Return (m,) where each new place lies among the old ones."""
    i = torch.arange(a.m, dtype=torch.float64)
    places = (i + 0.5) / a.scale - 0.5
    match node.text("coordinate_transformation_mode", "half_pixel"):
        case "half_pixel_symmetric":
            places += a.n / 2 * (1 - a.m / (a.scale * a.n))
        case "pytorch_half_pixel" if a.m == 1:
            places = i
        case "align_corners":
            places = i * ((a.n - 1) / max(a.scale * a.n - 1, 1))
        case "asymmetric":
            places = i / a.scale
        case "tf_crop_and_resize" if a.m == 1:
            places = i + 0.5 * (a.start + a.end) * (a.n - 1)
        case "tf_crop_and_resize":
            places = a.start * (a.n - 1) + i * ((a.end - a.start) * (a.n - 1) / (a.m - 1))
    return places


def _nearest(node: Node, places: Tensor) -> Tensor:
    match node.text("nearest_mode", "round_prefer_floor"):
        case "round_prefer_ceil":
            return torch.floor(places + 0.5)
        case "floor":
            return torch.floor(places)
        case "ceil":
            return torch.ceil(places)
    return torch.ceil(places - 0.5)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' kernel (1981), zero beyond 2."""
    d = distance.abs()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = (((d - 5) * d + 8) * d - 4) * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _weights(node: Node, a: _Axis) -> Tensor:
    """Return (m, n) what each new place takes of the old ones; what lies outside is the edge."""
    places = _places(node, a)
    mode = node.text("mode", "nearest")
    if mode == "nearest":
        return F.one_hot(_nearest(node, places).clamp(0, a.n - 1).long(), a.n).double()
    shrink = min(a.scale, 1.0) if node.integer("antialias") else 1.0
    reach = ceil((2 if mode == "cubic" else 1) / shrink) + 1
    around = torch.floor(places)[:, None] + torch.arange(-reach, reach + 1)
    distance = (around - places[:, None]) * shrink
    weights = _cubic(distance, node.real("cubic_coeff_a", -0.75)) if mode == "cubic" else (1 - distance.abs()).relu()
    if node.integer("exclude_outside"):
        weights = weights * ((around >= 0) & (around < a.n))
    weights = weights / weights.sum(1, keepdim=True)
    return torch.zeros(a.m, a.n, dtype=torch.float64).scatter_add(1, around.clamp(0, a.n - 1).long(), weights)


def _outside(node: Node, x: Tensor, axes: Sequence[_Axis]) -> Tensor:
    """Say where tf_crop_and_resize reaches beyond the input, in a shape that broadcasts."""
    outside = torch.zeros([1] * x.ndim, dtype=torch.bool)
    for a in axes:
        places = _places(node, a)
        beyond = (places < 0) | (places > a.n - 1)
        outside = outside | beyond.reshape([-1 if axis == a.axis else 1 for axis in range(x.ndim)])
    return outside.to(x.device)


def _resize(
    node: Node, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    axes = _axes(node, x, roi, scales, sizes)
    y = x if x.is_floating_point() else x.double()
    for a in axes:
        weights = _weights(node, a).to(y)
        y = (y.movedim(a.axis, -1) @ weights.T).movedim(-1, a.axis)
    if node.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        y = y.masked_fill(_outside(node, x, axes), node.real("extrapolation_value", 0.0))
    return y.to(x.dtype)


_SAMPLING = {
    "bilinear": "bilinear",
    "linear": "bilinear",
    "nearest": "nearest",
    "bicubic": "bicubic",
    "cubic": "bicubic",
}


def _grid_sample(node: Node, x: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(
        x,
        grid,
        mode=_SAMPLING[node.text("mode", "linear")],
        padding_mode=node.text("padding_mode", "zeros"),
        align_corners=bool(node.integer("align_corners")),
    )


OPERATORS: Mapping[str, Operator] = {
    "GridSample": _grid_sample,
    "Resize": _resize,
}
