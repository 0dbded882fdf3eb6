"""Means and standard deviations of activations on clean data, collected by onnxruntime in one forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import onnx

from calibrate.forward import forward
from calibrate.sites import Progress, Rows, Site
from guard.errors import CalibrationError
from guard.types import FloatArray, IntArray

__all__ = ["Moments", "Observed", "Pooling", "check_finite", "observe", "site_moments"]

Pooling = Literal["channel", "level", "maximum", "minimum", "neuron"]
"""What one entry describes: a channel over inputs and positions; the mean of a channel over the positions of one input,
over inputs; the maximum or minimum of a channel over the positions
of one input, over inputs; one neuron, over inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Count, mean and sum of squared deviations, which merge exactly (Chan, Golub and LeVeque 1979).

    Args:
        n: Values per entry.
        mean: Shaped to broadcast against the activation, (1, K, 1, 1) or (1, K, H, W).
        squares: The sum of squared deviations from the mean, shaped alike.
    """

    n: int
    mean: FloatArray
    squares: FloatArray

    @classmethod
    def of(cls, values: FloatArray, axes: tuple[int, ...]) -> Self:
        """Return the moments of values over these axes, in float64."""
        n = int(np.prod([values.shape[a] for a in axes]))
        values = values.astype(np.result_type(values.dtype, np.float32), copy=False)  # squares overflow float16
        mean = values.mean(axis=axes, keepdims=True, dtype=np.float64)
        deviations = values - mean.astype(values.dtype)
        correction = deviations.sum(axis=axes, keepdims=True, dtype=np.float64) ** 2 / n
        squares = np.square(deviations).sum(axis=axes, keepdims=True, dtype=np.float64) - correction
        return cls(n=n, mean=mean, squares=np.maximum(squares, 0))

    def merged(self, other: Self) -> Self:
        """Return the moments of both sets of values together."""
        n = self.n + other.n
        delta = other.mean - self.mean
        return type(self)(
            n=n,
            mean=self.mean + delta * (other.n / n),
            squares=self.squares + other.squares + delta**2 * (self.n * other.n / n),
        )

    @property
    def std(self) -> FloatArray:
        """The unbiased standard deviation (n - 1)."""
        return np.asarray(np.sqrt(self.squares / max(self.n - 1, 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What one forward pass shows.

    Args:
        moments: By pooling and site tensor.
        predicted: (N,) the class with the largest logit.
    """

    moments: Mapping[Pooling, Mapping[str, Moments]]
    predicted: IntArray


def observe(
    model: onnx.ModelProto,
    logits: str,
    sites: Sequence[Site],
    inputs: Rows,
    *,
    poolings: Sequence[Pooling],
    progress: Progress,
    device: str = "cpu",
) -> Observed:
    """Return moments of every site and the classes predicted, from one forward pass.

    Args:
        model: The original.
        logits: The name of the tensor (N, C) that holds the logits.
        sites: The activations.
        inputs: N model-ready inputs.
        poolings: What one entry describes; one set of moments each.
        progress: Told after every batch.
        device: Where to compute.

    Raises:
        CalibrationError: An activation is NaN or infinite somewhere.
    """
    merged: dict[Pooling, dict[str, Moments]] = {pooling: {} for pooling in poolings}
    classes = []
    for done, values in forward(model, [*(site.tensor for site in sites), logits], inputs, device=device):
        for site in sites:
            check_finite(site.tensor, values[site.tensor])
            for pooling, found in merged.items():
                batch = _pooled_moments(values[site.tensor], site.channel_axis, pooling)
                found[site.tensor] = found[site.tensor].merged(batch) if site.tensor in found else batch
        classes.append(values[logits].argmax(axis=1))
        progress("activation statistics", done, len(inputs))
    return Observed(moments=merged, predicted=np.concatenate(classes).astype(np.int64))


def site_moments(
    model: onnx.ModelProto,
    sites: Sequence[Site],
    inputs: Rows,
    *,
    pooling: Pooling,
    progress: Progress,
    device: str = "cpu",
) -> Mapping[str, Moments]:
    """Return the moments of every site over the inputs, with one pooling (see observe)."""
    output = model.graph.output[0].name
    return observe(model, output, sites, inputs, poolings=[pooling], progress=progress, device=device).moments[pooling]


def check_finite(tensor: str, values: FloatArray) -> None:
    """Refuse an activation that is NaN or infinite on clean samples.

    Raises:
        CalibrationError: It is, somewhere.
    """
    if not np.isfinite(values).all():
        raise CalibrationError(
            f"the activation {tensor!r} is NaN or infinite on clean samples, which says nothing of its size; check the"
            " preprocessing, or export the model with float32"
        )


def _pooled_moments(values: FloatArray, channel_axis: int, pooling: Pooling) -> Moments:
    positions = tuple(a for a in range(1, values.ndim) if a != channel_axis)
    if pooling == "channel":
        return Moments.of(values, (0, *positions))
    if pooling == "level":
        return Moments.of(values.mean(axis=positions, keepdims=True, dtype=np.float64), (0,))
    if pooling == "maximum":
        return Moments.of(values.max(axis=positions, keepdims=True), (0,))
    if pooling == "minimum":
        return Moments.of(values.min(axis=positions, keepdims=True), (0,))
    return Moments.of(values, (0,))
