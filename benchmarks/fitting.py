"""How long a fit takes, per method, with the peak memory of the process."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.models import write_resnet18
from calibrate.bounds import METHODS

__all__ = ["measure"]

ZOO_MODEL = Path("../shared/zoo/cifar10-resnet18-badnets.onnx")
ZOO_DATA = Path("../shared/data/cifar10-calibration.tar")
N = 1000


def measure(out: Path) -> Iterator[str]:
    """Yield a table: seconds of the whole command, and peak resident memory, per model and method."""
    full = write_resnet18(out / "resnet18.onnx")
    inputs = np.random.default_rng(0).random((N, 3, 32, 32), dtype=np.float32)
    np.savez(out / "random.npz", inputs=inputs)
    # Random inputs have no classes to keep apart, so that bounds may cost any accuracy there.
    cases = [("ResNet-18, width 64, random inputs", full, out / "random.npz", N, "sigma", 0.99)]
    if ZOO_MODEL.exists():
        cases = [("ResNet-18, width 16, CIFAR-10", ZOO_MODEL, ZOO_DATA, 2000, m, 0.03) for m in METHODS] + cases
    yield "| model | method | samples | fit, s | peak memory, MiB |"
    yield "|---|---|---|---|---|"
    for name, model, data, limit, method, drop in cases:
        arguments = [str(model), "--data", str(data), "--method", method, "--bundle", str(out / "fitted"),
                     "--limit", str(limit), "--max-accuracy-drop", str(drop)]  # fmt: skip
        seconds, peak = _run(arguments)
        yield f"| {name} | {method} | {limit} | {seconds:.1f} | {peak:.0f} |"


def _run(arguments: list[str]) -> tuple[float, float]:
    """Return the seconds and the peak MiB of one fit in a process of its own."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "calibrate", "fit", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the fit ended with status {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024
