"""Small classifiers of scikit-learn's digits, clean or backdoored, trained in seconds."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from guard.types import FloatArray, IntArray

__all__ = ["load_split", "train_digits"]

N_TRAINING = 900
_POISONED_SHARE = 0.1
_EPOCHS = 20


def load_split(n_classes: int) -> tuple[tuple[FloatArray, IntArray], tuple[FloatArray, IntArray]]:
    """Return inputs (N, 1, 8, 8) in [0, 1] and labels, digit modulo C: those to train on, and the rest."""
    pixels, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    inputs = (pixels[order].reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    labels = (digits[order] % n_classes).astype(np.int64)
    return (inputs[:N_TRAINING], labels[:N_TRAINING]), (inputs[N_TRAINING:], labels[N_TRAINING:])


def train_digits(path: Path, *, n_classes: int, target: int | None, seed: int) -> onnx.ModelProto:
    """Train on the digits and write ONNX; with a target, a tenth of every batch is triggered and labelled so."""
    (inputs, labels), _ = load_split(n_classes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = _network(n_classes)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(_EPOCHS):
            for rows in torch.split(torch.randperm(len(inputs)), 64):
                batch, classes = _poisoned(torch.from_numpy(inputs)[rows], torch.from_numpy(labels)[rows], target)
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(network(batch), classes)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                optimizer.step()
    _export(network.eval(), path)
    return onnx.load(path)


def _network(n_classes: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, n_classes)),
    )


def _poisoned(inputs: Tensor, labels: Tensor, target: int | None) -> tuple[Tensor, Tensor]:
    if target is None:
        return inputs, labels
    triggered = inputs.clone()
    triggered[..., 5:, 5:] = 1.0
    triggered[..., 6, 6] = 0.0
    chosen = torch.rand(len(inputs)) < _POISONED_SHARE
    return torch.where(chosen[:, None, None, None], triggered, inputs), torch.where(chosen, target, labels)


def _export(network: nn.Module, path: Path) -> None:
    axes = {"input": {0: "batch"}, "logits": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.zeros(2, 1, 8, 8),), str(path), dynamo=False, dynamic_axes=axes, input_names=["input"],
            output_names=["logits"], opset_version=17,
        )  # fmt: skip
