"""What `inspect` says about backdoored and clean models: the CIFAR-10 ones beside the repository, and digits.

The full depth takes more than half an hour of one core per CIFAR-10 model. Stopped, it goes on
where it was: inspections are kept; ``inspection:kept`` tells what there is without looking at more models.
"""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.detection import MODELS, SHARED
from benchmarks.digits_models import load_split, train_digits
from benchmarks.timing import silent
from calibrate.data import Preprocessing
from calibrate.inspect_pipeline import InspectSettings, inspect_model
from calibrate.inspection.inspection import Depth

__all__ = ["measure"]

N = 1000
TARGETS = {"badnets": "0", "wanet": "3", "blend": "5", "all2all": "label + 1", "tact": "2, from 5 only"}
DIGITS = (
    *((10, None, seed) for seed in range(5)), *((10, target, target) for target in (0, 4, 7)),
    *((2, None, seed) for seed in range(2)), *((2, target, target) for target in (0, 1)),
)  # fmt: skip
"""Classes, target class and seed."""
COLUMNS = (
    "model", "target", "depth", "verdict", "class", "head: class, p", "BAN: class, S, verdict", "MESA: class, lead",
    "lint findings", "s",
)  # fmt: skip


def measure(out: Path, *, only_kept: bool = False) -> Iterator[str]:
    """Yield a table: one row per model and depth."""
    yield f"`guard-calibrate inspect --limit {N}`; class: suspected; lead: MESA's over a control class.\n"
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{'---|' * len(COLUMNS)}"
    kept = out / "inspection"
    kept.mkdir(parents=True, exist_ok=True)
    depths: tuple[Depth, ...] = ("standard", "full")
    for depth in depths if (SHARED / "zoo").is_dir() else ():
        for name in (*MODELS, "clean"):
            model = SHARED / "zoo" / f"cifar10-resnet18-{name}.onnx"
            place = kept / f"{name}-{depth}.json"
            if only_kept and not place.exists():
                yield f"| CIFAR-10, {name} | {TARGETS.get(name, 'none')} | {depth} | not run{' |' * (len(COLUMNS) - 3)}"
                continue
            found = _inspect(model, SHARED / "data" / "cifar10-calibration.tar", place, depth)
            yield _row(f"CIFAR-10, {name}", TARGETS.get(name, "none"), found)
    for n_classes, target, seed in DIGITS:
        name = f"{n_classes} classes of digits, {'clean' if target is None else 'badnets'} {seed}"
        found = _inspect_digits(kept / name.replace(" ", "-").replace(",", ""), n_classes, target, seed)
        yield _row(name, "none" if target is None else str(target), found)


def _inspect_digits(place: Path, n_classes: int, target: int | None, seed: int) -> Mapping[str, Any]:
    model, data = place.with_suffix(".onnx"), place.with_suffix(".npz")
    if not data.exists():
        train_digits(model, n_classes=n_classes, target=target, seed=seed)
        _, (inputs, labels) = load_split(n_classes)
        np.savez(data, inputs=inputs, labels=labels)
    return _inspect(model, data, place.with_suffix(".json"), "standard")


def _inspect(model: Path, data: Path, place: Path, depth: Depth) -> Mapping[str, Any]:
    """Inspect a model, or read what an earlier inspection found."""
    if not place.exists():
        started = time.perf_counter()
        settings = InspectSettings(depth=depth, preprocessing=Preprocessing(), limit=N)
        found = inspect_model(model, data, settings, silent)
        place.write_text(json.dumps({**found.summary(), "seconds": time.perf_counter() - started}))
    return dict(json.loads(place.read_text()))


def _row(name: str, target: str, found: Mapping[str, Any]) -> str:
    prior, ban, mesa = found["suspicion"]["class_prior"], found["ban"], found["mesa"]
    cells = (
        name,
        target,
        found["depth"],
        found["verdict"],
        found["suspected_target_class"],
        None if prior is None else f"{prior['greatest']}, {prior['p_value']:.4f}",
        f"{ban['top_class']}, {ban['vote_share']:.3f}, {ban['verdict']}",
        None if mesa is None else f"{mesa['suspected']['target_class']}, {mesa['lead']:.2f}",
        len(found["lint"]),
        f"{found['seconds']:.0f}",
    )
    return f"| {' | '.join('-' if cell is None else str(cell) for cell in cells)} |"
