"""TED: how far, layer by layer, the nearest clean neighbour of an input's class is down the list of neighbours.

Mo et al., *Robust Backdoor Detection for Deep Learning via Topological Evolution Dynamics* (IEEE S&P 2024, arXiv
2312.02673). In each layer the clean inputs are sorted by their Euclidean distance to the input; its rank there is how
many are nearer than the nearest one of its predicted class. The ranks along the layers make a vector, and an outlier
detector fitted on the vectors of the clean inputs, each ranked among the others, scores it. From the paper and its
code: only clean inputs that are answered rightly, and PyOD's PCA with two components as the outlier detector. Chosen
here: the layers are the outputs of activation functions and the logits (the code: convolutions, ReLUs and linear
layers), ties count as not nearer, an input whose class has no clean input has the last rank, and at most 100 clean
inputs of a class are kept, the first ones.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.baselines.classifier import OnnxClassifier
from benchmarks.baselines.protocol import Scorer
from calibrate.forward import batches
from calibrate.graph import find_sites
from guard.errors import CalibrationError
from guard.scores import predicted_class
from guard.types import FloatArray, IntArray

__all__ = ["Bank", "Rank", "distances", "fit_ted", "fit_trajectories", "outlier_score", "ranks"]

_MOST_PER_CLASS = 100
_ROWS = 64  # at a time, so that activations fit into memory
N_COMPONENTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """The clean inputs in one layer.

    Args:
        features: (M, D) their activations.
        classes: (M,) their classes.
    """

    features: FloatArray
    classes: IntArray


Rank = Callable[[FloatArray, IntArray], FloatArray]
"""Maps distances (N, M) to the rows of a bank, and predicted classes (N,), to ranks (N,)."""


def fit_ted(classifier: OnnxClassifier, clean: FloatArray, labels: IntArray) -> Scorer:
    """Fit TED on clean inputs and their labels."""
    return fit_trajectories(classifier, clean, labels, lambda bank: partial(ranks, bank))


def fit_trajectories(
    classifier: OnnxClassifier, clean: FloatArray, labels: IntArray, rank_in: Callable[[Bank], Rank]
) -> Scorer:
    """Fit an outlier detector on the trajectories of ranks; ``rank_in`` makes of each layer's bank how to rank in it.

    Raises:
        CalibrationError: Fewer than three clean inputs are answered rightly.
    """
    layers = [*(site.tensor for site in find_sites(classifier.model)), classifier.logits_name]
    kept = _kept(classifier.predict(clean), labels)
    activations = [np.concatenate(found) for found in zip(*_activations(classifier, clean[kept], layers), strict=True)]
    banks = [Bank(features=features, classes=labels[kept]) for features in activations]
    rankings = [rank_in(bank) for bank in banks]
    own = [_apart(distances(bank.features, bank.features)) for bank in banks]
    judge = outlier_score(_trajectories(rankings, own, labels[kept]))

    def score(inputs: FloatArray) -> FloatArray:
        scores = []
        for found in _activations(classifier, inputs, layers):
            gaps = [distances(features, bank.features) for features, bank in zip(found, banks, strict=True)]
            scores.append(judge(_trajectories(rankings, gaps, predicted_class(found[-1]))))
        return np.concatenate(scores)

    return score


def _trajectories(rankings: Sequence[Rank], gaps: Sequence[FloatArray], predicted: IntArray) -> FloatArray:
    """Return the ranks (N, L) in every layer."""
    return np.stack([rank(found, predicted) for rank, found in zip(rankings, gaps, strict=True)], axis=1)


def _apart(gaps: FloatArray) -> FloatArray:
    """Return distances (M, M) with every row infinitely far from itself."""
    return np.where(np.eye(len(gaps), dtype=bool), np.inf, gaps)


def _kept(predicted: IntArray, labels: IntArray) -> IntArray:
    """Return the rows of the bank: the first so many of each class that are answered rightly."""
    right = np.flatnonzero(predicted == labels)
    rows = np.concatenate([right[labels[right] == c][:_MOST_PER_CLASS] for c in np.unique(labels)])
    if len(rows) <= N_COMPONENTS:
        raise CalibrationError(
            f"{len(rows)} of {len(labels)} clean inputs are answered rightly; give more than {N_COMPONENTS} such"
        )
    return rows


def _activations(classifier: OnnxClassifier, inputs: FloatArray, layers: Sequence[str]) -> Iterator[list[FloatArray]]:
    """Yield some rows after others, a flat array (n, D) per layer."""
    for rows in batches(len(inputs), _ROWS):
        yield [found.reshape(len(found), -1) for found in classifier.run(inputs[rows], layers)]


def distances(features: FloatArray, others: FloatArray) -> FloatArray:
    """Return the Euclidean distances (N, M) between rows (N, D) and rows (M, D)."""
    squares = (features**2).sum(axis=1)[:, None] - 2 * features @ others.T + (others**2).sum(axis=1)
    found: FloatArray = np.sqrt(np.maximum(squares, 0))
    return found


def ranks(bank: Bank, gaps: FloatArray, predicted: IntArray) -> FloatArray:
    """Return (N,) how many of the bank are nearer than the nearest of the predicted class; M where that has none."""
    nearest = np.where(bank.classes == predicted[:, None], gaps, np.inf).min(axis=1)
    found: FloatArray = (gaps < nearest[:, None]).sum(axis=1).astype(np.float64)
    return np.where(np.isin(predicted, bank.classes), found, len(bank.classes))


def outlier_score(clean: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """Fit what PyOD calls PCA: distances to the principal axes' unit vectors, each over its share of variance.

    Args:
        clean: (M, L) vectors of clean inputs.

    Returns:
        Maps (N, L) vectors, standardised by the clean ones, to (N,) scores; larger is further out. It amounts to the
        length of the standardised vector, as long as that is much more than 1.
    """
    mean, scale = clean.mean(axis=0), clean.std(axis=0)
    scale = np.where(scale > 0, scale, 1)
    _, values, axes = np.linalg.svd((clean - mean) / scale, full_matrices=False)
    axes = axes[:N_COMPONENTS]
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    total = (values**2).sum()
    shares = values[: len(axes)] ** 2 / total if total else np.ones(len(axes))
    weights = 1 / np.maximum(shares, np.finfo(np.float64).eps)
    return lambda vectors: np.asarray(distances((vectors - mean) / scale, axes) @ weights)
