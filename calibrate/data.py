"""Clean inputs in: load them from images or arrays, make them model-ready, split them once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from calibrate.arrays import INPUTS, Arrays, check_pixels, is_array_file, load_arrays, model_ready
from calibrate.draws import draw
from calibrate.image_sets import open_images
from calibrate.images import fit_array, read_image, read_images
from calibrate.preprocessing import FLOATS, Prepare, Preprocessing, image_shape, raw_images
from calibrate.sites import Progress
from guard.errors import CalibrationError, InputError
from guard.rows import each, n_rows
from guard.types import Inputs, IntArray, TensorSpec

__all__ = [
    "PARTS",
    "CalibrationSplit",
    "Preprocessing",
    "Samples",
    "load_row",
    "load_samples",
    "part_sizes",
    "split_samples",
]

PARTS = (0.4, 0.5, 0.1)
"""Shares of the calibration set: bounds set, threshold set, held-out set. The threshold set decides how far the rate
of one fitted threshold strays from its target, so it gets the most; what the guard knows of clean inputs comes from the
bounds set."""


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


def load_row(
    path: str | Path, row: int, *, inputs: Sequence[TensorSpec], n_classes: int, preprocessing: Preprocessing
) -> Inputs:
    """Load one model-ready input, of shape (1, ...).

    Args:
        path: An image, whose row is 0, or an .npz or .npy as load_samples takes it.
        row: Which one, from 0.
        inputs: The model's inputs.
        n_classes: The model's number of classes.
        preprocessing: For images and uint8 arrays.

    Raises:
        InputError: The file cannot be read, does not fit the model, or has no such row.
    """
    source = Path(path)
    if not source.is_file():
        raise InputError(f"{source} is no file; give an image, an .npz or an .npy")
    if is_array_file(source):
        arrays = load_arrays(source, inputs=inputs, n_classes=n_classes)
        _check_row(source, row, n_rows(arrays.inputs))
        return _taken(arrays, np.array([row]), inputs, preprocessing, lambda *_: None)[0:1]
    _check_row(source, row, 1)
    spec = _only_input(source, inputs)
    raw, prepare = raw_images(read_image(source, image_shape(spec, preprocessing.layout)), spec, preprocessing)
    return prepare(raw)


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
    spec = _only_input(path, inputs)
    shape = image_shape(spec, preprocessing.layout)
    with open_images(path, n_classes=n_classes) as images:
        rows = draw(len(images.names), images.labels, limit, rng)
        read = read_images(images, rows, shape=shape, progress=progress)
        labels = images.labels[read.rows]
    raw, prepare = raw_images(read.pixels, spec, preprocessing)
    return Samples(raw=raw, labels=labels, target_classes=None, prepare=prepare, skipped=read.skipped)


def _only_input(path: Path, inputs: Sequence[TensorSpec]) -> TensorSpec:
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise InputError(f"{path} can hold images only; the model takes {names}: give an .npz with an array for each")
    return inputs[0]


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
    rows = draw(n_rows(arrays.inputs), arrays.labels, limit, rng)
    return _taken(arrays, rows, inputs, preprocessing, progress)


def _taken(
    arrays: Arrays, rows: IntArray, inputs: Sequence[TensorSpec], preprocessing: Preprocessing, progress: Progress
) -> Samples:
    """Return these rows of arrays as samples."""
    raw: Inputs
    prepare: Prepare = np.array
    if len(inputs) > 1:
        raw = {s.name: model_ready(arrays.inputs[s.name], rows, s, name=s.name) for s in inputs}
    elif (given := arrays.inputs[INPUTS]).dtype == np.uint8 and inputs[0].dtype in FLOATS:
        shape = image_shape(inputs[0], preprocessing.layout)
        pixels = fit_array(check_pixels(given, shape), rows, shape=shape, progress=progress)
        raw, prepare = raw_images(pixels, inputs[0], preprocessing)
    else:
        raw = model_ready(given, rows, inputs[0])
    labels, targets = (None if a is None else a[rows] for a in (arrays.labels, arrays.target_classes))
    return Samples(raw=raw, labels=labels, target_classes=targets, prepare=prepare, skipped=())


def _check_row(source: Path, row: int, n: int) -> None:
    if not 0 <= row < n:
        raise InputError(f"{source} has no row {row}; its {n} are counted from 0")


def _check_request(source: Path, limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit} leaves no samples; give at least 1, or none for all")
    if not source.exists():
        raise InputError(f"{source} does not exist; give a folder or tar of class folders, .npz or .npy")
