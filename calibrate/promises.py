"""What a threshold promises of clean inputs, in numbers and in words."""

import math

from guard.types import Threshold

__all__ = ["own_rate", "promise"]

_STEPS = 60


def own_rate(n_past: int, n: int, *, confidence: float) -> float:
    """Return what a threshold's own false-positive rate stays below, with this confidence over draws of clean inputs.

    With k of n clean scores at or below the threshold, its rate follows a Beta(n + 1 - k, k) distribution (Vovk, ALT
    2012): its quantile, by bisection of the binomial tail that equals it.

    Args:
        n_past: Scores past the threshold, n - k; fewer than n.
        n: Scores that the threshold was fitted on.
        confidence: In (0, 1).
    """
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _at_most(n_past, n, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def promise(threshold: Threshold, rule: str) -> str:
    """Return in words what the rule promises of clean inputs past a threshold."""
    percent = f"{100 * threshold.target_fpr:.3g} %"
    if rule == "rank":
        return f"at most {percent} of clean inputs, on average over draws of the {threshold.n} samples"
    if rule == "certified":
        return f"at most {percent} of clean inputs, with 95 % confidence over draws of the {threshold.n} samples"
    if rule == "mmdf":
        return f"{percent} in name only: mean + z sd, as MMDF was published"
    return f"at most {percent} of clean inputs, by the rule {rule}"


def _at_most(k: int, n: int, rate: float) -> float:
    """Return the chance of at most k successes in n trials."""
    if rate in (0.0, 1.0):
        return float(rate == 0.0 or k >= n)
    logs = (
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(rate)
        + (n - i) * math.log1p(-rate)
        for i in range(k + 1)
    )  # fmt: skip
    return min(sum(map(math.exp, logs)), 1.0)
