"""Guarded models behind gRPC: starts everything, says where it listens, and drains when told to stop."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from prometheus_client import CollectorRegistry, start_http_server

from guard.runtime import Guard
from serving._pb import open_inference_pb2 as pb
from serving.behind import Behind, open_behind
from serving.config import ServerConfig
from serving.errors import StartError
from serving.health import HEALTH_SERVICE, Health
from serving.metrics import Metrics
from serving.models import IndexEntry
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

    Raises:
        StartError: A port cannot be had, or the store cannot be read.
        BundleError: The model's output has a name that the guard needs.
    """
    registry = registry or CollectorRegistry()
    metrics, health = Metrics(registry), Health()
    behind = open_behind(guard, config, store=store, metrics=metrics, health=health, clock=clock)
    server, port = _bind(config)
    server.add_generic_rpc_handlers((behind.handler, health.handler()))
    _add_reflection(server)
    with _metrics_server(config, registry) as metrics_port:
        rest = await _start_rest(config, behind)
        await server.start()
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


def _bind(config: ServerConfig) -> tuple[grpc.aio.Server, int]:
    options = [
        # Linux would let a second server share the port silently, and clients would reach either.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", config.limits.max_message_bytes),
        ("grpc.max_send_message_length", -1),
    ]
    try:
        _check_address(config.host, config.port)
        server = grpc.aio.server(options=options)
        return server, server.add_insecure_port(_address(config.host, config.port))
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
def _metrics_server(config: ServerConfig, registry: CollectorRegistry) -> Iterator[int]:
    try:
        server, thread = start_http_server(config.metrics_port, addr=config.host, registry=registry)
    except OSError as error:
        raise _port_error(config.host, config.metrics_port, "--metrics-port", error) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _add_reflection(server: grpc.aio.Server) -> None:
    """Let clients ask what is served; from a pool of its own, as the default one may hold others' descriptors."""
    pool = DescriptorPool()
    for file in (pb.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        pool.AddSerializedFile(file.serialized_pb)
    reflection.enable_server_reflection((SERVICE, HEALTH_SERVICE, reflection.SERVICE_NAME), server, pool=pool)


async def _start_rest(config: ServerConfig, behind: Behind) -> "RestServer | None":
    if config.rest_port is None:
        return None
    try:
        from serving.rest import start_rest  # noqa: PLC0415 - an extra, which only this flag needs
    except ImportError as error:
        raise StartError(f"--rest-port needs {error.name}; pip install 'trigger-guard[rest]'") from error
    max_bytes, last_s = config.limits.max_message_bytes, _LAST_ANSWERS_S
    try:
        return await start_rest(
            behind.rpcs, host=config.host, port=config.rest_port, max_bytes=max_bytes, last_answers_s=last_s
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
