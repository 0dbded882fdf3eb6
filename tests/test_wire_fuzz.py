"""Whatever bytes arrive: a refusal with a reason or the guard's own answer, and the server goes on."""

import json
import os
from collections import Counter
from pathlib import Path

import grpc
import pytest
from bundles import CLEAN
from servers import live, tensors, tiny_guard
from wire_fuzz import REFUSALS, Fuzzer

from serving.config import OnFlag, UpstreamSettings

STATE = Path("out/wire-fuzz.json")
"""Where a long run left off; delete it to start again."""


def test_malformed_requests_are_refused_or_answered_as_the_guard_answers_and_the_server_goes_on():
    with live() as server:
        fuzzer = Fuzzer(server, tiny_guard())
        statuses = Counter(fuzzer.send(seed) for seed in range(1500))
        assert tensors(server.infer(CLEAN))["y"] == CLEAN.tolist()
    assert statuses.keys() <= {grpc.StatusCode.OK, *REFUSALS}
    assert min(statuses[grpc.StatusCode.OK], statuses[grpc.StatusCode.INVALID_ARGUMENT]) > 300


def test_the_same_holds_in_front_of_another_server():
    with live(on_flag=OnFlag.SHADOW) as upstream:
        settings = UpstreamSettings(address=f"127.0.0.1:{upstream.running.port}")
        with live(upstream=settings) as server:
            fuzzer = Fuzzer(server, tiny_guard())
            statuses = Counter(fuzzer.send(seed) for seed in range(5000, 5700))
            assert tensors(server.infer(CLEAN))["y"] == CLEAN.tolist()
            assert server.sample("guard_failures_total", stage="upstream") == 0
    assert min(statuses[grpc.StatusCode.OK], statuses[grpc.StatusCode.INVALID_ARGUMENT]) > 100


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_hundred_thousand_malformed_requests_or_as_many_as_are_asked_for():
    state = json.loads(STATE.read_text()) if STATE.exists() else {"sent": 0, "statuses": {}}
    statuses, n_requests = Counter(state["statuses"]), int(os.environ.get("FUZZ_REQUESTS", "100000"))
    STATE.parent.mkdir(exist_ok=True)
    with live() as server:
        fuzzer = Fuzzer(server, tiny_guard())
        for seed in range(state["sent"], n_requests):
            statuses[fuzzer.send(seed).name] += 1
            if (seed + 1) % 1000 == 0 or seed + 1 == n_requests:
                STATE.write_text(json.dumps({"sent": seed + 1, "statuses": statuses}))
        assert tensors(server.infer(CLEAN))["y"] == CLEAN.tolist()
