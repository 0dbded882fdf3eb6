"""CIFAR-10 as it lies beside the repository, decoded once."""

import io
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.training import written_whole
from guard.types import IntArray

__all__ = ["load_cifar"]


def load_cifar(part: str, *, data: Path, cache: Path) -> tuple[NDArray[np.uint8], IntArray]:
    """Return the images (N, 32, 32, 3) and labels (N,) of ``train`` or ``test``; classes in alphabetical order."""
    files = [cache / f"cifar10-{part}-{kind}.npy" for kind in ("images", "labels")]
    if not all(file.exists() for file in files):
        for file, values in zip(files, _decoded(data / f"cifar10-{part}.tar"), strict=True):
            written_whole(file, lambda path, values=values: _save(path, values))
    images, labels = (np.load(file, allow_pickle=False) for file in files)
    return images, labels


def _save(path: Path, values: NDArray[np.generic]) -> None:
    with path.open("wb") as file:
        np.save(file, values)


def _decoded(archive: Path) -> tuple[NDArray[np.uint8], IntArray]:
    images, folders = [], []
    with tarfile.open(archive) as tar:
        for member in sorted((m for m in tar.getmembers() if m.isfile()), key=lambda member: member.name):
            file = tar.extractfile(member)
            if file is not None:
                images.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")))
                folders.append(member.name.split("/")[-2])
    _, labels = np.unique(folders, return_inverse=True)
    return np.stack(images), labels.astype(np.int64)
