"""Groups concurrent requests by rows, so that one run answers several of them. Knows no model and no protocol."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from guard.errors import ModelError
from serving.batch import Answered, Decode, Outcome, Run, run_batch
from serving.errors import DeadlineError, OverloadedError

__all__ = ["Batcher"]

A = TypeVar("A")

_STOPPING = "the server is stopping; send the request to another one"
_LATE = "the deadline passed while the request waited for its turn, so it was not run"


@dataclass(slots=True, eq=False, kw_only=True)
class _Request(Generic[A]):
    decode: Decode
    n_rows: int
    layout: Hashable
    deadline: float | None
    name: str
    submitted: float
    answer: asyncio.Future[Outcome[A]]
    expiry: asyncio.TimerHandle | None = None

    @property
    def n_places(self) -> int:
        """Rows of the queue that it takes up: a request that says it has none takes up memory too."""
        return max(self.n_rows, 1)

    def is_late(self, now: float) -> bool:
        return self.deadline is not None and now >= self.deadline

    def settle(self, outcome: Outcome[A]) -> None:
        if not self.answer.done():
            self.answer.set_result(outcome)


class Batcher(Generic[A]):
    """A bounded queue of requests in front of worker threads; used from one event loop.

    A worker that is free takes the oldest request, and with it those of the same layout that fit in the batch, oldest
    first. A caller that is cancelled while it waits gives up its place at once; later its rows run with the others'
    and only its answer is dropped. Nobody else notices either.

    Args:
        run: Answers arrays of several requests' rows; called in a worker thread (see serving.batch).
        max_batch_rows: Rows of one run; a request of more runs by itself.
        max_queue_rows: Rows that may wait; but where none waits, any request may.
        max_queue_delay_s: How long the oldest request waits for a batch to fill. 0: whatever waits when a worker is
            free makes the batch.
        n_workers: Runs at once. One is right for models that use every core by themselves.
        clock: Seconds, only ever growing.
        on_change: Told how many requests wait or run, and how many rows wait, whenever that changes.
    """

    def __init__(
        self,
        run: Run[A],
        *,
        max_batch_rows: int,
        max_queue_rows: int,
        max_queue_delay_s: float = 0.0,
        n_workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        self._run = run
        self._max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._max_queue_delay_s = max_queue_delay_s
        self._clock = clock
        self._on_change = on_change
        self._workers = ThreadPoolExecutor(n_workers, thread_name_prefix="guard")
        self._n_free = n_workers
        # Used as an ordered set, so that any request can leave at once.
        self._waiting: dict[_Request[A], None] = {}
        self._n_waiting_rows = 0
        self._n_taken = 0
        self._wake_up: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False

    @property
    def stopping(self) -> bool:
        """Whether new requests are refused."""
        return self._stopping

    async def submit(
        self, decode: Decode, *, n_rows: int, layout: Hashable = None, deadline: float | None = None, name: str = ""
    ) -> Answered[A]:
        """Return the answer to one request, or raise what decoding, its run or its cut raises.

        Args:
            decode: Returns the request's arrays (N, ...) by name, or raises; called in a worker thread when its turn
                comes.
            n_rows: N as the caller states it; arrays of another N are refused. Fewer than one count as one row.
            layout: Requests share a batch only where it is equal, such as for shapes without axis 0. What can still
                not be joined runs apart.
            deadline: On the clock; a request whose turn comes later is not run. None: it may wait for ever.
            name: What the run is told that the request is called.

        Raises:
            OverloadedError: Too many rows wait already, or the server is stopping.
            DeadlineError: The deadline passed before the request's turn came.
        """
        request = _Request[A](
            decode=decode, n_rows=n_rows, layout=layout, deadline=deadline, name=name, submitted=self._clock(),
            answer=asyncio.get_running_loop().create_future(),
        )  # fmt: skip
        self._enqueue(request)
        self._start_runs()
        try:
            outcome = await request.answer
        finally:
            if request in self._waiting:
                self._dequeue(request)
                self._tell()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests and wait until none is in flight, or the time is up."""
        self._stopping = True
        self._start_runs()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)

    async def close(self) -> None:
        """Wait for the runs in progress, which cannot be stopped, and end the worker threads."""
        self._stopping = True
        for request in list(self._waiting):
            self._dequeue(request)
            request.settle(OverloadedError(_STOPPING))
        self._tell()
        await asyncio.to_thread(self._workers.shutdown)

    def _enqueue(self, request: _Request[A]) -> None:
        if self._stopping:
            raise OverloadedError(_STOPPING)
        if self._waiting and self._n_waiting_rows + request.n_places > self._max_queue_rows:
            raise OverloadedError(
                f"{self._n_waiting_rows} rows wait and the limit is {self._max_queue_rows}; try again later"
            )
        self._waiting[request] = None
        self._n_waiting_rows += request.n_places
        if request.deadline is not None:
            remaining = max(0.0, request.deadline - request.submitted)
            request.expiry = asyncio.get_running_loop().call_later(remaining, self._expire, request)
        self._tell()

    def _dequeue(self, request: _Request[A]) -> None:
        del self._waiting[request]
        self._n_waiting_rows -= request.n_places
        if request.expiry is not None:
            request.expiry.cancel()

    def _expire(self, request: _Request[A]) -> None:
        self._dequeue(request)
        request.settle(DeadlineError(_LATE))
        self._tell()

    def _start_runs(self) -> None:
        while self._n_free and self._waiting and self._due():
            if batch := self._take():
                self._n_free -= 1
                self._n_taken += len(batch)
                running = asyncio.get_running_loop().run_in_executor(self._workers, self._work(batch))
                running.add_done_callback(partial(self._finish, batch))
            self._tell()

    def _work(self, batch: Sequence[_Request[A]]) -> Callable[[], Sequence[Outcome[A]]]:
        decoders, n_rows = [request.decode for request in batch], [request.n_rows for request in batch]
        names = [request.name for request in batch]
        return partial(run_batch, decoders, n_rows, names, self._run, started=self._clock(), clock=self._clock)

    def _due(self) -> bool:
        """Say whether to run what waits now; if not, see to it that the question is asked again in time."""
        if self._stopping or self._n_waiting_rows >= self._max_batch_rows:
            return True
        remaining = next(iter(self._waiting)).submitted + self._max_queue_delay_s - self._clock()
        if remaining > 0 and self._wake_up is None:
            self._wake_up = asyncio.get_running_loop().call_later(remaining, self._wake)
        return remaining <= 0

    def _wake(self) -> None:
        self._wake_up = None
        self._start_runs()

    def _take(self) -> Sequence[_Request[A]]:
        """Take the oldest request that is in time off the queue, and what goes with it."""
        batch: list[_Request[A]] = []
        n_rows, now = 0, self._clock()
        for request in list(self._waiting):
            if request.is_late(now):
                self._expire(request)
            elif not batch or request.layout == batch[0].layout:
                if batch and n_rows + request.n_places > self._max_batch_rows:
                    break
                self._dequeue(request)
                batch.append(request)
                n_rows += request.n_places
        return batch

    def _finish(self, batch: Sequence[_Request[A]], running: asyncio.Future[Sequence[Outcome[A]]]) -> None:
        self._n_free += 1
        self._n_taken -= len(batch)
        for request, outcome in zip(batch, _result(running, len(batch)), strict=True):
            request.settle(outcome)
        self._start_runs()
        self._tell()

    def _tell(self) -> None:
        n_in_flight = len(self._waiting) + self._n_taken
        self._on_change(n_in_flight, self._n_waiting_rows)
        if n_in_flight:
            self._idle.clear()
        else:
            self._idle.set()


def _result(running: asyncio.Future[Sequence[Outcome[A]]], n: int) -> Sequence[Outcome[A]]:
    """Return what a batch came to, whatever became of it: nobody may be left waiting."""
    if running.cancelled() or (error := running.exception()) is not None:
        reason = "cancelled" if running.cancelled() else repr(error)
        return [ModelError(f"the run was broken off: {reason}") for _ in range(n)]
    return running.result()
