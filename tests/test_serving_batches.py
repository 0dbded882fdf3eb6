"""Clients that share a run through a real server: each gets its own rows, its own refusal, and the counts add up."""

import grpc
import numpy as np
import pytest
from bundles import CLEAN, CORRECTED, TRIGGERED
from servers import TIMEOUT_S, GatedModel, infer_request, live, tensors, tiny_guard, wait_for

from guard.errors import ModelError
from serving.config import Limits, OnFlag

Code = grpc.StatusCode


@pytest.fixture
def gate():
    model = GatedModel()
    yield model
    model.open.set()


class Crowd:
    """Requests that have to share one run, as the run before them is held up until all have arrived."""

    def __init__(self, server, gate):
        self.server, self.gate, self.sent = server, gate, []
        gate.open.clear()
        self.ahead = self.send(CLEAN)
        assert gate.started.acquire(timeout=TIMEOUT_S)

    def send(self, rows, **fields):
        future = self.server.rpc("ModelInfer").future(infer_request(rows, **fields), timeout=TIMEOUT_S)
        self.sent.append(future)
        return future

    def go(self):
        wait_for(lambda: self.server.sample("guard_requests_in_flight") == len(self.sent))
        self.gate.open.set()


def status(future):
    return future.exception(timeout=TIMEOUT_S).code()


def test_requests_that_wait_together_run_together_and_are_answered_apart(gate):
    with live(tiny_guard(original=gate)) as server:
        crowd = Crowd(server, gate)
        mixed, clean, triggered = (
            crowd.send(rows) for rows in (np.concatenate([CLEAN, TRIGGERED]), CLEAN / 2, TRIGGERED)
        )
        crowd.go()
        assert tensors(mixed.result())["y"] == [*CLEAN.tolist(), *CORRECTED.tolist()]
        assert tensors(clean.result())["guard_flagged"] == [False]
        assert tensors(triggered.result())["guard_corrected_class"] == [1]
        assert [f.result().parameters["guard_n_flagged"].int64_param for f in (mixed, clean, triggered)] == [1, 0, 1]
        assert gate.rows_run == [1, 4]
        (stats,) = server.call("ModelStatistics").model_stats
        assert (stats.execution_count, stats.inference_count, stats.inference_stats.success.count) == (2, 5, 4)
        assert server.sample("guard_batch_rows_sum") == 5


def test_a_rejected_request_rejects_no_neighbour(gate):
    with live(tiny_guard(original=gate), on_flag=OnFlag.REJECT) as server:
        crowd = Crowd(server, gate)
        clean, rejected = crowd.send(CLEAN), crowd.send(np.concatenate([CLEAN, TRIGGERED]))
        crowd.go()
        assert tensors(clean.result())["guard_flagged"] == [False]
        assert status(rejected) == Code.FAILED_PRECONDITION
        assert "1 of 2 rows as triggered: row 1" in rejected.exception().details()
        assert gate.rows_run == [1, 3]


def test_a_bad_request_is_told_of_its_own_rows_and_fails_no_neighbour(gate):
    cut_short = infer_request(CLEAN)
    cut_short.inputs[0].shape[0] = 2
    with live(tiny_guard(original=gate)) as server:
        crowd = Crowd(server, gate)
        clean, not_finite = crowd.send(CLEAN), crowd.send(np.concatenate([CLEAN, CLEAN * np.nan]))
        broken = server.rpc("ModelInfer").future(cut_short, timeout=TIMEOUT_S)
        crowd.sent.append(broken)
        crowd.go()
        assert tensors(clean.result())["y"] == CLEAN.tolist()
        assert status(not_finite) == status(broken) == Code.INVALID_ARGUMENT
        assert "1 of 2 rows, the first is row 1" in not_finite.exception().details()
        assert gate.rows_run == [1, 1]


@pytest.mark.parametrize("mode", OnFlag)
def test_a_guard_that_fails_lets_nobody_of_the_run_through_but_in_the_shadow(gate, mode):
    guard = tiny_guard(original=gate, bounded=GatedModel(error=ModelError("broken")))
    with live(guard, on_flag=mode) as server:
        crowd = Crowd(server, gate)
        others = [crowd.send(CLEAN), crowd.send(CLEAN / 2)]
        crowd.go()
        if mode is OnFlag.SHADOW:
            assert [tensors(f.result())["y"] for f in others] == [CLEAN.tolist(), (CLEAN / 2).tolist()]
        else:
            assert [status(f) for f in others] == [Code.INTERNAL] * 2
        apart = [] if mode is OnFlag.SHADOW else [1, 1]
        assert gate.rows_run == [1, 2, *apart]
        assert server.sample("guard_failures_total", stage="judge") == 2 + len(apart)


def test_a_caller_who_hangs_up_during_a_shared_run_takes_nobody_along(gate):
    with live(tiny_guard(original=gate), limits=Limits(max_batch_rows=2)) as server:
        crowd = Crowd(server, gate)
        crowd.ahead.cancel()
        stays, leaves = crowd.send(CLEAN), crowd.send(CLEAN / 2)
        wait_for(lambda: server.sample("guard_requests_in_flight") == 3)
        leaves.cancel()
        wait_for(lambda: server.sample("guard_requests_in_flight") == 2)
        gate.open.set()
        assert tensors(stays.result())["y"] == CLEAN.tolist()
        assert gate.rows_run == [1, 1]


def test_as_many_batches_run_at_once_as_there_are_workers(gate):
    with live(tiny_guard(original=gate), n_workers=2) as server:
        crowd = Crowd(server, gate)
        beside = crowd.send(TRIGGERED)
        assert gate.started.acquire(timeout=TIMEOUT_S)
        crowd.go()
        assert tensors(crowd.ahead.result())["y"] == CLEAN.tolist()
        assert tensors(beside.result())["guard_flagged"] == [True]


def test_too_many_rows_are_refused_by_their_claim_before_they_wait(gate):
    huge = infer_request(CLEAN)
    huge.inputs[0].shape[0] = 10**15
    with live(tiny_guard(original=gate)) as server:
        crowd = Crowd(server, gate)
        code, words = server.refuses(huge)
        assert (code, "1000000000000000 rows and the limit is 1024" in words) == (Code.INVALID_ARGUMENT, True)
        crowd.go()
