"""The classes of clean samples: given or predicted, and whether they can be those of this model."""

import math

import numpy as np

from calibrate.data import Samples
from calibrate.forward import predict
from calibrate.graph import Classifier
from calibrate.sites import Progress
from guard.errors import CalibrationError, InputError
from guard.types import IntArray

__all__ = ["N_COMPARED", "agreement_of", "check_agreement", "check_several_classes", "labels_or_predicted"]

N_COMPARED = 200
"""As many samples as tell a model that is right from one that guesses."""

_LEAST = 10  # below, a model that is right may agree by chance with as few as one that guesses
_SPREADS = 3  # standard deviations of luck that shuffled labels are granted


def labels_or_predicted(classifier: Classifier, samples: Samples, *, progress: Progress, device: str) -> IntArray:
    """Return (N,) the labels given; where there are none the original's own predictions."""
    if samples.labels is not None:
        return samples.labels
    stage = "predicting labels"
    return predict(classifier.model, classifier.logits, samples, progress=progress, stage=stage, device=device)


def agreement_of(classifier: Classifier, samples: Samples, *, device: str) -> float | None:
    """Return the share of labels that the original agrees with, from at most 200 samples; None without labels.

    Raises:
        InputError: It agrees with no more than with shuffled labels (see check_agreement).
    """
    if samples.labels is None:
        return None
    compared = samples.take(np.arange(min(len(samples), N_COMPARED)))
    predicted = predict(classifier.model, classifier.logits, compared, device=device)
    return check_agreement(samples.labels[: len(compared)], predicted)


def check_agreement(labels: IntArray, predicted: IntArray) -> float:
    """Return the share of labels that the original agrees with; refuse one that shuffled labels would reach.

    Args:
        labels: (N,) as given, N > 0.
        predicted: (N,) the original's classes of the same inputs.

    Raises:
        InputError: It agrees with less than half, and with no more than labels shuffled at random would by chance and
            three standard deviations of luck. Fewer than 10 samples tell nothing.
    """
    agreement = float((labels == predicted).mean())
    classes = range(int(max(labels.max(), predicted.max())) + 1)
    by_chance = float(sum((labels == c).mean() * (predicted == c).mean() for c in classes))
    by_luck = by_chance + _SPREADS * math.sqrt(by_chance * (1 - by_chance) / len(labels))
    if len(labels) >= _LEAST and agreement < 0.5 and agreement <= by_luck:
        raise InputError(
            f"the model agrees with the labels of {agreement:.1%} of {len(labels)} clean samples, no more than with"
            f" shuffled labels ({by_chance:.1%}, or up to {by_luck:.1%} by luck): check that the classes have the"
            " model's order (a folder's class is the rank of its name) and that --mean, --std, --scale and --layout are"
            " those of its training"
        )
    return agreement


def check_several_classes(labels: IntArray, *, wanted_by: str) -> None:
    """Refuse labels, given or predicted, of one class where something compares classes.

    Raises:
        CalibrationError: There is only one.
    """
    classes = np.unique(labels)
    if len(classes) == 1:
        raise CalibrationError(
            f"all {len(labels)} clean samples are of class {classes[0]}, but {wanted_by} compares classes: give samples"
            " of every class that the model is to answer; where the model predicted the class, check --mean, --std,"
            " --scale and --layout"
        )
