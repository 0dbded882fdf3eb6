"""Tensors as JSON numbers, booleans and texts, and JSON itself, read strictly. Knows neither protobuf nor HTTP."""

import json
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from guard.errors import InputError
from serving.datatypes import BYTES, Datatype, element_count, from_typed
from serving.errors import MalformedError

__all__ = ["from_json", "read_json", "to_json"]

_WHOLE, _NUMBERS = frozenset({int}), frozenset({int, float})
_KINDS = {"BOOL": (frozenset({bool}), "true and false"), BYTES: (frozenset({str}), "texts")}
_MAX_SHOWN = 40


def read_json(content: bytes) -> Any:
    """Return what a JSON text says.

    Raises:
        MalformedError: It is none, is too deep, says a key twice, or holds NaN or Infinity, which JSON does not have.
    """
    try:
        return json.loads(content.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError as error:
        raise MalformedError("the request's JSON is nested too deeply") from error
    except ValueError as error:
        raise MalformedError(f"the request is no JSON: {error}") from error


def from_json(name: str, datatype: Datatype, shape: Sequence[int], data: Any) -> NDArray[Any]:
    """Return the array that JSON data hold, row by row: flat, or nested as the shape has it.

    Raises:
        InputError: The data are nested otherwise, too many or too few, or hold what the datatype does not.
    """
    element_count(name, datatype, shape)
    values = _flat(name, shape, data)
    kinds, what = _KINDS.get(datatype.name) or _numbers(datatype)
    if wrong := set(map(type, values)) - kinds:
        value = next(value for value in values if type(value) in wrong)
        raise InputError(f"tensor {name} holds {_shown(value)}; {datatype.name} takes {what}")
    if datatype.name == BYTES:
        values = [_encoded(name, value) for value in values]
    try:
        # A number too great for the datatype becomes infinite, which the guard refuses.
        with np.errstate(over="ignore"):
            return from_typed(name, datatype, shape, values)
    except OverflowError as error:
        value = max(values, key=abs)
        raise InputError(f"tensor {name} holds {_shown(value)}, which {datatype.name} cannot hold") from error


def to_json(name: str, array: NDArray[Any]) -> list[Any]:
    """Return an array's elements in row-major order as JSON has them.

    Raises:
        InputError: JSON has nothing for one of them.
    """
    if array.dtype == np.object_:
        return [_decoded(name, value) for value in array.ravel().tolist()]
    if array.dtype.kind not in "biu":
        array = array.astype(np.float64)
        if not np.isfinite(array).all():
            raise InputError(f"output {name} holds NaN or infinity, which JSON does not have; ask for binary_data")
    values: list[Any] = array.ravel().tolist()
    return values


def _flat(name: str, shape: Sequence[int], data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise InputError(f"tensor {name} has data that are no JSON array")
    values: list[Any] = data
    depth = 0
    while list in (kinds := set(map(type, values))):
        depth += 1
        fits = len(kinds) == 1 and depth < len(shape) and len(values) == math.prod(shape[:depth])
        if not fits or set(map(len, values)) != {shape[depth]}:
            raise InputError(
                f"tensor {name} has data nested otherwise than its shape {list(shape)}; nest so, or not at all"
            )
        values = list(chain.from_iterable(values))
    return values


def _numbers(datatype: Datatype) -> tuple[frozenset[type], str]:
    if np.issubdtype(datatype.dtype, np.integer):
        return _WHOLE, "whole numbers"
    return _NUMBERS, "numbers"


def _shown(value: Any) -> str:
    # An int of very many digits cannot be written out at all.
    text = (
        f"a number of {value.bit_length()} bits" if isinstance(value, int) and value.bit_length() > 64 else repr(value)
    )
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _encoded(name: str, value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"tensor {name} holds half a surrogate pair, which is no text") from error


def _decoded(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"output {name} holds bytes that are no text; ask for binary_data") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which JSON does not have and no model is given")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, _ in pairs if [k for k, _ in pairs].count(key) > 1)
        raise ValueError(f"it says {_shown(twice)} twice in one object")
    return found
