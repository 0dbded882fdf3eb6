"""Networks as ONNX files: those that measurements train, and untrained ones where answers do not matter."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.architectures import resnet18, resnet50

__all__ = ["export_network", "write_resnet18", "write_resnet50"]


def write_resnet18(path: Path, *, width: int = 64, n_classes: int = 10) -> Path:
    """Write a seeded, untrained ResNet-18 (He et al. 2016; 3x3 stem) as ONNX, unless it is there already."""
    return _write(resnet18, path, width, n_classes)


def write_resnet50(path: Path, *, width: int = 64, n_classes: int = 10) -> Path:
    """Write a seeded, untrained ResNet-50 (as write_resnet18)."""
    return _write(resnet50, path, width, n_classes)


def _write(build: Callable[[int, int], nn.Module], path: Path, width: int, n_classes: int) -> Path:
    if path.exists():
        return path
    torch.manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    export_network(build(width, n_classes), torch.zeros(2, 3, 32, 32), path)
    return path


def export_network(network: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network as ONNX with a free batch axis, from ``input`` to ``logits``; the exporter folds BatchNorm."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (example,), str(path), input_names=["input"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, verbose=False, opset_version=18,
        )  # fmt: skip
