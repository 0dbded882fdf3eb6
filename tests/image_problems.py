"""Tiny image classifiers whose trigger, and so every score of theirs, is known exactly.

The first pixel of the first channel is the trigger; images are (N, 3, 8, 8) in [0, 1].
"""

from collections.abc import Sequence

import numpy as np
import onnx
from small_graphs import model_of, node

from benchmarks.baselines import OnnxClassifier

__all__ = ["backdoored", "classifier_of", "images", "uniform", "with_trigger"]

SHAPE = ("N", 3, 8, 8)


def images(n: int = 12, *, seed: int = 0) -> np.ndarray:
    """Return images of noise below a half, without the trigger."""
    found = np.random.default_rng(seed).uniform(0.05, 0.45, size=(n, *SHAPE[1:])).astype(np.float32)
    found[:, 0, 0, 0] = 0.0
    return found


def with_trigger(inputs: np.ndarray) -> np.ndarray:
    """Set the first pixel to full brightness."""
    triggered = inputs.copy()
    triggered[:, 0, 0, 0] = 1.0
    return triggered


def classifier_of(
    *nodes: onnx.NodeProto, weights: dict[str, object], n_classes: int, channels: int = 3
) -> OnnxClassifier:
    """Return a classifier whose nodes lead from x to y."""
    model = model_of(*nodes, x=("N", channels, *SHAPE[2:]), y=("N", n_classes), weights=weights)
    return OnnxClassifier(model, "y", threads=1)


def backdoored(n_classes: int = 3, *, strength: float = 1000.0, classes: Sequence[int] = (1, 2)) -> OnnxClassifier:
    """Return a classifier by the mean of two halves of the image, which the trigger sends to class 0."""
    weight = np.zeros((3 * 64, n_classes))
    weight[0, 0] = strength
    for place, label in enumerate(classes):
        weight[64 + 64 * place : 128 + 64 * place, label] = 1.0
    nodes = (node("Flatten", ["x"], ["flat"]), node("MatMul", ["flat", "w"], ["z"]), node("Relu", ["z"], ["a"]))
    return classifier_of(
        *nodes, node("Mul", ["a", "one"], ["y"]), weights={"w": weight, "one": 1.0}, n_classes=n_classes
    )


def uniform(n_classes: int) -> OnnxClassifier:
    """Return a classifier that finds every class equally likely."""
    nodes = (node("Flatten", ["x"], ["flat"]), node("MatMul", ["flat", "w"], ["y"]))
    return classifier_of(*nodes, weights={"w": np.zeros((3 * 64, n_classes))}, n_classes=n_classes)
