"""Few colour levels with dithering (BppAttack, Wang et al. 2022)."""

import numpy as np

from benchmarks.attacks.attack import Images, on_unit_scale
from guard.types import FloatArray

__all__ = ["quantise", "with_other_residuals"]


def quantise(images: Images, *, n_levels: int) -> Images:
    """Round to evenly spaced levels, the error spread over the neighbours (Floyd and Steinberg 1976)."""
    return on_unit_scale(images, lambda x: _dithered(x, n_levels))


def with_other_residuals(images: Images, rng: np.random.Generator, *, n_levels: int) -> Images:
    """Add to each image what quantising changes in another one (the paper's negative samples)."""
    others = np.roll(rng.permutation(len(images)), 1)

    def change(x: FloatArray) -> FloatArray:
        return x + (_dithered(x, n_levels) - x)[others]

    return on_unit_scale(images, change)


def _dithered(images: FloatArray, n_levels: int) -> FloatArray:
    height, width = images.shape[1:3]
    steps = n_levels - 1
    left = np.pad(images, ((0, 0), (0, 1), (1, 1), (0, 0)))
    done = np.empty_like(images)
    for i in range(height):
        for j in range(width):
            value = left[:, i, j + 1]
            done[:, i, j] = np.rint(np.clip(value, 0, 1) * steps) / steps
            error = value - done[:, i, j]
            left[:, i, j + 2] += error * (7 / 16)
            left[:, i + 1, j : j + 3] += error[:, None] * (np.array([3, 5, 1], dtype=np.float32) / 16)[:, None]
    return done
