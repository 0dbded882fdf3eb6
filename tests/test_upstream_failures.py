"""What goes wrong in front of another server, on its side and on the guard's, and what clients get then."""

from dataclasses import replace

import grpc
import numpy as np
import pytest
from bundles import CLEAN, TRIGGERED
from detectors import detecting_bundle
from grpc_health.v1 import health_pb2, health_pb2_grpc
from servers import TIMEOUT_S, GatedModel, infer_request, live, tensors, tiny_guard, wait_for
from upstreams import Plain, plain, relu

from guard import Guard
from guard.errors import ModelError
from serving._pb import open_inference_pb2 as pb
from serving.agreement import check_agreement
from serving.config import Fail, Limits, OnFlag

MIXED = np.concatenate([CLEAN, TRIGGERED])
AWAY = "the upstream cannot be reached; try again later"
Code = grpc.StatusCode


def broken(error=None):
    return tiny_guard(bounded=GatedModel(error=error or ModelError("secret")))


def answers(server):
    """Return whether a request is answered, or else is refused as it should be while the upstream is away."""
    error = server.rpc("ModelInfer").future(infer_request(CLEAN), timeout=TIMEOUT_S).exception()
    assert error is None or error.code() == Code.UNAVAILABLE
    return error is None


def test_an_upstream_that_is_not_there_is_unavailable_and_found_when_it_comes():
    with plain() as gone:
        pass
    with live(upstream=gone.settings) as server:
        assert server.refuses(infer_request(CLEAN)) == (Code.UNAVAILABLE, AWAY)
        assert not server.call("ServerReady").ready
        assert not server.call("ModelReady", pb.ModelReadyRequest(name="tiny")).ready
        assert server.call("ServerLive").live
        with plain(gone):
            wait_for(lambda: answers(server))
            assert server.call("ServerReady").ready
            assert server.call("ModelReady", pb.ModelReadyRequest(name="tiny")).ready
        assert server.sample("guard_failures_total", stage="upstream") == 0
        assert server.sample("guard_requests_total", status="UNAVAILABLE") >= 1


def test_an_upstream_that_dies_within_a_request_loses_that_one_and_no_other():
    upstream = Plain()
    with live(upstream=start_elsewhere(upstream)) as server:
        with plain(upstream):
            wait_for(lambda: answers(server))
            upstream.open.clear()
            lost = server.rpc("ModelInfer").future(infer_request(CLEAN), timeout=TIMEOUT_S)
            wait_for(lambda: len(upstream.requests()) == 2)
        assert lost.exception().code() in (Code.UNAVAILABLE, Code.CANCELLED)
        assert not answers(server)
        with plain(upstream):
            wait_for(lambda: answers(server))
        wait_for(lambda: server.sample("guard_requests_in_flight") == 0)


def start_elsewhere(upstream):
    """Find the upstream a port, and return where it will be."""
    with plain(upstream):
        return upstream.settings


def test_an_upstream_that_is_not_ready_makes_the_front_unready():
    with plain(ready=False) as upstream, live(upstream=upstream.settings) as server:
        assert not server.call("ServerReady").ready
        upstream.ready = True
        assert server.call("ServerReady").ready


def test_a_client_that_hangs_up_ends_the_upstreams_call_too():
    with plain() as upstream, live(upstream=upstream.settings) as server:
        upstream.open.clear()
        call = server.rpc("ModelInfer").future(infer_request(CLEAN), timeout=TIMEOUT_S)
        assert upstream.began.acquire(timeout=TIMEOUT_S)
        call.cancel()
        assert upstream.ended.wait(TIMEOUT_S)
        wait_for(lambda: server.sample("guard_requests_in_flight") == 0)
        assert server.sample("guard_requests_total", status="CANCELLED") == 1
        upstream.open.set()
        server.infer(CLEAN)


def test_a_deadline_ends_a_call_that_the_upstream_does_not_answer():
    with plain() as upstream, live(upstream=upstream.settings) as server:
        upstream.open.clear()
        call = server.rpc("ModelInfer").future(infer_request(CLEAN), timeout=0.5)
        assert call.exception().code() == Code.DEADLINE_EXCEEDED
        wait_for(lambda: server.sample("guard_requests_total", status="DEADLINE_EXCEEDED") == 1)
        assert server.sample("guard_requests_in_flight") == 0


def test_requests_that_wait_for_the_upstream_count_against_the_limit():
    with plain() as upstream, live(upstream=upstream.settings, limits=Limits(max_in_flight=2, grace_s=5)) as server:
        upstream.open.clear()
        waiting = [server.rpc("ModelInfer").future(infer_request(CLEAN), timeout=TIMEOUT_S) for _ in range(2)]
        wait_for(lambda: server.sample("guard_requests_in_flight") == 2)
        code, words = server.refuses(infer_request(CLEAN))
        assert (code, "2 requests are in flight and the limit is 2" in words) == (Code.UNAVAILABLE, True)
        upstream.open.set()
        assert [tensors(call.result())["y"] for call in waiting] == [CLEAN.tolist()] * 2


def test_a_drain_lets_requests_finish_that_wait_for_the_upstream():
    with plain() as upstream, live(upstream=upstream.settings, limits=Limits(grace_s=TIMEOUT_S)) as server:
        upstream.open.clear()
        begun = server.rpc("ModelInfer").future(infer_request(CLEAN), timeout=TIMEOUT_S)
        assert upstream.began.acquire(timeout=TIMEOUT_S)
        server.stop.set()
        check = health_pb2_grpc.HealthStub(server.channel).Check
        not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
        wait_for(lambda: check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S).status == not_serving)
        assert "stopping" in server.refuses(infer_request(CLEAN))[1]
        upstream.open.set()
        assert tensors(begun.result())["y"] == CLEAN.tolist()


@pytest.mark.parametrize("error", [ModelError("secret"), ZeroDivisionError("secret")])
def test_a_guard_that_fails_lets_nothing_through_by_default(error):
    with plain() as upstream, live(broken(error), upstream=upstream.settings) as server:
        code, words = server.refuses(infer_request(CLEAN))
        assert code == Code.INTERNAL
        assert "secret" not in words
        assert server.sample("guard_failures_total", stage="judge") == 1
        assert server.sample("guard_unguarded_answers_total") == 0


def test_a_guard_that_hangs_keeps_a_request_until_its_deadline_and_goes_on_when_it_is_over():
    stuck = GatedModel(cap=4)
    with plain() as upstream, live(tiny_guard(bounded=stuck), upstream=upstream.settings) as server:
        stuck.open.clear()
        hung, waiting = (server.rpc("ModelInfer").future(infer_request(CLEAN), timeout=0.5) for _ in range(2))
        assert [hung.exception().code(), waiting.exception().code()] == [Code.DEADLINE_EXCEEDED] * 2
        stuck.open.set()
        assert tensors(server.infer(CLEAN))["y"] == CLEAN.tolist()
        assert server.sample("guard_unguarded_answers_total") == 0


def test_a_guard_that_fails_open_lets_the_answer_through_and_says_and_counts_it():
    with plain() as upstream:
        settings = replace(upstream.settings, fail=Fail.OPEN)
        with live(broken(), upstream=settings) as server:
            response = server.infer(MIXED)
            assert tensors(response) == {"y": MIXED.tolist()}
            assert response.parameters["guard_failed"].bool_param
            assert server.sample("guard_failures_total", stage="judge") == 1
            assert server.sample("guard_unguarded_answers_total") == 1
            assert server.sample("guard_rows_total") == 0
            assert server.refuses(infer_request([[np.nan, 0, 0]]))[0] == Code.INVALID_ARGUMENT


def test_a_guard_that_fails_in_the_shadow_is_counted_and_not_seen():
    with plain() as upstream, live(broken(), upstream=upstream.settings, on_flag=OnFlag.SHADOW) as server:
        response = server.infer(MIXED)
        assert (tensors(response), len(response.parameters)) == ({"y": MIXED.tolist()}, 0)
        assert server.sample("guard_failures_total", stage="judge") == 1


def change(edit):
    def answer(request):
        response = relu(request)
        edit(response)
        return response

    return answer


MISFITS = {
    "type": lambda r: setattr(r.outputs[0], "datatype", "FP16"),
    "rows": lambda r: r.outputs[0].shape.__setitem__(slice(None), [2, 3]),
    "shape": lambda r: r.outputs[0].shape.__setitem__(slice(None), [3]),
    "negative shape": lambda r: r.outputs[0].shape.__setitem__(slice(None), [-1, -3]),
    "name": lambda r: setattr(r.outputs[0], "name", "z"),
    "missing": lambda r: (r.outputs.pop(), r.raw_output_contents.pop()),
    "twice": lambda r: (r.outputs.append(r.outputs[0]), r.raw_output_contents.append(r.raw_output_contents[0])),
    "bytes": lambda r: r.raw_output_contents.__setitem__(0, b"1234"),
    "no data": lambda r: r.raw_output_contents.pop(),
    "surplus": lambda r: r.raw_output_contents.append(b""),
    "shared memory": lambda r: r.outputs[0].parameters["shared_memory_region"].MergeFrom(pb.InferParameter()),
    "another model": lambda r: r.raw_output_contents.__setitem__(0, np.float32([3, 2, 1]).tobytes()),
}


@pytest.mark.parametrize("edit", MISFITS.values(), ids=MISFITS)
def test_an_answer_that_does_not_fit_the_bundle_is_a_failure_of_the_guards_side(edit):
    with plain(answer=change(edit)) as upstream:
        with live(upstream=upstream.settings) as server:
            assert server.refuses(infer_request(CLEAN))[0] == Code.INTERNAL
            assert server.sample("guard_failures_total", stage="upstream") == 1
        with live(upstream=replace(upstream.settings, fail=Fail.OPEN)) as server:
            assert server.infer(CLEAN).parameters["guard_failed"].bool_param
            assert server.sample("guard_failures_total", stage="upstream") == 1
            assert server.sample("guard_unguarded_answers_total") == 1


def test_another_model_is_noticed_at_every_request_where_the_original_runs_anyway(tmp_path):
    other = change(MISFITS["another model"])
    guard = Guard.load(detecting_bundle(tmp_path), threads=1)
    with plain() as upstream, live(guard, upstream=upstream.settings) as server:
        server.infer(CLEAN)
        upstream.answer = other
        for _ in range(2):
            assert server.refuses(infer_request(CLEAN))[0] == Code.INTERNAL


PLAIN = infer_request(CLEAN)
ODD = {
    "a version": infer_request(CLEAN, version="2"),
    "a parameter": infer_request(CLEAN, parameters={"content_type": {"string_param": "x"}}),
}


@pytest.mark.parametrize("request_", ODD.values(), ids=ODD)
def test_another_model_is_noticed_where_a_request_says_more_than_its_inputs(request_):
    with plain() as upstream, live(upstream=upstream.settings) as server:
        server.call("ModelInfer", PLAIN)
        upstream.answer = change(MISFITS["another model"])
        assert server.refuses(request_)[0] == Code.INTERNAL


def test_another_model_is_noticed_within_64_requests_that_are_plain():
    with plain() as upstream, live(upstream=upstream.settings) as server:
        server.call("ModelInfer", PLAIN)
        upstream.answer = change(MISFITS["another model"])
        codes = [server.rpc("ModelInfer").future(PLAIN, timeout=TIMEOUT_S).code() for _ in range(64)]
        assert codes.count(Code.INTERNAL) == 1


def test_rounding_is_no_other_model_and_rows_without_numbers_are_left_to_the_guard():
    ours = np.array([[10, 0, -5], [1, 2, 3]], dtype=np.float32)
    check_agreement((ours * 1.1).astype(np.float16), ours, probabilities=False)
    check_agreement(np.array([[np.inf, 0, 0], [1, np.nan, 0]], dtype=np.float32), ours, probabilities=False)
    with pytest.raises(ModelError, match="1 of 2 rows otherwise than the bundle's original, the first is row 1"):
        check_agreement(np.array([[10, 0, -5], [3, 2, 1]]), ours, probabilities=False)
    check_agreement(np.array([[0.5, 0.5]]), np.array([[0.6, 0.4]]), probabilities=True)
    with pytest.raises(ModelError, match="1 of 1 rows"):
        check_agreement(np.array([[0.5, 0.5]]), np.array([[0.7, 0.3]]), probabilities=True)
