"""How well a guard does: accuracies, rates and their counts, as pure functions on what was answered."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from guard.types import BoolArray, FloatArray, IntArray

__all__ = ["CONFIDENCE", "Answered", "Evaluation", "accuracy_drop_limit", "auroc", "evaluate", "least_rows"]

CONFIDENCE = 0.95
"""With which bounds must cost no more accuracy than is allowed, one-sided."""

_ADDED_ROWS = 2  # half a row to each of the four outcomes of a pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What the two models and the guard said of a data set.

    Args:
        labels: (N,) the truth, or None where unknown.
        target_classes: (N,) what the attacker wants, or None for clean data.
        original: (N,) the original's classes.
        bounded: (N,) the bounded model's classes.
        guarded: (N,) the classes of the answers given.
        scores: (N,) the detector's scores.
        flagged: (N,) past the alert threshold.
    """

    labels: IntArray | None
    target_classes: IntArray | None
    original: IntArray
    bounded: IntArray
    guarded: IntArray
    scores: FloatArray
    flagged: BoolArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Fractions in [0, 1] with the counts they rest on; None where not applicable.

    Attack success rates and the robust accuracy count triggered rows whose label is not their target class. ``tpr``
    and ``auroc`` count those of them on which the attack works on the original.
    """

    n_clean: int
    n_triggered: int
    original_clean_accuracy: float | None
    bounded_clean_accuracy: float | None
    guarded_clean_accuracy: float | None
    original_attack_success_rate: float | None
    bounded_attack_success_rate: float | None
    guarded_attack_success_rate: float | None
    guarded_robust_accuracy: float | None
    target_fpr: float
    measured_fpr: float
    tpr: float | None
    auroc: float | None


def evaluate(clean: Answered, triggered: Answered | None, *, target_fpr: float) -> Evaluation:
    """Measure a guard on clean and, where there are any, triggered inputs."""
    attacked = None if triggered is None else _attacked(triggered)
    working = (
        None if triggered is None or attacked is None else attacked & (triggered.original == triggered.target_classes)
    )
    return Evaluation(
        n_clean=len(clean.original),
        n_triggered=0 if triggered is None else len(triggered.original),
        original_clean_accuracy=_share(clean.original, clean.labels),
        bounded_clean_accuracy=_share(clean.bounded, clean.labels),
        guarded_clean_accuracy=_share(clean.guarded, clean.labels),
        original_attack_success_rate=_success(triggered, attacked, "original"),
        bounded_attack_success_rate=_success(triggered, attacked, "bounded"),
        guarded_attack_success_rate=_success(triggered, attacked, "guarded"),
        guarded_robust_accuracy=None if triggered is None else _share(triggered.guarded, triggered.labels, attacked),
        target_fpr=target_fpr,
        measured_fpr=float(clean.flagged.mean()),
        tpr=None
        if triggered is None or working is None or not working.any()
        else float(triggered.flagged[working].mean()),
        auroc=None if triggered is None or working is None else auroc(clean.scores, triggered.scores[working]),
    )


def auroc(clean_scores: FloatArray, triggered_scores: FloatArray) -> float | None:
    """Return the chance that a triggered score exceeds a clean one, ties counting half; None without scores."""
    n, m = len(clean_scores), len(triggered_scores)
    if n == 0 or m == 0:
        return None
    ordered = np.sort(clean_scores)
    below = np.searchsorted(ordered, triggered_scores, side="left")
    not_above = np.searchsorted(ordered, triggered_scores, side="right")
    return float((below + not_above).sum() / (2 * n * m))


def accuracy_drop_limit(original_right: BoolArray, bounded_right: BoolArray, *, confidence: float) -> float:
    """Return the upper confidence limit on the accuracy that bounding costs, from paired rows.

    The adjusted Wald limit of Agresti and Min (Statistics in Medicine 24, 2005): half a row is added to each of the
    four outcomes of a pair, so that rows which all answer alike still leave room, z / (n + 2). It is approximate; where
    no row differs at all, the exact limit at 95 % is nearly twice as high.

    Args:
        original_right: (N,) rows that the original gets right.
        bounded_right: (N,) the same rows under bounds.
        confidence: One-sided, such as 0.95.
    """
    drops = original_right.astype(np.float64) - bounded_right
    n = len(drops) + _ADDED_ROWS
    mean = drops.sum() / n
    variance = (np.square(drops).sum() + _ADDED_ROWS / 2) / n - mean**2
    return float(mean + NormalDist().inv_cdf(confidence) * math.sqrt(variance / n))


def least_rows(max_accuracy_drop: float, *, confidence: float = CONFIDENCE) -> int:
    """Return how many rows it takes to show, where none of them differ, that no more accuracy is lost than this."""
    return max(math.ceil(NormalDist().inv_cdf(confidence) / max_accuracy_drop) - _ADDED_ROWS, 1)


def _attacked(triggered: Answered) -> BoolArray | None:
    if triggered.target_classes is None:
        return None
    if triggered.labels is None:
        return np.ones(len(triggered.original), dtype=bool)
    return np.asarray(triggered.labels != triggered.target_classes)


def _success(triggered: Answered | None, attacked: BoolArray | None, model: str) -> float | None:
    if triggered is None or attacked is None:
        return None
    return _share(getattr(triggered, model), triggered.target_classes, attacked)


def _share(classes: IntArray, expected: IntArray | None, rows: BoolArray | None = None) -> float | None:
    if expected is None:
        return None
    right = classes == expected if rows is None else (classes == expected)[rows]
    return float(right.mean()) if len(right) else None
