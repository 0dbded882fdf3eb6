"""A faint full-image pattern (Blend, Chen et al. 2017), and the same in pieces (adaptive Blend, Qi et al. 2023)."""

import numpy as np

from benchmarks.attacks.attack import Images, on_unit_scale
from guard.types import FloatArray

__all__ = ["blend", "blend_pieces", "noise_pattern"]


def noise_pattern(shape: tuple[int, int, int], *, seed: int) -> FloatArray:
    """Return uniform noise (H, W, C) in [0, 1]."""
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def blend(images: Images, *, pattern: FloatArray, ratio: float) -> Images:
    """Mix the pattern into the images: (1 - ratio) image + ratio pattern."""
    return on_unit_scale(images, lambda x: (1 - ratio) * x + ratio * pattern)


def blend_pieces(
    images: Images, rng: np.random.Generator, *, pattern: FloatArray, ratio: float, n_per_side: int, share: float
) -> Images:
    """Mix in a random share of the pattern's pieces, drawn anew for each image; n_per_side squared pieces in all."""
    n_pieces = n_per_side**2
    ranks = rng.random((len(images), n_pieces)).argsort(axis=1).argsort(axis=1)
    grid = (ranks < round(share * n_pieces)).reshape(-1, n_per_side, n_per_side)
    rows, columns = (np.arange(length) * n_per_side // length for length in pattern.shape[:2])
    ratios = ratio * grid[:, rows][:, :, columns, None].astype(np.float32)
    return on_unit_scale(images, lambda x: (1 - ratios) * x + ratios * pattern)
