"""Folders, tars and arrays of small random images, for tests to load."""

import io
import tarfile

import numpy as np
from PIL import Image

from calibrate.data import Preprocessing, load_samples
from guard.types import TensorSpec

CLASSES = ("ant", "bee", "cat")
PLAIN = Preprocessing(scale=1.0)


def spec_of(*shape, dtype="float32"):
    return TensorSpec(name="input", dtype=dtype, shape=(None, *shape))


def load(path, *, spec=None, n_classes=3, preprocessing=PLAIN, limit=None, seed=0, progress=None):
    return load_samples(
        path,
        inputs=[spec or spec_of(3, 4, 5)],
        n_classes=n_classes,
        preprocessing=preprocessing,
        limit=limit,
        seed=seed,
        progress=progress or (lambda stage, done, total: None),
    )


def pixels_of(n, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def save_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_folder(root, per_class=(2, 2, 2), size=(4, 5)):
    pixels = iter(pixels_of(sum(per_class), *size, 3))
    for name, n in zip(CLASSES, per_class, strict=True):
        (root / name).mkdir(parents=True)
        for k in range(n):
            save_png(root / name / f"{k:03}.png", next(pixels))
    return root


def make_tar(path, folder, arcname=".", mode="w"):
    with tarfile.open(path, mode) as tar:
        tar.add(folder, arcname=arcname)
    return path


def add_member(path, name, data=b"", **fields):
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        for field, value in fields.items():
            setattr(member, field, value)
        tar.addfile(member, io.BytesIO(data))


def save_npz(path, **arrays):
    np.savez(path, **arrays)
    return path
