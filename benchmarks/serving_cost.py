"""What a guarded model costs beside the plain one: latency in process, and the memory of serving."""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

from benchmarks.models import write_resnet18
from benchmarks.timing import medians_s, silent
from calibrate.data import Preprocessing
from calibrate.pipeline import FitSettings, fit_bundle
from guard.bundle import ORIGINAL
from guard.model import OrtModel
from guard.runtime import Guard

__all__ = ["measure"]

BATCHES = {1: 60, 8: 20, 64: 6}  # rounds per batch size
N_CALIBRATION = 400

_PLAIN_SESSION = """
import sys, numpy
from guard.model import OrtModel
model = OrtModel(open(sys.argv[1], 'rb').read(), label='plain')
model.run(numpy.zeros((64, 3, 32, 32), 'float32'), ['logits'])
print(open('/proc/self/status').read())
"""


def measure(out: Path) -> Iterator[str]:
    """Yield two tables: guarded over plain latency, and the memory of one session and of serving a bundle."""
    bundle = _bundle(out)
    plain = OrtModel((bundle / ORIGINAL).read_bytes(), label="plain")
    guard = Guard.load(bundle)
    yield "ResNet-18, width 64, 32 x 32, fitted as by default; inputs as those calibrated on; medians within one run.\n"
    yield "| batch | plain, ms | guarded, ms | ratio |"
    yield "|---|---|---|---|"
    for n, rounds in BATCHES.items():
        inputs = np.random.default_rng(2).random((n, 3, 32, 32), dtype=np.float32)
        seconds = medians_s(
            {"plain": partial(plain.run, inputs, ["logits"]), "guarded": partial(guard, inputs)}, rounds=rounds
        )
        one, both = seconds["plain"] * 1000, seconds["guarded"] * 1000
        yield f"| {n} | {one:.1f} | {both:.1f} | {both / one:.2f} |"
    command = [sys.executable, "-c", _PLAIN_SESSION, str(bundle / ORIGINAL)]
    alone = _memory(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    served = _memory(_status_of_server(bundle))
    yield "\n| process, after one batch of 64 | resident, MiB | peak, MiB |"
    yield "|---|---|---|"
    yield f"| python with one plain session | {alone[0]} | {alone[1]} |"
    yield f"| guard-serve | {served[0]} | {served[1]} |"


def _bundle(out: Path) -> Path:
    model = write_resnet18(out / "resnet18.onnx")
    data = out / "calibration.npz"
    np.savez(data, inputs=np.random.default_rng(0).random((N_CALIBRATION, 3, 32, 32), dtype=np.float32))
    # An untrained model's classes are arbitrary, so that bounds may cost any accuracy here.
    settings = FitSettings(preprocessing=Preprocessing(), max_accuracy_drop=0.99)
    fit_bundle(model, data, out / "cost", settings, silent)
    return out / "cost"


def _status_of_server(bundle: Path) -> str:
    command = [sys.executable, "-m", "serving", str(bundle), "--port", "0", "--metrics-port", "0", "--model-name", "m"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            found = re.search(r" on (\S+:\d+),", line)
            if found is None:
                raise SystemExit("the server did not start")
            client = triton.InferenceServerClient(found[1])
            tensor = triton.InferInput("input", [64, 3, 32, 32], "FP32")
            tensor.set_data_from_numpy(np.zeros((64, 3, 32, 32), np.float32))
            client.infer("m", [tensor])
            client.close()
            return Path(f"/proc/{process.pid}/status").read_text()
        finally:
            process.terminate()


def _memory(status: str) -> tuple[int, int]:
    kib = {key: int(value) for key, value in re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status)}
    return kib["VmRSS"] // 1024, kib["VmHWM"] // 1024
