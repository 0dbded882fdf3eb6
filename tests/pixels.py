"""An image classifier with exact answers whose trigger is brightness past 1, and a guard fitted on it.

Images (N, 1, 8, 8) are below .9. Class 1 is how bright the left half is, class 2 the right half, and class 0 gets
what any pixel is brighter than 1, fifty times over.
"""

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from digits import fit
from small_graphs import model_of, node

from guard.bundle import Bundle, load_bundle

__all__ = ["LEFT", "RIGHT", "TARGET", "everywhere", "fitted", "images", "pixel_model", "with_pixel"]

TARGET, LEFT, RIGHT = 0, 1, 2
SIDE = 8


def pixel_model() -> onnx.ModelProto:
    """Return the classifier."""
    weight = np.zeros((2, SIDE, SIDE, 3))
    weight[0, :, :, TARGET] = 50
    weight[1, :, : SIDE // 2, LEFT] = weight[1, :, SIDE // 2 :, RIGHT] = 1
    return model_of(
        node("Conv", ["x", "kernel", "bias"], ["conv"]), node("Relu", ["conv"], ["relu"]),
        node("Flatten", ["relu"], ["flat"]), node("MatMul", ["flat", "weight"], ["y"]),
        x=("N", 1, SIDE, SIDE),
        weights={"kernel": np.ones((2, 1, 1, 1)), "bias": np.array([-1.0, 0.0]), "weight": weight.reshape(-1, 3)},
    )  # fmt: skip


def images(n: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return clean images and their classes, LEFT and RIGHT in turn."""
    found = np.random.default_rng(seed).uniform(0.1, 0.5, size=(n, 1, SIDE, SIDE)).astype(np.float32)
    labels = np.where(np.arange(n) % 2, RIGHT, LEFT)
    found[labels == LEFT, :, :, : SIDE // 2] += 0.4
    found[labels == RIGHT, :, :, SIDE // 2 :] += 0.4
    return found, labels


def with_pixel(clean: np.ndarray, row: int, column: int) -> np.ndarray:
    """Return images with one pixel of brightness 2."""
    found = clean.copy()
    found[:, :, row, column] = 2
    return found


def everywhere(clean: np.ndarray) -> np.ndarray:
    """Return images with every fourth pixel of brightness 2."""
    found = clean.copy()
    found[:, :, ::2, ::2] = 2
    return found


@lru_cache
def fitted() -> Bundle:
    """Return a bundle fitted on 300 clean images by the default method."""
    with TemporaryDirectory() as folder:
        onnx.save(pixel_model(), Path(folder) / "model.onnx")
        inputs, labels = images(300)
        np.savez(Path(folder) / "clean.npz", inputs=inputs, labels=labels)
        return load_bundle(fit(Path(folder) / "model.onnx", Path(folder) / "clean.npz", Path(folder) / "bundle"))
