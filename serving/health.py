"""grpc.health.v1 for one server and its models: watchers hear of every change, and a drain ends every watch.

Not grpcio's own servicer: there one watcher that leaves makes the others deaf, and watchers keep a draining server
alive until its grace runs out.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping

import grpc
from grpc_health.v1 import health_pb2

__all__ = ["HEALTH_SERVICE", "Health"]

HEALTH_SERVICE = "grpc.health.v1.Health"


class Health:
    """The health of a server and of what it serves; used from one event loop."""

    def __init__(self) -> None:
        self._ready: Mapping[str, bool] = {"": False}
        self._draining = False
        self._changed = asyncio.Event()

    def set(self, ready: Mapping[str, bool]) -> None:
        """Say of every name that may be asked for whether it serves; the empty name is the server as a whole."""
        self._ready = dict(ready)
        self._wake()

    def drain(self) -> None:
        """Say NOT_SERVING from now on, and end every watch."""
        self._draining = True
        self._wake()

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
        if request.service not in self._ready:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service; the empty name is the whole server")
        return self.response(request.service)

    async def watch(
        self, request: health_pb2.HealthCheckRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Answer now and at every change, until a drain."""
        said = None
        while True:
            changed, draining = self._changed, self._draining
            response = self.response(request.service)
            if response != said:
                said = response
                yield response
            if draining:
                return
            await changed.wait()

    def response(self, service: str) -> health_pb2.HealthCheckResponse:
        """Return what a watcher of this name is told now."""
        if service not in self._ready:
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        if self._ready[service] and not self._draining:
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
