"""Other views of an image that show the same thing: moved a little, and blurred a little."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["views"]

_STEP = 1 / 16  # how far an image is moved and blurred, of its shorter side


def views(images: NDArray[Any], layout: Literal["nchw", "nhwc"]) -> Iterator[NDArray[Any]]:
    """Yield the images moved down and right, and blurred; their edges are continued.

    Args:
        images: (N, channels, H, W) or (N, H, W, channels), as the layout says.
        layout: Of the images.
    """
    axes = (2, 3) if layout == "nchw" else (1, 2)
    step = max(round(_STEP * min(images.shape[axis] for axis in axes)), 1)
    yield _moved(images, axes, step)
    yield _blurred(images, axes, max(step, 2))


def _moved(images: NDArray[Any], axes: tuple[int, ...], step: int) -> NDArray[Any]:
    for axis in axes:
        n = images.shape[axis]
        images = images.take(np.clip(np.arange(n) - step, 0, n - 1), axis=axis)
    return images


def _blurred(images: NDArray[Any], axes: tuple[int, ...], width: int) -> NDArray[Any]:
    """Return means over triangles of 2 width - 1 pixels along each axis."""
    weights = (np.convolve(np.ones(width), np.ones(width)) / width**2).astype(images.dtype)
    for axis in axes:
        shifts = range(1 - width, width)
        images = sum(w * _moved(images, (axis,), shift) for w, shift in zip(weights, shifts, strict=True))
    return images
