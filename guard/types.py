"""The values that cross module borders, and the letters that name their axes.

Axis letters, used in every docstring of the project:
    N  inputs (rows of a batch)      C  classes
    K  channels of one activation    H, W  height and width
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from guard.errors import InputError

__all__ = [
    "Answers",
    "BoolArray",
    "CappedChannel",
    "Evidence",
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
class CappedChannel:
    """A channel of one activation that went past its bound.

    Args:
        site: The tensor.
        channel: Its index.
        excess: How far past, in clean standard deviations of this channel.
    """

    site: str
    channel: int
    excess: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What one input did that clean inputs do not: for an operator's eyes, and an oracle for an attacker's.

    Args:
        row: Of the verdict.
        predicted_class: The original model's class.
        corrected_class: The class of the answer given.
        p_value: Share of clean scores at least as large.
        flagged: Past the alert threshold.
        corrected: Past the correction threshold.
        score: What the thresholds cut: the larger one of the next two.
        profile: The standardised score of the profile; 0 is usual, 1 is exceeded by a tenth of clean inputs.
        head: The standardised score of the head.
        raised_by: Which of the two the score is.
        sites: The S activations that the detector looks at, in order.
        numbers: The M numbers that the profile holds of each site (guard.detector), such as its peak.
        away: (M, S) how far each number lies from its clean mean, in clean standard deviations.
        limits: (M, S) at which distance this number raises the alarm by itself, all others being as usual.
        capped: (S,) how far the furthest channel went past its bound in the bounded model, in its clean standard
            deviations; 0 where none did.
        channels: The channels that went furthest, at most 12, furthest first.
        excess_map: (H, W) of images, where activations went past bounds: the sum over sites of log(1 + excess).
        place: The middle of the strongest place, as fractions of height and width; None where no bound was passed.
    """

    row: int
    predicted_class: int
    corrected_class: int
    p_value: float
    flagged: bool
    corrected: bool
    score: float
    profile: float
    head: float
    raised_by: Literal["profile", "head"]
    sites: tuple[str, ...]
    numbers: tuple[str, ...]
    away: FloatArray
    limits: FloatArray
    capped: FloatArray
    channels: tuple[CappedChannel, ...]
    excess_map: FloatArray | None
    place: tuple[float, float] | None


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
        evidence_of: Gathers the evidence of a row when asked; None without a one-pass detector. It keeps the inputs
            alive as long as the verdict, and reads them as they are by then.
    """

    predicted_class: IntArray
    corrected_class: IntArray
    p_value: FloatArray
    divergence: FloatArray
    score: FloatArray
    flagged: BoolArray
    corrected: BoolArray
    outputs: FloatArray
    evidence_of: Callable[[int], Evidence] | None = field(default=None, compare=False, repr=False)

    def of(self, rows: slice) -> "Verdict":
        """Return the judgement of consecutive rows, whose evidence counts from the first of them.

        Args:
            rows: From one row up to another; no step.
        """
        start, end, _ = rows.indices(len(self.flagged))
        arrays = {name: getattr(self, name)[start:end] for name in _PER_ROW}
        evidence_of = None if self.evidence_of is None else partial(_evidence_from, self.evidence_of, start)
        return replace(self, **arrays, evidence_of=evidence_of)

    def explain(self, row: int) -> Evidence:
        """Say what one row did that clean inputs do not: one run of the bounded model, made only now.

        Args:
            row: From 0 up.

        Raises:
            InputError: There is no such row, or the bundle has no one-pass detector.
            ModelError: The bounded model failed.
        """
        if self.evidence_of is None:
            raise InputError("a bundle without a one-pass detector keeps no evidence; fit it with --method auto")
        if not isinstance(row, int | np.integer) or not 0 <= row < len(self.flagged):
            raise InputError(f"row {row} is not among the {len(self.flagged)} rows of this verdict, counted from 0")
        return self.evidence_of(int(row))


_PER_ROW = tuple(entry.name for entry in fields(Verdict) if entry.name != "evidence_of")


def _evidence_from(evidence_of: Callable[[int], Evidence], start: int, row: int) -> Evidence:
    return replace(evidence_of(start + row), row=row)
