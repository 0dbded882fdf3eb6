"""Gather what one input did that clean inputs do not: which score spoke, at which sites, channels and places."""

import math
from collections.abc import Sequence

import numpy as np

from guard.detector import N_NUMBERS, NUMBERS, Detector, both_scores, profile_away
from guard.manifest import Manifest
from guard.pair import ModelPair
from guard.places import excess_map, strongest_place
from guard.rows import each
from guard.types import Answers, CappedChannel, Evidence, FloatArray, Inputs, Observed, Verdict

__all__ = ["Witness"]

_MOST_CHANNELS = 12
_TINY = float(np.finfo(np.float64).tiny)


class Witness:
    """Tells of one row what raised its score, from what the detector saw and one run of the bounded model.

    Args:
        manifest: Names the outputs, sites and thresholds.
        detector: The bundle's.
        pair: Its models.
    """

    def __init__(self, manifest: Manifest, detector: Detector, pair: ModelPair) -> None:
        outputs = manifest.detector or {}
        self._alert = manifest.thresholds["alert"].value
        self._detector = detector
        self._pair = pair
        self._sites: tuple[str, ...] = tuple(outputs["sites"])
        self._capped = [outputs["capped"][site] for site in self._sites]
        self._maps = list(outputs["capped_at"].values()) if len(detector.fill) else []

    def __call__(self, inputs: Inputs, original: Answers, verdict: Verdict, row: int) -> Evidence:
        """Return the evidence of a row.

        Args:
            inputs: N rows.
            original: The observed original's answers to them.
            verdict: Theirs.
            row: Which of them.
        """
        own = _only(original, row)
        profile, head = (float(scores[0]) for scores in both_scores(own, self._detector))
        one = each(lambda array: array[[row]], inputs)
        shown = self._pair.run_bounded_with(one, [*self._capped, *self._maps])[1]
        excess = [
            np.nan_to_num(found[0].astype(np.float64), nan=np.inf, posinf=np.inf)
            for found in shown[: len(self._capped)]
        ]
        heat = excess_map(shown[len(self._capped) :]) if self._maps else None
        return Evidence(
            row=row,
            predicted_class=int(verdict.predicted_class[row]),
            corrected_class=int(verdict.corrected_class[row]),
            p_value=float(verdict.p_value[row]),
            flagged=bool(verdict.flagged[row]),
            corrected=bool(verdict.corrected[row]),
            score=float(verdict.score[row]),
            profile=profile,
            head=head,
            raised_by="profile" if profile > head or not math.isfinite(profile) else "head",
            sites=self._sites,
            numbers=NUMBERS,
            away=profile_away(own, self._detector)[0].reshape(N_NUMBERS, -1),
            limits=self._limits().reshape(N_NUMBERS, -1),
            capped=np.array([found.max(initial=0.0) for found in excess]),
            channels=_furthest(self._sites, excess),
            excess_map=None if heat is None else heat[0],
            place=None if heat is None or not heat.any() else _pair_of(strongest_place(heat)),
        )

    def _limits(self) -> FloatArray:
        """Return (F,) at which distance each number alone takes the profile to the alert threshold."""
        standard = self._detector.profile
        distance = max(standard.origin + self._alert * standard.spread, 0.0)
        return np.asarray(np.sqrt(distance / np.maximum(np.diag(self._detector.precision), _TINY)))


def _only(original: Answers, row: int) -> Answers:
    """Return the answers to one row."""
    seen = original.observed
    observed = None if seen is None else Observed(profile=seen.profile[[row]], head=seen.head[[row]])
    return Answers(outputs=original.outputs[[row]], logits=original.logits[[row]], observed=observed)


def _furthest(sites: Sequence[str], excess: Sequence[FloatArray]) -> tuple[CappedChannel, ...]:
    found = [
        CappedChannel(site=site, channel=int(k), excess=float(values[k]))
        for site, values in zip(sites, excess, strict=True)
        for k in np.flatnonzero(values > 0)
    ]
    return tuple(sorted(found, key=lambda channel: -channel.excess)[:_MOST_CHANNELS])


def _pair_of(places: FloatArray) -> tuple[float, float]:
    return float(places[0, 0]), float(places[0, 1])
