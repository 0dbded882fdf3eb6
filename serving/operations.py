"""The flags of guard-serve that say who may speak to it, and what it writes down."""

import argparse
from collections.abc import Callable
from pathlib import Path

from serving.config import AuditSettings, Security
from serving.errors import StartError
from serving.events import Tracer
from serving.logs import LogFormat, LogLevel

__all__ = ["add_operations_flags", "audit_settings", "security", "tracing_if_asked"]

_LEAST_AUDIT_BYTES = 4096
"""Of one file: room for a record without evidence."""


def add_operations_flags(parser: argparse.ArgumentParser, whole: Callable[[int, int], Callable[[str], int]]) -> None:
    """Add the flags.

    Args:
        parser: Of guard-serve.
        whole: Returns what converts text to a whole number between two others.
    """
    for flag, metavar, meaning in (
        ("--tls-cert", "FILE", "the server's certificate chain, PEM; None: clear text"),
        ("--tls-key", "FILE", "its private key, PEM without a password"),
        ("--tls-client-ca", "FILE", "who signs the certificates that clients must show, PEM"),
        ("--token-file", "FILE", "bearer tokens, one per line, of which clients must send one"),
        ("--audit", "FILE", "write a line of JSON there for each flagged row"),
    ):
        parser.add_argument(flag, type=Path, metavar=metavar, help=meaning)
    audit = AuditSettings(path=Path())
    most = 2**62
    parser.add_argument(
        "--audit-max-bytes", type=whole(_LEAST_AUDIT_BYTES, most), default=audit.max_bytes, metavar="N",
        help="size at which the audit file is put aside",
    )  # fmt: skip
    parser.add_argument(
        "--audit-files", type=whole(1, 1000), default=audit.n_files, metavar="N", help="audit files that are kept"
    )
    parser.add_argument("--audit-inputs", action="store_true", help="write the flagged rows themselves there too")
    parser.add_argument(
        "--log-format", choices=[form.value for form in LogFormat], default=LogFormat.TEXT.value, help="of log lines"
    )
    parser.add_argument(
        "--log-level", choices=[level.value for level in LogLevel], default=LogLevel.INFO.value,
        help="the least important log lines that are written",
    )  # fmt: skip
    parser.add_argument("--otlp-endpoint", metavar="URL", help="send OpenTelemetry spans to this collector, over gRPC")


def security(options: argparse.Namespace) -> Security:
    """Return who may speak to the server."""
    return Security(
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        tls_client_ca=options.tls_client_ca,
        token_file=options.token_file,
    )


def audit_settings(options: argparse.Namespace) -> AuditSettings | None:
    """Return where flagged rows are written down.

    Raises:
        StartError: Inputs are asked for and no file is named.
    """
    if options.audit is None:
        if options.audit_inputs:
            raise StartError("--audit-inputs needs a file to write to; give --audit too")
        return None
    return AuditSettings(
        path=options.audit,
        max_bytes=options.audit_max_bytes,
        n_files=options.audit_files,
        inputs=options.audit_inputs,
    )


def tracing_if_asked(options: argparse.Namespace) -> Tracer | None:
    """Return what sends spans.

    Raises:
        StartError: The package for it is missing, or the address is none.
    """
    endpoint: str | None = options.otlp_endpoint
    if endpoint is None:
        return None
    if not endpoint.startswith(("http://", "https://")):
        raise StartError(f"--otlp-endpoint {endpoint} is no address; write it as in http://127.0.0.1:4317")
    try:
        from serving.tracing import open_tracing  # noqa: PLC0415 - an extra, which only this flag needs
    except ImportError as error:
        raise StartError(f"--otlp-endpoint needs {error.name}; pip install 'trigger-guard[tracing]'") from error
    return open_tracing(endpoint)
