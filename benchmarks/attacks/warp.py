"""A smooth elastic warp (WaNet, Nguyen and Tran 2021), and its noise mode."""

import numpy as np

from benchmarks.attacks.attack import Images, on_unit_scale
from guard.types import FloatArray

__all__ = ["smooth_field", "warp", "warp_with_noise"]


def smooth_field(shape: tuple[int, int, int], *, n_controls: int, strength: float, seed: int) -> FloatArray:
    """Return displacements (H, W, 2) in pixels, interpolated from random control points.

    Control points are uniform, scaled so that their mean magnitude is ``strength`` pixels (section 3.2, where the
    strength s = 0.5 means 0.25 pixels).
    """
    controls: FloatArray = np.random.default_rng(seed).uniform(-1, 1, (n_controls, n_controls, 2))
    controls *= strength / np.abs(controls).mean()
    for axis, length in enumerate(shape[:2]):
        controls = _stretched(controls, axis, length)
    return controls.astype(np.float32)


def warp(images: Images, *, field: FloatArray) -> Images:
    """Move every pixel by the field (H, W, 2); edges are repeated."""
    return on_unit_scale(images, lambda x: _sampled(x, np.broadcast_to(field, (len(x), *field.shape))))


def warp_with_noise(images: Images, rng: np.random.Generator, *, field: FloatArray, noise: float) -> Images:
    """Warp by the field plus uniform noise of up to ``noise`` pixels, drawn anew for each image (noise mode)."""
    noisy = field + rng.uniform(-noise, noise, (len(images), *field.shape)).astype(np.float32)
    return on_unit_scale(images, lambda x: _sampled(x, noisy))


def _stretched(values: FloatArray, axis: int, length: int) -> FloatArray:
    """Interpolate along an axis by cubic convolution (Keys 1981, a = -0.75), ends aligned and repeated."""
    n_values = values.shape[axis]
    places = np.linspace(0, n_values - 1, length)
    first = np.floor(places).astype(int)
    total = np.zeros((), dtype=values.dtype)
    for step in (-1, 0, 1, 2):
        weights = _cubic(np.abs(places - first - step)).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        total = total + weights * values.take(np.clip(first + step, 0, n_values - 1), axis=axis)
    return np.asarray(total)


def _cubic(distance: FloatArray, a: float = -0.75) -> FloatArray:
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _sampled(images: FloatArray, fields: FloatArray) -> FloatArray:
    n_images, height, width = images.shape[:3]
    rows = np.clip(np.arange(height)[None, :, None] + fields[..., 0], 0, height - 1)
    columns = np.clip(np.arange(width)[None, None, :] + fields[..., 1], 0, width - 1)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, along = (rows - top)[..., None].astype(np.float32), (columns - left)[..., None].astype(np.float32)
    n = np.arange(n_images)[:, None, None]
    upper = (1 - along) * images[n, top, left] + along * images[n, top, right]
    lower = (1 - along) * images[n, bottom, left] + along * images[n, bottom, right]
    return np.asarray((1 - down) * upper + down * lower)
