"""The robust z-score that inspections compare channels and classes by."""

import numpy as np

from guard.types import FloatArray

__all__ = ["robust_z"]

_NORMAL_MAD, _NORMAL_MEAN_AD = 1.4826, 1.2533  # a normal's standard deviation over these deviations of it
_ROUNDING = 1e-9  # of the largest deviation: a median deviation below it is none
_SAME = 1e-12  # of the largest value: deviations below it are rounding


def robust_z(values: FloatArray) -> FloatArray:
    """Return (v - median) / (1.4826 MAD) over the values that are finite, and 0 for the others.

    Where more than half of the values are the same, so that MAD is 0, the mean absolute deviation stands in, times
    1.2533 (Iglewicz and Hoaglin, "How to Detect and Handle Outliers", 1993). Neither shift nor scale changes anything.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros_like(values)
    centred = np.where(finite, values, 0.0) - np.median(values[finite])
    deviations = np.abs(centred[finite])
    if deviations.max() <= _SAME * np.abs(values[finite]).max():
        return np.zeros_like(values)
    spread = _NORMAL_MAD * np.median(deviations)
    if spread <= _ROUNDING * deviations.max():
        spread = _NORMAL_MEAN_AD * deviations.mean()
    return np.where(finite, centred / spread, 0.0)
