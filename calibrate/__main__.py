"""guard-calibrate: fit, evaluate and show bundles. The only place of this package that prints."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from guard.bundle import REPORT, load_bundle
from guard.errors import GuardError, InputError
from guard.manifest import Manifest
from guard.runtime import Guard
from guard.scores import SCORES

try:
    from calibrate.bounds import METHODS
    from calibrate.data import Preprocessing, Samples, load_samples
    from calibrate.evaluation import Evaluation
    from calibrate.pipeline import FitSettings, evaluate_bundle, fit_bundle
    from calibrate.progress import ProgressReport
    from calibrate.report import warnings_of
    from calibrate.thresholds import RULES
except ModuleNotFoundError as error:
    if error.name not in ("matplotlib", "onnx", "PIL", "torch"):
        raise
    print(f"guard-calibrate: error: {error.name} is missing; pip install 'trigger-guard[calibrate]'", file=sys.stderr)
    sys.exit(2)

__all__ = ["main"]

_USER_ERROR, _INTERRUPTED = 2, 130
_LABEL_WIDTH = 30
_NO_VALUE = "not applicable"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run guard-calibrate and return its exit status: 0, or 2 with one line on standard error."""
    try:
        options = _parser().parse_args(arguments)
        options.run(options)
    except GuardError as error:
        print(f"guard-calibrate: error: {' '.join(str(error).split())}", file=sys.stderr)
        return _USER_ERROR
    except KeyboardInterrupt:
        print("guard-calibrate: interrupted; nothing was written", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _fit(options: argparse.Namespace) -> None:
    rule = RULES[options.rule]
    settings = FitSettings(
        method=options.method,
        score=options.score or rule.score,
        rule=options.rule,
        target_fpr=rule.target_fpr if options.target_fpr is None else options.target_fpr,
        correct_fpr=rule.correct_fpr if options.correct_fpr is None else options.correct_fpr,
        max_accuracy_drop=options.max_accuracy_drop,
        preprocessing=Preprocessing(scale=options.scale, mean=options.mean, std=options.std, layout=options.layout),
        limit=options.limit,
        seed=options.seed,
    )
    with ProgressReport(sys.stderr) as progress:
        manifest, findings = fit_bundle(options.model, options.data, options.bundle, settings, progress)
    for warning in warnings_of(manifest, findings):
        print(f"warning: {warning}", file=sys.stderr)
    print("measured on the held-out set, which nothing was fitted on:")
    _print_rows((key, value) for key, value in _evaluation_rows(findings.held_out) if value != _NO_VALUE)
    print(f"\nbundle written to {options.bundle}; look at {Path(options.bundle) / REPORT}")


def _evaluate(options: argparse.Namespace) -> None:
    _check_json_place(options.json, options.bundle)
    guard = Guard.load(options.bundle)
    triggered = None
    with ProgressReport(sys.stderr) as progress:
        clean = _samples(guard.manifest, options.clean, options, progress)
        if options.triggered is not None:
            samples = _samples(guard.manifest, options.triggered, options, progress)
            triggered = _with_target(samples, options, guard.manifest)
        evaluation = evaluate_bundle(guard, clean, triggered, progress)
    if options.json is not None:
        _write_json(options.json, asdict(evaluation))
    _print_rows(_evaluation_rows(evaluation))
    if triggered is not None and triggered.target_classes is None:
        print("\nThe triggered data name no target_classes: give --target-class for success rates, tpr and auroc.")


def _show(options: argparse.Namespace) -> None:
    bundle = load_bundle(options.bundle)
    Guard.from_bundle(bundle)
    print(f"{options.bundle}: every file verified, both models load\n")
    _print_rows(_manifest_rows(bundle.manifest))


def _samples(manifest: Manifest, path: str, options: argparse.Namespace, progress: ProgressReport) -> Samples:
    samples = load_samples(
        path,
        spec=manifest.input,
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


def _manifest_rows(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "model", f"{manifest.model['name']}, SHA-256 {str(manifest.model['sha256'])[:16]}..."
    yield "input", str(manifest.input)
    yield "output", f"{manifest.output}, {manifest.output_kind}"
    yield "preprocessing of images", _sentence(manifest.preprocessing)
    yield "method", f"{manifest.method['name']}: {_sentence(manifest.method['settings'])}"
    yield "sites", f"{len(manifest.sites)}, {sum(s['n_bounds'] for s in manifest.sites)} bounds"
    yield "score", manifest.score
    for name, t in manifest.thresholds.items():
        yield f"{name} threshold", f"{t.value:.6g}, for a false-positive rate of {t.target_fpr:g}, from {t.n} inputs"
    yield "calibration", _sentence(manifest.calibration)
    yield "written with", _sentence(manifest.versions)
    yield "seed", str(manifest.seed)
    for name, digest in manifest.files.items():
        yield name, f"{digest.n_bytes} bytes, SHA-256 {digest.sha256[:16]}..."


def _sentence(values: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in values.items()) if isinstance(values, dict) else str(values)


def _print_rows(rows: Iterator[tuple[str, str]]) -> None:
    for key, value in rows:
        print(f"{key:<{_LABEL_WIDTH}}{value}")


def _check_json_place(path: str | None, bundle: str) -> None:
    """Refuse, before long work, what can be no file, and a file that would break the bundle."""
    if path is None:
        return
    if not Path(path).name or Path(path).is_dir():
        raise InputError(f"--json is {path!r}, which is a folder; give the name of a file")
    if Path(path).resolve().is_relative_to(Path(bundle).resolve()):
        raise InputError(f"--json is {path!r}, inside the bundle, which must hold nothing else; choose another place")


def _write_json(path: str, content: dict[str, object]) -> None:
    target = Path(path)
    staging = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.write_text(json.dumps(content, indent=2) + "\n")
        staging.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            staging.unlink()
        raise InputError(f"cannot write {target}: {error.strerror}; choose another place for --json") from error


class _Parser(argparse.ArgumentParser):
    """A parser that tells a wrong command line as any other error is told: in one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise InputError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="guard-calibrate", description="Learn, measure and show a guard for an ONNX classifier.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_fit(commands.add_parser("fit", help="fit a guard and save it as a bundle"))
    evaluate = commands.add_parser("evaluate", help="measure a bundle on clean and triggered data")
    evaluate.add_argument("bundle", metavar="DIR", help="the bundle")
    evaluate.add_argument("--clean", required=True, metavar="DATA", help="clean samples, none of them used in fitting")
    evaluate.add_argument("--triggered", metavar="DATA", help="samples that carry a trigger")
    evaluate.add_argument(
        "--target-class", type=int, metavar="N", help="what the attacker wants, where DATA does not say"
    )
    evaluate.add_argument("--json", metavar="FILE", help="also write the figures there")
    _add_draw(evaluate, limit=None)
    evaluate.set_defaults(run=_evaluate)
    show = commands.add_parser("show", help="verify a bundle and say what it holds")
    show.add_argument("bundle", metavar="DIR", help="the bundle")
    show.set_defaults(run=_show)
    return parser


def _add_fit(fit: argparse.ArgumentParser) -> None:
    fit.add_argument("model", metavar="MODEL.onnx", help="the classifier to guard")
    fit.add_argument("--data", required=True, metavar="CLEAN", help="clean samples: folder, .tar, .npz or .npy")
    fit.add_argument("--bundle", required=True, metavar="DIR", help="the folder to write")
    fit.add_argument("--method", default="sigma", choices=list(METHODS), help="how bounds are learned (%(default)s)")
    fit.add_argument("--rule", default="rank", choices=list(RULES), help="how thresholds are fitted (%(default)s)")
    fit.add_argument("--score", choices=list(SCORES), help=f"what is cut ({_defaults('score')})")
    fit.add_argument(
        "--target-fpr", type=float, metavar="RATE", help=f"clean inputs flagged ({_defaults('target_fpr')})"
    )
    fit.add_argument("--correct-fpr", type=float, metavar="RATE",
                     help=f"clean inputs answered by the bounded model ({_defaults('correct_fpr')})")  # fmt: skip
    fit.add_argument("--max-accuracy-drop", type=float, default=0.03, metavar="SHARE",
                     help="clean accuracy that bounding may cost (%(default)s)")  # fmt: skip
    fit.add_argument("--mean", type=_numbers, default=(0.0,), metavar="R,G,B", help="subtracted per channel (0)")
    fit.add_argument("--std", type=_numbers, default=(1.0,), metavar="R,G,B", help="divided by per channel (1)")
    fit.add_argument("--scale", type=float, default=255.0, metavar="S", help="pixels are first divided by it (255)")
    fit.add_argument("--layout", default="nchw", choices=("nchw", "nhwc"), help="of the model's input (%(default)s)")
    _add_draw(fit, limit=5000)
    fit.set_defaults(run=_fit)


def _defaults(name: str) -> str:
    """Say what a setting is under each rule where it is not given."""
    return ", ".join(f"{rule}: {getattr(found, name)}" for rule, found in RULES.items())


def _add_draw(parser: argparse.ArgumentParser, *, limit: int | None) -> None:
    parser.add_argument(
        "--limit", type=int, default=limit, metavar="N", help=f"draw at most N samples ({limit or 'all'})"
    )
    parser.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="of everything drawn at random (%(default)s)"
    )


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 up")
    return int(text)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0.485,0.456,0.406") from None


if __name__ == "__main__":
    sys.exit(main())
