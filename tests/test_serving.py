"""A real server and a real channel: what clients are told, and that nothing they send stops it."""

import grpc
import numpy as np
import pytest
from bundles import CLEAN, CORRECTED, TRIGGERED, tiny_bundle
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from servers import TIMEOUT_S, infer_request, live, tensors

from guard import Guard
from serving._pb import open_inference_pb2 as pb

MIXED = np.concatenate([CLEAN, TRIGGERED])
Code = grpc.StatusCode
Requested = pb.ModelInferRequest.InferRequestedOutputTensor


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    guard = Guard.load(tiny_bundle(tmp_path_factory.mktemp("serving")), threads=1)
    with live(guard) as running:
        yield running


def changed(change):
    request = infer_request(MIXED)
    change(request)
    return request


PROBES = {
    "unknown model": (infer_request(MIXED, model="no"), Code.NOT_FOUND, "'no' is not served here; 'tiny' is"),
    "unknown version": (infer_request(MIXED, version="2"), Code.NOT_FOUND, "no version '2'; it has '1'"),
    "wrong shape": (infer_request(np.zeros((1, 4))), Code.INVALID_ARGUMENT, "has shape (1, 4); the model takes x"),
    "scalar": (infer_request(np.zeros(())), Code.INVALID_ARGUMENT, "has shape ()"),
    "no rows": (infer_request(np.zeros((0, 3))), Code.INVALID_ARGUMENT, "send at least one row"),
    "NaN": (infer_request([[1, np.nan, 1]]), Code.INVALID_ARGUMENT, "NaN or infinity in 1 of 1 rows"),
    "infinity": (infer_request([[1, np.inf, 1]]), Code.INVALID_ARGUMENT, "NaN or infinity"),
    "too many rows": (infer_request(np.zeros((1025, 3))), Code.INVALID_ARGUMENT, "1025 rows and the limit is 1024"),
    "wrong dtype": (
        changed(lambda r: setattr(r.inputs[0], "datatype", "INT32")),
        Code.INVALID_ARGUMENT,
        "INT32; the model takes FP32",
    ),
    "wrong input name": (
        changed(lambda r: setattr(r.inputs[0], "name", "z")),
        Code.INVALID_ARGUMENT,
        "'z' is unknown; the model takes x",
    ),
    "raw too short": (changed(lambda r: r.inputs[0].shape.__setitem__(0, 3)), Code.INVALID_ARGUMENT, "24 raw bytes"),
    "raw + contents": (
        changed(lambda r: r.inputs[0].contents.fp32_contents.append(1)),
        Code.INVALID_ARGUMENT,
        "fp32_contents too",
    ),
    "surplus raw": (changed(lambda r: r.raw_input_contents.append(b"")), Code.INVALID_ARGUMENT, "2 entries for 1"),
    "no data": (changed(lambda r: r.ClearField("raw_input_contents")), Code.INVALID_ARGUMENT, "has no data"),
    "made-up dtype": (changed(lambda r: setattr(r.inputs[0], "datatype", "FP99")), Code.INVALID_ARGUMENT, "'FP99'"),
    "unknown output": (changed(lambda r: r.outputs.add(name="no")), Code.INVALID_ARGUMENT, "'no' was asked for"),
    "endless name": (infer_request(MIXED, model="n" * 10**6), Code.NOT_FOUND, "nnn..."),
}


@pytest.mark.parametrize(("request_", "code", "words"), PROBES.values(), ids=PROBES)
def test_each_wrong_request_gets_its_status_and_reason_and_the_next_one_an_answer(server, request_, code, words):
    got, details = server.refuses(request_)
    assert got == code
    assert words in details
    assert tensors(server.infer(CLEAN))["y"] == CLEAN.tolist()


def test_a_wrong_request_is_told_whose_fault_it_is_for_every_rpc_on_a_model(server):
    for name in ("ModelMetadata", "ModelConfig", "ModelStatistics"):
        request = getattr(pb, f"{name}Request")(name="no")
        assert server.refuses(request, name)[0] == Code.NOT_FOUND


def test_a_model_that_is_not_served_is_not_ready_which_is_no_error(server):
    assert server.call("ModelReady", pb.ModelReadyRequest(name="tiny")).ready
    assert server.call("ModelReady", pb.ModelReadyRequest(name="tiny", version="1")).ready
    assert not server.call("ModelReady", pb.ModelReadyRequest(name="tiny", version="2")).ready
    assert not server.call("ModelReady", pb.ModelReadyRequest(name="no")).ready


def test_a_request_of_four_megabytes_and_a_half_is_taken(server):
    request = infer_request(CLEAN)
    request.parameters["padding"].string_param = "p" * 4_480_000
    assert tensors(server.call("ModelInfer", request))["y"] == CLEAN.tolist()


def test_bytes_that_are_no_message_are_the_callers_fault(server):
    call = server.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff\xff\xff", timeout=TIMEOUT_S)
    assert caught.value.code() == Code.INVALID_ARGUMENT
    assert "no inference.ModelInferRequest" in caught.value.details()


def test_what_is_not_offered_is_unimplemented(server):
    call = server.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    with pytest.raises(grpc.RpcError) as caught:
        list(call(iter([b""]), timeout=TIMEOUT_S))
    assert caught.value.code() == Code.UNIMPLEMENTED
    index = pb.RepositoryIndexRequest(repository_name="other")
    assert server.refuses(index, "RepositoryIndex")[0] == Code.UNIMPLEMENTED


def test_the_server_says_what_it_is(server):
    assert server.call("ServerLive").live
    assert server.call("ServerReady").ready
    metadata = server.call("ServerMetadata")
    assert metadata.name == "trigger-guard"
    assert metadata.version[0].isdigit()
    assert list(metadata.extensions) == ["model_configuration", "model_repository", "statistics"]
    (model,) = server.call("RepositoryIndex", pb.RepositoryIndexRequest(ready=True)).models
    assert (model.name, model.version, model.state) == ("tiny", "1", "READY")


def test_metadata_and_configuration_list_the_guards_outputs_after_the_models_own(server):
    metadata = server.call("ModelMetadata", pb.ModelMetadataRequest(name="tiny"))
    assert (metadata.platform, list(metadata.versions)) == ("onnxruntime_onnx", ["1"])
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("x", "FP32", [-1, 3])]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [
        ("y", "FP32", [-1, 3]),
        ("guard_flagged", "BOOL", [-1]),
        ("guard_predicted_class", "INT64", [-1]),
        ("guard_corrected_class", "INT64", [-1]),
    ]
    config = server.call("ModelConfig", pb.ModelConfigRequest(name="tiny")).config
    assert (config.max_batch_size, config.backend) == (1024, "onnxruntime")
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [("x", pb.TYPE_FP32, [3])]
    assert [o.name for o in config.output] == [t.name for t in metadata.outputs]


def test_an_answer_is_corrected_flagged_and_echoes_the_request(server):
    response = server.call("ModelInfer", infer_request(MIXED, version="1", id="a-7"))
    assert (response.model_name, response.model_version, response.id) == ("tiny", "1", "a-7")
    assert response.parameters["guard_n_flagged"].int64_param == 1
    assert tensors(response) == {
        "y": [*CLEAN.tolist(), *CORRECTED.tolist()],
        "guard_flagged": [False, True],
        "guard_predicted_class": [2, 0],
        "guard_corrected_class": [2, 1],
    }


def test_typed_contents_are_answered_as_raw_ones_are_and_in_raw(server):
    request = infer_request(MIXED)
    request.ClearField("raw_input_contents")
    request.inputs[0].contents.fp32_contents.extend(MIXED.ravel().tolist())
    response = server.call("ModelInfer", request)
    assert tensors(response) == tensors(server.infer(MIXED))
    assert not any(output.HasField("contents") for output in response.outputs)


def test_only_the_outputs_asked_for_come_and_in_that_order(server):
    wanted = [Requested(name="guard_flagged"), Requested(name="y")]
    answer = tensors(server.call("ModelInfer", infer_request(MIXED, outputs=wanted)))
    assert list(answer) == ["guard_flagged", "y"]


def test_statistics_count_what_happened():
    with live() as server:
        server.infer(MIXED)
        server.infer(CLEAN)
        server.refuses(infer_request([[np.nan, 0, 0]]))
        (stats,) = server.call("ModelStatistics").model_stats
    assert (stats.name, stats.version, stats.inference_count, stats.execution_count) == ("tiny", "1", 3, 2)
    parts = stats.inference_stats
    assert (parts.success.count, parts.fail.count, parts.compute_infer.count) == (2, 1, 2)
    within = parts.queue.ns + parts.compute_input.ns + parts.compute_infer.ns + parts.compute_output.ns
    assert 0 < within <= parts.success.ns
    assert stats.last_inference > 1_600_000_000_000


def test_health_knows_the_server_and_its_model_by_name(server):
    health = health_pb2_grpc.HealthStub(server.channel)
    for name in ("", "tiny", "inference.GRPCInferenceService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="no"), timeout=TIMEOUT_S)
    assert caught.value.code() == Code.NOT_FOUND


def test_watching_an_unknown_name_says_so_and_waits(server):
    watch = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest(service="no"))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


def test_every_health_watcher_hears_of_the_end_even_if_another_left():
    with live() as server:
        watch = health_pb2_grpc.HealthStub(server.channel).Watch
        leaver, stayer = (watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S) for _ in range(2))
        assert next(leaver).status == next(stayer).status == health_pb2.HealthCheckResponse.SERVING
        leaver.cancel()
        server.stop.set()
        assert [answer.status for answer in stayer] == [health_pb2.HealthCheckResponse.NOT_SERVING]


def reflect(server, **question):
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    request = reflection_pb2.ServerReflectionRequest(**question)
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=TIMEOUT_S)
    return answer


def test_reflection_lists_the_services_and_describes_each(server):
    services = [s.name for s in reflect(server, list_services="").list_services_response.service]
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(services)
    for service in services:
        (file,) = reflect(server, file_containing_symbol=service).file_descriptor_response.file_descriptor_proto
        described = FileDescriptorProto.FromString(file)
        assert service in {f"{described.package}.{s.name}" for s in described.service}
