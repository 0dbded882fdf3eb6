"""How long a fit takes, per method, and each look at a model, with the peak memory of the process.

The network is a full-width ResNet-18, untrained: what a fit costs depends on the graph and not on what it has learned.
Its inputs are 1000 CIFAR-10 calibration images, over which the logits are standardised so that every class occurs, and
their labels are the network's own predictions, written beforehand, so that there is an accuracy to lose and the methods
search and stop as they do in use.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.detection import SHARED
from benchmarks.images import load_images
from benchmarks.models import write_resnet18
from benchmarks.one_part import HUNDREDTHS, LOOKS
from calibrate.bounds import METHODS
from calibrate.forward import forward, predict
from calibrate.graph import read_classifier
from guard.types import FloatArray

__all__ = ["measure"]

N = 1000


def measure(out: Path, *, methods: Iterable[str] = METHODS, parts: Iterable[str] = (*LOOKS,)) -> Iterator[str]:
    """Yield two tables: whole fits per method, and what each look at a model takes."""
    if not (SHARED / "data").is_dir():
        yield f"skipped: {SHARED}/data is absent"
        return
    model, data = _write_model_and_samples(out)
    yield f"ResNet-18, width 64, 32 x 32; {N} CIFAR-10 images, labelled by the untrained network itself.\n"
    yield "| method | fit, s | peak memory, MiB |"
    yield "|---|---|---|"
    for method in methods:
        if method in HUNDREDTHS:
            seconds, peak = _part(model, data, method)
            yield f"| {method} | about {100 * seconds:.0f}: 100 times {seconds:.1f}, a hundredth | {peak} |"
        else:
            yield f"| {method} | {_fit(model, data, method, out / 'fitted')} |"
    yield "\n| look | s | peak memory, MiB |"
    yield "|---|---|---|"
    for part in parts:
        seconds, peak = _part(model, data, part)
        yield f"| {part} | {seconds:.1f} | {peak} |"


def _write_model_and_samples(out: Path) -> tuple[Path, Path]:
    """Write the network and model-ready images with the classes that it predicts, unless they are there already."""
    place, data = out / "resnet18-standardised.onnx", out / "labelled.npz"
    if place.exists() and data.exists():
        return place, data
    classifier = read_classifier(write_resnet18(out / "resnet18.onnx"))
    samples = load_images(SHARED / "data" / "cifar10-calibration.tar", classifier.inputs, limit=N)
    logits = np.concatenate([found[classifier.logits] for _, found in forward(classifier.model, ["logits"], samples)])
    _standardise(classifier.model.graph, logits.mean(axis=0), logits.std(axis=0))
    onnx.save(classifier.model, place)
    labels = predict(classifier.model, classifier.logits, samples)
    np.savez(data, inputs=np.asarray(samples[0:N]), labels=labels)
    return place, data


def _standardise(graph: onnx.GraphProto, mean: FloatArray, std: FloatArray) -> None:
    """Let the last layer, a Gemm with transposed weights, subtract these means and divide by these deviations."""
    weight, bias = ({i.name: i for i in graph.initializer}[name] for name in graph.node[-1].input[1:])
    for stored, values in (
        (weight, numpy_helper.to_array(weight) / std[:, None]),
        (bias, (numpy_helper.to_array(bias) - mean) / std),
    ):
        stored.CopyFrom(numpy_helper.from_array(values.astype(np.float32), stored.name))


def _fit(model: Path, data: Path, method: str, bundle: Path) -> str:
    """Return the seconds and the peak MiB of a whole fit, or that it was refused."""
    started = time.perf_counter()
    options = ["--data", str(data), "--method", method, "--bundle", str(bundle)]
    status, _, peak = _run(["calibrate", "fit", str(model), *options])
    return f"{time.perf_counter() - started:.1f}{' (refused)' if status else ''} | {peak}"


def _part(model: Path, data: Path, part: str) -> tuple[float, int]:
    """Return the seconds of one part and the peak MiB of its process."""
    _, told, peak = _run(["benchmarks.one_part", str(model), str(data), part])
    return float(told), peak


def _run(module: list[str]) -> tuple[int, str, int]:
    """Run a module in a process of its own; return its status, what it printed and its peak resident MiB."""
    process = subprocess.Popen([sys.executable, "-m", *module], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, told, usage.ru_maxrss // 1024
