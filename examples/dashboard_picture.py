"""Draws the panels of deploy/grafana/dashboard.json from what a Prometheus knows, where no Grafana is at hand."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.local_prometheus import LocalPrometheus

__all__ = ["draw"]

DASHBOARD = Path(__file__).parents[1] / "deploy/grafana/dashboard.json"
RATE_INTERVAL, MODEL = "10s", ".*"
_COLUMNS, _STEP_S, _MOST_SERIES = 3, 1.0, 8


def draw(
    watching: LocalPrometheus, path: Path, *, start: float, end: float, marked: tuple[float, float] | None = None
) -> None:
    """Write a picture of every panel between two times.

    Args:
        watching: Answers the queries.
        path: Of the picture; its ending says what kind.
        start: In seconds since the epoch.
        end: As start.
        marked: A time to shade, from and to.
    """
    panels = json.loads(DASHBOARD.read_text())["panels"]
    n_lines = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(4.6 * _COLUMNS, 2.7 * n_lines), layout="constrained")
    axes = figure.subplots(n_lines, _COLUMNS, squeeze=False).flatten()
    for ax, panel in zip(axes, panels, strict=False):
        _draw_panel(ax, panel, watching, start=start, end=end)
        if marked is not None:
            ax.axvspan(marked[0] - start, marked[1] - start, color="tab:red", alpha=0.1, linewidth=0)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    figure.supxlabel("seconds", fontsize=9)
    figure.savefig(path, dpi=75)


def _draw_panel(ax: Axes, panel: Mapping[str, Any], watching: LocalPrometheus, *, start: float, end: float) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    for target in panel["targets"]:
        asked = target["expr"].replace("$__rate_interval", RATE_INTERVAL).replace("$model", MODEL)
        for series in watching.history(asked, start=start, end=end, step_s=_STEP_S)[:_MOST_SERIES]:
            times, values = np.array(series["values"], dtype=float).T
            ax.plot(times - start, values, label=_legend(target["legendFormat"], series["metric"]), linewidth=1.5)
    if "scaleDistribution" in defaults["custom"]:
        ax.set_yscale("log")
    for step in defaults.get("thresholds", {}).get("steps", [])[1:]:
        ax.axhline(step["value"], color=step["color"], linewidth=1, linestyle="--")
    ax.set_title(panel["title"], fontsize=10)
    ax.set_xlim(0, end - start)
    ax.tick_params(labelsize=8)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=7, loc="best")


def _legend(template: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), template)
