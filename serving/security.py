"""Who may speak to the server, and that nobody listens in: what every port asks of those who connect."""

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

import grpc

from serving.config import Security
from serving.tls import grpc_credentials, open_tls, server_context
from serving.tokens import Header, TokenInterceptor, Tokens

__all__ = ["Access", "open_access", "warn_of_clear_text"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What every port of a server asks of those who connect.

    Args:
        credentials: For gRPC; None: clear text.
        context: The same for sockets of Python.
        authorised: Judges the value of an ``authorization`` header; None: everybody may enter.
        on_refused: Told of each request that has none.
        interceptors: What asks gRPC's callers for it.
    """

    credentials: grpc.ServerCredentials | None = None
    context: ssl.SSLContext | None = None
    authorised: Callable[[Header], bool] | None = None
    on_refused: Callable[[], None] = lambda: None
    interceptors: tuple[grpc.aio.ServerInterceptor, ...] = ()


def open_access(security: Security, *, on_refused: Callable[[], None]) -> Access:
    """Return what to ask of those who connect, from files that may change later.

    Args:
        security: Names the files.
        on_refused: Told of each request without a token.

    Raises:
        StartError: See open_tls and Tokens.
    """
    tls = open_tls(security)
    tokens = None if security.token_file is None else Tokens(security.token_file)
    return Access(
        credentials=None if tls is None else grpc_credentials(tls),
        context=None if tls is None else server_context(tls),
        authorised=None if tokens is None else tokens.authorised,
        on_refused=on_refused,
        interceptors=() if tokens is None else (TokenInterceptor(tokens.authorised, on_refused=on_refused),),
    )


def warn_of_clear_text(host: str, security: Security) -> None:
    """Say once where requests, answers and tokens travel readable to others."""
    if security.tls_cert is not None or _is_loopback(host):
        return
    what = "requests, answers and tokens" if security.token_file else "requests and answers"
    _logger.warning(
        "%s travel in clear text on %s; give --tls-cert and --tls-key, or keep that network to yourself", what, host
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
