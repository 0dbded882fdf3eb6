"""What can go wrong with a request or a server, as branches of the tree in guard.errors.

GuardError
├── InputError
│   └── MalformedError     bytes that are no message of the protocol
├── DeadlineError          the caller's deadline passed before the request's turn came
├── FlaggedError           the guard rejects flagged rows
├── NotFoundError          no such model or version
├── OverloadedError        too many requests in flight
├── StartError             the server cannot start: a port is taken, a name is impossible
└── UnsupportedError       part of the protocol that is not offered
"""

from guard.errors import GuardError, InputError

__all__ = [
    "DeadlineError",
    "FlaggedError",
    "MalformedError",
    "NotFoundError",
    "OverloadedError",
    "StartError",
    "UnsupportedError",
]


class DeadlineError(GuardError):
    """The caller's deadline passed before the request's turn came."""


class FlaggedError(GuardError):
    """The guard rejects flagged rows."""


class MalformedError(InputError):
    """Bytes that are no message of the protocol."""


class NotFoundError(GuardError):
    """No such model or version."""


class OverloadedError(GuardError):
    """Too many requests are in flight."""


class StartError(GuardError):
    """The server cannot start."""


class UnsupportedError(GuardError):
    """A part of the protocol that is not offered."""
