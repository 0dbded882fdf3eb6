"""STRIP: the class of a triggered image survives having other images laid over it.

Gao et al., *STRIP: A Defence Against Trojan Attacks on Deep Neural Networks* (ACSAC 2019, arXiv 1902.06531), section
4: the score is minus the entropy over the classes of each superposition, averaged over the superpositions. From the
paper: 100 superpositions, of clean images drawn at random. Chosen here: pixels are added and cut off at 1, as in the
authors' code but for its normalised space; the clean images are drawn once, so that a score is a function of its input;
entropies are in nats, the paper's in bits.
"""

import numpy as np

from benchmarks.baselines.classifier import OnnxClassifier
from benchmarks.baselines.protocol import Scorer
from guard.types import FloatArray, IntArray

__all__ = ["entropies", "fit_strip"]

N_OVERLAYS = 100


def fit_strip(
    classifier: OnnxClassifier, clean: FloatArray, labels: IntArray, *, n_overlays: int = N_OVERLAYS, seed: int = 0
) -> Scorer:
    """Draw the overlays, without repetition as far as there are enough clean images; labels are not used."""
    del labels
    drawn = np.random.default_rng(seed).permutation(len(clean))[:n_overlays]
    overlays = clean[np.resize(drawn, n_overlays)]

    def score(inputs: FloatArray) -> FloatArray:
        blended = (np.minimum(image + overlays, 1).astype(inputs.dtype) for image in inputs)
        return -np.array([entropies(classifier.probabilities(images)).mean() for images in blended])

    return score


def entropies(probabilities: FloatArray) -> FloatArray:
    """Return the entropy (N,) in nats over the classes of each row (N, C)."""
    logs = np.log(probabilities, where=probabilities > 0, out=np.zeros_like(probabilities))
    found: FloatArray = -(probabilities * logs).sum(axis=1)
    return found
