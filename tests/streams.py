"""Streams of verdicts whose clean scores are uniform numbers, with triggered rows that score past them all."""

import numpy as np

from guard.monitor import Monitor, Reference
from guard.types import Verdict

__all__ = ["N_CLASSES", "TARGET", "clean", "flood", "monitor", "reference", "verdict"]

N_CLASSES, TARGET = 10, 3


def verdict(scores, classes) -> Verdict:
    """Return a verdict with these scores and classes, and nothing else to be read off it."""
    nothing, none = np.zeros(len(scores)), np.zeros(len(scores), dtype=bool)
    return Verdict(
        predicted_class=np.asarray(classes), corrected_class=np.asarray(classes), p_value=nothing, divergence=nothing,
        score=np.asarray(scores, dtype=float), flagged=none, corrected=none, outputs=nothing[:, None],
    )  # fmt: skip


def reference(rng, n=2000) -> Reference:
    return Reference(scores=np.sort(rng.random(n)), predicted_class=rng.integers(0, N_CLASSES, n))


def monitor(rng, n=2000) -> Monitor:
    return Monitor(reference(rng, n), n_classes=N_CLASSES)


def clean(rng, n) -> Verdict:
    return verdict(rng.random(n), rng.integers(0, N_CLASSES, n))


def flood(rng, n, *, share, tpr=0.95) -> Verdict:
    """Return n rows, a share of them triggered; of these tpr score past every clean one, the others as clean ones."""
    scores, classes = rng.random(n), rng.integers(0, N_CLASSES, n)
    triggered = rng.random(n) < share
    classes[triggered] = TARGET
    scores[triggered & (rng.random(n) < tpr)] = 2.0
    return verdict(scores, classes)
