"""UNIT, ours: the tightest bounds per channel under which the model still says what it said, by gradient descent.

After Cheng et al., ECCV 2024, arXiv 2407.11372, whose code `unit_published` follows. Over the bounds b = m + s exp(t),
with m and s the mean and standard deviation over inputs of the channel's maximum over positions, it minimises

    mean of KL(softmax f || softmax g) on clean inputs + cost * sum over sites of the mean of exp(t)

where f is the original and g the bounded model. A site that goes negative is bounded from below alike, by its minima.
Kept are the bounds of the smallest sum among those whose accuracy drop, on inputs not learned from, is within a share
of what is allowed, and with confidence within all of it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.bounds.clipped_classifier import ClippedClassifier, LabelledInputs
from calibrate.bounds.extreme_bounds import ExtremeBounds
from calibrate.bounds.unit_schedule import CostSchedule, next_cost, start_cost
from calibrate.bounds.validation import split_for_validation
from calibrate.differentiable import fast_precision
from calibrate.evaluation import accuracy_drop_limit
from calibrate.sites import ActivationBounds, BoundsProblem, Progress, RowsInMemory
from calibrate.statistics import observe
from guard.errors import CalibrationError
from guard.rows import each
from guard.types import BoolArray, FloatArray

__all__ = ["UnitSettings", "fit_unit"]


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
        validation_fraction: The part of every class that decides which bounds pass, and is not learned from.
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
    confidence: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What stays the same from step to step.

    Args:
        classifier: Computes f and g.
        fitting: What is learned from.
        original: (N, C) f's log-probabilities of that.
        validation: What decides which bounds pass.
        original_right: (N,) its rows that f gets right.
        max_accuracy_drop: What bounds may cost.
        settings: How to learn.
        seed: Of the order of the inputs.
        progress: Told after every step.
    """

    classifier: ClippedClassifier
    fitting: LabelledInputs
    original: Tensor
    validation: LabelledInputs
    original_right: BoolArray
    max_accuracy_drop: float
    settings: UnitSettings
    seed: int
    progress: Progress

    def admits(self, candidate: "_Candidate") -> bool:
        """Whether these bounds may be kept."""
        allowed = self.max_accuracy_drop
        return candidate.drop <= self.settings.drop_share * allowed and candidate.drop_limit <= allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """Bounds that may be kept: their penalty, and the accuracy drop and its confidence limit, which decide."""

    step: int
    penalty: float
    drop: float
    drop_limit: float
    upper: Mapping[str, FloatArray]
    lower: Mapping[str, FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """The bounds that are kept, and how the descent went; ``stopped`` says what broke it off."""

    kept: _Candidate
    n_passed: int
    final_cost: float
    stopped: str | None


def fit_unit(problem: BoundsProblem, *, settings: UnitSettings | None = None) -> ActivationBounds:
    """Learn one bound per channel, on both sides where a site goes negative.

    Raises:
        CalibrationError: There are too few samples for validation, no gradient can be computed, no bounds keep the
            accuracy, or the loss is no number before any do.
    """
    settings = settings or UnitSettings()
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
    bounds = ExtremeBounds.of(
        observed.moments["maximum"],
        observed.moments["minimum"],
        deviations=settings.deviations,
        device=problem.device,
    )
    task = _task(problem, fitting, validation, settings)
    return _report(task, _descend(task, bounds))


def _task(problem: BoundsProblem, fitting: LabelledInputs, validation: LabelledInputs, settings: UnitSettings) -> _Task:
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
    return _Task(
        classifier=classifier,
        fitting=fitting,
        original=torch.cat(original).log_softmax(1),
        validation=validation,
        original_right=classifier.is_right(validation, {}),
        max_accuracy_drop=problem.max_accuracy_drop,
        settings=settings,
        seed=problem.seed,
        progress=problem.progress,
    )


def _descend(task: _Task, bounds: ExtremeBounds) -> _Outcome:
    settings = task.settings
    optimizer = torch.optim.Adam(bounds.parameters, lr=settings.learning_rate, betas=settings.betas)
    state, batches, stopped = start_cost(settings.schedule), _endless_batches(task), None
    first = _check(task, bounds, step=0)
    best = first if task.admits(first) else None
    n_passed = int(best is not None)
    for step in range(1, settings.steps + 1):
        loss = _step(task, bounds, optimizer, next(batches), state.cost)
        if not math.isfinite(loss):
            stopped = f"the loss was {loss} at step {step}"
            break
        task.progress("unit", step, settings.steps)
        if step % settings.check_every:
            continue
        candidate = _check(task, bounds, step=step)
        passed = task.admits(candidate)
        n_passed += passed
        state = next_cost(state, passed=passed, schedule=settings.schedule)
        if passed and (best is None or candidate.penalty < best.penalty):
            best = candidate
        if best is not None and step - best.step >= settings.stop_after * settings.check_every:
            break
    task.progress("unit", settings.steps, settings.steps)
    if best is None:
        raise _nothing_kept(task, first, stopped)
    return _Outcome(kept=best, n_passed=n_passed, final_cost=state.cost, stopped=stopped)


def _endless_batches(task: _Task) -> Iterator[Tensor]:
    """Yield rows of the fitting part, each once before any comes again."""
    generator = torch.Generator().manual_seed(task.seed)
    while True:
        order = torch.randperm(len(task.fitting), generator=generator)
        yield from torch.split(order, task.settings.batch_size)


def _step(task: _Task, bounds: ExtremeBounds, optimizer: torch.optim.Optimizer, rows: Tensor, cost: float) -> float:
    """Update the bounds; return the loss before, and leave them alone where it is no number."""
    optimizer.zero_grad()
    inputs = each(lambda tensor: tensor[rows], task.fitting.inputs)
    bounded = task.classifier.logits(inputs, bounds.upper, bounds.lower).log_softmax(1)
    original = task.original[rows.to(task.original.device)]
    loss = F.kl_div(bounded, original, log_target=True, reduction="batchmean") + cost * bounds.penalty
    if torch.isfinite(loss):
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    return loss.item()


@torch.no_grad()
def _check(task: _Task, bounds: ExtremeBounds, *, step: int) -> _Candidate:
    upper, lower = bounds.upper, bounds.lower
    right = task.classifier.is_right(task.validation, upper, lower)
    return _Candidate(
        step=step,
        penalty=bounds.penalty.item(),
        drop=float(task.original_right.mean() - right.mean()),
        drop_limit=accuracy_drop_limit(task.original_right, right, confidence=task.settings.confidence),
        upper=_arrays(upper),
        lower=_arrays(lower),
    )


def _arrays(bounds: Mapping[str, Tensor]) -> dict[str, FloatArray]:
    return {site: bound.cpu().numpy() for site, bound in bounds.items()}


def _nothing_kept(task: _Task, first: _Candidate, stopped: str | None) -> CalibrationError:
    if stopped is not None:
        return CalibrationError(f"{stopped}, before any bounds passed; check the samples, or use --method sigma")
    return CalibrationError(
        f"no bounds passed on {len(task.validation)} samples: the loosest cost {first.drop:.3f} of clean accuracy and"
        f" may cost {first.drop_limit:.3f}; {task.settings.drop_share * task.max_accuracy_drop:g} and"
        f" {task.max_accuracy_drop:g} are allowed: give more clean samples or allow more with --max-accuracy-drop"
    )


def _report(task: _Task, outcome: _Outcome) -> ActivationBounds:
    kept = outcome.kept
    learned = {
        "n_fitting": len(task.fitting),
        "n_validation": len(task.validation),
        "original_accuracy": float(np.mean(task.original_right)),
        "max_accuracy_drop": task.max_accuracy_drop,
        "drop": kept.drop,
        "drop_limit": kept.drop_limit,
        "step": kept.step,
        "penalty": kept.penalty,
        "n_passed": outcome.n_passed,
        "final_cost": outcome.final_cost,
        "stopped": outcome.stopped,
    }
    return ActivationBounds(
        method="unit", settings={**asdict(task.settings), **learned}, upper=kept.upper, lower=kept.lower
    )
