"""Places for requests that wait for somebody else meanwhile, and turns at the models for each of them."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serving.errors import DeadlineError, OverloadedError

__all__ = ["Turns"]

T = TypeVar("T")


class Turns:
    """Admits so many requests at once, each of which takes turns in worker threads; used from one event loop.

    A request keeps its place while it waits for another server, and a worker only while it runs. A caller that is
    cancelled gives up its place at once; a run that it began goes on to its end, and the next one waits for that.

    Args:
        max_in_flight: How many requests have a place.
        n_workers: How much runs at once. One is right for models that use every core by themselves.
        clock: Seconds, only ever growing.
        on_change: Told how many have a place whenever that changes.
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
        self._free = asyncio.Semaphore(n_workers)
        self._idle = asyncio.Event()
        self._idle.set()
        self._n_in_flight = 0
        self._stopping = False

    @property
    def stopping(self) -> bool:
        """Whether new requests are refused."""
        return self._stopping

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Keep a place for a request.

        Raises:
            OverloadedError: There is none left, or the server is stopping.
        """
        if self._stopping:
            raise OverloadedError("the server is stopping; send the request to another one")
        if self._n_in_flight >= self._max_in_flight:
            raise OverloadedError(
                f"{self._n_in_flight} requests are in flight and the limit is {self._max_in_flight}; try again later"
            )
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    async def take(self, work: Callable[[], T], *, deadline: float | None = None) -> T:
        """Return what the work returns, or raise what it raises.

        Args:
            work: Called in a worker thread.
            deadline: On the clock; work whose turn comes later is not run. None: it may wait for ever.

        Raises:
            DeadlineError: The deadline passed before the work's turn came.
        """
        await self._free.acquire()
        if deadline is not None and self._clock() >= deadline:
            self._free.release()
            raise DeadlineError("the deadline passed while the request waited for its turn, so it was not run")
        running = asyncio.get_running_loop().run_in_executor(self._workers, work)
        running.add_done_callback(lambda _: self._free.release())
        return await asyncio.shield(running)

    async def drain(self, timeout_s: float | None) -> None:
        """Refuse new requests and wait until none has a place, or the time is up; None: it never is."""
        self._stopping = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)

    async def close(self) -> None:
        """Wait for the run in progress, which cannot be stopped, and end the worker threads."""
        self._stopping = True
        await asyncio.to_thread(self._workers.shutdown)

    def _change(self, step: int) -> None:
        self._n_in_flight += step
        self._on_change(self._n_in_flight)
        if self._n_in_flight:
            self._idle.clear()
        else:
            self._idle.set()
