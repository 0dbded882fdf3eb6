"""Runs work off the event loop, a bounded amount of it at a time."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serving.errors import DeadlineError, OverloadedError

__all__ = ["Runner"]

T = TypeVar("T")


class Runner:
    """A bounded queue in front of worker threads; used from one event loop.

    A caller that is cancelled while its work waits gives up its place at once; while its work runs, the place is given
    up when the run ends. Nobody else notices either.

    Args:
        max_in_flight: How much may wait or run at once.
        n_workers: How much runs at once. One is right for models that use every core by themselves.
        clock: Seconds, only ever growing.
        on_change: Told how much is in flight whenever that changes.
    """

    def __init__(
        self,
        *,
        max_in_flight: int,
        n_workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._max_in_flight = max_in_flight
        self._clock = clock
        self._on_change = on_change
        self._workers = ThreadPoolExecutor(n_workers, thread_name_prefix="guard")
        self._turns = asyncio.Semaphore(n_workers)
        self._idle = asyncio.Event()
        self._idle.set()
        self._n_in_flight = 0
        self._stopping = False

    @property
    def stopping(self) -> bool:
        """Whether new work is refused."""
        return self._stopping

    async def run(self, work: Callable[[], T], *, deadline: float | None = None) -> T:
        """Return what the work returns, or raise what it raises.

        Args:
            work: Called in a worker thread.
            deadline: On the clock; work whose turn comes later is not run. None: it may wait for ever.

        Raises:
            OverloadedError: Too much is in flight already, or the server is stopping.
            DeadlineError: The deadline passed before the work's turn came.
        """
        self._enter()
        try:
            # Waiting here and not in the executor's queue lets go of a cancelled caller's inputs at once.
            await self._turns.acquire()
        except asyncio.CancelledError:
            self._leave()
            raise
        if deadline is not None and self._clock() >= deadline:
            self._finish()
            raise DeadlineError("the deadline passed while the request waited for its turn, so it was not run")
        running = asyncio.get_running_loop().run_in_executor(self._workers, work)
        running.add_done_callback(self._finish)
        return await asyncio.shield(running)

    async def drain(self, timeout_s: float) -> None:
        """Refuse new work and wait until none is in flight, or the time is up."""
        self._stopping = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)

    async def close(self) -> None:
        """Wait for the run in progress, which cannot be stopped, and end the worker threads."""
        self._stopping = True
        await asyncio.to_thread(self._workers.shutdown)

    def _enter(self) -> None:
        if self._stopping:
            raise OverloadedError("the server is stopping; send the request to another one")
        if self._n_in_flight >= self._max_in_flight:
            raise OverloadedError(
                f"{self._n_in_flight} requests are in flight and the limit is {self._max_in_flight}; try again later"
            )
        self._change(1)

    def _finish(self, _: object = None) -> None:
        self._turns.release()
        self._leave()

    def _leave(self) -> None:
        self._change(-1)

    def _change(self, step: int) -> None:
        self._n_in_flight += step
        self._on_change(self._n_in_flight)
        if self._n_in_flight:
            self._idle.clear()
        else:
            self._idle.set()
