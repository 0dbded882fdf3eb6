"""TeCo: a triggered image withstands different corruptions very differently.

Liu et al., *Detecting Backdoors During the Inference Stage Based on Corruption Robustness Consistency* (CVPR 2023,
arXiv 2303.18191). For each of 15 common corruptions the least severity, 1 to 5, at which the class changes is noted, 6
where it never does; the score is the standard deviation of these 15 numbers. In the authors' code and its port in
BackdoorBench each corruption is put on top of all before it; here each is made from the image itself, as the paper
says. Chosen here: the corruptions are those of benchmarks/corruptions.py, with severities for 32 x 32 pixels, where the
code takes ImageNet-C's; their random draws are the same for every image, so that a score is a function of its input.
"""

import numpy as np

from benchmarks.baselines.classifier import OnnxClassifier
from benchmarks.baselines.protocol import Scorer
from benchmarks.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from guard.types import BoolArray, FloatArray, IntArray

__all__ = ["first_changes", "fit_teco"]

NEVER = SEVERITIES[-1] + 1


def fit_teco(classifier: OnnxClassifier, clean: FloatArray, labels: IntArray) -> Scorer:
    """Return the scorer for colour images (N, 3, H, H) in [0, 1]; neither clean images nor labels are used."""
    del clean, labels

    def score(inputs: FloatArray) -> FloatArray:
        predicted = classifier.predict(inputs)
        pairs = zip(inputs, predicted, strict=True)
        return np.array([first_changes(_predict(classifier, image) != c).std() for image, c in pairs])

    return score


def first_changes(is_changed: BoolArray) -> IntArray:
    """Return for each corruption (K,) the least severity at which the class changed (K, severities)."""
    found: IntArray = np.where(is_changed.any(axis=1), is_changed.argmax(axis=1) + SEVERITIES[0], NEVER)
    return found


def _predict(classifier: OnnxClassifier, image: FloatArray) -> IntArray:
    """Return the classes (K, severities) of all corruptions of one image (3, H, H)."""
    given = np.round(255 * image.transpose(1, 2, 0)).astype(np.uint8)[None]
    corrupted = [
        corrupt(given, name, severity, np.random.default_rng([k, severity]))
        for k, name in enumerate(CORRUPTIONS)
        for severity in SEVERITIES
    ]
    inputs = (np.concatenate(corrupted).transpose(0, 3, 1, 2) / 255).astype(image.dtype)
    return classifier.predict(inputs).reshape(len(CORRUPTIONS), len(SEVERITIES))
