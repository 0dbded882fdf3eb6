"""What may be set about our form of UNIT, what stays the same while it learns, and how that is made from a problem."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from calibrate.bounds.clipped_classifier import ClippedClassifier, LabelledInputs
from calibrate.bounds.scaled_bounds import ScaledBounds
from calibrate.bounds.screening import Screening
from calibrate.bounds.unit_schedule import CostSchedule
from calibrate.bounds.validation import split_for_validation
from calibrate.differentiable import fast_precision
from calibrate.evaluation import CONFIDENCE
from calibrate.sites import BoundsProblem, Progress, RowsInMemory
from calibrate.statistics import observe
from guard.rows import each

__all__ = ["UnitSettings", "UnitTask", "prepare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSettings:
    """How bounds are learned.

    Args:
        deviations: Where they start: so many standard deviations above the mean of the maxima.
        steps: Updates at most.
        batch_size: Inputs per update.
        learning_rate: Of Adam, on t: about the share by which one step moves a bound's distance from the mean.
        betas: Of Adam.
        schedule: Of the cost of loose bounds; it moves at every check.
        check_every: Updates between two checks of the accuracy.
        stop_after: Stop when so many checks in a row brought no better bounds.
        validation_fraction: The part of the inputs, spread over the classes, that decides which bounds pass and is not
            learned from.
        drop_share: The share of the allowed accuracy drop that the measured drop may use up: tighter bounds detect
            worse.
        confidence: With which the drop is within all that is allowed, one-sided.
    """

    deviations: float = 4.0
    steps: int = 240
    batch_size: int = 64
    learning_rate: float = 0.05
    betas: tuple[float, float] = (0.5, 0.9)
    schedule: CostSchedule = field(default_factory=lambda: CostSchedule(patience=1, max_cost=1e2))
    check_every: int = 4
    stop_after: int = 20
    validation_fraction: float = 0.5
    drop_share: float = 0.3
    confidence: float = CONFIDENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitTask:
    """What stays the same from step to step.

    Args:
        classifier: Computes f and g.
        fitting: What is learned from.
        original: (N, C) f's log-probabilities of that.
        screening: What decides which bounds pass.
        settings: How to learn.
        seed: Of the order of the inputs.
        progress: Told after every step.
    """

    classifier: ClippedClassifier
    fitting: LabelledInputs
    original: Tensor
    screening: Screening
    settings: UnitSettings
    seed: int
    progress: Progress


def prepare(problem: BoundsProblem, settings: UnitSettings) -> tuple[UnitTask, ScaledBounds]:
    """Deal the bounds set into what is learned from and what validates; return the task and where the bounds start.

    Raises:
        CalibrationError: There are too few samples for validation, an activation is not finite, or the graph holds an
            operator without gradient.
    """
    fitting, validation = split_for_validation(problem, fraction=settings.validation_fraction)
    observed = observe(
        problem.model,
        problem.logits,
        problem.sites,
        RowsInMemory(inputs=each(Tensor.numpy, fitting.inputs)),
        poolings=["maximum", "minimum"],
        progress=problem.progress,
        device=problem.device,
    )
    moments = observed.moments
    bounds = ScaledBounds.beyond(
        moments["maximum"], moments["minimum"], deviations=settings.deviations, device=problem.device
    )
    return _task(problem, fitting, validation, settings), bounds


def _task(
    problem: BoundsProblem, fitting: LabelledInputs, validation: LabelledInputs, settings: UnitSettings
) -> UnitTask:
    classifier = ClippedClassifier(
        problem.model,
        problem.logits,
        problem.sites,
        batch_size=settings.batch_size,
        device=problem.device,
        precision=fast_precision(problem.device),
    )
    with torch.no_grad():
        original = [classifier.logits(inputs, {}) for inputs, _ in fitting.batches(settings.batch_size)]
    return UnitTask(
        classifier=classifier,
        fitting=fitting,
        original=torch.cat(original).log_softmax(1),
        screening=Screening(
            classifier=classifier,
            validation=validation,
            original_right=classifier.is_right(validation, {}),
            max_accuracy_drop=problem.max_accuracy_drop,
            confidence=settings.confidence,
            drop_share=settings.drop_share,
        ),
        settings=settings,
        seed=problem.seed,
        progress=problem.progress,
    )
