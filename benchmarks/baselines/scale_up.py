"""SCALE-UP: the class of a triggered image survives having its pixels multiplied.

Guo et al., *SCALE-UP: An Efficient Black-box Input-level Backdoor Detection via Analyzing Scaled Prediction
Consistency* (ICLR 2023, arXiv 2302.03251). The score is the share of scaled copies that keep the class of the image.
From the paper and its authors' code: factors 3, 5, 7, 9, 11, pixels cut off at the end of their range, threshold 0.5.
The data-limited form standardises by mean and deviation of clean images of the same class; the public ports standardise
by those of all classes together. Chosen here: the class is the predicted one, and a class with fewer than two clean
images, or whose shares are all equal, takes the deviation of all (and, where it has none at all, their mean).
"""

from collections.abc import Sequence

import numpy as np

from benchmarks.baselines.classifier import OnnxClassifier
from benchmarks.baselines.protocol import Scorer
from guard.types import FloatArray, IntArray

__all__ = ["fit_scale_up", "fit_scale_up_limited"]

FACTORS = (3, 5, 7, 9, 11)
THRESHOLD = 0.5


def fit_scale_up(
    classifier: OnnxClassifier, clean: FloatArray, labels: IntArray, *, factors: Sequence[int] = FACTORS
) -> Scorer:
    """Return the data-free form, which looks at no clean image."""
    del clean, labels
    return lambda inputs: _consistency(classifier, inputs, factors)[0]


def fit_scale_up_limited(
    classifier: OnnxClassifier, clean: FloatArray, labels: IntArray, *, factors: Sequence[int] = FACTORS
) -> Scorer:
    """Return the data-limited form: shares standardised per predicted class; labels are not used."""
    del labels
    shares, classes = _consistency(classifier, clean, factors)
    n_classes = classifier.logits(clean[:1]).shape[1]
    means, deviations = np.full(n_classes, shares.mean()), np.full(n_classes, shares.std() or 1.0)
    for c in np.unique(classes):
        own = shares[classes == c]
        means[c] = own.mean()
        deviations[c] = own.std() or deviations[c]

    def score(inputs: FloatArray) -> FloatArray:
        found, predicted = _consistency(classifier, inputs, factors)
        standardised: FloatArray = (found - means[predicted]) / deviations[predicted]
        return standardised

    return score


def _consistency(classifier: OnnxClassifier, inputs: FloatArray, factors: Sequence[int]) -> tuple[FloatArray, IntArray]:
    """Return (N,) the share of scaled copies that keep the class, and the class."""
    predicted = classifier.predict(inputs)
    scaled = (np.minimum(factor * inputs, 1).astype(inputs.dtype) for factor in factors)
    kept = [classifier.predict(images) == predicted for images in scaled]
    return np.mean(kept, axis=0), predicted
