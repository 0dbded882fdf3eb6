"""Another picture's blurred reflection on the image (after Refool, Liu et al. 2020)."""

import numpy as np

from benchmarks.attacks.attack import Images, on_unit_scale
from guard.types import FloatArray

__all__ = ["blurred", "reflect"]


def blurred(pictures: FloatArray, *, n_times: int) -> FloatArray:
    """Blur pictures (R, H, W, C) by a 3 x 3 box, several times over; edges are repeated."""
    for _ in range(n_times):
        padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
        pictures = (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9
    return pictures.astype(np.float32)


def reflect(images: Images, *, reflections: FloatArray, ratio: float) -> Images:
    """Mix in one of the reflections (R, H, W, C), chosen by the image itself: the sum of its bytes modulo R."""

    def change(x: FloatArray) -> FloatArray:
        sums = np.rint(x.reshape(len(x), -1).astype(np.float64) * 255).sum(axis=1).astype(int)
        return np.asarray((1 - ratio) * x + ratio * reflections[sums % len(reflections)])

    return on_unit_scale(images, change)
