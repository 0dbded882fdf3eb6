"""The protocol over HTTP, on aiohttp: a port, who may enter, and every error as a status with a reason."""

import json
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

import grpc
from aiohttp import web
from aiohttp.typedefs import Middleware

from serving.rest_routes import Routes
from serving.security import Access
from serving.servicer import SERVER_NAME, Rpc
from serving.transport import refuse

__all__ = ["HTTP_STATUS", "RestServer", "start_rest"]

HTTP_STATUS: Mapping[grpc.StatusCode, int] = MappingProxyType(
    {
        grpc.StatusCode.INTERNAL: 500,
        grpc.StatusCode.NOT_FOUND: 404,
        grpc.StatusCode.UNAVAILABLE: 503,
        grpc.StatusCode.UNIMPLEMENTED: 501,
    }
)
"""As Triton has it; every other status is 400."""

_PROBES = ("/v2/health/live", "/v2/health/ready")
"""What needs no token: probes have none, and learn nothing but that the server runs."""

_KEEP_ALIVE_S = 75
"""As nginx has it; aiohttp would keep a connection that says nothing for an hour."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RestServer:
    """A running HTTP server.

    Args:
        runner: Of aiohttp.
        port: That it listens on.
    """

    def __init__(self, runner: web.AppRunner, port: int) -> None:
        self._runner, self.port = runner, port

    async def stop(self) -> None:
        """Let go of the port, and end what is still running once the time for the last answers is up."""
        await self._runner.cleanup()


async def start_rest(
    rpcs: Mapping[str, Rpc],
    *,
    host: str,
    port: int,
    max_bytes: int,
    last_answers_s: float,
    access: Access,
    take_over: Callable[[Mapping[str, str]], None] | None = None,
) -> RestServer:
    """Start to listen.

    Args:
        rpcs: The servicer's calls by name.
        host: The address to listen on.
        port: 0: any free one.
        max_bytes: Of one body.
        last_answers_s: Seconds that answers have to leave once the server is told to stop.
        access: What to ask of those who connect.
        take_over: Told of the headers of each request, for its trace.

    Raises:
        OSError: The port cannot be had.
    """
    app = web.Application(client_max_size=max_bytes, middlewares=[_answer_errors, _admit(access, take_over)])
    app.on_response_prepare.append(_sign)
    app.add_routes(Routes(rpcs).table())
    # A caller who hangs up gives its place in the queue back.
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=_KEEP_ALIVE_S,
        shutdown_timeout=last_answers_s,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=access.context).start()
    except OSError:
        await runner.cleanup()
        raise
    return RestServer(runner, runner.addresses[0][1])


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a request ends with into a status and a reason, never a stack trace."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        limit = request.client_max_size
        return _error(413, f"the request has more than {limit} bytes, the server's limit; send fewer rows at a time")
    except web.HTTPException as error:
        return _error(error.status, f"{request.method} is not offered at this address: {error.reason}")
    except web.RequestPayloadError:
        return _error(400, "the request's body cannot be read as its headers say")
    except Exception as error:  # noqa: BLE001 - whatever it is
        refused = refuse(error)
        return _error(HTTP_STATUS.get(refused.code, 400), refused.text)


def _admit(access: Access, take_over: Callable[[Mapping[str, str]], None] | None) -> Middleware:
    """Return what lets requests in: probes, and those with a token where there must be one."""

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        if access.authorised is not None and request.path not in _PROBES:
            values = request.headers.getall("Authorization", [])
            if len(values) != 1 or not access.authorised(values[0]):
                access.on_refused()
                return _error(401, "no valid token; send the header Authorization: Bearer TOKEN")
        if take_over is not None:
            take_over(request.headers)
        return await handler(request)

    return admit


def _error(status: int, text: str) -> web.Response:
    return web.Response(status=status, body=json.dumps({"error": text}).encode(), content_type="application/json")


async def _sign(_: web.Request, response: web.StreamResponse) -> None:
    """Name the product rather than its parts and their versions."""
    response.headers["Server"] = SERVER_NAME
