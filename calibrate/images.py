"""Decode images and bring them to the channels and the size that a model takes."""

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from calibrate.image_sets import ImageSet
from calibrate.preprocessing import ImageShape, Pixels
from calibrate.sites import Progress
from guard.errors import InputError
from guard.types import IntArray

__all__ = ["ReadImages", "fit_array", "read_image", "read_images"]

# Only these decoders run: some of Pillow's others start programs, as the one for EPS does.
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_MAX_SKIPPED = 0.01
# What Pillow raises on damaged files, which it does not keep to one type.
_UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError),
    *(AttributeError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadImages:
    """Decoded images.

    Args:
        pixels: (n, H, W, channels) those that could be read, in the order asked for.
        rows: (n,) their indices in the image set.
        skipped: The names of those that could not be read.
    """

    pixels: Pixels
    rows: IntArray
    skipped: tuple[str, ...]


def read_images(images: ImageSet, rows: IntArray, *, shape: ImageShape, progress: Progress) -> ReadImages:
    """Decode the images with these indices and bring them to the model's channels and size.

    Args:
        images: Where they are.
        rows: (n,) indices, in the order in which the images shall come back.
        shape: What the model takes. Where its height or width is free, all images must share one size.
        progress: Told after each image.

    Returns:
        The images. Where the model's channels are free, they have three.

    Raises:
        InputError: More than 1 % of the images are unreadable, their sizes differ and the model fixes none,
            or the model's channels are none that images have.
    """
    if shape.channels not in (None, *_MODES):
        raise InputError(f"the model takes {shape.channels} channels, images have 1, 3 or 4; give arrays instead")
    canvas: list[Pixels] = []
    failures: dict[int, str] = {}
    for done, at in enumerate(np.argsort(images.offsets[rows]).tolist(), 1):
        name = images.names[rows[at]]
        pixels = _decode_or_explain(images, int(rows[at]), shape.channels or 3)
        if isinstance(pixels, str):
            failures[at] = pixels
        else:
            _paste(_fit(pixels, shape, name=name), canvas, at=at, n=len(rows), name=name)
        progress("read images", done, len(rows))
    _check_failures([f"{images.names[rows[at]]!r} ({why})" for at, why in failures.items()], n=len(rows))
    kept = np.setdiff1d(np.arange(len(rows)), list(failures))
    return ReadImages(
        pixels=canvas[0][kept] if failures else canvas[0],
        rows=rows[kept],
        skipped=tuple(sorted(images.names[rows[at]] for at in failures)),
    )


def read_image(path: Path, shape: ImageShape) -> Pixels:
    """Decode one image file and bring it to the model's channels and size: (1, H, W, channels).

    Raises:
        InputError: It cannot be read, or does not fit.
    """
    if shape.channels not in (None, *_MODES):
        raise InputError(f"the model takes {shape.channels} channels, images have 1, 3 or 4; give arrays instead")
    try:
        pixels = _decode(path.read_bytes(), shape.channels or 3)
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is no image of a known format; give {', '.join(_FORMATS)}, .npz or .npy") from error
    except _UNREADABLE as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path} cannot be read as an image ({reason}); repair it") from error
    return _fit(pixels, shape, name=str(path))[None]


def fit_array(images: Pixels, rows: IntArray, *, shape: ImageShape, progress: Progress) -> Pixels:
    """Take these rows of an array of images and bring them to the model's size.

    Args:
        images: (N, H, W, channels).
        rows: (n,) indices, in the order in which the images shall come back.
        shape: What the model takes.
        progress: Told after each image that is resized.

    Raises:
        InputError: The model fixes only one of height and width, and the images have another.
    """
    height, width = images.shape[1:3]
    if (shape.height or height, shape.width or width) == (height, width):
        return images[rows]
    canvas: list[Pixels] = []
    for at, row in enumerate(rows.tolist()):
        _paste(_fit(images[row], shape, name=f"row {row}"), canvas, at=at, n=len(rows), name=f"row {row}")
        progress("read images", at + 1, len(rows))
    return canvas[0]


def _fit(pixels: Pixels, shape: ImageShape, *, name: str) -> Pixels:
    height, width = pixels.shape[:2]
    if (shape.height or height, shape.width or width) == (height, width):
        return pixels
    if shape.height is None or shape.width is None:
        raise InputError(f"{name!r} is {height} x {width}, the model takes {shape}; resize the images to fit")
    return _resize(pixels, shape.height, shape.width)


def _resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Resize (H, W, channels) bilinearly, with antialias where it shrinks."""
    # Channel by channel: Pillow would weight the colours of a four-channel image by the fourth.
    planes = (Image.fromarray(pixels[:, :, k]) for k in range(pixels.shape[2]))
    return np.stack([np.asarray(p.resize((width, height), Image.Resampling.BILINEAR)) for p in planes], axis=-1)


def _decode_or_explain(images: ImageSet, index: int, channels: int) -> Pixels | str:
    try:
        return _decode(images.read(index), channels)
    except UnidentifiedImageError:
        return "no image of a known format"
    except _UNREADABLE as error:
        return next(iter(str(error).splitlines()), type(error).__name__)


def _decode(data: bytes, channels: int) -> Pixels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # odd metadata: the pixels are whole, or loading fails
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"mode {image.mode}, more than 8 bits per channel; convert it to 8 bits")
            return np.array(image.convert(_MODES[channels])).reshape(image.height, image.width, channels)


def _paste(pixels: Pixels, canvas: list[Pixels], *, at: int, n: int, name: str) -> None:
    """Put an image into its row; the first one sets the size, so that all are held once and no more."""
    if not canvas:
        canvas.append(np.empty((n, *pixels.shape), dtype=np.uint8))
    if canvas[0].shape[1:] != pixels.shape:
        sizes = [f"{shape[0]} x {shape[1]}" for shape in (pixels.shape, canvas[0].shape[1:])]
        raise InputError(
            f"{name!r} is {sizes[0]}, others are {sizes[1]}, and the model leaves the size free: "
            "all images must share one size; resize them"
        )
    canvas[0][at] = pixels


def _check_failures(failures: Sequence[str], *, n: int) -> None:
    if len(failures) > _MAX_SKIPPED * n:
        some = "; ".join(failures[:3]) + ("; ..." if len(failures) > 3 else "")
        raise InputError(
            f"{len(failures)} of {n} images cannot be read, more than {_MAX_SKIPPED:.0%}: {some}; repair or remove them"
        )
