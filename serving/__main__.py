"""guard-serve: serve a bundle over the Open Inference Protocol. The only place in serving that prints."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

from guard.errors import GuardError
from guard.runtime import Guard
from serving.command_line import PROGRAM, PROVIDERS, USER_ERROR, config_of, parse
from serving.config import ServerConfig
from serving.endpoint import served_name
from serving.events import Tracer
from serving.logs import LogFormat, LogLevel, logging_to
from serving.models import State
from serving.operations import tracing_if_asked
from serving.server import Running, serve
from serving.store import Store, repository_store, single_store

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run guard-serve and return its exit status: 0 after a drain, 2 if it cannot start."""
    options = parse(arguments)
    form, level = LogFormat(options.log_format), LogLevel(options.log_level)
    try:
        with logging_to(sys.stderr, program=PROGRAM, form=form, level=level):
            _run(options)
    except GuardError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def _run(options: argparse.Namespace) -> None:
    config, tracer = config_of(options), tracing_if_asked(options)
    try:
        guard, store = _bundles(options)
        asyncio.run(_serve_until_told(guard, config, store, tracer))
    finally:
        if tracer is not None:
            tracer.close()


def _bundles(options: argparse.Namespace) -> tuple[Guard | None, Store]:
    """Return the one bundle's guard, if there is one, and where bundles lie."""
    opened = partial(Guard.load, threads=options.threads, provider=PROVIDERS[options.device])
    if options.repository:
        return None, repository_store(options.repository, opened)
    guard = opened(options.bundle)
    return guard, single_store(options.bundle, served_name(guard.manifest, config_of(options)), opened)


async def _serve_until_told(guard: Guard | None, config: ServerConfig, store: Store, tracer: Tracer | None) -> None:
    stop, hang_up = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for name, told in (("SIGTERM", stop), ("SIGINT", stop), ("SIGHUP", hang_up)):
        # Without it, on Windows, interrupting the program ends it without a drain.
        with suppress(NotImplementedError, AttributeError):
            loop.add_signal_handler(getattr(signal, name), told.set)
    async with AsyncExitStack() as stack:
        server = serve(guard, config, store=store, tracer=tracer)
        if (running := await _unless_told(stop, stack.enter_async_context(server))) is None:
            return
        print(_describe(running, config), flush=True)
        reloading = asyncio.create_task(_reload_when_told(running, hang_up))
        await stop.wait()
        reloading.cancel()


async def _unless_told(stop: asyncio.Event, starting: Coroutine[Any, Any, Running]) -> Running | None:
    """Return the server once it serves; None: it was told to stop before, and has."""
    start, told = asyncio.create_task(starting), asyncio.create_task(stop.wait())
    await asyncio.wait((start, told), return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if start.done():
        return start.result()
    start.cancel()
    await asyncio.wait((start,))
    return None


async def _reload_when_told(running: Running, told: asyncio.Event) -> None:
    while True:
        await told.wait()
        told.clear()
        try:
            await running.reload()
        except GuardError as error:
            print(f"{PROGRAM}: error: nothing is reloaded: {error}", file=sys.stderr, flush=True)
        else:
            print(f"{PROGRAM}: reloaded, serving {_served(running)}", flush=True)


def _describe(running: Running, config: ServerConfig) -> str:
    host = f"[{running.host}]" if ":" in running.host else running.host
    scheme = "https" if config.security.tls_cert else "http"
    rest = "" if running.rest_port is None else f", REST on {scheme}://{host}:{running.rest_port}/v2"
    where = f"{host}:{running.port}{rest}, metrics on {scheme}://{host}:{running.metrics_port}/metrics"
    return f"{PROGRAM}: serving {_served(running)} on {where}"


def _served(running: Running) -> str:
    return ", ".join(dict.fromkeys(e.model for e in running.index() if e.state is State.READY)) or "no model"


if __name__ == "__main__":
    sys.exit(main())
