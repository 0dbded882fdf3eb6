"""A full-width ResNet-18 for 32 x 32 inputs, for measuring cost where its answers do not matter."""

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["write_resnet18"]


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


def write_resnet18(path: Path, *, width: int = 64, n_classes: int = 10) -> Path:
    """Write a seeded, untrained ResNet-18 (He et al. 2016; 3x3 stem) as ONNX, unless it is there already."""
    if path.exists():
        return path
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    n_in = width
    for i, factor in enumerate((1, 2, 4, 8)):
        layers += [_Block(n_in, factor * width, 1 if i == 0 else 2), _Block(factor * width, factor * width, 1)]
        n_in = factor * width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, n_classes)).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.zeros(2, 3, 32, 32),), str(path), input_names=["input"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, verbose=False,
        )  # fmt: skip
    return path
