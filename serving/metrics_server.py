"""Prometheus' port: a thread per connection, TLS and tokens as for everything else.

Not prometheus_client's own server: its TLS handshakes hold up the one thread that accepts, so that a client that
connects and says nothing would end every scrape, and the drain.
"""

import logging
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

__all__ = ["metrics_server"]

_logger = logging.getLogger(__name__)

_PATIENCE_S = 30.0
"""How long a client may say nothing."""

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@contextmanager
def metrics_server(
    host: str,
    port: int,
    registry: CollectorRegistry,
    *,
    context: ssl.SSLContext | None = None,
    authorised: Callable[[str | None], bool] | None = None,
) -> Iterator[int]:
    """Serve a registry's metrics over HTTP until the block ends, and yield the port.

    Args:
        host: The address to listen on.
        port: 0: any free one.
        registry: The metrics.
        context: For TLS; None: clear text.
        authorised: Judges the ``Authorization`` header; None: everybody may read.

    Raises:
        OSError: The address cannot be had.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    application: Application = make_wsgi_app(registry)
    with _Server(family, address, context) as server:
        server.set_app(application if authorised is None else _guarded(application, authorised))
        thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, family: socket.AddressFamily, address: Any, context: ssl.SSLContext | None) -> None:
        self.address_family = family
        self._context = context
        super().__init__(address[:2], _Quiet)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        connection.settimeout(_PATIENCE_S)
        if self._context is None:
            return connection, address
        # The handshake comes with the first read, in the connection's own thread.
        return self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, _request: Any, _address: Any) -> None:
        _logger.debug("a connection to the metrics port failed", exc_info=True)  # noqa: LOG014 - one is being handled


class _Quiet(WSGIRequestHandler):
    timeout = _PATIENCE_S

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def _guarded(application: Application, authorised: Callable[[str | None], bool]) -> Application:
    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if authorised(environ.get("HTTP_AUTHORIZATION")):
            return application(environ, start_response)
        start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Type", "text/plain")])
        return [b"no valid token; send the header Authorization: Bearer TOKEN\n"]

    return answer
