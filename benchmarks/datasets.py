"""What the zoo is trained on and measured with: CIFAR-10 from beside the repository, and scikit-learn's digits."""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.digits_models import load_split
from benchmarks.training import written_whole
from guard.types import FloatArray, IntArray

__all__ = ["Dataset", "load_cifar", "load_digits"]

Part = tuple[NDArray[np.uint8], IntArray]
N_DIGITS_CALIBRATION = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Images (N, H, W, C) with labels (N,) to train on and to measure with."""

    training: Part
    test: Part


def load_cifar(*, data: Path, cache: Path) -> Dataset:
    """Return CIFAR-10, decoded once and then read from the cache; classes in alphabetical order."""
    return Dataset(training=_cached("train", data, cache), test=_cached("test", data, cache))


def load_digits(*, cache: Path) -> Dataset:
    """Return the digits (8, 8, 1); the images for calibration and for measuring are written beside, as .npz."""
    (training, labels), (rest, rest_labels) = load_split(10)
    parts = {
        "calibration": (rest[:N_DIGITS_CALIBRATION], rest_labels[:N_DIGITS_CALIBRATION]),
        "test": (rest[N_DIGITS_CALIBRATION:], rest_labels[N_DIGITS_CALIBRATION:]),
    }
    for part, (inputs, classes) in parts.items():
        save_arrays(cache / f"digits-{part}.npz", inputs=_as_bytes(inputs), labels=classes)
    return Dataset(training=(_as_bytes(training), labels), test=(_as_bytes(parts["test"][0]), parts["test"][1]))


def save_arrays(path: Path, **arrays: NDArray[np.generic]) -> None:
    """Write arrays as .npz, whole or not at all."""

    def write(beside: Path) -> None:
        with beside.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    written_whole(path, write)


def _as_bytes(inputs: FloatArray) -> NDArray[np.uint8]:
    return np.rint(255 * inputs.transpose(0, 2, 3, 1)).astype(np.uint8)


def _cached(part: str, data: Path, cache: Path) -> Part:
    file = cache / f"cifar10-{part}.npz"
    if not file.exists():
        images, labels = _decoded(data / f"cifar10-{part}.tar")
        save_arrays(file, images=images, labels=labels)
    with np.load(file, allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]


def _decoded(archive: Path) -> Part:
    images, folders = [], []
    with tarfile.open(archive) as tar:
        for member in sorted((m for m in tar.getmembers() if m.isfile()), key=lambda member: member.name):
            file = tar.extractfile(member)
            if file is not None:
                images.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")))
                folders.append(member.name.split("/")[-2])
    _, labels = np.unique(folders, return_inverse=True)
    return np.stack(images), labels.astype(np.int64)
