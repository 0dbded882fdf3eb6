"""guard-calibrate: its commands, each read, run and printed. The only place of this package that prints."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from guard.bundle import REPORT, load_bundle
from guard.errors import GuardError, InputError
from guard.manifest import Manifest
from guard.runtime import Guard

try:
    from calibrate.command_line import PASSES, parse
    from calibrate.data import Preprocessing, Samples, load_samples
    from calibrate.estimation import TprEstimation
    from calibrate.evaluation import Evaluation
    from calibrate.explanation import explain_row, verdict_of
    from calibrate.files import check_place_of, check_places_apart, write_file, write_json
    from calibrate.findings_file import unpack_findings
    from calibrate.inspect_pipeline import InspectSettings, inspect_model
    from calibrate.inspection.inspection import Inspection
    from calibrate.inspection.report import evidence_rows, headline, left_rows, render_inspection
    from calibrate.inspection.triggers import TriggerDistribution, save_triggers
    from calibrate.inspection.verdict import SUSPECTED
    from calibrate.pipeline import FitSettings, evaluate_bundle, fit_bundle
    from calibrate.progress import ProgressReport
    from calibrate.report import render_report
    from calibrate.report_checks import warnings_of
    from calibrate.report_tables import estimate_rows
    from calibrate.shown import manifest_rows
    from calibrate.thresholds import RULES
except ModuleNotFoundError as error:
    if error.name not in ("matplotlib", "onnx", "PIL", "torch"):
        raise
    print(f"guard-calibrate: error: {error.name} is missing; pip install 'trigger-guard[calibrate]'", file=sys.stderr)
    sys.exit(2)

__all__ = ["main"]

_USER_ERROR, _BACKDOOR_SUSPECTED, _INTERRUPTED = 2, 3, 130
_LABEL_WIDTH = 30
_NO_VALUE = "not applicable"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run guard-calibrate and return its exit status.

    It is 0; 2 with one line on standard error; or 3 where an inspection suspects a backdoor.
    """
    try:
        options = parse(arguments)
        return _COMMANDS[options.command](options)
    except GuardError as error:
        print(f"guard-calibrate: error: {' '.join(str(error).split())}", file=sys.stderr)
        return _USER_ERROR
    except KeyboardInterrupt:
        print("guard-calibrate: interrupted; nothing was written", file=sys.stderr)
        return _INTERRUPTED


def _inspect(options: argparse.Namespace) -> int:
    places = {f"--{flag}": getattr(options, flag) for flag in ("json", "report", "triggers")}
    for flag, place in places.items():
        check_place_of(flag, place)
    check_places_apart(places)
    if options.triggers is not None and options.depth != "full":
        raise InputError("--triggers is for what MESA recovers, which takes --depth full")
    settings = InspectSettings(
        depth=options.depth,
        preprocessing=_preprocessing(options),
        limit=options.limit,
        seed=options.seed,
        device=options.device,
    )
    with ProgressReport(sys.stderr) as progress:
        found = inspect_model(options.model, options.data, settings, progress)
    for warning in found.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    _write_inspection(found, options)
    print(headline(found))
    _print_rows(evidence_rows(found))
    if found.not_looked_at:
        print("\nnot looked at:")
        _print_rows(left_rows(found))
    return _BACKDOOR_SUSPECTED if found.verdict.verdict == SUSPECTED else 0


def _write_inspection(found: Inspection, options: argparse.Namespace) -> None:
    if options.json is not None:
        write_json("--json", options.json, found.summary())
    if options.report is not None:
        write_file("--report", options.report, render_inspection(found))
    if options.triggers is not None:
        _write_triggers(options.triggers, () if found.mesa is None else found.mesa.suspected.kept)


def _write_triggers(path: str, kept: Sequence[TriggerDistribution]) -> None:
    if kept:
        save_triggers(path, kept)
    else:
        print(f"warning: no trigger was recovered; {path} is not written", file=sys.stderr)


def _fit(options: argparse.Namespace) -> int:
    if options.triggers is not None and not options.estimate_tpr:
        raise InputError("--triggers is for --estimate-tpr; give both, or neither")
    check_place_of("--triggers", options.triggers, bundle=options.bundle)
    rule = RULES[options.rule]
    settings = FitSettings(
        method=options.method,
        score=options.score or PASSES.get(options.passes),
        rule=options.rule,
        target_fpr=rule.target_fpr if options.target_fpr is None else options.target_fpr,
        correct_fpr=rule.correct_fpr if options.correct_fpr is None else options.correct_fpr,
        max_accuracy_drop=options.max_accuracy_drop,
        preprocessing=_preprocessing(options),
        limit=options.limit,
        seed=options.seed,
        device=options.device,
        estimate_tpr=options.estimate_tpr,
        target_class=options.target_class,
    )
    with ProgressReport(sys.stderr) as progress:
        manifest, findings = fit_bundle(options.model, options.data, options.bundle, settings, progress)
    for warning in warnings_of(manifest, findings):
        print(f"warning: {warning}", file=sys.stderr)
    print("measured on the held-out set, which nothing was fitted on:")
    _print_rows((key, value) for key, value in _evaluation_rows(findings.held_out) if value != _NO_VALUE)
    _print_estimation(findings.estimation, options.triggers)
    print(f"\nbundle written to {options.bundle}; look at {Path(options.bundle) / REPORT}")
    return 0


def _print_estimation(estimation: TprEstimation | None, triggers: str | None) -> None:
    if estimation is None:
        return
    if estimation.estimates:
        print(f"\nflagged, estimated on recovered triggers towards class {estimation.target_class}:")
        _print_rows(estimate_rows(estimation))
    if triggers is not None:
        _write_triggers(triggers, () if estimation.recovered is None else estimation.recovered.kept)


def _evaluate(options: argparse.Namespace) -> int:
    check_place_of("--json", options.json, bundle=options.bundle)
    guard = Guard.load(options.bundle)
    triggered = None
    with ProgressReport(sys.stderr) as progress:
        clean = _samples(guard.manifest, options.clean, options, progress)
        if options.triggered is not None:
            samples = _samples(guard.manifest, options.triggered, options, progress)
            triggered = _with_target(samples, options, guard.manifest)
        evaluation = evaluate_bundle(guard, clean, triggered, progress)
    if options.json is not None:
        write_json("--json", options.json, asdict(evaluation))
    _print_rows(_evaluation_rows(evaluation))
    if triggered is not None and triggered.target_classes is None:
        print("\nThe triggered data name no target_classes: give --target-class for success rates, tpr and auroc.")
    return 0


def _show(options: argparse.Namespace) -> int:
    bundle = load_bundle(options.bundle)
    Guard.from_bundle(bundle)
    print(f"{options.bundle}: every file verified, both models load\n")
    _print_rows(manifest_rows(bundle.manifest))
    return 0


def _report(options: argparse.Namespace) -> int:
    check_place_of("--out", options.out, bundle=options.bundle)
    bundle = load_bundle(options.bundle)
    write_file("--out", options.out, render_report(bundle.manifest, unpack_findings(bundle)))
    print(f"report written to {options.out}")
    return 0


def _explain(options: argparse.Namespace) -> int:
    check_place_of("--out", options.out, bundle=options.bundle)
    evidence, drawn = explain_row(Guard.load(options.bundle), options.input, options.row)
    write_file("--out", options.out, drawn)
    print(f"{verdict_of(evidence)}\nexplained in {options.out}")
    return 0


def _preprocessing(options: argparse.Namespace) -> Preprocessing:
    return Preprocessing(scale=options.scale, mean=options.mean, std=options.std, layout=options.layout)


def _samples(manifest: Manifest, path: str, options: argparse.Namespace, progress: ProgressReport) -> Samples:
    samples = load_samples(
        path,
        inputs=manifest.inputs,
        n_classes=manifest.n_classes,
        preprocessing=Preprocessing(**manifest.preprocessing),
        limit=options.limit,
        seed=options.seed,
        progress=progress,
    )
    if samples.skipped:
        print(
            f"warning: {len(samples.skipped)} unreadable images skipped in {path}, such as {samples.skipped[0]}",
            file=sys.stderr,
        )
    return samples


def _with_target(samples: Samples, options: argparse.Namespace, manifest: Manifest) -> Samples:
    if options.target_class is None:
        return samples
    if not 0 <= options.target_class < manifest.n_classes:
        raise InputError(
            f"--target-class is {options.target_class}; the model has the classes 0 to {manifest.n_classes - 1}"
        )
    return replace(samples, target_classes=np.full(len(samples), options.target_class, dtype=np.int64))


def _evaluation_rows(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    for key, value in asdict(evaluation).items():
        yield key, _NO_VALUE if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _print_rows(rows: Iterator[tuple[str, str]]) -> None:
    for key, value in rows:
        print(f"{key:<{_LABEL_WIDTH}}{value}")


_COMMANDS = {
    "inspect": _inspect,
    "fit": _fit,
    "evaluate": _evaluate,
    "explain": _explain,
    "report": _report,
    "show": _show,
}


if __name__ == "__main__":
    sys.exit(main())
