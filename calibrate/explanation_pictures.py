"""The pictures of an explained verdict: the input with the heat of its excess, and how unusual each site is."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from calibrate.page import ALERT, INK, svg, tick_names
from guard.types import Evidence, FloatArray

__all__ = ["heat_picture", "shown_image", "site_picture"]

_FAR = 1e6  # standard deviations; drawn no further
_COLOURS = 3
_WHITE = 255.0


def heat_picture(
    image: NDArray[Any], preprocessing: Mapping[str, Any], heat: FloatArray, place: tuple[float, float] | None
) -> str:
    """Draw the input, and beside it the input under its heat map with the strongest place marked.

    Args:
        image: Model-ready, of three axes.
        preprocessing: How pixels became it.
        heat: (h, w) of any size.
        place: The strongest, as fractions of height and width.
    """
    pixels = shown_image(image, preprocessing)
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(7.2, 3.7 * min(height / width, 2)), layout="constrained")
    left, right = figure.subplots(1, 2)
    grey = np.repeat(pixels.mean(axis=-1, keepdims=True), _COLOURS, axis=-1)
    for axes, shown, title in ((left, pixels, "the input"), (right, grey, "past the bounds")):
        axes.imshow(shown, interpolation="nearest", extent=_extent(pixels))
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_axis_off()
    finite = np.nan_to_num(heat, nan=0.0, posinf=float(np.max(heat[np.isfinite(heat)], initial=0.0)))
    most = float(finite.max()) or 1.0
    drawn = right.imshow(
        finite, extent=_extent(pixels), cmap="inferno", vmin=0, vmax=most, alpha=0.25 + 0.7 * finite / most
    )
    figure.colorbar(drawn, ax=right, shrink=0.8, label="log(1 + excess)")
    if place is not None:
        right.plot(place[1] * width - 0.5, place[0] * height - 0.5, marker="+", markersize=18, markeredgewidth=2.5,
                   color="#39d0ff")  # fmt: skip
    return f"<div class='scroll'>{svg(figure, salt='heat')}</div>"


def shown_image(image: NDArray[Any], preprocessing: Mapping[str, Any]) -> FloatArray:
    """Return pixels (H, W, 3) from 0 to 1: preprocessing undone, and stretched where that leaves other values.

    Args:
        image: (channels, H, W) or (H, W, channels).
        preprocessing: What the bundle says of images.
    """
    laid = np.moveaxis(image, 0, -1) if preprocessing["layout"] == "nchw" else image
    values = laid.astype(np.float64)
    if np.issubdtype(image.dtype, np.integer):
        values = values / _WHITE
    else:
        mean, std = (np.asarray(preprocessing[key], dtype=np.float64) for key in ("mean", "std"))
        values = (values * std + mean) * (preprocessing["scale"] / _WHITE)
    if values.shape[-1] != _COLOURS:
        values = np.repeat(values.mean(axis=-1, keepdims=True), _COLOURS, axis=-1)
    low, high = float(values.min()), float(values.max())
    if low < -1e-3 or high > 1 + 1e-3:
        values = (values - low) / max(high - low, np.finfo(np.float64).tiny)
    return np.asarray(np.clip(values, 0.0, 1.0))


def site_picture(evidence: Evidence) -> str:
    """Draw how unusual each number of each site is, with the region that raises no alarm alone."""
    return "".join(
        f"<div class='{name}'>{svg(_site_figure(evidence, width, columns), salt=name)}</div>"
        for name, width, columns in (("wide", 8.6, 4), ("narrow", 4.6, 2))
    )


def _site_figure(evidence: Evidence, width: float, columns: int) -> Figure:
    rows = -(-len(evidence.numbers) // columns)
    figure = Figure(figsize=(width, rows * (0.9 + 0.26 * len(evidence.sites)) + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, name, away, limits in zip(grid, evidence.numbers, evidence.away, evidence.limits, strict=False):
        _draw_number(axes, _drawable(away), _drawable(limits))
        axes.set_title(name, loc="left", fontsize=10)
    for axes in grid[len(evidence.numbers) :]:
        axes.set_axis_off()
    grid[0].set_yticks(np.arange(len(evidence.sites)), tick_names(evidence.sites), fontsize=8, parse_math=False)
    grid[0].set_ylim(len(evidence.sites) - 0.4, -0.6)
    figure.supxlabel("clean standard deviations from the clean mean", fontsize=9)
    return figure


def _draw_number(axes: Axes, away: FloatArray, limits: FloatArray) -> None:
    places = np.arange(len(away))
    axes.barh(places, 2 * limits, left=-limits, height=0.9, color="#e3ebf4")
    axes.barh(places, away, height=0.5, color=[ALERT if past else INK for past in np.abs(away) > limits])
    axes.axvline(0, color="#8894a3", linewidth=0.8)
    axes.tick_params(labelsize=8, left=False)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _drawable(values: FloatArray) -> FloatArray:
    return np.clip(np.nan_to_num(values, nan=0.0), -_FAR, _FAR)


def _extent(pixels: FloatArray) -> tuple[float, float, float, float]:
    height, width = pixels.shape[:2]
    return (-0.5, width - 0.5, height - 0.5, -0.5)
