"""A bundle's first run, before any request depends on it: what opens need not run."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from guard.errors import BundleError, ModelError
from guard.runtime import Guard
from guard.types import TensorSpec

__all__ = ["try_out"]

Array = NDArray[np.generic]


def try_out(guard: Guard) -> None:
    """Run both models on a row of zeros, and where that has no answer of ones, and of numbers from 0 to 1.

    Where inputs have other free axes than the batch, or hold no numbers, it is not known what they may be: such models
    are not tried.

    Raises:
        BundleError: They answer none of the three.
    """
    if not all(map(_is_known, guard.manifest.inputs)):
        return
    problem = None
    for fill in (_zeros, _ones, _ramp):
        if (problem := _problem(guard, fill)) is None:
            return
    raise BundleError(f"its models open, but answer none of three trial inputs: {problem}") from problem


def _is_known(spec: TensorSpec) -> bool:
    return None not in spec.shape[1:] and np.dtype(spec.dtype).kind in "biuf"


def _problem(guard: Guard, fill: Callable[[TensorSpec], Array]) -> ModelError | None:
    inputs = {spec.name: fill(spec) for spec in guard.manifest.inputs}
    try:
        guard.run_bounded(inputs)
        guard(inputs)
    except ModelError as error:
        return error
    return None


def _zeros(spec: TensorSpec) -> Array:
    return np.zeros(_row(spec), spec.dtype)


def _ones(spec: TensorSpec) -> Array:
    return np.ones(_row(spec), spec.dtype)


def _ramp(spec: TensorSpec) -> Array:
    shape = _row(spec)
    return np.linspace(0, 1, int(np.prod(shape))).reshape(shape).astype(spec.dtype)


def _row(spec: TensorSpec) -> tuple[int, ...]:
    return (1, *(axis for axis in spec.shape[1:] if axis is not None))
