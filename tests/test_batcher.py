"""Requests share runs, and nobody can tell: exact slices, own failures, deadlines, cancels, limits, in any order."""

import asyncio
import sys
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import TIMEOUT_S

from guard.errors import InputError, ModelError
from serving.batcher import Batcher
from serving.errors import DeadlineError, FlaggedError, OverloadedError


class Doubler:
    """A model in numpy, y = 2 x, whose runs wait for a permit; it fails when told to or at 13, and never answers -1."""

    def __init__(self):
        self.permits, self.started = threading.Semaphore(0), threading.Semaphore(0)
        self.runs, self.failed, self.broken = [], [], False

    def __call__(self, arrays):
        self.started.release()
        assert self.permits.acquire(timeout=TIMEOUT_S)
        if self.broken or (arrays["x"] == 13).any():
            self.failed += arrays["x"][:, 0].tolist()
            raise ModelError("broken")
        self.runs.append(arrays["x"][:, 0].tolist())
        doubled = arrays["x"] * 2

        def answer(rows, _):
            if (doubled[rows] == -2).any():
                raise FlaggedError("no")
            return doubled[rows].tolist()

        return answer


@dataclass
class Scene:
    """A batcher, its model and a clock that only moves by hand."""

    model: Doubler = field(default_factory=Doubler)
    now: float = 0.0
    loads: list = field(default_factory=list)

    def batcher(self, **limits):
        limits = {"max_batch_rows": 4, "max_queue_rows": 8, **limits}
        return Batcher(self.model, clock=lambda: self.now, on_change=lambda *load: self.loads.append(load), **limits)

    async def let_run(self, n=1):
        """Let the model run and wait until its answers are out."""
        for _ in range(n):
            self.model.permits.release()
        await self.begun(n)

    async def begun(self, n=1):
        for _ in range(n):
            assert await asyncio.to_thread(self.model.started.acquire, timeout=TIMEOUT_S)


def rows(*values, width=2, dtype=np.float32):
    return {"x": np.repeat(np.array(values, dtype)[:, None], width, axis=1)}


def doubled(*values, width=2):
    return [[2 * v] * width for v in values]


async def send(batcher, *values, width=2, dtype=np.float32, **kwargs):
    """Submit rows and return the task, once it waits or runs."""
    arrays = rows(*values, width=width, dtype=dtype)
    kwargs = {"n_rows": len(values), "layout": (width, dtype), "decode": lambda: arrays, **kwargs}
    task = asyncio.create_task(batcher.submit(**kwargs))
    await asyncio.sleep(0)
    return task


def play(scene):
    """Run a test that is a coroutine, bounded in time."""
    asyncio.run(asyncio.wait_for(scene, TIMEOUT_S))


async def values(*tasks):
    return [(await task).value for task in tasks]


def test_requests_that_wait_share_one_run_and_each_gets_its_own_rows():
    async def main():
        scene = Scene()
        batcher = scene.batcher()
        first = await send(batcher, 0)
        others = [await send(batcher, 1, 2), await send(batcher, 3), await send(batcher, 4)]
        scene.model.permits.release(2)
        assert await values(first, *others) == [doubled(0), doubled(1, 2), doubled(3), doubled(4)]
        assert scene.model.runs == [[0], [1, 2, 3, 4]]
        assert [(await task).leads for task in (first, *others)] == [True, True, False, False]
        await batcher.close()

    play(main())


def test_no_run_has_more_rows_than_the_limit_but_for_one_request_that_has():
    async def main():
        scene = Scene()
        batcher = scene.batcher()
        tasks = [await send(batcher, *v) for v in ((0,), (1, 2, 3), (4, 5), (6, 7, 8, 9, 10)[:3])]
        scene.model.permits.release(9)
        await values(*tasks)
        tasks = [await send(batcher, *range(6))]
        await values(*tasks)
        assert scene.model.runs == [[0], [1, 2, 3], [4, 5], [6, 7, 8], [0, 1, 2, 3, 4, 5]]
        await batcher.close()

    play(main())


@pytest.mark.parametrize("told", [True, False])
def test_what_cannot_be_joined_runs_apart_whether_or_not_the_caller_says_so(told):
    async def main():
        scene = Scene()
        batcher = scene.batcher(max_batch_rows=8)
        kwargs = {} if told else {"layout": None}
        tasks = [await send(batcher, 0)]
        for value, width, dtype in ((1, 2, np.float32), (2, 3, np.float32), (3, 2, np.float32), (4, 2, np.float64)):
            tasks.append(await send(batcher, value, width=width, dtype=dtype, **kwargs))
        scene.model.permits.release(4)
        widths = (2, 2, 3, 2, 2)
        assert await values(*tasks) == [doubled(v, width=w) for v, w in enumerate(widths)]
        assert scene.model.runs == [[0], [1, 3], [2], [4]]
        await batcher.close()

    play(main())


def test_a_request_that_cannot_be_decoded_or_lies_about_its_rows_fails_alone():
    async def main():
        scene = Scene()
        batcher = scene.batcher(max_batch_rows=8)
        tasks = [await send(batcher, 0), await send(batcher, 1)]
        tasks.append(await send(batcher, 2, decode=lambda: (_ for _ in ()).throw(InputError("odd"))))
        tasks.append(await send(batcher, 3, n_rows=2))
        tasks.append(await send(batcher, 4, decode=lambda: next(iter(()))))
        tasks.append(await send(batcher, 5))
        scene.model.permits.release(2)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [o.value for o in outcomes if not isinstance(o, Exception)] == [doubled(0), doubled(1), doubled(5)]
        assert [type(o) for o in outcomes[2:5]] == [InputError, InputError, RuntimeError]
        assert "said to have 2 rows" in str(outcomes[3])
        await batcher.close()

    play(main())


def test_an_answer_that_is_refused_is_refused_to_its_own_caller_alone():
    async def main():
        scene = Scene()
        batcher = scene.batcher()
        tasks = [await send(batcher, 0), await send(batcher, 1), await send(batcher, -1), await send(batcher, 2)]
        scene.model.permits.release(2)
        assert await values(tasks[0], tasks[1], tasks[3]) == [doubled(0), doubled(1), doubled(2)]
        with pytest.raises(FlaggedError):
            await tasks[2]
        await batcher.close()

    play(main())


def test_a_run_that_fails_fails_all_its_requests_and_the_next_one_is_answered():
    async def main():
        scene = Scene()
        batcher = scene.batcher()
        tasks = [await send(batcher, 0), await send(batcher, 1), await send(batcher, 2)]
        await scene.let_run()
        await tasks[0]
        await scene.begun()
        scene.model.broken = True
        scene.model.permits.release(3)
        assert [type(e) for e in await asyncio.gather(*tasks[1:], return_exceptions=True)] == [ModelError] * 2
        assert scene.model.failed == [1, 2, 1, 2]
        scene.model.broken = False
        scene.model.permits.release()
        assert await values(await send(batcher, 3)) == [doubled(3)]
        assert scene.model.runs == [[0], [3]]
        await batcher.close()

    play(main())


def test_a_request_that_no_model_can_run_fails_alone():
    async def main():
        scene = Scene()
        batcher = scene.batcher()
        tasks = [await send(batcher, value) for value in (0, 1, 13, 2, 3)]
        scene.model.permits.release(9)
        first, second, bad, *others = await asyncio.gather(*tasks, return_exceptions=True)
        assert [o.value for o in (first, second, *others)] == [doubled(v) for v in (0, 1, 2, 3)]
        assert type(bad) is ModelError
        assert scene.model.runs == [[0], [1], [2, 3]]
        await batcher.close()

    play(main())


def test_a_run_that_ends_its_thread_leaves_nobody_waiting():
    async def main():
        batcher = Batcher(lambda _: sys.exit(1), max_batch_rows=4, max_queue_rows=4)
        with pytest.raises(ModelError, match="broken off: SystemExit"):
            await (await send(batcher, 1))
        await batcher.drain(TIMEOUT_S)
        await batcher.close()

    play(main())


def test_a_request_whose_turn_comes_too_late_is_not_run():
    async def main():
        scene = Scene()
        batcher = scene.batcher()
        tasks = [await send(batcher, 0), await send(batcher, 1, deadline=1000.0), await send(batcher, 2)]
        scene.now = 1000.0
        scene.model.permits.release(2)
        assert await values(tasks[0], tasks[2]) == [doubled(0), doubled(2)]
        with pytest.raises(DeadlineError, match="was not run"):
            await tasks[1]
        assert scene.model.runs == [[0], [2]]
        await batcher.close()

    play(main())


def test_a_caller_who_leaves_the_queue_gives_up_the_place_at_once_and_is_not_run():
    async def main():
        scene = Scene()
        batcher = scene.batcher(max_queue_rows=3)
        tasks = [await send(batcher, v) for v in range(4)]
        tasks[2].cancel()
        await asyncio.sleep(0)
        assert scene.loads[-1] == (3, 2)
        tasks.append(await send(batcher, 4))
        tasks[0].cancel()
        await asyncio.sleep(0)
        assert scene.loads[-1] == (4, 3)
        scene.model.permits.release(2)
        assert await values(tasks[1], *tasks[3:]) == [doubled(1), doubled(3), doubled(4)]
        assert scene.model.runs == [[0], [1, 3, 4]]
        await batcher.close()

    play(main())


def test_requests_of_one_layout_fill_a_batch_past_those_of_another():
    async def main():
        scene = Scene()
        batcher = scene.batcher(max_batch_rows=2)
        tasks = [await send(batcher, value, width=2 + value % 2) for value in range(5)]
        scene.model.permits.release(3)
        await values(*tasks)
        assert scene.model.runs == [[0], [1, 3], [2, 4]]
        await batcher.close()

    play(main())


def test_a_deadline_that_passes_in_the_queue_is_told_at_once_even_while_the_model_hangs():
    async def main():
        scene = Scene()
        batcher = scene.batcher()
        first = await send(batcher, 0)
        with pytest.raises(DeadlineError, match="was not run"):
            await (await send(batcher, 1, deadline=0.01))
        assert scene.loads[-1] == (1, 0)
        scene.model.permits.release()
        assert await values(first) == [doubled(0)]
        await batcher.close()

    play(main())


def test_a_queue_takes_so_many_rows_and_when_empty_any_request():
    async def main():
        scene = Scene()
        batcher = scene.batcher(max_queue_rows=3)
        running, waiting = await send(batcher, 0), await send(batcher, 1, 2)
        with pytest.raises(OverloadedError, match="2 rows wait and the limit is 3"):
            await (await send(batcher, 3, 4))
        claims_none = await send(batcher, 5, n_rows=0)
        with pytest.raises(OverloadedError):
            await (await send(batcher, n_rows=0))
        scene.model.permits.release(3)
        assert await values(running, waiting) == [doubled(0), doubled(1, 2)]
        assert isinstance((await asyncio.gather(claims_none, return_exceptions=True))[0], InputError)
        running, waiting = await send(batcher, 0), await send(batcher, *range(9))
        scene.model.permits.release(2)
        assert await values(waiting) == [doubled(*range(9))]
        await batcher.close()

    play(main())


def test_a_delay_lets_a_batch_fill_and_a_full_batch_waits_no_longer():
    async def main():
        scene = Scene()
        batcher = scene.batcher(max_queue_delay_s=1000.0)
        scene.model.permits.release(2)
        tasks = [await send(batcher, v) for v in range(3)]
        await asyncio.sleep(0.01)
        assert scene.model.runs == []
        tasks.append(await send(batcher, 3))
        assert await values(*tasks) == [doubled(v) for v in range(4)]
        assert scene.model.runs == [[0, 1, 2, 3]]
        last = await send(batcher, 4)
        await batcher.drain(TIMEOUT_S)
        assert await values(last) == [doubled(4)]
        await batcher.close()

    play(main())


def test_a_delay_ends_by_itself():
    async def main():
        scene = Scene()
        batcher = Batcher(scene.model, max_batch_rows=4, max_queue_rows=4, max_queue_delay_s=0.01)
        scene.model.permits.release()
        assert await values(await send(batcher, 1), await send(batcher, 2)) == [doubled(1), doubled(2)]
        assert scene.model.runs == [[1, 2]]
        await batcher.close()

    play(main())


def test_two_workers_run_two_batches_at_once():
    async def main():
        scene = Scene()
        batcher = scene.batcher(n_workers=2)
        tasks = [await send(batcher, v) for v in range(4)]
        await scene.begun(2)
        scene.model.permits.release(3)
        assert await values(*tasks) == [doubled(v) for v in range(4)]
        assert sorted(map(sorted, scene.model.runs)) == [[0], [1], [2, 3]]
        await batcher.close()

    play(main())


def test_closing_lets_nobody_wait_for_ever():
    async def main():
        scene = Scene()
        batcher = scene.batcher()
        running, waiting = await send(batcher, 0), await send(batcher, 1)
        await batcher.drain(0.01)
        assert batcher.stopping
        with pytest.raises(OverloadedError, match="stopping"):
            await (await send(batcher, 2))
        scene.model.permits.release()
        await batcher.close()
        with pytest.raises(OverloadedError, match="stopping"):
            await waiting
        assert await values(running) == [doubled(0)]

    play(main())


@dataclass(frozen=True)
class Sent:
    """A request of a schedule: how many rows, how wide, what is wrong with it, and when its time is up."""

    n_rows: int
    width: int
    fault: str
    patience: float


SENT = st.builds(
    Sent,
    n_rows=st.integers(1, 6),
    width=st.sampled_from([2, 2, 2, 3]),
    fault=st.sampled_from(["none"] * 6 + ["decode", "refused"]),
    patience=st.sampled_from([1e9, 1e9, 500.0, 3000.0]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), SENT),
        st.tuples(st.just("send"), SENT),
        st.tuples(st.just("run"), st.sampled_from([True, True, True, False])),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("wait"), st.sampled_from([1000.0, 4000.0])),
    ),
    max_size=30,
)


class Schedule:
    """Plays steps against a batcher and keeps what each request must come to."""

    def __init__(self):
        self.scene = Scene()
        self.batcher = self.scene.batcher(max_batch_rows=5, max_queue_rows=12)
        self.tasks, self.sent, self.cancelled, self.deadlines, self.crowds = [], [], set(), [], []

    async def step(self, name, what):
        await getattr(self, name)(what)
        await asyncio.sleep(0)

    async def send(self, sent):
        own = [100.0 * len(self.tasks) + i for i in range(sent.n_rows)]
        decode = {"decode": lambda: (_ for _ in ()).throw(InputError("odd"))} if sent.fault == "decode" else {}
        if sent.fault == "refused":
            own[-1] = -1.0
        self.crowds.append(self.scene.loads[-1][1] if self.scene.loads else 0)
        deadline = self.scene.now + sent.patience
        self.tasks.append(await send(self.batcher, *own, width=sent.width, deadline=deadline, **decode))
        self.sent.append((own, sent))
        self.deadlines.append(deadline)

    async def cancel(self, index):
        if index < len(self.tasks) and self.tasks[index].cancel():
            self.cancelled.add(index)

    async def wait(self, seconds):
        self.scene.now += seconds

    async def run(self, sound):
        """Let one run end, if one has begun."""
        if not self.scene.model.started.acquire(timeout=0.02):
            return
        self.scene.model.broken = not sound
        n_done = sum(task.done() for task in self.tasks)
        self.scene.model.permits.release()
        end = asyncio.get_running_loop().time() + 0.05
        while asyncio.get_running_loop().time() < end and sum(task.done() for task in self.tasks) == n_done:
            await asyncio.sleep(0.001)

    async def play(self, steps):
        for name, what in steps:
            await self.step(name, what)
        self.scene.model.broken = False
        self.scene.model.permits.release(1000)
        await self.batcher.drain(TIMEOUT_S)
        outcomes = await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.batcher.close()
        return outcomes

    def check(self, index, outcome):
        own, sent = self.sent[index]
        if isinstance(outcome, asyncio.CancelledError):
            assert index in self.cancelled
        elif isinstance(outcome, InputError):
            assert sent.fault == "decode"
        elif isinstance(outcome, FlaggedError):
            assert sent.fault == "refused"
        elif isinstance(outcome, DeadlineError):
            assert self.scene.now >= self.deadlines[index]
        elif isinstance(outcome, OverloadedError):
            assert self.crowds[index] + sent.n_rows > 12
        elif isinstance(outcome, ModelError):
            assert own[0] in self.scene.model.failed
        else:
            assert sent.fault == "none"
            assert outcome.started < self.deadlines[index]
            assert outcome.value == doubled(*own, width=sent.width)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_whatever_happens_everybody_gets_their_own_answer_or_a_reason_that_is_theirs(steps):
    schedule = Schedule()
    outcomes = asyncio.run(asyncio.wait_for(schedule.play(steps), TIMEOUT_S))
    for index, outcome in enumerate(outcomes):
        schedule.check(index, outcome)
    lengths = {own[0]: len(own) for own, _ in schedule.sent}
    for run in schedule.scene.model.runs:
        assert len(run) <= 5 or lengths[run[0]] == len(run)
    assert not schedule.scene.loads or schedule.scene.loads[-1] == (0, 0)
