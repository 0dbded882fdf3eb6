"""How long each part of a guarded request takes, and which part fails."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from guard.errors import GuardError, InputError
from serving.errors import UnguardedError
from serving.metrics import Metrics, Stage

__all__ = ["Stages"]

_logger = logging.getLogger(__name__)


class Stages:
    """Times and counts the stages of one model in front of another server; safe to use from several threads.

    Args:
        model: What the metrics call it.
        metrics: Gets times and failures.
        clock: Seconds, only ever growing.
    """

    def __init__(self, model: str, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._model, self._metrics, self._clock = model, metrics, clock

    def waited(self, seconds: float) -> None:
        """Say how long a request waited for its turn."""
        self._metrics.observe_stage(self._model, "queue", seconds)

    def joined(self, n_rows: int) -> None:
        """Say how many rows one run of the guard's models has."""
        self._metrics.observe_batch(self._model, n_rows)

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Say how long the block takes."""
        started = self._clock()
        try:
            yield
        finally:
            self._metrics.observe_stage(self._model, stage, self._clock() - started)

    @contextmanager
    def counted(self, stage: Stage) -> Iterator[None]:
        """Count the block if it fails, and make every failure but a client's mistake one kind of error.

        Raises:
            UnguardedError: The block failed.
        """
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            self._metrics.count_failure(self._model, stage)
            known = isinstance(error, GuardError)
            _logger.error("model %s: the guard failed: %s", self._model, error, exc_info=None if known else error)  # noqa: TRY400
            raise UnguardedError(f"model {self._model} is not guarded: {error}") from error
