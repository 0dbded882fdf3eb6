"""Decide which of many bounds may be kept, so that chance on the inputs that decide does not let accuracy go."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from calibrate.bounds.clipped_classifier import ClippedClassifier, LabelledInputs
from calibrate.bounds.scaled_bounds import ScaledBounds
from calibrate.evaluation import accuracy_drop_limit
from guard.types import BoolArray, FloatArray

__all__ = ["Candidate", "Screening"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Bounds that may be kept.

    Args:
        step: Updates before them.
        objective: What the bounds kept have least of.
        drop: The clean accuracy that they cost, measured.
        drop_limit: Its upper confidence limit.
        upper: By site.
        lower: By site, where it is bounded on both sides.
    """

    step: int
    objective: float
    drop: float
    drop_limit: float
    upper: Mapping[str, FloatArray]
    lower: Mapping[str, FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Screening:
    """What decides which bounds may be kept.

    Args:
        classifier: Computes the original and the bounded model.
        validation: Inputs that bounds are not learned from.
        original_right: (N,) those that the original gets right.
        max_accuracy_drop: What bounds may cost.
        confidence: With which they cost no more, one-sided.
        drop_share: The share of it that the measured drop may use up.
    """

    classifier: ClippedClassifier
    validation: LabelledInputs
    original_right: BoolArray
    max_accuracy_drop: float
    confidence: float
    drop_share: float = 1.0

    @torch.no_grad()
    def candidate(self, bounds: ScaledBounds, *, step: int, objective: float) -> Candidate:
        """Measure what bounds cost."""
        upper, lower = bounds.upper, bounds.lower
        right = self.classifier.is_right(self.validation, upper, lower)
        return Candidate(
            step=step,
            objective=objective,
            drop=float(self.original_right.mean() - right.mean()),
            drop_limit=accuracy_drop_limit(self.original_right, right, confidence=self.confidence),
            upper={site: bound.cpu().numpy() for site, bound in upper.items()},
            lower={site: bound.cpu().numpy() for site, bound in lower.items()},
        )

    def admits(self, candidate: Candidate) -> bool:
        """Say whether a candidate may be kept."""
        share = self.drop_share * self.max_accuracy_drop
        return candidate.drop <= share and candidate.drop_limit <= self.max_accuracy_drop

    def account(self, kept: Candidate) -> dict[str, float]:
        """Return what a bundle says of how its bounds were screened."""
        return {
            "n_validation": len(self.validation),
            "original_accuracy": float(np.mean(self.original_right)),
            "max_accuracy_drop": self.max_accuracy_drop,
            "drop": kept.drop,
            "drop_limit": kept.drop_limit,
            "step": kept.step,
        }
