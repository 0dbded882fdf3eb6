"""The protocol in front of another server: what is guarded is inspected, everything else passes as bytes."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from serving._pb import open_inference_pb2 as pb
from serving.alongside import VERSION, Alongside
from serving.descriptions import Descriptions, check_name
from serving.descriptions import ask as ask_upstream
from serving.errors import UpstreamError
from serving.events import Account, Observers
from serving.metrics import Metrics
from serving.models import IndexEntry, State
from serving.servicer import SERVICE
from serving.status import status_code
from serving.transport import parse, refuse, tell
from serving.upstream import Answer, Caller, Reply, Upstream, answer_with, caller_of

__all__ = ["Front"]

_STREAM = "ModelStreamInfer"
_STATUS_WANTED = ("triton_grpc_error", "true")
"""Metadata by which a client of a stream asks for statuses in place of error messages (Triton)."""

_NAME = re.compile(r"[A-Za-z0-9_]+")


class Front:
    """Answers for one model that another server runs: a generic handler of gRPC's; used from one event loop.

    Inference for this model is guarded, streams message by message, and for other models refused: what the upstream
    serves under another name is not guarded. Readiness and descriptions of the model are the upstream's, with the
    guard's part. Everything else that the service has, known or not, is the upstream's own; but for what calls itself
    inference in some way that the guard does not know. ``answers`` holds what is not merely passed on, by name.

    Args:
        upstream: Runs the model.
        guarded: Guards it.
        metrics: Counts requests.
        dropped: Keys of metadata that are meant for this server alone.
        clock: Seconds, only ever growing.
        observers: Told of every inference request that ended.
        on_reachable: Told whether there is a connection to the upstream whenever that may have changed.
    """

    def __init__(
        self,
        upstream: Upstream,
        guarded: Alongside,
        *,
        metrics: Metrics,
        dropped: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
        observers: Observers = Observers(),  # noqa: B008 - a value
        on_reachable: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._upstream, self._metrics = upstream, metrics
        self._caller = partial(caller_of, clock=clock, dropped=dropped)
        self._clock, self._observers = clock, observers
        self.name = guarded.name
        self._descriptions = Descriptions(upstream, guarded)
        self.answers: Mapping[str, Answer] = {**self._descriptions.answers(), "ModelInfer": self.model_infer}
        self._retired: set[Alongside] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_reachable = on_reachable

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Return what serves a call; None: nothing does."""
        service, _, name = handler_call_details.method.removeprefix("/").partition("/")
        if service != SERVICE:
            return None
        if name in self.answers:
            return grpc.unary_unary_rpc_method_handler(partial(answer_with, self.answers[name], self._caller))
        if name == _STREAM:
            return grpc.stream_stream_rpc_method_handler(self._stream)
        if "infer" in name.lower() or not _NAME.fullmatch(name):
            return None
        return grpc.stream_stream_rpc_method_handler(partial(self._relay, handler_call_details.method))

    def index(self) -> Sequence[IndexEntry]:
        """Return the one model, whose versions are the upstream's."""
        return [IndexEntry(model=self.name, version="", state=State.READY, reason="")]

    async def begin(self) -> None:
        """Connect to the upstream, and again whenever the connection is lost; it need not be there yet."""
        self._start(self._watch())

    def put(self, guarded: Alongside) -> None:
        """Guard with another bundle from now on; requests that the one before has begun it finishes."""
        before, self._descriptions.guarded = self._guarded, guarded
        self._retired.add(before)
        self._start(self._retire(before))

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests for the model and wait until none is in flight, or the time is up."""
        await asyncio.gather(*(guarded.drain(timeout_s) for guarded in (self._guarded, *self._retired)))

    async def close(self) -> None:
        """End the guard's workers and the connection to the upstream."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(guarded.close() for guarded in (self._guarded, *self._retired)))
        await self._upstream.close()

    @property
    def _guarded(self) -> Alongside:
        return self._descriptions.guarded

    async def _watch(self) -> None:
        async for reachable in self._upstream.reachable():
            self._on_reachable(reachable)

    async def _retire(self, guarded: Alongside) -> None:
        await guarded.drain(None)
        await guarded.close()
        self._retired.discard(guarded)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def model_infer(self, content: bytes, caller: Caller) -> Reply:
        """Answer an inference request with the upstream's answer, guarded, and account for it."""
        name, status = "", grpc.StatusCode.OK
        started, account = self._clock(), Account()
        try:
            request = parse(pb.ModelInferRequest, content)
            name = request.model_name
            account.begin(request.id)
            check_name(name, self._guarded)
            account.found(name, VERSION)
            return await self._infer(request, caller, account)
        except BaseException as error:
            status = self._status(error, caller)
            account.failed(error)
            raise
        finally:
            self._metrics.count_request(name, status)
            self._observers.on_request(account.close(status.name, ended=time.time(), seconds=self._clock() - started))

    async def _infer(self, request: pb.ModelInferRequest, caller: Caller, account: Account) -> Reply:
        replies: list[Reply] = []

        async def ask(sent: pb.ModelInferRequest) -> pb.ModelInferResponse:
            reply, response = await ask_upstream(self._upstream, "ModelInfer", sent, pb.ModelInferResponse, caller)
            replies.append(reply)
            return response

        response = await self._guarded.answer(request, ask, deadline=caller.deadline, request_id=account.request_id)
        account.answered(None, n_rows=_n_rows(request), n_flagged=_n_flagged(response))
        return replace(replies[0], content=response.SerializeToString())

    async def _stream(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        """Answer each message as if it came by itself, one after another."""
        caller = self._caller(context)
        async for content in requests:
            try:
                reply = await self.model_infer(content, caller)
                response = pb.ModelInferResponse.FromString(reply.content)
                answer = pb.ModelStreamInferResponse(infer_response=response)
            except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a status and never a stack trace
                refused = refuse(error)
                if _STATUS_WANTED in caller.metadata:
                    await tell(context, refused.code, refused.text)
                answer = pb.ModelStreamInferResponse(error_message=refused.text)
                answer.infer_response.id = _id_of(content)
            yield answer.SerializeToString()

    async def _relay(
        self, method: str, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        try:
            async for answer in self._upstream.relay(method, requests, context, self._caller(context)):
                yield answer
        except UpstreamError as error:
            await tell(context, error.code, str(error), error.trailing)

    def _status(self, error: BaseException, caller: Caller) -> grpc.StatusCode:
        # gRPC cancels a call whose deadline passes: to its caller that is no cancellation.
        late = caller.deadline is not None and self._clock() >= caller.deadline
        if isinstance(error, asyncio.CancelledError) and late:
            return grpc.StatusCode.DEADLINE_EXCEEDED
        return status_code(error)


def _n_rows(request: pb.ModelInferRequest) -> int | None:
    return next((tensor.shape[0] for tensor in request.inputs if tensor.shape), None)


def _n_flagged(response: pb.ModelInferResponse) -> int | None:
    told = response.parameters
    return told["guard_n_flagged"].int64_param if "guard_n_flagged" in told else None


def _id_of(content: bytes) -> str:
    with suppress(DecodeError):
        return pb.ModelInferRequest.FromString(content).id
    return ""
