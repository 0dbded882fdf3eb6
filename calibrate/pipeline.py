"""The steps of calibration in order: model and clean data in, a bundle out; and measuring a bundle afterwards."""

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from calibrate.bounds import METHODS
from calibrate.data import CalibrationSplit, Preprocessing, Samples, load_samples, split_samples
from calibrate.edit import check_edited, insert_bounds
from calibrate.evaluation import Answered, Evaluation, evaluate
from calibrate.forward import batches, forward, predict
from calibrate.graph import Classifier, find_sites, read_classifier, serialize, with_outputs
from calibrate.report import Findings, render_report
from calibrate.sites import ActivationBounds, BoundsProblem, Progress, Rows, Site
from guard.bundle import BOUNDED, ORIGINAL, REPORT, THRESHOLDS, Bundle, check_place, pack_scores, save_bundle
from guard.conformal import fit_threshold, required_samples
from guard.errors import CalibrationError, InputError
from guard.manifest import FORMAT_VERSION, Manifest
from guard.runtime import Guard
from guard.types import FloatArray, ModelRun, Threshold

__all__ = ["PARTS", "FitSettings", "answer", "evaluate_bundle", "fit_bundle"]

PARTS = (0.35, 0.5, 0.15)
"""Shares of the calibration set: bounds set, threshold set, held-out set. The threshold set decides how far the rate
of one fitted threshold strays from its target, so it gets the most."""

_BATCH = 64
_SUM_TOLERANCE = 1e-3  # of float16 probabilities over many classes


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """What the caller of a fit may choose.

    Args:
        method: A key of calibrate.bounds.METHODS.
        score: A key of guard.scores.SCORES.
        target_fpr: Of the alert threshold.
        correct_fpr: Of the correction threshold; at least target_fpr.
        max_accuracy_drop: The clean accuracy that bounding may cost, a fraction.
        preprocessing: How images become inputs.
        limit: Use at most this many samples.
        seed: Of everything drawn at random.
    """

    method: str = "sigma"
    score: str = "relative_divergence"
    target_fpr: float = 0.01
    correct_fpr: float = 0.1
    max_accuracy_drop: float = 0.03
    preprocessing: Preprocessing
    limit: int | None = 5000
    seed: int = 0


def fit_bundle(
    model: str | Path, data: str | Path, bundle: str | Path, settings: FitSettings, progress: Progress
) -> tuple[Manifest, Findings]:
    """Fit a guard for a model on clean data and save it as a bundle.

    Args:
        model: An ONNX classifier.
        data: Clean samples (see calibrate.data.load_samples).
        bundle: The folder to write; an earlier bundle there is replaced once the new one is whole.
        settings: What to fit.
        progress: Told how far the work is.

    Returns:
        The manifest and what was found while fitting.

    Raises:
        InputError: The model or the data cannot be used.
        CalibrationError: No guard can be fitted from them.
        BundleError: The bundle cannot be written there.
    """
    check_place(bundle)
    _check_rates(settings)
    classifier = read_classifier(model)
    samples = load_samples(
        data,
        spec=classifier.input,
        n_classes=classifier.n_classes,
        preprocessing=settings.preprocessing,
        limit=settings.limit,
        seed=settings.seed,
        progress=progress,
    )
    _check_enough(len(samples), settings)
    split = split_samples(samples, fractions=PARTS, seed=settings.seed)
    sites = find_sites(classifier.model)
    bounds = _fit_bounds(classifier, sites, split.bounds, settings, progress)
    draft = _draft(classifier, sites, bounds, split, settings)
    thresholds, clean_scores = _fit_thresholds(draft, split.threshold, settings, progress)
    fitted = replace(draft, manifest=replace(draft.manifest, thresholds=thresholds), clean_scores=np.sort(clean_scores))
    guard = Guard.from_bundle(fitted)
    answered = answer(guard, split.held_out, progress, stage="measuring the held-out set")
    findings = Findings(
        held_out=evaluate(answered, None, target_fpr=settings.target_fpr),
        held_out_scores=answered.scores,
        clean_scores=fitted.clean_scores,
        upper=bounds.upper,
        skipped=samples.skipped,
    )
    manifest = replace(fitted.manifest, calibration={**fitted.manifest.calibration, **_measured(findings)})
    contents = {
        ORIGINAL: fitted.original,
        BOUNDED: fitted.bounded,
        THRESHOLDS: pack_scores(fitted.clean_scores),
        REPORT: render_report(manifest, findings),
    }
    return save_bundle(bundle, manifest, contents), findings


def evaluate_bundle(guard: Guard, clean: Samples, triggered: Samples | None, progress: Progress) -> Evaluation:
    """Measure a bundle's guard on clean and, where given, triggered samples."""
    alert = guard.manifest.thresholds["alert"]
    answers = answer(guard, clean, progress, stage="clean samples")
    attacked = None if triggered is None else answer(guard, triggered, progress, stage="triggered samples")
    return evaluate(answers, attacked, target_fpr=alert.target_fpr)


def answer(guard: Guard, samples: Samples, progress: Progress, *, stage: str) -> Answered:
    """Run the guard over samples and keep what each model and the guard said."""
    rows = []
    for part in batches(len(samples), _BATCH):
        inputs = samples[part]
        run = ModelRun(original=guard.run_original(inputs), bounded=guard.run_bounded(inputs))
        verdict = guard.decide(run)
        bounded = run.bounded.logits.argmax(axis=1)
        rows.append((verdict.predicted_class, bounded, verdict.corrected_class, verdict.score, verdict.flagged))
        progress(stage, part.stop, len(samples))
    original, bounded, guarded, scores, flagged = (np.concatenate(column) for column in zip(*rows, strict=True))
    return Answered(
        labels=samples.labels,
        target_classes=samples.target_classes,
        original=original,
        bounded=bounded,
        guarded=guarded,
        scores=scores,
        flagged=flagged,
    )


def _check_rates(settings: FitSettings) -> None:
    for name in ("target_fpr", "correct_fpr"):
        rate = getattr(settings, name)
        if not 0 < rate < 1:
            raise InputError(f"{name} is {rate:g}; it is a fraction between 0 and 1, such as 0.01")
    if settings.correct_fpr < settings.target_fpr:
        raise InputError(
            f"correct_fpr is {settings.correct_fpr:g}, below target_fpr {settings.target_fpr:g}; what is flagged is"
            " also corrected, so it must be at least as high"
        )
    if not 0 <= settings.max_accuracy_drop < 1:
        raise InputError(f"max_accuracy_drop is {settings.max_accuracy_drop:g}; it is a fraction, such as 0.03")
    if settings.method not in METHODS:
        raise InputError(f"there is no method {settings.method!r}; choose one of {', '.join(METHODS)}")


def _check_enough(n: int, settings: FitSettings) -> None:
    """Refuse too few samples before the long work rather than after it."""
    needed = required_samples(settings.target_fpr)
    total = math.ceil(needed / PARTS[1]) + 1
    if n < total:
        raise CalibrationError(
            f"{n} samples are too few to promise a false-positive rate of {settings.target_fpr:g}: the threshold set,"
            f" {PARTS[1]:.0%} of them, takes {needed}, so it takes {total} in all and {total - n} are missing;"
            " give more clean samples or raise --target-fpr"
        )


def _fit_bounds(
    classifier: Classifier, sites: Sequence[Site], samples: Samples, settings: FitSettings, progress: Progress
) -> ActivationBounds:
    labels = samples.labels
    if labels is None:
        labels = predict(classifier.model, classifier.logits, samples)
    problem = BoundsProblem(
        model=classifier.model,
        logits=classifier.logits,
        sites=sites,
        inputs=samples,
        labels=labels,
        max_accuracy_drop=settings.max_accuracy_drop,
        seed=settings.seed,
        progress=progress,
    )
    return METHODS[settings.method](problem)


def _draft(
    classifier: Classifier,
    sites: Sequence[Site],
    bounds: ActivationBounds,
    split: CalibrationSplit,
    settings: FitSettings,
) -> Bundle:
    """Return the bundle but for its thresholds: both models as they will ship, and no cut yet."""
    exposed = with_outputs(classifier.model, [classifier.logits])
    bounded = check_edited(insert_bounds(exposed, bounds, sites))
    is_untouched = not classifier.ends_in_softmax and not classifier.has_external_data
    no_cut = Threshold(value=math.inf, target_fpr=0.0, n=0)
    is_probability = classifier.ends_in_softmax or _gives_probabilities(classifier, split.bounds)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        model={
            "name": classifier.name,
            "sha256": hashlib.sha256(classifier.source).hexdigest(),
            "n_bytes": len(classifier.source),
        },
        files={},
        input=classifier.input,
        output=classifier.output,
        output_kind="probabilities" if is_probability else "logits",
        logits=classifier.logits if classifier.ends_in_softmax or not is_probability else None,
        score=settings.score,
        thresholds={"alert": no_cut, "correct": no_cut},
        preprocessing=asdict(settings.preprocessing),
        method={"name": bounds.method, "settings": dict(bounds.settings)},
        sites=[_described(site, bounds.upper[site.tensor]) for site in sites if site.tensor in bounds.upper],
        calibration=_parts(split, settings),
        versions=_versions(),
        seed=settings.seed,
    )
    return Bundle(
        manifest=manifest,
        original=classifier.source if is_untouched else serialize(exposed),
        bounded=serialize(bounded),
        clean_scores=np.zeros(0),
    )


def _fit_thresholds(
    draft: Bundle, samples: Samples, settings: FitSettings, progress: Progress
) -> tuple[Mapping[str, Threshold], FloatArray]:
    """Rank the scores that the guard itself gives on the models that will ship."""
    scores = answer(Guard.from_bundle(draft), samples, progress, stage="scoring the threshold set").scores
    thresholds = {
        "alert": fit_threshold(scores, target_fpr=settings.target_fpr),
        "correct": fit_threshold(scores, target_fpr=settings.correct_fpr),
    }
    return thresholds, scores


def _gives_probabilities(classifier: Classifier, inputs: Rows) -> bool:
    """Tell from clean inputs whether an output without a trailing Softmax holds probabilities all the same."""
    outputs = np.concatenate(
        [found[classifier.output.name] for _, found in forward(classifier.model, [classifier.output.name], inputs)]
    )
    return bool((outputs >= 0).all() and np.allclose(outputs.sum(axis=1), 1, atol=_SUM_TOLERANCE))


def _described(site: Site, upper: FloatArray) -> Mapping[str, object]:
    return {
        "tensor": site.tensor,
        "function": site.function,
        "shape": list(site.shape),
        "channel_axis": site.channel_axis,
        "n_bounds": int(upper.size),
        "least_bound": float(upper.min()),
        "greatest_bound": float(upper.max()),
    }


def _parts(split: CalibrationSplit, settings: FitSettings) -> Mapping[str, object]:
    return {
        "n_bounds_set": len(split.bounds),
        "n_threshold_set": len(split.threshold),
        "n_held_out_set": len(split.held_out),
        "n_skipped": len(split.bounds.skipped),
        "labels": "given" if split.bounds.labels is not None else "predicted by the original",
        "max_accuracy_drop": settings.max_accuracy_drop,
    }


def _measured(findings: Findings) -> Mapping[str, object]:
    held_out = findings.held_out
    return {
        "held_out_fpr": held_out.measured_fpr,
        "held_out_original_accuracy": held_out.original_clean_accuracy,
        "held_out_bounded_accuracy": held_out.bounded_clean_accuracy,
        "held_out_guarded_accuracy": held_out.guarded_clean_accuracy,
    }


def _versions() -> Mapping[str, str]:
    return {
        "trigger-guard": version("trigger-guard"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
