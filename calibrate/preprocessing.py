"""From pixels to what a model takes: scale, normalise, lay out, cast."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from guard.errors import InputError
from guard.types import TensorSpec

__all__ = [
    "FLOATS",
    "ImageShape",
    "Layout",
    "Pixels",
    "Prepare",
    "Preprocessing",
    "image_shape",
    "input_channel_axis",
    "lay_out",
    "preprocess",
    "raw_images",
]

Pixels = NDArray[np.uint8]
Layout = Literal["nchw", "nhwc"]
"""The order of the axes of images as a model takes them."""

Prepare = Callable[[NDArray[Any]], NDArray[Any]]
"""Makes rows of samples model-ready, in new memory."""

FLOATS = frozenset({"float16", "float32", "float64"})
_INTEGERS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_DECODABLE_CHANNELS = (1, 3, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageShape:
    """The channels, height and width that a model takes; None where free."""

    channels: int | None
    height: int | None
    width: int | None

    def __str__(self) -> str:
        height, width = ("free" if n is None else str(n) for n in (self.height, self.width))
        return f"height {height}, width {width}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How pixels become a model's input: (pixel / scale - mean) / std, laid out.

    Args:
        scale: What pixels are divided by.
        mean: Subtracted after scaling: one value, or one per channel.
        std: Divided by after that: one value, or one per channel.
        layout: The order of the model's axes.
    """

    scale: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Layout = "nchw"

    def __post_init__(self) -> None:
        """Refuse what cannot be divided by."""
        if not all(math.isfinite(x) and x > 0 for x in (self.scale, *self.std)):
            raise InputError(f"scale {self.scale} and std {self.std} must be finite and positive; correct them")
        if not all(math.isfinite(x) for x in self.mean):
            raise InputError(f"mean {self.mean} must be finite; correct it")
        if self.layout not in ("nchw", "nhwc"):
            raise InputError(f"layout {self.layout!r} is unknown; use 'nchw' or 'nhwc'")


def image_shape(spec: TensorSpec, layout: Layout) -> ImageShape:
    """Read channels, height and width off a model's input.

    Raises:
        InputError: The input is no batch of images in this layout.
    """
    if len(spec.shape) != 4:
        raise InputError(f"the model's input {spec} is no batch of images; give model-ready arrays in an .npz or .npy")
    _, *axes = spec.shape
    channels, height, width = axes if layout == "nchw" else (axes[2], axes[0], axes[1])
    other = axes[2] if layout == "nchw" else axes[0]
    if channels not in (None, *_DECODABLE_CHANNELS) and other in _DECODABLE_CHANNELS:
        raise InputError(
            f"the model's input {spec} has {channels} channels in layout {layout}; "
            f"use layout {'nhwc' if layout == 'nchw' else 'nchw'}"
        )
    return ImageShape(channels=channels, height=height, width=width)


def input_channel_axis(shape: Sequence[int], layout: Layout) -> int | None:
    """Return the axis of the channels of model-ready inputs; None where none is told from the others.

    Model-ready arrays may lie the other way round than a layout that nobody gave: the last axis of images counts where
    its size is that of decoded images and less than axis 1's.

    Args:
        shape: (N, ...) of the inputs.
        layout: What the caller says of images.
    """
    match len(shape):
        case 0 | 1:
            return None
        case 2:
            return 1
        case 3:
            return 1 if shape[1] < shape[2] else 2 if shape[2] < shape[1] else None
        case 4 if shape[3] in _DECODABLE_CHANNELS and shape[3] < shape[1]:
            return 3
        case _:
            return 1 if layout == "nchw" else len(shape) - 1


def raw_images(pixels: Pixels, spec: TensorSpec, preprocessing: Preprocessing) -> tuple[NDArray[Any], Prepare]:
    """Pair pixels with what is left to do to them: nothing where the model takes integers."""
    if spec.dtype not in FLOATS | _INTEGERS:
        raise InputError(f"the model's input {spec} takes neither floats nor integers; export it with float32")
    if spec.dtype == "int8":
        raise InputError(f"pixels from 0 to 255 do not fit the model's input {spec}; give model-ready int8 arrays")
    if spec.dtype in _INTEGERS:
        return lay_out(pixels, preprocessing.layout, np.dtype(spec.dtype)), np.array
    channels = pixels.shape[3]
    for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
        if len(values) not in (1, channels):
            raise InputError(
                f"{name} {values} has {len(values)} values, the images have {channels} channels; "
                "give one value, or one per channel"
            )
    return pixels, partial(preprocess, preprocessing=preprocessing, dtype=np.dtype(spec.dtype))


def preprocess(pixels: Pixels, preprocessing: Preprocessing, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return (pixel / scale - mean) / std, laid out for the model.

    Args:
        pixels: (n, H, W, channels).
        preprocessing: What to do.
        dtype: The model's floating-point type. Computed in float32 at least, as frameworks do it.
    """
    working = np.result_type(np.float32, dtype)
    values = pixels.astype(working)
    values /= working.type(preprocessing.scale)
    values -= np.asarray(preprocessing.mean, dtype=working)
    values /= np.asarray(preprocessing.std, dtype=working)
    return lay_out(values, preprocessing.layout, dtype)


def lay_out(values: NDArray[Any], layout: Layout, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Bring (n, H, W, channels) into the model's layout and type."""
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2) if layout == "nchw" else values, dtype=dtype)
