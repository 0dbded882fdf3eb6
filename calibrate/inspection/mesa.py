"""MESA: recover the distribution of triggers that reach a class.

Qiao, Yang and Li, "Defending Neural Backdoors via Generative Distribution Modeling", NeurIPS 2019, arXiv 1910.04749: a
backdoored model answers to a whole region of triggers. One generator per level beta fills {success >= beta} with as
much entropy as it can. Blends and warps, climbing the levels, and keeping by measured success are ours.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from calibrate.differentiable import fast_precision
from calibrate.forward import forward
from calibrate.inspection.mesa_findings import MesaFindings, RecoveredTriggers
from calibrate.inspection.mesa_settings import MesaSettings
from calibrate.inspection.problem import InspectionProblem
from calibrate.inspection.trigger_families import TriggerKind
from calibrate.inspection.trigger_location import expected_success, locate
from calibrate.inspection.trigger_places import PlaceChoice, corners_of
from calibrate.inspection.trigger_synthesis import synthesise
from calibrate.inspection.triggers import TriggerDistribution
from calibrate.inspection.victim import Pixels, Victim
from calibrate.preprocessing import input_channel_axis
from calibrate.proportions import Proportion
from calibrate.sites import RowsInMemory
from guard.errors import CalibrationError, InputError
from guard.types import BoolArray, FloatArray, IntArray

__all__ = ["LEAST_SAMPLES", "MesaFindings", "MesaSettings", "check_recoverable", "recover_triggers"]

LEAST_SAMPLES = 500
"""Fewer clean images than this, and no trigger is recovered."""

_SLACK = 0.1  # a generator further below its level than this is dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What stays the same from generator to generator; nothing is fitted on ``measured``, which are model-ready."""

    problem: InspectionProblem
    target_class: int
    channel_axis: int
    victim: Victim
    pixels: Pixels
    measured: FloatArray
    settings: MesaSettings


def recover_triggers(
    problem: InspectionProblem, target_class: int, *, settings: MesaSettings | None = None
) -> MesaFindings:
    """Train generators for every kind of trigger, level by level from the lowest.

    A kind that misses a level by more than 0.1 is not tried at higher ones, but in the ``official-code`` profile.

    Args:
        problem: The model, and at least 500 clean images.
        target_class: The class to reach: the suspected one, or a control.
        settings: How to train.

    Returns:
        What each generator found, its success measured on images that it was not fitted on.

    Raises:
        InputError: There is no such class.
        CalibrationError: The model takes no single image, there are too few images, or a patch is larger than they.
    """
    task = _task(problem, target_class, settings or MesaSettings())
    height, width = task.pixels.images.shape[2:]
    kinds = task.settings.kinds_for(height, width)
    _check_kinds(kinds, height, width)
    return MesaFindings(
        target_class=target_class, generators=tuple(found for kind in kinds for found in _climb(task, kind))
    )


def check_recoverable(problem: InspectionProblem, target_class: int) -> None:
    """Refuse what no triggers come from (raises as recover_triggers does)."""
    if not 0 <= target_class < problem.n_classes:
        raise InputError(f"target class {target_class} does not exist; the classes are 0 to {problem.n_classes - 1}")
    _images(problem, 1)
    if len(problem.inputs) < LEAST_SAMPLES:
        raise CalibrationError(
            f"{len(problem.inputs)} samples are too few to recover triggers from; {LEAST_SAMPLES} are needed, so"
            f" {LEAST_SAMPLES - len(problem.inputs)} are missing"
        )


def _task(problem: InspectionProblem, target_class: int, settings: MesaSettings) -> _Task:
    check_recoverable(problem, target_class)
    inputs = _images(problem, settings.max_images)
    channel_axis = input_channel_axis(inputs.shape, problem.layout) or 1
    others = problem.labels[: len(inputs)] != target_class
    images = np.moveaxis(inputs, channel_axis, 1).astype(np.float32)
    n_fitted = round(len(inputs) * (1 - settings.measured_share))
    fitted = np.arange(len(inputs)) < n_fitted
    is_published = settings.profile == "official-code"
    _check_others(others[fitted], others[~fitted], target_class, settings)
    return _Task(
        problem=problem,
        target_class=target_class,
        channel_axis=channel_axis,
        victim=Victim(
            problem.model,
            problem.logits,
            target_class=target_class,
            channel_axis=channel_axis,
            device=problem.device,
            precision=fast_precision(problem.device),
        ),
        pixels=Pixels(
            images=images[fitted if is_published else fitted & others],
            low=images.min(axis=(0, 2, 3))[:, None, None],
            high=images.max(axis=(0, 2, 3))[:, None, None],
        ),
        measured=inputs[~fitted & others],
        settings=settings,
    )


def _climb(task: _Task, kind: TriggerKind) -> Iterator[RecoveredTriggers]:
    """Train a generator per level, from the lowest, until one is missed; at every level as published."""
    corners, expected, lost = _where(task, kind)
    is_published = task.settings.profile == "official-code"
    for beta in sorted(task.settings.betas):
        found = _recover(task, kind, PlaceChoice(corners, beta * expected, one_per_batch=is_published), beta)
        yield replace(found, stopped="; ".join(filter(None, (found.stopped, lost))))
        if not (found.kept or is_published):
            return


def _where(task: _Task, kind: TriggerKind) -> tuple[IntArray, FloatArray, str]:
    """Return the places that a kind may go to, the success to expect there, the best as 1, and what went wrong."""
    if kind.family != "patch":
        return np.zeros((1, 2), dtype=np.int64), np.ones(1), ""
    settings, (height, width) = task.settings, task.pixels.images.shape[2:]
    if settings.profile == "official-code":
        corners = corners_of((height, width), kind.size, as_published=True)
        return corners, np.ones(len(corners)), ""
    location = locate(
        task.victim,
        task.pixels,
        iterations=settings.iterations,
        batch_size=settings.batch_size,
        rng=np.random.default_rng((task.problem.seed, 2)),
        progress=_progress(task, f"class {task.target_class}: place"),
    )
    corners = corners_of((height, width), kind.size)
    return corners, expected_success(location.mask, corners, kind.size), location.stopped


def _recover(task: _Task, kind: TriggerKind, places: PlaceChoice, beta: float) -> RecoveredTriggers:
    made = synthesise(
        task.victim,
        task.pixels,
        kind,
        places,
        beta=beta,
        settings=task.settings,
        rng=np.random.default_rng((task.problem.seed, 0)),
        progress=_progress(task, f"class {task.target_class}: {kind}, {beta:g}"),
    )
    distribution = TriggerDistribution(
        kind=kind,
        target_class=task.target_class,
        beta=beta,
        alpha=task.settings.alpha,
        channel_axis=task.channel_axis,
        places=made.places,
        bank=made.bank,
    )
    asr = _measure(task, distribution)
    return RecoveredTriggers(
        distribution=distribution,
        asr=asr,
        diversity=made.diversity,
        kept=asr.share >= beta - _SLACK,
        iterations=made.iterations,
        stopped=made.stopped,
    )


def _progress(task: _Task, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: task.problem.progress(stage, done, total)


def _measure(task: _Task, distribution: TriggerDistribution) -> Proportion:
    """Put a trigger on each of the measured images and run the model itself."""
    rng = np.random.default_rng((task.problem.seed, 1))
    triggered = distribution.apply(task.measured, distribution.sample(len(task.measured), rng), rng)
    count = 0
    rows = RowsInMemory(inputs=triggered)
    for _, found in forward(task.problem.model, [task.problem.logits], rows, device=task.problem.device):
        logits = found[task.problem.logits]
        count += int(((logits.argmax(axis=1) == task.target_class) & ~np.isnan(logits).any(axis=1)).sum())
    return Proportion(count=count, n=len(triggered))


def _images(problem: InspectionProblem, n: int) -> FloatArray:
    """Return the first n inputs, or refuse a model that takes no single image."""
    inputs = problem.inputs[0:n]
    if isinstance(inputs, Mapping):
        raise _no_image(f"has {len(inputs)} inputs ({', '.join(inputs)})")
    if inputs.ndim != 4 or not np.issubdtype(inputs.dtype, np.floating):
        raise _no_image(f"takes {inputs.dtype} of shape ({', '.join(map(str, ('N', *inputs.shape[1:])))})")
    return cast("FloatArray", inputs)


def _no_image(found: str) -> CalibrationError:
    return CalibrationError(
        f"recovering triggers needs a model with a single input of float images (N, K, H, W); this one {found}"
    )


def _check_others(fitted: BoolArray, measured: BoolArray, target_class: int, settings: MesaSettings) -> None:
    """Refuse fewer images of other classes than a step takes, or none to measure on."""
    if fitted.sum() < settings.batch_size or not measured.any():
        raise CalibrationError(
            f"only {fitted.sum() + measured.sum()} of {len(fitted) + len(measured)} samples are of other classes than"
            f" {target_class}: {fitted.sum()} to fit on, of which it takes {settings.batch_size}, and {measured.sum()}"
            " to measure on; give more samples of the other classes"
        )


def _check_kinds(kinds: tuple[TriggerKind, ...], height: int, width: int) -> None:
    for kind in kinds:
        if kind.family == "patch" and kind.size > min(height, width):
            raise CalibrationError(f"a {kind} is larger than the images, {height}x{width}; choose a smaller size")
