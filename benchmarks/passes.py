"""Where the verdicts of one pass and of both models side by side differ, on every attack of the zoo that is there."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.detection import SHARED
from benchmarks.images import load_images
from benchmarks.timing import silent
from benchmarks.zoo import is_trained, onnx_path, triggered_path
from benchmarks.zoo_entries import ENTRIES
from calibrate.command_line import PASSES
from calibrate.data import Preprocessing, Samples
from calibrate.forward import batches
from calibrate.pipeline import FitSettings, fit_bundle
from guard import Guard
from guard.types import BoolArray, IntArray

__all__ = ["measure"]

N_FITTED, N_CLEAN, N_TRIGGERED = 2000, 2000, 500
_BATCH = 250


def measure(out: Path) -> Iterator[str]:
    """Yield a table: one row per attack."""
    del out
    yield f"Fitted on {N_FITTED} clean images at 1 %, the same bounds for both; {N_CLEAN} clean test images, and of"
    yield f"{N_TRIGGERED} triggered ones those that reach the target. *Kept*: of what `--passes both` flags, the share"
    yield "that `--passes one` flags too.\n"
    yield "| attack | TPR, both | TPR, one | kept | FPR, both | FPR, one |"
    yield "|---|---|---|---|---|---|"
    for name, entry in ENTRIES.items():
        if entry.dataset == "cifar10" and entry.attack != "none" and is_trained(name):
            yield _row(name)


def _row(name: str) -> str:
    one, both = (_flags(name, PASSES[passes]) for passes in ("one", "both"))
    kept = one.triggered[both.triggered]
    shares = (both.triggered, one.triggered, kept, both.clean, one.clean)
    return f"| {name} | {' | '.join(f'{flags.mean():.4f}' if len(flags) else '' for flags in shares)} |"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flags:
    """Which clean images (n,) a guard flags, and which triggered ones (m,) that reach the target."""

    clean: BoolArray
    triggered: BoolArray


def _flags(name: str, score: str) -> _Flags:
    with tempfile.TemporaryDirectory() as folder:
        settings = FitSettings(score=score, preprocessing=Preprocessing(), limit=N_FITTED)
        fit_bundle(onnx_path(name), SHARED / "data" / "cifar10-calibration.tar", Path(folder) / "b", settings, silent)
        guard = Guard.load(Path(folder) / "b")
    clean = load_images(SHARED / "data" / "cifar10-test.tar", guard.manifest.inputs, limit=N_CLEAN)
    triggered = load_images(triggered_path(name), guard.manifest.inputs, limit=N_TRIGGERED)
    flagged, predicted = _judge(guard, triggered)
    reaches = (predicted == triggered.target_classes) & (triggered.labels != triggered.target_classes)
    return _Flags(clean=_judge(guard, clean)[0], triggered=flagged[reaches])


def _judge(guard: Guard, samples: Samples) -> tuple[BoolArray, IntArray]:
    verdicts = [guard(samples[part]) for part in batches(len(samples), _BATCH)]
    flagged = np.concatenate([verdict.flagged for verdict in verdicts])
    return flagged, np.concatenate([verdict.predicted_class for verdict in verdicts])
