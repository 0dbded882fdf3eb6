"""Limits hold, cancelled callers stall nobody, and a server that is told to stop finishes what it began."""

import asyncio
import threading
import time

import grpc
import numpy as np
import pytest
from bundles import CLEAN, tiny_bundle
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from servers import TIMEOUT_S, GatedModel, infer_request, live, tensors, tiny_guard, wait_for

from guard import Guard
from serving.config import Limits, OnFlag, ServerConfig
from serving.errors import StartError
from serving.server import serve

Code = grpc.StatusCode


@pytest.fixture
def gate():
    model = GatedModel()
    model.open.clear()
    yield model
    model.open.set()


def later(server, rows=CLEAN, timeout=TIMEOUT_S):
    """Return the future of a request."""
    return server.rpc("ModelInfer").future(infer_request(rows), timeout=timeout)


def in_flight(server, n):
    wait_for(lambda: server.sample("guard_requests_in_flight") == n)


def test_a_cancelled_call_stalls_nobody_and_gives_its_place_back(gate):
    with live(tiny_guard(original=gate)) as server:
        running = later(server)
        assert gate.started.acquire(timeout=TIMEOUT_S)
        waiting, cancelled = later(server), later(server, np.zeros((7, 3)))
        in_flight(server, 3)
        cancelled.cancel()
        running.cancel()
        in_flight(server, 2)
        gate.open.set()
        assert tensors(waiting.result())["y"] == CLEAN.tolist()
        in_flight(server, 0)
        assert gate.rows_run == [1, 1]
        assert server.sample("guard_requests_total", status="CANCELLED") == 2


def test_a_request_past_its_deadline_is_not_run(gate):
    with live(tiny_guard(original=gate)) as server:
        running = later(server)
        assert gate.started.acquire(timeout=TIMEOUT_S)
        late = later(server, np.zeros((7, 3)), timeout=0.2)
        assert late.exception().code() == Code.DEADLINE_EXCEEDED
        in_flight(server, 1)
        gate.open.set()
        running.result()
        assert gate.rows_run == [1]
        assert server.sample("guard_requests_total", status="DEADLINE_EXCEEDED") == 1


def test_more_rows_than_may_wait_are_refused_at_once(gate):
    with live(tiny_guard(original=gate), limits=Limits(max_queue_rows=3)) as server:
        running = later(server)
        assert gate.started.acquire(timeout=TIMEOUT_S)
        waiting = later(server, np.repeat(CLEAN, 2, axis=0))
        in_flight(server, 2)
        code, words = server.refuses(infer_request(np.repeat(CLEAN, 2, axis=0)))
        assert code == Code.UNAVAILABLE
        assert "2 rows wait and the limit is 3" in words
        assert server.sample("guard_queue_rows") == 2
        gate.open.set()
        assert tensors(running.result())["y"] == CLEAN.tolist()
        assert tensors(waiting.result())["y"] == CLEAN.tolist() * 2


def test_many_callers_at_once_each_get_their_own_rows():
    rows = [np.full((1 + i % 3, 3), i, dtype=np.float32) for i in range(48)]
    with live(on_flag=OnFlag.FLAG) as server:
        futures = [later(server, r) for r in rows]
        answers = [tensors(f.result())["y"] for f in futures]
    assert answers == [r.tolist() for r in rows]


def test_a_message_beyond_the_limit_is_refused_with_the_limit_and_the_next_one_answered():
    with live(limits=Limits(max_message_bytes=2000)) as server:
        code, words = server.refuses(infer_request(np.zeros((1000, 3))))
        assert code == Code.RESOURCE_EXHAUSTED
        assert "2000" in words
        assert tensors(server.infer(CLEAN))["y"] == CLEAN.tolist()


def test_rows_beyond_the_limit_are_refused_with_both_numbers():
    with live(limits=Limits(max_rows=4)) as server:
        code, words = server.refuses(infer_request(np.zeros((5, 3))))
        assert (code, "5 rows and the limit is 4" in words) == (Code.INVALID_ARGUMENT, True)
        server.infer(np.zeros((4, 3)))


def test_a_draining_server_finishes_its_work_refuses_more_and_says_so(gate):
    with live(tiny_guard(original=gate)) as server:
        begun = later(server)
        assert gate.started.acquire(timeout=TIMEOUT_S)
        server.stop.set()
        health = health_pb2_grpc.HealthStub(server.channel)
        not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
        wait_for(lambda: health.Check(health_pb2.HealthCheckRequest(service="tiny")).status == not_serving)
        code, words = server.refuses(infer_request(CLEAN))
        assert (code, "stopping" in words) == (Code.UNAVAILABLE, True)
        assert not server.call("ServerReady").ready
        gate.open.set()
        assert tensors(begun.result())["y"] == CLEAN.tolist()


def test_a_drain_ends_with_its_grace_even_if_a_request_does_not(gate):
    with live(tiny_guard(original=gate), limits=Limits(grace_s=0.2)) as server:
        stuck = later(server)
        assert gate.started.acquire(timeout=TIMEOUT_S)
        server.stop.set()
        assert stuck.exception(timeout=TIMEOUT_S).code() in (Code.CANCELLED, Code.UNAVAILABLE)
        gate.open.set()


def test_an_open_stream_does_not_hold_up_the_drain_of_an_idle_server():
    done, began = threading.Event(), 0.0
    try:
        with live(limits=Limits(grace_s=TIMEOUT_S)) as server:
            answers = reflection_pb2_grpc.ServerReflectionStub(server.channel).ServerReflectionInfo(questions(done))
            assert next(answers).list_services_response.service
            began = time.monotonic()
            server.stop.set()
            assert answers.exception(timeout=TIMEOUT_S).code() in (Code.CANCELLED, Code.UNAVAILABLE)
        assert time.monotonic() - began < TIMEOUT_S / 4
    finally:
        done.set()


def questions(done):
    """Ask one thing and leave the stream open."""
    yield reflection_pb2.ServerReflectionRequest(list_services="")
    done.wait(TIMEOUT_S)


def test_inputs_are_decoded_by_a_worker_and_only_if_the_request_is_admitted(gate):
    broken = infer_request(CLEAN)
    broken.raw_input_contents[0] += b"!"
    with live(tiny_guard(original=gate), limits=Limits(max_queue_rows=1)) as server:
        running = [later(server)]
        assert gate.started.acquire(timeout=TIMEOUT_S)
        running.append(later(server))
        in_flight(server, 2)
        assert server.refuses(broken)[0] == Code.UNAVAILABLE
        gate.open.set()
        assert [f.result().model_name for f in running] == ["tiny", "tiny"]
        in_flight(server, 0)
        assert server.refuses(broken)[0] == Code.INVALID_ARGUMENT


@pytest.mark.parametrize("taken", ["port", "metrics_port"])
def test_a_taken_port_is_an_error_that_names_it(tmp_path, taken):
    guard = Guard.load(tiny_bundle(tmp_path), threads=1)

    async def second(port):
        settings = {"port": 0, "metrics_port": 0, taken: port}
        async with serve(guard, ServerConfig(**settings)):
            pytest.fail("two servers share a port")

    with live() as server:
        port = getattr(server.running, taken)
        with pytest.raises(StartError, match=f"127.0.0.1:{port}: Address already in use; choose another --"):
            asyncio.run(second(port))
