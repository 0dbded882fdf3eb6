"""What is bounded and by how much: the values that bounds methods take and give."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import onnx

from calibrate.preprocessing import Layout
from guard.rows import each, n_rows
from guard.types import FloatArray, Inputs, IntArray

__all__ = ["ActivationBounds", "BoundsProblem", "Progress", "Rows", "RowsInMemory", "Site"]

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total); it draws, the caller computes."""


class Rows(Protocol):
    """Model-ready inputs that are made when they are asked for, so that memory stays flat."""

    def __len__(self) -> int:
        """Return N."""
        ...

    def __getitem__(self, rows: slice) -> Inputs:
        """Return the model-ready inputs of these rows: (n, ...), or arrays by name for a model with several inputs."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsInMemory:
    """Rows that are made already."""

    inputs: Inputs

    def __len__(self) -> int:
        return n_rows(self.inputs)

    def __getitem__(self, rows: slice) -> Inputs:
        return each(lambda array: array[rows], self.inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One activation that can be bounded: the output of an activation function.

    Args:
        tensor: The tensor's name in the graph.
        function: The activation function, as ONNX names it (``Relu``, ``Clip``, ``HardSwish``, ``Gelu`` ...).
        shape: One entry per axis, None where free; axis 0 is N.
        channel_axis: The axis of K.
        dtype: The numpy name of its element type.
    """

    tensor: str
    function: str
    shape: tuple[int | None, ...]
    channel_axis: int
    dtype: str = "float32"

    def per_channel(self, values: FloatArray) -> FloatArray:
        """Return values (K,) shaped to broadcast against the activation, such as (1, K, 1, 1)."""
        shape = [1] * len(self.shape)
        shape[self.channel_axis] = len(values)
        return values.reshape(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationBounds:
    """An upper bound for every site, and a lower one where wanted: each activation x becomes min(max(x, lower), upper).

    Args:
        method: The name of the method that learned them.
        settings: The method's settings and what it chose, as JSON can hold them.
        upper: Per site tensor an array that broadcasts against the activation: shape () for one bound per
            site, (1, K, 1, 1) per channel, (1, K, H, W) per neuron.
        lower: The same for those of these sites that are bounded from below too.
    """

    method: str
    settings: Mapping[str, object]
    upper: Mapping[str, FloatArray]
    lower: Mapping[str, FloatArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if strangers := sorted(self.lower.keys() - self.upper.keys()):
            raise ValueError(f"{strangers[0]!r} has a lower bound but no upper one")


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundsProblem:
    """All that a bounds method may look at.

    Args:
        model: The original.
        logits: The name of the tensor (N, C) that holds the logits.
        sites: The activations to bound, in the order in which the graph computes them.
        n_classes: C.
        inputs: The bounds set, model-ready, in random order.
        labels: (N,) classes of the bounds set; the original's own predictions where no labels were given.
        max_accuracy_drop: The clean accuracy that bounding may cost, a fraction.
        seed: For whatever the method draws at random.
        progress: Told how far the work is.
        device: Where gradients are computed, as torch names it.
        layout: Of images among the inputs.
    """

    model: onnx.ModelProto
    logits: str
    sites: Sequence[Site]
    n_classes: int
    inputs: Rows
    labels: IntArray
    max_accuracy_drop: float
    seed: int
    progress: Progress
    device: str = "cpu"
    layout: Layout = "nchw"
