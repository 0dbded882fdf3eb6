"""What BAN found, and the rule that makes a verdict of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from calibrate.inspection.ban_settings import BanSettings
from guard.types import FloatArray, IntArray

__all__ = ["FULL_SAMPLES", "LEAST_SAMPLES", "BanFindings", "judge", "wilson_interval"]

LEAST_SAMPLES = 50
FULL_SAMPLES = 500
_Z = 1.959963984540054  # 95 %, two-sided


@dataclass(frozen=True, slots=True, kw_only=True)
class BanFindings:
    verdict: Literal["suspicious", "grey", "no evidence"]
    suspected_target_class: int | None
    vote_share: float
    interval: tuple[float, float]
    clean_share: float
    excess: float
    n_agreeing: int
    histograms: IntArray  # (S, C)
    per_class: FloatArray  # (C, C)
    n_samples: int
    noise_on: str
    split: str
    unneeded: FloatArray
    settings: BanSettings

    def summary(self) -> Mapping[str, object]:
        return {"verdict": self.verdict}


def judge(*, votes, labels, n_classes, noise_on, unneeded, split, settings) -> BanFindings:
    histograms = np.stack([np.bincount(v, minlength=n_classes) for v in votes])
    mean = histograms.mean(0) / votes.shape[1]
    target = int(mean.argmax())
    per = np.zeros((n_classes, n_classes))
    for v in votes:
        np.add.at(per, (labels, v), 1)
    per /= np.maximum(per.sum(1, keepdims=True), 1)
    q = float((labels == target).mean())
    S = float(mean[target])
    return BanFindings(verdict="grey", suspected_target_class=target, vote_share=S,
        interval=wilson_interval(S, votes.shape[1]), clean_share=q, excess=S - q,
        n_agreeing=int((histograms.argmax(1) == target).sum()), histograms=histograms, per_class=per,
        n_samples=votes.shape[1], noise_on=noise_on, split=split, unneeded=unneeded, settings=settings)


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return float(centre - half), float(centre + half)
