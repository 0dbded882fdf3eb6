"""The steps of calibration in order: model and clean data in, a bundle out; and measuring a bundle afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from calibrate.bounds import METHODS, NEEDS, Method, Needs
from calibrate.data import PARTS, CalibrationSplit, Preprocessing, Samples, load_samples, split_samples
from calibrate.differentiable import check_device
from calibrate.draft import FitSettings, draft_bundle
from calibrate.evaluation import Answered, Evaluation, evaluate
from calibrate.forward import batches, predict, provider_of
from calibrate.graph import Classifier, read_classifier, survey_sites
from calibrate.labels import N_COMPARED, check_agreement, check_several_classes
from calibrate.report import Findings, render_report
from calibrate.sites import ActivationBounds, BoundsProblem, Progress, Site
from calibrate.sufficiency import check_enough
from calibrate.thresholds import RULES
from guard.bundle import BOUNDED, ORIGINAL, REPORT, THRESHOLDS, Bundle, check_place, pack_scores, save_bundle
from guard.errors import InputError
from guard.manifest import Manifest
from guard.runtime import Guard
from guard.scores import SCORES
from guard.types import FloatArray, ModelRun, TensorSpec, Threshold

__all__ = ["PARTS", "FitSettings", "answer", "evaluate_bundle", "fit_bundle"]

_BATCH = 64
_LEAST_RATE = 1e-6  # which takes a million samples


def fit_bundle(
    model: str | Path,
    data: str | Path,
    bundle: str | Path,
    settings: FitSettings,
    progress: Progress,
    *,
    methods: Mapping[str, Method] = METHODS,
) -> tuple[Manifest, Findings]:
    """Fit a guard for a model on clean data and save it as a bundle.

    Args:
        model: An ONNX classifier.
        data: Clean samples (see calibrate.data.load_samples).
        bundle: The folder to write; an earlier bundle there is replaced once the new one is whole.
        settings: What to fit.
        progress: Told how far the work is.
        methods: Ways to learn bounds, by the name that settings choose.

    Returns:
        The manifest and what was found while fitting.

    Raises:
        InputError: The model or the data cannot be used.
        CalibrationError: No guard can be fitted from them.
        BundleError: The bundle cannot be written there.
    """
    check_place(bundle)
    _check_settings(settings, methods)
    classifier = read_classifier(model)
    sites, unranked = survey_sites(classifier.model)
    samples = _load(data, classifier, settings, progress)
    split = split_samples(samples, fractions=PARTS, seed=settings.seed)
    problem = _problem(classifier, sites, split.bounds, settings, progress)
    bounds = methods[settings.method](problem)
    draft = draft_bundle(classifier, sites, bounds, split, settings)
    thresholds, clean_scores = _fit_thresholds(draft, split, settings, progress)
    fitted = replace(draft, manifest=replace(draft.manifest, thresholds=thresholds), clean_scores=np.sort(clean_scores))
    found = _find(fitted, bounds, split.held_out, settings, progress)
    findings = replace(found, dropped_outputs=classifier.dropped, unranked=unranked)
    return _save(fitted, bundle, findings), findings


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


def _load(data: str | Path, classifier: Classifier, settings: FitSettings, progress: Progress) -> Samples:
    """Load the calibration set and refuse one that is too small or labelled for other classes."""
    _check_preprocessing(classifier.inputs, settings.preprocessing)
    samples = load_samples(
        data,
        inputs=classifier.inputs,
        n_classes=classifier.n_classes,
        preprocessing=settings.preprocessing,
        limit=settings.limit,
        seed=settings.seed,
        progress=progress,
    )
    check_enough(len(samples), settings)
    _check_labels(classifier, samples, settings)
    return samples


def _check_settings(settings: FitSettings, methods: Mapping[str, Method]) -> None:
    for name in ("target_fpr", "correct_fpr"):
        rate = getattr(settings, name)
        if not _LEAST_RATE <= rate < 1:
            raise InputError(f"{name} is {rate:g}; it is a fraction from {_LEAST_RATE:g} to below 1, such as 0.01")
    if settings.correct_fpr < settings.target_fpr:
        raise InputError(
            f"correct_fpr is {settings.correct_fpr:g}, below target_fpr {settings.target_fpr:g}; what is flagged is"
            " also corrected, so it must be at least as high"
        )
    if not 0 <= settings.max_accuracy_drop < 1:
        raise InputError(f"max_accuracy_drop is {settings.max_accuracy_drop:g}; it is a fraction, such as 0.03")
    if settings.seed < 0:
        raise InputError(f"seed is {settings.seed}; it is a whole number from 0 up")
    check_device(settings.device)
    for name, known in (("method", methods), ("score", SCORES), ("rule", RULES)):
        if (chosen := getattr(settings, name)) not in known:
            raise InputError(f"there is no {name} {chosen!r}; choose one of {', '.join(known)}")


def _check_preprocessing(inputs: Sequence[TensorSpec], preprocessing: Preprocessing) -> None:
    """Refuse a mean or std of another number of channels, even where the data are model-ready: the bundle keeps it."""
    spec = inputs[0]
    if len(inputs) > 1 or len(spec.shape) != 4:
        return
    channels = spec.shape[1 if preprocessing.layout == "nchw" else 3]
    for name in ("mean", "std"):
        n_given = len(getattr(preprocessing, name))
        if channels is not None and n_given not in (1, channels):
            raise InputError(
                f"{name} has {n_given} values, but the model's input {spec} has {channels} channels; give one value,"
                " or one per channel"
            )


def _check_labels(classifier: Classifier, samples: Samples, settings: FitSettings) -> None:
    """Refuse labels of other classes than the model's, and of one class where the method needs several."""
    if samples.labels is None:
        return
    compared = samples.take(np.arange(min(len(samples), N_COMPARED)))
    predicted = predict(classifier.model, classifier.logits, compared, device=settings.device)
    check_agreement(samples.labels[: len(compared)], predicted)
    if NEEDS.get(settings.method, Needs()).several_classes:
        check_several_classes(samples.labels, wanted_by=f"--method {settings.method}")


def _problem(
    classifier: Classifier, sites: Sequence[Site], samples: Samples, settings: FitSettings, progress: Progress
) -> BoundsProblem:
    """Return what a bounds method may look at; without labels the original's predictions stand in."""
    labels = samples.labels
    if labels is None:
        labels = predict(
            classifier.model,
            classifier.logits,
            samples,
            progress=progress,
            stage="predicting labels",
            device=settings.device,
        )
    return BoundsProblem(
        model=classifier.model,
        logits=classifier.logits,
        sites=sites,
        inputs=samples,
        labels=labels,
        max_accuracy_drop=settings.max_accuracy_drop,
        seed=settings.seed,
        progress=progress,
        device=settings.device,
    )


def _fit_thresholds(
    draft: Bundle, split: CalibrationSplit, settings: FitSettings, progress: Progress
) -> tuple[Mapping[str, Threshold], FloatArray]:
    """Apply the rule to scores that the guard itself gives on the models that will ship."""
    rule = RULES[settings.rule]
    stage = f"scoring the {rule.part} set"
    scores = answer(_open(draft, settings), getattr(split, rule.part), progress, stage=stage).scores
    thresholds = {
        "alert": rule.fit(scores, settings.target_fpr),
        "correct": rule.fit(scores, settings.correct_fpr),
    }
    return thresholds, scores


def _open(bundle: Bundle, settings: FitSettings) -> Guard:
    return Guard.from_bundle(bundle, provider=provider_of(settings.device))


def _find(
    fitted: Bundle, bounds: ActivationBounds, held_out: Samples, settings: FitSettings, progress: Progress
) -> Findings:
    """Measure the fitted guard on the held-out set."""
    answered = answer(_open(fitted, settings), held_out, progress, stage="measuring the held-out set")
    return Findings(
        held_out=evaluate(answered, None, target_fpr=settings.target_fpr),
        held_out_scores=answered.scores,
        clean_scores=fitted.clean_scores,
        upper=bounds.upper,
        lower=bounds.lower,
        skipped=held_out.skipped,
    )


def _save(fitted: Bundle, place: str | Path, findings: Findings) -> Manifest:
    """Write the bundle with what was found; return its manifest."""
    manifest = replace(fitted.manifest, calibration={**fitted.manifest.calibration, **_measured(findings)})
    contents = {
        ORIGINAL: fitted.original,
        BOUNDED: fitted.bounded,
        THRESHOLDS: pack_scores(fitted.clean_scores),
        REPORT: render_report(manifest, findings),
    }
    return save_bundle(place, manifest, contents)


def _measured(findings: Findings) -> Mapping[str, object]:
    held_out = findings.held_out
    return {
        "held_out_fpr": held_out.measured_fpr,
        "held_out_original_accuracy": held_out.original_clean_accuracy,
        "held_out_bounded_accuracy": held_out.bounded_clean_accuracy,
        "held_out_guarded_accuracy": held_out.guarded_clean_accuracy,
    }
