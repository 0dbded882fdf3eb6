"""Thresholds and p-values from the ranks of clean scores, with a promise that holds for every finite sample.

If a new clean input is exchangeable with the n clean inputs whose scores were ranked, its score is past the threshold
with probability at most ``target_fpr`` (split conformal prediction; Vovk, Gammerman and Shafer 2005). The promise is
about the average over calibration sets: one threshold's own rate follows a Beta(n + 1 - k, k) distribution.
"""

import math
from fractions import Fraction

import numpy as np

from guard.errors import CalibrationError
from guard.types import BoolArray, FloatArray, Threshold

__all__ = ["exceeds", "fit_threshold", "p_values", "required_samples"]


def required_samples(target_fpr: float) -> int:
    """Return the smallest n for which a threshold with this false-positive rate exists: n >= 1/target_fpr - 1."""
    return max(math.ceil(1 / _as_written(target_fpr)) - 1, 1)


def fit_threshold(clean_scores: FloatArray, *, target_fpr: float) -> Threshold:
    """Place the threshold at the k-th smallest clean score, k = ceil((n + 1)(1 - target_fpr)).

    Args:
        clean_scores: (n,) scores of clean inputs that were used for nothing else.
        target_fpr: The false-positive rate to promise, in (0, 1).

    Raises:
        CalibrationError: The rate is no such fraction, or n is too small for it.
    """
    if not 0 < target_fpr < 1:
        raise CalibrationError(
            f"the target false-positive rate is {target_fpr}; it must lie between 0 and 1, such as 0.01"
        )
    n = len(clean_scores)
    rank = _rank(n, target_fpr)
    if rank > n:
        needed = required_samples(target_fpr)
        raise CalibrationError(
            f"{n} clean scores cannot promise a false-positive rate of {target_fpr:g}: it takes {needed}, so"
            f" {needed - n} are missing; give more clean samples or ask for a higher rate"
        )
    value = float(np.sort(clean_scores)[rank - 1])
    if not math.isfinite(value):
        raise CalibrationError(
            f"{int((~np.isfinite(clean_scores)).sum())} of {n} clean scores are not finite, so the threshold would flag"
            " nothing; the model answers clean inputs with NaN or infinity: check the preprocessing"
        )
    return Threshold(value=value, target_fpr=target_fpr, n=n)


def p_values(sorted_clean_scores: FloatArray, scores: FloatArray) -> FloatArray:
    """Return for each score the conformal p-value (1 + #{clean >= score}) / (n + 1).

    Args:
        sorted_clean_scores: (n,) ascending.
        scores: (N,); NaN counts as infinity.

    Returns:
        (N,) values in [1/(n+1), 1]; under exchangeability P(p <= a) <= a.
    """
    n = len(sorted_clean_scores)
    n_smaller = np.searchsorted(sorted_clean_scores, np.where(np.isnan(scores), np.inf, scores), side="left")
    return np.asarray((1 + n - n_smaller) / (n + 1))


def exceeds(scores: FloatArray, threshold: Threshold) -> BoolArray:
    """Return (N,) which scores are past the threshold; what does not compare as at or below it is past it."""
    return ~(scores <= threshold.value)


def _rank(n: int, target_fpr: float) -> int:
    return math.ceil((n + 1) * (1 - _as_written(target_fpr)))


def _as_written(target_fpr: float) -> Fraction:
    # In floats 100 * (1 - 0.01) may come out above 99, and the rank would be one too high.
    return Fraction(str(target_fpr))
