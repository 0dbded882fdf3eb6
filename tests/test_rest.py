"""REST answers as gRPC does, with the statuses of HTTP, and nothing that is sent stops it."""

import gzip
import http.client
import json
import subprocess
import sys

import numpy as np
import pytest
from bundles import CLEAN, CORRECTED, shifted_bundle, tiny_bundle
from rest_calls import ROWS, infer_body, mixed_binary, output, post_infer, rest
from servers import TIMEOUT_S, GatedModel, live, tiny_guard, wait_for
from upstreams import plain, relu

from guard import Guard
from guard.errors import ModelError
from serving.config import Limits, ModelControl, OnFlag
from serving.errors import StartError
from serving.store import repository_store


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    guard = Guard.load(tiny_bundle(tmp_path_factory.mktemp("rest")), threads=1)
    with live(guard, rest_port=0) as running:
        yield running


def test_an_answer_is_corrected_flagged_and_echoes_the_request(server):
    answer = rest(server, "POST", "/v2/models/tiny/versions/1/infer", {**infer_body(ROWS), "id": "a-7"})
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json["id"] == "a-7"
    assert (answer.json["model_name"], answer.json["model_version"]) == ("tiny", "1")
    assert answer.json["parameters"] == {"guard_n_flagged": 1}
    assert output(answer, "y") == {
        "name": "y",
        "datatype": "FP32",
        "shape": [2, 3],
        "data": [*CLEAN.ravel(), *CORRECTED.ravel()],
    }
    assert output(answer, "guard_flagged")["data"] == [False, True]
    assert output(answer, "guard_corrected_class")["data"] == [2, 1]


@pytest.mark.parametrize("data", [ROWS, np.ravel(ROWS).tolist(), [[1, 2, 3], [9, 1.0, 0]]])
def test_data_are_flat_or_nested_as_the_shape_has_it(server, data):
    answer = post_infer(server, infer_body(ROWS, data=data))
    assert output(answer, "guard_flagged")["data"] == [False, True]


def test_binary_inputs_are_answered_as_json_ones_are(server):
    body, headers = mixed_binary()
    assert post_infer(server, body, headers=headers).json == post_infer(server, infer_body(ROWS)).json


def test_outputs_come_in_binary_where_that_is_asked_for_and_in_the_order_asked(server):
    wanted = [{"name": "guard_flagged", "parameters": {"binary_data": True}}, {"name": "y"}]
    answer = post_infer(server, {**infer_body(ROWS), "outputs": wanted})
    assert [each["name"] for each in answer.json["outputs"]] == ["guard_flagged", "y"]
    assert output(answer, "guard_flagged")["parameters"] == {"binary_data_size": 2}
    assert (answer.behind, answer.headers["Content-Type"]) == (b"\0\1", "application/octet-stream")
    everything = post_infer(server, {**infer_body(ROWS), "parameters": {"binary_data_output": True}})
    assert len(everything.behind) == sum(o["parameters"]["binary_data_size"] for o in everything.json["outputs"])
    wanted = [{"name": "y", "parameters": {"binary_data": False}}]
    answer = post_infer(server, {**infer_body(ROWS), "outputs": wanted, "parameters": {"binary_data_output": True}})
    assert len(output(answer, "y")["data"]) == 6


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v2/models/no/infer", 404),
        ("POST", "/v2/models/tiny/versions/2/infer", 404),
        ("POST", "/v2/models/..%2Ftiny/infer", 404),
        ("GET", "/v2/models/no", 404),
        ("GET", "/v2/models/no/stats", 404),
        ("GET", "/v2/models/no/ready", 503),
        ("GET", "/v2/models/tiny/infer", 405),
        ("GET", "/v1/models", 404),
        ("GET", "/", 404),
        ("POST", "/v2/repository/models/tiny/unload", 400),
    ],
)
def test_what_is_not_there_or_not_allowed_says_so_in_json(server, method, path, status):
    answer = rest(server, method, path, infer_body(ROWS) if method == "POST" else None)
    assert answer.status == status
    assert status == 503 or answer.json["error"]
    assert answer.headers["Server"] == "trigger-guard"


def test_the_server_and_its_model_say_what_they_are(server):
    assert rest(server, "GET", "/v2").json["name"] == "trigger-guard"
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready", "/v2/models/tiny/versions/1/ready"):
        assert rest(server, "GET", path).status == 200
    metadata = rest(server, "GET", "/v2/models/tiny").json
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert (metadata["versions"], metadata["platform"]) == (["1"], "onnxruntime_onnx")
    assert rest(server, "GET", "/v2/models/tiny/config").json["input"][0]["data_type"] == "TYPE_FP32"
    (stats,) = rest(server, "GET", "/v2/models/stats").json["model_stats"]
    assert stats["inference_stats"]["success"]["count"] == stats["execution_count"]
    assert rest(server, "GET", "/v2/models/tiny/stats").json["model_stats"][0]["name"] == "tiny"


def test_a_body_beyond_the_limit_is_413_however_it_is_packed():
    with live(rest_port=0, limits=Limits(max_message_bytes=10_000, grace_s=5)) as server:
        large = json.dumps({**infer_body(ROWS), "id": "i" * 10**6}).encode()
        for body, headers in ((large, {}), (gzip.compress(large), {"Content-Encoding": "gzip"})):
            answer = post_infer(server, body, headers=headers)
            assert answer.status == 413
            assert "more than 10000 bytes" in answer.json["error"]
        small = gzip.compress(json.dumps(infer_body(ROWS)).encode())
        assert post_infer(server, small, headers={"Content-Encoding": "gzip"}).status == 200


def test_json_has_a_limit_of_its_own_that_binary_data_do_not_have(server):
    padded = {**infer_body(ROWS), "parameters": {"p": "p" * 16 * 2**20}}
    answer = post_infer(server, padded)
    assert (answer.status, "send tensors as binary data" in answer.json["error"]) == (400, True)
    large = np.zeros((1, 5 * 2**20), "<f4").tobytes()
    body, headers = mixed_binary({"shape": [1, 5 * 2**20]}, large)
    answer = post_infer(server, body, headers=headers)
    assert "the model takes x" in answer.json["error"]


def test_a_failing_model_is_500_without_its_words_and_rejection_400():
    with live(tiny_guard(bounded=GatedModel(error=ModelError("secret"))), rest_port=0) as server:
        answer = post_infer(server, infer_body(ROWS))
        assert (answer.status, "secret" in answer.body.decode()) == (500, False)
    with live(rest_port=0, on_flag=OnFlag.REJECT) as server:
        answer = post_infer(server, infer_body(ROWS))
        assert (answer.status, "rejects 1 of 2 rows" in answer.json["error"]) == (400, True)


def test_an_output_that_json_cannot_say_has_to_be_asked_for_in_binary():
    endless = GatedModel()
    endless.run = lambda inputs, names: tuple(np.array([[-np.inf, 1, 2]], np.float32) for _ in names)
    with live(tiny_guard(original=endless), rest_port=0, on_flag=OnFlag.SHADOW) as server:
        answer = post_infer(server, infer_body(CLEAN.tolist()))
        assert (answer.status, "ask for binary_data" in answer.json["error"]) == (400, True)
        answer = post_infer(server, {**infer_body(CLEAN.tolist()), "parameters": {"binary_data_output": True}})
        assert np.frombuffer(answer.behind, "<f4").tolist() == [-np.inf, 1, 2]


def test_a_caller_who_hangs_up_gives_its_place_back_and_a_drain_finishes_what_began():
    gate = GatedModel()
    gate.open.clear()
    with live(tiny_guard(original=gate), rest_port=0) as server:
        connections = [http.client.HTTPConnection("127.0.0.1", server.running.rest_port) for _ in range(2)]
        for n, connection in enumerate(connections):
            connection.request("POST", "/v2/models/tiny/infer", json.dumps(infer_body(CLEAN.tolist())))
            wait_for(lambda n=n: server.sample("guard_requests_in_flight") == n + 1)
        connections[1].close()
        wait_for(lambda: server.sample("guard_requests_in_flight") == 1)
        server.stop.set()
        wait_for(lambda: rest(server, "GET", "/v2/health/ready").status == 503)
        assert post_infer(server, infer_body(ROWS)).status == 503
        gate.open.set()
        assert connections[0].getresponse().status == 200
        connections[0].close()


def test_a_repository_is_listed_loaded_and_unloaded(tmp_path):
    shifted_bundle(tmp_path / "cats" / "3", 1)
    store = repository_store(tmp_path, lambda folder: Guard.load(folder, threads=1))
    with live(store=store, rest_port=0, model_control=ModelControl.EXPLICIT) as server:
        assert rest(server, "POST", "/v2/repository/index").json == [
            {"name": "cats", "version": "3", "state": "READY", "reason": ""}
        ]
        assert rest(server, "POST", "/v2/repository/models/cats/unload").status == 200
        assert rest(server, "POST", "/v2/repository/index", {"ready": True}).json == []
        assert post_infer(server, infer_body(ROWS), model="cats").status == 503
        assert rest(server, "POST", "/v2/repository/models/..%2Fcats/load").status == 400
        own = {"parameters": {"config": "{}"}}
        assert rest(server, "POST", "/v2/repository/models/cats/load", own).status == 501
        assert rest(server, "POST", "/v2/repository/models/cats/load").status == 200
        assert post_infer(server, infer_body(ROWS), model="cats").status == 200


def test_a_taken_port_is_an_error_that_names_its_flag():
    with live(rest_port=0) as server:
        port = server.running.rest_port
        with pytest.raises(StartError, match=f"127.0.0.1:{port}: .*; choose another --rest-port"), live(rest_port=port):
            pytest.fail("two servers share a port")


CLIENT = """
import sys
import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny")
assert client.get_server_metadata()["name"] == "trigger-guard"
assert client.get_model_metadata("tiny")["inputs"][0]["shape"] == [-1, 3]
assert client.get_model_config("tiny")["max_batch_size"] == 1024
for binary in (True, False):
    tensor = triton.InferInput("x", [2, 3], "FP32")
    tensor.set_data_from_numpy(np.array([[1, 2, 3], [9, 1, 0]], dtype=np.float32), binary_data=binary)
    wanted = triton.InferRequestedOutput("guard_flagged", binary_data=not binary)
    answer = client.infer("tiny", [tensor], request_id="7")
    print(answer.get_response()["id"], answer.as_numpy("guard_flagged").tolist(), answer.as_numpy("y").tolist())
    packed = client.infer("tiny", [tensor], outputs=[wanted], request_compression_algorithm="gzip")
    print(packed.as_numpy("guard_flagged").tolist(), packed.as_numpy("y"))
print(client.get_inference_statistics("tiny")["model_stats"][0]["inference_count"] % 8)
print(client.get_model_repository_index()[0]["state"])
try:
    client.infer("no", [tensor])
except triton.InferenceServerException as error:
    print(error.status())
"""

CLIENT_SEES = """\
7 [False, True] [[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]
[False, True] None
7 [False, True] [[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]
[False, True] None
0
READY
404
"""


def test_an_unmodified_client_is_served():
    with live(rest_port=0) as server:
        command = [sys.executable, "-c", CLIENT, f"127.0.0.1:{server.running.rest_port}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3 * TIMEOUT_S, check=False)
    assert (done.stdout, done.stderr) == (CLIENT_SEES, "")


def test_without_aiohttp_the_flag_says_what_to_install(tmp_path):
    hide = "import sys; sys.modules['aiohttp'] = None; from serving.__main__ import main; sys.exit(main(sys.argv[1:]))"
    ports = ["--port", "0", "--metrics-port", "0", "--rest-port", "0"]
    command = [sys.executable, "-c", hide, str(tiny_bundle(tmp_path)), *ports]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3 * TIMEOUT_S, check=False)
    assert done.returncode == 2
    assert done.stderr == "guard-serve: error: --rest-port needs aiohttp; pip install 'trigger-guard[rest]'\n"


@pytest.mark.parametrize("typed", [False, True])
def test_another_server_is_guarded_over_rest_too(typed):
    with plain() as upstream, live(upstream=upstream.settings, rest_port=0) as server:
        upstream.answer = in_typed_contents if typed else relu
        assert output(post_infer(server, infer_body(ROWS)), "guard_flagged")["data"] == [False, True]
        assert rest(server, "GET", "/v2/models/tiny").json["platform"] == "theirs"
        assert rest(server, "GET", "/v2/health/ready").status == 200
        assert rest(server, "POST", "/v2/repository/models/tiny/load").status == 501
        assert post_infer(server, infer_body(ROWS), model="no").status == 404


def in_typed_contents(request):
    response = relu(request)
    response.outputs[0].contents.fp32_contents.extend(np.frombuffer(response.raw_output_contents.pop(), "<f4"))
    return response
