"""guard-serve --repository as a process of its own: told by a signal to serve what lies there now."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from bundles import CLEAN, shifted_bundle
from servers import SERVICE, TIMEOUT_S, infer_request, tensors

from guard import Guard
from guard.bundle import BOUNDED
from serving.__main__ import _serve_until_told
from serving._pb import open_inference_pb2 as pb
from serving.config import ServerConfig
from serving.store import repository_store

ROOT = Path(__file__).parents[1]


@pytest.fixture
def root(tmp_path):
    shifted_bundle(tmp_path / "cats" / "1", 0)
    shifted_bundle(tmp_path / "dogs", 0)
    return tmp_path


@pytest.fixture
def serving(root):
    command = [sys.executable, "-W", "error", "-m", "serving", "--repository", str(root), "--threads", "1"]
    ports = ["--port", "0", "--metrics-port", "0", "--rest-port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, *ports], cwd=ROOT, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def shift(channel, model):
    call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
    answer = pb.ModelInferResponse.FromString(
        call(infer_request(CLEAN, model=model).SerializeToString(), timeout=TIMEOUT_S)
    )
    return tensors(answer)["y"][0][0] - CLEAN[0][0]


def test_a_hang_up_brings_new_bundles_and_a_bad_one_changes_nothing(serving, root):
    ready = serving.stdout.readline()
    address = re.fullmatch(
        r"guard-serve: serving cats, dogs on ([0-9.:]+), REST on http://.*/v2, metrics on .*\n", ready
    )[1]
    with grpc.insecure_channel(address) as channel:
        assert (shift(channel, "cats"), shift(channel, "dogs")) == (0, 0)
        shifted_bundle(root / "cats" / "2", 2)
        (root / "dogs" / BOUNDED).write_bytes(b"")
        serving.send_signal(signal.SIGHUP)
        assert serving.stdout.readline() == "guard-serve: reloaded, serving cats, dogs\n"
        assert (shift(channel, "cats"), shift(channel, "dogs")) == (2, 0)
    serving.send_signal(signal.SIGTERM)
    said, logged = serving.communicate(timeout=TIMEOUT_S)
    assert (serving.returncode, said) == (0, "")
    assert "dogs/bounded.onnx is not the file that was saved" in logged
    assert "Traceback" not in logged


def test_a_server_that_is_told_to_stop_while_it_loads_leaves_the_rest(tmp_path):
    for number in range(1, 51):
        shifted_bundle(tmp_path / "cats" / str(number), number)
    folders = []

    def opened(folder):
        folders.append(folder)
        os.kill(os.getpid(), signal.SIGTERM)
        return Guard.load(folder, threads=1)

    config = ServerConfig(port=0, metrics_port=0)
    asyncio.run(_serve_until_told(None, config, repository_store(tmp_path, opened), None))
    assert 0 < len(folders) < 50
