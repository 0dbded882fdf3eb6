"""Inputs as one array or as several by name: the one place that tells the two apart."""

from collections.abc import Callable, Mapping, Sized
from typing import TypeVar

__all__ = ["each", "n_rows"]

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
