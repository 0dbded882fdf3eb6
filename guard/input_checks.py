"""Whether inputs are what a model takes: names, types, shapes, one N, finite numbers."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from guard.errors import InputError
from guard.types import Inputs, TensorSpec

__all__ = ["ArraysByName", "SharedAxis", "check_inputs", "check_shared_axes"]

ArraysByName = Mapping[str, NDArray[np.generic]]
SharedAxis = Sequence[tuple[str, int]]


def check_inputs(inputs: Inputs, specs: Sequence[TensorSpec]) -> ArraysByName:
    """Return inputs by name, and refuse what is not as the specs say.

    Args:
        inputs: Arrays by name, or one array for a model with one input.
        specs: The model's inputs.

    Raises:
        InputError: An input is missing or unknown; wrong dtype or shape, no rows, NaN or infinity; or another N.
    """
    arrays = _by_name(inputs, specs)
    for spec in specs:
        _check_input(arrays[spec.name], spec)
    first, *others = arrays
    for name in others:
        if len(arrays[name]) != len(arrays[first]):
            raise InputError(
                f"input {name} has {len(arrays[name])} rows and input {first} has {len(arrays[first])};"
                " every input takes one row per sample"
            )
    return arrays


def check_shared_axes(arrays: ArraysByName, shared: Sequence[SharedAxis]) -> None:
    """Refuse inputs whose shared axes differ in size.

    Args:
        arrays: Inputs that check_inputs returned.
        shared: Axes that the model takes to be of one size, each as places (input name, axis).

    Raises:
        InputError: Two of them differ.
    """
    for (first, axis), *others in shared:
        n = arrays[first].shape[axis]
        for name, place in others:
            if arrays[name].shape[place] != n:
                raise InputError(
                    f"input {name} has shape {arrays[name].shape} and input {first} has shape {arrays[first].shape};"
                    f" the model takes axis {place} of the one to be as long as axis {axis} of the other"
                )


def _by_name(inputs: Inputs, specs: Sequence[TensorSpec]) -> ArraysByName:
    """Return the inputs in the model's own order."""
    taken = f"the model takes {', '.join(spec.name for spec in specs)}"
    if not isinstance(inputs, Mapping):
        if len(specs) != 1:
            raise InputError(f"one array was given; {taken}: give a mapping with an array for each")
        return {specs[0].name: inputs}
    if missing := [spec.name for spec in specs if spec.name not in inputs]:
        raise InputError(f"input {missing[0]!r} is missing; {taken}")
    if unknown := [name for name in inputs if name not in {spec.name for spec in specs}]:
        raise InputError(f"input {unknown[0]!r} is unknown; {taken}")
    return {spec.name: inputs[spec.name] for spec in specs}


def _check_input(inputs: NDArray[np.generic], spec: TensorSpec) -> None:
    if not isinstance(inputs, np.ndarray | np.generic):
        raise InputError(f"input {spec.name} is a {type(inputs).__name__}; give a numpy array of {spec.dtype}")
    if inputs.dtype != np.dtype(spec.dtype):
        raise InputError(f"input {spec.name} has dtype {inputs.dtype}; the model takes {spec.dtype}")
    fits = inputs.ndim == len(spec.shape) and all(
        want in (None, got) for want, got in zip(spec.shape, inputs.shape, strict=True)
    )
    if not fits:
        raise InputError(f"input {spec.name} has shape {inputs.shape}; the model takes {spec}")
    if inputs.size == 0:
        raise InputError(f"input {spec.name} has shape {inputs.shape}, which holds no values; send at least one row")
    if np.issubdtype(inputs.dtype, np.inexact) and not np.isfinite(inputs).all():
        bad = np.flatnonzero(~np.isfinite(inputs.reshape(len(inputs), -1)).all(axis=1))
        raise InputError(
            f"input {spec.name} holds NaN or infinity in {len(bad)} of {len(inputs)} rows, the first is row {bad[0]};"
            " only finite values can be judged"
        )
