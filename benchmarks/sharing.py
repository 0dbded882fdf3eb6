"""Whether two onnxruntime sessions can share their weights in memory, and what that costs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx

from benchmarks.models import write_resnet18

__all__ = ["measure"]

_SESSIONS = """
import json, re, sys, time, numpy, onnxruntime
path, level, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
sessions = [onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for _ in range(n)]
inputs, seconds = numpy.random.default_rng(0).random((8, 3, 32, 32), "float32"), []
for session in sessions:
    session.run(None, {"input": inputs})
for _ in range(15):
    started = time.perf_counter()
    sessions[0].run(None, {"input": inputs})
    seconds.append(time.perf_counter() - started)
pss = re.search(r"^Pss:\\s+(\\d+)", open("/proc/self/smaps_rollup").read(), re.M)[1]
print(json.dumps({"mib": int(pss) / 1024, "s": float(numpy.median(seconds))}))
"""


def measure(out: Path) -> Iterator[str]:
    """Yield a table: what a second session adds in memory, and latency, per way of keeping weights."""
    inline = write_resnet18(out / "resnet18.onnx")
    beside = out / "resnet18-beside.onnx"
    (out / "weights.bin").unlink(missing_ok=True)
    onnx.save(onnx.load(inline), beside, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    yield "ResNet-18, width 64 (43 MiB of weights); batch 8, proportional set size after one run each.\n"
    yield "| weights | onnxruntime's optimisation | one session, MiB | a second one adds, MiB | latency |"
    yield "|---|---|---|---|---|"
    base = 0.0
    for where, path in (("in the model", inline), ("in a file mapped by both", beside)):
        for name, level in (("all (default)", "ORT_ENABLE_ALL"), ("no reordered layout", "ORT_ENABLE_EXTENDED")):
            one, two = (_run(path, level, n) for n in (1, 2))
            base = base or one["s"]
            added, ratio = two["mib"] - one["mib"], one["s"] / base
            yield f"| {where} | {name} | {one['mib']:.0f} | {added:.0f} | {ratio:.2f} |"


def _run(path: Path, level: str, n: int) -> dict[str, float]:
    command = [sys.executable, "-c", _SESSIONS, str(path), level, str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found
