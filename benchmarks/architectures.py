"""The classifiers that measurements train, small enough for a CPU; images (N, C, H, W) in [0, 1] to logits."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

__all__ = ["ARCHITECTURES", "Architecture", "normalised", "resnet18"]


class Architecture(Protocol):
    """Whoever builds a network of a width, without normalisation of its inputs."""

    def __call__(self, *, width: int, n_classes: int = 10) -> nn.Module: ...


class _Normalisation(nn.Module):
    """(x - 0.5) / 0.25, which suits every set of pictures well enough."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) * 4


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


def normalised(network: nn.Module) -> nn.Module:
    """Put the normalisation of inputs in front."""
    return nn.Sequential(_Normalisation(), network)


def resnet18(*, width: int, n_classes: int = 10) -> nn.Module:
    """Return a ResNet-18 with a 3 x 3 stem (He et al. 2016); its published width is 64."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    n_in = width
    for i, factor in enumerate((1, 2, 4, 8)):
        layers += [_Block(n_in, factor * width, 1 if i == 0 else 2), _Block(factor * width, factor * width, 1)]
        n_in = factor * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, n_classes))


ARCHITECTURES: Mapping[str, Architecture] = {"resnet18": resnet18}
