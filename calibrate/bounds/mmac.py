"""MMAC, ours: bounds under which no input, however made, gets a margin far beyond those of clean inputs.

After H. Wang, Xiang, Miller and Kesidis, arXiv 2308.04617, whose code `mmac_published` follows. Over bounds per
channel, starting at those of `sigma` and never looser, it minimises

    mean of (g - f)^2 over clean inputs and classes / variance of f
    + cost * mean over synthetic inputs of max(m_g / M - 1, 0)

where f is the original, g the bounded model, m_g a synthetic input's margin under g, and M the median margin of clean
inputs under f. The synthetic inputs climb, half from noise and half from clean inputs, to a large margin under g
itself, and climb on as the bounds move: a true min-max. Of the bounds whose accuracy drop, on inputs not learned
from, is with confidence within what is allowed those are kept under which the synthetic inputs reach least.
"""

import math
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from calibrate.bounds.climbers import Climbers, climb, renew_climbers, start_climbers
from calibrate.bounds.clipped_classifier import endless_batches
from calibrate.bounds.maximum_margin import margins
from calibrate.bounds.mmac_settings import MmacSettings
from calibrate.bounds.mmac_task import MmacTask, prepare
from calibrate.bounds.scaled_bounds import ScaledBounds
from calibrate.bounds.screening import Candidate
from calibrate.gradients import backward
from calibrate.sites import ActivationBounds, BoundsProblem

__all__ = ["MmacSettings", "fit_mmac"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """The bounds that are kept, and how the descent went."""

    kept: Candidate
    first_reach: float
    n_passed: int
    final_cost: float
    stopped: str | None


def fit_mmac(problem: BoundsProblem, *, settings: MmacSettings | None = None) -> ActivationBounds:
    """Learn one bound per channel, on both sides where a site goes negative.

    If no step brings better bounds that pass validation, those of sigma are returned, and ``step`` is 0. So they are,
    or what came after, where the loss ceases to be finite; ``stopped`` then says where.

    Raises:
        CalibrationError: There are too few samples for validation, the model takes no single floating-point input,
            no gradient can be computed, or sigma finds no bounds that keep the accuracy.
    """
    settings = settings or MmacSettings()
    task, bounds = prepare(problem, settings)
    outcome = _descend(task, bounds)
    kept = outcome.kept
    learned = {
        "n_fitting": len(task.original),
        **task.screening.account(kept),
        "reach": _finite(kept.objective),
        "first_reach": _finite(outcome.first_reach),
        "n_passed": outcome.n_passed,
        "final_cost": outcome.final_cost,
        "stopped": outcome.stopped,
    }
    return ActivationBounds(method="mmac", settings={**asdict(settings), **learned}, upper=kept.upper, lower=kept.lower)


def _descend(task: MmacTask, bounds: ScaledBounds) -> _Outcome:
    settings = task.settings
    optimizer = torch.optim.Adam(bounds.parameters, lr=settings.learning_rate)
    batches = endless_batches(len(task.original), settings.batch_size, task.start.generator)
    climbers = _first_climb(task, bounds)
    first = replace(_check(task, bounds, climbers, step=0), upper=task.sigma.upper, lower=task.sigma.lower)
    best, cost, n_passed, stopped = first, settings.initial_cost, 0, None
    for step in range(1, settings.steps + 1):
        loss = _step(task, bounds, optimizer, next(batches), climbers, cost)
        if not math.isfinite(loss):
            stopped = f"the loss was {loss} at step {step}"
            break
        task.progress("mmac", step, settings.steps)
        if step % settings.check_every:
            continue
        climbers = _climb(
            task, bounds, renew_climbers(task.start, climbers, settings.n_synthetic), settings.ascent_steps
        )
        candidate = _check(task, bounds, climbers, step=step)
        passed = task.screening.admits(candidate)
        n_passed += passed
        cost = min(cost * settings.cost_factor, settings.max_cost) if passed else cost / settings.cost_factor
        if passed and candidate.objective < best.objective:
            best = candidate
        if step - best.step >= settings.stop_after * settings.check_every:
            break
    task.progress("mmac", settings.steps, settings.steps)
    return _Outcome(kept=best, first_reach=first.objective, n_passed=n_passed, final_cost=cost, stopped=stopped)


def _step(
    task: MmacTask,
    bounds: ScaledBounds,
    optimizer: torch.optim.Optimizer,
    rows: Tensor,
    climbers: Climbers,
    cost: float,
) -> float:
    """Update the bounds on a batch of clean and of synthetic inputs; return the loss before."""
    optimizer.zero_grad()
    rows = rows.to(task.original.device)
    logits = task.classifier.logits(task.start.clean[rows], bounds.upper, bounds.lower)
    error = (logits - task.original[rows]).square().mean() / task.variance
    backward(error)
    if not len(climbers.units):
        return math.inf
    drawn = climbers.drawn(task.settings.synthetic_batch_size, task.start.generator)
    penalty = cost * _reach(task, bounds, drawn)
    backward(penalty)
    optimizer.step()
    bounds.hold()
    return error.item() + penalty.item()


def _reach(task: MmacTask, bounds: ScaledBounds, climbers: Climbers) -> Tensor:
    """Return how far the margins of synthetic inputs under g exceed a clean one, in clean margins, on average."""
    if not len(climbers.units):  # none whose margin has a finite gradient
        return torch.tensor(torch.inf)
    logits = task.classifier.logits(task.start.within.inputs_of(climbers.units), bounds.upper, bounds.lower)
    reached = margins(logits, climbers.classes)
    return (reached[reached.isfinite()] / task.clean_margin - 1).relu().mean()


@torch.no_grad()
def _check(task: MmacTask, bounds: ScaledBounds, climbers: Climbers, *, step: int) -> Candidate:
    reach = float(_reach(task, bounds, climbers))
    return task.screening.candidate(bounds, step=step, objective=reach if math.isfinite(reach) else math.inf)


def _first_climb(task: MmacTask, bounds: ScaledBounds) -> Climbers:
    climbers = start_climbers(task.start, task.settings.n_synthetic)
    for step in range(task.settings.first_ascent_steps):
        climbers = _climb(task, bounds, climbers, 1)
        task.progress("climbing to large margins", step + 1, task.settings.first_ascent_steps)
    return climbers


def _climb(task: MmacTask, bounds: ScaledBounds, climbers: Climbers, steps: int) -> Climbers:
    """Let synthetic inputs climb under the bounds as they are."""
    upper, lower = ({site: b.detach() for site, b in side.items()} for side in (bounds.upper, bounds.lower))

    def logits(inputs: Tensor) -> Tensor:
        return task.classifier.logits(inputs, upper, lower)

    return climb(logits, climbers, task.start.within, steps=steps, step=task.settings.ascent_step)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
