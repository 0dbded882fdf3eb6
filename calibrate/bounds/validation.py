"""Deal the bounds set into what bounds are learned from and what decides which bounds may be kept."""

import math
from functools import partial

import numpy as np

from calibrate.bounds.clipped_classifier import LabelledInputs
from calibrate.sites import BoundsProblem
from guard.errors import CalibrationError
from guard.rows import each
from guard.types import IntArray

__all__ = ["split_for_validation", "split_in_classes"]


def split_for_validation(problem: BoundsProblem, *, fraction: float) -> tuple[LabelledInputs, LabelledInputs]:
    """Return the fitting part and, this fraction of every class, the validation part.

    Raises:
        CalibrationError: One of them would be empty.
    """
    parts = split_in_classes(problem.labels, fraction=fraction, seed=problem.seed)
    if min(len(part) for part in parts) == 0:
        raise CalibrationError(
            f"{len(problem.labels)} samples leave none for validation: {fraction:.0%} of every class decide which "
            f"bounds pass; expected at least {math.ceil(1 / fraction)} samples of some class: give more samples"
        )
    inputs = problem.inputs[0 : len(problem.inputs)]
    fitting, validation = (
        LabelledInputs.of(each(partial(np.take, indices=rows, axis=0), inputs), problem.labels[rows]) for rows in parts
    )
    return fitting, validation


def split_in_classes(labels: IntArray, *, fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    """Draw this fraction of every class; return the rows of the rest and the rows drawn, both sorted."""
    rng = np.random.default_rng(seed)
    drawn = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        drawn[rows[: round(len(rows) * fraction)]] = True
    return np.flatnonzero(~drawn), np.flatnonzero(drawn)
