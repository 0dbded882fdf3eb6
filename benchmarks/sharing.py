"""Whether two onnxruntime sessions can share their weights in memory, and what that costs."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from benchmarks.models import write_resnet18
from benchmarks.timing import medians_s

__all__ = ["measure"]

_MEMORY = """
import re, sys, numpy, onnxruntime
path, level, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
options = onnxruntime.SessionOptions()
options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
sessions = [onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for _ in range(n)]
for session in sessions:
    session.run(None, {"input": numpy.zeros((8, 3, 32, 32), "float32")})
print(re.search(r"^Pss:\\s+(\\d+)", open("/proc/self/smaps_rollup").read(), re.M)[1])
"""
_LEVELS = {"all (default)": "ORT_ENABLE_ALL", "no reordered layout": "ORT_ENABLE_EXTENDED"}


def measure(out: Path) -> Iterator[str]:
    """Yield a table: what a second session adds in memory, and latency, per way of keeping weights."""
    inline = write_resnet18(out / "resnet18.onnx")
    beside = out / "resnet18-beside.onnx"
    (out / "weights.bin").unlink(missing_ok=True)
    onnx.save(onnx.load(inline), beside, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    yield "ResNet-18, width 64 (43 MiB of weights); batch 8; proportional set size after one run of each session.\n"
    yield "| weights | onnxruntime's optimisation | one session, MiB | a second one adds, MiB | latency |"
    yield "|---|---|---|---|---|"
    for where, path in (("in the model", inline), ("in a file mapped by both", beside)):
        seconds = _latencies(path)
        for name, level in _LEVELS.items():
            one, two = (_memory_mib(path, level, n) for n in (1, 2))
            yield f"| {where} | {name} | {one:.0f} | {two - one:.0f} | {seconds[name] / seconds['all (default)']:.2f} |"


def _memory_mib(path: Path, level: str, n: int) -> float:
    command = [sys.executable, "-c", _MEMORY, str(path), level, str(n)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024


def _latencies(path: Path) -> dict[str, float]:
    inputs = {"input": np.random.default_rng(0).random((8, 3, 32, 32), dtype=np.float32)}
    sessions = {}
    for name, level in _LEVELS.items():
        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        sessions[name] = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return medians_s({name: partial(s.run, None, inputs) for name, s in sessions.items()}, rounds=20)
