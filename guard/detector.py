"""The one-pass detector: one score from what a single run of the observed original shows.

Two things are seen in one forward pass. The *profile*: four numbers per site that say how unusual an input's
activations are, in one place or everywhere; a trigger that is itself unusual stands out at some sites. The *head
divergence*: the margin that is lost when the last site alone is bounded and the head behind it is run again; a trigger
that drives the features of one class loses its push. Each is standardised on clean data and the larger one counts, so
that one threshold keeps one promise. Joining ranked p-values instead would tie beyond the clean sample. The combination
is ours; the profile's distance is Mahalanobis' (Lee et al., arXiv 1807.03888), the head divergence MMDF's statistic
(Wang et al., arXiv 2308.04617).

The numbers of a site with activations a_k(place), standardised per channel k by clean inputs (z), are in this order,
each for all sites before the next:
    log(1 + max(0, max over k and places of z of a))         the peak
    log(.1 + rms over k of z of the mean over places)        the level, over all channels
    log(1 + max(0, max over k of z of the mean over places)) the level of the most unusual channel
    log(.1 + rms over k of z of the maximum over places)     the reach
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from guard.errors import InputError
from guard.scores import relative_divergence
from guard.types import Answers, FloatArray, ModelRun, Observed

__all__ = [
    "NUMBERS",
    "N_NUMBERS",
    "Detector",
    "Standard",
    "both_scores",
    "head_run",
    "one_pass_scores",
    "pack_detector",
    "profile_away",
    "profile_distance",
    "unpack_detector",
]


NUMBERS = ("peak", "level", "greatest level", "reach")
"""Of the profile, per site, in order."""

N_NUMBERS = len(NUMBERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standard:
    """A clean sample's usual value and spread of one score.

    Args:
        origin: What clean inputs usually score.
        spread: How far the more unusual tenth of them lies above; positive.
    """

    origin: float
    spread: float

    def __call__(self, scores: FloatArray) -> FloatArray:
        """Return (N,) standardised scores."""
        return (scores - self.origin) / self.spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """What clean data taught the one-pass detector.

    Args:
        center: (F,) mean of each number of the profile.
        scale: (F,) its standard deviation, positive.
        precision: (F, F) the inverse of the shrunken correlation matrix of the profile.
        profile: The standard of the profile distance.
        head: The standard of the relative divergence of the head.
        fill: (channels,) the mean clean pixel, in the input's terms, that hides a place of an image; empty where the
            input is no image.
    """

    center: FloatArray
    scale: FloatArray
    precision: FloatArray
    profile: Standard
    head: Standard
    fill: FloatArray


def profile_distance(profile: FloatArray, detector: Detector) -> FloatArray:
    """Return (N,) squared Mahalanobis distances of profiles (N, F) to clean inputs."""
    with np.errstate(invalid="ignore", over="ignore"):
        away = (profile.astype(np.float64) - detector.center) / detector.scale
        return np.asarray(((away @ detector.precision) * away).sum(axis=1))


def one_pass_scores(original: Answers, detector: Detector) -> FloatArray:
    """Return (N,) the larger of both standardised scores; infinite where anything is no finite number.

    Args:
        original: The observed original's answers.
        detector: What clean data taught.
    """
    joined = np.maximum(*both_scores(original, detector))
    return np.where(np.isfinite(joined), joined, np.inf)


def both_scores(original: Answers, detector: Detector) -> tuple[FloatArray, FloatArray]:
    """Return (N,) the scores of profile and head that one_pass_scores joins; these may hold NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        profile = detector.profile(profile_distance(_observed(original).profile, detector))
        return profile, detector.head(relative_divergence(head_run(original)))


def profile_away(original: Answers, detector: Detector) -> FloatArray:
    """Return (N, F) how far each number of the profile lies from its clean mean, in clean standard deviations."""
    return (_observed(original).profile.astype(np.float64) - detector.center) / detector.scale


def head_run(original: Answers) -> ModelRun:
    """Return the observed original's answers beside those of its bounded head."""
    head = _observed(original).head
    return ModelRun(original=original, bounded=Answers(outputs=head, logits=head))


def _observed(original: Answers) -> Observed:
    if original.observed is None:
        raise InputError("these answers come from no observed original; take them from Guard.run_original")
    return original.observed


def pack_detector(detector: Detector) -> bytes:
    """Return the content of detector.npz."""
    arrays: dict[str, Any] = {name: np.asarray(getattr(detector, name), dtype=np.float64) for name in _ARRAYS}
    for name in _STANDARDS:
        standard: Standard = getattr(detector, name)
        arrays[name] = np.array([standard.origin, standard.spread])
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def unpack_detector(arrays: Mapping[str, FloatArray], *, n_sites: int) -> Detector:
    """Return the detector that arrays of detector.npz hold.

    Args:
        arrays: By name.
        n_sites: S, as the manifest says.

    Raises:
        ValueError: An array is missing or too much, no finite float64, of another shape, or a scale is not positive.
    """
    n = N_NUMBERS * n_sites
    expected = {
        "center": (n,), "scale": (n,), "precision": (n, n),
        "profile": (2,), "head": (2,),
        "fill": arrays["fill"].shape[:1] if "fill" in arrays else (0,),
    }  # fmt: skip
    if arrays.keys() != expected.keys():
        raise ValueError(f"it holds {', '.join(sorted(arrays))}, not {', '.join(expected)}")
    for name, shape in expected.items():
        values = arrays[name]
        if values.dtype != np.float64 or values.shape != shape or not np.isfinite(values).all():
            raise ValueError(f"{name} is {values.dtype} {values.shape}, not finite float64 {shape}")
    if (arrays["scale"] <= 0).any() or arrays["profile"][1] <= 0 or arrays["head"][1] <= 0:
        raise ValueError("a scale is not positive")
    found: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
    for name in _STANDARDS:
        found[name] = Standard(origin=float(arrays[name][0]), spread=float(arrays[name][1]))
    return Detector(**found)


_STANDARDS = ("profile", "head")
_ARRAYS = tuple(f.name for f in fields(Detector) if f.name not in _STANDARDS)
