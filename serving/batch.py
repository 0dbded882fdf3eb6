"""What a worker does with one batch: decode each request, join what can be joined, run it, and cut it up again."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from guard.errors import InputError

__all__ = ["Answered", "Arrays", "Decode", "Outcome", "Run", "run_batch"]

A = TypeVar("A")

Arrays = Mapping[str, NDArray[Any]]
Decode = Callable[[], Arrays]
"""Returns a request's arrays (N, ...) by name, or raises."""

Run = Callable[[Arrays], Callable[[slice, str], A]]
"""Answers arrays (N, ...) by name: returns what gives the answer to a slice of the rows and the name of their request,
or refuses that slice alone by raising. Where a run that requests share raises, each half of them is run by itself, so
that a request which no model can run fails alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered(Generic[A]):
    """An answer, and where its time went.

    Args:
        value: The answer to the request's rows.
        started: When its turn came, on the clock.
        decode_s: Seconds its arrays took to decode.
        run_s: Seconds the run took that it shared.
        leads: Whether it is the first answer of its run, so that counting these counts runs.
    """

    value: A
    started: float
    decode_s: float
    run_s: float
    leads: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    index: int
    arrays: Arrays
    n_rows: int
    decode_s: float


Outcome = Answered[A] | Exception
"""An answer, or what the request failed with."""


def run_batch(
    decoders: Sequence[Decode],
    n_rows: Sequence[int],
    names: Sequence[str],
    run: Run[A],
    *,
    started: float,
    clock: Callable[[], float],
) -> Sequence[Outcome[A]]:
    """Answer several requests, each by itself as far as anybody can tell.

    Args:
        decoders: One per request.
        n_rows: How many rows each request said it has.
        names: What the run is told that they are called.
        run: Called once for all requests that can be joined: the same names, dtypes and shapes without axis 0.
        started: When their turn came, on the clock.
        clock: Seconds.

    Returns:
        For each request its answer or what it failed with.
    """
    outcomes: dict[int, Outcome[A]] = {}
    groups: dict[Hashable, list[_Part]] = {}
    for index, (decode, n) in enumerate(zip(decoders, n_rows, strict=True)):
        try:
            part = _decode(index, decode, n, clock)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's alone
            outcomes[index] = error
        else:
            groups.setdefault(_layout(part.arrays), []).append(part)
    for parts in groups.values():
        outcomes |= _run_group(parts, names, run, started, clock)
    return [outcomes[index] for index in range(len(decoders))]


def _decode(index: int, decode: Decode, n_rows: int, clock: Callable[[], float]) -> _Part:
    started = clock()
    arrays = decode()
    if wrong := [name for name, array in arrays.items() if not array.ndim or len(array) != n_rows]:
        shape = arrays[wrong[0]].shape
        raise InputError(f"input {wrong[0]} has shape {shape}; the request is said to have {n_rows} rows")
    return _Part(index=index, arrays=arrays, n_rows=n_rows, decode_s=clock() - started)


def _layout(arrays: Arrays) -> Hashable:
    return frozenset((name, array.dtype, array.shape[1:]) for name, array in arrays.items())


def _run_group(
    parts: Sequence[_Part], names: Sequence[str], run: Run[A], started: float, clock: Callable[[], float]
) -> Mapping[int, Outcome[A]]:
    began = clock()
    try:
        answer = run(_join([part.arrays for part in parts]))
    except Exception as error:  # noqa: BLE001 - nothing of a failed run is let through
        if len(parts) == 1:
            return {parts[0].index: error}
        middle = len(parts) // 2
        return {
            index: outcome
            for half in (parts[:middle], parts[middle:])
            for index, outcome in _run_group(half, names, run, started, clock).items()
        }
    run_s = clock() - began
    outcomes: dict[int, Outcome[A]] = {}
    end, leads = 0, True
    for part in parts:
        rows = slice(end, end := end + part.n_rows)
        try:
            value = answer(rows, names[part.index])
        except Exception as error:  # noqa: BLE001 - refused to this request alone
            outcomes[part.index] = error
        else:
            outcomes[part.index] = Answered(
                value=value, started=started, decode_s=part.decode_s, run_s=run_s, leads=leads
            )
            leads = False
    return outcomes


def _join(parts: Sequence[Arrays]) -> Arrays:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
