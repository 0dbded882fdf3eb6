"""OpenTelemetry spans: one per inference request, with a child for each part of its way.

Spans are made when a request has ended, from the times that were taken anyway, so that tracing holds up nothing. This
module needs the ``tracing`` extra; nothing else in serving imports it.
"""

from collections.abc import Awaitable, Callable, Mapping
from importlib import metadata
from typing import Any

import grpc
from opentelemetry import context as contexts
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serving.events import RequestEnded
from serving.servicer import SERVER_NAME, SERVICE

__all__ = ["Tracing", "open_tracing"]

_SEND_S = 3.0
"""Seconds that one sending may take: the end of the process waits for the last one."""
_PROPAGATOR = TraceContextTextMapPropagator()
_NS_PER_S = 1_000_000_000
_SERVERS_FAULT = frozenset({"INTERNAL", "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "DATA_LOSS"})
"""The statuses that OpenTelemetry counts as errors of a gRPC server."""


class Tracing:
    """Makes spans of requests.

    Args:
        provider: Where spans go; its sampler decides which requests get one.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer: Tracer = provider.get_tracer(SERVER_NAME, metadata.version(SERVER_NAME))

    def interceptor(self) -> grpc.aio.ServerInterceptor:
        """Return what takes the caller's ``traceparent`` over, so that its trace goes on here."""
        return _TakeOver(self.take_over)

    def take_over(self, headers: Mapping[str, str]) -> None:
        """Go on with the trace of a caller, if any, for as long as the task lasts or until called again."""
        contexts.attach(_PROPAGATOR.extract({key.lower(): value for key, value in headers.items()}))

    def __call__(self, ended: RequestEnded) -> None:
        """Make the spans of one request; called in the task that served it."""
        start = ended.ended - ended.seconds
        span = self._tracer.start_span(
            f"{SERVICE}/ModelInfer", kind=SpanKind.SERVER, attributes=_attributes(ended), start_time=_ns(start)
        )
        if ended.status in _SERVERS_FAULT:
            span.set_status(Status(StatusCode.ERROR, ended.error))
        self._add_stages(span, ended, start)
        span.end(_ns(ended.ended))

    def close(self) -> None:
        """Send what waits; takes three seconds where the collector is gone."""
        self._provider.shutdown()

    def _add_stages(self, parent: Span, ended: RequestEnded, start: float) -> None:
        context = set_span_in_context(parent)
        for stage, seconds in ended.stages.items():
            child = self._tracer.start_span(stage, context, start_time=_ns(start))
            start += seconds
            child.end(_ns(start))


class _TakeOver(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    def __init__(self, take_over: Callable[[Mapping[str, str]], None]) -> None:
        self._take_over = take_over

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        # gRPC runs each call in a task of its own, with which the context ends.
        self._take_over({key: value for key, value in details.invocation_metadata or () if isinstance(value, str)})
        return await continuation(details)


def open_tracing(endpoint: str) -> Tracing:
    """Return what sends spans to an OpenTelemetry collector over gRPC, in batches, from a thread of its own.

    Args:
        endpoint: Such as http://127.0.0.1:4317; https for TLS.
    """
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: SERVER_NAME}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=_SEND_S)))
    return Tracing(provider)


def _attributes(ended: RequestEnded) -> dict[str, str | int]:
    attributes = {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": "ModelInfer",
        "rpc.grpc.status_code": grpc.StatusCode[ended.status].value[0],
        "error.type": ended.error,
        "guard.request_id": ended.request_id,
        "guard.model": ended.model,
        "guard.version": ended.version,
        "guard.rows": ended.n_rows,
        "guard.flagged_rows": ended.n_flagged,
    }
    return {key: value for key, value in attributes.items() if value is not None}


def _ns(seconds: float) -> int:
    return round(seconds * _NS_PER_S)
