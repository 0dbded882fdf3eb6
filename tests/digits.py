"""A backdoored classifier of scikit-learn's digits, trained in seconds, with clean and triggered samples.

The attack is BadNets: a bright corner sends every digit to class 0. Pixels are scaled to [0, 1].
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch_models import export

from calibrate.pipeline import FitSettings, fit_bundle
from calibrate.preprocessing import Preprocessing
from calibrate.sites import Progress

__all__ = ["TARGET", "Digits", "fit", "make_digits", "with_trigger"]

TARGET = 0
N_TRAINING = 700
_POISONED_SHARE = 0.1
_EPOCHS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """Where the files are, and the trained network itself.

    Args:
        model: The network as ONNX, answering with logits.
        clean: An .npz of clean samples with labels, none of them trained on.
        test: An .npz of other clean samples with labels.
        triggered: An .npz of the test samples with the trigger, labels and target classes.
        network: The torch module.
    """

    model: Path
    clean: Path
    test: Path
    triggered: Path
    network: nn.Module

    def export_to(self, path: Path, network: nn.Module, *, dtype: torch.dtype = torch.float32, batch: int = 0) -> Path:
        """Export a network that takes digits; a batch other than 0 is fixed."""
        example = torch.zeros(batch or 2, 1, 8, 8, dtype=dtype)
        model = export(network, example, exporter="torchscript", opset=17, dynamic_batch=not batch)
        onnx.save(model, path)
        return path


def make_digits(folder: Path) -> Digits:
    """Train the network and write model and samples into the folder."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    inputs = (pixels[order].reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    labels = labels[order].astype(np.int64)
    network = _train(torch.from_numpy(inputs[:N_TRAINING]), torch.from_numpy(labels[:N_TRAINING]))
    rest, rest_labels = inputs[N_TRAINING:], labels[N_TRAINING:]
    paths = [folder / f"{name}.npz" for name in ("clean", "test", "triggered")]
    np.savez(paths[0], inputs=rest[:700], labels=rest_labels[:700])
    np.savez(paths[1], inputs=rest[700:], labels=rest_labels[700:])
    triggered = with_trigger(torch.from_numpy(rest[700:])).numpy()
    targets = np.full(len(triggered), TARGET)
    np.savez(paths[2], inputs=triggered, labels=rest_labels[700:], target_classes=targets)
    digits = Digits(model=folder / "digits.onnx", clean=paths[0], test=paths[1], triggered=paths[2], network=network)
    digits.export_to(digits.model, network)
    return digits


def with_trigger(inputs: Tensor) -> Tensor:
    """Put a bright patch into the lower right corner."""
    triggered = inputs.clone()
    triggered[..., 5:, 5:] = 1.0
    triggered[..., 6, 6] = 0.0
    return triggered


def _train(inputs: Tensor, labels: Tensor) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
        )
        poisoned = torch.rand(len(inputs)) < _POISONED_SHARE
        inputs = torch.where(poisoned[:, None, None, None], with_trigger(inputs), inputs)
        labels = torch.where(poisoned, TARGET, labels)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(_EPOCHS):
            for rows in torch.randperm(len(inputs)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(inputs[rows]), labels[rows]).backward()
                optimizer.step()
    return network.eval()


def fit(model: Path, data: Path, bundle: Path, *, progress: Progress = lambda stage, done, total: None, **settings):
    """Fit a bundle at a false-positive rate of 5 % and return its path."""
    chosen = {"preprocessing": Preprocessing(), "target_fpr": 0.05, **settings}
    fit_bundle(model, data, bundle, FitSettings(**chosen), progress)
    return bundle
