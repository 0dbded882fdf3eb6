"""The same calls, answered by replicas of Ray Serve behind its gRPC proxy. deploy/ray/ has what to start it with.

Requests cross Ray's processes as bytes: messages live in a descriptor pool of their own and do not pickle, and bytes
that are no message are refused here in our words. Answers Ray serialises itself, where they are made.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from prometheus_client import CollectorRegistry, start_http_server
from ray import serve
from ray.serve.grpc_util import RayServegRPCContext

from guard.runtime import Guard
from serving._pb import open_inference_pb2 as pb
from serving.behind import open_behind
from serving.config import ServerConfig
from serving.errors import NotFoundError, StartError
from serving.events import Observers
from serving.health import HEALTH_SERVICE, Health
from serving.logs import RequestLog
from serving.metrics import Metrics
from serving.ray_settings import ReplicaSettings, settings
from serving.servicer import SERVICE, Rpc
from serving.status import Refusal
from serving.transport import parse, refuse

__all__ = ["Replica", "add_health_to_server", "add_inference_to_server", "build"]

DEPLOYMENT = "Guard"
"""What Ray calls the deployment, in its configuration and its metrics."""

_CHECK = "Check"
_METRICS_PORTS = 32


class _Replica:
    """One guarded model in a process that Ray starts; used from the event loop that Ray runs it on.

    Args:
        settings: What it serves.
    """

    def __init__(self, settings: ReplicaSettings) -> None:
        registry = CollectorRegistry()
        self._rpcs = _rpcs(Guard.load(settings.bundle, threads=settings.threads), settings.config, registry)
        self._max_message_bytes = settings.config.limits.max_message_bytes
        _export(registry, settings.config)

    async def answer(self, name: str, content: bytes, context: RayServegRPCContext) -> Message:
        """Answer a call by its name, every error as one status: Ray would send a stack trace with what is raised."""
        if len(content) > self._max_message_bytes:
            return _end(context, _oversize(len(content), self._max_message_bytes))
        rpc = self._rpcs[name]
        try:
            # Ray hides the deadline; a call whose deadline passes is cancelled, which gives up its place.
            return await rpc.answer(parse(rpc.request, content), None)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a status and never a stack trace
            return _end(context, refuse(error))


def _named(name: str) -> Callable[..., Awaitable[Message]]:
    async def call(self: _Replica, content: bytes, grpc_context: RayServegRPCContext) -> Message:
        return await self.answer(name, content, grpc_context)

    return call


_UNARY = tuple(
    method.name
    for method in pb.DESCRIPTOR.services_by_name[SERVICE.rpartition(".")[2]].methods
    if not (method.client_streaming or method.server_streaming)
)

Replica = type("Replica", (_Replica,), {name: _named(name) for name in (*_UNARY, _CHECK)})
"""A replica with one method per call, which is how Ray finds them."""


def build(arguments: dict[str, Any]) -> serve.Application:
    """Return the application that a configuration of Ray Serve describes.

    Args:
        arguments: As its ``args`` say (see settings).

    Raises:
        InputError: An argument is missing, unknown or impossible.
    """
    application: serve.Application = serve.deployment(name=DEPLOYMENT)(Replica).bind(settings(arguments))
    return application


def add_inference_to_server(_: object, server: grpc.aio.Server) -> None:
    """Tell Ray's proxy of the protocol's unary calls; it asks the replicas' methods of the same names."""
    _add(server, SERVICE, _UNARY)


def add_health_to_server(_: object, server: grpc.aio.Server) -> None:
    """Tell Ray's proxy of grpc.health.v1's Check, which Ray itself does not answer."""
    _add(server, HEALTH_SERVICE, (_CHECK,))


def _add(server: grpc.aio.Server, service: str, names: Sequence[str]) -> None:
    # Without deserialisers bytes stay bytes. The behaviour is never called: the proxy puts its own in its place.
    handlers = {name: grpc.unary_unary_rpc_method_handler(_unrouted) for name in names}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


def _unrouted(content: bytes, context: grpc.aio.ServicerContext) -> bytes:
    raise NotImplementedError


def _rpcs(guard: Guard, config: ServerConfig, registry: CollectorRegistry) -> Mapping[str, Rpc]:
    health = Health()

    async def check(request: health_pb2.HealthCheckRequest, _: float | None) -> health_pb2.HealthCheckResponse:
        response = health.response(request.service)
        if response.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            raise NotFoundError("no such service; the empty name is the whole server")
        return response

    behind = open_behind(
        guard,
        config,
        store=None,
        metrics=Metrics(registry),
        health=health,
        clock=time.monotonic,
        observers=Observers(on_request=RequestLog()),
    )
    return {**behind.rpcs, _CHECK: Rpc(health_pb2.HealthCheckRequest, check)}


def _export(registry: CollectorRegistry, config: ServerConfig) -> None:
    """Serve metrics at the first free port: replicas of one node share its address."""
    ports = range(config.metrics_port, config.metrics_port + _METRICS_PORTS) if config.metrics_port else (0,)
    for port in ports:
        with suppress(OSError):
            start_http_server(port, addr=config.host, registry=registry)
            return
    raise StartError(f"no port of {config.host} is free for metrics from {ports[0]} to {ports[-1]}; choose others")


def _end(context: RayServegRPCContext, refused: Refusal) -> Message:
    context.set_code(refused.code)
    context.set_details(refused.text)
    # Ray wants an answer all the same; clients get the status alone.
    return pb.ServerLiveResponse()


def _oversize(n_bytes: int, limit: int) -> Refusal:
    text = f"the request has {n_bytes} bytes and the limit is {limit}; send less at a time"
    return Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
