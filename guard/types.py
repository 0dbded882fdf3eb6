"""The values that cross module borders, and the letters that name their axes.

Axis letters, used in every docstring of the project:
    N  inputs (rows of a batch)      C  classes
    K  channels of one activation    H, W  height and width
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Answers",
    "BoolArray",
    "FloatArray",
    "Inputs",
    "IntArray",
    "ModelRun",
    "Observed",
    "TensorSpec",
    "Threshold",
    "Verdict",
]

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Inputs = NDArray[np.generic] | Mapping[str, NDArray[np.generic]]
"""A model's inputs: one array (N, ...) for a model with one input, and arrays by input name, of one N, for any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, element type and shape of a model's input or output.

    Args:
        name: The tensor's name in the graph.
        dtype: The numpy name of the element type, such as ``float32``.
        shape: One entry per axis; None where the axis is free. Axis 0 is N.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def with_free_batch(self) -> "TensorSpec":
        """Return the same with N free."""
        return replace(self, shape=(None, *self.shape[1:]))

    def __str__(self) -> str:
        axes = ", ".join("?" if n is None else str(n) for n in self.shape)
        return f"{self.name}: {self.dtype} ({axes})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A cut on a score, and the promise that comes with it.

    Args:
        value: Scores above it are past the threshold.
        target_fpr: The false-positive rate asked for, a fraction.
        n: The number of clean scores it was fitted on.
    """

    value: float
    target_fpr: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What one run of the observed original shows beside its answers.

    Args:
        profile: (N, F) float32 numbers that say how unusual the activations are, four per site (guard.detector).
        head: (N, C) float64 logits of the head run again behind the bounded last site, up to a constant per row.
    """

    profile: FloatArray
    head: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What one model says of a batch.

    Args:
        outputs: (N, C) the model's output as it leaves the graph, logits or probabilities, in its own dtype.
        logits: (N, C) float64, up to a constant per row.
        observed: What its run shows beside; None of models that show nothing more.
    """

    outputs: FloatArray
    logits: FloatArray
    observed: Observed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRun:
    """What one run of both models yields: all that a score may look at."""

    original: Answers
    bounded: Answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The guard's judgement of a batch, one entry per row.

    Args:
        predicted_class: (N,) the original model's class.
        corrected_class: (N,) the class of the answer given; equals predicted_class where nothing was corrected.
        p_value: (N,) share of clean scores at least as large, in (0, 1]; small is suspicious.
        divergence: (N,) the margin that the bounds cost the predicted class; with a one-pass detector, that the bound
            of the last site costs it. Keep it, and the score, to yourself: they are an oracle for an attacker.
        score: (N,) what the thresholds cut: a function of the divergence, or the one-pass score, as the bundle says.
        flagged: (N,) past the alert threshold.
        corrected: (N,) past the correction threshold: not answered by the original on the input as it is.
        outputs: (N, C) the answer, in the original's own terms and dtype.
    """

    predicted_class: IntArray
    corrected_class: IntArray
    p_value: FloatArray
    divergence: FloatArray
    score: FloatArray
    flagged: BoolArray
    corrected: BoolArray
    outputs: FloatArray
