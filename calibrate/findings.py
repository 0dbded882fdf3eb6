"""What a fit found on clean inputs that nothing was fitted on: what its report is drawn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibrate.estimation import TprEstimation
from calibrate.evaluation import Answered, Evaluation
from calibrate.forward import batches
from calibrate.sites import Progress, Rows
from guard.bundle import Bundle
from guard.detector import both_scores
from guard.pair import ModelPair, open_models
from guard.types import BoolArray, FloatArray, IntArray

__all__ = ["Findings", "Seen", "see"]

_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the one-pass detector and the bounds did on the held-out set.

    Args:
        profile: (n,) the standardised scores of the profile.
        head: (n,) those of the head.
        capped: (S,) by site of the detector, in order, how many inputs passed a bound.
    """

    profile: FloatArray
    head: FloatArray
    capped: IntArray

    @property
    def is_profile(self) -> BoolArray:
        """(n,) where the profile speaks: its score is the larger one, or no number."""
        return (self.profile > self.head) | ~np.isfinite(self.profile)


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found while fitting.

    Args:
        answered: What models and guard said of the n inputs of the held-out set.
        held_out: The guard measured on them.
        clean_scores: (n,) ascending scores of the threshold set.
        seen: What the detector saw; None where the bundle has none.
        skipped: Names of images that could not be read.
        dropped_outputs: Outputs of the model that the guarded one does not give.
        unranked: Activations that are not bounded because their rank is unknown.
        estimation: The true-positive rate estimated on recovered triggers, where that was asked for.
        triggers: A picture of these triggers as PNG; empty where there is none.
    """

    answered: Answered
    held_out: Evaluation
    clean_scores: FloatArray
    seen: Seen | None = None
    skipped: Sequence[str] = ()
    dropped_outputs: Sequence[str] = ()
    unranked: Sequence[str] = ()
    estimation: TprEstimation | None = None
    triggers: bytes = b""

    def measured(self) -> Mapping[str, object]:
        """Return the figures that the manifest keeps."""
        estimated = {} if self.estimation is None else {"estimated_tpr": self.estimation.summary()}
        return {
            **estimated,
            "held_out_fpr": self.held_out.measured_fpr,
            "held_out_original_accuracy": self.held_out.original_clean_accuracy,
            "held_out_bounded_accuracy": self.held_out.bounded_clean_accuracy,
            "held_out_guarded_accuracy": self.held_out.guarded_clean_accuracy,
        }


def see(fitted: Bundle, held_out: Rows, *, provider: str, progress: Progress) -> Seen | None:
    """Run the observed original and the bounded model of a bundle over the held-out set; None without a detector."""
    outputs, detector = fitted.manifest.detector, fitted.detector
    if outputs is None or detector is None:
        return None
    original, bounded = open_models(fitted, threads=None, provider=provider)
    pair = ModelPair(fitted.manifest, original=original, bounded=bounded)
    names, parts = [outputs["capped"][site] for site in outputs["sites"]], []
    for rows in batches(len(held_out), _BATCH):
        inputs = held_out[rows]
        _, excess = pair.run_bounded_with(inputs, names)
        touched = np.stack([(found > 0).any(axis=1) for found in excess], axis=1)
        parts.append((*both_scores(pair.run_original(inputs), detector), touched))
        progress("what touches the bounds", rows.stop, len(held_out))
    profile, head, capped = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Seen(profile=profile, head=head, capped=capped.sum(axis=0, dtype=np.int64))
