"""In front of another server: its answers guarded, everything else as it was sent, and its troubles survived."""

import queue

import grpc
import numpy as np
import pytest
from bundles import CLEAN, CORRECTED, TRIGGERED
from detectors import detecting_bundle
from servers import SERVICE, TIMEOUT_S, GatedModel, infer_request, live, tensors, tiny_guard, wait_for
from test_serving import PROBES
from upstreams import DETAILS, MISSING, plain, relu

from guard import Guard
from serving._pb import open_inference_pb2 as pb
from serving.config import OnFlag, UpstreamSettings

MIXED = np.concatenate([CLEAN, TRIGGERED])
Code = grpc.StatusCode
Requested = pb.ModelInferRequest.InferRequestedOutputTensor


@pytest.fixture(scope="module")
def shared():
    with plain() as upstream, live(upstream=upstream.settings) as server:
        yield server, upstream


@pytest.fixture
def front(shared):
    server, upstream = shared
    upstream.asked.clear()
    return server


@pytest.fixture
def upstream(shared):
    return shared[1]


def raw(server, name):
    """Return a callable for any call of the service, bytes in and out."""
    return server.channel.unary_unary(f"/{SERVICE}/{name}")


def test_answers_are_those_of_a_server_that_runs_the_original_itself(front):
    with live() as direct:
        for rows in (CLEAN, TRIGGERED, MIXED, np.repeat(MIXED, 7, axis=0)):
            assert tensors(front.infer(rows)) == tensors(direct.infer(rows))
    assert front.sample("guard_flagged_rows_total", predicted_class="0") >= 9


def test_evidence_is_gathered_of_what_the_upstream_answered(front):
    front.infer(np.repeat(TRIGGERED, 64, axis=0))
    assert front.sample("guard_trigger_evidence") > 1000


def test_a_detector_sees_what_the_guard_ran_and_judges_what_the_upstream_answered(tmp_path):
    guard = Guard.load(detecting_bundle(tmp_path), threads=1)
    rows = np.array([[0.05, 0, 0], [9, 1, 0]])
    with plain() as upstream, live(guard, upstream=upstream.settings) as server, live(guard) as direct:
        assert tensors(server.infer(rows)) == tensors(direct.infer(rows))
        assert tensors(server.infer(rows))["guard_flagged"] == [False, True]


@pytest.mark.parametrize("mode", OnFlag)
def test_every_mode_answers_as_it_does_with_a_model_of_its_own(mode):
    with plain() as upstream, live(upstream=upstream.settings, on_flag=mode) as server, live(on_flag=mode) as direct:
        assert tensors(server.infer(CLEAN)) == tensors(direct.infer(CLEAN))
        if mode is OnFlag.REJECT:
            assert server.refuses(infer_request(MIXED)) == direct.refuses(infer_request(MIXED))
        else:
            assert tensors(server.infer(MIXED)) == tensors(direct.infer(MIXED))


def test_an_answer_in_typed_contents_is_completed_in_typed_contents(front):
    request = infer_request(MIXED)
    request.ClearField("raw_input_contents")
    request.inputs[0].contents.fp32_contents.extend(MIXED.ravel().tolist())
    response = front.call("ModelInfer", request)
    assert not response.raw_output_contents
    own, flagged, _, corrected_class = (output.contents for output in response.outputs)
    assert list(own.fp32_contents) == [*CLEAN.ravel(), *CORRECTED.ravel()]
    assert list(flagged.bool_contents) == [False, True]
    assert list(corrected_class.int64_contents) == [2, 1]


def test_what_nobody_here_knows_of_a_message_reaches_the_other_side(front, upstream):
    unknown = b"\xba\x3e\x04more"  # field 999
    content = infer_request(CLEAN, id="a-7").SerializeToString() + unknown
    upstream.answer = lambda request: pb.ModelInferResponse.FromString(relu(request).SerializeToString() + unknown)
    try:
        answer = raw(front, "ModelInfer")(content, timeout=TIMEOUT_S)
    finally:
        upstream.answer = relu
    assert upstream.asked[-1][1].endswith(unknown)
    assert unknown in answer
    response = pb.ModelInferResponse.FromString(answer)
    assert (response.id, response.model_version, len(response.outputs)) == ("a-7", "3", 4)


def test_other_outputs_of_the_model_pass_and_asked_ones_come_in_order():
    def two(request):
        response = relu(request)
        response.outputs.add(name="more", datatype="BYTES", shape=[1])
        response.raw_output_contents.append(b"\x01\0\0\0z")
        return response

    with plain(answer=two) as upstream, live(upstream=upstream.settings) as server:
        everything = server.infer(MIXED)
        assert [o.name for o in everything.outputs][:3] == ["y", "more", "guard_flagged"]
        assert everything.raw_output_contents[1] == b"\x01\0\0\0z"
        wanted = [Requested(name=name) for name in ("guard_flagged", "more")]
        some = server.call("ModelInfer", infer_request(MIXED, outputs=wanted))
        assert [o.name for o in some.outputs] == ["guard_flagged", "more"]
        assert [o.name for o in upstream.requests()[-1].outputs] == ["more", "y"]


def test_metadata_travels_both_ways(front, upstream):
    sent = (("authorization", "Bearer x"), ("tenant-bin", b"\x00\xff"))
    _, call = front.rpc("ModelInfer").with_call(infer_request(CLEAN), metadata=sent, timeout=TIMEOUT_S)
    assert set(sent) <= {tuple(pair) for pair in upstream.metadata}
    assert {("from-upstream", "first"), ("bytes-bin", b"\x00\xff")} <= {tuple(pair) for pair in call.initial_metadata()}
    assert ("to-the-end", "last") in {tuple(pair) for pair in call.trailing_metadata()}


def test_deadlines_travel_and_where_there_is_none_none_is_made_up(front, upstream):
    upstream.remaining_s.clear()
    front.infer(CLEAN, timeout=1000)
    raw(front, "TraceSetting")(b"", timeout=500)
    front.rpc("ModelInfer")(infer_request(CLEAN))
    with_one, relayed, without = upstream.remaining_s
    assert 900 < with_one <= 1050  # gRPC sends three digits and rounds up
    assert 400 < relayed <= 550
    assert without is None or without > 1e6


@pytest.mark.parametrize("name", ["ModelInfer", "ModelMetadata", "TraceSetting"])
def test_a_refusal_of_the_upstream_is_told_in_its_words_with_its_details(name):
    with plain(refusal=(Code.DATA_LOSS, "lost: ü")) as upstream, live(upstream=upstream.settings) as server:
        request = infer_request(CLEAN) if name == "ModelInfer" else pb.ModelMetadataRequest(name="tiny")
        with pytest.raises(grpc.RpcError) as caught:
            raw(server, name)(request.SerializeToString(), timeout=TIMEOUT_S)
        error = caught.value
        assert (error.code(), error.details()) == (Code.DATA_LOSS, "lost: ü")
        assert {DETAILS, ("to-the-end", "last")} <= {tuple(pair) for pair in error.trailing_metadata()}
        assert ("from-upstream", "first") in {tuple(pair) for pair in error.initial_metadata()}
        assert server.sample("guard_failures_total", stage="upstream") == 0


def test_calls_that_nobody_here_knows_pass_as_bytes_of_any_number(front, upstream):
    assert raw(front, "FromTheFuture")(b"\xff\x00", timeout=TIMEOUT_S) == b"\xff\x00!"
    stream = front.channel.stream_stream(f"/{SERVICE}/LogSettings")
    assert list(stream(iter([b"a", b"", b"c"]), timeout=TIMEOUT_S)) == [b"a!", b"!", b"c!"]
    assert [name for name, _ in upstream.asked] == ["FromTheFuture", "LogSettings"]


def test_what_the_upstream_does_not_have_is_refused_in_its_words(front):
    for _ in range(20):
        error = raw(front, MISSING).future(b"x", timeout=TIMEOUT_S).exception()
        assert (error.code(), error.details()) == (Code.UNIMPLEMENTED, "Method not found!")


def test_a_stream_that_waits_for_answers_between_its_messages_gets_them(front):
    asked = queue.SimpleQueue()
    answers = front.channel.stream_stream(f"/{SERVICE}/Chat")(iter(asked.get, None), timeout=TIMEOUT_S)
    for message in (b"a", b"b"):
        asked.put(message)
        assert next(answers) == message + b"!"
    asked.put(None)
    assert list(answers) == []


def test_a_stream_that_the_client_leaves_ends_at_the_upstream_too(front, upstream):
    upstream.ended.clear()
    asked = queue.SimpleQueue()
    asked.put(b"a")
    answers = front.channel.stream_stream(f"/{SERVICE}/Chat")(iter(asked.get, None), timeout=TIMEOUT_S)
    assert next(answers) == b"a!"
    assert not upstream.ended.is_set()
    answers.cancel()
    assert upstream.ended.wait(TIMEOUT_S)
    asked.put(None)


@pytest.mark.parametrize("method", [f"{SERVICE}/ModelInferAsync", f"{SERVICE}/x%49y", "other.Service/ModelInfer"])
def test_what_may_be_another_way_to_infer_does_not_pass(front, upstream, method):
    with pytest.raises(grpc.RpcError) as caught:
        front.channel.unary_unary(f"/{method}")(b"", timeout=TIMEOUT_S)
    assert caught.value.code() == Code.UNIMPLEMENTED
    assert upstream.asked == []


def test_a_model_that_is_not_guarded_is_not_answered(front, upstream):
    for name, request in (
        ("ModelInfer", infer_request(CLEAN, model="other")),
        ("ModelMetadata", pb.ModelMetadataRequest(name="other")),
    ):
        code, words = front.refuses(request, name)
        assert (code, words) == (Code.NOT_FOUND, "model 'other' is not guarded here; 'tiny' is")
    assert not front.call("ModelReady", pb.ModelReadyRequest(name="other")).ready
    assert upstream.asked == []


HIDDEN = {
    "input": lambda request: request.inputs[0].parameters["shared_memory_region"],
    "size of an input": lambda request: request.inputs[0].parameters["shared_memory_byte_size"],
    "output": lambda request: request.outputs.add(name="y").parameters["shared_memory_region"],
}


@pytest.mark.parametrize("hide", HIDDEN.values(), ids=HIDDEN)
def test_what_lies_in_shared_memory_is_refused(front, upstream, hide):
    request = infer_request(CLEAN)
    hide(request).string_param = "region"
    code, words = front.refuses(request)
    assert (code, "in shared memory, which the guard cannot see; send its bytes" in words) == (
        Code.INVALID_ARGUMENT,
        True,
    )
    assert upstream.asked == []


@pytest.fixture(scope="module")
def before_ours():
    """Return a front of a server of ours that shows nothing of its guard."""
    with live(on_flag=OnFlag.SHADOW) as ours, live(upstream=address_of(ours)) as server:
        yield server


def address_of(server):
    return UpstreamSettings(address=f"127.0.0.1:{server.running.port}")


@pytest.mark.parametrize(("request_", "code", "_"), PROBES.values(), ids=PROBES)
def test_each_wrong_request_gets_the_status_that_it_gets_without_an_upstream(before_ours, request_, code, _):
    assert before_ours.refuses(request_)[0] == code
    assert tensors(before_ours.infer(CLEAN))["y"] == CLEAN.tolist()


BAD = {
    "NaN": (infer_request([[np.nan, 0, 0]]), "NaN"),
    "shape": (infer_request([[1, 2]]), "(1, 2)"),
    "no rows": (infer_request(np.zeros((0, 3))), "at least one row"),
    "rows": (infer_request(np.zeros((1025, 3))), "the limit is 1024"),
    "classes": (
        infer_request(CLEAN, outputs=[Requested(name="y", parameters={"classification": {"int64_param": 1}})]),
        "classification",
    ),
    "output twice": (infer_request(CLEAN, outputs=[Requested(name="y")] * 2), "asked for twice"),
}


@pytest.mark.parametrize(("request_", "words"), BAD.values(), ids=BAD)
def test_a_bad_request_does_not_reach_the_upstream(front, upstream, request_, words):
    code, said = front.refuses(request_)
    assert code == Code.INVALID_ARGUMENT
    assert words in said
    assert upstream.asked == []


def test_each_message_of_a_stream_is_guarded_as_if_it_came_alone(front):
    stream = front.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
    requests = [infer_request(MIXED, id="1"), infer_request([[np.nan, 0, 0]], id="2"), infer_request(CLEAN, id="3")]
    answers = [
        pb.ModelStreamInferResponse.FromString(content)
        for content in stream((r.SerializeToString() for r in requests), timeout=TIMEOUT_S)
    ]
    assert [answer.infer_response.id for answer in answers] == ["1", "2", "3"]
    assert tensors(answers[0].infer_response) == tensors(front.infer(MIXED))
    assert "NaN" in answers[1].error_message
    assert [answer.error_message for answer in answers[::2]] == ["", ""]


def test_a_stream_that_asks_for_statuses_ends_with_one(front):
    stream = front.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
    request = infer_request([[np.nan, 0, 0]]).SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        list(stream(iter([request]), metadata=[("triton_grpc_error", "true")], timeout=TIMEOUT_S))
    assert caught.value.code() == Code.INVALID_ARGUMENT


def test_the_upstream_may_call_the_model_otherwise():
    with plain(model="theirs") as upstream, live(upstream=upstream.settings) as server:
        assert server.infer(CLEAN).model_name == "tiny"
        assert upstream.requests()[0].model_name == "theirs"
        assert server.refuses(infer_request(CLEAN, model="theirs"))[0] == Code.NOT_FOUND
        assert server.call("ModelReady", pb.ModelReadyRequest(name="tiny")).ready
        assert server.call("ModelStatistics", pb.ModelStatisticsRequest(name="tiny")).model_stats[0].name == "tiny"
        assert server.call("RepositoryIndex").models[0].name == "tiny"
        assert server.call("ModelConfig", pb.ModelConfigRequest(name="tiny")).config.name == "tiny"


def test_the_model_is_described_by_the_upstream_with_the_guards_outputs(front):
    metadata = front.call("ModelMetadata", pb.ModelMetadataRequest(name="tiny"))
    assert (metadata.name, metadata.platform, list(metadata.versions)) == ("tiny", "theirs", ["3"])
    names = ["y", "guard_flagged", "guard_predicted_class", "guard_corrected_class"]
    assert [output.name for output in metadata.outputs] == names
    config = front.call("ModelConfig", pb.ModelConfigRequest(name="tiny")).config
    assert (config.max_batch_size, [output.name for output in config.output]) == (8, names)


def test_concurrent_requests_share_the_guards_runs_and_each_gets_its_own_rows():
    gate = GatedModel(cap=4)
    rows = [np.full((1 + i % 3, 3), i, dtype=np.float32) for i in range(12)]
    with plain() as upstream, live(tiny_guard(bounded=gate), upstream=upstream.settings, on_flag=OnFlag.FLAG) as server:
        gate.open.clear()
        first = server.rpc("ModelInfer").future(infer_request(rows[0]), timeout=TIMEOUT_S)
        assert gate.started.acquire(timeout=TIMEOUT_S)
        calls = [first, *(server.rpc("ModelInfer").future(infer_request(r), timeout=TIMEOUT_S) for r in rows[1:])]
        wait_for(lambda: server.sample("guard_queue_rows") == sum(map(len, rows[1:])))
        gate.open.set()
        assert [tensors(call.result())["y"] for call in calls] == [r.tolist() for r in rows]
    assert gate.rows_run == [1, sum(map(len, rows[1:]))]
