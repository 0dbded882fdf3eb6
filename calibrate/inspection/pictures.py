"""The pictures of an inspection's report."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calibrate.inspection.triggers import TriggerDistribution
from calibrate.page import ALERT, INK, svg, tick_names
from guard.types import FloatArray

__all__ = ["class_picture", "suspicion_picture", "trigger_picture"]

_MOST_CLASSES = 30
_N_TRIGGERS = 10
_BAR = "#b8c7d9"


def class_picture(values: Sequence[FloatArray], label: str, suspected: int | None) -> str:
    """Draw (C,) values of every class, one set per repetition, as bars of the mean; of many classes the highest."""
    table = np.stack(values)
    means = table.mean(axis=0)
    n = means.size
    shown = np.sort(np.argsort(-means, kind="stable")[:_MOST_CLASSES])
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(shown))
    axes.bar(places, means[shown], color=[ALERT if c == suspected else _BAR for c in shown])
    if len(table) > 1:
        for row in table:
            axes.scatter(places, row[shown], color=INK, s=12, zorder=3)
    axes.axhline(0, color=INK, linewidth=0.8)
    of = f" (the {len(shown)} highest of {n})" if len(shown) < n else ""
    axes.set_xticks(places, [str(c) for c in shown])
    axes.set(xlabel=f"class{of}", ylabel=label)
    return svg(figure)


def suspicion_picture(scores: Mapping[str, FloatArray], n_top: int) -> str:
    """Draw by site the range of the scores (K,), the median, and which are among the highest of the model."""
    figure = Figure(figsize=(9, 1.1 + 0.26 * len(scores)), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(scores))
    values = list(scores.values())
    axes.hlines(rows, [v.min() for v in values], [v.max() for v in values], color=_BAR, linewidth=5)
    axes.scatter([float(np.median(v)) for v in values], rows, color=INK, zorder=3, label="median; the bar is the range")
    pairs = [(float(s), row) for row, v in enumerate(values) for s in v]
    top = sorted(pairs, reverse=True)[:n_top]
    axes.scatter([s for s, _ in top], [row for _, row in top], color=ALERT, s=14, zorder=4, label="highest of all")
    axes.set_yticks(rows, tick_names(scores), fontsize=8, parse_math=False)
    axes.set(xlabel="suspicion", ylim=(len(values) - 0.5, -0.5))
    figure.legend(frameon=False, loc="outside upper right", ncols=2)
    return svg(figure)


def trigger_picture(distributions: Sequence[TriggerDistribution]) -> str:
    """Draw the first triggers of every distribution, one row each."""
    figure = Figure(figsize=(9, 1.1 * len(distributions) + 0.2), layout="constrained")
    grid = figure.subplots(len(distributions), _N_TRIGGERS, squeeze=False)
    for row, found in zip(grid, distributions, strict=True):
        for axes in row:
            axes.axis("off")
        for axes, image in zip(row, _as_images(found)[:_N_TRIGGERS], strict=False):
            _draw(axes, image)
        row[0].set_title(f"{found.kind}, level {found.beta:g}", fontsize=8, loc="left")
    return svg(figure)


def _draw(axes: Axes, image: FloatArray) -> None:
    axes.imshow(image, interpolation="nearest", vmin=0, vmax=1, cmap="gray")


def _as_images(found: TriggerDistribution) -> FloatArray:
    """Return the bank as images (n, H, W[, 3]) from 0 to 1: three channels as colours, otherwise their mean size."""
    bank = np.moveaxis(found.bank.astype(np.float64), 1, -1)
    if found.kind.family == "warp":
        bank = np.sqrt(np.square(bank).sum(axis=-1, keepdims=True))
    low, high = bank.min(axis=(0, 1, 2)), bank.max(axis=(0, 1, 2))
    scaled = (bank - low) / np.where(high > low, high - low, 1)
    return np.asarray(scaled if scaled.shape[-1] == 3 else scaled.mean(axis=-1))
