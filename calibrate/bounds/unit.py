"""UNIT, ours: the tightest bounds per channel under which the model still says what it said, by gradient descent.

After Cheng et al., ECCV 2024, arXiv 2407.11372, whose code `unit_published` follows. Over the bounds b = m + s exp(t),
with m and s the mean and standard deviation over inputs of the channel's maximum over positions, it minimises

    mean of KL(softmax f || softmax g) on clean inputs + cost * sum over sites of the mean of exp(t)

where f is the original and g the bounded model. A site that goes negative is bounded from below alike, by its minima.
Kept are the bounds of the smallest sum among those whose accuracy drop, on inputs not learned from, is within a share
of what is allowed, and with confidence within all of it.
"""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.bounds.clipped_classifier import endless_batches
from calibrate.bounds.scaled_bounds import ScaledBounds
from calibrate.bounds.screening import Candidate
from calibrate.bounds.unit_schedule import next_cost, start_cost
from calibrate.bounds.unit_task import UnitSettings, UnitTask, prepare
from calibrate.gradients import backward
from calibrate.sites import ActivationBounds, BoundsProblem
from guard.errors import CalibrationError
from guard.rows import each

__all__ = ["UnitSettings", "fit_unit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """The bounds that are kept, and how the descent went; ``stopped`` says what broke it off."""

    kept: Candidate
    n_passed: int
    final_cost: float
    stopped: str | None


def fit_unit(problem: BoundsProblem, *, settings: UnitSettings | None = None) -> ActivationBounds:
    """Learn one bound per channel, on both sides where a site goes negative.

    Raises:
        CalibrationError: There are too few samples for validation, no gradient can be computed, no bounds keep the
            accuracy, or the loss is no number before any do.
    """
    task, bounds = prepare(problem, settings or UnitSettings())
    return _report(task, _descend(task, bounds))


def _descend(task: UnitTask, bounds: ScaledBounds) -> _Outcome:
    settings = task.settings
    optimizer = torch.optim.Adam(bounds.parameters, lr=settings.learning_rate, betas=settings.betas)
    batches = endless_batches(len(task.fitting), settings.batch_size, torch.Generator().manual_seed(task.seed))
    state, stopped = start_cost(settings.schedule), None
    first = _check(task, bounds, step=0)
    best = first if task.screening.admits(first) else None
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
        passed = task.screening.admits(candidate)
        n_passed += passed
        state = next_cost(state, passed=passed, schedule=settings.schedule)
        if passed and (best is None or candidate.objective < best.objective):
            best = candidate
        if best is not None and step - best.step >= settings.stop_after * settings.check_every:
            break
    task.progress("unit", settings.steps, settings.steps)
    if best is None:
        raise _nothing_kept(task, first, stopped)
    return _Outcome(kept=best, n_passed=n_passed, final_cost=state.cost, stopped=stopped)


def _step(task: UnitTask, bounds: ScaledBounds, optimizer: torch.optim.Optimizer, rows: Tensor, cost: float) -> float:
    """Update the bounds; return the loss before, and leave them alone where it is no number."""
    optimizer.zero_grad()
    inputs = each(lambda tensor: tensor[rows], task.fitting.inputs)
    bounded = task.classifier.logits(inputs, bounds.upper, bounds.lower).log_softmax(1)
    original = task.original[rows.to(task.original.device)]
    divergence = F.kl_div(bounded, original, log_target=True, reduction="batchmean")
    expense = cost * bounds.penalty
    loss = float(divergence.detach() + expense.detach())
    if math.isfinite(loss):
        backward(divergence)
        backward(expense)
        optimizer.step()
    return loss


def _check(task: UnitTask, bounds: ScaledBounds, *, step: int) -> Candidate:
    return task.screening.candidate(bounds, step=step, objective=bounds.penalty.item())


def _nothing_kept(task: UnitTask, first: Candidate, stopped: str | None) -> CalibrationError:
    if stopped is not None:
        return CalibrationError(f"{stopped}, before any bounds passed; check the samples, or use --method sigma")
    screening = task.screening
    return CalibrationError(
        f"no bounds passed on {len(screening.validation)} samples: the loosest cost {first.drop:.3f} of clean accuracy"
        f" and may cost {first.drop_limit:.3f}; {screening.drop_share * screening.max_accuracy_drop:g} and"
        f" {screening.max_accuracy_drop:g} are allowed: give more clean samples or allow more with --max-accuracy-drop"
    )


def _report(task: UnitTask, outcome: _Outcome) -> ActivationBounds:
    kept = outcome.kept
    learned = {
        "n_fitting": len(task.fitting),
        **task.screening.account(kept),
        "penalty": kept.objective,
        "n_passed": outcome.n_passed,
        "final_cost": outcome.final_cost,
        "stopped": outcome.stopped,
    }
    return ActivationBounds(
        method="unit", settings={**asdict(task.settings), **learned}, upper=kept.upper, lower=kept.lower
    )
