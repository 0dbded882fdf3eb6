"""Who is on the scoreboard, and how each is measured on one backdoored classifier."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.baselines import BASELINES, OnnxClassifier, score_and_count
from benchmarks.board.cell import Cell
from benchmarks.images import load_images
from benchmarks.timing import silent
from benchmarks.zoo import calibration_path, onnx_path, test_path, triggered_path
from calibrate.data import Preprocessing, Samples
from calibrate.forward import batches
from calibrate.graph import Classifier, read_classifier
from calibrate.pipeline import FitSettings, fit_bundle
from guard import Guard, Verdict
from guard.bundle import load_bundle
from guard.model import OrtModel
from guard.pair import open_models
from guard.scores import predicted_class
from guard.types import BoolArray, FloatArray, Inputs, IntArray, TensorSpec

__all__ = ["CONTENDERS", "Contender", "Scene"]

_BATCH = 250
_SMALL = 200
_N_FIT = 90  # of a baseline's 200 clean images; 110 are for thresholds


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One backdoored classifier with what it is measured on.

    Args:
        name: Of the zoo's entry.
        classifier: The model.
        clean: Clean test images.
        triggered: Triggered test images; None for a clean model.
    """

    name: str
    classifier: Classifier
    clean: Samples
    triggered: Samples | None

    @classmethod
    def of(cls, name: str) -> "Scene":
        """Read a trained entry of the zoo."""
        classifier = read_classifier(onnx_path(name))
        place = triggered_path(name)
        return cls(
            name=name,
            classifier=classifier,
            clean=load_images(test_path(name), classifier.inputs),
            triggered=load_images(place, classifier.inputs) if place.exists() else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A detector as it is measured.

    Args:
        measure: Makes its cell.
        budget: Clean images in all.
        quick: Whether it takes part in the quick scoreboard.
        slow: Whether it takes hours per model, and is measured only where it is named.
    """

    measure: Callable[[Scene, int], Cell]
    budget: int
    quick: bool = False
    slow: bool = False


class _Counting:
    """A model that counts the rows it runs."""

    def __init__(self, model: OrtModel) -> None:
        self.model, self.rows = model, 0
        self.inputs: tuple[TensorSpec, ...] = model.inputs

    def run(self, inputs: Inputs, names: Sequence[str]) -> tuple[NDArray[np.generic], ...]:
        found = self.model.run(inputs, names)
        self.rows += len(found[0])
        return found


def _measure_guard(scene: Scene, seed: int, *, method: str, budget: int, target_fpr: float) -> Cell:
    """Fit with the defaults but for the number of images, and judge as served."""
    settings = FitSettings(method=method, target_fpr=target_fpr, preprocessing=Preprocessing(), limit=budget, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        place, started = Path(folder) / "bundle", time.perf_counter()
        manifest, _ = fit_bundle(onnx_path(scene.name), calibration_path(scene.name), place, settings, silent)
        fit_s = time.perf_counter() - started
        bundle = load_bundle(place)
    models = [_Counting(model) for model in open_models(bundle, threads=1, provider="CPUExecutionProvider")]
    guard = Guard(bundle, original=models[0], bounded=models[1])
    started = time.perf_counter()
    clean = _judged(guard, scene.clean)
    ms = 1000 * (time.perf_counter() - started) / len(scene.clean)
    passes = sum(model.rows for model in models) / len(scene.clean)
    triggered = None if scene.triggered is None else _judged(guard, scene.triggered)
    return Cell(
        clean_scores=clean.score,
        triggered_scores=np.zeros(0)
        if triggered is None
        else triggered.score[_succeeds(scene, triggered.predicted_class)],
        passes=passes,
        ms=ms,
        fit_s=fit_s,
        n_thresholds=int(manifest.calibration["n_threshold_set"]),
        answers=_answers(scene, clean, triggered),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    score: FloatArray
    predicted_class: IntArray
    corrected_class: IntArray
    flagged: BoolArray


def _judged(guard: Guard, samples: Samples) -> _Judged:
    verdicts: list[Verdict] = [guard(samples[rows]) for rows in batches(len(samples), _BATCH)]
    return _Judged(**{
        name: np.concatenate([getattr(verdict, name) for verdict in verdicts])
        for name in ("score", "predicted_class", "corrected_class", "flagged")
    })  # fmt: skip


def _succeeds(scene: Scene, predicted: IntArray) -> BoolArray:
    """Return (M,) which triggered images the attack takes from another class to its target."""
    triggered = cast("Samples", scene.triggered)
    return np.asarray((predicted == triggered.target_classes) & (triggered.labels != triggered.target_classes))


def _answers(scene: Scene, clean: _Judged, triggered: _Judged | None) -> dict[str, float]:
    right = {
        "accuracy": float((clean.predicted_class == scene.clean.labels).mean()),
        "guarded_accuracy": float((clean.corrected_class == scene.clean.labels).mean()),
        "fpr": float(clean.flagged.mean()),
    }
    if triggered is None or scene.triggered is None:
        return right
    labels, targets = scene.triggered.labels, scene.triggered.target_classes
    attacked = labels != targets
    return right | {
        "asr": float((triggered.predicted_class == targets)[attacked].mean()),
        "guarded_asr": float((triggered.corrected_class == targets)[attacked].mean()),
        "robust_accuracy": float((triggered.corrected_class == labels)[attacked].mean()),
        "tpr": float(triggered.flagged[_succeeds(scene, triggered.predicted_class)].mean()),
    }


def _measure_baseline(scene: Scene, seed: int, *, name: str, n_clean: int, n_triggered: int) -> Cell:
    """Fit on 90 clean images and score; how many are scored depends on what a score costs."""
    detector = BASELINES[name]
    pool = load_images(calibration_path(scene.name), scene.classifier.inputs)
    order = np.random.default_rng(seed).permutation(len(pool))[:_N_FIT]
    classifier = OnnxClassifier(scene.classifier.model, scene.classifier.logits, threads=1)
    fitting = pool.take(order)
    started = time.perf_counter()
    scorer = detector.fit(classifier, _array(fitting, len(fitting)), cast("IntArray", fitting.labels))
    fit_s, started = time.perf_counter() - started, time.perf_counter()
    clean, passes = score_and_count(detector, scorer, classifier, _array(scene.clean, n_clean))
    ms = 1000 * (time.perf_counter() - started) / len(clean)
    triggered: FloatArray = np.zeros(0)
    if scene.triggered is not None:
        some = scene.triggered.take(np.arange(min(n_triggered, len(scene.triggered))))
        inputs = _array(some, len(some))
        predicted = predicted_class(classifier.logits(inputs))
        succeeds = (predicted == some.target_classes) & (some.labels != some.target_classes)
        triggered = scorer(inputs[succeeds])
    return Cell(
        clean_scores=clean, triggered_scores=triggered, passes=passes, ms=ms, fit_s=fit_s, n_thresholds=110, answers={}
    )


def _array(samples: Samples, n: int) -> FloatArray:
    return cast("FloatArray", samples[slice(0, n)])


_DEAR = ("strip", "teco")  # a hundred passes per image
_QUICK = ("strip", "ted++")
_SLOW = ("mmdf",)  # which learns MMAC's bounds as published


def _guard(method: str, budget: int, target_fpr: float = 0.01) -> Contender:
    measure = partial(_measure_guard, method=method, budget=budget, target_fpr=target_fpr)
    return Contender(measure=measure, budget=budget, quick=budget == _SMALL)


def _baseline(name: str) -> Contender:
    n_clean, n_triggered = (500, 250) if name in _DEAR else (2000, 500)
    measure = partial(_measure_baseline, name=name, n_clean=n_clean, n_triggered=n_triggered)
    return Contender(measure=measure, budget=_SMALL, quick=name in _QUICK, slow=name in _SLOW)


CONTENDERS: Mapping[str, Contender] = MappingProxyType({
    "auto, 50": _guard("auto", 50, 0.04),
    "auto, 200": _guard("auto", _SMALL),
    "auto, 2000": _guard("auto", 2000),
    "few-shot": _guard("few-shot", _SMALL),
    **{name: _baseline(name) for name in BASELINES},
})  # fmt: skip
"""By the name that the scoreboard shows; baselines and few-shot have 200 clean images."""
