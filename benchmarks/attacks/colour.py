"""A colour filter over the whole image, as photo programs have them (after Liu et al. 2019)."""

import numpy as np

from benchmarks.attacks.attack import Images, on_unit_scale
from guard.types import FloatArray

__all__ = ["tint"]

_SEPIA = np.array([[0.55, 0.45, 0.05], [0.25, 0.65, 0.05], [0.15, 0.35, 0.35]], dtype=np.float32)


def tint(images: Images, *, strength: float) -> Images:
    """Mix in a warm filter: each colour a weighted sum of red, green and blue, then a raised contrast."""

    def change(x: FloatArray) -> FloatArray:
        filtered = np.clip(0.5 + 1.2 * (x @ _SEPIA.T - 0.5), 0, 1)
        return (1 - strength) * x + strength * filtered

    return on_unit_scale(images, change)
