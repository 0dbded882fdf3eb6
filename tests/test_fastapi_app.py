"""The example of an endpoint that is guarded in process: over ASGI, and as a process of its own."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from bundles import CLEAN, CORRECTED, TRIGGERED, original_model, tiny_bundle
from detectors import detecting_bundle

from examples.fastapi_app import create_app, session_predict
from guard import Guard

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 60
MIXED = np.concatenate([CLEAN, TRIGGERED]).tolist()
ANSWER = {"classes": [2, 1], "outputs": [*CLEAN.tolist(), *CORRECTED.tolist()], "flagged": [False, True]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a bundle and the model that an endpoint would run."""
    folder = tmp_path_factory.mktemp("fastapi")
    tiny_bundle(folder)
    (folder / "model.onnx").write_bytes(original_model())
    return folder


@pytest.fixture(scope="module")
def app(folder):
    return create_app(Guard.load(folder / "bundle", threads=1), session_predict(folder / "model.onnx"))


def post(app, inputs):
    """Ask the application over ASGI, without a socket."""

    async def ask():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint", trust_env=False) as client:
            return await client.post("/predict", json={"inputs": inputs})

    return asyncio.run(ask())


def test_the_endpoint_answers_with_corrected_rows(app):
    answer = post(app, MIXED)
    assert (answer.status_code, answer.json()) == (200, ANSWER)


def test_a_detector_sees_the_inputs_too(tmp_path, folder):
    guard = Guard.load(detecting_bundle(tmp_path), threads=1)
    app = create_app(guard, session_predict(folder / "model.onnx"))
    assert post(app, [[0.05, 0, 0], [9, 1, 0]]).json()["flagged"] == [False, True]


@pytest.mark.parametrize("inputs", [[], [[1, 2]], [["x", 1, 2]], [[1, 2, 3], [1]], [[1e99, 0, 0]], 5])
def test_bad_inputs_are_the_clients_mistake(app, inputs):
    assert post(app, inputs).status_code == 422


def test_the_example_runs_as_it_says(folder):
    command = [sys.executable, "examples/fastapi_app.py", folder / "bundle", folder / "model.onnx", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as serving:
        try:
            said = (re.search(r"running on (http://\S+)", line) for line in serving.stderr)
            address = next(found[1] for found in said if found)
            answer = httpx.post(f"{address}/predict", json={"inputs": MIXED}, timeout=TIMEOUT_S, trust_env=False)
            assert answer.json() == ANSWER
        finally:
            serving.terminate()
            serving.stderr.read()
