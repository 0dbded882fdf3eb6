"""What every inspection may look at."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import onnx

from calibrate.preprocessing import Layout
from calibrate.sites import BoundsProblem, Progress, Rows, Site
from guard.types import IntArray

__all__ = ["InspectionProblem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectionProblem:
    """All that an inspection may look at.

    Args:
        model: The classifier that somebody else trained.
        logits: The name of the tensor (N, C) that holds the logits.
        sites: Its activations, in the order in which the graph computes them.
        n_classes: C.
        inputs: Clean inputs, model-ready, in random order.
        labels: (N,) their classes; the model's own predictions where no labels were given.
        seed: For whatever is drawn at random.
        progress: Told how far the work is.
        device: Where gradients are computed, as torch names it.
        layout: Of images among the inputs.
    """

    model: onnx.ModelProto
    logits: str
    sites: Sequence[Site]
    n_classes: int
    inputs: Rows
    labels: IntArray
    seed: int
    progress: Progress
    device: str = "cpu"
    layout: Layout = "nchw"

    @classmethod
    def of(cls, problem: BoundsProblem) -> Self:
        """Return what bounds are learned from, to be looked at."""
        return cls(**{field.name: getattr(problem, field.name) for field in fields(cls)})
