"""Whether the labels of clean samples can be those of this model's classes."""

import numpy as np

from guard.errors import CalibrationError, InputError
from guard.types import IntArray

__all__ = ["N_COMPARED", "check_agreement", "check_several_classes"]

N_COMPARED = 200
"""As many samples as tell a model that is right from one that guesses."""

_LEAST = 10  # below, a model that is right may agree by chance with as few as one that guesses


def check_agreement(labels: IntArray, predicted: IntArray) -> None:
    """Refuse labels that the original agrees with no more often than it would if they were shuffled.

    Args:
        labels: (N,) as given.
        predicted: (N,) the original's classes of the same inputs.

    Raises:
        InputError: It agrees with no more than that and with less than half. Fewer than 10 samples tell nothing.
    """
    agreement = float((labels == predicted).mean()) if len(labels) else 1.0
    classes = range(int(max(labels.max(initial=0), predicted.max(initial=0))) + 1)
    by_chance = float(sum((labels == c).mean() * (predicted == c).mean() for c in classes)) if len(labels) else 0.0
    if len(labels) >= _LEAST and agreement < 0.5 and agreement <= by_chance:
        raise InputError(
            f"the model agrees with the labels of {agreement:.1%} of {len(labels)} clean samples, no more than with"
            f" shuffled labels ({by_chance:.1%}): check that the classes have the model's order (a folder's class is"
            " the rank of its name) and that --mean, --std, --scale and --layout are those of its training"
        )


def check_several_classes(labels: IntArray, *, wanted_by: str) -> None:
    """Refuse labels of one class where something compares classes.

    Raises:
        CalibrationError: There is only one.
    """
    classes = np.unique(labels)
    if len(classes) == 1:
        raise CalibrationError(
            f"all {len(labels)} clean samples are of class {classes[0]}, but {wanted_by} compares classes: give samples"
            " of every class that the model is to answer"
        )
