"""Deal the bounds set into what bounds are learned from and what decides which bounds may be kept."""

from functools import partial

import numpy as np

from calibrate.bounds.clipped_classifier import LabelledInputs
from calibrate.sites import BoundsProblem
from guard.errors import CalibrationError
from guard.rows import each
from guard.types import IntArray

__all__ = ["keeps_accuracy", "split_for_validation", "split_in_classes"]

_ROUNDING = 1e-9  # accuracies are fractions of whole counts: a tie must not fail by the last bit


def keeps_accuracy(accuracy: float, *, original: float, max_drop: float) -> bool:
    """Say whether bounds of this validation accuracy may be kept."""
    return accuracy >= original - max_drop - _ROUNDING


def split_for_validation(problem: BoundsProblem, *, fraction: float) -> tuple[LabelledInputs, LabelledInputs]:
    """Return the fitting part and, this fraction of the samples and as nearly as can be of every class, the other.

    Raises:
        CalibrationError: One of them would be empty.
    """
    parts = split_in_classes(problem.labels, fraction=fraction, seed=problem.seed)
    if min(len(part) for part in parts) == 0:
        raise CalibrationError(
            f"{len(problem.labels)} samples leave none for validation, {fraction:.0%} of them, which decide which"
            " bounds pass: give more samples, or use --method few-shot, which takes 2"
        )
    inputs = problem.inputs[0 : len(problem.inputs)]
    fitting, validation = (
        LabelledInputs.of(each(partial(np.take, indices=rows, axis=0), inputs), problem.labels[rows]) for rows in parts
    )
    return fitting, validation


def split_in_classes(labels: IntArray, *, fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    """Draw this fraction of all rows, evenly from the classes; return the rows of the rest and those drawn, sorted."""
    rng = np.random.default_rng(seed)
    classes, sizes = np.unique(labels, return_counts=True)
    drawn = np.zeros(len(labels), dtype=bool)
    for label, quota in zip(classes, _quotas(sizes, fraction), strict=True):
        drawn[rng.permutation(np.flatnonzero(labels == label))[:quota]] = True
    return np.flatnonzero(~drawn), np.flatnonzero(drawn)


def _quotas(sizes: IntArray, fraction: float) -> IntArray:
    """Return how many rows of each class make up this fraction of all: the largest remainders are rounded up."""
    shares = sizes * fraction
    quotas = np.floor(shares).astype(np.int64)
    n_left = round(float(shares.sum())) - int(quotas.sum())
    quotas[np.argsort(quotas - shares, kind="stable")[:n_left]] += 1
    return np.asarray(quotas)
