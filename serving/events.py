"""What observers of a server are told: of requests that ended, and of rows that were flagged."""

import hashlib
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from numpy.typing import NDArray

from guard.manifest import Manifest, write_manifest
from guard.types import Verdict
from serving.metrics import UNKNOWN
from serving.statistics import Timing

__all__ = [
    "Account",
    "Observers",
    "OnFlagged",
    "OnRequest",
    "RequestEnded",
    "RowsFlagged",
    "Tracer",
    "request_id",
    "tell_all",
    "telling",
]

_UNUSUAL = re.compile(r"[^A-Za-z0-9._:/@=+-]")
_MOST_CHARACTERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEnded:
    """One inference request and what became of it.

    Args:
        request_id: As request_id gives it.
        model: The model's name; ``unknown`` for one that is not served.
        version: Of the model; None for one that is not served.
        status: The name of its gRPC status.
        error: The name of the error's type; None where it was answered.
        n_rows: Rows of the request; None where it was not answered.
        n_flagged: Flagged rows; None where nobody is to know.
        ended: Seconds since the epoch.
        seconds: How long it took.
        stages: Seconds spent in each part of its way, in order, as far as it came.
    """

    request_id: str
    model: str
    version: str | None
    status: str
    error: str | None
    n_rows: int | None
    n_flagged: int | None
    ended: float
    seconds: float
    stages: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsFlagged:
    """A request with flagged rows.

    Args:
        request_id: As request_id gives it.
        model: The model's name.
        version: Of the model.
        bundle: SHA-256 of the manifest of the bundle that judged.
        inputs: Every input (N, ...) by name, in the model's order.
        verdict: Its N rows.
    """

    request_id: str
    model: str
    version: str
    bundle: str
    inputs: Mapping[str, NDArray[Any]]
    verdict: Verdict


OnRequest = Callable[[RequestEnded], None]
OnFlagged = Callable[[RowsFlagged], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observers:
    """Who is told of what.

    Args:
        on_request: Of every inference request that ended; called from the event loop.
        on_flagged: Of every request with flagged rows, in every mode; called by the thread that judged them.
    """

    on_request: OnRequest = lambda _: None
    on_flagged: OnFlagged = lambda _: None


class Account:
    """What is to be told of one request, gathered while it goes its way.

    Its ``request_id`` is the client's, as far as it may be written down, or a new one.

    Args:
        given: The client's name for the request; may be empty.
    """

    def __init__(self, given: str = "") -> None:
        self.request_id = request_id(given)
        self._model = UNKNOWN
        self._version: str | None = None
        self._error: str | None = None
        self._n_rows: int | None = None
        self._n_flagged: int | None = None
        self._timing: Timing | None = None

    def begin(self, given: str) -> None:
        """Say what the client calls the request, where that is known only now."""
        self.request_id = request_id(given)

    def found(self, model: str, version: str) -> None:
        """Say which model is to answer."""
        self._model, self._version = model, version

    def answered(self, timing: Timing | None, *, n_rows: int | None, n_flagged: int | None) -> None:
        """Say what was answered, and None of what nobody is to know, or knows."""
        self._timing, self._n_rows, self._n_flagged = timing, n_rows, n_flagged

    def failed(self, error: BaseException) -> None:
        """Say what it ended with."""
        self._error = type(error).__name__

    def close(self, status: str, *, ended: float, seconds: float) -> RequestEnded:
        """Return what observers are told."""
        return RequestEnded(
            request_id=self.request_id,
            model=self._model,
            version=self._version,
            status=status,
            error=self._error,
            n_rows=self._n_rows,
            n_flagged=self._n_flagged,
            ended=ended,
            seconds=seconds,
            stages={} if self._timing is None else _stages(self._timing),
        )


class Tracer(Protocol):
    """Makes spans of requests; serving.tracing has the one that there is."""

    def interceptor(self) -> grpc.aio.ServerInterceptor:
        """Return what takes over the traces of callers."""

    def take_over(self, headers: Mapping[str, str]) -> None:
        """Go on with the trace of a caller, if any, for as long as the task lasts or until called again."""

    def __call__(self, ended: RequestEnded) -> None:
        """Make the spans of one request."""

    def close(self) -> None:
        """Send what waits."""


def request_id(given: str) -> str:
    """Return a client's name for its request as it may be written into logs, or a new one where it gives none."""
    return _UNUSUAL.sub("_", given[:_MOST_CHARACTERS]) or secrets.token_hex(8)


def telling(
    on_flagged: OnFlagged, manifest: Manifest, *, model: str, version: str
) -> Callable[[str, Mapping[str, NDArray[Any]], slice, Verdict], None]:
    """Return what tells an observer of a request with flagged rows: of its id, and of inputs, its own rows, a verdict.

    Args:
        on_flagged: The observer.
        manifest: Of the bundle that judges.
        model: What metrics and logs call the model.
        version: Of the model.
    """
    bundle = hashlib.sha256(write_manifest(manifest)).hexdigest()

    def tell(request_id: str, inputs: Mapping[str, NDArray[Any]], rows: slice, verdict: Verdict) -> None:
        if verdict.flagged.any():
            in_order = {spec.name: inputs[spec.name][rows] for spec in manifest.inputs}
            on_flagged(
                RowsFlagged(
                    request_id=request_id,
                    model=model,
                    version=version,
                    bundle=bundle,
                    inputs=in_order,
                    verdict=verdict,
                )
            )

    return tell


def tell_all(observers: Sequence[OnRequest]) -> OnRequest:
    """Return an observer that tells each of several."""

    def tell(ended: RequestEnded) -> None:
        for observer in observers:
            observer(ended)

    return tell


def _stages(timing: Timing) -> Mapping[str, float]:
    return {
        "queue": timing.queue_s,
        "decode": timing.compute_input_s,
        "compute": timing.compute_infer_s,
        "encode": timing.compute_output_s,
    }
