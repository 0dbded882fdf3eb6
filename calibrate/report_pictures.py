"""The picture of a fit's report: scores of clean inputs, and the two thresholds with what they promise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from calibrate.findings import Findings
from calibrate.page import ALERT, CORRECT, INK, SOFT, svg
from guard.manifest import Manifest
from guard.types import FloatArray

__all__ = ["score_picture"]

_ALIKE = 1e-9
_N_BINS = 48
_USUAL = 0.995  # of the scores are drawn where they are; rarer ones are drawn at the edge
_TITLE: Mapping[str, Any] = {"loc": "left", "fontsize": 10, "color": "#3b4656"}
_NARROW = 4.6  # inches, on a phone
_WIDTHS = {"wide": 8.6, "narrow": _NARROW}


def score_picture(manifest: Manifest, findings: Findings) -> str:
    """Return the histograms of both clean samples, for wide and for narrow screens."""
    drawn = (
        f"<div class='{name}'>{svg(_figure(manifest, findings, width), salt=name)}</div>"
        for name, width in _WIDTHS.items()
    )
    return "".join(drawn)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Scores that are drawn as one."""

    scores: FloatArray
    color: str
    name: str = ""
    is_line: bool = False


def _figure(manifest: Manifest, findings: Findings, width: float) -> Figure:
    figure = Figure(figsize=(width, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    edges = _edges(manifest, np.concatenate([findings.clean_scores, findings.answered.scores]))
    _draw(above, edges, [_Part(scores=findings.clean_scores, color=INK)])
    above.set_title(f"what the thresholds were fitted on: {len(findings.clean_scores)} clean inputs", **_TITLE)
    _draw(below, edges, _parts(findings))
    below.set_title(f"held-out set: {len(findings.answered.scores)} clean inputs", **_TITLE)
    below.set_xlabel(f"score ({manifest.score.replace('_', ' ')}; rarer ones are drawn at the edge)")
    for axes in (above, below):
        _draw_thresholds(axes, manifest)
    handles, labels = below.get_legend_handles_labels()
    columns = len(labels) if width > _NARROW else 2
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=9)
    return figure


def _parts(findings: Findings) -> Sequence[_Part]:
    """Return the held-out scores, by which of the one-pass detector's scores is the larger one."""
    scores, seen = findings.answered.scores, findings.seen
    if seen is None:
        return [_Part(scores=scores, color=SOFT)]
    return [
        _Part(scores=scores[seen.is_profile], color=SOFT, name="the profile speaks"),
        _Part(scores=scores[~seen.is_profile], color="#a8522a", name="the head speaks", is_line=True),
    ]


def _draw(axes: Axes, edges: FloatArray, parts: Sequence[_Part]) -> None:
    for part in parts:
        scores = np.clip(np.nan_to_num(part.scores, nan=np.inf), edges[0], edges[-1])
        kind: Literal["step", "bar"] = "step" if part.is_line else "bar"
        axes.hist(scores, bins=edges.tolist(), color=part.color, label=part.name, histtype=kind, linewidth=1.5)
    axes.set(yscale="log", ylabel="inputs", ylim=(0.7, None))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def _draw_thresholds(axes: Axes, manifest: Manifest) -> None:
    for name, color in (("correct", CORRECT), ("alert", ALERT)):
        cut = manifest.thresholds[name]
        axes.axvline(cut.value, color=color, linewidth=1.8, label=f"{name}: {100 * cut.target_fpr:.3g} % past it")


def _edges(manifest: Manifest, scores: FloatArray) -> FloatArray:
    """Return the edges of bins around usual scores and both thresholds, however alike these are."""
    cuts = np.array([cut.value for cut in manifest.thresholds.values()])
    finite = np.concatenate([scores[np.isfinite(scores)], cuts])
    low, high = float(finite.min()), float(np.quantile(finite, _USUAL))
    high = max(high, float(cuts.max()) + 0.45 * max(float(cuts.max()) - low, 0.0))  # room for the labels
    if not high - low > _ALIKE * max(abs(low), abs(high), 1):
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, _N_BINS + 1)
