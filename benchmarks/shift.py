"""What harmless shift of the inputs costs: clean images, mildly corrupted, that the guard flags or answers wrongly."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.corruptions import CORRUPTIONS, corrupt
from benchmarks.detection import SHARED
from benchmarks.images import load_images
from benchmarks.timing import silent
from calibrate.data import Preprocessing
from calibrate.pipeline import FitSettings, fit_bundle
from guard import Guard
from guard.types import FloatArray

__all__ = ["measure"]

MODELS, METHODS = ("clean", "badnets", "wanet"), ("auto", "few-shot")
SEVERITIES = (1, 2)
N_IMAGES = 1000


def measure(out: Path) -> Iterator[str]:
    """Yield a table: one row per model, method and corruption."""
    del out
    if not (SHARED / "zoo").is_dir():
        yield f"skipped: {SHARED}/zoo is absent"
        return
    yield (
        f"{N_IMAGES} clean test images under the common corruptions (Hendrycks and Dietterich 2019), at severity 1 / 2:"
        " the share\nflagged at a 1 % threshold (fitted on 2000 uncorrupted images), and accuracy before and after.\n"
    )
    yield "| model | method | corruption | flagged | accuracy | accuracy, guarded |"
    yield "|---|---|---|---|---|---|"
    for model in MODELS:
        for method in METHODS:
            yield from _rows(model, method)


def _rows(model: str, method: str) -> Iterator[str]:
    source = SHARED / "zoo" / f"cifar10-resnet18-{model}.onnx"
    with tempfile.TemporaryDirectory() as folder:
        settings = FitSettings(method=method, preprocessing=Preprocessing(), limit=2000)
        fit_bundle(source, SHARED / "data" / "cifar10-calibration.tar", Path(folder) / "b", settings, silent)
        guard = Guard.load(Path(folder) / "b")
    test = load_images(SHARED / "data" / "cifar10-test.tar", guard.manifest.inputs, limit=N_IMAGES)
    images = np.asarray(test[slice(0, N_IMAGES)])
    for name in ("none", *CORRUPTIONS):
        found = [
            _judged(guard, images, np.asarray(test.labels), name, s) for s in (SEVERITIES if name != "none" else (0,))
        ]
        columns = (" / ".join(f"{figures[i]:.3f}" for figures in found) for i in range(3))
        yield f"| {model} | {method} | {name} | {' | '.join(columns)} |"


def _judged(guard: Guard, images: FloatArray, labels: FloatArray, name: str, severity: int) -> tuple[float, ...]:
    """Return the share flagged, and accuracy before and after."""
    if severity:
        pixels = np.round(255 * images.transpose(0, 2, 3, 1)).astype(np.uint8)
        pixels = corrupt(pixels, name, severity, np.random.default_rng(0))
        images = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
    verdicts = [guard(images[i : i + 250]) for i in range(0, len(images), 250)]
    flagged, before, after = (
        np.concatenate([getattr(v, key) for v in verdicts]) for key in ("flagged", "predicted_class", "corrected_class")
    )
    return float(flagged.mean()), float((before == labels).mean()), float((after == labels).mean())
