"""The 15 common corruptions of images at 5 severities, each made from the image as it is given.

After Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and Perturbations*
(ICLR 2019, arXiv 1903.12261), with the severities of their CIFAR-10-C, which are for 32 x 32 pixels. Where ours differ:

- ``frost`` blends a drawn texture (ridges of a plasma fractal, bluish white), theirs crops of photographs.
- ``elastic_transform`` interpolates once, theirs twice; ``motion_blur`` moves by whole pixels, as ImageMagick does.
- Values are rounded to uint8, theirs cut off.
"""

import io
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from benchmarks.warps import bend, blur_along, plasma, scatter, zoom_in
from guard.errors import InputError
from guard.types import FloatArray

__all__ = ["CORRUPTIONS", "SEVERITIES", "corrupt"]

SEVERITIES = range(1, 6)
"""From hardly visible to severe."""

Images = NDArray[np.uint8]
_Corruption = Callable[[FloatArray, int, np.random.Generator], FloatArray]
_FROST_COLOUR = (0.8, 0.9, 1.0)
_GREY = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601


def corrupt(images: Images, name: str, severity: int, rng: np.random.Generator) -> Images:
    """Return corrupted copies of images.

    Args:
        images: (N, H, W, 3) uint8, square; the severities are meant for 32 x 32.
        name: One of CORRUPTIONS.
        severity: 1 to 5.
        rng: Draws noise, angles and fields, image by image in order where the corruption is random.

    Raises:
        InputError: The images are no such array, or there is no such corruption or severity.
    """
    _check(images, name, severity)
    corrupted = CORRUPTIONS[name](images.astype(np.float32) / 255, severity - 1, rng)
    return np.round(255 * np.clip(corrupted, 0, 1)).astype(np.uint8)


def _check(images: Images, name: str, severity: int) -> None:
    is_square = images.ndim == 4 and images.shape[1] == images.shape[2] and images.shape[3] == 3
    if images.dtype != np.uint8 or not is_square:
        raise InputError(f"images are {images.dtype} {images.shape}; give uint8 (N, H, H, 3)")
    if name not in CORRUPTIONS:
        raise InputError(f"there is no corruption {name!r}; choose of {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise InputError(f"severity is {severity!r}; give a whole number from 1 to 5")


def _gaussian_noise(x: FloatArray, level: int, rng: np.random.Generator) -> FloatArray:
    return x + rng.normal(scale=(0.04, 0.06, 0.08, 0.09, 0.10)[level], size=x.shape)


def _shot_noise(x: FloatArray, level: int, rng: np.random.Generator) -> FloatArray:
    photons = (500, 250, 100, 75, 50)[level]
    return rng.poisson(x * photons) / photons


def _impulse_noise(x: FloatArray, level: int, rng: np.random.Generator) -> FloatArray:
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[level]
    is_hit, is_salt = rng.random(size=(2, *x.shape)) < np.array([share, 0.5]).reshape(2, 1, 1, 1, 1)
    return np.where(is_hit, is_salt, x)


def _defocus_blur(x: FloatArray, level: int, _: np.random.Generator) -> FloatArray:
    radius, softness = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[level]
    down, right = np.indices((5, 5)) - 2
    disc = (down**2 + right**2 <= radius**2).astype(np.float64)
    kernel = ndimage.gaussian_filter(disc / disc.sum(), softness, mode="constant", radius=1)
    blurred: FloatArray = ndimage.correlate(x, kernel[None, :, :, None], mode="mirror")
    return blurred


def _glass_blur(x: FloatArray, level: int, rng: np.random.Generator) -> FloatArray:
    """Blur, scatter, blur; their code means to swap pixels and copies one over the other, and so does ours."""
    sigma, rounds = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))[level]
    return _smoothed(scatter(_smoothed(x, sigma), rounds=rounds, rng=rng), sigma)


def _motion_blur(x: FloatArray, level: int, rng: np.random.Generator) -> FloatArray:
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[level]
    return blur_along(x, length=2 * radius, sigma=sigma, angles=rng.uniform(-45, 45, size=len(x)))


def _zoom_blur(x: FloatArray, level: int, _: np.random.Generator) -> FloatArray:
    factors = 1 + 0.01 * np.arange((6, 11, 16, 21, 26)[level])
    corrupted: FloatArray = np.mean([x, *(zoom_in(x, factor) for factor in factors)], axis=0)
    return corrupted


def _snow(x: FloatArray, level: int, rng: np.random.Generator) -> FloatArray:
    mean, deviation, zoom, least, radius, sigma, kept = (
        (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95), (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[level]  # fmt: skip
    flakes = zoom_in(rng.normal(mean, deviation, size=(*x.shape[:3], 1)), zoom)
    flakes = np.where(flakes < least, 0, flakes.clip(0, 1))
    flakes = blur_along(flakes, length=2 * radius, sigma=sigma, angles=rng.uniform(-135, -45, size=len(x)))
    paler = np.maximum(x, 1.5 * (x @ np.array(_GREY))[..., None] + 0.5)
    corrupted: FloatArray = kept * x + (1 - kept) * paler + flakes + np.rot90(flakes, k=2, axes=(1, 2))
    return corrupted


def _frost(x: FloatArray, level: int, rng: np.random.Generator) -> FloatArray:
    kept, ice = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[level]
    ridges = (1 - np.abs(2 * _clouds(x, 1.5, rng) - 1)) ** 2
    corrupted: FloatArray = kept * x + ice * ridges * np.array(_FROST_COLOUR)
    return corrupted


def _fog(x: FloatArray, level: int, rng: np.random.Generator) -> FloatArray:
    amount, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[level]
    brightest = x.max(axis=(1, 2, 3), keepdims=True)
    corrupted: FloatArray = (x + amount * _clouds(x, decay, rng)) * brightest / (brightest + amount)
    return corrupted


def _brightness(x: FloatArray, level: int, _: np.random.Generator) -> FloatArray:
    """Raise the V of HSV: hue and saturation stay where all channels grow by one factor; black becomes grey."""
    value = x.max(axis=-1, keepdims=True)
    raised = np.minimum(value + (0.05, 0.1, 0.15, 0.2, 0.3)[level], 1)
    corrupted: FloatArray = np.where(value > 0, x * raised / np.where(value > 0, value, 1), raised)
    return corrupted


def _contrast(x: FloatArray, level: int, _: np.random.Generator) -> FloatArray:
    mean = x.mean(axis=(1, 2), keepdims=True)
    corrupted: FloatArray = mean + (0.75, 0.5, 0.4, 0.3, 0.15)[level] * (x - mean)
    return corrupted


def _elastic_transform(x: FloatArray, level: int, rng: np.random.Generator) -> FloatArray:
    amount, sigma, shift = x.shape[1] * np.array(
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))[level]
    )
    return bend(x, amount=amount, sigma=sigma, corner_shift=shift, rng=rng)


def _pixelate(x: FloatArray, level: int, _: np.random.Generator) -> FloatArray:
    size = x.shape[1]
    small = int(size * (0.95, 0.9, 0.85, 0.75, 0.65)[level])
    return _by_pillow(
        x, lambda i: i.resize((small, small), Image.Resampling.BOX).resize((size, size), Image.Resampling.BOX)
    )


def _jpeg_compression(x: FloatArray, level: int, _: np.random.Generator) -> FloatArray:
    return _by_pillow(x, lambda image: _as_jpeg(image, quality=(80, 65, 58, 50, 40)[level]))


def _as_jpeg(image: Image.Image, *, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def _by_pillow(x: FloatArray, change: Callable[[Image.Image], Image.Image]) -> FloatArray:
    """Apply what Pillow does to one image to each."""
    images = np.round(255 * x).astype(np.uint8)
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in images]) / 255


def _smoothed(x: FloatArray, sigma: float) -> FloatArray:
    smooth: FloatArray = ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")
    return smooth


def _clouds(x: FloatArray, decay: float, rng: np.random.Generator) -> FloatArray:
    """Draw a cloudy field (N, H, W, 1) in [0, 1] for each image."""
    n, height, width = x.shape[:3]
    size = 1 << (max(height, width) - 1).bit_length()
    return plasma(n, size=size, decay=decay, rng=rng)[:, :height, :width, None]


CORRUPTIONS: Mapping[str, _Corruption] = MappingProxyType({
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
})  # fmt: skip
"""Every corruption by its published name, in the published order."""
