"""Which gRPC status, and which words, a client gets for an error."""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import grpc

from guard.errors import BundleError, CalibrationError, GuardError, InputError, ModelError
from serving.errors import (
    ControlError,
    DeadlineError,
    FlaggedError,
    LoadError,
    MalformedError,
    NotFoundError,
    NotReadyError,
    OverloadedError,
    StartError,
    UnguardedError,
    UnsupportedError,
    UpstreamError,
)

__all__ = ["STATUS", "Refusal", "refusal", "status_code"]

STATUS: Mapping[type[GuardError], grpc.StatusCode] = MappingProxyType(
    {
        GuardError: grpc.StatusCode.INTERNAL,
        BundleError: grpc.StatusCode.INTERNAL,
        CalibrationError: grpc.StatusCode.INTERNAL,
        ModelError: grpc.StatusCode.INTERNAL,
        StartError: grpc.StatusCode.INTERNAL,
        UnguardedError: grpc.StatusCode.INTERNAL,
        InputError: grpc.StatusCode.INVALID_ARGUMENT,
        MalformedError: grpc.StatusCode.INVALID_ARGUMENT,
        DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
        ControlError: grpc.StatusCode.FAILED_PRECONDITION,
        FlaggedError: grpc.StatusCode.FAILED_PRECONDITION,
        LoadError: grpc.StatusCode.FAILED_PRECONDITION,
        NotFoundError: grpc.StatusCode.NOT_FOUND,
        NotReadyError: grpc.StatusCode.UNAVAILABLE,
        OverloadedError: grpc.StatusCode.UNAVAILABLE,
        UnsupportedError: grpc.StatusCode.UNIMPLEMENTED,
        UpstreamError: grpc.StatusCode.UNAVAILABLE,
    }
)
"""The status of every error in the tree; an UpstreamError brings its own."""

_MAX_CHARACTERS = 500


class Refusal(NamedTuple):
    """A status, and the words that go with it."""

    code: grpc.StatusCode
    text: str


def status_code(error: BaseException) -> grpc.StatusCode:
    """Return the status of any exception that a request may end with."""
    if isinstance(error, asyncio.CancelledError):
        return grpc.StatusCode.CANCELLED
    if isinstance(error, UpstreamError):
        return error.code
    return next((STATUS[t] for t in type(error).__mro__ if t in STATUS), grpc.StatusCode.INTERNAL)


def refusal(error: Exception, *, incident: str) -> Refusal:
    """Return what to tell the client.

    Args:
        error: What the request ended with.
        incident: A word that the server's log carries too. What is internal stays there: the client gets only this.
    """
    code = status_code(error)
    if isinstance(error, UpstreamError):
        return Refusal(code, str(error))
    if code == grpc.StatusCode.INTERNAL:
        return Refusal(code, f"the request failed inside the server; its log says why under {incident}")
    text = str(error)
    return Refusal(code, text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}...")
