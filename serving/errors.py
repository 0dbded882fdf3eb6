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
└── UnsupportedError       part of the protocol that is not offered
"""

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
    "UnsupportedError",
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


class UnsupportedError(GuardError):
    """A part of the protocol that is not offered."""
