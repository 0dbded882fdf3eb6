"""What BAN says about backdoored and clean models: the CIFAR-10 ones beside the repository, and digits trained here."""

import time
from collections.abc import Iterator
from pathlib import Path

import onnx

from benchmarks.detection import MODELS, SHARED
from benchmarks.digits_models import load_split, train_digits
from benchmarks.timing import silent
from calibrate.data import Preprocessing, load_samples
from calibrate.graph import find_sites, read_classifier
from calibrate.inspection.ban import detect_ban
from calibrate.inspection.problem import InspectionProblem
from calibrate.sites import Rows, RowsInMemory
from guard.types import IntArray

__all__ = ["measure"]

N = 1000
TARGETS = {"badnets": "0", "wanet": "3", "blend": "5", "all2all": "label + 1", "tact": "2, from 5 only"}
DIGITS = (
    *((10, None, seed) for seed in range(3)), *((10, target, target) for target in (0, 4, 7)),
    *((2, None, seed) for seed in range(2)), *((2, target, target) for target in (0, 1)),
)  # fmt: skip
"""Classes, target class and seed."""


def measure(out: Path) -> Iterator[str]:
    """Yield a table: one row per model, as `guard-calibrate inspect` would see it."""
    yield f"BAN with its defaults; {N} clean CIFAR-10 images or 897 digits; S: share of the votes for the top class.\n"
    yield "| model | target | S | 95 % interval | top class | seeds that agree | verdict | s |"
    yield "|---|---|---|---|---|---|---|---|"
    if not (SHARED / "zoo").is_dir():
        yield f"| skipped: {SHARED}/zoo is absent |"
    else:
        for name in (*MODELS, "clean"):
            yield _row(f"CIFAR-10 {name}", TARGETS.get(name, "-"), _cifar10(name))
    for n_classes, target, seed in DIGITS:
        problem = _digits(out, n_classes, target, seed)
        yield _row(f"{n_classes} digit classes, seed {seed}", "-" if target is None else str(target), problem)


def _row(name: str, target: str, problem: InspectionProblem) -> str:
    started = time.perf_counter()
    found = detect_ban(problem)
    lower, upper = found.interval
    return (
        f"| {name} | {target} | {found.vote_share:.3f} | {lower:.3f} to {upper:.3f} | {found.top_class} |"
        f" {found.n_agreeing} of {len(found.histograms)} | {found.verdict} | {time.perf_counter() - started:.1f} |"
    )


def _cifar10(name: str) -> InspectionProblem:
    classifier = read_classifier(SHARED / "zoo" / f"cifar10-resnet18-{name}.onnx")
    samples = load_samples(
        SHARED / "data" / "cifar10-calibration.tar", inputs=classifier.inputs, n_classes=10,
        preprocessing=Preprocessing(), limit=N, seed=0, progress=silent,
    )  # fmt: skip
    assert samples.labels is not None
    return _problem(classifier.model, samples, samples.labels, 10)


def _digits(out: Path, n_classes: int, target: int | None, seed: int) -> InspectionProblem:
    model = train_digits(out / "digits.onnx", n_classes=n_classes, target=target, seed=seed)
    _, (inputs, labels) = load_split(n_classes)
    return _problem(model, RowsInMemory(inputs=inputs), labels, n_classes)


def _problem(model: onnx.ModelProto, inputs: Rows, labels: IntArray, n_classes: int) -> InspectionProblem:
    return InspectionProblem(
        model=model, logits="logits", sites=find_sites(model), n_classes=n_classes, inputs=inputs, labels=labels,
        seed=0, progress=silent,
    )  # fmt: skip
