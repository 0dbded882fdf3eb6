"""Work that is done to its end, whoever has asked for it and left."""

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["Background"]


class Background:
    """Tasks that nobody cancels; used from one event loop."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin work; what it raises is for those who wait for it, if anybody does."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def in_turn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do work when that which was given here earlier is done, and wait for it."""
        await asyncio.shield(self.start(self._wait_and_do(work)))

    async def finish(self) -> None:
        """Wait until all work is done, whatever it raises."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _wait_and_do(self, work: Coroutine[Any, Any, None]) -> None:
        async with self._turn:
            await work

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Looked at here, because whoever asked may have left.
            task.exception()
