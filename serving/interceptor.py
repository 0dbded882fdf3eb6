"""The guard within somebody else's server: an interceptor for grpc.aio that guards what a v2 servicer answers."""

import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry

from guard.errors import GuardError
from guard.runtime import Guard
from serving._pb import open_inference_pb2 as pb
from serving.alongside import Alongside
from serving.config import Fail, Limits, OnFlag, ServerConfig
from serving.errors import UnguardedError, UnsupportedError
from serving.metrics import Metrics
from serving.servicer import SERVICE
from serving.status import status_code
from serving.transport import parse, refuse

__all__ = ["GuardInterceptor"]

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]]
Inner = Callable[[bytes], Awaitable[bytes]]


class GuardInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpcio brings no types
    """Guards ModelInfer of one model in a grpc.aio server, and leaves every other call and model alone.

    It works on bytes, whatever message classes the servicer has. The server goes on running the original; the guard
    runs what it judges with beside it, in a thread of its own. A stream (ModelStreamInfer) ends at the first message
    for the guarded model, which is no way round.

    Args:
        guard: Judges the rows.
        model_name: The model that is guarded, also where a request names none; None: all that the server has.
        on_flag: What clients get when the guard speaks up.
        fail: What clients get when the guard fails.
        expose_scores: Whether responses carry p-values.
        limits: max_in_flight and max_rows of guarded requests; the others are the server's own.
        registry: For the metrics of docs/metrics.md; by default one that nobody sees.
        clock: Seconds, only ever growing.

    Raises:
        BundleError: The model's output has a name that the guard needs.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        model_name: str | None = None,
        on_flag: OnFlag = OnFlag.CORRECT,
        fail: Fail = Fail.CLOSED,
        expose_scores: bool = False,
        limits: Limits | None = None,
        registry: CollectorRegistry | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        config = ServerConfig(
            model_name=model_name, on_flag=on_flag, expose_scores=expose_scores, limits=limits or Limits()
        )
        self._metrics = Metrics(registry or CollectorRegistry())
        self._guarded = Alongside(guard, config, fail=fail, metrics=self._metrics, clock=clock)
        self._model_name = model_name
        self._clock = clock

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        """Return the server's own handler, or a guarded one in its place."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if handler_call_details.method == f"/{SERVICE}/ModelInfer":
            return grpc.unary_unary_rpc_method_handler(self._unary(handler))
        if handler_call_details.method == f"/{SERVICE}/ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(self._stream(handler))
        return handler

    async def close(self) -> None:
        """End the guard's worker; to be called when the server has stopped."""
        await self._guarded.close()

    def _unary(self, handler: grpc.RpcMethodHandler) -> Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]:
        async def behave(content: bytes, context: grpc.aio.ServicerContext) -> bytes:
            async def inner(content: bytes) -> bytes:
                return _written(handler, await handler.unary_unary(_read(handler, content), context))

            try:
                if not inspect.iscoroutinefunction(handler.unary_unary):
                    raise UnguardedError("the server's ModelInfer is not asynchronous, which the interceptor needs")
                return await self._answer(content, inner, context)
            except GuardError as error:
                refused = refuse(error)
            await context.abort(refused.code, refused.text)
            return b""

        return behave

    async def _answer(self, content: bytes, inner: Inner, context: grpc.aio.ServicerContext) -> bytes:
        request = parse(pb.ModelInferRequest, content)
        if not self._is_guarded(request):
            return await inner(content)

        async def ask(sent: pb.ModelInferRequest) -> pb.ModelInferResponse:
            answer = await inner(content if sent is request else sent.SerializeToString())
            return pb.ModelInferResponse.FromString(answer)

        remaining = context.time_remaining()
        deadline = None if remaining is None else self._clock() + remaining
        status = grpc.StatusCode.OK
        try:
            return (await self._guarded.answer(request, ask, deadline=deadline)).SerializeToString()
        except BaseException as error:
            # What the server itself raised or aborted with is its own affair; gRPC will tell the client.
            known = isinstance(error, GuardError) or not isinstance(error, Exception)
            status = status_code(error) if known else grpc.StatusCode.UNKNOWN
            raise
        finally:
            self._metrics.count_request(self._guarded.name, status)

    def _stream(self, handler: grpc.RpcMethodHandler) -> Callable[..., AsyncIterator[bytes]]:
        async def behave(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
            met: list[str] = []

            async def others() -> AsyncIterator[Any]:
                async for content in requests:
                    if self._is_to_be_guarded(content):
                        met.append("guarded")
                        return
                    yield _read(handler, content)

            if inspect.isasyncgenfunction(handler.stream_stream):
                async for answer in handler.stream_stream(others(), context):
                    yield _written(handler, answer)
            else:
                met.append("unknown")
            if met:
                refused = refuse(UnsupportedError("the model is guarded, and not in a stream; send it to ModelInfer"))
                await context.abort(refused.code, refused.text)

        return behave

    def _is_to_be_guarded(self, content: bytes) -> bool:
        try:
            return self._is_guarded(pb.ModelInferRequest.FromString(content))
        except DecodeError:
            return True

    def _is_guarded(self, request: pb.ModelInferRequest) -> bool:
        return self._model_name is None or request.model_name in ("", self._model_name)


def _read(handler: grpc.RpcMethodHandler, content: bytes) -> object:
    return handler.request_deserializer(content) if handler.request_deserializer else content


def _written(handler: grpc.RpcMethodHandler, answer: Any) -> bytes:
    return bytes(handler.response_serializer(answer) if handler.response_serializer else answer)
