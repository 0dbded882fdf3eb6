"""Which samples are drawn, and in which order."""

import numpy as np

from guard.types import IntArray

__all__ = ["draw"]


def draw(n: int, labels: IntArray | None, limit: int | None, rng: np.random.Generator) -> IntArray:
    """Return row indices in random order: all of them, or limit, balanced by class where labels are known."""
    order: IntArray = rng.permutation(n).astype(np.int64)
    if limit is None or labels is None:
        return order[:limit]
    classes, sizes = np.unique(labels, return_counts=True)
    quotas = dict(zip(classes.tolist(), _quotas(sizes, limit, rng), strict=True))
    drawn = [order[labels[order] == label][:quota] for label, quota in quotas.items()]
    return rng.permutation(np.concatenate(drawn))


def _quotas(sizes: IntArray, limit: int, rng: np.random.Generator) -> IntArray:
    """Share limit out as evenly as the sizes allow; who gets one of the remainder is drawn at random."""
    quotas = np.zeros_like(sizes)
    shuffled = rng.permutation(len(sizes))
    smallest_first = shuffled[np.argsort(sizes[shuffled], kind="stable")]
    for done, k in enumerate(smallest_first):
        quotas[k] = min(sizes[k], (limit - quotas.sum()) // (len(sizes) - done))
    return quotas
