"""One guarded model that somebody else runs: the guard's own runs beside theirs, then the verdict on their answer."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from guard.errors import InputError, ModelError
from guard.input_checks import ArraysByName, check_inputs
from guard.rows import n_rows
from guard.runtime import Guard
from guard.types import Answers, FloatArray, ModelRun, TensorSpec, Verdict
from serving._pb import open_inference_pb2 as pb
from serving.agreement import check_agreement
from serving.answers import guard_tensors, output_specs
from serving.codec import decode_inputs
from serving.config import Fail, OnFlag, ServerConfig
from serving.endpoint import served_name
from serving.errors import UnguardedError
from serving.events import OnFlagged, telling
from serving.exchange import check_inspectable, forwarded, is_plain, own_output, with_tensors
from serving.metrics import Metrics
from serving.own_runs import OwnRuns, Ran
from serving.stages import Stages
from serving.turns import Turns

__all__ = ["VERSION", "Alongside", "Ask"]

VERSION = "1"
"""What the metrics call the version of a bundle's model; the versions that clients see are the other server's."""

Ask = Callable[[pb.ModelInferRequest], Awaitable[pb.ModelInferResponse]]
"""Asks whoever runs the model; what it raises is what the client gets."""

_COMPARED_EVERY = 64
"""Of requests that need no run of the original here, each 64th gets one to compare the answers with."""


class Alongside:
    """Guards the answers of one model that another server runs; used from one event loop.

    Its ``name`` is what clients call the model, ``added`` are the outputs that they get beside the model's own, and
    ``withheld`` the names of those they do not get: logits that tell what the corrected probabilities do not.

    Args:
        guard: Judges the rows.
        config: Name, mode and limits.
        theirs: What the other server calls the model; None: what each request does.
        fail: What clients get when the guard fails.
        metrics: Counts what happens.
        clock: Seconds, only ever growing.
        on_flagged: Told of every request with flagged rows.

    Raises:
        BundleError: The model's output cannot be told apart from the guard's.
    """

    def __init__(
        self,
        guard: Guard,
        config: ServerConfig,
        *,
        theirs: str | None = None,
        fail: Fail = Fail.CLOSED,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        on_flagged: OnFlagged = lambda _: None,
    ) -> None:
        self.name = served_name(guard.manifest, config)
        self.theirs = theirs
        self._own, *added = output_specs(guard.manifest, on_flag=config.on_flag, expose_scores=config.expose_scores)
        self.added: Sequence[TensorSpec] = added
        logits = guard.manifest.logits or self._own.name
        corrects = config.on_flag in (OnFlag.CORRECT, OnFlag.REJECT)
        self.withheld = frozenset({logits} - {self._own.name}) if corrects else frozenset()
        self._guard, self._config, self._fail = guard, config, fail
        self._metrics, self._clock = metrics, clock
        self._tell = telling(on_flagged, guard.manifest, model=self.name, version=VERSION)
        self._inputs = tuple(spec.with_free_batch() for spec in guard.manifest.inputs)
        self._n_plain = itertools.count()
        metrics.add_model(self.name, guard.manifest, version=VERSION)
        self._monitor = guard.monitor()
        metrics.watch_model(self.name, self._monitor, written_at=guard.written_at)
        self._load, self._n_requests, self._n_waiting_rows = metrics.load_of(self.name), 0, 0
        self._stages = Stages(self.name, metrics, clock)
        self._turns = Turns(max_in_flight=config.limits.max_in_flight, clock=clock, on_change=self._note_requests)
        self._runs = OwnRuns(guard, config.limits, stages=self._stages, clock=clock, on_change=self._note_rows)
        metrics.set_queue_limit(self.name, config.limits.max_queue_rows)

    @property
    def stopping(self) -> bool:
        """Whether new requests are refused."""
        return self._turns.stopping

    async def drain(self, timeout_s: float | None) -> None:
        """Refuse new requests and wait until none is in flight, or the time is up; None: it never is."""
        await self._turns.drain(timeout_s)

    async def close(self) -> None:
        """Wait for the runs in progress, which cannot be stopped, and end the workers."""
        await self._runs.close()
        await self._turns.close()

    async def answer(
        self, request: pb.ModelInferRequest, ask: Ask, *, deadline: float | None = None, request_id: str = ""
    ) -> pb.ModelInferResponse:
        """Return the other server's answer as the client may see it.

        Args:
            request: For this model, as the client sent it.
            ask: Called once, when the request is known to be one that the guard can judge.
            deadline: On the clock.
            request_id: What the observer is told of it.

        Raises:
            InputError: The inputs do not fit, hold NaN or infinity, or cannot be seen.
            FlaggedError: A row is flagged and the mode is reject.
            UnguardedError: The guard failed, and fails closed.
            OverloadedError: Too many requests are in flight: a limit, and no failure that could open anything.
            DeadlineError: The deadline passed before the guard's turn came.
        """
        check_inspectable(request, self._own.name)
        sent = forwarded(
            request,
            model=self.theirs or request.model_name,
            own=self._own.name,
            added=[spec.name for spec in self.added],
            withheld=self.withheld,
        )
        with self._turns.place():
            inputs = await asyncio.to_thread(self._decode, request)
            ran = asyncio.ensure_future(self._runs.run(inputs, deadline=deadline))
            ran.add_done_callback(_retrieve)
            try:
                with self._stages.timed("upstream"):
                    response = await ask(sent)
                return await self._guarded(request, response, inputs, ran, deadline=deadline, request_id=request_id)
            finally:
                ran.cancel()

    async def _guarded(
        self,
        request: pb.ModelInferRequest,
        response: pb.ModelInferResponse,
        inputs: ArraysByName,
        ran: Awaitable[Ran],
        *,
        deadline: float | None,
        request_id: str,
    ) -> pb.ModelInferResponse:
        if self.theirs is not None:
            response.model_name = self.name
        try:
            with self._stages.counted("upstream"):
                outputs = own_output(response, self._own)
            compared = self._is_compared(request)
            judge = partial(self._judge, inputs, outputs, await ran, compared=compared, request_id=request_id)
            answers, verdict = await self._turns.take(judge, deadline=deadline)
        except UnguardedError:
            if self._config.on_flag is OnFlag.SHADOW:
                return response
            if self._fail is Fail.CLOSED:
                raise
            self._metrics.count_unguarded(self.name)
            response.parameters["guard_failed"].bool_param = True
            return response
        return response if self._config.on_flag is OnFlag.SHADOW else self._told(request, response, answers, verdict)

    def _told(
        self, request: pb.ModelInferRequest, response: pb.ModelInferResponse, answers: Answers, verdict: Verdict
    ) -> pb.ModelInferResponse:
        mode, own = self._config.on_flag, self._own.name
        expose_scores = self._config.expose_scores
        tensors = dict(guard_tensors(answers.outputs, verdict, output=own, on_flag=mode, expose_scores=expose_scores))
        if mode is OnFlag.FLAG or not verdict.corrected.any():
            del tensors[own]  # theirs stays as it is, to the byte
        told = with_tensors(response, tensors, asked=_asked(request), withheld=self.withheld)
        told.parameters["guard_n_flagged"].int64_param = int(verdict.flagged.sum())
        return told

    def _decode(self, request: pb.ModelInferRequest) -> ArraysByName:
        inputs = decode_inputs(request, self._inputs)
        limit = self._config.limits.max_rows
        n = max(array.shape[0] if array.ndim else 0 for array in inputs.values())
        if n > limit:
            raise InputError(f"the request has {n} rows and the limit is {limit}; send fewer at a time")
        return check_inputs(inputs, self._inputs)

    def _is_compared(self, request: pb.ModelInferRequest) -> bool:
        return not is_plain(request) or next(self._n_plain) % _COMPARED_EVERY == 0

    def _judge(
        self, inputs: ArraysByName, outputs: FloatArray, ran: Ran, *, compared: bool, request_id: str
    ) -> tuple[Answers, Verdict]:
        expected = (n_rows(inputs), self._guard.manifest.n_classes)
        with self._stages.counted("upstream"):
            if outputs.shape != expected:
                raise ModelError(f"the upstream answers {self._own.name} {outputs.shape}, which should be {expected}")
        self._compare(inputs, outputs, ran, compared=compared)
        with self._stages.timed("judge"), self._stages.counted("judge"):
            answers, verdict = self._decide(inputs, outputs, ran)
        # Here and not once the caller has it: who hangs up early is counted too.
        self._metrics.count_verdict(self.name, verdict)
        self._monitor.update(verdict)
        self._tell(request_id, inputs, slice(None), verdict)
        return answers, verdict

    def _decide(self, inputs: ArraysByName, outputs: FloatArray, ran: Ran) -> tuple[Answers, Verdict]:
        observed = None if ran.original is None else ran.original.observed
        answers = self._guard.answers_from(inputs, outputs, observed=observed)
        if ran.bounded is None:
            return answers, self._guard.judge(inputs, answers)
        return answers, self._guard.decide(ModelRun(original=answers, bounded=ran.bounded))

    def _compare(self, inputs: ArraysByName, outputs: FloatArray, ran: Ran, *, compared: bool) -> None:
        original = ran.original
        if original is None and compared:
            with self._stages.timed("original"), self._stages.counted("original"):
                original = self._guard.run_original(inputs)
        if original is not None:
            is_probability = self._guard.manifest.output_kind == "probabilities"
            with self._stages.counted("upstream"):
                check_agreement(outputs, original.outputs, probabilities=is_probability)

    def _note_requests(self, n: int) -> None:
        self._n_requests = n
        self._load(n, self._n_waiting_rows)

    def _note_rows(self, n: int) -> None:
        self._n_waiting_rows = n
        self._load(self._n_requests, n)


def _asked(request: pb.ModelInferRequest) -> list[str]:
    return [output.name for output in request.outputs]


def _retrieve(ran: asyncio.Future[Ran]) -> None:
    """Keep asyncio from complaining of a failure that nobody waits for any more; it is counted and logged already."""
    if not ran.cancelled():
        ran.exception()
