"""Whether an upstream serves the model that the bundle was fitted on: its answers beside the original's own."""

import numpy as np

from guard.errors import ModelError
from guard.types import BoolArray, FloatArray

__all__ = ["LOGIT_TOLERANCE", "PROBABILITY_TOLERANCE", "check_agreement"]

LOGIT_TOLERANCE = 0.2
"""How far a logit may be off, as a share of the row's largest magnitude.

Measured on two CIFAR-10 networks, clean and triggered: the whole network in bfloat16, the coarsest form in use, is off
by .01 to .12; another network for the same task by .25 in the median, and more than a tenth in nine rows of ten.
"""

PROBABILITY_TOLERANCE = 0.15
"""How far a probability may be off: bfloat16 by .07 at most, another network by .3 in one row of ten."""


def check_agreement(theirs: FloatArray, ours: FloatArray, *, probabilities: bool) -> None:
    """Refuse answers that another model gave.

    Rows that hold no numbers are not compared: a narrow type overflows where a wide one does not, and the guard flags
    them anyway.

    Args:
        theirs: (N, C) outputs of the upstream.
        ours: (N, C) outputs of the bundle's original for the same inputs.
        probabilities: Whether outputs are probabilities rather than logits.

    Raises:
        ModelError: A row differs by more than rounding can explain.
    """
    differs = _differs(theirs.astype(np.float64), ours.astype(np.float64), probabilities=probabilities)
    if differs.any():
        raise ModelError(
            f"the upstream answers {differs.sum()} of {len(differs)} rows otherwise than the bundle's original, the"
            f" first is row {differs.argmax()}; it serves another model: fit a bundle for that one"
        )


def _differs(theirs: FloatArray, ours: FloatArray, *, probabilities: bool) -> BoolArray:
    are_numbers = np.isfinite(theirs).all(axis=1) & np.isfinite(ours).all(axis=1)
    with np.errstate(invalid="ignore"):
        off = np.abs(theirs - ours).max(axis=1)
    allowed = PROBABILITY_TOLERANCE if probabilities else LOGIT_TOLERANCE * np.abs(ours).max(axis=1)
    return np.asarray(are_numbers & (off > allowed))
