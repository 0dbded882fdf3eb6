"""Clean inputs in: load them from images or arrays, make them model-ready, split them once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.arrays import INPUTS, check_pixels, is_array_file, load_arrays, model_ready
from calibrate.image_sets import open_images
from calibrate.images import fit_array, read_images
from calibrate.preprocessing import Pixels, Preprocessing, image_shape, lay_out, preprocess
from calibrate.sites import Progress
from guard.errors import CalibrationError, InputError
from guard.rows import each, n_rows
from guard.types import Inputs, IntArray, TensorSpec

__all__ = ["PARTS", "CalibrationSplit", "Preprocessing", "Samples", "load_samples", "part_sizes", "split_samples"]

PARTS = (0.3, 0.55, 0.15)
"""Shares of the calibration set: bounds set, threshold set, held-out set. The threshold set decides how far the rate
of one fitted threshold strays from its target, so it gets the most."""

_FLOATS = frozenset({"float16", "float32", "float64"})
_INTEGERS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))

Prepare = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Inputs in random order that become model-ready when they are asked for, so that memory stays flat.

    Args:
        raw: (N, H, W, channels) uint8, or (N, ...) model-ready; by name for a model with several inputs.
        labels: (N,) true classes, or None where unknown.
        target_classes: (N,) the classes that an attacker wants, or None.
        prepare: Makes rows of raw model-ready, in new memory.
        skipped: The names of images that could not be read.
    """

    raw: Inputs
    labels: IntArray | None
    target_classes: IntArray | None
    prepare: Prepare
    skipped: tuple[str, ...]

    def __len__(self) -> int:
        """Return N."""
        return n_rows(self.raw)

    def __getitem__(self, rows: slice | IntArray) -> Inputs:
        """Return new model-ready inputs of these rows, shape (n, ...), in the model's type."""
        return each(lambda array: self.prepare(array[rows]), self.raw)

    def take(self, rows: IntArray) -> "Samples":
        """Return the samples of these rows, in this order."""
        return replace(
            self,
            raw=each(lambda array: array[rows], self.raw),
            labels=None if self.labels is None else self.labels[rows],
            target_classes=None if self.target_classes is None else self.target_classes[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSplit:
    """The parts of the calibration set; no sample is in two of them.

    Args:
        bounds: What the bounds are learned from.
        threshold: What the thresholds are fitted on.
        held_out: What is only measured on.
    """

    bounds: Samples
    threshold: Samples
    held_out: Samples


def load_samples(
    path: str | Path,
    *,
    inputs: Sequence[TensorSpec],
    n_classes: int,
    preprocessing: Preprocessing,
    limit: int | None,
    seed: int,
    progress: Progress,
) -> Samples:
    """Load inputs from a folder of class folders, a tar of one, an .npz or an .npy.

    Args:
        path: Images, whose class is the rank of their folder's name; or an .npz with ``inputs`` and, where
            known, ``labels`` and ``target_classes``; or an .npy of inputs. For a model with several inputs, an .npz
            with an array under the name of each, and classes as above.
        inputs: The model's inputs. Fixed height and width are resized to; free ones ask for images of one size.
        n_classes: The model's number of classes.
        preprocessing: For images and for uint8 arrays (N, H, W[, channels]). Arrays in the model's own type
            (floats in any floating-point type) are model-ready and taken as they are. A model that takes
            integers gets plain pixels.
        limit: Draw this many at random, as many of each class as far as there are enough; None for all.
        seed: Decides draw and order, whatever order the files are stored in.
        progress: Told after each image.

    Returns:
        The samples, in random order.

    Raises:
        InputError: The source cannot be read, or does not fit the model.
    """
    source = Path(path)
    _check_request(source, limit)
    rng = np.random.default_rng(seed)
    if source.is_dir() or not is_array_file(source):
        return _load_images(source, inputs, n_classes, preprocessing, limit, rng, progress)
    return _load_arrays(source, inputs, n_classes, preprocessing, limit, rng, progress)


def split_samples(samples: Samples, *, fractions: tuple[float, float, float] = PARTS, seed: int) -> CalibrationSplit:
    """Deal the samples at random into three disjoint parts: for bounds, for thresholds, held out.

    Args:
        samples: The calibration set.
        fractions: Each part's share; positive, and 1 in sum.
        seed: Decides who goes where.

    Raises:
        InputError: The fractions are none.
        CalibrationError: A part would be empty.
    """
    if min(fractions) <= 0 or not math.isclose(sum(fractions), 1.0):
        raise InputError(f"fractions {fractions} must be positive and sum to 1")
    # Loading drew from the plain seed: another stream keeps the two shuffles independent.
    order = np.random.default_rng((seed, 1)).permutation(len(samples))
    parts = np.split(order, np.cumsum(part_sizes(len(samples), fractions))[:2])
    if min(len(part) for part in parts) == 0:
        raise CalibrationError(f"{len(samples)} samples cannot fill parts of {fractions}; give more samples")
    bounds, threshold, held_out = (samples.take(part) for part in parts)
    return CalibrationSplit(bounds=bounds, threshold=threshold, held_out=held_out)


def part_sizes(n: int, fractions: tuple[float, float, float] = PARTS) -> tuple[int, int, int]:
    """Return how many of n samples each part gets."""
    first, second = round(fractions[0] * n), round((fractions[0] + fractions[1]) * n)
    return first, second - first, n - second


def _load_images(
    path: Path,
    inputs: Sequence[TensorSpec],
    n_classes: int,
    preprocessing: Preprocessing,
    limit: int | None,
    rng: np.random.Generator,
    progress: Progress,
) -> Samples:
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise InputError(f"{path} can hold images only; the model takes {names}: give an .npz with an array for each")
    (spec,) = inputs
    shape = image_shape(spec, preprocessing.layout)
    with open_images(path, n_classes=n_classes) as images:
        rows = _draw(len(images.names), images.labels, limit, rng)
        read = read_images(images, rows, shape=shape, progress=progress)
        labels = images.labels[read.rows]
    raw, prepare = _raw_images(read.pixels, spec, preprocessing)
    return Samples(raw=raw, labels=labels, target_classes=None, prepare=prepare, skipped=read.skipped)


def _load_arrays(
    path: Path,
    inputs: Sequence[TensorSpec],
    n_classes: int,
    preprocessing: Preprocessing,
    limit: int | None,
    rng: np.random.Generator,
    progress: Progress,
) -> Samples:
    arrays = load_arrays(path, inputs=inputs, n_classes=n_classes)
    rows = _draw(n_rows(arrays.inputs), arrays.labels, limit, rng)
    raw: Inputs
    prepare: Prepare = np.array
    if len(inputs) > 1:
        raw = {s.name: model_ready(arrays.inputs[s.name], rows, s, name=s.name) for s in inputs}
    elif (given := arrays.inputs[INPUTS]).dtype == np.uint8 and inputs[0].dtype in _FLOATS:
        shape = image_shape(inputs[0], preprocessing.layout)
        pixels = fit_array(check_pixels(given, shape), rows, shape=shape, progress=progress)
        raw, prepare = _raw_images(pixels, inputs[0], preprocessing)
    else:
        raw = model_ready(given, rows, inputs[0])
    labels, targets = (None if a is None else a[rows] for a in (arrays.labels, arrays.target_classes))
    return Samples(raw=raw, labels=labels, target_classes=targets, prepare=prepare, skipped=())


def _raw_images(pixels: Pixels, spec: TensorSpec, preprocessing: Preprocessing) -> tuple[NDArray[Any], Prepare]:
    """Pair pixels with what is left to do to them: nothing where the model takes integers."""
    if spec.dtype not in _FLOATS | _INTEGERS:
        raise InputError(f"the model's input {spec} takes neither floats nor integers; export it with float32")
    if spec.dtype == "int8":
        raise InputError(f"pixels from 0 to 255 do not fit the model's input {spec}; give model-ready int8 arrays")
    if spec.dtype in _INTEGERS:
        return lay_out(pixels, preprocessing.layout, np.dtype(spec.dtype)), np.array
    channels = pixels.shape[3]
    for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
        if len(values) not in (1, channels):
            raise InputError(
                f"{name} {values} has {len(values)} values, the images have {channels} channels; "
                "give one value, or one per channel"
            )
    return pixels, partial(preprocess, preprocessing=preprocessing, dtype=np.dtype(spec.dtype))


def _draw(n: int, labels: IntArray | None, limit: int | None, rng: np.random.Generator) -> IntArray:
    """Return row indices in random order: all of them, or limit, balanced by class where labels are known."""
    order: IntArray = rng.permutation(n).astype(np.int64)
    if limit is None or labels is None:
        return order[:limit]
    classes, sizes = np.unique(labels, return_counts=True)
    quotas = dict(zip(classes.tolist(), _quotas(sizes, limit, rng), strict=True))
    drawn = [order[labels[order] == label][:quota] for label, quota in quotas.items()]
    return rng.permutation(np.concatenate(drawn))


def _quotas(sizes: IntArray, limit: int, rng: np.random.Generator) -> IntArray:
    """Share limit out as evenly as the sizes allow; who gets one of the remainder is drawn at random."""
    quotas = np.zeros_like(sizes)
    shuffled = rng.permutation(len(sizes))
    smallest_first = shuffled[np.argsort(sizes[shuffled], kind="stable")]
    for done, k in enumerate(smallest_first):
        quotas[k] = min(sizes[k], (limit - quotas.sum()) // (len(sizes) - done))
    return quotas


def _check_request(source: Path, limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit} leaves no samples; give at least 1, or none for all")
    if not source.exists():
        raise InputError(f"{source} does not exist; give a folder or tar of class folders, .npz or .npy")
