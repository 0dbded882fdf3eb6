"""Fit the one-pass detector (guard.detector): what clean inputs show in a single run of the observed original.

The profiles of clean inputs give a mean and a covariance, whose correlation matrix is shrunken by the oracle
approximating shrinkage (Chen, Wiesel, Eldar and Hero, IEEE TSP 2010), since there may be more numbers than samples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from calibrate.bounds.few_shot import robust_limits
from calibrate.edit import check_edited, insert_bounds, representable
from calibrate.forward import forward
from calibrate.graph import Classifier, expose_logits
from calibrate.graph_reading import needed_nodes
from calibrate.observers import MeanStd, Standards, show_excess, show_profile_and_head
from calibrate.preprocessing import Layout, input_channel_axis
from calibrate.sites import ActivationBounds, Progress, Rows, RowsInMemory, Site
from calibrate.statistics import Moments, observe
from guard.detector import N_NUMBERS, Detector, Standard, head_run, profile_distance
from guard.errors import CalibrationError
from guard.scores import logits_from_probabilities, relative_divergence
from guard.types import Answers, FloatArray, Observed

__all__ = ["OnePass", "fit_one_pass", "shrunken_precision"]

_HEAD_ROOM = 2.0  # robust scales between a channel's usual maximum and its bound at the last site
_LEAST_STD = 0.1  # of a channel in its site, or of a site's number in the profile, as a share of the usual one
_FOLDS = 5
_QUANTILE = 0.9
_ROUNDING = 1e-4  # optimised graphs differ in last bits, by about 1e-6
_IMAGE_RANK = 4
_N_PIXELS = 256  # images, whose mean pixel hides a place


@dataclass(frozen=True, slots=True, kw_only=True)
class OnePass:
    """The models of a bundle with a one-pass detector, and the detector.

    Args:
        observed: The original that shows peaks and head.
        bounded: The bounded model that shows where it is capped.
        detector: Fitted on the bounds set.
        outputs: What the manifest says of it.
    """

    observed: onnx.ModelProto
    bounded: onnx.ModelProto
    detector: Detector
    outputs: Mapping[str, object]


def fit_one_pass(
    classifier: Classifier,
    sites: Sequence[Site],
    bounds: ActivationBounds,
    inputs: Rows,
    *,
    is_probability: bool,
    layout: Layout,
    progress: Progress,
    device: str = "cpu",
) -> OnePass:
    """Fit the detector on the bounds set.

    Args:
        classifier: The original.
        sites: Its activations, in order.
        bounds: Of the bounded model, which corrects.
        inputs: The bounds set.
        is_probability: Whether the original gives probabilities.
        layout: Of images among the inputs.
        progress: Told how far the work is.
        device: Where to compute.

    Raises:
        CalibrationError: An activation is not finite, or no site has one value or more per input.
    """
    shown = _shown_sites(classifier.model, [site for site in sites if site.tensor in bounds.upper], inputs, device)
    standards = _standards(classifier, shown, inputs, progress, device)
    shown = [site for site in shown if site.tensor in standards]
    last = _last(classifier, shown)
    upper = {last.tensor: _bound(classifier, last, inputs, device)}
    exposed = expose_logits(classifier)
    observed, names = show_profile_and_head(exposed, classifier.logits, shown, standards, upper)
    bounded, capped, capped_at = show_excess(insert_bounds(exposed, bounds, sites), shown, bounds, standards)
    seen = _run(check_edited(observed), [classifier.logits, *names.values()], inputs, progress, device)
    logits, head_logits = (
        logits_from_probabilities(seen[t]) if is_probability and not classifier.ends_in_softmax
        else seen[t].astype(np.float64) for t in (classifier.logits, names["head"])
    )  # fmt: skip
    profile = seen[names["profile"]].astype(np.float64)
    answers = Answers(outputs=logits, logits=logits, observed=Observed(profile=profile, head=head_logits))
    return OnePass(
        observed=observed,
        bounded=check_edited(bounded),
        detector=_fit(profile, relative_divergence(head_run(answers)), _fill(inputs, layout)),
        outputs={**names, "sites": [site.tensor for site in shown], "capped": capped, "capped_at": capped_at},
    )


def shrunken_precision(rows: FloatArray) -> FloatArray:
    """Return (S, S), the inverse of the shrunken covariance of rows (n, S) whose mean is 0 (OAS, Chen et al. 2010)."""
    n, s = rows.shape
    covariance = rows.T @ rows / n
    usual = float(np.trace(covariance)) / s or 1.0  # of rows that are all alike
    alpha = float((covariance**2).mean())
    spread = (n + 1) * (alpha - usual**2 / s)
    share = 1.0 if spread <= 0 else min((alpha + usual**2) / spread, 1.0)
    return np.asarray(np.linalg.inv((1 - share) * covariance + share * usual * np.eye(s)))


def _shown_sites(model: onnx.ModelProto, sites: Sequence[Site], inputs: Rows, device: str) -> list[Site]:
    """Return the sites whose axis 0 is N; windows folded into it would mix inputs."""
    kept = list(sites)
    for n in (1, 2):  # an axis of another meaning has one of these sizes at most
        _, found = next(forward(model, [s.tensor for s in sites], RowsInMemory(inputs=inputs[0:n]), device=device))
        kept = [site for site in kept if len(found[site.tensor]) == n]
    return kept


def _standards(
    classifier: Classifier, sites: Sequence[Site], inputs: Rows, progress: Progress, device: str
) -> Mapping[str, Standards]:
    """Return mean and standard deviation per channel of every site that is not the same for all inputs."""
    seen = observe(
        classifier.model,
        classifier.logits,
        sites,
        inputs,
        poolings=["channel", "level", "maximum"],
        progress=progress,
        device=device,
    ).moments
    found = {}
    for tensor in (site.tensor for site in sites):
        if (seen["level"][tensor].std > 0).any():
            found[tensor] = Standards(
                activation=_mean_std(seen["channel"][tensor]),
                level=_mean_std(seen["level"][tensor]),
                reach=_mean_std(seen["maximum"][tensor]),
            )
    return found


def _mean_std(moments: Moments) -> MeanStd:
    """Return both (K,), no standard deviation much less than is usual in the site."""
    return MeanStd(mean=moments.mean.ravel(), std=_floored(moments.std.ravel()))


def _floored(std: FloatArray) -> FloatArray:
    """Return (K,) standard deviations, none much less than is usual: what hardly varies would drown all else."""
    usual = float(np.median(std[std > 0])) if (std > 0).any() else 1.0
    return np.maximum(std, _LEAST_STD * usual)


def _last(classifier: Classifier, sites: Sequence[Site]) -> Site:
    """Return the last site that the logits depend on."""
    needed = {name for node in needed_nodes(classifier.model.graph.node, [classifier.logits]) for name in node.output}
    for site in reversed(sites):
        if site.tensor in needed:
            return site
    raise CalibrationError("no activation that tells inputs apart leads to the logits; use --method few-shot")


def _bound(classifier: Classifier, site: Site, inputs: Rows, device: str) -> FloatArray:
    """Return the bound of the last site: the median plus a few robust scales of each channel's maxima."""
    parts = []
    for _, values in forward(classifier.model, [site.tensor], inputs, device=device):
        moved = np.moveaxis(values[site.tensor], site.channel_axis, 1)
        parts.append(moved.reshape(*moved.shape[:2], -1).max(axis=2))
    limits = robust_limits(np.concatenate(parts).astype(np.float64), _HEAD_ROOM)
    return representable(site.tensor, site.per_channel(limits), site.dtype)


def _run(
    model: onnx.ModelProto, tensors: Sequence[str], inputs: Rows, progress: Progress, device: str
) -> Mapping[str, FloatArray]:
    parts: list[Mapping[str, FloatArray]] = []
    for done, values in forward(model, tensors, inputs, device=device):
        parts.append(values)
        progress("what clean inputs show", done, len(inputs))
    return {tensor: np.concatenate([part[tensor] for part in parts]) for tensor in tensors}


def _fit(rows: FloatArray, lost: FloatArray, fill: FloatArray) -> Detector:
    draft = _profile(rows, fill)
    own = profile_distance(rows, draft)
    folds = np.arange(len(rows)) % min(_FOLDS, len(rows))
    others = np.empty(len(rows))
    for fold in np.unique(folds):
        others[folds == fold] = profile_distance(rows[folds == fold], _profile(rows[folds != fold], fill))
    return Detector(
        center=draft.center,
        scale=draft.scale,
        precision=draft.precision,
        profile=_standard((own + others) / 2),
        head=_standard(lost),
        fill=fill,
    )


def _profile(rows: FloatArray, fill: FloatArray) -> Detector:
    center = rows.mean(axis=0)
    scale = np.concatenate([_floored(std) for std in np.split(rows.std(axis=0), N_NUMBERS)])
    none = Standard(origin=0.0, spread=1.0)
    precision = shrunken_precision((rows - center) / scale)
    return Detector(center=center, scale=scale, precision=precision, profile=none, head=none, fill=fill)


def _standard(scores: FloatArray) -> Standard:
    """Return the median, and how far the upper tenth lies above it; the largest, or 1, where those are alike."""
    origin, *higher = (float(q) for q in np.quantile(scores, (0.5, _QUANTILE, 1)))
    spreads = (*(high - origin for high in higher), 1.0)
    return Standard(origin=origin, spread=next(s for s in spreads if _ROUNDING < s < math.inf))


def _fill(inputs: Rows, layout: Layout) -> FloatArray:
    """Return the mean pixel (channels,) of images that lie as the layout says; nothing where the inputs are none."""
    some = inputs[slice(0, _N_PIXELS)]
    images = next(iter(some.values())) if isinstance(some, Mapping) and len(some) == 1 else some
    if isinstance(images, Mapping) or images.ndim != _IMAGE_RANK or not np.issubdtype(images.dtype, np.floating):
        return np.zeros(0)
    axis = 1 if layout == "nchw" else 3
    if input_channel_axis(images.shape, layout) != axis:
        return np.zeros(0)
    others = tuple(a for a in range(_IMAGE_RANK) if a != axis)
    return np.asarray(images.mean(axis=others, dtype=np.float64))
