"""MMAC as its authors' code does it, to compare with.

H. Wang, Xiang, Miller and Kesidis, "Improved Activation Clipping for Universal Backdoor Mitigation and Test-Time
Detection", arXiv 2308.04617, and the code that goes with it. Over the bounds z, one per channel, it minimises

    mean over rows and classes of (g - f)^2 on clean inputs + cost * sum over synthetic inputs of their margins under g

where f is the original, g the bounded model, and the synthetic inputs climb from noise to a large margin under f. The
bounds start at 1, may turn negative, and the last ones are kept. Where inputs are not in [0, 1] noise takes the range
of the clean ones; the code knows only [0, 1].
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.bounds.clipped_classifier import ClippedClassifier
from calibrate.bounds.maximum_margin import InputRange, ascend, float_inputs, margins
from calibrate.bounds.mmac_settings import PublishedMmacSettings
from calibrate.gradients import backward
from calibrate.sites import ActivationBounds, BoundsProblem, Progress, RowsInMemory
from calibrate.statistics import site_moments
from guard.errors import CalibrationError

__all__ = ["fit_mmac_published", "next_cost", "objective_gradients"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What stays the same from epoch to epoch; the original gets every one of these inputs right."""

    classifier: ClippedClassifier
    inputs: Tensor
    labels: Tensor
    original: Tensor  # (N, C) logits
    within: InputRange
    generator: torch.Generator
    settings: PublishedMmacSettings
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """The bounds after the last epoch, its running accuracy, and where the loss was no number if it was."""

    upper: Mapping[str, Tensor]
    training_accuracy: float
    cost: float
    stopped: str | None


def fit_mmac_published(problem: BoundsProblem, *, settings: PublishedMmacSettings | None = None) -> ActivationBounds:
    """Learn one upper bound per channel, as the official code does.

    Raises:
        CalibrationError: The model takes no single floating-point input, gets none of the inputs right, lets no
            gradient through, or gives a loss that is not finite at the first step.
    """
    settings = settings or PublishedMmacSettings()
    task = _task(problem, settings)
    parameters = _starting_bounds(problem, settings)
    outcome = _descend(task, parameters)
    learned = {
        "n_fitting": len(task.inputs),
        "training_accuracy": outcome.training_accuracy,
        "final_cost": outcome.cost,
        "stopped": outcome.stopped,
    }
    upper = {site: bound.cpu().numpy() for site, bound in outcome.upper.items()}
    return ActivationBounds(method="mmac-published", settings={**asdict(settings), **learned}, upper=upper)


def next_cost(cost: float, *, passed: bool, settings: PublishedMmacSettings) -> float:
    """Return the cost after a check of the running training accuracy."""
    return cost * settings.cost_factor if passed else cost / settings.cost_factor


def objective_gradients(
    classifier: ClippedClassifier,
    upper: Mapping[str, Tensor],
    clean: tuple[Tensor, Tensor],
    synthetic: tuple[Tensor, Tensor],
    cost: float,
) -> tuple[float, Tensor]:
    """Add the objective's gradients to those of the bounds, term by term so that memory holds one of them.

    Args:
        classifier: Computes g.
        upper: The bounds.
        clean: Inputs (N, ...) and the original's logits (N, C).
        synthetic: Inputs (M, ...) and the classes (M,) whose margin they maximise.
        cost: Of the margins' sum.

    Returns:
        The objective, and g's logits of the clean inputs.
    """
    logits = classifier.logits(clean[0], upper)
    fidelity = F.mse_loss(logits, clean[1])
    backward(fidelity)
    margin = cost * margins(classifier.logits(synthetic[0], upper), synthetic[1]).sum()
    backward(margin)
    return fidelity.item() + margin.item(), logits.detach()


def _task(problem: BoundsProblem, settings: PublishedMmacSettings) -> _Task:
    inputs = float_inputs(problem, method="mmac-published")
    classifier = ClippedClassifier(
        problem.model, problem.logits, problem.sites, batch_size=settings.batch_size, device=problem.device
    )
    within = InputRange.of(inputs, problem.device, layout=problem.layout)
    tensors = torch.from_numpy(inputs).to(problem.device)
    labels = torch.from_numpy(problem.labels).to(problem.device)
    with torch.no_grad():
        original = torch.cat([classifier.logits(rows, {}) for rows in torch.split(tensors, settings.batch_size)])
    right = original.argmax(1) == labels
    if not right.any():
        raise CalibrationError(
            f"the original gets none of the {len(inputs)} clean samples right, and mmac-published learns from those"
            " that it does; check labels and preprocessing"
        )
    return _Task(
        classifier=classifier,
        inputs=tensors[right],
        labels=labels[right],
        original=original[right],
        within=within,
        generator=torch.Generator().manual_seed(problem.seed),
        settings=settings,
        progress=problem.progress,
    )


def _starting_bounds(problem: BoundsProblem, settings: PublishedMmacSettings) -> dict[str, Tensor]:
    """Return the same bound for every channel; how many there are, a run shows."""
    first = RowsInMemory(inputs=problem.inputs[0:1])
    probed = site_moments(
        problem.model, problem.sites, first, pooling="channel", progress=problem.progress, device=problem.device
    )
    shapes = {tensor: moments.mean.shape for tensor, moments in probed.items()}
    return {
        tensor: torch.full(shape, settings.initial_bound, device=problem.device).requires_grad_()
        for tensor, shape in shapes.items()
    }


def _descend(task: _Task, parameters: Mapping[str, Tensor]) -> _Outcome:
    settings = task.settings
    optimizer = torch.optim.Adam(list(parameters.values()), lr=settings.learning_rate)
    cost, finite, accuracy = settings.initial_cost, None, 0.0
    for epoch in range(settings.epochs):
        if epoch % settings.refresh_every == 0:
            synthetic = itertools.cycle(_synthetic_batches(task))
        n_right = 0
        for iteration, rows in enumerate(_shuffled(task), start=1):
            before = _copied(parameters)
            optimizer.zero_grad()
            clean = task.inputs[rows], task.original[rows]
            loss, logits = objective_gradients(task.classifier, parameters, clean, next(synthetic), cost)
            if not np.isfinite(loss):
                return _stopped(finite, f"the loss was {loss} at step {iteration} of epoch {epoch}", accuracy, cost)
            finite = before
            optimizer.step()
            n_right += int((logits.argmax(1) == task.labels[rows]).sum())
        accuracy = n_right / len(task.inputs)
        if settings.checks_at(epoch):
            cost = next_cost(cost, passed=accuracy >= settings.keep_accuracy, settings=settings)
        task.progress("mmac-published", epoch + 1, settings.epochs)
    return _Outcome(upper=_copied(parameters), training_accuracy=accuracy, cost=cost, stopped=None)


def _stopped(finite: Mapping[str, Tensor] | None, where: str, accuracy: float, cost: float) -> _Outcome:
    """Return the last bounds that gave a finite loss.

    Raises:
        CalibrationError: There are none.
    """
    if finite is None:
        raise CalibrationError(f"{where}; check the clean samples and their scale, or use --method sigma")
    return _Outcome(upper=finite, training_accuracy=accuracy, cost=cost, stopped=where)


def _shuffled(task: _Task) -> Iterator[Tensor]:
    rows = torch.randperm(len(task.inputs), generator=task.generator).to(task.inputs.device)
    return iter(torch.split(rows, task.settings.batch_size))


def _synthetic_batches(task: _Task) -> list[tuple[Tensor, Tensor]]:
    """Climb from noise to a large margin under the original, class by class."""
    settings, n_classes = task.settings, task.original.shape[1]
    made = []
    for label in range(n_classes):
        shape = (settings.images_per_class, *task.inputs.shape[1:])
        noise = torch.rand(shape, generator=task.generator).to(task.inputs.device)
        classes = torch.full((len(noise),), label, device=noise.device)
        units = ascend(
            lambda inputs: task.classifier.logits(inputs, {}),
            noise,
            classes,
            task.within,
            steps=settings.ascent_steps,
            learning_rate=settings.ascent_learning_rate,
        )
        made.append((task.within.inputs_of(units), classes))
        task.progress("climbing from noise", label + 1, n_classes)
    inputs, classes = (torch.cat(column) for column in zip(*made, strict=True))
    size = settings.batch_size
    return list(zip(torch.split(inputs, size), torch.split(classes, size), strict=True))


def _copied(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {site: p.detach().clone() for site, p in parameters.items()}
