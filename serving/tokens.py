"""Bearer tokens: who has one may enter."""

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from serving.errors import StartError
from serving.from_files import FromFiles, read_file
from serving.health import HEALTH_SERVICE
from serving.servicer import SERVICE

__all__ = ["Header", "TokenInterceptor", "Tokens"]

_OPEN = (f"/{HEALTH_SERVICE}/", f"/{SERVICE}/ServerLive", f"/{SERVICE}/ServerReady")
"""What needs no token: probes have none, and learn nothing but that the server runs."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""RFC 6750, section 2.1."""

_LEAST_CHARACTERS = 16

Header = str | bytes | None


class Tokens:
    """The bearer tokens that let a client in: any line of a file that may change while the server runs.

    Only their digests are kept.

    Args:
        path: One token per line; empty lines and lines that begin with # do not count.

    Raises:
        StartError: The file cannot be read, holds no token, or one that is short or cannot be sent.
    """

    def __init__(self, path: Path) -> None:
        self._digests = FromFiles([path], partial(_read_tokens, path))

    def authorised(self, header: Header) -> bool:
        """Return whether the value of an ``authorization`` header holds a token, in time independent of which."""
        given = hashlib.sha256(_bearer(header)).digest()
        # The list makes every comparison happen, whichever is right.
        return any([hmac.compare_digest(given, digest) for digest in self._digests.current()])  # noqa: C419


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Ends calls without a token as UNAUTHENTICATED before their message is read; probes pass.

    Args:
        authorised: Judges the value of the ``authorization`` metadata.
        on_refused: Told of each call that ends here.
    """

    def __init__(self, authorised: Callable[[Header], bool], *, on_refused: Callable[[], None]) -> None:
        self._authorised = authorised
        self._on_refused = on_refused
        self._refusing = grpc.stream_stream_rpc_method_handler(_refuse)

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """Return what handles a call."""
        if details.method.startswith(_OPEN) or self._authorised(_header(details)):
            return await continuation(details)
        self._on_refused()
        return self._refusing


async def _refuse(_: object, context: grpc.aio.ServicerContext) -> None:
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED, "no valid token; send the metadata authorization: Bearer TOKEN"
    )


def _header(details: grpc.HandlerCallDetails) -> Header:
    values = [value for key, value in details.invocation_metadata or () if key == "authorization"]
    return values[0] if len(values) == 1 else None


def _bearer(header: Header) -> bytes:
    content = header.encode("utf-8", "surrogateescape") if isinstance(header, str) else header or b""
    scheme, _, token = content.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def _read_tokens(path: Path) -> tuple[bytes, ...]:
    lines = [line.strip() for line in read_file("--token-file", path).decode("utf-8", "replace").splitlines()]
    tokens = {number: line for number, line in enumerate(lines, start=1) if line and not line.startswith("#")}
    if not tokens:
        raise StartError(f"--token-file {path} holds no token; write one per line, such as openssl rand -hex 32 makes")
    for number, token in tokens.items():
        if len(token) < _LEAST_CHARACTERS or not _TOKEN.fullmatch(token):
            raise StartError(
                f"line {number} of --token-file {path} is no token: {_LEAST_CHARACTERS} or more of letters, digits and"
                " ._~+/-, such as openssl rand -hex 32 makes"
            )
    return tuple(hashlib.sha256(token.encode()).digest() for token in tokens.values())
