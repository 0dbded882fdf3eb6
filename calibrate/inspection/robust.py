"""The robust z-score that inspections compare channels and classes by."""

import numpy as np

from guard.types import FloatArray

__all__ = ["robust_z"]


def robust_z(values: FloatArray) -> FloatArray:
    """Return (v - median) / (1.4826 MAD + 1e-9) over the values that are finite, and 0 for the others."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros_like(values)
    centred = np.where(finite, values, 0.0) - np.median(values[finite])
    deviation = 1.4826 * np.median(np.abs(centred[finite]))
    return np.where(finite, centred / (deviation + 1e-9), 0.0)
