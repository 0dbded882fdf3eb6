"""The addresses of the protocol over HTTP: what each asks of the servicer, and how its answer is written."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from aiohttp import web

from guard.errors import InputError
from serving.errors import UnsupportedError
from serving.rest_codec import decode_infer, decode_object, encode_infer, plain, set_parameters
from serving.servicer import Rpc

__all__ = ["Routes"]

_MODEL = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
_NOT_READY = 503
_LENGTH = "Inference-Header-Content-Length"

_INLINE_BYTES = 2**16
"""Longer bodies are read and written by a thread, so that they hold up nobody."""

_MAX_JSON_BYTES = 16 * 2**20
"""JSON takes up to twenty times its length in memory; what is longer can come as binary data, which does not."""

T = TypeVar("T")


class Routes:
    """Answers each address with the servicer's calls.

    Args:
        rpcs: By name.
    """

    def __init__(self, rpcs: Mapping[str, Rpc]) -> None:
        self._rpcs = rpcs
        # One at a time: Python parses no two at once anyway, and so the memory for one is enough.
        self._turn = asyncio.Semaphore(1)

    def table(self) -> list[web.RouteDef]:
        """Return every address with what answers it."""
        return [
            web.get("/v2", self._server),
            web.get("/v2/", self._server),
            web.get("/v2/health/live", self._live),
            web.get("/v2/health/ready", self._ready),
            web.get("/v2/models/stats", self._statistics),
            web.post("/v2/repository/index", self._index),
            web.post("/v2/repository/models/{model}/load", self._load),
            web.post("/v2/repository/models/{model}/unload", self._unload),
            *(route for prefix in _MODEL for route in self._model_table(prefix)),
        ]

    def _model_table(self, prefix: str) -> list[web.RouteDef]:
        return [
            web.get(prefix, self._model),
            web.get(f"{prefix}/ready", self._model_ready),
            web.get(f"{prefix}/config", self._config),
            web.get(f"{prefix}/stats", self._statistics),
            web.post(f"{prefix}/infer", self._infer),
        ]

    async def _call(self, name: str, /, **fields: Any) -> Any:
        rpc = self._rpcs[name]
        return await rpc.answer(rpc.request(**fields), None)

    async def _server(self, _: web.Request) -> web.Response:
        return web.json_response(plain(await self._call("ServerMetadata")))

    async def _live(self, _: web.Request) -> web.Response:
        return _yes_or_no((await self._call("ServerLive")).live)

    async def _ready(self, _: web.Request) -> web.Response:
        return _yes_or_no((await self._call("ServerReady")).ready)

    async def _model(self, request: web.Request) -> web.Response:
        return web.json_response(plain(await self._call("ModelMetadata", **_which(request))))

    async def _model_ready(self, request: web.Request) -> web.Response:
        return _yes_or_no((await self._call("ModelReady", **_which(request))).ready)

    async def _config(self, request: web.Request) -> web.Response:
        return web.json_response(plain((await self._call("ModelConfig", **_which(request))).config))

    async def _statistics(self, request: web.Request) -> web.Response:
        return web.json_response(plain(await self._call("ModelStatistics", **_which(request))))

    async def _index(self, request: web.Request) -> web.Response:
        content = await _content(request)
        only_ready = content.get("ready", False)
        if not isinstance(only_ready, bool):
            raise InputError("'ready' is neither true nor false")
        return web.json_response(plain(await self._call("RepositoryIndex", ready=only_ready))["models"])

    async def _load(self, request: web.Request) -> web.Response:
        return await self._control("RepositoryModelLoad", request)

    async def _unload(self, request: web.Request) -> web.Response:
        return await self._control("RepositoryModelUnload", request)

    async def _control(self, name: str, request: web.Request) -> web.Response:
        if (rpc := self._rpcs.get(name)) is None:
            raise UnsupportedError(f"{name} is not offered here")
        message: Any = rpc.request(model_name=_path(request, "model"))
        parameters = (await _content(request)).get("parameters", {})
        if not isinstance(parameters, dict):
            raise InputError("'parameters' is no object")
        set_parameters(message.parameters, parameters)
        await rpc.answer(message, None)
        return web.Response()

    async def _infer(self, request: web.Request) -> web.Response:
        n_json = _json_length(request)
        body = await request.read()
        which = {"model": _path(request, "model"), "version": _path(request, "version")}
        _check_json(len(body) if n_json is None else n_json, _MAX_JSON_BYTES)
        message, form = await self._aside(len(body), partial(decode_infer, body, n_json, **which))
        response: Any = await self._rpcs["ModelInfer"].answer(message, None)
        content, n_json = await self._aside(response.ByteSize(), partial(encode_infer, response, form))
        if n_json is None:
            return web.Response(body=content, content_type="application/json")
        return web.Response(body=content, content_type="application/octet-stream", headers={_LENGTH: str(n_json)})

    async def _aside(self, n_bytes: int, work: Callable[[], T]) -> T:
        if n_bytes <= _INLINE_BYTES:
            return work()
        async with self._turn:
            return await asyncio.to_thread(work)


def _path(request: web.Request, part: str) -> str:
    return request.match_info.get(part, "")


def _which(request: web.Request) -> dict[str, str]:
    return {"name": _path(request, "model"), "version": _path(request, "version")}


def _check_json(n_bytes: int, limit: int) -> None:
    if n_bytes > limit:
        raise InputError(
            f"the request has {n_bytes} bytes of JSON and the limit is {limit}; send tensors as binary data"
        )


def _json_length(request: web.Request) -> int | None:
    text = request.headers.get(_LENGTH)
    if text is not None and not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise InputError(f"{_LENGTH} is {text[:40]!r}, which is no whole number")
    return None if text is None else int(text)


async def _content(request: web.Request) -> dict[str, Any]:
    body = await request.read()
    _check_json(len(body), _INLINE_BYTES)
    return decode_object(body) if body.strip() else {}


def _yes_or_no(yes: bool) -> web.Response:
    return web.Response(status=200 if yes else _NOT_READY)
