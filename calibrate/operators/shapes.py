"""Operators that make, read or change a tensor's shape and leave its values alone."""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from calibrate.operators.node import Node, Operator, read_tensor

__all__ = ["OPERATORS"]


def _constant(node: Node) -> Tensor:
    if "value" in node.attributes:
        return read_tensor(node.attributes["value"])
    (value,) = node.attributes.values()
    first = value[0] if isinstance(value, Sequence) and value else value
    return torch.tensor(value, dtype=torch.int64 if isinstance(first, int) else torch.float32)


def _constant_of_shape(node: Node, shape: Tensor) -> Tensor:
    value = torch.zeros(1) if "value" not in node.attributes else read_tensor(node.attributes["value"])
    return torch.full(shape.tolist(), value.item(), dtype=value.dtype, device=shape.device)


def _range(_node: Node, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    ends = start.item(), limit.item(), delta.item()
    return torch.arange(*ends, dtype=start.dtype, device=start.device)


def _shape(node: Node, x: Tensor) -> Tensor:
    end = node.integer("end", x.ndim)
    return torch.tensor(x.shape[node.integer("start") : end], dtype=torch.int64)


def _size(_node: Node, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


def _reshape(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    wanted = shape.tolist()
    if not node.integer("allowzero"):
        wanted = [size or x.shape[axis] for axis, size in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.integer("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


def _given_axes(node: Node, axes: Tensor | None) -> tuple[int, ...] | None:
    """Read ``axes``, up to opset 12 an attribute, an input from 13 on."""
    return node.integers("axes") if axes is None else tuple(axes.flatten().tolist())  # some write a scalar


def _squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = _given_axes(node, axes)
    return x.squeeze() if given is None else x.squeeze(given)


def _unsqueeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = _given_axes(node, axes) or ()
    ndim = x.ndim + len(given)
    for axis in sorted(axis % ndim for axis in given):
        x = x.unsqueeze(axis)
    return x


def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.integers("perm") or tuple(reversed(range(x.ndim))))


def _expand(_node: Node, x: Tensor, shape: Tensor) -> Tensor:
    # A size of one gives way on either side, which torch does only for the tensor's own.
    sizes = [1] * (x.ndim - len(shape)) + shape.tolist()
    own = [1] * (len(sizes) - x.ndim) + list(x.shape)
    return x.expand([have if want == 1 else want for want, have in zip(sizes, own, strict=True)])


def _tile(_node: Node, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(repeats.tolist())


def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    n, k, h, w = x.shape
    block = node.integer("blocksize")
    if node.text("mode", "DCR") == "CRD":
        blocks = x.reshape(n, -1, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    else:
        blocks = x.reshape(n, block, block, -1, h, w).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(n, k // block**2, h * block, w * block)


def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    n, k, h, w = x.shape
    block = node.integer("blocksize")
    order = (0, 1, 3, 5, 2, 4) if node.text("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    blocks = x.reshape(n, k, h // block, block, w // block, block).permute(order)
    return blocks.reshape(n, k * block**2, h // block, w // block)


OPERATORS: Mapping[str, Operator] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "SpaceToDepth": _space_to_depth,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
