"""One part fails at a time: no answer goes out unguarded, nobody waits for ever, and the server goes on.

Queues that are full, callers who leave, upstreams that die, bundles that are bad and disks that are full are in
test_serving_limits, test_batcher, test_upstream_failures, test_reload and test_audit.
"""

import threading
import time

import grpc
import numpy as np
import pytest
from bundles import CLEAN, CORRECTED, TRIGGERED
from servers import TIMEOUT_S, GatedModel, infer_request, live, tensors, tiny_guard, wait_for

from guard.errors import ModelError
from serving.config import Limits

Code = grpc.StatusCode
BOTH = np.concatenate([CLEAN, TRIGGERED])


class Failing(GatedModel):
    """The tiny model, whose runs go through a fault while it has one."""

    def __init__(self, *, cap=np.inf):
        super().__init__(cap=cap)
        self.fault = None

    def run(self, inputs, names):
        answers = super().run(inputs, names)
        return self.fault(answers) if self.fault else answers


def raises(error):
    def fault(_):
        raise error

    return fault


FAULTS = {
    "it fails to run": raises(ModelError("the model failed to run")),
    "memory runs out": raises(MemoryError()),
    "an error nobody thought of": raises(ZeroDivisionError("secret words")),
    "its thread is ended": raises(SystemExit(1)),
    "NaN": lambda answers: tuple(np.full_like(a, np.nan) for a in answers),
    "infinity": lambda answers: tuple(np.full_like(a, np.inf) for a in answers),
    "a row too few": lambda answers: tuple(a[1:] for a in answers),
    "a class too many": lambda answers: tuple(np.pad(a, ((0, 0), (0, 1))) for a in answers),
    "whole numbers": lambda answers: tuple(a.astype(np.int64) for a in answers),
}


def check_healthy(server):
    """Check that the server answers as the guard does, and that nothing is left of earlier requests."""
    assert tensors(server.infer(BOTH))["y"] == np.concatenate([CLEAN, CORRECTED]).tolist()
    wait_for(lambda: server.sample("guard_requests_in_flight") == 0)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("part", ["original", "bounded"])
def test_a_model_that_fails_lets_nothing_through_and_is_used_again_once_it_works(part, fault):
    models = {"original": Failing(), "bounded": Failing(cap=4)}
    with live(tiny_guard(**models)) as server:
        check_healthy(server)
        models[part].fault = FAULTS[fault]
        if part == "original" and fault in ("NaN", "infinity"):
            # What the original cannot answer is flagged, and the bounded model answers.
            assert tensors(server.infer(BOTH))["guard_flagged"] == [True, True]
        else:
            code, words = server.refuses(infer_request(BOTH))
            assert (code, "secret" in words) == (Code.INTERNAL, False)
        models[part].fault = None
        check_healthy(server)


@pytest.mark.parametrize("part", ["original", "bounded"])
def test_a_model_that_hangs_keeps_nobody_past_their_deadline_and_serves_once_it_goes_on(part):
    models = {"original": Failing(), "bounded": Failing(cap=4)}
    with live(tiny_guard(**models), limits=Limits(max_queue_rows=4, grace_s=5)) as server:
        check_healthy(server)
        models[part].open.clear()
        calls = [server.rpc("ModelInfer").future(infer_request(CLEAN), timeout=1.5) for _ in range(12)]
        codes = [call.code() for call in calls]
        assert set(codes) == {Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE}
        models[part].open.set()
        check_healthy(server)


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0])
def test_a_clock_that_jumps_answers_or_refuses_but_never_holds_anybody(jump_s):
    ahead = [0.0]
    model = Failing()
    with live(tiny_guard(original=model), clock=lambda: time.monotonic() + ahead[0]) as server:
        check_healthy(server)
        model.open.clear()
        running, waiting = (server.rpc("ModelInfer").future(infer_request(CLEAN), timeout=TIMEOUT_S) for _ in range(2))
        assert model.started.acquire(timeout=TIMEOUT_S)
        ahead[0] = jump_s
        model.open.set()
        assert {running.code(), waiting.code()} <= {Code.OK, Code.DEADLINE_EXCEEDED}
        check_healthy(server)


def test_threads_end_with_the_server_whatever_failed():
    before = threading.active_count()
    models = {"original": Failing(), "bounded": Failing(cap=4)}
    with live(tiny_guard(**models)) as server:
        for fault in FAULTS.values():
            models["bounded"].fault = fault
            server.refuses(infer_request(BOTH))
    wait_for(lambda: threading.active_count() <= before)
