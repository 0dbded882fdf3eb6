"""The file of a bundle that holds the clean scores, and how .npz files that nobody vouches for are read."""

import io
import reprlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import BundleError
from guard.types import FloatArray, IntArray

__all__ = ["NPZ_ERRORS", "THRESHOLDS", "pack_scores", "read_arrays", "unpack_scores"]

THRESHOLDS = "thresholds.npz"

# What numpy and zipfile raise for bytes that are no npz file, or not quite.
NPZ_ERRORS = (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, RuntimeError, MemoryError,
               OverflowError, zipfile.BadZipFile, zlib.error)  # fmt: skip


def pack_scores(clean_scores: FloatArray, clean_classes: IntArray | None = None) -> bytes:
    """Return the content of thresholds.npz: the clean scores, ascending, as ``clean_scores``, and whose they are.

    Args:
        clean_scores: (n,) in any order.
        clean_classes: (n,) the class that the original gives each sample.
    """
    buffer, order = io.BytesIO(), np.argsort(clean_scores, kind="stable")
    arrays: dict[str, NDArray[Any]] = {"clean_scores": clean_scores[order].astype(np.float64)}
    if clean_classes is not None:
        arrays["predicted_class"] = clean_classes[order].astype(np.int64)
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def unpack_scores(content: bytes, *, n_classes: int) -> tuple[FloatArray, IntArray | None]:
    """Return the scores, and the class of each where the file tells."""
    try:
        arrays = read_arrays(content)
        scores = arrays["clean_scores"]
    except NPZ_ERRORS as error:
        raise BundleError(
            f"{THRESHOLDS} holds no clean_scores ({reprlib.repr(str(error))}); fit the bundle again"
        ) from error
    # Infinite scores are scores; NaN is in no order with anything, itself included.
    is_flat = scores.dtype == np.float64 and scores.ndim == 1 and len(scores) > 0
    if not is_flat or np.isnan(scores).any() or (scores[:-1] > scores[1:]).any():
        raise BundleError(f"clean_scores in {THRESHOLDS} are not ascending float64 numbers; fit the bundle again")
    classes = arrays.get("predicted_class")
    return scores, None if classes is None else _checked_classes(classes, len(scores), n_classes)


def _checked_classes(classes: NDArray[np.generic], n: int, n_classes: int) -> IntArray:
    if classes.dtype != np.int64 or classes.shape != (n,) or classes.min() < 0 or classes.max() >= n_classes:
        raise BundleError(
            f"predicted_class in {THRESHOLDS} is not one of {n_classes} classes for each of {n} scores;"
            " fit the bundle again"
        )
    return classes.astype(np.int64)


def read_arrays(content: bytes) -> Mapping[str, FloatArray]:
    """Return what an .npz file holds, by name, or raise one of NPZ_ERRORS."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: np.asarray(arrays[name]) for name in arrays.files}
