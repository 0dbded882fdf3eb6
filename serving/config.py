"""What an operator may decide about a server."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

__all__ = [
    "AuditSettings",
    "Fail",
    "Limits",
    "ModelControl",
    "OnFlag",
    "Security",
    "ServerConfig",
    "UpstreamSettings",
]


class ModelControl(StrEnum):
    """Whether clients may load and unload models."""

    NONE = "none"
    EXPLICIT = "explicit"


class OnFlag(StrEnum):
    """What a client gets when the guard speaks up."""

    CORRECT = "correct"
    FLAG = "flag"
    REJECT = "reject"
    SHADOW = "shadow"


class Fail(StrEnum):
    """What a client gets when the guard itself fails in front of another server."""

    CLOSED = "closed"
    OPEN = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one server takes on.

    Args:
        max_message_bytes: Of one request; more is RESOURCE_EXHAUSTED.
        max_rows: Of one request; more is INVALID_ARGUMENT.
        max_batch_rows: Of one model run, which answers several requests together; a longer request runs by itself.
        max_queue_rows: Waiting for a run; more are UNAVAILABLE. Where none waits, any request may.
        max_queue_delay_s: How long the oldest request waits for a batch to fill.
        max_in_flight: Requests at once in front of an upstream, those that wait for it too; more are UNAVAILABLE.
        grace_s: How long requests may take to finish once the server is told to stop.
    """

    max_message_bytes: int = 64 * 2**20
    max_rows: int = 1024
    max_batch_rows: int = 64
    max_queue_rows: int = 1024
    max_queue_delay_s: float = 0.0
    max_in_flight: int = 64
    grace_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """Another v2 server that keeps serving the original.

    Args:
        address: HOST:PORT of its gRPC port.
        model: What it calls the model; None: as clients do.
        fail: What clients get when the guard fails.
    """

    address: str
    model: str | None = None
    fail: Fail = Fail.CLOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """Who may speak to the server, and how; the files may change while it runs.

    Args:
        tls_cert: The server's certificate chain, PEM; None: everything travels in clear text.
        tls_key: Its private key, PEM without a password.
        tls_client_ca: Who signs the certificates that clients must show, PEM; None: they need none.
        token_file: Bearer tokens, one per line; None: clients need none.
    """

    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    token_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings:
    """Where flagged rows are written down.

    Args:
        path: The file that is written to; full ones get the endings .1 (the youngest), .2 and so on.
        max_bytes: Of one file.
        n_files: How many are kept, the one that is written to among them.
        inputs: Whether the rows themselves are written too.
    """

    path: Path
    max_bytes: int = 64 * 2**20
    n_files: int = 5
    inputs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How a server presents a guarded model. docs/configuration.md states every entry.

    Args:
        model_name: What clients call the model; None: the name in the bundle's manifest.
        host: The address to listen on.
        port: For gRPC; 0: any free one.
        metrics_port: For Prometheus; 0: any free one.
        rest_port: For REST; 0: any free one, None: there is none.
        on_flag: What a client gets when the guard speaks up.
        expose_scores: Whether responses carry p-values.
        n_workers: Batches that one model runs at once.
        model_control: Whether clients may load and unload models.
        limits: What the server takes on.
        upstream: Who runs the original; None: this server does.
        security: Who may speak to it.
        audit: Where flagged rows are written down; None: nowhere.
    """

    model_name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8001
    metrics_port: int = 8002
    rest_port: int | None = None
    on_flag: OnFlag = OnFlag.CORRECT
    expose_scores: bool = False
    n_workers: int = 1
    model_control: ModelControl = ModelControl.NONE
    limits: Limits = field(default_factory=Limits)
    upstream: UpstreamSettings | None = None
    security: Security = field(default_factory=Security)
    audit: AuditSettings | None = None
