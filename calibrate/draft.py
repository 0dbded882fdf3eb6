"""A bundle but for its thresholds: both models as they will ship, and a manifest that says where they come from."""

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime

from calibrate.bounds import AUTO
from calibrate.data import CalibrationSplit, Preprocessing
from calibrate.edit import check_edited, insert_bounds
from calibrate.forward import forward
from calibrate.graph import Classifier, expose_logits, serialize
from calibrate.one_pass import fit_one_pass
from calibrate.sites import ActivationBounds, Progress, Rows, RowsInMemory, Site
from calibrate.thresholds import RULES
from guard.bundle import Bundle
from guard.manifest import FORMAT_VERSION, Manifest
from guard.scores import ONE_PASS
from guard.types import FloatArray, Threshold

__all__ = ["FitSettings", "described", "draft_bundle", "versions"]

_SUM_TOLERANCE = 1e-3  # of float16 probabilities over many classes


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """What the caller of a fit may choose.

    Args:
        method: A key of calibrate.bounds.METHODS.
        score: A key of guard.scores.SCORES, or guard.scores.ONE_PASS; None for what goes with method and rule.
        rule: A key of calibrate.thresholds.RULES.
        target_fpr: Of the alert threshold.
        correct_fpr: Of the correction threshold; at least target_fpr.
        max_accuracy_drop: The clean accuracy that bounding may cost, a fraction.
        preprocessing: How images become inputs.
        limit: Use at most this many samples.
        seed: Of everything drawn at random.
        estimate_tpr: Whether to recover triggers and count how many of them are flagged.
        target_class: The class to recover them for; None for the one that the head's weights or BAN suspect.
        device: Where the models run and gradients are computed, as torch names it.
    """

    method: str = AUTO
    score: str | None = None
    rule: str = "rank"
    target_fpr: float = RULES["rank"].target_fpr
    correct_fpr: float = RULES["rank"].correct_fpr
    max_accuracy_drop: float = 0.03
    preprocessing: Preprocessing
    limit: int | None = 5000
    seed: int = 0
    device: str = "cpu"
    estimate_tpr: bool = False
    target_class: int | None = None

    @property
    def chosen_score(self) -> str:
        """The score that is cut: the one given, else one_pass for auto and the rule's own for other methods."""
        if self.score is not None:
            return self.score
        return ONE_PASS if self.method == AUTO and RULES[self.rule].score != "divergence" else RULES[self.rule].score


def draft_bundle(
    classifier: Classifier,
    sites: Sequence[Site],
    bounds: ActivationBounds,
    split: CalibrationSplit,
    settings: FitSettings,
    progress: Progress,
) -> Bundle:
    """Return the bundle but for its thresholds: both models as they will ship, and no cut yet."""
    exposed = expose_logits(classifier)
    is_untouched = not (classifier.ends_in_softmax or classifier.has_external_data or classifier.dropped)
    no_cut = Threshold(value=math.inf, target_fpr=0.0, n=0)
    is_probability = classifier.ends_in_softmax or _gives_probabilities(classifier, split.bounds, settings.device)
    one_pass = None
    if settings.chosen_score == ONE_PASS:
        one_pass = fit_one_pass(
            classifier, sites, bounds, split.bounds, is_probability=is_probability,
            layout=settings.preprocessing.layout, progress=progress, device=settings.device,
        )  # fmt: skip
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        model=described(classifier),
        files={},
        inputs=classifier.inputs,
        output=classifier.output,
        output_kind="probabilities" if is_probability else "logits",
        logits=classifier.logits if classifier.ends_in_softmax or not is_probability else None,
        score=settings.chosen_score,
        thresholds={"alert": no_cut, "correct": no_cut},
        preprocessing=asdict(settings.preprocessing),
        method={"name": settings.method, "settings": dict(bounds.settings)},
        sites=[_described_site(site, bounds) for site in sites if site.tensor in bounds.upper],
        calibration=_parts(split, settings),
        versions=versions(),
        seed=settings.seed,
        detector=None if one_pass is None else one_pass.outputs,
    )
    bounded = check_edited(insert_bounds(exposed, bounds, sites)) if one_pass is None else one_pass.bounded
    return Bundle(
        manifest=manifest,
        original=classifier.source if is_untouched else serialize(exposed),
        bounded=serialize(bounded),
        clean_scores=np.zeros(0),
        observed=None if one_pass is None else serialize(one_pass.observed),
        detector=None if one_pass is None else one_pass.detector,
    )


def _gives_probabilities(classifier: Classifier, inputs: Rows, device: str) -> bool:
    """Tell from clean inputs whether an output without a trailing Softmax holds probabilities all the same."""
    name = classifier.output.name
    return all(  # the first input settles it for most models
        _are_probabilities(found[name])
        for rows in (RowsInMemory(inputs=inputs[0:1]), inputs)
        for _, found in forward(classifier.model, [name], rows, device=device)
    )


def _are_probabilities(outputs: FloatArray) -> bool:
    return bool((outputs >= 0).all() and np.allclose(outputs.sum(axis=1), 1, atol=_SUM_TOLERANCE))


def _described_site(site: Site, bounds: ActivationBounds) -> Mapping[str, object]:
    upper, lower = bounds.upper[site.tensor], bounds.lower.get(site.tensor)
    return {
        "tensor": site.tensor,
        "function": site.function,
        "shape": list(site.shape),
        "channel_axis": site.channel_axis,
        "n_bounds": int(upper.size),
        "least_bound": float(upper.min()),
        "greatest_bound": float(upper.max()),
        **({} if lower is None else _described_lower(lower)),
    }


def _described_lower(lower: FloatArray) -> Mapping[str, object]:
    return {
        "n_lower_bounds": int(lower.size),
        "least_lower_bound": float(lower.min()),
        "greatest_lower_bound": float(lower.max()),
    }


def _parts(split: CalibrationSplit, settings: FitSettings) -> Mapping[str, object]:
    return {
        "n_bounds_set": len(split.bounds),
        "n_threshold_set": len(split.threshold),
        "n_held_out_set": len(split.held_out),
        "n_skipped": len(split.bounds.skipped),
        "labels": "given" if split.bounds.labels is not None else "predicted by the original",
        "max_accuracy_drop": settings.max_accuracy_drop,
        "rule": settings.rule,
    }


def described(classifier: Classifier) -> Mapping[str, object]:
    """Return what tells this model from any other."""
    return {
        "name": classifier.name,
        "sha256": hashlib.sha256(classifier.source).hexdigest(),
        "n_bytes": len(classifier.source),
    }


def versions() -> Mapping[str, str]:
    """Return the versions of what computes here."""
    return {
        "trigger-guard": version("trigger-guard"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
