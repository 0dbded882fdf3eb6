"""Patches: BadNets' checker (Gu et al. 2017), any fixed patch, and patches that add up (Qi et al. 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.attacks.attack import Images, on_unit_scale
from guard.types import FloatArray

__all__ = ["Patch", "checker", "random_patch", "stamp", "stamp_some"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """Pixels (h, w, C) in [0, 1], the row and column of their upper left corner, and their opacity."""

    pixels: FloatArray
    row: int
    column: int
    opacity: float = 1.0


def checker(shape: tuple[int, int, int], *, size: int = 3) -> Patch:
    """Return a black and white checker in the lower right corner of images (H, W, C)."""
    squares = (np.indices((size, size)).sum(axis=0) + 1) % 2
    pixels = np.repeat(squares[..., None], shape[2], axis=2).astype(np.float32)
    return Patch(pixels=pixels, row=shape[0] - size, column=shape[1] - size)


def random_patch(shape: tuple[int, int, int], *, size: int, seed: int, opacity: float = 1.0) -> Patch:
    """Return a patch of random colours at a random place, both fixed by the seed."""
    rng = np.random.default_rng(seed)
    pixels = rng.random((size, size, shape[2]), dtype=np.float32)
    row, column = (int(rng.integers(length - size + 1)) for length in shape[:2])
    return Patch(pixels=pixels, row=row, column=column, opacity=opacity)


def stamp(images: Images, patches: Sequence[Patch]) -> Images:
    """Put every patch on every image."""
    return on_unit_scale(images, lambda x: _stamped(x, patches, np.ones((len(x), len(patches)), dtype=np.bool_)))


def stamp_some(images: Images, rng: np.random.Generator, *, patches: Sequence[Patch], n_patches: int) -> Images:
    """Put a random choice of the patches on each image."""
    ranks = rng.random((len(images), len(patches))).argsort(axis=1).argsort(axis=1)
    return on_unit_scale(images, lambda x: _stamped(x, patches, ranks < n_patches))


def _stamped(images: FloatArray, patches: Sequence[Patch], chosen: np.ndarray) -> FloatArray:
    images = images.copy()
    for patch, rows in zip(patches, chosen.T, strict=True):
        height, width = patch.pixels.shape[:2]
        window = np.s_[rows, patch.row : patch.row + height, patch.column : patch.column + width]
        images[window] = (1 - patch.opacity) * images[window] + patch.opacity * patch.pixels
    return images
