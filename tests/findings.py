"""What a fit of a model with three classes may have found, written by hand."""

from dataclasses import replace

import numpy as np
from bundles import manifest

from calibrate.evaluation import Answered, evaluate
from calibrate.findings import Findings, Seen
from guard.manifest import Manifest

__all__ = ["CALIBRATION", "SITE", "N", "detecting", "findings_of", "manifest_of"]

N = 100
CALIBRATION = {"labels": "given", "rule": "rank", "max_accuracy_drop": 0.03}
SITE = {
    "tensor": "relu", "function": "Relu", "shape": [None, 3], "channel_axis": 1, "n_bounds": 3, "least_bound": 1.0,
    "greatest_bound": 2.0,
}  # fmt: skip


def manifest_of(**changes) -> Manifest:
    """Return the manifest of a fit with one site."""
    return replace(manifest(), **{"calibration": CALIBRATION, "sites": [SITE], **changes})


def detecting(*sites: str, **changes) -> Manifest:
    """Return the manifest of a fit with a one-pass detector of these sites."""
    named = {site: f"{site} capped" for site in sites}
    detector = {"profile": "p", "head": "h", "sites": list(sites), "capped": named, "capped_at": {}}
    described = [{**SITE, "tensor": site} for site in sites]
    return manifest_of(**{"score": "one_pass", "detector": detector, "sites": described, **changes})


def findings_of(*, n_flagged: int = 1, scores=None, capped=None, **changes) -> Findings:
    """Return findings on N held-out inputs that every model answers rightly, of three classes in turn.

    Args:
        n_flagged: The first of them are flagged.
        scores: (N,) theirs.
        capped: Per site of a detector how many of them passed a bound; half of the rows the head speaks.
        changes: Of anything else.
    """
    scores = np.linspace(0, 0.009, N) if scores is None else scores
    classes = np.arange(N) % 3
    answered = Answered(
        labels=classes, target_classes=None, original=classes, bounded=classes, guarded=classes, scores=scores,
        flagged=np.arange(N) < n_flagged,
    )  # fmt: skip
    halves = {"profile": np.arange(N) % 2 * 1.0, "head": np.full(N, 0.5)}
    found = Findings(
        answered=answered,
        held_out=evaluate(answered, None, target_fpr=0.01),
        clean_scores=np.linspace(0, 0.01, 200),
        seen=None if capped is None else Seen(**halves, capped=np.array(capped, dtype=np.int64)),
    )
    return replace(found, **changes)
