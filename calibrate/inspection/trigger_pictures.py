"""Pictures of recovered triggers, as HTML wants them."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calibrate.inspection.triggers import TriggerDistribution
from calibrate.page import svg
from guard.types import FloatArray

__all__ = ["trigger_picture", "trigger_png"]

_N_TRIGGERS = 6
_N_TRIGGERED = 4
_CELL = 0.95  # inches
_DOTS = 130  # per inch


def trigger_picture(distributions: Sequence[TriggerDistribution], examples: FloatArray) -> str:
    """Draw one row per distribution: triggers, where patches go, and inputs that carry them.

    Args:
        distributions: At least one.
        examples: (n, ...) model-ready inputs, shown with triggers on.
    """
    return svg(_figure(distributions, examples))


def trigger_png(distributions: Sequence[TriggerDistribution], examples: FloatArray) -> bytes:
    """Draw the same as PNG, which can be kept and shown again without being trusted."""
    buffer = io.BytesIO()
    _figure(distributions, examples).savefig(buffer, format="png", dpi=_DOTS, metadata={"Software": None})
    return buffer.getvalue()


def _figure(distributions: Sequence[TriggerDistribution], examples: FloatArray) -> Figure:
    examples = examples[:_N_TRIGGERED]
    columns = _N_TRIGGERS + 1 + len(examples)
    figure = Figure(figsize=(_CELL * columns, (_CELL + 0.2) * len(distributions)), layout="constrained")
    grid = figure.subplots(len(distributions), columns, squeeze=False)
    for row, found in zip(grid, distributions, strict=True):
        for axes in row:
            axes.axis("off")
        _draw_row(row, found, examples)
    return figure


def _draw_row(row: Sequence[Axes], found: TriggerDistribution, examples: FloatArray) -> None:
    rng = np.random.default_rng(0)
    low, high = _range(found, examples)
    for axes, trigger in zip(row, found.bank[:_N_TRIGGERS], strict=False):
        _draw_trigger(axes, found, trigger, low, high)
    row[0].set_title(f"{found.kind}, level {found.beta:g}", fontsize=8, loc="left")
    if found.kind.family == "patch":
        _draw_places(row[_N_TRIGGERS], found)
    triggered = found.apply(examples, found.sample(len(examples), rng), rng)
    for axes, image in zip(row[_N_TRIGGERS + 1 :], np.moveaxis(triggered, found.channel_axis, -1), strict=True):
        _draw_image(axes, (image - low) / (high - low))


def _range(found: TriggerDistribution, examples: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return (K,) between which values images are shown."""
    images = np.moveaxis(examples, found.channel_axis, -1)
    low, high = images.min(axis=(0, 1, 2)), images.max(axis=(0, 1, 2))
    return low, np.maximum(high, low + np.finfo(np.float32).eps)


def _draw_trigger(
    axes: Axes, found: TriggerDistribution, trigger: FloatArray, low: FloatArray, high: FloatArray
) -> None:
    if found.kind.family == "warp":
        rows, columns = np.mgrid[: trigger.shape[1], : trigger.shape[2]]
        axes.quiver(columns, rows, *trigger, angles="xy", scale_units="xy", scale=found.kind.strength)
        axes.set(aspect="equal", xlim=(-1, trigger.shape[2]), ylim=(trigger.shape[1], -1))
        return
    _draw_image(axes, (np.moveaxis(trigger, 0, -1) - low) / (high - low))


def _draw_places(axes: Axes, found: TriggerDistribution) -> None:
    """Draw how probable each upper left corner is."""
    corners, weights = found.places.corners, found.places.weights
    rows, columns = (np.unique(axis) for axis in corners.T)
    table = np.zeros((len(rows), len(columns)))
    table[np.searchsorted(rows, corners[:, 0]), np.searchsorted(columns, corners[:, 1])] = weights
    axes.imshow(table, cmap="magma", vmin=0)
    axes.set_title("places", fontsize=8)


def _draw_image(axes: Axes, image: FloatArray) -> None:
    """Draw (H, W, K) from 0 to 1: three channels as colours, any other number as their mean."""
    image = image.clip(0, 1).astype(np.float64)
    axes.imshow(image if image.shape[2] == 3 else image.mean(axis=2), cmap="gray", vmin=0, vmax=1)
