"""Bounds from means and standard deviations alone: forward-only, in seconds, on any graph that onnxruntime runs.

For every channel the maximum over positions is taken per input, and the bound is its mean plus k standard deviations
over inputs. Taking the maximum first makes one k clip the same share of inputs at every site: a channel of an early
layer has a thousand positions to exceed a bound at, one of the last layer a dozen. Late sites get k itself and early
ones a multiple of it, because what an early site loses changes everything behind it. benchmarks/results.md compares
this with mean + k sd over single positions, and with one k for all. A site that goes negative on clean inputs, as GELU
or tanh does, is bounded from below as well: by the mean minus k standard deviations of the minima over positions.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np

from calibrate.edit import insert_bounds
from calibrate.evaluation import CONFIDENCE, accuracy_drop_limit
from calibrate.forward import forward
from calibrate.sites import ActivationBounds, BoundsProblem
from calibrate.statistics import Moments, observe
from guard.errors import CalibrationError
from guard.types import BoolArray

__all__ = ["SigmaSettings", "fit_sigma"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SigmaSettings:
    """What the method is free to choose.

    Args:
        candidates: Values of k from tight to loose. The first is where tighter bounds stopped detecting better.
        early_factor: How many times looser the early sites are.
        late_share: The share of the sites, from the end, that are late.
        confidence: Of the limit on the accuracy that bounding costs, one-sided.
    """

    candidates: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    early_factor: float = 2.0
    late_share: float = 0.25
    confidence: float = CONFIDENCE


def fit_sigma(problem: BoundsProblem, *, settings: SigmaSettings | None = None) -> ActivationBounds:
    """Choose the smallest k whose accuracy drop is, with confidence, no more than allowed.

    Raises:
        CalibrationError: Even the loosest bounds cost more accuracy than allowed.
    """
    settings = settings or SigmaSettings()
    observed = observe(
        problem.model,
        problem.logits,
        problem.sites,
        problem.inputs,
        poolings=["maximum", "minimum"],
        progress=problem.progress,
        device=problem.device,
    )
    original_right = observed.predicted == problem.labels
    limits: dict[str, float] = {}
    n_all = len(settings.candidates) * len(problem.inputs)
    for tried, k in enumerate(settings.candidates):
        bounds = _bounds(observed.moments["maximum"], observed.moments["minimum"], k, settings)
        limit = _drop_limit(problem, bounds, original_right, settings, n_tried=tried)
        limits[f"{k:g}"] = round(limit, 6)
        if limit <= problem.max_accuracy_drop:
            chosen = {"k": k, "accuracy_drop_limits": limits, **asdict(settings)}
            problem.progress("choosing k", n_all, n_all)
            return replace(bounds, settings=chosen)
    raise CalibrationError(
        f"bounds of mean + {k:g} sd may still cost {limit:.3f} of clean accuracy, more than the"
        f" {problem.max_accuracy_drop:g} allowed; give more clean samples or allow more with --max-accuracy-drop"
    )


def _bounds(
    maxima: Mapping[str, Moments], minima: Mapping[str, Moments], k: float, settings: SigmaSettings
) -> ActivationBounds:
    n_late = math.ceil(settings.late_share * len(maxima))
    ks = [settings.early_factor * k] * (len(maxima) - n_late) + [k] * n_late
    k_of = dict(zip(maxima, ks, strict=True))
    negative = {tensor: m for tensor, m in minima.items() if (m.mean < 0).any()}
    upper = {tensor: (m.mean + k_of[tensor] * m.std).astype(np.float32) for tensor, m in maxima.items()}
    lower = {tensor: (m.mean - k_of[tensor] * m.std).astype(np.float32) for tensor, m in negative.items()}
    return ActivationBounds(method="sigma", settings={}, upper=upper, lower=lower)


def _drop_limit(
    problem: BoundsProblem,
    bounds: ActivationBounds,
    original_right: BoolArray,
    settings: SigmaSettings,
    *,
    n_tried: int,
) -> float:
    """Return the limit on what bounds cost; that of the best case, once even that costs more than is allowed."""
    bounded = insert_bounds(problem.model, bounds, problem.sites)
    n = len(original_right)
    right = np.ones(n, dtype=bool)  # until seen otherwise
    for done, found in forward(bounded, [problem.logits], problem.inputs, device=problem.device):
        seen = slice(done - len(found[problem.logits]), done)
        right[seen] = found[problem.logits].argmax(axis=1) == problem.labels[seen]
        problem.progress("choosing k", n_tried * n + done, len(settings.candidates) * n)
        if original_right.sum() - right.sum() > problem.max_accuracy_drop * n:
            break
    return accuracy_drop_limit(original_right, right, confidence=settings.confidence)
