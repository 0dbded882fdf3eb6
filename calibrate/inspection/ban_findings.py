"""What BAN found, and the rule that makes a verdict of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from calibrate.inspection.ban_settings import BanSettings
from calibrate.proportions import wilson_interval
from guard.types import FloatArray, IntArray

__all__ = ["FULL_SAMPLES", "LEAST_SAMPLES", "BanFindings", "BanVerdict", "decide", "excess_share", "findings_of"]

BanVerdict = Literal["suspicious", "grey", "no evidence"]
"""Never "clean": that nothing was found certifies nothing."""

LEAST_SAMPLES = 50
"""Fewer are refused."""

FULL_SAMPLES = 500
"""Fewer give ``grey`` at most."""

_SUSPICIOUS = 0.5  # the paper's author: more than half of the votes for one class
_GREY = 0.3
_AGREEING = 0.8  # of the seeds: 4 of 5
_N_TOP_CHANNELS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class BanFindings:
    """What the votes under noise say about a model.

    Args:
        verdict: ``suspicious``, ``grey`` or ``no evidence``.
        suspected_target_class: The class with the most votes, unless there is no evidence.
        top_class: The class with the most votes.
        vote_share: S, the mean over seeds of the top class's share of the votes.
        interval: Of S: Wilson's, 95 %, for as many votes as there are samples.
        clean_share: The share of the labels that are the top class.
        n_agreeing: How many seeds have most votes on the top class.
        histograms: (seeds, C) the votes.
        n_samples: How many inputs voted.
        noise_on: What took the noise: ``BatchNorm``, ``LayerNorm``, ``pre-activations``, or two of them.
        features: The tensor that the mask was learned on.
        unneeded: (K,) by channel of the features the mean of 1 - m: how little correct labels need it.
        settings: How BAN looked.
    """

    verdict: BanVerdict
    suspected_target_class: int | None
    top_class: int
    vote_share: float
    interval: tuple[float, float]
    clean_share: float
    n_agreeing: int
    histograms: IntArray
    n_samples: int
    noise_on: str
    features: str
    unneeded: FloatArray
    settings: BanSettings

    @property
    def excess(self) -> float:
        """How much more often the top class is voted for than it occurs."""
        return self.vote_share - self.clean_share

    def summary(self) -> Mapping[str, object]:
        """Return what was found as JSON can hold it."""
        top = np.argsort(-self.unneeded, kind="stable")[:_N_TOP_CHANNELS]
        return {
            "verdict": self.verdict,
            "suspected_target_class": self.suspected_target_class,
            "top_class": self.top_class,
            "vote_share": self.vote_share,
            "vote_share_interval": list(self.interval),
            "clean_share": self.clean_share,
            "excess": self.excess,
            "n_seeds": len(self.histograms),
            "n_agreeing": self.n_agreeing,
            "n_samples": self.n_samples,
            "histograms": self.histograms.tolist(),
            "noise_on": self.noise_on,
            "features": self.features,
            "least_needed_channels": [{"channel": int(k), "unneeded": float(self.unneeded[k])} for k in top],
            "settings": asdict(self.settings),
        }


def findings_of(
    votes: Sequence[IntArray],
    labels: IntArray,
    n_classes: int,
    *,
    noise_on: str,
    features: str,
    unneeded: FloatArray,
    settings: BanSettings,
) -> BanFindings:
    """Count the votes (N,) of every seed and judge them."""
    histograms = np.stack([np.bincount(classes, minlength=n_classes) for classes in votes])
    shares = histograms.mean(axis=0) / len(labels)
    top, share = int(shares.argmax()), float(shares.max())
    clean_share = float((labels == top).mean())
    n_agreeing = int((histograms.argmax(axis=1) == top).sum())
    interval = wilson_interval(share, len(labels))
    verdict = decide(
        share, interval, clean_share=clean_share, n_agreeing=n_agreeing, n_seeds=len(votes), n_samples=len(labels)
    )
    return BanFindings(
        verdict=verdict,
        suspected_target_class=None if verdict == "no evidence" else top,
        top_class=top,
        vote_share=share,
        interval=interval,
        clean_share=clean_share,
        n_agreeing=n_agreeing,
        histograms=histograms,
        n_samples=len(labels),
        noise_on=noise_on,
        features=features,
        unneeded=unneeded,
        settings=settings,
    )


def decide(
    share: float,
    interval: tuple[float, float],
    *,
    clean_share: float,
    n_agreeing: int,
    n_seeds: int,
    n_samples: int,
) -> BanVerdict:
    """Return the verdict on a vote share S.

    The paper's author calls a model backdoored when more than half of the votes are for one class, on CIFAR-10. Two
    classes would get there by chance, so what is compared is the excess (S - q) / (1 - q) over the class's clean
    share q: nothing changes as q goes to 0, and with ten equal classes S has to pass 0.55, with two 0.75.

    ``suspicious``: the interval's lower end has an excess above 0.5, at least 4 of 5 seeds have most votes on the
    class, and 500 inputs voted. ``grey``: S has an excess above 0.3.
    """
    lower, usual = excess_share(interval[0], clean_share), excess_share(share, clean_share)
    agrees = n_agreeing >= math.ceil(_AGREEING * n_seeds)
    if lower > _SUSPICIOUS and agrees and n_samples >= FULL_SAMPLES:
        return "suspicious"
    return "grey" if usual > _GREY else "no evidence"


def excess_share(share: float, clean_share: float) -> float:
    """Return (S - q) / (1 - q): 0 where a class is voted for as often as it occurs, 1 where it takes every vote."""
    return (share - clean_share) / (1 - clean_share) if clean_share < 1 else 0.0
