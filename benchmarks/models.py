"""A full-width ResNet-18 for 32 x 32 inputs, for measuring cost where its answers do not matter."""

import logging
import warnings
from pathlib import Path

import torch

from benchmarks.architectures import resnet18

__all__ = ["write_resnet18"]


def write_resnet18(path: Path, *, width: int = 64, n_classes: int = 10) -> Path:
    """Write a seeded, untrained ResNet-18 (He et al. 2016; 3x3 stem) as ONNX, unless it is there already."""
    if path.exists():
        return path
    torch.manual_seed(0)
    model = resnet18(width, n_classes).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.zeros(2, 3, 32, 32),), str(path), input_names=["input"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, verbose=False,
        )  # fmt: skip
    return path
