"""One guarded model as it is served: a request's arrays in, the tensors a client may see out. Knows no protobuf."""

import logging
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from guard.errors import InputError
from guard.input_checks import check_inputs
from guard.manifest import Manifest
from guard.rows import n_rows as rows_of
from guard.runtime import Guard
from guard.types import Answers, TensorSpec, Verdict
from serving.answers import guard_tensors, output_specs
from serving.batch import Arrays, Decode
from serving.batcher import Batcher
from serving.config import OnFlag, ServerConfig
from serving.events import Observers, telling
from serving.metrics import Metrics, Stage

__all__ = ["Endpoint", "Served", "served_name"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The outcome of one request.

    Args:
        tensors: Every output by name.
        n_rows: Rows of the request.
        n_flagged: Flagged rows; None in shadow mode, where nobody is to know.
        queue_s: Seconds the request waited for its turn.
        decode_s: Seconds its inputs took to become arrays.
        compute_s: Seconds both models and the decision took, for all requests of its run.
        leads: Whether it is the first that its run answered.
    """

    tensors: Arrays
    n_rows: int
    n_flagged: int | None
    queue_s: float
    decode_s: float
    compute_s: float
    leads: bool


def served_name(manifest: Manifest, config: ServerConfig) -> str:
    """Return what clients call a model unless told otherwise."""
    return config.model_name or str(manifest.model.get("name") or "model")


class _Answer(NamedTuple):
    tensors: Arrays
    n_flagged: int | None


class Endpoint:
    """Answers for one guarded model; used from one event loop.

    Its ``name`` is what metrics and logs call it; its ``inputs``, ``outputs`` and ``max_rows`` are what clients are
    told; its ``runner`` joins concurrent requests and knows whether the server is stopping. Rows are judged by
    themselves, so that sharing a run changes nobody's answer.

    Args:
        guard: Judges the rows.
        config: Name, mode and limits.
        metrics: Counts what happens.
        version: Of the model, for the metrics.
        clock: Seconds, only ever growing.
        observers: Told of every request with flagged rows, whether or not its caller waits for the answer.

    Raises:
        BundleError: The model's output cannot be told apart from the guard's.
    """

    def __init__(
        self,
        guard: Guard,
        config: ServerConfig,
        *,
        metrics: Metrics,
        version: str = "1",
        clock: Callable[[], float] = time.monotonic,
        observers: Observers = Observers(),  # noqa: B008 - a value
    ) -> None:
        self.name = served_name(guard.manifest, config)
        self.inputs: tuple[TensorSpec, ...] = tuple(spec.with_free_batch() for spec in guard.manifest.inputs)
        self.outputs = output_specs(guard.manifest, on_flag=config.on_flag, expose_scores=config.expose_scores)
        self.max_rows = config.limits.max_rows
        self._guard = guard
        self._on_flag = config.on_flag
        self._expose_scores = config.expose_scores
        self._metrics = metrics
        self._clock = clock
        self._tell = telling(observers.on_flagged, guard.manifest, model=self.name, version=version)
        metrics.add_model(self.name, guard.manifest, version=version)
        self._monitor = guard.monitor()
        metrics.watch_model(self.name, self._monitor, written_at=guard.written_at)
        metrics.set_queue_limit(self.name, config.limits.max_queue_rows)
        self.runner = Batcher(
            self._run,
            max_batch_rows=config.limits.max_batch_rows,
            max_queue_rows=config.limits.max_queue_rows,
            max_queue_delay_s=config.limits.max_queue_delay_s,
            n_workers=config.n_workers,
            clock=clock,
            on_change=metrics.load_of(self.name),
        )

    async def infer(
        self,
        decode: Decode,
        *,
        n_rows: int,
        layout: Hashable = None,
        deadline: float | None = None,
        request_id: str = "",
    ) -> Served:
        """Answer one request.

        Args:
            decode: Returns the inputs (N, ...) by name as the model takes them, or raises; called in a worker thread
                once it is the request's turn, so that long requests hold up nobody and are only admitted undecoded.
            n_rows: N as the request states it, before anything is decoded.
            layout: Requests share a run only where it is equal: what the request states of shapes beyond axis 0.
            deadline: On the clock; a request whose turn comes later is not run.
            request_id: What observers are told of it.

        Raises:
            InputError: The inputs do not fit, are too many rows, or hold NaN or infinity.
            FlaggedError: A row is flagged and the mode is reject.
            ModelError: A model failed, so nothing is let through; in shadow mode, the original model failed.
            OverloadedError: Too many rows wait.
            DeadlineError: The deadline passed before the request's turn came.
        """
        if n_rows > self.max_rows:
            raise InputError(f"the request has {n_rows} rows and the limit is {self.max_rows}; send fewer at a time")
        submitted = self._clock()
        answered = await self.runner.submit(
            partial(self._decode, decode, submitted), n_rows=n_rows, layout=layout, deadline=deadline, name=request_id
        )
        return Served(
            tensors=answered.value.tensors,
            n_rows=n_rows,
            n_flagged=answered.value.n_flagged,
            queue_s=answered.started - submitted,
            decode_s=answered.decode_s,
            compute_s=answered.run_s,
            leads=answered.leads,
        )

    def _decode(self, decode: Decode, submitted: float) -> Arrays:
        self._metrics.observe_stage(self.name, "queue", self._clock() - submitted)
        # The models check again what they get; here a request is told of its own rows, and fails alone.
        return check_inputs(decode(), self.inputs)

    def _run(self, inputs: Arrays) -> Callable[[slice, str], _Answer]:
        self._metrics.observe_batch(self.name, rows_of(inputs))
        with self._stage("original"):
            original = self._guard.run_original(inputs)
        if self._on_flag is OnFlag.SHADOW:
            return partial(self._in_shadow, inputs, original, self._judge_if_it_can(inputs, original))
        return partial(self._in_the_open, inputs, original, self._judge(inputs, original))

    def _in_the_open(
        self, inputs: Arrays, original: Answers, verdict: Verdict, rows: slice, request_id: str
    ) -> _Answer:
        own = verdict.of(rows)
        self._tell(request_id, inputs, rows, own)
        tensors = guard_tensors(
            original.outputs[rows],
            own,
            output=self.outputs[0].name,
            on_flag=self._on_flag,
            expose_scores=self._expose_scores,
        )
        return _Answer(tensors, int(own.flagged.sum()))

    def _in_shadow(
        self, inputs: Arrays, original: Answers, verdict: Verdict | None, rows: slice, request_id: str
    ) -> _Answer:
        if verdict is not None:
            self._tell(request_id, inputs, rows, verdict.of(rows))
        return _Answer({self.outputs[0].name: original.outputs[rows]}, None)

    def _judge_if_it_can(self, inputs: Arrays, original: Answers) -> Verdict | None:
        try:
            return self._judge(inputs, original)
        except Exception:
            # Shadow mode promises the original's answer as if no guard were there; the failure counter tells.
            _logger.exception("model %s: the guard failed in shadow mode", self.name)
            return None

    def _judge(self, inputs: Arrays, original: Answers) -> Verdict:
        with self._stage("judge"):
            verdict = self._guard.judge(inputs, original)
        self._metrics.count_verdict(self.name, verdict)
        # Not the one that metrics show by now: the bundle may have been reloaded, and scores are of this one.
        self._monitor.update(verdict)
        return verdict

    @contextmanager
    def _stage(self, stage: Stage) -> Iterator[None]:
        started = self._clock()
        try:
            yield
        except InputError:
            raise
        except Exception:
            self._metrics.count_failure(self.name, stage)
            raise
        finally:
            self._metrics.observe_stage(self.name, stage, self._clock() - started)
