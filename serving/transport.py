"""The protocol's calls as gRPC handlers: bytes in, bytes out, and every error as one status."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from guard.errors import GuardError
from serving.errors import MalformedError
from serving.servicer import Rpc
from serving.status import Refusal, refusal

__all__ = ["generic_handler", "parse", "refuse", "tell"]

_logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

Behaviour = Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]


def generic_handler(
    service: str, rpcs: Mapping[str, Rpc], *, clock: Callable[[], float] = time.monotonic
) -> grpc.GenericRpcHandler:
    """Return the handler that serves these calls.

    Messages are parsed here and not by gRPC, which would answer bytes that are no message with an internal error.

    Args:
        service: The service's full name.
        rpcs: Its calls by name.
        clock: Seconds; the clock that the calls take their deadlines on.
    """
    handlers = {name: grpc.unary_unary_rpc_method_handler(_behaviour(rpc, clock)) for name, rpc in rpcs.items()}
    return grpc.method_handlers_generic_handler(service, handlers)


def _behaviour(rpc: Rpc, clock: Callable[[], float]) -> Behaviour:
    async def behave(content: bytes, context: grpc.aio.ServicerContext) -> bytes:
        remaining = context.time_remaining()
        deadline = None if remaining is None else clock() + remaining
        try:
            response = await rpc.answer(parse(rpc.request, content), deadline)
            return response.SerializeToString()
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a status and never a stack trace
            refused = refuse(error)
        await tell(context, refused.code, refused.text)
        return b""

    return behave


async def tell(
    context: grpc.aio.ServicerContext,
    code: grpc.StatusCode,
    text: str,
    trailing: Sequence[tuple[str, str | bytes]] = (),
) -> None:
    """End a call with a status; a caller who is gone, with the call, is told nothing.

    Raises:
        grpc.aio.AbortError: It ended, as gRPC has it.
        asyncio.CancelledError: Nobody is there any more.
    """
    try:
        await context.abort(code, text, tuple(trailing))
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        # A deadline that passes ends a call in the core, which then takes no status; gRPC has no public name for that.
        raise asyncio.CancelledError from error


def parse(request: type[M], content: bytes) -> M:
    """Return the message that bytes hold.

    Raises:
        MalformedError: They hold none.
    """
    try:
        return request.FromString(content)
    except DecodeError as error:
        name = request.DESCRIPTOR.full_name
        raise MalformedError(f"the request is no {name}: its {len(content)} bytes cannot be parsed") from error


def refuse(error: Exception) -> Refusal:
    """Return what to tell the client of an error, and log what it is not told."""
    incident = secrets.token_hex(6)
    refused = refusal(error, incident=incident)
    if refused.code == grpc.StatusCode.INTERNAL:
        known = isinstance(error, GuardError)
        _logger.error("incident %s: %s", incident, error, exc_info=None if known else error)
    return refused
