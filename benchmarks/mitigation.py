"""What retraining gives where it is allowed: fine-tuning (FT) and I-BAU on the guard's own 200 clean images."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx

from benchmarks.baselines.classifier import OnnxClassifier
from benchmarks.baselines.fine_tuning import fine_tune
from benchmarks.baselines.ibau import unlearn
from benchmarks.board.contenders import Scene
from benchmarks.detection import SHARED
from benchmarks.images import load_images
from benchmarks.zoo import calibration_path, is_trained
from calibrate.data import Samples
from guard.types import FloatArray, IntArray

__all__ = ["measure"]

ATTACKS = ("badnets", "blend", "wanet", "all2all")
N_FITTED, N_CLEAN, N_TRIGGERED = 200, 2000, 500
RETRAININGS: Mapping[str, Callable[[OnnxClassifier, FloatArray, IntArray], onnx.ModelProto]] = {
    "as it is": lambda classifier, _images, _labels: classifier.model,
    "FT": fine_tune,
    "I-BAU": unlearn,
}


def measure(out: Path) -> Iterator[str]:
    """Yield a table: one row per model and retraining."""
    del out
    if not (SHARED / "zoo").is_dir():
        yield f"skipped: {SHARED}/zoo is absent"
        return
    yield f"Retrained on {N_FITTED} clean calibration images, measured on {N_CLEAN} clean and {N_TRIGGERED} triggered"
    yield "test images. RA: triggered images answered with their true class.\n"
    yield "| model | | ACC | ASR | RA |"
    yield "|---|---|---|---|---|"
    for attack in ATTACKS:
        name = f"cifar10-resnet18-{attack}"
        if is_trained(name):
            yield from _rows(name, Scene.of(name))


def _rows(name: str, scene: Scene) -> Iterator[str]:
    found = scene.classifier
    classifier = OnnxClassifier(found.model, found.logits)
    fitted = load_images(calibration_path(name), found.inputs, limit=N_FITTED)
    images, labels = np.asarray(fitted[0:N_FITTED]), np.asarray(fitted.labels)
    for how, retrain in RETRAININGS.items():
        after = classifier.variant(retrain(classifier, images, labels))
        figures = [_accuracy(after, scene.clean, N_CLEAN, "labels")]
        if scene.triggered is not None:
            figures += [_accuracy(after, scene.triggered, N_TRIGGERED, of) for of in ("target_classes", "labels")]
        yield f"| {name} | {how} | {' | '.join(f'{figure:.3f}' for figure in figures)} |"


def _accuracy(classifier: OnnxClassifier, samples: Samples, n: int, of: str) -> float:
    """Return how often the first n samples are answered with their labels, or their target classes."""
    n = min(n, len(samples))
    return float((classifier.predict(np.asarray(samples[0:n])) == getattr(samples, of)[:n]).mean())
