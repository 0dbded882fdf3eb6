"""The protocol's datatypes: how each one's elements lie in bytes, in typed contents and in numpy."""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from guard.errors import InputError

__all__ = ["BYTES", "DATATYPES", "Datatype", "datatype_of", "element_count", "from_raw", "from_typed", "to_raw"]

Array = NDArray[Any]

BYTES = "BYTES"

_LENGTH = struct.Struct("<I")
_MAX_AXES = 32
_MAX_BYTES = 2**63 - 1
_CHUNK = 2**15
"""Elements converted in one go: numpy lets no other thread run meanwhile, and this many take a few milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Datatype:
    """One datatype.

    Args:
        name: As in the protocol.
        dtype: Of the numpy array, in the machine's byte order.
        stored: Of the raw bytes, always little-endian; the same width as dtype.
        field: The typed contents field that carries it; None: it travels raw only.
        carrier: The dtype of that field's elements, which may be wider.
    """

    name: str
    dtype: np.dtype[Any]
    stored: np.dtype[Any]
    field: str | None
    carrier: np.dtype[Any]


def _datatype(name: str, dtype: Any, stored: str, field: str | None, carrier: str) -> Datatype:
    return Datatype(name=name, dtype=np.dtype(dtype), stored=np.dtype(stored), field=field, carrier=np.dtype(carrier))


_TABLE = (
    _datatype("BOOL", np.bool_, "<u1", "bool_contents", "bool"),
    _datatype("UINT8", np.uint8, "<u1", "uint_contents", "uint32"),
    _datatype("UINT16", np.uint16, "<u2", "uint_contents", "uint32"),
    _datatype("UINT32", np.uint32, "<u4", "uint_contents", "uint32"),
    _datatype("UINT64", np.uint64, "<u8", "uint64_contents", "uint64"),
    _datatype("INT8", np.int8, "<i1", "int_contents", "int32"),
    _datatype("INT16", np.int16, "<i2", "int_contents", "int32"),
    _datatype("INT32", np.int32, "<i4", "int_contents", "int32"),
    _datatype("INT64", np.int64, "<i8", "int64_contents", "int64"),
    _datatype("FP16", np.float16, "<u2", None, "float16"),
    _datatype("BF16", ml_dtypes.bfloat16, "<u2", None, "float32"),
    _datatype("FP32", np.float32, "<f4", "fp32_contents", "float32"),
    _datatype("FP64", np.float64, "<f8", "fp64_contents", "float64"),
    _datatype(BYTES, np.object_, "object", "bytes_contents", "object"),
)

DATATYPES: Mapping[str, Datatype] = MappingProxyType({datatype.name: datatype for datatype in _TABLE})
"""Every datatype by its name."""

_BY_DTYPE = {datatype.dtype: datatype for datatype in _TABLE}


def datatype_of(dtype: np.dtype[Any] | str) -> Datatype:
    """Return the datatype of a numpy dtype.

    Raises:
        InputError: The protocol has none for it.
    """
    wanted = np.dtype(dtype).newbyteorder("=")
    if wanted not in _BY_DTYPE:
        raise InputError(f"the protocol has no datatype for {wanted}; it has {', '.join(DATATYPES)}")
    return _BY_DTYPE[wanted]


def element_count(name: str, datatype: Datatype, shape: Sequence[int]) -> int:
    """Return how many elements a tensor has.

    Raises:
        InputError: A negative axis, too many axes, or more bytes than can be addressed.
    """
    if len(shape) > _MAX_AXES:
        raise InputError(f"tensor {name} has {len(shape)} axes; at most {_MAX_AXES} are taken")
    if any(axis < 0 for axis in shape):
        raise InputError(f"tensor {name} has shape {list(shape)}; no axis of a request may be negative")
    if math.prod(max(axis, 1) for axis in shape) * datatype.dtype.itemsize > _MAX_BYTES:
        raise InputError(f"tensor {name} has shape {list(shape)}, more than can be addressed")
    return math.prod(shape)


def from_raw(name: str, datatype: Datatype, shape: Sequence[int], raw: bytes) -> Array:
    """Return the array that raw bytes hold: a read-only view of them wherever the machine allows.

    Raises:
        InputError: The bytes do not fit the shape, or are no values of the datatype.
    """
    count = element_count(name, datatype, shape)
    if datatype.name == BYTES:
        return _object_array(_split(name, raw, count), shape)
    expected = count * datatype.stored.itemsize
    if len(raw) != expected:
        raise InputError(
            f"tensor {name} has {len(raw)} raw bytes; {datatype.name} of shape {list(shape)} takes {expected}"
        )
    stored = np.frombuffer(raw, dtype=datatype.stored)
    if datatype.name == "BOOL" and (stored > 1).any():
        raise InputError(f"tensor {name} holds the byte {stored.max()}; BOOL takes 0 and 1 only")
    native = stored.astype(datatype.stored.newbyteorder("="), copy=False)
    return native.view(datatype.dtype).reshape(shape)


def from_typed(name: str, datatype: Datatype, shape: Sequence[int], values: Sequence[Any]) -> Array:
    """Return the array that the elements of the datatype's typed field make.

    Raises:
        InputError: Another number of elements than the shape takes, or one out of the datatype's range.
    """
    count = element_count(name, datatype, shape)
    if len(values) != count:
        raise InputError(
            f"tensor {name} has {len(values)} elements; {datatype.name} of shape {list(shape)} takes {count}"
        )
    if datatype.name == BYTES:
        return _object_array(values, shape)
    carried = _carried(values, datatype.carrier)
    if np.issubdtype(datatype.dtype, np.integer):
        _check_range(name, datatype, carried)
    return carried.astype(datatype.dtype, copy=False).reshape(shape)


def to_raw(array: Array) -> bytes:
    """Return an array's raw bytes: row-major, little-endian, no padding.

    Raises:
        InputError: The protocol has no datatype for it, or a BYTES element is no bytes.
    """
    datatype = datatype_of(array.dtype)
    if datatype.name == BYTES:
        return _join(array.ravel().tolist())
    native = np.ascontiguousarray(array, dtype=datatype.dtype).view(datatype.stored.newbyteorder("="))
    return native.astype(datatype.stored, copy=False).tobytes()


def _carried(values: Sequence[Any], dtype: np.dtype[Any]) -> Array:
    carried = np.empty(len(values), dtype=dtype)
    for start in range(0, len(values), _CHUNK):
        carried[start : start + _CHUNK] = np.fromiter(values[start : start + _CHUNK], dtype=dtype)
    return carried


def _check_range(name: str, datatype: Datatype, carried: Array) -> None:
    limits = np.iinfo(datatype.dtype)
    outside = carried[(carried < limits.min) | (carried > limits.max)]
    if outside.size:
        raise InputError(f"tensor {name} holds {outside[0]}; {datatype.name} takes {limits.min} to {limits.max}")


def _object_array(values: Iterable[bytes], shape: Sequence[int]) -> Array:
    flat = np.empty(math.prod(shape), dtype=np.object_)
    for position, value in enumerate(values):
        flat[position] = value
    return flat.reshape(shape)


def _join(values: list[Any]) -> bytes:
    for value in values:
        if not isinstance(value, bytes):
            raise InputError(f"a BYTES tensor holds {type(value).__name__}; it takes bytes only")
    return b"".join(_LENGTH.pack(len(value)) + value for value in values)


def _split(name: str, raw: bytes, count: int) -> list[bytes]:
    """Cut raw bytes into elements: each is a length, four bytes little-endian, and that many bytes."""
    elements: list[bytes] = []
    position = 0
    while position < len(raw) and len(elements) <= count:
        start = position + _LENGTH.size
        if start > len(raw):
            raise InputError(f"tensor {name} ends within the length of element {len(elements)}")
        end = start + _LENGTH.unpack_from(raw, position)[0]
        if end > len(raw):
            raise InputError(f"tensor {name} ends {end - len(raw)} bytes short of element {len(elements)}")
        elements.append(raw[start:end])
        position = end
    if len(elements) != count or position != len(raw):
        found = f"more than {count}" if len(elements) > count else str(len(elements))
        raise InputError(f"tensor {name} holds {found} elements; its shape takes {count}")
    return elements
