"""What every baseline is: clean images in, a function from inputs to scores out."""

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from benchmarks.baselines.classifier import OnnxClassifier
from guard.types import FloatArray, IntArray

__all__ = ["Detector", "Fit", "Mitigate", "Scorer", "score_and_count"]

Scorer = Callable[[FloatArray], FloatArray]
"""Maps model-ready inputs (N, ...) to scores (N,): the larger, the more suspicious. It treats each input alone."""

Fit = Callable[[OnnxClassifier, FloatArray, IntArray], Scorer]
"""Maps a classifier, clean inputs (M, ...) in [0, 1] and their labels (M,) to a scorer."""

Mitigate = Callable[[OnnxClassifier, FloatArray, IntArray], onnx.ModelProto]
"""Maps the same to a model with the same input and output, meant to have lost its backdoor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """A published detector of triggered inputs.

    Args:
        fit: How it is fitted.
        published_threshold: The score above which the paper flags an input; None where it takes it from clean scores.
        answers: Whether scoring runs the original on the input itself and so has its answer.
    """

    fit: Fit
    published_threshold: float | None = None
    answers: bool = True


def score_and_count(
    detector: Detector, scorer: Scorer, classifier: OnnxClassifier, inputs: FloatArray
) -> tuple[FloatArray, float]:
    """Return the scores (N,) and the forward passes per input, the one that answers it included.

    Passes are rows run, of the classifier and of its variants, per input; none is typed in.
    """
    before = classifier.tally.rows
    scores = scorer(inputs)
    return scores, (classifier.tally.rows - before) / len(inputs) + (0 if detector.answers else 1)
