"""Where in an image the bounds bite, and the image with that place hidden."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from guard.types import FloatArray

__all__ = ["excess_map", "hide", "strongest_place"]

_COARSEST = 4  # maps more than so many times coarser than the finest one place nothing


def excess_map(maps: Sequence[FloatArray]) -> FloatArray:
    """Return (N, H, W), at the finest map's size, the sum over maps of log(1 + excess).

    Args:
        maps: (N, h, w) each: how far activations at this place went past their bounds, in clean standard deviations.
            Much coarser maps than the finest are left out: one of their cells is most of the image.
    """
    finest = max(maps, key=lambda m: m.shape[1] * m.shape[2])
    n, height, width = finest.shape
    total = np.zeros((n, height, width))
    for found in maps:
        h, w = found.shape[1:]
        if h * _COARSEST >= height and w * _COARSEST >= width:
            rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
            total += np.log1p(found.astype(np.float64))[:, rows][:, :, columns]
    return total


def strongest_place(excess: FloatArray) -> FloatArray:
    """Return (N, 2) the middle of the cell with the greatest excess, as fractions of height and width."""
    height, width = excess.shape[1:]
    flat = excess.reshape(len(excess), -1).argmax(axis=1)
    return np.stack([(flat // width + 0.5) / height, (flat % width + 0.5) / width], axis=1)


def hide(
    images: NDArray[Any], places: FloatArray, *, share: float, fill: FloatArray, layout: Literal["nchw", "nhwc"]
) -> NDArray[Any]:
    """Return the images with a square filled around each one's place.

    Args:
        images: (N, channels, H, W) or (N, H, W, channels), as the layout says.
        places: (N, 2) its middle, as fractions of height and width; moved so that the square lies inside.
        share: The square's side as a fraction of the shorter side of the image.
        fill: (channels,) what it is filled with.
        layout: Of the images.
    """
    hidden = images.copy()
    view = hidden if layout == "nhwc" else np.moveaxis(hidden, 1, -1)
    height, width = view.shape[1:3]
    side = math.ceil(share * min(height, width))
    for image, (y, x) in zip(view, places, strict=True):
        top, left = _start(y, side, height), _start(x, side, width)
        image[top : top + side, left : left + side] = fill
    return hidden


def _start(middle: float, side: int, length: int) -> int:
    return min(max(int(middle * length - side / 2), 0), length - side)
