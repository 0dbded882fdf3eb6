"""How many triggered inputs a guard will flag, estimated before deployment on triggers recovered from the model.

An estimate for triggers of the recovered kinds, and no promise: the attacker's own trigger may be of another kind.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from calibrate.forward import batches
from calibrate.inspection.ban import detect_ban
from calibrate.inspection.class_prior import class_prior
from calibrate.inspection.mesa import MesaFindings, check_recoverable, recover_triggers
from calibrate.inspection.problem import InspectionProblem
from calibrate.inspection.trigger_families import TriggerKind
from calibrate.inspection.triggers import TriggerDistribution
from calibrate.proportions import Proportion
from calibrate.sites import Progress, Rows
from guard.errors import CalibrationError
from guard.runtime import Guard
from guard.types import BoolArray, FloatArray

__all__ = ["VALIDATING_LEVEL", "Recover", "TprEstimate", "TprEstimation", "estimate_tpr", "recover_for_estimate"]

Recover = Callable[[InspectionProblem, int | None], MesaFindings | None]
"""Recovers triggers for a class, or for one that it chooses; None where it finds none to choose."""

VALIDATING_LEVEL = 0.8
"""MESA's level that nothing may be tuned on; the others may be."""

_BATCH = 64
_STREAM = 3  # of the random draws, apart from those that the triggers came from


@dataclass(frozen=True, slots=True, kw_only=True)
class TprEstimate:
    """The share of inputs with triggers of one distribution that a guard flags.

    Args:
        kind: How the triggers are put on.
        beta: The level of success that they were recovered for.
        n_tried: Held-out inputs of other classes, one trigger on each.
        flagged: Of those that the trigger takes to the target class in the original, how many are flagged.
    """

    kind: TriggerKind
    beta: float
    n_tried: int
    flagged: Proportion

    @property
    def is_validating(self) -> bool:
        """Whether this is the level that nothing may be tuned on."""
        return self.beta == VALIDATING_LEVEL

    def summary(self) -> dict[str, object]:
        """Return the figures as JSON can hold them."""
        low, high = self.flagged.interval()
        return {
            "family": self.kind.family,
            "size": self.kind.size,
            "strength": self.kind.strength,
            "beta": self.beta,
            "n_tried": self.n_tried,
            "n_working": self.flagged.n,
            "tpr": self.flagged.share if self.flagged.n else None,
            "interval": [low, high],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TprEstimation:
    """What was recovered, and how much of it is flagged.

    Args:
        target_class: The class that triggers were recovered for; None where none is suspected.
        is_given: Whether the caller named it.
        recovered: What MESA found for it.
        estimates: One per distribution that reached its level.
        examples: (n, ...) a few held-out inputs, to show triggers on.
    """

    target_class: int | None
    is_given: bool
    recovered: MesaFindings | None
    estimates: tuple[TprEstimate, ...]
    examples: FloatArray

    def summary(self) -> dict[str, object]:
        """Return the figures as JSON can hold them."""
        return {
            "target_class": self.target_class,
            "target_class_from": "caller" if self.is_given else "inspection",
            "estimates": [estimate.summary() for estimate in self.estimates],
        }

    def warnings(self) -> Iterator[str]:
        """Yield why there is no estimate, where there is none."""
        if self.target_class is None:
            yield (
                "Neither the head's weights nor BAN suspect a class, so that no triggers were recovered and no"
                " true-positive rate estimated; name a class with --target-class."
            )
        elif not self.estimates:
            yield (
                f"No triggers of the kinds tried reach class {self.target_class}, so that no true-positive rate was"
                " estimated."
            )


def recover_for_estimate(problem: InspectionProblem, target_class: int | None) -> MesaFindings | None:
    """Recover triggers for a class; without one, for a class that the head's weights favour or else BAN suspects.

    Raises:
        CalibrationError: MESA can recover nothing from the problem, or BAN can look for no class.
        InputError: There is no such class.
    """
    with _or("fit without --estimate-tpr"):
        check_recoverable(problem, 0 if target_class is None else target_class)
    if target_class is None:
        prior = class_prior(problem.model, problem.logits, n_classes=problem.n_classes)
        target_class = None if prior is None else prior.suspected_class
    if target_class is None:
        with _or("name a class with --target-class, or fit without --estimate-tpr"):
            target_class = detect_ban(problem).suspected_target_class
    with _or("fit without --estimate-tpr"):
        return None if target_class is None else recover_triggers(problem, target_class)


@contextmanager
def _or(remedy: str) -> Iterator[None]:
    """Add to a refusal what the caller of a fit can do about it."""
    try:
        yield
    except CalibrationError as error:
        raise CalibrationError(f"{error}; {remedy}") from error


def estimate_tpr(
    guard: Guard,
    distributions: Sequence[TriggerDistribution],
    held_out: Rows,
    *,
    seed: int,
    progress: Progress,
) -> tuple[TprEstimate, ...]:
    """Put recovered triggers on held-out inputs and count what the guard flags at its alert threshold.

    Each input carries one trigger of each distribution, so that trials of one estimate are independent. Inputs that the
    original takes for the target class without a trigger are left out.

    Args:
        guard: As fitted.
        distributions: What was recovered.
        held_out: Inputs that neither triggers nor thresholds were fitted on.
        seed: Of triggers and places.
        progress: Told how far the work is.
    """
    return tuple(_estimate(guard, found, held_out, seed, progress) for found in distributions)


def _estimate(
    guard: Guard, distribution: TriggerDistribution, held_out: Rows, seed: int, progress: Progress
) -> TprEstimate:
    parts = list(_tried(guard, distribution, held_out, seed, progress))
    working, flagged = (np.concatenate(column) for column in zip(*parts, strict=True))
    return TprEstimate(
        kind=distribution.kind,
        beta=distribution.beta,
        n_tried=len(working),
        flagged=Proportion(count=int((flagged & working).sum()), n=int(working.sum())),
    )


def _tried(
    guard: Guard, distribution: TriggerDistribution, held_out: Rows, seed: int, progress: Progress
) -> Iterator[tuple[BoolArray, BoolArray]]:
    """Yield batch by batch which triggers work, and which inputs are flagged."""
    rng, target = np.random.default_rng((seed, _STREAM)), distribution.target_class
    for part in batches(len(held_out), _BATCH):
        inputs = np.asarray(held_out[part])
        inputs = inputs[guard.run_original(inputs).outputs.argmax(axis=1) != target]
        progress(f"triggers of {distribution.kind}, {distribution.beta:g}", part.stop, len(held_out))
        if len(inputs):
            verdict = guard(distribution.apply(inputs, distribution.sample(len(inputs), rng), rng))
            yield verdict.predicted_class == target, verdict.flagged
    yield np.zeros(0, dtype=bool), np.zeros(0, dtype=bool)
