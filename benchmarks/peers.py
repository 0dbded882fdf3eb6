"""Servers of one model in processes of their own, to be measured beside each other: guard-serve and its peers.

A peer's packages live in a virtual environment of its own under the output folder, made at first use. Every server runs
the model in one onnxruntime session with the threads of this process's cores, without spinning, on batches of up to
MAX_BATCH rows.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from guard.bundle import ORIGINAL

__all__ = ["MAX_BATCH", "MODEL", "Server", "cpu_s", "mlserver", "ours", "pytriton", "started"]

MODEL = "m"
MAX_BATCH = 64
_START_S = 120
_HOST = "127.0.0.1"

_SESSION = """
import os
import onnxruntime
def open_session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
"""

_MLSERVER_RUNTIME = (
    _SESSION
    + """
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class Ort(MLModel):
    async def load(self):
        self.session = open_session(self.settings.parameters.uri)
        return True

    async def predict(self, payload):
        rows = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        logits = self.session.run(["logits"], {"input": rows})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("logits", logits)])
"""
)

_PYTRITON_SERVER = (
    _SESSION
    + """
import sys
import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

model, name, max_batch, grpc_port, http_port, metrics_port = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
session = open_session(model)

@batch
def infer(input):
    return {"logits": session.run(["logits"], {"input": input})[0]}

config = TritonConfig(
    grpc_address="127.0.0.1", http_address="127.0.0.1", metrics_address="127.0.0.1",
    grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port,
)
with Triton(config=config) as server:
    server.bind(
        model_name=name,
        infer_func=infer,
        inputs=[Tensor(name="input", dtype=np.float32, shape=(3, 32, 32))],
        outputs=[Tensor(name="logits", dtype=np.float32, shape=(10,))],
        config=ModelConfig(max_batch_size=max_batch, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
    )
    server.serve()
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """How to start a server.

    Args:
        name: What tables call it.
        command: Its arguments.
        address: Where its gRPC port will be.
        folder: Where it runs.
        environment: Variables beside this process's own.
    """

    name: str
    command: Sequence[str]
    address: str
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def ours(bundle: Path, *, name: str = "guarded", guarded: bool = True, flags: Sequence[str] = ()) -> Server:
    """Return guard-serve, or the same server with the original model alone."""
    port, metrics_port = _free_ports(2)
    command = [
        sys.executable, "-m", "serving" if guarded else "benchmarks.unguarded", str(bundle.resolve()),
        "--port", str(port), "--metrics-port", str(metrics_port), "--model-name", MODEL, *flags,
    ]  # fmt: skip
    return Server(name=name, command=command, address=f"{_HOST}:{port}", folder=Path.cwd())


def mlserver(bundle: Path, out: Path) -> Server:
    """Return MLServer with a runtime of a few lines, which like its own ones runs the model on the event loop."""
    python = _environment(out / "mlserver", "mlserver==1.7.1")
    folder = out / "mlserver-model"
    folder.mkdir(exist_ok=True)
    grpc_port, http_port, metrics_port = _free_ports(3)
    (folder / "rt.py").write_text(_MLSERVER_RUNTIME)
    (folder / "settings.json").write_text(
        f'{{"host": "{_HOST}", "grpc_port": {grpc_port}, "http_port": {http_port}, "metrics_port": {metrics_port},'
        ' "parallel_workers": 0, "debug": false}'
    )
    (folder / "model-settings.json").write_text(
        f'{{"name": "{MODEL}", "implementation": "rt.Ort", "max_batch_size": {MAX_BATCH}, "max_batch_time": 0.005,'
        f' "parameters": {{"uri": "{(bundle / ORIGINAL).resolve()}"}}}}'
    )
    command = [str(python.parent / "mlserver"), "start", "."]
    return Server(name="MLServer, unguarded", command=command, address=f"{_HOST}:{grpc_port}", folder=folder)


def pytriton(bundle: Path, out: Path) -> Server:
    """Return PyTriton, whose Triton hands batches to a Python process that runs the model."""
    python = _environment(out / "pytriton", "nvidia-pytriton==0.7.0")
    script = out / "pytriton_server.py"
    script.write_text(_PYTRITON_SERVER)
    ports = _free_ports(3)
    model = str((bundle / ORIGINAL).resolve())
    return Server(
        name="PyTriton, unguarded",
        command=[str(python), str(script.resolve()), model, MODEL, str(MAX_BATCH), *map(str, ports)],
        address=f"{_HOST}:{ports[0]}",
        folder=out,
        # Its stub would else find another libpython of this version, with the standard library of this one.
        environment={"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))},
    )


@contextmanager
def started(server: Server, log: Path) -> Iterator[int]:
    """Run a server in a session of its own for as long as the block lasts, and give its process."""
    with (
        log.open("w") as words,
        subprocess.Popen(
            server.command,
            cwd=server.folder,
            env={**os.environ, **server.environment},
            stdout=words,
            stderr=words,
            start_new_session=True,
        ) as process,
    ):
        try:
            _wait_until_ready(server, process, log)
            yield process.pid
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def cpu_s(session: int) -> float:
    """Return the processor seconds that the processes of a session have used."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _wait_until_ready(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_S
    with triton.InferenceServerClient(server.address) as client:
        while time.monotonic() < end and process.poll() is None:
            with suppress(InferenceServerException):
                if client.is_model_ready(MODEL):
                    return
            time.sleep(0.2)
    raise SystemExit(f"{server.name} did not start; {log} says why")


def _environment(folder: Path, requirement: str) -> Path:
    """Return the interpreter of a virtual environment with a peer and this one's onnxruntime."""
    python = folder / "bin" / "python"
    ready = folder / re.sub(r"\W", "_", requirement)
    if not ready.exists():
        venv.create(folder, with_pip=True, clear=True)
        wanted = [requirement, f"onnxruntime=={version('onnxruntime')}"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        ready.touch()
    return python.absolute()


def _free_ports(n: int) -> list[int]:
    sockets = [socket.create_server((_HOST, 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
