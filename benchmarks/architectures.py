"""The classifiers that measurements train, small enough for a CPU: images (N, K, H, W) in [0, 1] to logits (N, C)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

__all__ = ["ARCHITECTURES", "normalised", "resnet18", "resnet50"]

_RESNET50_STAGES = (3, 4, 6, 3)
_VGG_STAGES = ((1, 1), (2, 2), (4, 4), (8, 8))
_MOBILENET_STAGES = ((1, 1, 1, 1), (6, 2, 2, 2), (6, 4, 2, 2), (6, 6, 2, 1), (6, 10, 1, 2))
_PATCH_SIZE, _N_BLOCKS, _HEAD_WIDTH = 4, 4, 32


class _Normalisation(nn.Module):
    """(x - 0.5) / 0.25, which suits every set of pictures well enough."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) * 4


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu1(self.bn1(self.conv1(x)))
        outer: Tensor = self.relu2(self.bn2(self.conv2(inner)) + self.shortcut(x))
        return outer


class _Bottleneck(nn.Module):
    """ResNet-50's block: narrow, look at each place's neighbours, widen fourfold."""

    def __init__(self, n_in: int, n_inner: int, stride: int) -> None:
        super().__init__()
        n_out = 4 * n_inner
        self.body = nn.Sequential(
            *(nn.Conv2d(n_in, n_inner, 1, bias=False), nn.BatchNorm2d(n_inner), nn.ReLU()),
            *(nn.Conv2d(n_inner, n_inner, 3, stride, 1, bias=False), nn.BatchNorm2d(n_inner), nn.ReLU()),
            *(nn.Conv2d(n_inner, n_out, 1, bias=False), nn.BatchNorm2d(n_out)),
        )
        self.relu, self.shortcut = nn.ReLU(), nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return made


class _Inverted(nn.Module):
    """MobileNetV2's block: widen, look at each channel's neighbours, narrow."""

    def __init__(self, n_in: int, n_out: int, factor: int, stride: int) -> None:
        super().__init__()
        inner = factor * n_in
        self.body = nn.Sequential(
            *(nn.Conv2d(n_in, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()),
            *(nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()),
            *(nn.Conv2d(inner, n_out, 1, bias=False), nn.BatchNorm2d(n_out)),
        )
        self.around = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.body(x)
        return x + made if self.around else made


class _Transformer(nn.Module):
    """A ViT block: attention and a two-layer network, each after a LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.n_heads = width // _HEAD_WIDTH
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.body = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attention(self.norm1(x))
        made: Tensor = x + self.body(self.norm2(x))
        return made

    def _attention(self, x: Tensor) -> Tensor:
        n_tokens, width = x.shape[1:]
        heads = self.project(x).reshape(-1, n_tokens, 3, self.n_heads, width // self.n_heads)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values)
        joined: Tensor = self.join(mixed.transpose(1, 2).reshape(-1, n_tokens, width))
        return joined


class _Vit(nn.Module):
    def __init__(self, width: int, n_classes: int, n_tokens: int = 64) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, _PATCH_SIZE, stride=_PATCH_SIZE)
        self.places = nn.Parameter(0.02 * torch.randn(1, n_tokens, width))
        self.blocks = nn.Sequential(*(_Transformer(width) for _ in range(_N_BLOCKS)), nn.LayerNorm(width))
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.places
        logits: Tensor = self.head(self.blocks(tokens).mean(1))
        return logits


def normalised(network: nn.Module) -> nn.Module:
    """Put the normalisation of inputs in front."""
    return nn.Sequential(_Normalisation(), network)


def resnet18(width: int, n_classes: int = 10) -> nn.Module:
    """Return a ResNet-18 with a 3 x 3 stem (He et al. 2016); its published width is 64."""
    layers = [*_conv(3, width)]
    n_in = width
    for i, factor in enumerate((1, 2, 4, 8)):
        layers += [_Block(n_in, factor * width, 1 if i == 0 else 2), _Block(factor * width, factor * width, 1)]
        n_in = factor * width
    return nn.Sequential(*layers, *_head(n_in, n_classes))


def resnet50(width: int, n_classes: int = 10) -> nn.Module:
    """Return a ResNet-50 with a 3 x 3 stem (He et al. 2016); its published width is 64."""
    layers = [*_conv(3, width)]
    n_in = width
    for i, n_blocks in enumerate(_RESNET50_STAGES):
        for j in range(n_blocks):
            layers.append(_Bottleneck(n_in, width << i, 2 if i and not j else 1))
            n_in = 4 * (width << i)
    return nn.Sequential(*layers, *_head(n_in, n_classes))


def vgg(width: int, n_classes: int = 10) -> nn.Module:
    """Return eight convolutions with BatchNorm in four stages (after Simonyan and Zisserman 2015)."""
    layers: list[nn.Module] = []
    n_in = 3
    for i, stage in enumerate(_VGG_STAGES):
        layers += [nn.MaxPool2d(2)] if i else []
        for factor in stage:
            layers += _conv(n_in, factor * width)
            n_in = factor * width
    return nn.Sequential(*layers, *_head(n_in, n_classes))


def mobilenetv2(width: int, n_classes: int = 10) -> nn.Module:
    """Return a MobileNetV2 with fewer blocks and a stem that keeps 32 x 32 (after Sandler et al. 2018)."""
    layers = [*_conv(3, width)]
    n_in = width
    for factor, wider, n_blocks, stride in _MOBILENET_STAGES:
        for i in range(n_blocks):
            layers.append(_Inverted(n_in, wider * width, factor, stride if i == 0 else 1))
            n_in = wider * width
    layers += [nn.Conv2d(n_in, 20 * width, 1, bias=False), nn.BatchNorm2d(20 * width), nn.ReLU6()]
    return nn.Sequential(*layers, *_head(20 * width, n_classes))


def vit(width: int, n_classes: int = 10) -> nn.Module:
    """Return a ViT of 4 x 4 patches, four blocks and no class token (after Dosovitskiy et al. 2021)."""
    return _Vit(width, n_classes)


def digits_cnn(width: int, n_classes: int = 10) -> nn.Module:
    """Return three convolutions for grey images of 8 x 8."""
    layers = [*_conv(1, width), *_conv(width, 2 * width), nn.MaxPool2d(2), *_conv(2 * width, 2 * width)]
    return nn.Sequential(*layers, *_head(2 * width, n_classes))


def _conv(n_in: int, n_out: int) -> list[nn.Module]:
    return [nn.Conv2d(n_in, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]


def _head(n_in: int, n_classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, n_classes)]


ARCHITECTURES: Mapping[str, Callable[[int], nn.Module]] = {
    "cnn": digits_cnn,
    "mobilenetv2": mobilenetv2,
    "resnet18": resnet18,
    "vgg": vgg,
    "vit": vit,
}
