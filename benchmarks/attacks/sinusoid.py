"""A sinusoidal brightness across the image's columns (SIG, Barni et al. 2019, eq. 1)."""

import numpy as np

from benchmarks.attacks.attack import Images, on_unit_scale

__all__ = ["add_sinusoid"]


def add_sinusoid(images: Images, *, amplitude: float, n_periods: int) -> Images:
    """Add amplitude * sin(2 pi j n_periods / W) to column j."""
    width = images.shape[2]
    wave = amplitude * np.sin(2 * np.pi * n_periods * np.arange(width) / width)
    return on_unit_scale(images, lambda x: x + wave[None, None, :, None].astype(np.float32))
