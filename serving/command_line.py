"""The flags of guard-serve, and what they mean for the server."""

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from guard.model import CPU, CUDA
from serving.config import Fail, Limits, ModelControl, OnFlag, ServerConfig, UpstreamSettings
from serving.operations import add_operations_flags, audit_settings, security

__all__ = ["PROGRAM", "PROVIDERS", "USER_ERROR", "config_of", "parse"]

PROGRAM = "guard-serve"
PROVIDERS = {"cpu": CPU, "cuda": CUDA}
"""onnxruntime's names by those of --device."""
USER_ERROR = 2
"""The exit status after a mistake of the operator."""

_MAX_PORT = 65535
_INT32_MAX = 2**31 - 1


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: error: {message}\n")


def config_of(options: argparse.Namespace) -> ServerConfig:
    """Return how to present what is served.

    Raises:
        StartError: Flags do not go together.
    """
    return ServerConfig(
        model_name=options.model_name,
        host=options.host,
        port=options.port,
        metrics_port=options.metrics_port,
        rest_port=options.rest_port,
        on_flag=OnFlag(options.on_flag),
        expose_scores=options.expose_scores,
        n_workers=options.workers,
        model_control=ModelControl(options.model_control),
        security=security(options),
        audit=audit_settings(options),
        limits=Limits(
            max_message_bytes=options.max_message_bytes,
            max_rows=options.max_rows,
            max_batch_rows=options.max_batch_rows,
            max_queue_rows=options.max_queue_rows,
            max_queue_delay_s=options.max_queue_delay_ms / 1000,
            max_in_flight=options.max_in_flight,
            grace_s=options.grace_s,
        ),
        upstream=_upstream(options),
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what was asked for, or end the program with one line that says what is wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.bundle is None) == (options.repository is None):
        parser.error("give either a bundle, DIR, or --repository DIR")
    if options.repository and options.model_name:
        parser.error("--model-name names a single bundle; in a repository the folders name the models")
    if options.repository and options.upstream:
        parser.error("in front of an --upstream one model is guarded; give its bundle, DIR, and not --repository")
    for flag, given in (("--upstream-model", options.upstream_model), ("--fail", options.fail)):
        if given is not None and options.upstream is None:
            parser.error(f"{flag} is about another server; give --upstream HOST:PORT too")
    return options


def _upstream(options: argparse.Namespace) -> UpstreamSettings | None:
    if options.upstream is None:
        return None
    fail = Fail(options.fail or Fail.CLOSED)
    return UpstreamSettings(address=options.upstream, model=options.upstream_model, fail=fail)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Serve a guarded model over the Open Inference Protocol (KServe v2, gRPC).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    server, limits = ServerConfig(), Limits()
    parser.add_argument("bundle", metavar="DIR", type=Path, nargs="?", help="a bundle that guard-calibrate fit wrote")
    _add_repository_flags(parser)
    parser.add_argument("--host", default=server.host, help="address to listen on")
    parser.add_argument("--port", type=_port, default=server.port, metavar="N", help="gRPC port; 0: any free one")
    parser.add_argument(
        "--metrics-port", type=_port, default=server.metrics_port, metavar="N", help="Prometheus port; 0: any free one"
    )
    parser.add_argument(
        "--model-name", type=_name, metavar="NAME", help="what clients call the model; None: its name in the bundle"
    )
    parser.add_argument(
        "--on-flag", choices=[mode.value for mode in OnFlag], default=server.on_flag.value, help="what clients get"
    )
    parser.add_argument("--expose-scores", action="store_true", help="answer with p-values too")
    parser.add_argument("--device", choices=sorted(PROVIDERS), default="cpu", help="where the models run")
    parser.add_argument("--workers", type=_from_one, default=1, metavar="N", help="batches that run at once")
    parser.add_argument("--threads", type=_from_one, metavar="N", help="threads of one model run; None: all cores")
    for flag, default, meaning in (
        ("--max-message-bytes", limits.max_message_bytes, "longest request"),
        ("--max-rows", limits.max_rows, "rows of one request"),
        ("--max-batch-rows", limits.max_batch_rows, "rows of one run, which answers several requests"),
        ("--max-queue-rows", limits.max_queue_rows, "rows that wait for a run"),
        ("--max-in-flight", limits.max_in_flight, "in front of an upstream: requests at once"),
    ):
        parser.add_argument(flag, type=_from_one, default=default, metavar="N", help=meaning)
    parser.add_argument(
        "--max-queue-delay-ms", type=_milliseconds, default=limits.max_queue_delay_s * 1000, metavar="MS",
        help="time the oldest request waits for a batch to fill",
    )  # fmt: skip
    parser.add_argument(
        "--grace-s", type=_seconds, default=limits.grace_s, metavar="S", help="time to finish once told to stop"
    )
    _add_upstream_flags(parser)
    add_operations_flags(parser, _whole)
    return parser


def _add_repository_flags(parser: argparse.ArgumentParser) -> None:
    server = ServerConfig()
    parser.add_argument(
        "--repository", type=Path, metavar="DIR", help="serve every bundle in DIR/MODEL/VERSION instead of one"
    )
    parser.add_argument(
        "--model-control",
        choices=[mode.value for mode in ModelControl],
        default=server.model_control.value,
        help="explicit: clients may load and unload models",
    )
    parser.add_argument("--rest-port", type=_port, metavar="N", help="port for REST; 0: any free one, None: no REST")


def _add_upstream_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--upstream", type=_address, metavar="HOST:PORT", help="a v2 server that keeps serving the original, over gRPC"
    )
    parser.add_argument(
        "--upstream-model", type=_name, metavar="NAME", help="what it calls the model; None: as clients do"
    )
    parser.add_argument(
        "--fail", choices=[fail.value for fail in Fail], help="what clients get when the guard fails; None: closed"
    )


def _whole(least: int, most: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {most}")
        return int(text)

    return convert


_port = _whole(0, _MAX_PORT)
_from_one = _whole(1, _INT32_MAX)


def _time(unit: str) -> Callable[[str], float]:
    def convert(text: str) -> float:
        with suppress(ValueError):
            if 0 <= float(text) < float("inf"):
                return float(text)
        raise argparse.ArgumentTypeError(f"{text!r} is no number of {unit} from 0")

    return convert


_seconds = _time("seconds")
_milliseconds = _time("milliseconds")


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host.strip() or "/" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT")
    _whole(1, _MAX_PORT)(port)
    return text


def _name(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("a model's name must not be empty")
    return text
