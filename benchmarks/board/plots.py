"""The scoreboard's pictures: ROC curves on a log axis, a heat map of attacks and methods, cost against TPR."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.board.cell import Cell
from benchmarks.board.tables import Board, marginal, short

__all__ = ["draw"]

_COLOURS = ("#1f4e79", "#c77700", "#b3261e", "#2e7d32", "#6a3d9a", "#8d6e63",
            "#00838f", "#9e9d24", "#ad1457", "#546e7a", "#ef6c00", "#283593")  # fmt: skip
_LOWEST = 1e-3


def draw(board: Board, contenders: Sequence[str], stem: Path) -> None:
    """Write STEM-roc.svg, STEM-map.svg and STEM-cost.svg."""
    attacks = [name for name, cells in board.items() if any(len(c.triggered_scores) for c in cells.values())]
    if attacks:
        _save(_roc(board, attacks, contenders), stem.with_name(f"{stem.name}-roc.svg"))
        _save(_map(board, attacks, contenders), stem.with_name(f"{stem.name}-map.svg"))
        _save(_cost(board, attacks, contenders), stem.with_name(f"{stem.name}-cost.svg"))


def _save(figure: Figure, place: Path) -> None:
    with mpl.rc_context({"svg.hashsalt": "trigger-guard", "svg.fonttype": "none"}):
        figure.savefig(place, format="svg", metadata={"Date": None})


def _roc(board: Board, attacks: Sequence[str], contenders: Sequence[str]) -> Figure:
    columns = min(4, len(attacks))
    rows = -(-len(attacks) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.5 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, attack in zip(panels, attacks, strict=False):
        for name, colour in zip(contenders, _COLOURS, strict=False):
            if (cell := board[attack].get(name)) is not None and len(cell.triggered_scores):
                _curve(axes, cell, name, colour)
        axes.set(xscale="log", xlim=(_LOWEST, 1), ylim=(-0.02, 1.02), title=short(attack))
        axes.title.set_fontsize(9)
    for axes in panels[len(attacks) :]:
        axes.set_axis_off()
    for axes in panels[max(0, len(attacks) - columns) : len(attacks)]:
        axes.set_xlabel("false-positive rate", fontsize=8)
    for axes in panels[::columns]:
        axes.set_ylabel("true-positive rate", fontsize=8)
    handles, labels = max((axes.get_legend_handles_labels() for axes in panels), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return figure


def _curve(axes: Axes, cell: Cell, name: str, colour: str) -> None:
    cuts = np.quantile(cell.clean_scores, 1 - np.geomspace(_LOWEST, 1, 200))
    fpr = [(cell.clean_scores > cut).mean() for cut in cuts]
    tpr = [(cell.triggered_scores > cut).mean() for cut in cuts]
    is_ours = name.startswith("auto")
    axes.plot(fpr, tpr, color=colour, label=name, linewidth=1.8 if is_ours else 1, alpha=1 if is_ours else 0.8)


def _map(board: Board, attacks: Sequence[str], contenders: Sequence[str]) -> Figure:
    values = np.full((len(attacks), len(contenders)), np.nan)
    for i, attack in enumerate(attacks):
        for j, name in enumerate(contenders):
            if (cell := board[attack].get(name)) is not None and len(cell.triggered_scores):
                values[i, j] = marginal(cell).tpr
    figure = Figure(figsize=(2.5 + 0.75 * len(contenders), 1.6 + 0.33 * len(attacks)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(values, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    axes.set_xticks(range(len(contenders)), contenders, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(attacks)), [short(a) for a in attacks], fontsize=8)
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7)
    axes.set_title("TPR where 1 % of clean images are flagged", fontsize=10)
    return figure


def _cost(board: Board, attacks: Sequence[str], contenders: Sequence[str]) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, colour in zip(contenders, _COLOURS, strict=False):
        cells = [board[a][name] for a in attacks if name in board[a] and len(board[a][name].triggered_scores)]
        if cells:
            passes, tpr = mean(c.passes for c in cells), mean(marginal(c).tpr for c in cells)
            axes.scatter(passes, tpr, color=colour, s=40)
            axes.annotate(name, (passes, tpr), xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", xlabel="forward passes per clean image", ylabel="mean TPR where 1 % are flagged")
    axes.set(ylim=(-0.03, 1.05), xlim=(0.8, 250))
    return figure
