"""Read inputs and labels from .npz and .npy files, and check them against the model."""

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.preprocessing import ImageShape, Pixels
from guard.errors import InputError
from guard.types import IntArray, TensorSpec

__all__ = ["INPUTS", "UNREADABLE", "Arrays", "check_pixels", "is_array_file", "load_arrays", "model_ready"]

INPUTS = "inputs"
"""What the array of a model with one input is called; a model with several gives its own names."""

_CLASSES = ("labels", "target_classes")
_NPY, _ZIP = b"\x93NUMPY", b"PK"
UNREADABLE = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, RuntimeError, MemoryError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError),
)
"""What reading a damaged array file may raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """What an array file holds.

    Args:
        inputs: (N, ...) of any type, by name.
        labels: (N,) true classes, or None.
        target_classes: (N,) the classes that an attacker wants, or None.
    """

    inputs: Mapping[str, NDArray[Any]]
    labels: IntArray | None
    target_classes: IntArray | None


def is_array_file(path: Path) -> bool:
    """Tell an .npz or .npy file from anything else by its first bytes."""
    try:
        with path.open("rb") as file:
            return file.read(len(_NPY)).startswith((_NPY, _ZIP))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); make it readable") from error


def load_arrays(path: Path, *, inputs: Sequence[TensorSpec], n_classes: int) -> Arrays:
    """Read inputs, and ``labels`` and ``target_classes`` where given; pickled objects are never loaded.

    Args:
        path: An .npz, or an .npy of the inputs alone, which is mapped and not read.
        inputs: The model's. The array for a single one is called ``inputs``; of several, each has its own name.
        n_classes: Labels and target classes lie in [0, n_classes).

    Raises:
        InputError: It cannot be read, lacks an input or has one too many, or its labels are no classes of the model.
    """
    names = [INPUTS] if len(inputs) == 1 else [spec.name for spec in inputs]
    if reserved := [name for name in names if name in _CLASSES]:
        raise InputError(f"the model has an input {reserved[0]!r}, which an .npz holds classes under; rename the input")
    try:
        held = _read(path, {*names, *_CLASSES})
    except UNREADABLE as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{path} cannot be read ({reason}); save plain arrays with numpy.savez or numpy.save"
        ) from error
    _check_names(path, held, names)
    arrays = {name: held[name] for name in names}
    n = _check_rows(path, arrays)
    labels, targets = (_classes(path, held, key, n=n, n_classes=n_classes) for key in _CLASSES)
    return Arrays(inputs=arrays, labels=labels, target_classes=targets)


def model_ready(inputs: NDArray[Any], rows: IntArray, spec: TensorSpec, *, name: str = INPUTS) -> NDArray[Any]:
    """Take these rows, in the model's own type; only floating-point types are cast to one another.

    Args:
        inputs: (N, ...) floats, or whatever type the model takes.
        rows: (n,) indices, in the order in which the inputs shall come back.
        spec: The model's input.
        name: What to call the array in errors.

    Raises:
        InputError: Type or shape do not fit, or NaN or infinity are among the rows.
    """
    dtype = np.dtype(spec.dtype)
    if inputs.dtype.name != dtype.name and not (inputs.dtype.kind == dtype.kind == "f"):
        images = ", or give images as uint8 (N, H, W, channels)" if name == INPUTS else ""
        raise InputError(
            f"{name} of type {inputs.dtype} do not fit the model's input {spec}; "
            f"convert them to {dtype} as the model expects{images}"
        )
    if not _fits(inputs.shape, spec.shape):
        hint = _hint(inputs.shape, spec)
        raise InputError(f"{name} of shape {inputs.shape} do not fit the model's input {spec}; {hint}")
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused as such
        taken = inputs[rows].astype(dtype)
    _check_finite(taken, rows, name)
    return taken


def check_pixels(inputs: Pixels, shape: ImageShape) -> Pixels:
    """Return uint8 images as (n, H, W, channels); (n, H, W) counts as one channel.

    Raises:
        InputError: They have other channels than the model, or none at all.
    """
    pixels = inputs[..., None] if inputs.ndim == 3 else inputs
    allowed = (1, 3, 4) if shape.channels is None else (shape.channels,)
    if pixels.ndim == 4 and pixels.shape[3] in allowed:
        return pixels
    wanted = " or ".join(map(str, allowed))
    hint = "give them as (N, H, W, channels)"
    if pixels.ndim == 4 and pixels.shape[1] in allowed:
        hint = "they look like (N, channels, H, W): give inputs.transpose(0, 2, 3, 1)"
    raise InputError(
        f"uint8 inputs of shape {inputs.shape} are not images of {wanted} channels, which the model takes; {hint}"
    )


def _read(path: Path, wanted: Collection[str]) -> dict[str, Any]:
    with path.open("rb") as file:
        if file.read(len(_NPY)) == _NPY:
            return {INPUTS: np.load(path, mmap_mode="r", allow_pickle=False)}
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] if key in wanted else None for key in archive}


def _check_names(path: Path, held: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse a file that lacks an input, or of a model with several inputs holds one that is not the model's."""
    if missing := [name for name in names if not isinstance(held.get(name), np.ndarray)]:
        there = ", ".join(map(repr, held)) or "nothing"
        each = "" if len(names) == 1 else f" for each of the model's inputs {', '.join(names)}, in an .npz"
        raise InputError(f"{path} holds {there}, but no array `{missing[0]}`; save one of shape (N, ...){each}")
    if len(names) > 1 and (unknown := [key for key in held if key not in {*names, *_CLASSES}]):
        raise InputError(
            f"{path} holds {unknown[0]!r}, which is no input of the model; it takes {', '.join(names)}: save no others"
            f" but {' and '.join(_CLASSES)}"
        )


def _check_rows(path: Path, arrays: Mapping[str, NDArray[Any]]) -> int:
    """Return N, the same of every array and more than 0."""
    for name, array in arrays.items():
        if array.ndim == 0 or array.size == 0:
            raise InputError(f"{path}: {name} of shape {array.shape} are empty; give N > 0 inputs")
    (first, n), *others = ((name, len(array)) for name, array in arrays.items())
    for name, found in others:
        if found != n:
            raise InputError(f"{path}: {name} has {found} rows and {first} has {n}; give one row of each per sample")
    return n


def _classes(path: Path, held: Mapping[str, Any], key: str, *, n: int, n_classes: int) -> IntArray | None:
    if key not in held:
        return None
    given = held[key]
    if not isinstance(given, np.ndarray) or given.shape != (n,):
        raise InputError(f"{path}: {key} have shape {np.shape(given)}, expected ({n},): one class per input")
    if given.dtype.kind not in "iuf":
        raise InputError(f"{path}: {key} are of type {given.dtype}; give class indices in [0, {n_classes})")
    bad = np.flatnonzero(~((given >= 0) & (given < n_classes) & (given == np.floor(given))))
    if len(bad):
        raise InputError(
            f"{path}: {len(bad)} of {n} {key} are no whole numbers in [0, {n_classes}), "
            f"the first is {given[bad[0]]} in row {bad[0]}; give the model's class indices"
        )
    return given.astype(np.int64)


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Compare all axes but N, which batching takes care of."""
    if len(shape) != len(wanted):
        return False
    return all(w in (None, n) for n, w in zip(shape[1:], wanted[1:], strict=True))


def _hint(shape: tuple[int, ...], spec: TensorSpec) -> str:
    for axes in ((0, 3, 1, 2), (0, 2, 3, 1)):
        if len(shape) == 4 and _fits(tuple(shape[k] for k in axes), spec.shape):
            return f"the layout looks transposed: give inputs.transpose{axes}"
    return "give them in the model's own shape"


def _check_finite(taken: NDArray[Any], rows: IntArray, name: str) -> None:
    if taken.dtype.kind != "f":
        return
    bad = rows[~np.isfinite(taken.reshape(len(taken), -1)).all(axis=1)]
    if len(bad):
        raise InputError(
            f"{len(bad)} of {len(taken)} {name} hold NaN or infinity as {taken.dtype}, "
            f"the first in row {bad.min()}; repair or remove them"
        )
