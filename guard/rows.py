"""Inputs as one array or as several by name: the one place that tells the two apart."""

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import TypeVar

import numpy as np

from guard.types import Inputs

__all__ = ["concatenate", "each", "n_rows"]

A = TypeVar("A")
B = TypeVar("B")


def each(function: Callable[[A], B], inputs: A | Mapping[str, A]) -> B | Mapping[str, B]:
    """Return what the function makes of the one array, numpy's or torch's, or of each by name."""
    if isinstance(inputs, Mapping):
        return {name: function(array) for name, array in inputs.items()}
    return function(inputs)


def n_rows(inputs: Sized | Mapping[str, Sized]) -> int:
    """Return N of inputs that were checked: all arrays have as many rows."""
    return len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)


def concatenate(parts: Sequence[Inputs]) -> Inputs:
    """Return the rows of all parts, which are all arrays or all by the same names."""
    by_name = [part for part in parts if isinstance(part, Mapping)]
    if by_name:
        return {name: np.concatenate([part[name] for part in by_name]) for name in by_name[0]}
    return np.concatenate([part for part in parts if not isinstance(part, Mapping)])
