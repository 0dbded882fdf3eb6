"""What stays the same while our form of MMAC learns, and how it is made from a problem."""

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from calibrate.bounds.climbers import Start
from calibrate.bounds.clipped_classifier import ClippedClassifier, LabelledInputs
from calibrate.bounds.maximum_margin import InputRange, float_inputs, margins
from calibrate.bounds.mmac_settings import MmacSettings
from calibrate.bounds.scaled_bounds import ScaledBounds
from calibrate.bounds.screening import Screening
from calibrate.bounds.sigma import fit_sigma
from calibrate.bounds.validation import split_for_validation
from calibrate.differentiable import fast_precision
from calibrate.sites import ActivationBounds, BoundsProblem, Progress, RowsInMemory
from calibrate.statistics import site_moments
from guard.types import FloatArray

__all__ = ["MmacTask", "prepare"]

_LEAST_SCALE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class MmacTask:
    """What stays the same from step to step.

    Args:
        classifier: Computes f and g.
        start: The clean inputs (N, ...) to learn from, and what synthetic ones start with.
        sigma: The bounds of sigma, which descent starts at.
        original: (N, C) f's logits of these clean inputs.
        variance: Of f's logits within a row, which the squared error is relative to.
        clean_margin: The median of f's margins on them, which synthetic margins are relative to.
        screening: What decides which bounds pass.
        settings: How to learn.
        progress: Told after every step.
    """

    classifier: ClippedClassifier
    start: Start
    sigma: ActivationBounds
    original: Tensor
    variance: float
    clean_margin: float
    screening: Screening
    settings: MmacSettings
    progress: Progress


def prepare(problem: BoundsProblem, settings: MmacSettings) -> tuple[MmacTask, ScaledBounds]:
    """Deal the bounds set into what is learned from and what validates; return the task and where the bounds start.

    Raises:
        CalibrationError: There are too few samples, the model takes no single floating-point input, no gradient can be
            computed, or sigma finds no bounds that keep the accuracy.
    """
    inputs = float_inputs(problem, method="mmac")
    in_memory = replace(problem, inputs=RowsInMemory(inputs=inputs))
    fitting, validation = split_for_validation(in_memory, fraction=settings.validation_fraction)
    learned_from = cast("Tensor", fitting.inputs).numpy()
    sigma = fit_sigma(in_memory)
    channels = site_moments(
        problem.model,
        problem.sites,
        RowsInMemory(inputs=learned_from),
        pooling="channel",
        progress=problem.progress,
        device=problem.device,
    )
    bounds = ScaledBounds.at(sigma, channels, device=problem.device)
    return _task(problem, learned_from, validation, sigma, settings), bounds


def _task(
    problem: BoundsProblem,
    fitting: FloatArray,
    validation: LabelledInputs,
    sigma: ActivationBounds,
    settings: MmacSettings,
) -> MmacTask:
    classifier = ClippedClassifier(
        problem.model,
        problem.logits,
        problem.sites,
        batch_size=settings.batch_size,
        device=problem.device,
        precision=fast_precision(problem.device),
    )
    inputs = torch.from_numpy(fitting).to(problem.device)
    with torch.no_grad():
        original = torch.cat([classifier.logits(rows, {}) for rows in torch.split(inputs, settings.batch_size)])
    clean_margin = margins(original, original.argmax(1)).median()
    return MmacTask(
        classifier=classifier,
        start=Start(
            clean=inputs,
            within=InputRange.of(fitting, problem.device, layout=problem.layout),
            n_classes=original.shape[1],
            generator=torch.Generator().manual_seed(problem.seed),
        ),
        sigma=sigma,
        original=original,
        variance=max(float(original.var(1, correction=0).mean()), _LEAST_SCALE),
        clean_margin=max(float(clean_margin), _LEAST_SCALE),
        screening=Screening(
            classifier=classifier,
            validation=validation,
            original_right=classifier.is_right(validation, {}),
            max_accuracy_drop=problem.max_accuracy_drop,
            confidence=settings.confidence,
        ),
        settings=settings,
        progress=problem.progress,
    )
