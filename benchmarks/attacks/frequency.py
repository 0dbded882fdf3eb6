"""A smooth perturbation without high frequencies (after Zeng et al. 2021)."""

import numpy as np

from benchmarks.attacks.attack import Images, on_unit_scale
from guard.types import FloatArray

__all__ = ["add_pattern", "smooth_pattern"]


def smooth_pattern(shape: tuple[int, int, int], *, n_frequencies: int, amplitude: float, seed: int) -> FloatArray:
    """Return a random sum (H, W, C) of the lowest cosines, the constant left out, scaled to the amplitude."""
    rng = np.random.default_rng(seed)
    bases = [
        np.cos(np.pi * np.outer(np.arange(n_frequencies), np.arange(length) + 0.5) / length) for length in shape[:2]
    ]
    weights = rng.normal(size=(n_frequencies, n_frequencies, shape[2]))
    weights[0, 0] = 0
    pattern = np.einsum("kh,lw,klc->hwc", *bases, weights)
    return np.asarray(amplitude * pattern / np.abs(pattern).max(), dtype=np.float32)


def add_pattern(images: Images, *, pattern: FloatArray) -> Images:
    """Add the pattern (H, W, C)."""
    return on_unit_scale(images, lambda x: x + pattern)
