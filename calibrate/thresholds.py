"""Rules that turn clean scores into thresholds: two by rank, and the published one for comparison."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from types import MappingProxyType
from typing import Literal

import numpy as np

from guard.conformal import fit_certified_threshold, fit_threshold, required_for_certificate, required_samples
from guard.errors import CalibrationError
from guard.types import FloatArray, Threshold

__all__ = ["RULES", "Rule", "fit_normal_threshold"]

_LEAST_SCORES = 2  # of which there is a standard deviation


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How thresholds are fitted, and what is usual with it.

    Args:
        fit: Maps (n,) clean scores and a false-positive rate to a threshold.
        required: Maps a false-positive rate to the least n.
        part: The part of the calibration set whose scores it sees.
        score: The score it was made for, a key of guard.scores.SCORES.
        target_fpr: Of the alert threshold.
        correct_fpr: Of the correction threshold.
    """

    fit: Callable[[FloatArray, float], Threshold]
    required: Callable[[float], int]
    part: Literal["bounds", "threshold"]
    score: str
    target_fpr: float
    correct_fpr: float


def fit_normal_threshold(clean_scores: FloatArray, target_fpr: float) -> Threshold:
    """Place the threshold at mean + z sd, z the 1 - target_fpr quantile of the normal distribution.

    MMDF's rule (Wang et al., arXiv 2308.04617, official code): z is 2.576 for a rate of .005, and a flagged input is
    answered by the bounded model with the predicted class ruled out. Scores are neither normal nor, in the published
    rule, of inputs that the bounds have not seen, so that the rate is a name rather than a promise.

    Args:
        clean_scores: (n,) scores of clean inputs.
        target_fpr: The rate that normal scores would have, in (0, 1).

    Raises:
        CalibrationError: There are fewer than two scores, or one is not finite.
    """
    n = len(clean_scores)
    if n < _LEAST_SCORES or not np.isfinite(clean_scores).all():
        raise CalibrationError(
            f"{n} clean scores, {int((~np.isfinite(clean_scores)).sum())} of them not finite, have no mean and standard"
            f" deviation; give {_LEAST_SCORES} or more inputs that the model answers with numbers, or use --rule rank"
        )
    z = round(NormalDist().inv_cdf(1 - target_fpr), 3)  # to the three decimals of the published 2.576
    value = float(clean_scores.mean() + z * clean_scores.std(ddof=1))
    return Threshold(value=value, target_fpr=target_fpr, n=n)


def _fit_rank_threshold(clean_scores: FloatArray, target_fpr: float) -> Threshold:
    return fit_threshold(clean_scores, target_fpr=target_fpr)


def _fit_certified_threshold(clean_scores: FloatArray, target_fpr: float) -> Threshold:
    return fit_certified_threshold(clean_scores, target_fpr=target_fpr)


RULES: Mapping[str, Rule] = MappingProxyType({
    "rank": Rule(fit=_fit_rank_threshold, required=required_samples, part="threshold",
                 score="relative_divergence", target_fpr=0.01, correct_fpr=0.05),
    "certified": Rule(fit=_fit_certified_threshold, required=required_for_certificate, part="threshold",
                      score="relative_divergence", target_fpr=0.01, correct_fpr=0.05),
    "mmdf": Rule(fit=fit_normal_threshold, required=lambda _: _LEAST_SCORES, part="bounds",
                 score="divergence", target_fpr=0.005, correct_fpr=0.005),
})  # fmt: skip
"""Every rule by the name that the command line knows it by."""
