"""One cell of the scoreboard: what a detector says of clean and triggered images, kept in a file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from calibrate.evaluation import auroc
from calibrate.thresholds import RULES
from guard.conformal import exceeds
from guard.types import BoolArray, FloatArray

__all__ = ["Cell", "Rates", "area", "load_cell", "rates", "save_cell"]

N_SPLITS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What was measured.

    Args:
        clean_scores: (N,) of clean test images, none of which the detector was fitted on.
        triggered_scores: (M,) of triggered test images that the attack takes to its target.
        passes: Forward passes per clean image, answer and corrections included.
        ms: Milliseconds per clean image, the same.
        fit_s: Seconds of fitting.
        n_thresholds: Clean images that thresholds are fitted on.
        answers: ACC, ASR and RA before and after, where the method answers: by the names of ``ANSWERS``.
    """

    clean_scores: FloatArray
    triggered_scores: FloatArray
    passes: float
    ms: float
    fit_s: float
    n_thresholds: int
    answers: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one rule does over random splits of the clean images into threshold and test images.

    Args:
        tpr: Mean share of triggered images flagged.
        fpr: Mean share of clean images flagged.
        low: The fifth percentile of that share over splits.
        high: The ninety-fifth.
        kept: The share of splits whose rate is within the target, but for chance in counting it (one in twenty).
    """

    tpr: float
    fpr: float
    low: float
    high: float
    kept: float


def rates(cell: Cell, rule: str, n: int, *, target: float) -> Rates:
    """Draw splits and fit a threshold on each.

    Args:
        cell: The scores.
        rule: A key of calibrate.thresholds.RULES.
        n: Threshold images per split; the rest of the clean images is tested.
        target: The false-positive rate aimed at.
    """
    rng = np.random.default_rng(0)
    tprs, fprs = [], []
    for _ in range(N_SPLITS):
        order = rng.permutation(len(cell.clean_scores))
        threshold = RULES[rule].fit(cell.clean_scores[order[:n]], target)
        fprs.append(_share(exceeds(cell.clean_scores[order[n:]], threshold)))
        tprs.append(_share(exceeds(cell.triggered_scores, threshold)))
    n_tested = len(cell.clean_scores) - n
    allowed = target + 1.645 * (target * (1 - target) / n_tested) ** 0.5
    low, high = np.quantile(fprs, (0.05, 0.95))
    return Rates(
        tpr=float(np.mean(tprs)),
        fpr=float(np.mean(fprs)),
        low=float(low),
        high=float(high),
        kept=float(np.mean(np.array(fprs) <= allowed)),
    )


def area(cell: Cell) -> float:
    """Return the AUROC."""
    return auroc(cell.clean_scores, cell.triggered_scores) or 0.0


def save_cell(place: Path, cell: Cell) -> None:
    """Write a cell: scores as .npz, the rest as JSON beside it, which comes last."""
    place.parent.mkdir(parents=True, exist_ok=True)
    np.savez(place.with_suffix(".npz"), clean=cell.clean_scores, triggered=cell.triggered_scores)
    rest = {f.name: getattr(cell, f.name) for f in fields(cell) if not f.name.endswith("_scores")}
    place.with_suffix(".json").write_text(json.dumps(rest, indent=1))


def load_cell(place: Path) -> Cell | None:
    """Read a cell; None where it has not been measured."""
    if not place.with_suffix(".json").exists():
        return None
    rest = json.loads(place.with_suffix(".json").read_text())
    with np.load(place.with_suffix(".npz"), allow_pickle=False) as arrays:
        return Cell(clean_scores=arrays["clean"], triggered_scores=arrays["triggered"], **rest)


def _share(rows: BoolArray) -> float:
    return float(rows.mean()) if len(rows) else 0.0
