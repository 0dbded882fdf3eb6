"""What can go wrong with a request or a server, as branches of the tree in guard.errors.

GuardError
├── InputError
│   └── MalformedError     bytes that are no message of the protocol
├── ControlError           clients may not load or unload models
├── DeadlineError          the caller's deadline passed before the request's turn came
├── FlaggedError           the guard rejects flagged rows
├── LoadError              a model cannot be served as its bundles lie on disk
├── NotFoundError          no such model or version
├── NotReadyError          a model or version that cannot be served now
├── OverloadedError        too many requests in flight
├── StartError             the server cannot start: a port is taken, a name is impossible
├── UnguardedError         the guard failed, so that another server's answer cannot be let through
├── UnsupportedError       part of the protocol that is not offered
└── UpstreamError          what another server refused, in its words
"""

from typing import Any

import grpc

from guard.errors import GuardError, InputError

__all__ = [
    "ControlError",
    "DeadlineError",
    "FlaggedError",
    "LoadError",
    "MalformedError",
    "NotFoundError",
    "NotReadyError",
    "OverloadedError",
    "StartError",
    "UnguardedError",
    "UnsupportedError",
    "UpstreamError",
]


class ControlError(GuardError):
    """Clients may not load or unload models."""


class DeadlineError(GuardError):
    """The caller's deadline passed before the request's turn came."""


class FlaggedError(GuardError):
    """The guard rejects flagged rows."""


class LoadError(GuardError):
    """A model cannot be served as its bundles lie on disk."""


class MalformedError(InputError):
    """Bytes that are no message of the protocol."""


class NotFoundError(GuardError):
    """No such model or version."""


class NotReadyError(GuardError):
    """A model or version that cannot be served now."""


class OverloadedError(GuardError):
    """Too many requests are in flight."""


class StartError(GuardError):
    """The server cannot start."""


class UnguardedError(GuardError):
    """The guard failed, so that another server's answer cannot be let through."""


class UnsupportedError(GuardError):
    """A part of the protocol that is not offered."""


class UpstreamError(GuardError):
    """What another server refused: its status, its words and what it sent along.

    Args:
        code: Its status.
        text: Its words.
        initial: Its initial metadata.
        trailing: Its trailing metadata, which may hold details of the status.
    """

    def __init__(self, code: grpc.StatusCode, text: str, *, initial: Any = (), trailing: Any = ()) -> None:
        super().__init__(text)
        self.code = code
        self.initial = initial
        self.trailing = trailing
