"""STRIP: the class of a triggered image survives having other images laid over it.

Gao et al., *STRIP: A Defence Against Trojan Attacks on Deep Neural Networks* (ACSAC 2019, arXiv 1902.06531), section 4:
the score is minus the entropy over the classes of each superposition, averaged over the superpositions. From the paper:
100 superpositions, of clean images drawn at random. From the authors' code: images are added with the data's mean taken
out and nothing cut off, which far outdoes adding pixels and cutting off at 1, or halving both, as ports do. Chosen
here: the mean is that of each channel of the clean images; these are drawn once, so that a score is a function of its
input; entropies are in nats, the paper's in bits.
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
    overlays = (clean - clean.mean(axis=(0, 2, 3), keepdims=True))[np.resize(drawn, n_overlays)]

    def score(inputs: FloatArray) -> FloatArray:
        return -np.array([entropies(classifier.probabilities(image + overlays)).mean() for image in inputs])

    return score


def entropies(probabilities: FloatArray) -> FloatArray:
    """Return the entropy (N,) in nats over the classes of each row (N, C)."""
    logs = np.log(probabilities, where=probabilities > 0, out=np.zeros_like(probabilities))
    found: FloatArray = -(probabilities * logs).sum(axis=1)
    return found
