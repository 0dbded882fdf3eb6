"""Read inputs and labels from .npz and .npy files, and check them against the model."""

import lzma
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.preprocessing import ImageShape, Pixels
from guard.errors import InputError
from guard.types import IntArray, TensorSpec

__all__ = ["Arrays", "check_pixels", "is_array_file", "load_arrays", "model_ready"]

_NPY, _ZIP = b"\x93NUMPY", b"PK"
_UNREADABLE = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, RuntimeError, MemoryError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """What an array file holds.

    Args:
        inputs: (N, ...) of any type.
        labels: (N,) true classes, or None.
        target_classes: (N,) the classes that an attacker wants, or None.
    """

    inputs: NDArray[Any]
    labels: IntArray | None
    target_classes: IntArray | None


def is_array_file(path: Path) -> bool:
    """Tell an .npz or .npy file from anything else by its first bytes."""
    try:
        with path.open("rb") as file:
            return file.read(len(_NPY)).startswith((_NPY, _ZIP))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); make it readable") from error


def load_arrays(path: Path, *, n_classes: int) -> Arrays:
    """Read ``inputs``, and ``labels`` and ``target_classes`` where given; pickled objects are never loaded.

    Args:
        path: An .npz, or an .npy of the inputs alone, which is mapped and not read.
        n_classes: Labels and target classes lie in [0, n_classes).

    Raises:
        InputError: It cannot be read, has no inputs, or its labels are no classes of the model.
    """
    try:
        held = _read(path)
    except _UNREADABLE as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{path} cannot be read ({reason}); save plain arrays with numpy.savez or numpy.save"
        ) from error
    if not isinstance(held.get("inputs"), np.ndarray):
        names = ", ".join(map(repr, held)) or "nothing"
        raise InputError(f"{path} holds {names}, but no array `inputs`; save one of shape (N, ...)")
    inputs = held["inputs"]
    if inputs.ndim == 0 or inputs.size == 0:
        raise InputError(f"{path}: inputs of shape {inputs.shape} are empty; give N > 0 inputs")
    labels, targets = (_classes(path, held, key, n_classes) for key in ("labels", "target_classes"))
    return Arrays(inputs=inputs, labels=labels, target_classes=targets)


def model_ready(inputs: NDArray[Any], rows: IntArray, spec: TensorSpec) -> NDArray[Any]:
    """Take these rows, in the model's own type; only floating-point types are cast to one another.

    Args:
        inputs: (N, ...) floats, or whatever type the model takes.
        rows: (n,) indices, in the order in which the inputs shall come back.
        spec: The model's input.

    Raises:
        InputError: Type or shape do not fit, or NaN or infinity are among the rows.
    """
    dtype = np.dtype(spec.dtype)
    if inputs.dtype.name != dtype.name and not (inputs.dtype.kind == dtype.kind == "f"):
        raise InputError(
            f"inputs of type {inputs.dtype} do not fit the model's input {spec}; "
            f"convert them to {dtype} as the model expects, or give images as uint8 (N, H, W, channels)"
        )
    if not _fits(inputs.shape, spec.shape):
        hint = _hint(inputs.shape, spec)
        raise InputError(f"inputs of shape {inputs.shape} do not fit the model's input {spec}; {hint}")
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused as such
        taken = inputs[rows].astype(dtype)
    _check_finite(taken, rows)
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


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        if file.read(len(_NPY)) == _NPY:
            return {"inputs": np.load(path, mmap_mode="r", allow_pickle=False)}
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            wanted = {"inputs", "labels", "target_classes"}
            return {key: archive[key] if key in wanted else None for key in archive}


def _classes(path: Path, held: dict[str, Any], key: str, n_classes: int) -> IntArray | None:
    if key not in held:
        return None
    given, n = held[key], len(held["inputs"])
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


def _check_finite(taken: NDArray[Any], rows: IntArray) -> None:
    if taken.dtype.kind != "f":
        return
    bad = rows[~np.isfinite(taken.reshape(len(taken), -1)).all(axis=1)]
    if len(bad):
        raise InputError(
            f"{len(bad)} of {len(taken)} inputs hold NaN or infinity as {taken.dtype}, "
            f"the first in row {bad.min()}; repair or remove them"
        )
