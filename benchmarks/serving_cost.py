"""What a guarded model costs beside the plain one: latency in process, and the memory of serving."""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

from benchmarks.models import write_resnet18, write_resnet50
from benchmarks.timing import medians_s, silent
from calibrate.data import Preprocessing
from calibrate.pipeline import FitSettings, fit_bundle
from guard.bundle import ORIGINAL
from guard.model import OrtModel
from guard.runtime import Guard
from guard.types import FloatArray

__all__ = ["fitted_bundle", "measure"]

BATCHES = {1: 60, 8: 20, 64: 6}  # rounds per batch size
N_CALIBRATION = 400
_IMAGE = (3, 32, 32)

_PLAIN_SESSION = """
import sys, numpy
from guard.model import OrtModel
model = OrtModel(open(sys.argv[1], 'rb').read(), label='plain')
model.run(numpy.zeros((64, 3, 32, 32), 'float32'), ['logits'])
print(open('/proc/self/status').read())
"""


def measure(out: Path) -> Iterator[str]:
    """Yield a table per model, guarded over plain latency, and one of the memory of a session and of serving."""
    for name, write in (("ResNet-18", write_resnet18), ("ResNet-50", write_resnet50)):
        folder = out / name.lower()
        bundle = fitted_bundle(write(folder / "model.onnx"), folder)
        yield f"\n{name}, width 64, 32 x 32, fitted as by default; medians within one run.\n"
        yield from _latency(bundle)
    yield from _memory_of_serving(out / "resnet-18" / "cost")


def _latency(bundle: Path) -> Iterator[str]:
    plain = OrtModel((bundle / ORIGINAL).read_bytes(), label="plain")
    guard = Guard.load(bundle)
    calm, triggered = _rows(guard)
    yield "| batch | plain, ms | one pass alone | all rows clean | a share as at the thresholds | all rows flagged |"
    yield "|---|---|---|---|---|---|"
    for n, rounds in BATCHES.items():
        clean, flagged, mixed = calm[:n], triggered[:n], np.random.default_rng(2).random((n, *_IMAGE), dtype=np.float32)
        seconds = medians_s(
            {
                "plain": partial(plain.run, clean, ["logits"]),
                "one": partial(guard.run_original, clean),
                "clean": partial(guard, clean),
                "mixed": partial(guard, mixed),
                "flagged": partial(guard, flagged),
            },
            rounds=rounds,
        )
        ratios = (f"{seconds[k] / seconds['plain']:.2f}" for k in ("one", "clean", "mixed", "flagged"))
        yield f"| {n} | {1000 * seconds['plain']:.1f} | {' | '.join(ratios)} |"


def _rows(guard: Guard) -> tuple[FloatArray, FloatArray]:
    """Return rows that are not corrected and rows that are flagged, as many as the largest batch has."""
    many = np.random.default_rng(2).random((2 * max(BATCHES), *_IMAGE), dtype=np.float32)
    calm = many[~guard(many).corrected][: max(BATCHES)]
    triggered = np.zeros_like(calm)
    if len(calm) < max(BATCHES) or not guard(triggered).flagged.all():
        raise SystemExit("random images are not clean to this guard, or black ones are not flagged; fit it again")
    return calm, triggered


def _memory_of_serving(bundle: Path) -> Iterator[str]:
    command = [sys.executable, "-c", _PLAIN_SESSION, str(bundle / ORIGINAL)]
    alone = _memory(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    served = _memory(_status_of_server(bundle))
    yield "\n| process, after one batch of 64 | resident, MiB | peak, MiB |"
    yield "|---|---|---|"
    yield f"| python with one plain session | {alone[0]} | {alone[1]} |"
    yield f"| guard-serve | {served[0]} | {served[1]} |"


def fitted_bundle(model: Path, out: Path) -> Path:
    """Fit a model as by default on random images, and return the bundle."""
    data = out / "calibration.npz"
    np.savez(data, inputs=np.random.default_rng(0).random((N_CALIBRATION, *_IMAGE), dtype=np.float32))
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
