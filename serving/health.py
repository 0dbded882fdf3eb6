"""grpc.health.v1 for one server: everything serves until it drains, and watchers hear of it.

Not grpcio's own servicer: there one watcher that leaves makes the others deaf, and watchers keep a draining server
alive until its grace runs out. Here a drain ends every watch.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable

import grpc
from grpc_health.v1 import health_pb2

__all__ = ["HEALTH_SERVICE", "Health"]

HEALTH_SERVICE = "grpc.health.v1.Health"


class Health:
    """The health of a server and of what it serves.

    Args:
        services: Names that may be asked for; the empty name is the server as a whole.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(services) | {""}
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Say NOT_SERVING from now on."""
        self._draining.set()

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler that serves the health service."""
        parse, serialise = health_pb2.HealthCheckRequest.FromString, health_pb2.HealthCheckResponse.SerializeToString
        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(self.check, parse, serialise),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch, parse, serialise),
        }
        return grpc.method_handlers_generic_handler(HEALTH_SERVICE, handlers)

    async def check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Answer once; an unknown name is NOT_FOUND, as the health protocol has it."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service; the empty name is the whole server")
        return self._status(request.service)

    async def watch(
        self, request: health_pb2.HealthCheckRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Answer now and at the one change there is, which ends the watch."""
        if not self._draining.is_set():
            yield self._status(request.service)
            await self._draining.wait()
        yield self._status(request.service)

    def _status(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in self._services:
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        if self._draining.is_set():
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
