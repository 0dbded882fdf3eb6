"""The steps of calibration in order: model and clean data in, a bundle out; and measuring a bundle afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from calibrate.bounds import METHODS, Method
from calibrate.data import PARTS, CalibrationSplit, Samples, load_samples, split_samples
from calibrate.draft import FitSettings, draft_bundle
from calibrate.estimation import Recover, TprEstimation, estimate_tpr, recover_for_estimate
from calibrate.evaluation import Answered, Evaluation, evaluate
from calibrate.findings import Findings, see
from calibrate.findings_file import pack_findings
from calibrate.fit_checks import check_classes, check_preprocessing, check_settings
from calibrate.forward import batches, provider_of
from calibrate.gradients import NoGradientError
from calibrate.graph import Classifier, read_classifier, survey_sites
from calibrate.inspect_pipeline import look_quickly
from calibrate.inspection.mesa import MesaFindings
from calibrate.inspection.problem import InspectionProblem
from calibrate.inspection.trigger_pictures import trigger_png
from calibrate.labels import agreement_of, labels_or_predicted
from calibrate.report import render_report
from calibrate.sites import ActivationBounds, BoundsProblem, Progress, Site
from calibrate.sufficiency import check_enough
from calibrate.thresholds import RULES
from guard.bundle import (
    BOUNDED,
    DETECTOR,
    FINDINGS,
    OBSERVED,
    ORIGINAL,
    REPORT,
    THRESHOLDS,
    Bundle,
    check_place,
    pack_scores,
    save_bundle,
)
from guard.detector import pack_detector
from guard.errors import CalibrationError
from guard.manifest import Manifest, read_manifest, write_manifest
from guard.runtime import Guard

__all__ = ["PARTS", "FitSettings", "answer", "evaluate_bundle", "fit_bundle"]

_BATCH = 64
_N_EXAMPLES = 4  # held-out inputs that the report shows triggers on


def fit_bundle(
    model: str | Path,
    data: str | Path,
    bundle: str | Path,
    settings: FitSettings,
    progress: Progress,
    *,
    methods: Mapping[str, Method] = METHODS,
    recover: Recover = recover_for_estimate,
) -> tuple[Manifest, Findings]:
    """Fit a guard for a model on clean data and save it as a bundle.

    Args:
        model: An ONNX classifier.
        data: Clean samples (see calibrate.data.load_samples).
        bundle: The folder to write; an earlier bundle there is replaced once the new one is whole.
        settings: What to fit.
        progress: Told how far the work is.
        methods: Ways to learn bounds, by the name that settings choose.
        recover: How triggers are recovered where settings ask for an estimate.

    Returns:
        The manifest and what was found while fitting.

    Raises:
        InputError: The model or the data cannot be used.
        CalibrationError: No guard can be fitted from them.
        BundleError: The bundle cannot be written there.
    """
    check_place(bundle)
    check_settings(settings, methods)
    classifier = read_classifier(model)
    sites, unranked = survey_sites(classifier.model)
    split = split_samples(_load(data, classifier, settings, progress), fractions=PARTS, seed=settings.seed)
    problem = _problem(classifier, sites, split.bounds, settings, progress)
    recovered = _recover(problem, settings, recover)
    look = look_quickly(classifier, InspectionProblem.of(problem))
    bounds = _learn(methods[settings.method], problem)
    draft = draft_bundle(classifier, sites, bounds, split, settings, progress)
    fitted = _with_thresholds(draft, split, settings, progress)
    found = _find(fitted, recovered, split.held_out, settings, progress)
    findings = replace(found, dropped_outputs=classifier.dropped, unranked=unranked)
    return _save(fitted, bundle, findings, look), findings


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
        verdict = guard(inputs)
        bounded_class = guard.run_bounded(inputs).logits.argmax(axis=1)
        rows.append((verdict.predicted_class, bounded_class, verdict.corrected_class, verdict.score, verdict.flagged))
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
    check_preprocessing(classifier.inputs, settings.preprocessing)
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
    agreement_of(classifier, samples, device=settings.device)  # refuses labels of other classes
    return samples


def _problem(
    classifier: Classifier, sites: Sequence[Site], samples: Samples, settings: FitSettings, progress: Progress
) -> BoundsProblem:
    """Return what a bounds method may look at; without labels the original's predictions stand in."""
    labels = labels_or_predicted(classifier, samples, progress=progress, device=settings.device)
    check_classes(labels, settings)
    return BoundsProblem(
        model=classifier.model,
        logits=classifier.logits,
        sites=sites,
        n_classes=classifier.n_classes,
        inputs=samples,
        labels=labels,
        max_accuracy_drop=settings.max_accuracy_drop,
        layout=settings.preprocessing.layout,
        seed=settings.seed,
        progress=progress,
        device=settings.device,
    )


def _learn(method: Method, problem: BoundsProblem) -> ActivationBounds:
    """Learn the bounds; for a model without a gradient, say what needs none."""
    try:
        return method(problem)
    except NoGradientError as error:
        raise CalibrationError(f"{error}; use a method that needs no gradient: --method sigma") from error


def _recover(problem: BoundsProblem, settings: FitSettings, recover: Recover) -> MesaFindings | None:
    """Recover triggers from the bounds set, before the long work that a refusal would waste."""
    if not settings.estimate_tpr:
        return None
    return recover(InspectionProblem.of(problem), settings.target_class)


def _estimate(
    fitted: Bundle, recovered: MesaFindings | None, held_out: Samples, settings: FitSettings, progress: Progress
) -> TprEstimation | None:
    """Count which of the recovered triggers the fitted guard flags on the held-out set, where that is asked for."""
    if not settings.estimate_tpr:
        return None
    kept = () if recovered is None else recovered.kept
    return TprEstimation(
        target_class=None if recovered is None else recovered.target_class,
        is_given=settings.target_class is not None,
        recovered=recovered,
        estimates=estimate_tpr(_open(fitted, settings), kept, held_out, seed=settings.seed, progress=progress),
        examples=np.asarray(held_out[0:_N_EXAMPLES]),
    )


def _picture(estimation: TprEstimation | None) -> bytes:
    if estimation is None or estimation.recovered is None or not estimation.recovered.kept:
        return b""
    return trigger_png(estimation.recovered.kept, estimation.examples)


def _with_thresholds(draft: Bundle, split: CalibrationSplit, settings: FitSettings, progress: Progress) -> Bundle:
    """Apply the rule to scores that the guard itself gives on the models that will ship."""
    rule = RULES[settings.rule]
    stage = f"scoring the {rule.part} set"
    answered = answer(_open(draft, settings), getattr(split, rule.part), progress, stage=stage)
    scores = answered.scores
    thresholds = {
        "alert": rule.fit(scores, settings.target_fpr),
        "correct": rule.fit(scores, settings.correct_fpr),
    }
    manifest, order = replace(draft.manifest, thresholds=thresholds), np.argsort(scores, kind="stable")
    return replace(draft, manifest=manifest, clean_scores=scores[order], clean_classes=answered.original[order])


def _open(bundle: Bundle, settings: FitSettings) -> Guard:
    return Guard.from_bundle(bundle, provider=provider_of(settings.device))


def _find(
    fitted: Bundle, recovered: MesaFindings | None, held_out: Samples, settings: FitSettings, progress: Progress
) -> Findings:
    """Measure the fitted guard on the held-out set, and on recovered triggers where that is asked for."""
    estimation = _estimate(fitted, recovered, held_out, settings, progress)
    answered = answer(_open(fitted, settings), held_out, progress, stage="measuring the held-out set")
    return Findings(
        answered=answered,
        held_out=evaluate(answered, None, target_fpr=settings.target_fpr),
        clean_scores=fitted.clean_scores,
        seen=see(fitted, held_out, provider=provider_of(settings.device), progress=progress),
        skipped=held_out.skipped,
        estimation=estimation,
        triggers=_picture(estimation),
    )


def _save(fitted: Bundle, place: str | Path, findings: Findings, look: Mapping[str, object]) -> Manifest:
    """Write the bundle with what was found; return its manifest."""
    known = {**fitted.manifest.calibration, **findings.measured(), "look": look}
    manifest = replace(fitted.manifest, calibration=known)
    contents = {
        ORIGINAL: fitted.original,
        BOUNDED: fitted.bounded,
        THRESHOLDS: pack_scores(fitted.clean_scores, fitted.clean_classes),
        FINDINGS: pack_findings(findings),
        REPORT: render_report(read_manifest(write_manifest(manifest)), findings),  # as it will be read back
    }
    if fitted.observed is not None and fitted.detector is not None:
        contents |= {OBSERVED: fitted.observed, DETECTOR: pack_detector(fitted.detector)}
    return save_bundle(place, manifest, contents)
