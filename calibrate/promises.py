"""What a threshold promises of clean inputs, in numbers and in words."""

from guard.conformal import highest_rate
from guard.types import Threshold

__all__ = ["own_rate", "promise"]


def own_rate(n_past: int, n: int, *, confidence: float) -> float:
    """Return what a threshold's own false-positive rate stays below, with this confidence over draws of clean inputs.

    With k of n clean scores at or below the threshold, its rate follows a Beta(n + 1 - k, k) distribution (Vovk, ALT
    2012).

    Args:
        n_past: Scores past the threshold, n - k; fewer than n.
        n: Scores that the threshold was fitted on.
        confidence: In (0, 1).
    """
    return highest_rate(n, n_past + 1, miss=1 - confidence)


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
