"""What every inspection may look at."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from calibrate.sites import Progress, Rows, Site
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
