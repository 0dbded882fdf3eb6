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

__all__ = [
    "certified_rank",
    "exceeds",
    "fit_certified_threshold",
    "fit_threshold",
    "highest_rate",
    "p_values",
    "required_for_certificate",
    "required_samples",
]

_LOG_MISS = math.log(0.05)  # the chance that a certified threshold's own rate is higher than it says
_HALVINGS = 50  # of an interval of rates, down to rounding
_ROUNDING = 1e-9  # of logarithms of sums of up to a million terms


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
    _check_rate(target_fpr)
    n = len(clean_scores)
    rank = _rank(n, target_fpr)
    if rank > n:
        raise _too_few(n, required_samples(target_fpr), f"promise a false-positive rate of {target_fpr:g}")
    return _at(rank, clean_scores, target_fpr)


def fit_certified_threshold(clean_scores: FloatArray, *, target_fpr: float) -> Threshold:
    """Place the threshold at the (r + 1)-th largest clean score, r being certified_rank (raises as fit_threshold).

    The share of clean inputs past it follows a Beta(r + 1, n - r) distribution over draws of the clean scores where
    these are continuous, and is smaller where they are tied; it is at most target_fpr in 95 % of draws.
    """
    _check_rate(target_fpr)
    n = len(clean_scores)
    r = certified_rank(n, target_fpr)
    if r is None:
        promise = f"certify a false-positive rate of {target_fpr:g} with 95 % confidence"
        raise _too_few(n, required_for_certificate(target_fpr), promise)
    return _at(n - r, clean_scores, target_fpr)


def certified_rank(n: int, target_fpr: float) -> int | None:
    """Return the largest r with P(Binomial(n, target_fpr) <= r) <= .05; None where there is none."""
    a = float(target_fpr)
    k = np.arange(1, math.ceil(n * a) + 1)  # the sum passes .05 before the mean, which is close to the median
    steps = np.log(n + 1 - k) - np.log(k) + math.log(a) - math.log1p(-a)
    log_probabilities = np.cumsum(np.concatenate([[n * math.log1p(-a)], steps]))
    log_sums = np.logaddexp.accumulate(log_probabilities)
    n_within = int(np.searchsorted(log_sums, _LOG_MISS + _ROUNDING, side="right"))
    return n_within - 1 if n_within else None


def required_for_certificate(target_fpr: float) -> int:
    """Return the smallest n for which a rate can be certified: n >= ln .05 / ln(1 - target_fpr)."""
    return max(math.ceil(_LOG_MISS / math.log1p(-target_fpr) - _ROUNDING), 1)


def highest_rate(n: int, rank: int, *, miss: float) -> float:
    """Return the rate at which clean inputs score past the rank-th largest of n clean scores, at most.

    It is the 1 - miss quantile of Beta(rank, n + 1 - rank), the u with P(Binomial(n, u) <= rank - 1) = miss: a bound
    for all but a share ``miss`` of calibration sets, with ties among scores too.

    Args:
        n: Clean scores.
        rank: From 1, the largest, to n.
        miss: The chance of a calibration set for which it is no bound, in (0, 1).
    """
    k = np.arange(1, rank)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log(n + 1 - k) - np.log(k))])
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        within = log_choose + np.arange(rank) * math.log(middle) + (n - np.arange(rank)) * math.log1p(-middle)
        low, high = (middle, high) if np.logaddexp.reduce(within) > math.log(miss) else (low, middle)
    return high


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


def _check_rate(target_fpr: float) -> None:
    if not 0 < target_fpr < 1:
        raise CalibrationError(
            f"the target false-positive rate is {target_fpr}; it must lie between 0 and 1, such as 0.01"
        )


def _too_few(n: int, needed: int, promise: str) -> CalibrationError:
    return CalibrationError(
        f"{n} clean scores cannot {promise}: it takes {needed}, so {needed - n} are missing; give more clean samples or"
        " ask for a higher rate"
    )


def _at(rank: int, clean_scores: FloatArray, target_fpr: float) -> Threshold:
    """Return the threshold at the rank-th smallest clean score."""
    n, value = len(clean_scores), float(np.sort(clean_scores)[rank - 1])
    if not math.isfinite(value):
        raise CalibrationError(
            f"{int((~np.isfinite(clean_scores)).sum())} of {n} clean scores are not finite, so the threshold would flag"
            " nothing; the model answers clean inputs with NaN or infinity: check the preprocessing"
        )
    return Threshold(value=value, target_fpr=target_fpr, n=n)


def _rank(n: int, target_fpr: float) -> int:
    return math.ceil((n + 1) * (1 - _as_written(target_fpr)))


def _as_written(target_fpr: float) -> Fraction:
    # In floats 100 * (1 - 0.01) may come out above 99, and the rank would be one too high.
    return Fraction(str(target_fpr))
