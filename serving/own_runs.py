"""What the guard runs itself while another server runs the original: joined over concurrent requests by rows."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from guard.input_checks import ArraysByName
from guard.rows import n_rows
from guard.runtime import Guard
from guard.types import Answers, Observed
from serving.batch import Arrays
from serving.batcher import Batcher
from serving.config import Limits
from serving.stages import Stages

__all__ = ["OwnRuns", "Ran"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What the guard ran itself; None where its bundle needs no such run.

    Args:
        original: With a detector, what the observed original answers.
        bounded: Without one, what the bounded model answers.
    """

    original: Answers | None
    bounded: Answers | None


class OwnRuns:
    """Runs of the guard's models that need no answer of anybody else; used from one event loop.

    Args:
        guard: Whose models they are.
        limits: Rows of one run, rows that wait, and how long they wait for each other.
        stages: Gets times and failures.
        clock: Seconds, only ever growing.
        on_change: Told how many rows wait whenever that may have changed.
    """

    def __init__(
        self,
        guard: Guard,
        limits: Limits,
        *,
        stages: Stages,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._guard, self._stages, self._clock = guard, stages, clock
        self._batcher = Batcher(
            self._run,
            max_batch_rows=limits.max_batch_rows,
            max_queue_rows=limits.max_queue_rows,
            max_queue_delay_s=limits.max_queue_delay_s,
            clock=clock,
            on_change=lambda _, n_waiting_rows: on_change(n_waiting_rows),
        )

    async def run(self, inputs: ArraysByName, *, deadline: float | None) -> Ran:
        """Return what the guard's models say of a request's rows.

        Args:
            inputs: As guard.input_checks returns them.
            deadline: On the clock; a request whose turn comes later is not run.

        Raises:
            UnguardedError: A model failed.
            OverloadedError: Too many rows wait.
            DeadlineError: The deadline passed before the request's turn came.
        """
        submitted = self._clock()
        layout = frozenset((name, array.shape[1:]) for name, array in inputs.items())
        answered = await self._batcher.submit(lambda: inputs, n_rows=n_rows(inputs), layout=layout, deadline=deadline)
        self._stages.waited(answered.started - submitted)
        return answered.value

    async def close(self) -> None:
        """Wait for the run in progress, which cannot be stopped, and end the worker."""
        await self._batcher.close()

    def _run(self, inputs: Arrays) -> Callable[[slice, str], Ran]:
        self._stages.joined(n_rows(inputs))
        if self._guard.manifest.detector is not None:
            with self._stages.timed("original"), self._stages.counted("original"):
                original = self._guard.run_original(inputs)
            return lambda rows, _: Ran(original=_rows_of(original, rows), bounded=None)
        with self._stages.timed("judge"), self._stages.counted("judge"):
            bounded = self._guard.run_bounded(inputs)
        return lambda rows, _: Ran(original=None, bounded=_rows_of(bounded, rows))


def _rows_of(answers: Answers, rows: slice) -> Answers:
    seen = answers.observed
    observed = None if seen is None else Observed(profile=seen.profile[rows], head=seen.head[rows])
    return Answers(outputs=answers.outputs[rows], logits=answers.logits[rows], observed=observed)
