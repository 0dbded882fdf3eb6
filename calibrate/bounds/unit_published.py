"""UNIT as published: the tightest bound per neuron that keeps accuracy, learned by gradient descent.

Cheng, Shen, Zhang, Tao, An, Guo, Ma and Zhang, "UNIT: Backdoor Mitigation via Automated Neural Distribution
Tightening", ECCV 2024, arXiv 2407.11372. Over the bounds b = max(p, 0) it minimises

    mean cross-entropy of the clipped network + cost * sum over sites of the mean of b

and keeps the bounds with the smallest sum among those that pass validation. The cost follows `unit_schedule`. This
follows the official code (Megum1/UNIT at b78fe55), which keeps the bounds from before the update whose accuracy
admitted them, and takes the gradient of all data at every step; `unit` is ours.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from calibrate.bounds.clipped_classifier import ClippedClassifier, LabelledInputs
from calibrate.bounds.unit_published_settings import PublishedUnitSettings
from calibrate.bounds.unit_schedule import next_cost, start_cost
from calibrate.bounds.validation import keeps_accuracy, split_for_validation
from calibrate.gradients import backward
from calibrate.sites import ActivationBounds, BoundsProblem, Progress, RowsInMemory, Site
from calibrate.statistics import Moments, site_moments
from guard.errors import CalibrationError
from guard.rows import each

__all__ = ["PublishedUnitSettings", "fit_unit_published"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What stays the same from step to step."""

    classifier: ClippedClassifier
    fitting: LabelledInputs
    validation: LabelledInputs
    original_accuracy: float
    max_accuracy_drop: float
    settings: PublishedUnitSettings
    progress: Progress

    def admits(self, accuracy: float) -> bool:
        """Whether bounds of this validation accuracy may be kept."""
        return keeps_accuracy(accuracy, original=self.original_accuracy, max_drop=self.max_accuracy_drop)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """Bounds that may be kept: their loss and penalty, and the validation accuracy that decides."""

    step: int
    loss: float
    penalty: float
    accuracy: float
    upper: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """The bounds that are kept, and how the descent went."""

    kept: _Candidate
    n_passed: int
    final_cost: float
    stopped: str | None


def fit_unit_published(problem: BoundsProblem, *, settings: PublishedUnitSettings | None = None) -> ActivationBounds:
    """Learn one upper bound per neuron or channel; per channel wherever a site has a free axis besides N.

    The inputs are held in memory, model-ready; activations only ``batch_size`` inputs at a time. If no step
    passes validation, the last bounds are returned, and the settings say so: ``n_passed`` is 0.

    Args:
        problem: What is to be bounded, and the data.
        settings: How to learn.

    Raises:
        CalibrationError: There are too few samples for validation, no gradient can be computed, or the loss is no
            number before any bounds pass.
    """
    settings = _for_sites(settings or PublishedUnitSettings(), problem.sites)
    fitting, validation = split_for_validation(problem, fraction=settings.validation_fraction)
    classifier = ClippedClassifier(
        problem.model, problem.logits, problem.sites, batch_size=settings.batch_size, device=problem.device
    )
    task = _Task(
        classifier=classifier,
        fitting=fitting,
        validation=validation,
        original_accuracy=classifier.accuracy(validation, {}),
        max_accuracy_drop=problem.max_accuracy_drop,
        settings=settings,
        progress=problem.progress,
    )
    moments = site_moments(
        problem.model,
        problem.sites,
        RowsInMemory(inputs=each(Tensor.numpy, fitting.inputs)),
        pooling=settings.granularity,
        progress=problem.progress,
        device=problem.device,
    )
    return _report(task, _descend(task, _starting_bounds(moments, settings, problem.device)))


def _for_sites(settings: PublishedUnitSettings, sites: Sequence[Site]) -> PublishedUnitSettings:
    """Give up bounds per neuron where the samples' size would decide how many neurons there are."""
    is_free = any(size is None for site in sites for size in site.shape[1:])
    return replace(settings, granularity="channel") if is_free else settings


def _starting_bounds(moments: Mapping[str, Moments], settings: PublishedUnitSettings, device: str) -> dict[str, Tensor]:
    upper = {site: m.mean + settings.deviations * m.std for site, m in moments.items()}
    return {
        site: torch.from_numpy(bound.astype(np.float32)).to(device).requires_grad_() for site, bound in upper.items()
    }


def _penalty(upper: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([bound.mean() for bound in upper.values()]).sum()


def _descend(task: _Task, parameters: Mapping[str, Tensor]) -> _Outcome:
    settings = task.settings
    optimizer = torch.optim.Adam(parameters.values(), lr=settings.learning_rate, betas=settings.betas)
    state, best, n_passed = start_cost(settings.schedule), None, 0
    for step in range(1, settings.steps + 1):
        candidate = _step(task, parameters, optimizer, step=step, cost=state.cost)
        if not math.isfinite(candidate.loss):
            stopped = f"the loss was {candidate.loss} at step {step}"
            if best is None:
                raise CalibrationError(f"{stopped}, before any bounds passed; check the samples, or use --method sigma")
            return _Outcome(kept=best, n_passed=n_passed, final_cost=state.cost, stopped=stopped)
        passed = task.admits(candidate.accuracy)
        if passed and (best is None or candidate.penalty < best.penalty):
            best = candidate
        n_passed += passed
        state = next_cost(state, passed=passed, schedule=settings.schedule)
        task.progress("unit-published", step, settings.steps)
    kept = best or _after_update(candidate, parameters)
    return _Outcome(kept=kept, n_passed=n_passed, final_cost=state.cost, stopped=None)


def _step(
    task: _Task, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, *, step: int, cost: float
) -> _Candidate:
    """Update the bounds and measure them; what is kept is one update older than what is measured."""
    before = _upper(parameters)
    optimizer.zero_grad()
    cross_entropy = task.classifier.add_cross_entropy_gradients(task.fitting, parameters)
    expense = cost * _penalty({site: p.relu() for site, p in parameters.items()})
    backward(expense)
    optimizer.step()
    accuracy = task.classifier.accuracy(task.validation, _upper(parameters))
    loss = cross_entropy + expense.item()
    return _Candidate(step=step, loss=loss, penalty=float(_penalty(before)), accuracy=accuracy, upper=before)


def _after_update(candidate: _Candidate, parameters: Mapping[str, Tensor]) -> _Candidate:
    """Return the last bounds, those that the candidate's accuracy was measured with."""
    upper = _upper(parameters)
    return replace(candidate, penalty=float(_penalty(upper)), upper=upper)


def _upper(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {site: p.detach().clamp(min=0) for site, p in parameters.items()}


def _report(task: _Task, outcome: _Outcome) -> ActivationBounds:
    learned = {
        "max_accuracy_drop": task.max_accuracy_drop,
        "original_accuracy": task.original_accuracy,
        "validation_accuracy": outcome.kept.accuracy,
        "n_fitting": len(task.fitting),
        "n_validation": len(task.validation),
        "step": outcome.kept.step,
        "penalty": outcome.kept.penalty,
        "n_passed": outcome.n_passed,
        "final_cost": outcome.final_cost,
        "stopped": outcome.stopped,
    }
    upper = {site: bound.cpu().numpy() for site, bound in outcome.kept.upper.items()}
    return ActivationBounds(method="unit-published", settings={**asdict(task.settings), **learned}, upper=upper)
