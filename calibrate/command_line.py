"""The command line of guard-calibrate: its commands and their flags."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from calibrate.bounds import AUTO, METHODS
from calibrate.differentiable import DEVICES
from calibrate.inspect_pipeline import DEPTHS
from calibrate.thresholds import RULES
from guard.errors import InputError
from guard.scores import ONE_PASS, SCORES

__all__ = ["PASSES", "parse"]

PASSES = {"one": ONE_PASS, "both": "relative_divergence"}
"""The score that is cut, by how many passes clean inputs take."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read a command line: the command's name as ``command``, and its options.

    Raises:
        InputError: It is no command line of guard-calibrate.
    """
    parser = _Parser(prog="guard-calibrate", description="Learn, measure and show a guard for an ONNX classifier.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_inspect(commands.add_parser("inspect", help="look for a backdoor in a model, before anything is fitted"))
    _add_fit(commands.add_parser("fit", help="fit a guard and save it as a bundle"))
    _add_evaluate(commands.add_parser("evaluate", help="measure a bundle on clean and triggered data"))
    report = commands.add_parser("report", help="draw a bundle's report again, from the bundle alone")
    report.add_argument("bundle", metavar="DIR", help="the bundle")
    report.add_argument("--out", required=True, metavar="FILE.html", help="the page to write")
    explain = commands.add_parser("explain", help="show what is unusual about one input, and where")
    explain.add_argument("bundle", metavar="DIR", help="the bundle")
    explain.add_argument("--input", required=True, metavar="FILE", help="an image, or an .npz or .npy of inputs")
    explain.add_argument("--row", type=_seed, default=0, metavar="N", help="of an array, from 0 (%(default)s)")
    explain.add_argument("--out", required=True, metavar="FILE.html", help="the page to write")
    show = commands.add_parser("show", help="verify a bundle and say what it holds")
    show.add_argument("bundle", metavar="DIR", help="the bundle")
    return parser.parse_args(arguments)


def _add_inspect(inspect: argparse.ArgumentParser) -> None:
    inspect.add_argument("model", metavar="MODEL.onnx", help="the classifier to look at")
    _add_clean_data(inspect)
    inspect.add_argument("--depth", default="standard", choices=list(DEPTHS), help="how deep to look (%(default)s)")
    inspect.add_argument("--json", metavar="FILE", help="also write what was found there")
    inspect.add_argument("--report", metavar="FILE.html", help="also write a page to look at there")
    inspect.add_argument("--triggers", metavar="FILE.npz", help="also write the recovered triggers there (full depth)")
    _add_preprocessing(inspect)
    _add_draw(inspect, limit=5000)
    _add_device(inspect)


def _add_fit(fit: argparse.ArgumentParser) -> None:
    fit.add_argument("model", metavar="MODEL.onnx", help="the classifier to guard")
    _add_clean_data(fit)
    fit.add_argument("--bundle", required=True, metavar="DIR", help="the folder to write")
    fit.add_argument("--method", default=AUTO, choices=list(METHODS), help="how bounds are learned (%(default)s)")
    fit.add_argument("--rule", default="rank", choices=list(RULES), help="how thresholds are fitted (%(default)s)")
    cut = fit.add_mutually_exclusive_group()
    cut.add_argument("--score", choices=[*SCORES, ONE_PASS],
                     help=f"what is cut (auto: {ONE_PASS}; {_defaults('score')})")  # fmt: skip
    cut.add_argument("--passes", choices=list(PASSES),
                     help="both: run both models on every input; one: the bounded one on demand")  # fmt: skip
    fit.add_argument(
        "--target-fpr", type=float, metavar="RATE", help=f"clean inputs flagged ({_defaults('target_fpr')})"
    )
    fit.add_argument("--correct-fpr", type=float, metavar="RATE",
                     help=f"clean inputs answered by the bounded model ({_defaults('correct_fpr')})")  # fmt: skip
    fit.add_argument("--max-accuracy-drop", type=float, default=0.03, metavar="SHARE",
                     help="clean accuracy that bounding may cost (%(default)s)")  # fmt: skip
    fit.add_argument("--estimate-tpr", action="store_true",
                     help="recover triggers from the model and say how many of them are flagged")  # fmt: skip
    fit.add_argument("--target-class", type=int, metavar="N",
                     help="the class to recover triggers for (the one that the weights or BAN suspect)")  # fmt: skip
    fit.add_argument("--triggers", metavar="FILE.npz", help="also write the recovered triggers there")
    _add_preprocessing(fit)
    _add_draw(fit, limit=5000)
    _add_device(fit)


def _add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("bundle", metavar="DIR", help="the bundle")
    evaluate.add_argument("--clean", required=True, metavar="DATA", help="clean samples, none of them used in fitting")
    evaluate.add_argument("--triggered", metavar="DATA", help="samples that carry a trigger")
    evaluate.add_argument(
        "--target-class", type=int, metavar="N", help="what the attacker wants, where DATA does not say"
    )
    evaluate.add_argument("--json", metavar="FILE", help="also write the figures there")
    _add_draw(evaluate, limit=None)


def _defaults(name: str) -> str:
    """Say what a setting is under each rule where it is not given."""
    return ", ".join(f"{rule}: {getattr(found, name)}" for rule, found in RULES.items())


def _add_clean_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="CLEAN", help="clean samples: folder, .tar, .npz or .npy")


def _add_preprocessing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mean", type=_numbers, default=(0.0,), metavar="R,G,B", help="subtracted per channel (0)")
    parser.add_argument("--std", type=_numbers, default=(1.0,), metavar="R,G,B", help="divided by per channel (1)")
    parser.add_argument("--scale", type=float, default=255.0, metavar="S", help="pixels are first divided by it (255)")
    parser.add_argument("--layout", default="nchw", choices=("nchw", "nhwc"), help="of the model's input (%(default)s)")


def _add_draw(parser: argparse.ArgumentParser, *, limit: int | None) -> None:
    parser.add_argument(
        "--limit", type=int, default=limit, metavar="N", help=f"draw at most N samples ({limit or 'all'})"
    )
    parser.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="of everything drawn at random (%(default)s)"
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where the models run (%(default)s)")


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 up, and below 2**63")
    return int(text)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0.485,0.456,0.406") from None


class _Parser(argparse.ArgumentParser):
    """A parser that tells a wrong command line as any other error is told: in one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise InputError(f"{message}; see {self.prog} --help")
