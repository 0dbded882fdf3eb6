"""Guarded models behind gRPC: starts everything, says where it listens, and drains when told to stop."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from prometheus_client import CollectorRegistry

from guard.runtime import Guard
from serving._pb import open_inference_pb2 as pb
from serving.audit import open_audit
from serving.behind import Behind, open_behind
from serving.config import ServerConfig
from serving.errors import StartError
from serving.events import Observers, Tracer, tell_all
from serving.health import HEALTH_SERVICE, Health
from serving.logs import RequestLog
from serving.metrics import UNKNOWN, Metrics
from serving.metrics_server import metrics_server
from serving.models import IndexEntry
from serving.security import Access, open_access, warn_of_clear_text
from serving.servicer import SERVICE
from serving.store import Store

if TYPE_CHECKING:
    from serving.rest import RestServer

__all__ = ["Running", "serve"]

_LAST_ANSWERS_S = 1.0
"""Seconds for the last answers to leave once nothing is in flight; streams without an end get no more either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that serves.

    Args:
        host: The address it listens on.
        port: For gRPC.
        metrics_port: For Prometheus.
        rest_port: For REST; None: there is none.
        index: Says what it serves.
        reload: Serves what lies in the store now (see Repository.refresh).
    """

    host: str
    port: int
    metrics_port: int
    rest_port: int | None
    index: Callable[[], Sequence[IndexEntry]]
    reload: Callable[[], Awaitable[None]]


@asynccontextmanager
async def serve(
    guard: Guard | None,
    config: ServerConfig,
    *,
    store: Store | None = None,
    registry: CollectorRegistry | None = None,
    clock: Callable[[], float] = time.monotonic,
    tracer: Tracer | None = None,
) -> AsyncIterator[Running]:
    """Serve guarded models for as long as the context lasts; leaving it drains.

    A drain refuses new requests as UNAVAILABLE and health as NOT_SERVING, and gives those in flight
    config.limits.grace_s to finish. Once there are none it ends within a second, whatever streams are open.

    Args:
        guard: One guarded model; None: those of the store.
        config: How to present them.
        store: Where bundles lie, to be opened at the start if there is no guard, and when told to reload.
        registry: For the metrics; by default one of the server's own.
        clock: Seconds, only ever growing.
        tracer: Makes spans of requests.

    Raises:
        StartError: A port cannot be had, the store not be read, or a file that the configuration names not be used.
        BundleError: The model's output has a name that the guard needs.
    """
    registry = registry or CollectorRegistry()
    metrics, health = Metrics(registry), Health()
    access = _access(config, metrics)
    async with AsyncExitStack() as stack:
        observers = await stack.enter_async_context(_observers(config, metrics, tracer, clock))
        behind = open_behind(
            guard, config, store=store, metrics=metrics, health=health, clock=clock, observers=observers
        )
        server, port = _bind(config, access, tracer)
        server.add_generic_rpc_handlers((behind.handler, health.handler()))
        _add_reflection(server)
        metrics_port = stack.enter_context(_metrics_server(config, registry, access))
        rest = await _start_rest(config, behind, access, tracer)
        await server.start()
        warn_of_clear_text(config.host, config.security)
        try:
            await behind.begin()
            yield Running(
                host=config.host,
                port=port,
                metrics_port=metrics_port,
                rest_port=None if rest is None else rest.port,
                index=behind.index,
                reload=behind.reload,
            )
        finally:
            health.drain()
            await _drain(server, rest, behind, grace_s=config.limits.grace_s)


def _access(config: ServerConfig, metrics: Metrics) -> Access:
    refused = partial(metrics.count_request, UNKNOWN, grpc.StatusCode.UNAUTHENTICATED)
    return open_access(config.security, on_refused=refused)


@asynccontextmanager
async def _observers(
    config: ServerConfig, metrics: Metrics, tracer: Tracer | None, clock: Callable[[], float]
) -> AsyncIterator[Observers]:
    on_request = tell_all([RequestLog(clock=clock), *([tracer] if tracer else [])])
    if config.audit is None:
        yield Observers(on_request=on_request)
        return
    audit = open_audit(config.audit, count=metrics.count_audit_record)
    try:
        yield Observers(on_request=on_request, on_flagged=audit)
    finally:
        await asyncio.to_thread(audit.close, _LAST_ANSWERS_S)


def _bind(config: ServerConfig, access: Access, tracer: Tracer | None) -> tuple[grpc.aio.Server, int]:
    options = [
        # Linux would let a second server share the port silently, and clients would reach either.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", config.limits.max_message_bytes),
        ("grpc.max_send_message_length", -1),
    ]
    interceptors = [*access.interceptors, *([tracer.interceptor()] if tracer else [])]
    try:
        _check_address(config.host, config.port)
        server = grpc.aio.server(options=options, interceptors=interceptors)
        address = _address(config.host, config.port)
        if access.credentials is None:
            return server, server.add_insecure_port(address)
        return server, server.add_secure_port(address, access.credentials)
    # Python encodes a host's name before it looks it up, and not every text can be one.
    except (OSError, RuntimeError, UnicodeError) as error:
        raise _port_error(config.host, config.port, "--port", error) from error


def _check_address(host: str, port: int) -> None:
    """Bind and let go: gRPC would say why it cannot in its own log only."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


@contextmanager
def _metrics_server(config: ServerConfig, registry: CollectorRegistry, access: Access) -> Iterator[int]:
    host, port = config.host, config.metrics_port
    with ExitStack() as stack:
        try:
            server = metrics_server(host, port, registry, context=access.context, authorised=access.authorised)
            port = stack.enter_context(server)
        except OSError as error:
            raise _port_error(host, port, "--metrics-port", error) from error
        yield port


def _add_reflection(server: grpc.aio.Server) -> None:
    """Let clients ask what is served; from a pool of its own, as the default one may hold others' descriptors."""
    pool = DescriptorPool()
    for file in (pb.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        pool.AddSerializedFile(file.serialized_pb)
    reflection.enable_server_reflection((SERVICE, HEALTH_SERVICE, reflection.SERVICE_NAME), server, pool=pool)


async def _start_rest(
    config: ServerConfig, behind: Behind, access: Access, tracer: Tracer | None
) -> "RestServer | None":
    if config.rest_port is None:
        return None
    try:
        from serving.rest import start_rest  # noqa: PLC0415 - an extra, which only this flag needs
    except ImportError as error:
        raise StartError(f"--rest-port needs {error.name}; pip install 'trigger-guard[rest]'") from error
    max_bytes, last_s = config.limits.max_message_bytes, _LAST_ANSWERS_S
    try:
        return await start_rest(
            behind.rpcs,
            host=config.host,
            port=config.rest_port,
            max_bytes=max_bytes,
            last_answers_s=last_s,
            access=access,
            take_over=tracer.take_over if tracer else None,
        )
    except OSError as error:
        raise _port_error(config.host, config.rest_port, "--rest-port", error) from error


async def _drain(server: grpc.aio.Server, rest: "RestServer | None", behind: Behind, *, grace_s: float) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + grace_s
    await behind.drain(grace_s)
    last = server.stop(max(0.0, min(_LAST_ANSWERS_S, end - loop.time())))
    await asyncio.gather(last, *([] if rest is None else [rest.stop()]))
    await behind.close()


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _port_error(host: str, port: int, flag: str, error: Exception) -> StartError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return StartError(f"cannot listen on {_address(host, port)}: {reason}; choose another {flag} or --host")
