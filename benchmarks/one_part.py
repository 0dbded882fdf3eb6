"""One look at a model, or a hundredth of a published method, in a process of its own; prints its seconds.

``python -m benchmarks.one_part MODEL.onnx SAMPLES.npz PART``
"""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from benchmarks.timing import silent
from calibrate.bounds.mmac_published import fit_mmac_published
from calibrate.bounds.mmac_settings import PublishedMmacSettings
from calibrate.bounds.unit_published import PublishedUnitSettings, fit_unit_published
from calibrate.graph import find_sites, read_classifier
from calibrate.inspection.ban import detect_ban
from calibrate.inspection.mesa import MesaSettings, recover_triggers
from calibrate.inspection.problem import InspectionProblem
from calibrate.inspection.suspicion import score_channels
from calibrate.inspection.trigger_families import TriggerKind
from calibrate.sites import BoundsProblem, RowsInMemory

__all__ = ["HUNDREDTHS", "LOOKS"]


def _one_generator(problem: InspectionProblem) -> object:
    """Train one patch generator for the rarest class, which an untrained model hardly gives: every step is taken."""
    rarest = int(np.bincount(problem.labels, minlength=problem.n_classes).argmin())
    settings = MesaSettings(kinds=(TriggerKind(family="patch", size=3),), betas=(0.9,))
    return recover_triggers(problem, rarest, settings=settings)


def _hundredth_of_unit(problem: BoundsProblem) -> object:
    return fit_unit_published(problem, settings=PublishedUnitSettings(steps=3))


def _hundredth_of_mmac(problem: BoundsProblem) -> object:
    """Take 3 of 300 epochs, and 3 of 300 steps of each of the three climbs."""
    settings = PublishedMmacSettings(epochs=3, refresh_every=1, ascent_steps=3)
    return fit_mmac_published(problem, settings=settings)


LOOKS: Mapping[str, Callable[[InspectionProblem], object]] = {
    "suspicion": score_channels,
    "ban": detect_ban,
    "mesa, one generator": _one_generator,
}
HUNDREDTHS: Mapping[str, Callable[[BoundsProblem], object]] = {
    "unit-published": _hundredth_of_unit,
    "mmac-published": _hundredth_of_mmac,
}


def _time(model: Path, samples: Path, part: str) -> float:
    classifier = read_classifier(model)
    with np.load(samples, allow_pickle=False) as arrays:
        inputs, labels = RowsInMemory(inputs=arrays["inputs"]), arrays["labels"]
    sites = find_sites(classifier.model)
    started = time.perf_counter()
    if part in LOOKS:
        LOOKS[part](InspectionProblem(
            model=classifier.model, logits=classifier.logits, sites=sites, n_classes=classifier.n_classes,
            inputs=inputs, labels=labels, seed=0, progress=silent,
        ))  # fmt: skip
    else:
        HUNDREDTHS[part](BoundsProblem(
            model=classifier.model, logits=classifier.logits, sites=sites, n_classes=classifier.n_classes,
            inputs=inputs, labels=labels, max_accuracy_drop=0.03, seed=0, progress=silent,
        ))  # fmt: skip
    return time.perf_counter() - started


if __name__ == "__main__":
    print(_time(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
