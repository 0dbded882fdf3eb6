"""What channels do on a few clean inputs, from one forward pass, in memory that does not grow with the inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from calibrate.forward import forward
from calibrate.sites import Progress, Rows, RowsInMemory, Site
from calibrate.statistics import check_finite
from guard.rows import concatenate
from guard.types import BoolArray, FloatArray, IntArray

__all__ = ["CleanChannels", "clean_channels", "spread_over_classes"]

_ROUNDING = 1e-5  # of float32, relative to the value
_LEAST_VARIANCE = 1e-20


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanChannels:
    """One site's channels over n clean inputs.

    Args:
        mean_maximum: (K,) the mean over inputs of the maximum over positions.
        unlikeness: (K,) 1 - the mean absolute correlation with the layer's other channels, over inputs and
            positions; NaN for a channel that never varies.
        varies: (K,) whether it ever does.
    """

    mean_maximum: FloatArray
    unlikeness: FloatArray
    varies: BoolArray


@dataclass(slots=True, kw_only=True)
class _Sums:
    """Running sums of one site, of values less a first guess of their means, which keeps the squares exact."""

    offset: FloatArray
    n: int = 0
    n_inputs: int = 0
    maxima: FloatArray | float = 0.0
    values: FloatArray | float = 0.0
    products: FloatArray | float = 0.0

    def add(self, by_channel: FloatArray) -> None:
        """Count in values (n, K, positions)."""
        self.maxima = self.maxima + by_channel.max(axis=2).sum(axis=0)
        rows = by_channel.swapaxes(0, 1).reshape(by_channel.shape[1], -1) - self.offset[:, None]
        self.values = self.values + rows.sum(axis=1)
        self.products = self.products + rows @ rows.T
        self.n += rows.shape[1]
        self.n_inputs += len(by_channel)

    def finish(self) -> CleanChannels:
        mean = np.asarray(self.values) / self.n
        covariance = np.asarray(self.products) / self.n - np.outer(mean, mean)
        varies = np.diag(covariance) > (_ROUNDING * np.abs(self.offset)) ** 2 + _LEAST_VARIANCE
        return CleanChannels(
            mean_maximum=np.asarray(self.maxima) / self.n_inputs,
            unlikeness=_unlikeness(covariance, varies),
            varies=varies,
        )


def clean_channels(
    model: onnx.ModelProto, sites: Sequence[Site], inputs: Rows, *, progress: Progress, device: str = "cpu"
) -> Mapping[str, CleanChannels]:
    """Return what every site's channels do on all the inputs.

    Raises:
        CalibrationError: An activation is NaN or infinite somewhere.
    """
    sums: dict[str, _Sums] = {}
    for done, values in forward(model, [site.tensor for site in sites], inputs, device=device):
        for site in sites:
            by_channel = _by_channel(site, values[site.tensor])
            if site.tensor not in sums:
                sums[site.tensor] = _Sums(offset=by_channel.mean(axis=(0, 2)))
            sums[site.tensor].add(by_channel)
        progress("activations", done, len(inputs))
    return {tensor: s.finish() for tensor, s in sums.items()}


def spread_over_classes(inputs: Rows, labels: IntArray, n: int) -> Rows:
    """Return n of the inputs that spread over the classes as evenly as there are inputs of each, first come first."""
    turns: dict[int, int] = {}
    order = []
    for row, label in enumerate(int(label) for label in labels):
        turns[label] = turns.get(label, 0) + 1
        order.append((turns[label], row))
    rows = sorted(row for _, row in sorted(order)[:n])
    return RowsInMemory(inputs=concatenate([inputs[row : row + 1] for row in rows]))


def _by_channel(site: Site, values: FloatArray) -> FloatArray:
    check_finite(site.tensor, values)
    by_channel = np.moveaxis(values, site.channel_axis, 1).astype(np.float64)
    return by_channel.reshape(*by_channel.shape[:2], -1)


def _unlikeness(covariance: FloatArray, varies: BoolArray) -> FloatArray:
    deviations = np.sqrt(np.where(varies, np.diag(covariance), 1.0))
    likeness = np.abs(covariance / np.outer(deviations, deviations)).clip(0, 1)
    n_others = varies.sum() - 1
    if n_others < 1:
        return np.full(len(varies), np.nan)
    return np.where(varies, 1 - (likeness[:, varies].sum(axis=1) - 1) / n_others, np.nan)
