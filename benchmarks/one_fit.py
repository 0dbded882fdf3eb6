"""Learn one set of bounds in a process of its own, whose seconds and memory are the method's.

``python -m benchmarks.one_fit MODEL.onnx METHOD N_IMAGES OUT.npz``
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.detection import SHARED
from benchmarks.images import load_images
from benchmarks.timing import silent
from calibrate.bounds import METHODS
from calibrate.data import CalibrationSplit, Samples
from calibrate.graph import Classifier, find_sites, read_classifier
from calibrate.sites import ActivationBounds, BoundsProblem
from guard.errors import CalibrationError
from guard.types import IntArray

__all__ = ["OneFit", "fit_apart", "load_split"]

_N_FOR_BOUNDS, _N_FOR_THRESHOLDS = 1000, 1100  # of the 2500 calibration images; the rest is not used


@dataclass(frozen=True, slots=True, kw_only=True)
class OneFit:
    """Bounds and what they cost; no bounds where the method refused, with its reason."""

    bounds: ActivationBounds | None
    refusal: str
    seconds: float
    peak_mib: float


def fit_apart(model: Path, method: str, n: int, place: Path) -> OneFit:
    """Learn bounds from n images in another process, or read what an earlier one left in the place."""
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.one_fit", str(model), method, str(n), str(place)]
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
        place.with_suffix(".json").write_text(json.dumps({"peak_mib": usage.ru_maxrss / 1024}))
    peak = json.loads(place.with_suffix(".json").read_text())["peak_mib"]
    with np.load(place, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    sides = {
        side: {name.removeprefix(f"{side}:"): found[name] for name in found if name.startswith(f"{side}:")}
        for side in ("upper", "lower")
    }
    bounds = ActivationBounds(method=method, settings={}, **sides) if sides["upper"] else None
    return OneFit(bounds=bounds, refusal=str(found["refusal"]), seconds=float(found["seconds"]), peak_mib=peak)


def load_split(classifier: Classifier, n: int) -> CalibrationSplit:
    """Return n images for the bounds, balanced by class, and 1100 others for the thresholds, always the same."""
    samples = load_images(SHARED / "data" / "cifar10-calibration.tar", classifier.inputs)
    pool = samples.take(np.arange(_N_FOR_BOUNDS))
    thresholds = samples.take(np.arange(_N_FOR_BOUNDS, _N_FOR_BOUNDS + _N_FOR_THRESHOLDS))
    return CalibrationSplit(bounds=_balanced(pool, n), threshold=thresholds, held_out=thresholds)


def _balanced(pool: Samples, n: int) -> Samples:
    """Take n samples: the first of every class, then the second of every class, and so on."""
    assert pool.labels is not None
    turn: IntArray = np.zeros(len(pool), dtype=np.int64)
    for label in np.unique(pool.labels):
        rows = np.flatnonzero(pool.labels == label)
        turn[rows] = np.arange(len(rows))
    return pool.take(np.sort(np.argsort(turn, kind="stable")[:n]))


def _fit(model: Path, method: str, n: int, place: Path) -> None:
    classifier = read_classifier(model)
    samples = load_split(classifier, n).bounds
    assert samples.labels is not None
    problem = BoundsProblem(
        model=classifier.model,
        logits=classifier.logits,
        sites=find_sites(classifier.model),
        n_classes=classifier.n_classes,
        inputs=samples,
        labels=samples.labels,
        max_accuracy_drop=0.03,
        seed=0,
        progress=silent,
    )
    started, refusal = time.perf_counter(), ""
    arrays: dict[str, Any] = {}
    try:
        bounds = METHODS[method](problem)
        sides = {"upper": bounds.upper, "lower": bounds.lower}
        arrays = {f"{side}:{site}": bound for side, found in sides.items() for site, bound in found.items()}
    except CalibrationError as error:
        refusal = str(error)
    np.savez(place, refusal=np.array(refusal), seconds=np.array(time.perf_counter() - started), **arrays)


if __name__ == "__main__":
    _fit(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
