"""TED++: TED, in which an activation outside the tube around its class gets the last rank.

Le et al., *TED++: Submanifold-Aware Backdoor Detection via Layerwise Tubular-Neighbourhood Screening* (ICDM 2025, arXiv
2510.14299). The tube's local thickness at a clean input is the distance to its ceil(m / 2)-th nearest clean neighbour
of the same class, of which there are m inputs; an input further than that from its nearest clean neighbour of the
predicted class has left the tube. From the paper and its code: the half, and the last rank M - 1. Chosen here, where
the code fails: around the only clean input of a class no tube is drawn. What is said in ted.py holds too.
"""

import math

import numpy as np

from benchmarks.baselines.classifier import OnnxClassifier
from benchmarks.baselines.protocol import Scorer
from benchmarks.baselines.ted import Bank, Rank, distances, fit_trajectories, ranks
from guard.types import FloatArray, IntArray

__all__ = ["fit_ted_plus_plus", "rank_in_tubes", "thickness"]

ALPHA = 0.5


def fit_ted_plus_plus(classifier: OnnxClassifier, clean: FloatArray, labels: IntArray) -> Scorer:
    """Fit TED++ on clean inputs and their labels."""
    return fit_trajectories(classifier, clean, labels, rank_in_tubes)


def rank_in_tubes(bank: Bank) -> Rank:
    """Return TED's ranks with the last one for whatever lies outside the tube of its class."""
    tube = thickness(bank)

    def ranked(gaps: FloatArray, predicted: IntArray) -> FloatArray:
        own = np.where(bank.classes == predicted[:, None], gaps, np.inf)
        nearest = own.min(axis=1)
        is_outside = np.isfinite(nearest) & (nearest > tube[own.argmin(axis=1)])
        return np.where(is_outside, len(bank.classes) - 1, ranks(bank, gaps, predicted))

    return ranked


def thickness(bank: Bank) -> FloatArray:
    """Return (M,) the distance from each row to the ceil(m / 2)-th nearest other row of its class; else infinity."""
    gaps = distances(bank.features, bank.features)
    np.fill_diagonal(gaps, np.inf)
    gaps[bank.classes[:, None] != bank.classes] = np.inf
    counts = (bank.classes[:, None] == bank.classes).sum(axis=1)
    places = np.array([math.ceil(count * ALPHA) - 1 for count in counts])
    found: FloatArray = np.sort(gaps, axis=1)[np.arange(len(gaps)), places]
    return found
