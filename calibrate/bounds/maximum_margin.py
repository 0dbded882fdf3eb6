"""Inputs that a classifier is surest of: gradient ascent on the margin of a class, within the range of clean inputs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calibrate.gradients import gradient
from calibrate.preprocessing import Layout, input_channel_axis
from calibrate.sites import BoundsProblem
from guard.errors import CalibrationError
from guard.types import FloatArray

__all__ = ["InputRange", "Logits", "ascend", "ascend_by_sign", "float_inputs", "margins"]

Logits = Callable[[Tensor], Tensor]
"""Maps model-ready inputs (N, ...) to logits (N, C)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRange:
    """Where inputs lie, per channel: an input is least + unit * (greatest - least), with unit in [0, 1].

    Steps taken in units are the steps that a network takes whose normalisation is inside of it.
    """

    least: Tensor
    greatest: Tensor

    @classmethod
    def of(cls, inputs: FloatArray, device: str, *, layout: Layout = "nchw") -> "InputRange":
        """Return [0, 1] for inputs (N, ...) that lie in it, else what each channel spans."""
        channel = input_channel_axis(inputs.shape, layout)
        others = tuple(axis for axis in range(inputs.ndim) if axis != channel)
        least, greatest = (edge(inputs, axis=others, keepdims=True) for edge in (np.min, np.max))
        if least.min() >= 0 and greatest.max() <= 1:
            least, greatest = np.zeros_like(least), np.ones_like(greatest)
        return cls(least=torch.from_numpy(least).to(device), greatest=torch.from_numpy(greatest).to(device))

    def inputs_of(self, units: Tensor) -> Tensor:
        """Return model-ready inputs, of the type that the model takes."""
        return (self.least + units.clamp(0, 1) * (self.greatest - self.least)).to(self.least.dtype)

    def units_of(self, inputs: Tensor) -> Tensor:
        """Return float32 units; 0 where a channel spans nothing."""
        span = (self.greatest - self.least).float()
        return torch.where(span > 0, (inputs - self.least).float() / span.where(span > 0, 1), 0)


def float_inputs(problem: BoundsProblem, *, method: str) -> FloatArray:
    """Return the bounds set in memory.

    Raises:
        CalibrationError: The model takes several inputs, or no floating-point one: no image can be made for it.
    """
    inputs: object = problem.inputs[0 : len(problem.inputs)]
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind == "f":
        return inputs
    found = f"inputs of type {inputs.dtype}" if isinstance(inputs, np.ndarray) else "several inputs"
    raise CalibrationError(
        f"{method} climbs to inputs of its own by gradients, which takes one floating-point input, but the model takes"
        f" {found}. Use a method that makes no inputs: --method sigma"
    )


def margins(logits: Tensor, classes: Tensor) -> Tensor:
    """Return (N,) how far each row's class lies above the best other: h_t - max over j != t of h_j."""
    own = classes[:, None]
    others = logits.scatter(1, own, -torch.inf)
    return (logits.gather(1, own) - others.amax(1, keepdim=True))[:, 0]


def ascend(
    logits: Logits, units: Tensor, classes: Tensor, within: InputRange, *, steps: int, learning_rate: float
) -> Tensor:
    """Climb the sum of margins by plain gradient steps, as published; return units in [0, 1].

    The official code hands momentum to an optimiser that it builds anew at every step, where momentum does nothing.
    """
    for _ in range(steps):
        units = units + learning_rate * _gradient(logits, units, classes, within)
    return units.clamp(0, 1)


def ascend_by_sign(
    logits: Logits, units: Tensor, classes: Tensor, within: InputRange, *, steps: int, step: float
) -> Tensor:
    """Climb by steps of one length along each coordinate, whatever the scale of the logits; return units in [0, 1].

    A coordinate whose gradient is not finite becomes NaN.
    """
    for _ in range(steps):
        slope = _gradient(logits, units, classes, within)
        units = (units + step * slope.sign().where(slope.isfinite(), torch.nan)).clamp(0, 1)
    return units


def _gradient(logits: Logits, units: Tensor, classes: Tensor, within: InputRange) -> Tensor:
    units = units.detach().requires_grad_()
    total = margins(logits(within.inputs_of(units)), classes).sum()
    return gradient(total, units)
