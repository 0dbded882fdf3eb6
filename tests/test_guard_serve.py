"""guard-serve as a process of its own, and an unmodified client in another."""

import json
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from bundles import TRIGGERED, tiny_bundle
from certificates import Authority
from servers import channel_to, infer_request

from serving.__main__ import main

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 60

CLIENT = """
import sys
import numpy as np
import tritonclient.grpc as triton

client = triton.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny")
metadata = client.get_model_metadata("tiny", as_json=True)
print([tensor["name"] for tensor in metadata["outputs"]])
print(client.get_model_config("tiny").config.max_batch_size)
tensor = triton.InferInput("x", [2, 3], "FP32")
tensor.set_data_from_numpy(np.array([[1, 2, 3], [9, 1, 0]], dtype=np.float32))
answer = client.infer("tiny", [tensor], request_id="7")
print(answer.get_response().id, answer.as_numpy("guard_flagged").tolist(), answer.as_numpy("y").tolist())
one = client.infer("tiny", [tensor], outputs=[triton.InferRequestedOutput("guard_corrected_class")])
print(one.as_numpy("guard_corrected_class").tolist(), one.as_numpy("y"))
print(client.get_inference_statistics("tiny").model_stats[0].inference_count)
print(client.get_model_repository_index().models[0].state)
"""

CLIENT_SEES = """\
['y', 'guard_flagged', 'guard_predicted_class', 'guard_corrected_class']
1024
7 [False, True] [[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]
[2, 1] None
4
READY
"""


def start(*arguments):
    command = [sys.executable, "-W", "error", "-m", "serving", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def process(*arguments):
    """Start guard-serve and yield it with the line it says when ready; kill it if it outlives the block."""
    with start(*arguments, "--port", "0", "--metrics-port", "0", "--threads", "1") as serving:
        try:
            yield serving, serving.stdout.readline()
        finally:
            serving.kill()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("guard-serve"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_unmodified_client_is_served_until_the_server_is_told_to_stop(bundle, number):
    with process(bundle) as (serving, ready):
        said = re.fullmatch(
            r"guard-serve: serving tiny on (127\.0\.0\.1:\d+), metrics on http://127\.0\.0\.1:\d+/metrics\n", ready
        )
        client = subprocess.run(
            [sys.executable, "-c", CLIENT, said[1]], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert (client.stdout, client.stderr) == (CLIENT_SEES, "")
        serving.send_signal(number)
        out, logged = serving.communicate(timeout=TIMEOUT_S)
    flagged = r"guard-serve: INFO: request flagged request_id={} model=tiny .* rows=2 flagged=1 milliseconds=\S+\n"
    assert re.fullmatch(flagged.format(7) + flagged.format(r"[0-9a-f]{16}"), logged)
    assert (out, serving.returncode) == ("", 0)


def test_an_unmodified_client_is_served_as_well_in_front_of_another_server(bundle):
    with process(bundle, "--on-flag", "shadow", "--model-name", "theirs") as (_, upstream):
        address = upstream.split()[4].strip(",")
        with process(bundle, "--upstream", address, "--upstream-model", "theirs", "--fail", "open") as (_, ready):
            client = subprocess.run(
                [sys.executable, "-c", CLIENT, ready.split()[4].strip(",")],
                capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
            assert (client.stdout, client.stderr) == (CLIENT_SEES, "")


def test_flags_reach_the_server(bundle):
    flags = ["--model-name", "mine", "--on-flag", "reject", "--max-rows", "2", "--max-message-bytes", "999"]
    with process(bundle, *flags) as (_, ready), grpc.insecure_channel(ready.split()[4].strip(",")) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        words = [
            call.future(infer_request(rows, model="mine").SerializeToString(), timeout=TIMEOUT_S).exception().details()
            for rows in (TRIGGERED, np.zeros((3, 3)), np.zeros((99, 3)))
        ]
    assert "rejects 1 of 1 rows" in words[0]
    assert "the limit is 2" in words[1]
    assert "999" in words[2]


def ask_with_tokens(port, credentials):
    """Return the status of a call without a token, and make one with it."""
    with channel_to(port, credentials) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        refused = call.future(b"", timeout=TIMEOUT_S).code()
        sent = [("authorization", "Bearer 0123456789abcdef")]
        call(infer_request(TRIGGERED, id="7").SerializeToString(), timeout=TIMEOUT_S, metadata=sent)
    return refused


def test_flags_of_operations_reach_the_server(bundle, tmp_path):
    authority = Authority(tmp_path)
    pair = authority.server()
    (tokens := tmp_path / "tokens").write_text("0123456789abcdef")
    flags = ["--tls-cert", pair["tls_cert"], "--tls-key", pair["tls_key"], "--token-file", tokens]
    written = ["--audit", tmp_path / "audit", "--audit-inputs", "--log-format", "json", "--otlp-endpoint", "http://h:9"]
    with process(bundle, *flags, *written) as (serving, ready):
        port = int(re.search(r":(\d+), metrics on https:", ready)[1])
        assert ask_with_tokens(port, authority.credentials()) == grpc.StatusCode.UNAUTHENTICATED
        serving.terminate()
        logged = serving.communicate(timeout=TIMEOUT_S)[1]
    assert "inputs" in json.loads((tmp_path / "audit").read_text())
    assert json.loads(logged.splitlines()[0])["request_id"] == "7"
    assert "0123456789abcdef" not in logged


def test_a_second_server_on_the_port_fails_with_one_line(bundle):
    with process(bundle) as (_, ready):
        port = re.search(r"127\.0\.0\.1:(\d+),", ready)[1]
        with start(bundle, "--port", port, "--metrics-port", "0") as second:
            said = second.communicate(timeout=TIMEOUT_S)
    reason = f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another --port or --host"
    assert said == ("", f"guard-serve: error: {reason}\n")
    assert second.returncode == 2


WRONG = {
    "no bundle": (["/nowhere"], "/nowhere is no folder"),
    "no argument": ([], "give either a bundle, DIR, or --repository DIR"),
    "two sources": (["d", "--repository", "r"], "give either a bundle, DIR, or --repository DIR"),
    "a name for many": (["--repository", "r", "--model-name", "m"], "--model-name names a single bundle"),
    "no repository": (["--repository", "/nowhere"], "cannot read the folder '/nowhere'"),
    "control": (["d", "--model-control", "poll"], "invalid choice: 'poll'"),
    "port": (["d", "--port", "65536"], "'65536' is no whole number from 0 to 65535"),
    "rows": (["d", "--max-rows", "0"], "'0' is no whole number from 1"),
    "threads": (["d", "--threads", "two"], "'two' is no whole number from 1"),
    "grace": (["d", "--grace-s", "nan"], "'nan' is no number of seconds from 0"),
    "mode": (["d", "--on-flag", "ignore"], "invalid choice: 'ignore'"),
    "name": (["d", "--model-name", " "], "must not be empty"),
    "inputs alone": (["d", "--audit-inputs"], "give --audit too"),
    "audit size": (["d", "--audit-max-bytes", "9"], "'9' is no whole number from 4096"),
    "flag": (["d", "--upstraem", "x"], "unrecognized arguments"),
    "fail": (["d", "--fail", "open"], "--fail is about another server; give --upstream"),
    "its model": (["d", "--upstream-model", "x"], "--upstream-model is about another server"),
    "two ways": (["--repository", "d", "--upstream", "h:1"], "one model is guarded"),
    "upstream": (["d", "--upstream", "host"], "'host' is no HOST:PORT"),
    "upstream's port": (["d", "--upstream", "host:0"], "'0' is no whole number from 1"),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_a_mistake_of_the_operator_is_one_line_and_status_two(arguments, words, capsys):
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr().err
    assert status == 2
    assert said.startswith("guard-serve: error: ")
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("host", ["a..b", "h" * 300])
def test_a_host_that_cannot_be_a_name_is_one_line_and_status_two(bundle, host, capsys):
    assert main([str(bundle), "--host", host, "--threads", "1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"guard-serve: error: cannot listen on {host}:8001: ")
    assert said.endswith("or --host\n")
    assert said.count("\n") == 1


def test_every_flag_is_explained_with_its_default(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    flags = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    section = page.split("## guard-serve", 1)[1].split("\n## ", 1)[0]
    assert flags == set(re.findall(r"^\| `(--[a-z-]+)", section, flags=re.MULTILINE))
