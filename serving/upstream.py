"""A channel to another v2 server, and how bytes pass through it: metadata, deadlines, cancellation, statuses."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

import grpc

from serving.errors import UpstreamError
from serving.transport import refuse, tell

__all__ = ["Answer", "Caller", "Metadata", "Reply", "Upstream", "answer_with", "caller_of"]

Metadata = Sequence[tuple[str, str | bytes]]

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # An upstream that comes back is found within seconds; by default gRPC waits for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.min_reconnect_backoff_ms", 5000),
    # The address is what was asked for, whatever the environment says of proxies.
    ("grpc.enable_http_proxy", 0),
)

_OF_THIS_CONNECTION = ("content-type", "host", "te", "user-agent")
_DETAILS = "grpc-status-details-bin"
_SOON_S = 0.05
"""How long after a call's first message its end may come for the message to be taken as the only one."""

_UNREACHED = ("failed to connect to all addresses", "DNS resolution failed", "empty address list")
"""How gRPC's own words begin where it found no server; they name addresses, which are nobody's business."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """What a client sent beside its message.

    Args:
        metadata: To be passed on.
        deadline: On the server's clock; None: it waits for ever.
    """

    metadata: Metadata = ()
    deadline: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An upstream's answer.

    Args:
        content: The message.
        initial: Its initial metadata.
        trailing: Its trailing metadata.
    """

    content: bytes
    initial: Metadata = field(default=())
    trailing: Metadata = field(default=())


Answer = Callable[[bytes, Caller], Awaitable[Reply]]
"""Answers one message of a client."""


class Upstream:
    """Another server; used from one event loop. A connection that breaks is made anew by itself.

    Args:
        address: HOST:PORT.
        clock: Seconds, only ever growing; deadlines are on it.
    """

    def __init__(self, address: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._clock = clock

    async def ask(self, method: str, content: bytes, caller: Caller) -> Reply:
        """Return the answer to one message; who is cancelled meanwhile cancels the upstream's call.

        Args:
            method: Its full path.
            content: The message.
            caller: On whose behalf.

        Raises:
            UpstreamError: It was refused, or there is no upstream.
        """
        call = self._channel.unary_unary(method)(content, timeout=self._timeout(caller), metadata=caller.metadata)
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            raise _refused(error) from error
        initial, trailing = _onward(await call.initial_metadata()), _onward(await call.trailing_metadata())
        return Reply(content=answer, initial=initial, trailing=trailing)

    async def relay(
        self, method: str, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext, caller: Caller
    ) -> AsyncIterator[bytes]:
        """Yield what the upstream answers to messages: a call of any kind, as seen from the wire.

        Args:
            method: Its full path.
            requests: The client's messages.
            context: Gets the upstream's metadata.
            caller: On whose behalf.

        Raises:
            UpstreamError: It was refused, or there is no upstream.
        """
        first, others = await _one_or_more(requests)
        options = {"timeout": self._timeout(caller), "metadata": caller.metadata}
        if others is None:
            call = self._channel.unary_stream(method)(first, **options)
        else:
            call = self._channel.stream_stream(method)(others, **options)
        try:
            await _send(context, _onward(await call.initial_metadata()))
            async for answer in call:
                yield answer
            context.set_trailing_metadata(_onward(await call.trailing_metadata()))
        except grpc.aio.AioRpcError as error:
            raise _refused(error) from error
        finally:
            call.cancel()

    async def reachable(self) -> AsyncIterator[bool]:
        """Say whether there is a connection, now and whenever that may have changed, and keep on making one."""
        while True:
            state = self._channel.get_state(try_to_connect=True)
            yield state is grpc.ChannelConnectivity.READY
            await self._channel.wait_for_state_change(state)

    async def close(self) -> None:
        """Close the connection, and cancel what is still under way."""
        await self._channel.close()

    def _timeout(self, caller: Caller) -> float | None:
        return None if caller.deadline is None else max(0.0, caller.deadline - self._clock())


def caller_of(
    context: grpc.aio.ServicerContext, *, clock: Callable[[], float], dropped: Collection[str] = ()
) -> Caller:
    """Return who calls.

    Args:
        context: Of the call.
        clock: That deadlines are on.
        dropped: Keys of metadata that are meant for this server alone.
    """
    remaining = context.time_remaining()
    metadata = [(key, value) for key, value in _onward(context.invocation_metadata()) if key not in dropped]
    return Caller(metadata=metadata, deadline=None if remaining is None else clock() + remaining)


async def answer_with(
    answer: Answer,
    caller: Callable[[grpc.aio.ServicerContext], Caller],
    content: bytes,
    context: grpc.aio.ServicerContext,
) -> bytes:
    """Return the reply of one call, its metadata sent along, or end the call with the status of what it raises."""
    try:
        reply = await answer(content, caller(context))
    except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a status and never a stack trace
        refused, trailing = refuse(error), ()
        if isinstance(error, UpstreamError):
            await _send(context, error.initial)
            trailing = error.trailing
        await tell(context, refused.code, refused.text, trailing)
        return b""
    await _send(context, reply.initial)
    context.set_trailing_metadata(reply.trailing)
    return reply.content


async def _send(context: grpc.aio.ServicerContext, initial: Metadata) -> None:
    if initial:
        await context.send_initial_metadata(initial)


def _onward(metadata: Metadata | None) -> Metadata:
    """Return what is not of one connection alone."""
    return tuple(
        (key, value)
        for key, value in metadata or ()
        if key == _DETAILS or not (key in _OF_THIS_CONNECTION or key.startswith((":", "grpc-")))
    )


async def _one_or_more(requests: AsyncIterator[bytes]) -> tuple[bytes, AsyncIterator[bytes] | None]:
    """Return the first message, and all of them unless it is known to be the only one.

    Where an upstream refuses a stream at once, gRPC may not be able to write to it any more, and takes that for the
    error. A single message is not sent as a stream, so that this does not happen to calls with one, which are most.
    """
    first = await anext(requests, None)
    if first is None:
        return b"", requests
    second = asyncio.ensure_future(anext(requests, None))
    # Looked at here, because the caller may leave before anybody waits for it.
    second.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.wait({second}, timeout=_SOON_S)
    except asyncio.CancelledError:
        second.cancel()
        raise
    if second.done() and second.result() is None:
        return first, None
    return first, _chained(first, second, requests)


async def _chained(
    first: bytes, second: asyncio.Future[bytes | None], others: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    try:
        yield first
        if (message := await second) is not None:
            yield message
            async for another in others:
                yield another
    finally:
        second.cancel()


def _refused(error: grpc.aio.AioRpcError) -> UpstreamError:
    words = error.details() or ""
    if error.code() == grpc.StatusCode.UNAVAILABLE and words.startswith(_UNREACHED):
        words = "the upstream cannot be reached; try again later"
    trailing = _onward(error.trailing_metadata())
    return UpstreamError(error.code(), words, initial=_onward(error.initial_metadata()), trailing=trailing)
