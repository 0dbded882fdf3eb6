"""The decision's arithmetic: margins, scores and corrected answers, as pure functions on arrays.

Read it beside Wang et al., "Improved Activation Clipping for Universal Backdoor Mitigation and Test-Time Detection"
(arXiv 2308.04617): ``divergence`` is their test-time statistic, ``correct`` their correction with a second,
gentler step below the alert threshold.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from guard.types import Answers, BoolArray, FloatArray, IntArray, ModelRun

__all__ = [
    "ONE_PASS",
    "SCORES",
    "Score",
    "correct",
    "divergence",
    "logits_from_probabilities",
    "margin",
    "predicted_class",
    "relative_divergence",
    "softmax",
]

Score = Callable[[ModelRun], FloatArray]
"""Maps what one run of the models yields to (N,) float64: the larger, the more suspicious."""


def margin(logits: FloatArray, classes: IntArray) -> FloatArray:
    """Return how far each row's class leads the best other class, m(x; t) = h_t(x) - max_{j != t} h_j(x).

    Args:
        logits: (N, C).
        classes: (N,) the class t of each row.

    Returns:
        (N,) margins, negative where another class leads.
    """
    rows = np.arange(len(logits))
    others = logits.copy()
    others[rows, classes] = -np.inf
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(logits[rows, classes] - others.max(axis=1))


def divergence(run: ModelRun) -> FloatArray:
    """Return how much of the original's margin the bounded model loses, d(x) = m_f(x; y) - m_g(x; y).

    Both margins are for y, the class that the original predicts. Where either is no finite number, or the original's
    output holds NaN, the divergence is infinite: what cannot be judged is never let through.

    Returns:
        (N,) divergences.
    """
    classes = predicted_class(run.original.outputs)
    with np.errstate(invalid="ignore", over="ignore"):
        gap = margin(run.original.logits, classes) - margin(run.bounded.logits, classes)
    is_judged = np.isfinite(gap) & ~np.isnan(run.original.outputs).any(axis=1)
    return np.where(is_judged, gap, np.inf)


def relative_divergence(run: ModelRun) -> FloatArray:
    """Return the divergence relative to the margin that the bounded model leaves, d(x) / (1 + max(m_g(x; y), 0)).

    Clean inputs that the model is very sure of have large activations, lose margin to the bounds, and keep much of it;
    triggered inputs lose theirs. Margins are differences of log-probabilities, so the 1 is one nat: odds of e to 1.

    Returns:
        (N,) scores, infinite where the divergence is.
    """
    kept = margin(run.bounded.logits, predicted_class(run.original.outputs))
    return np.asarray(divergence(run) / (1 + np.maximum(np.nan_to_num(kept, nan=0.0, posinf=0.0, neginf=0.0), 0)))


SCORES: Mapping[str, Score] = MappingProxyType({
    "divergence": divergence,
    "relative_divergence": relative_divergence,
})  # fmt: skip
"""Every score of two models' runs that a bundle may name."""

ONE_PASS = "one_pass"  # noqa: S105 -- no password
"""What a bundle calls the score of the one-pass detector (guard.detector)."""


def predicted_class(outputs: FloatArray) -> IntArray:
    """Return (N,) the class with the largest output, the first among equals; NaN counts as the smallest.

    It is read off what the model gives, never off logits beside it: rounding can make outputs equal where logits
    differ, and the class must be the one that a caller reads off the same row.
    """
    return np.asarray(np.where(np.isnan(outputs), -np.inf, outputs).argmax(axis=1), dtype=np.int64)


def softmax(logits: FloatArray) -> FloatArray:
    """Return (N, C) probabilities; a class at minus infinity gets none."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def logits_from_probabilities(probabilities: FloatArray) -> FloatArray:
    """Return (N, C) float64 logits: the logarithm, which equals them up to a constant per row.

    Margins do not see that constant. Probabilities that underflowed to zero count as the smallest positive number of
    their dtype.
    """
    smallest = np.finfo(probabilities.dtype).smallest_subnormal
    return np.log(np.maximum(probabilities, smallest).astype(np.float64))


def correct(run: ModelRun, *, corrected: BoolArray, excluded: BoolArray, probabilities: bool) -> Answers:
    """Answer for each row: the original's own row, or the bounded model's where the row is to be corrected.

    A bounded model that still names the original's class is not believed where ``excluded``: that class is ruled out
    (arXiv 2308.04617, MMDF), so its entry becomes the row's minimum, or zero with the rest renormalised. Where no
    other class is possible, all others become equally likely.

    Args:
        run: Both models' answers.
        corrected: (N,) rows to answer with the bounded model.
        excluded: (N,) rows, among those corrected, whose predicted class is ruled out.
        probabilities: Whether outputs are probabilities rather than logits.

    Returns:
        The outputs (N, C), in the original's dtype, and the logits they follow from.
    """
    outputs, logits = run.original.outputs.copy(), run.original.logits.copy()
    outputs[corrected], logits[corrected] = run.bounded.outputs[corrected], run.bounded.logits[corrected]
    rows = np.flatnonzero(corrected & excluded)
    classes = predicted_class(run.original.outputs)[rows]
    outputs[rows], logits[rows] = _with_others(outputs[rows], classes), _with_others(logits[rows], classes)
    logits[rows, classes] = -np.inf
    if probabilities:
        outputs[rows] = softmax(logits[rows])
    else:
        outputs[rows, classes] = _below_the_others(outputs[rows], classes)
    return Answers(outputs=outputs, logits=logits)


def _with_others(logits: FloatArray, classes: IntArray) -> FloatArray:
    """Return the rows, with zero for every other class where each of them is at minus infinity."""
    rows, filled = np.arange(len(logits)), logits.copy()
    filled[rows, classes] = -np.inf
    filled[np.isneginf(filled.max(axis=1))] = 0
    filled[rows, classes] = logits[rows, classes]
    return filled


def _below_the_others(outputs: FloatArray, classes: IntArray) -> FloatArray:
    """Return for each row the minimum, or one step less where all others are tied at it."""
    lowest = outputs.min(axis=1)
    others = outputs.copy()
    others[np.arange(len(outputs)), classes] = -np.inf
    tied = others.max(axis=1) <= lowest
    with np.errstate(over="ignore"):  # below the lowest number comes minus infinity
        lower = np.nextafter(lowest, np.array(-np.inf, dtype=lowest.dtype))
    return np.asarray(np.where(tied, lower, lowest))
