"""UNIT: the tightest bound per neuron that keeps accuracy, learned by gradient descent.

Cheng, Shen, Zhang, Tao, An, Guo, Ma and Zhang, "UNIT: Backdoor Mitigation via Automated Neural Distribution
Tightening", ECCV 2024, arXiv 2407.11372. Over the bounds b = max(p, 0) it minimises

    mean cross-entropy of the clipped network + cost * sum over sites of the mean of b

and keeps the bounds with the smallest sum among those that pass validation. The cost follows `unit_schedule`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from calibrate.bounds.clipped_classifier import ClippedClassifier, LabelledInputs
from calibrate.bounds.unit_schedule import next_cost, start_cost
from calibrate.bounds.unit_settings import UnitSettings
from calibrate.sites import ActivationBounds, BoundsProblem, Progress, RowsInMemory, Site
from calibrate.statistics import Moments, site_moments
from guard.errors import CalibrationError
from guard.rows import each
from guard.types import IntArray

__all__ = ["UnitSettings", "fit_unit", "split_in_classes"]

_ROUNDING = 1e-9  # accuracies are fractions of whole counts: a tie must not fail by the last bit


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What stays the same from step to step."""

    classifier: ClippedClassifier
    fitting: LabelledInputs
    validation: LabelledInputs
    original_accuracy: float
    max_accuracy_drop: float
    settings: UnitSettings
    progress: Progress

    def admits(self, accuracy: float) -> bool:
        """Whether bounds of this validation accuracy may be kept."""
        return accuracy >= self.original_accuracy - self.max_accuracy_drop - _ROUNDING


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """Bounds that may be kept: their penalty, and the validation accuracy that decides."""

    step: int
    penalty: float
    accuracy: float
    upper: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """The bounds that are kept, and how the descent went."""

    kept: _Candidate
    n_passed: int
    final_cost: float


def fit_unit(problem: BoundsProblem, *, settings: UnitSettings | None = None, device: str = "cpu") -> ActivationBounds:
    """Learn one upper bound per neuron or channel; per channel wherever a site has a free axis besides N.

    The inputs are held in memory, model-ready; activations only ``batch_size`` inputs at a time. If no step
    passes validation, the last bounds are returned, and the settings say so: ``n_passed`` is 0.

    Args:
        problem: What is to be bounded, and the data.
        settings: How to learn.
        device: Where to compute, as torch names it.

    Raises:
        CalibrationError: There are too few samples for validation, or no gradient can be computed.
    """
    settings = _for_sites(settings or UnitSettings(), problem.sites)
    fitting, validation = _load(problem, settings)
    classifier = ClippedClassifier(
        problem.model, problem.logits, problem.sites, batch_size=settings.batch_size, device=device
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
    )
    parameters = _starting_bounds(moments, settings, device)
    return _report(task, _descend(task, parameters, _learning_rates(moments, settings)))


def split_in_classes(labels: IntArray, *, fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    """Draw this fraction of every class; return the rows of the rest and the rows drawn, both sorted."""
    rng = np.random.default_rng(seed)
    drawn = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        drawn[rows[: round(len(rows) * fraction)]] = True
    return np.flatnonzero(~drawn), np.flatnonzero(drawn)


def _for_sites(settings: UnitSettings, sites: Sequence[Site]) -> UnitSettings:
    """Give up bounds per neuron where the samples' size would decide how many neurons there are."""
    is_free = any(size is None for site in sites for size in site.shape[1:])
    return replace(settings, granularity="channel") if is_free else settings


def _load(problem: BoundsProblem, settings: UnitSettings) -> tuple[LabelledInputs, LabelledInputs]:
    fraction = settings.validation_fraction
    parts = split_in_classes(problem.labels, fraction=fraction, seed=problem.seed)
    if min(len(part) for part in parts) == 0:
        raise CalibrationError(
            f"{len(problem.labels)} samples leave none for validation: {fraction:.0%} of every class decide which "
            f"bounds pass; expected at least {math.ceil(1 / fraction)} samples of some class: give more samples"
        )
    inputs = problem.inputs[0 : len(problem.inputs)]
    fitting, validation = (
        LabelledInputs.of(each(partial(np.take, indices=rows, axis=0), inputs), problem.labels[rows]) for rows in parts
    )
    return fitting, validation


def _starting_bounds(moments: Mapping[str, Moments], settings: UnitSettings, device: str) -> dict[str, Tensor]:
    upper = {site: m.mean + settings.deviations * m.std for site, m in moments.items()}
    return {
        site: torch.from_numpy(bound.astype(np.float32)).to(device).requires_grad_() for site, bound in upper.items()
    }


def _learning_rates(moments: Mapping[str, Moments], settings: UnitSettings) -> dict[str, float]:
    scales = {site: float(m.std.mean()) if settings.scale_learning_rate else 1.0 for site, m in moments.items()}
    return {site: settings.learning_rate * scale for site, scale in scales.items()}


def _penalty(upper: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([bound.mean() for bound in upper.values()]).sum()


def _descend(task: _Task, parameters: Mapping[str, Tensor], rates: Mapping[str, float]) -> _Outcome:
    settings, schedule = task.settings, task.settings.schedule
    groups = [{"params": [p], "lr": rates[site]} for site, p in parameters.items()]
    optimizer = torch.optim.Adam(groups, betas=settings.betas)
    state, best, n_passed = start_cost(schedule), None, 0
    for step in range(1, settings.steps + 1):
        candidate = _step(task, parameters, optimizer, step=step, cost=state.cost)
        passed = task.admits(candidate.accuracy)
        if passed and (best is None or candidate.penalty < best.penalty):
            best = candidate
        n_passed += passed
        state = next_cost(state, passed=passed, schedule=schedule)
        task.progress("unit", step, settings.steps)
        if settings.profile == "corrected" and best and step - best.step >= settings.stop_after:
            break
    return _Outcome(kept=best or candidate, n_passed=n_passed, final_cost=state.cost)


def _step(
    task: _Task, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, *, step: int, cost: float
) -> _Candidate:
    """Update the bounds and measure them."""
    before = _upper(parameters)
    optimizer.zero_grad()
    task.classifier.add_cross_entropy_gradients(task.fitting, parameters)
    penalty = _penalty({site: p.relu() for site, p in parameters.items()})
    (cost * penalty).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    optimizer.step()
    tested = _upper(parameters)
    accuracy = task.classifier.accuracy(task.validation, tested)
    # The official code keeps bounds that are one update older than those it tested.
    kept = before if task.settings.profile == "official-code" else tested
    return _Candidate(step=step, penalty=float(_penalty(kept)), accuracy=accuracy, upper=kept)


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
    }
    upper = {site: bound.cpu().numpy() for site, bound in outcome.kept.upper.items()}
    return ActivationBounds(method="unit", settings={**asdict(task.settings), **learned}, upper=upper)
