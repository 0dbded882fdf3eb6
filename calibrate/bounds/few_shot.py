"""Bounds from a handful of clean inputs: the more suspicious a channel in its layer, the less room it gets.

upper_j = q_j + kappa_j s_j, where kappa falls in equal steps from near kappa_max for the least suspicious channel of
a layer to kappa_min for the most suspicious one, and the last few channels may not pass the largest value seen. The
rule is ours. q and s are the median and a robust scale, over inputs, of a channel's maximum over positions
(calibrate.bounds.sigma says why the maximum comes first). A handful of inputs says little about the scale of one
channel, so that it is never taken to be less, relative to the channel's level, than it usually is in the layer. A
site that goes negative is bounded from below alike, by the minima.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np

from calibrate.edit import insert_bounds
from calibrate.forward import forward, predict
from calibrate.inspection.problem import InspectionProblem
from calibrate.inspection.suspicion import score_channels
from calibrate.sites import ActivationBounds, BoundsProblem, Site
from guard.errors import CalibrationError
from guard.types import BoolArray, FloatArray

__all__ = ["FewShotSettings", "fit_few_shot", "kappas", "robust_limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShotSettings:
    """What the method is free to choose.

    Args:
        kappa_max: Room, in scales, of the least suspicious channel of a layer.
        kappa_min: Room of the most suspicious one.
        strict_share: The share of a layer's channels, most suspicious first, that are held to the largest value seen.
        slacks: Factors of all room, tried in turn until the bounds cost no more accuracy on the samples than allowed.
    """

    kappa_max: float = 4.0
    kappa_min: float = 0.5
    strict_share: float = 0.02
    slacks: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 8.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Extremes:
    """Maxima and minima over positions (n, K) of one site."""

    maxima: FloatArray
    minima: FloatArray


def fit_few_shot(problem: BoundsProblem, *, settings: FewShotSettings | None = None) -> ActivationBounds:
    """Bound every channel by its rank of suspicion, with the least slack that the samples allow.

    Raises:
        CalibrationError: Even the loosest bounds cost more accuracy than allowed, or an activation is not finite.
    """
    settings = settings or FewShotSettings()
    room = {t: kappas(s, settings) for t, s in _scores(problem).items()}
    extremes = _extremes(problem)
    least = _right(problem, None) - problem.max_accuracy_drop
    for done, slack in enumerate(settings.slacks, start=1):
        bounds = _bounds(problem, extremes, room, slack, settings)
        accuracy = _right(problem, bounds)
        problem.progress("choosing the slack", done, len(settings.slacks))
        if accuracy >= least - 1e-9:
            problem.progress("choosing the slack", len(settings.slacks), len(settings.slacks))
            chosen = {**asdict(settings), "slack": slack, "n_samples": len(problem.inputs), "accuracy": accuracy}
            return replace(bounds, settings=chosen)
    raise CalibrationError(
        f"bounds with {slack:g} times the usual room leave an accuracy of {accuracy:.3f} on {len(problem.inputs)}"
        f" samples, below the {least:.3f} allowed; give more clean samples or allow more with --max-accuracy-drop"
    )


def kappas(scores: FloatArray, settings: FewShotSettings) -> FloatArray:
    """Return kappa (K,) = kappa_max - (kappa_max - kappa_min) rank / K, rank 1 being the least suspicious.

    Channels of one score share the mean of their ranks.
    """
    ordered = np.sort(scores)
    ranks = (np.searchsorted(ordered, scores, side="left") + 1 + np.searchsorted(ordered, scores, side="right")) / 2
    return np.asarray(settings.kappa_max - (settings.kappa_max - settings.kappa_min) * ranks / len(scores))


def _scores(problem: BoundsProblem) -> Mapping[str, FloatArray]:
    return score_channels(InspectionProblem.of(problem)).scores


def _extremes(problem: BoundsProblem) -> Mapping[str, _Extremes]:
    found: dict[str, list[_Extremes]] = {site.tensor: [] for site in problem.sites}
    tensors = [site.tensor for site in problem.sites]
    for done, values in forward(problem.model, tensors, problem.inputs, device=problem.device):
        for site in problem.sites:
            moved = np.moveaxis(values[site.tensor], site.channel_axis, 1)
            by_channel = moved.reshape(*moved.shape[:2], -1)
            found[site.tensor].append(_Extremes(maxima=by_channel.max(axis=2), minima=by_channel.min(axis=2)))
        problem.progress("extremes of activations", done, len(problem.inputs))
    return {
        tensor: _Extremes(
            maxima=np.concatenate([p.maxima for p in parts]).astype(np.float64),
            minima=np.concatenate([p.minima for p in parts]).astype(np.float64),
        )
        for tensor, parts in found.items()
    }


def _bounds(
    problem: BoundsProblem,
    extremes: Mapping[str, _Extremes],
    room: Mapping[str, FloatArray],
    slack: float,
    settings: FewShotSettings,
) -> ActivationBounds:
    upper, lower = {}, {}
    for site in problem.sites:
        found, kappa = extremes[site.tensor], slack * room[site.tensor]
        is_strict = _strictest(room[site.tensor], settings)
        upper[site.tensor] = _shaped(site, _limits(found.maxima, kappa, is_strict))
        if (found.minima < 0).any():
            lower[site.tensor] = _shaped(site, -_limits(-found.minima, kappa, is_strict))
    return ActivationBounds(method="few-shot", settings={}, upper=upper, lower=lower)


def robust_limits(extremes: FloatArray, kappa: FloatArray | float) -> FloatArray:
    """Return (K,) the median of extremes (n, K) plus kappa robust scales."""
    return np.asarray(np.median(extremes, axis=0) + kappa * _scales(extremes))


def _limits(extremes: FloatArray, kappa: FloatArray, is_strict: BoolArray) -> FloatArray:
    """Return the limits (K,) that are put on extremes (n, K)."""
    limits = robust_limits(extremes, kappa)
    return np.where(is_strict, np.minimum(limits, extremes.max(axis=0)), limits)


def _scales(extremes: FloatArray) -> FloatArray:
    """Return robust scales (K,), none less than is usual in the layer for a channel of its level.

    Where most inputs leave a channel silent its median absolute deviation is 0; its level then is that of the inputs
    that do not, and at least half the layer's usual one.
    """
    own = 1.4826 * np.median(np.abs(extremes - np.median(extremes, axis=0)), axis=0)
    levels = np.abs(extremes).mean(axis=0)
    levels = np.maximum(levels, 0.5 * np.median(levels))
    usual = float(np.median(own[own > 0] / levels[own > 0])) if (own > 0).any() else 1.0
    return np.asarray(np.maximum(own, usual * levels))


def _strictest(kappa: FloatArray, settings: FewShotSettings) -> BoolArray:
    """Return (K,) which channels are the most suspicious: this share of them, rounded up; none among ties."""
    k = len(kappa)
    n = math.ceil(settings.strict_share * k)
    return np.asarray(kappa < settings.kappa_max - (settings.kappa_max - settings.kappa_min) * (k - n + 0.5) / k)


def _shaped(site: Site, limits: FloatArray) -> FloatArray:
    return site.per_channel(limits).astype(np.float32)


def _right(problem: BoundsProblem, bounds: ActivationBounds | None) -> float:
    model = problem.model if bounds is None else insert_bounds(problem.model, bounds, problem.sites)
    predicted = predict(model, problem.logits, problem.inputs, device=problem.device)
    return float((predicted == problem.labels).mean())
