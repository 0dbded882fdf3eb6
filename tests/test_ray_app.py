"""The servicer on a real Ray Serve of this machine: clients get what guard-serve itself would give them."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
import yaml
from bundles import CLEAN, CORRECTED, tiny_bundle
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import TensorProto, helper
from servers import TIMEOUT_S, Client, infer_request, tensors
from test_serving import MIXED, PROBES

from guard.errors import InputError
from serving._pb import open_inference_pb2 as pb
from serving.config import Limits, OnFlag, ServerConfig
from serving.ray_settings import ReplicaSettings, settings

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "deploy" / "ray" / "serve_config.yaml"
WAIT_S = 200  # far longer than anything here takes; nothing is waited for longer than it needs
MAX_MESSAGE_BYTES = 5_000_000
Code = grpc.StatusCode


def fails_past_89() -> bytes:
    """Return the bounded model with a term that is 0 until its exponential overflows, and NaN from there."""
    values = {"low": 0.0, "cap": 4.0, "zero": 0.0}
    constants = [helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in values.items()]
    nodes = [
        helper.make_node("Clip", ["x", "low", "cap"], ["clipped"]),
        helper.make_node("Exp", ["x"], ["e"]),
        helper.make_node("Mul", ["e", "zero"], ["term"]),
        helper.make_node("Add", ["clipped", "term"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "xy")
    graph = helper.make_graph(nodes, "tiny", [x], [y], constants)
    opset = helper.make_opsetid("", 17)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString())


def shipped() -> dict[str, Any]:
    return yaml.safe_load(CONFIG.read_text())


def written(folder: Path, *, port: int, metrics_port: int) -> Path:
    """Return the path of the shipped configuration, changed to fit this machine.

    A row waits a second for another one, but no further one may wait beside it, and one waiting request is enough for
    Ray to start a second replica.
    """
    config = shipped()
    config["http_options"]["port"] = free_port()
    config["grpc_options"] |= {"port": port, "request_timeout_s": WAIT_S}
    application = config["applications"][0]
    application["args"] |= {"bundle": str(tiny_bundle(folder, bounded=fails_past_89()))}
    application["args"] |= {"metrics_port": metrics_port, "max_message_bytes": MAX_MESSAGE_BYTES}
    application["args"] |= {"max_batch_rows": 2, "max_queue_rows": 1, "max_queue_delay_s": 1}
    application["deployments"][0]["autoscaling_config"] |= {
        "max_replicas": 2, "target_ongoing_requests": 0.5, "upscale_delay_s": 0,
        "metrics_interval_s": 0.5, "look_back_period_s": 1,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


@dataclass(frozen=True)
class Replicas(Client):
    """The replicas behind Ray's proxy."""

    metrics_port: int

    def samples(self, name: str) -> list[float]:
        """Return the values of one series in each of them."""
        pages = [scraped(port) for port in range(self.metrics_port, self.metrics_port + 32)]
        return [
            float(value) for page in pages for value in re.findall(rf"^{re.escape(name)} (.*)$", page, re.MULTILINE)
        ]


def scraped(port: int) -> str:
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT_S) as page:
            return page.read().decode()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'trigger-guard[ray]'")
    folder, port, metrics_port = tmp_path_factory.mktemp("ray"), free_port(), free_port()
    config = written(folder, port=port, metrics_port=metrics_port)
    with tempfile.TemporaryDirectory(prefix="ray-") as short, (folder / "log").open("wb") as log:
        # Ray keeps its token at home, and sockets in a folder whose path must be short.
        environment = {**os.environ, "HOME": str(folder), "RAY_TMPDIR": short, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, ROOT / "deploy/ray/run.py", config, "--num-cpus", "2"]
        with subprocess.Popen(command, env=environment, stdout=log, stderr=log) as running:
            try:
                with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                    client = Replicas(channel, metrics_port)
                    wait_until(lambda: running.poll() is not None or is_ready(client), (folder / "log").read_text)
                    assert running.poll() is None, (folder / "log").read_text()
                    yield client
            finally:
                running.send_signal(signal.SIGTERM)
                running.wait(60)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, why=lambda: "it never came to pass"):
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, why()
        time.sleep(0.2)


def is_ready(client):
    try:
        return client.call("ServerReady", timeout=5).ready
    except grpc.RpcError:
        return False


def test_rows_are_judged_and_corrected(server):
    answer = server.infer(MIXED)
    assert tensors(answer)["guard_flagged"] == [False, True]
    assert tensors(answer)["y"][1:] == CORRECTED.tolist()
    assert answer.parameters["guard_n_flagged"].int64_param == 1


def test_every_wrong_request_gets_the_status_and_reason_that_it_gets_without_ray(server):
    answers = {name: server.refuses(request) for name, (request, _, _) in PROBES.items()}
    assert {name: code for name, (code, _) in answers.items()} == {name: code for name, (_, code, _) in PROBES.items()}
    assert [name for name, (_, _, words) in PROBES.items() if words not in answers[name][1]] == []
    assert tensors(server.infer(MIXED))["guard_flagged"] == [False, True]


def test_every_call_but_inference_is_answered(server):
    assert server.call("ServerLive").live
    assert server.call("ServerMetadata").name == "trigger-guard"
    assert server.call("ModelReady", pb.ModelReadyRequest(name="tiny")).ready
    assert not server.call("ModelReady", pb.ModelReadyRequest(name="no")).ready
    assert [t.name for t in server.call("ModelMetadata", pb.ModelMetadataRequest(name="tiny")).inputs] == ["x"]
    assert server.call("ModelConfig", pb.ModelConfigRequest(name="tiny")).config.max_batch_size == 1024
    assert server.call("ModelStatistics").model_stats[0].name == "tiny"
    assert server.call("RepositoryIndex").models[0].state == "READY"
    for name in ("ModelMetadata", "ModelConfig", "ModelStatistics"):
        assert server.refuses(getattr(pb, f"{name}Request")(name="no"), name)[0] == Code.NOT_FOUND


def test_bytes_that_are_no_message_are_told_so(server):
    with pytest.raises(grpc.RpcError) as refused:
        server.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\xff\xff", timeout=TIMEOUT_S)
    assert refused.value.code() == Code.INVALID_ARGUMENT
    assert refused.value.details() == "the request is no inference.ModelInferRequest: its 2 bytes cannot be parsed"


def test_a_request_within_the_limit_is_taken_and_one_past_it_is_not(server):
    request = infer_request(MIXED)
    request.parameters["padding"].string_param = "p" * 4_480_000
    assert tensors(server.call("ModelInfer", request))["guard_flagged"] == [False, True]
    request.parameters["padding"].string_param = "p" * MAX_MESSAGE_BYTES
    assert server.refuses(request)[0] == Code.RESOURCE_EXHAUSTED


def test_a_call_that_is_not_offered_is_unimplemented(server):
    with pytest.raises(grpc.RpcError) as refused:
        server.channel.unary_unary("/inference.GRPCInferenceService/TraceSetting")(b"", timeout=TIMEOUT_S)
    assert refused.value.code() == Code.UNIMPLEMENTED


def test_a_failing_model_lets_nothing_through_and_its_words_stay_inside(server):
    code, details = server.refuses(infer_request([[99, 0, 0], [0, 1, 2]]))
    assert code == Code.INTERNAL
    assert details.startswith("the request failed inside the server; its log says why under ")
    assert len(details) < 100


def test_health_is_answered_for_the_server_and_its_model(server):
    health = health_pb2_grpc.HealthStub(server.channel)
    for name in ("", "tiny", "inference.GRPCInferenceService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as refused:
        health.Check(health_pb2.HealthCheckRequest(service="no"), timeout=TIMEOUT_S)
    assert refused.value.code() == Code.NOT_FOUND


def test_load_starts_a_replica_and_what_none_has_room_for_is_unavailable(server):
    codes = set()

    def asked_at_once() -> bool:
        calls = [server.rpc("ModelInfer").future(infer_request(CLEAN), timeout=WAIT_S) for _ in range(8)]
        codes.update(call.code() for call in calls)
        return Code.UNAVAILABLE in codes and len(server.samples('guard_queue_rows{model="tiny"}')) == 2

    wait_until(asked_at_once)
    assert codes == {Code.OK, Code.UNAVAILABLE}


def test_a_caller_who_leaves_gives_up_his_place(server):
    def left() -> bool:
        call = server.rpc("ModelInfer").future(infer_request(CLEAN), timeout=0.5)
        assert call.code() in {Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE}
        return any(server.samples('guard_requests_total{model="tiny",status="CANCELLED"}'))

    wait_until(left)


def test_the_replicas_queue_is_full_before_rays_own():
    application = shipped()["applications"][0]
    limits = settings(application["args"]).config.limits
    assert application["deployments"][0]["max_ongoing_requests"] > limits.max_queue_rows + limits.max_batch_rows


def test_arguments_are_the_servers_settings():
    found = settings({"bundle": "b", "threads": 2, "on_flag": "flag", "host": "0.0.0.0", "max_rows": 8})
    config = ServerConfig(on_flag=OnFlag.FLAG, host="0.0.0.0", limits=Limits(max_rows=8))
    assert found == ReplicaSettings(bundle="b", threads=2, config=config)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "'bundle' is missing"),
        ({"bundle": 1}, "'bundle' is 1; it takes str"),
        ({"bundle": "b", "port": 1}, "'port' is unknown"),
        ({"bundle": "b", "max_queue_delay_s": -1}, "'max_queue_delay_s' is -1; the least is 0"),
        ({"bundle": "b", "grace_s": 1}, "'grace_s' is unknown"),
        ({"bundle": "b", "on_flag": "no"}, "'on_flag' is 'no'; it can be correct, flag, reject, shadow"),
        ({"bundle": "b", "threads": 0}, "'threads' is 0; the least is 1"),
        ({"bundle": "b", "max_rows": True}, "'max_rows' is True; it takes int"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        settings(arguments)
