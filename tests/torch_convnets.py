"""Small torch models of the convolutional families that the project promises to carry."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

__all__ = ["BUILDERS", "N_CLASSES", "Layers2d"]

N_CLASSES = 10


def conv_norm(
    n_in: int, n_out: int, size: int = 3, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = None
) -> nn.Module:
    """Return a convolution that keeps the size at stride 1, its BatchNorm and, where given, an activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(n_in, n_out, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(n_out),
    ]
    return nn.Sequential(*layers, *([] if act is None else [act()]))


class Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-18's graph, narrow: stem with a max pool, eight blocks, global average pool, one linear layer."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        widths = [width * factor for factor in (1, 1, 1, 2, 2, 4, 4, 8, 8)]
        strides = (1, 1, 2, 1, 2, 1, 2, 1)
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 1, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 1, 1)
        )
        pairs = zip(widths, widths[1:], strides, strict=False)
        self.blocks = nn.Sequential(*(Block(*pair) for pair in pairs))
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.head = nn.Linear(widths[-1], N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.blocks(self.stem(x)))
        return self.head(torch.flatten(x, 1))


class Vgg(nn.Module):
    """Plain convolutions and max pools, then linear layers with dropout."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n_in = 3
        for n_out in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(n_in, n_out, 3, 1, 1), nn.BatchNorm2d(n_out), nn.ReLU(), nn.MaxPool2d(2, 2)]
            n_in = n_out
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(16 * width, 32), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(32, N_CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x))
        return self.classifier(x.view(x.size(0), -1))


class SqueezeExcite(nn.Module):
    """Channels gated by two small layers on their means (Hu et al., CVPR 2018)."""

    def __init__(self, n: int, act: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(n, n // 2, 1), act(), nn.Conv2d(n // 2, n, 1))
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.layers(x))


class InvertedResidual(nn.Module):
    """Expand, convolve channel by channel, gate where asked, project: MobileNetV2, V3 and EfficientNet."""

    def __init__(
        self, n_in: int, n_out: int, stride: int, act: type[nn.Module], gate: type[nn.Module] | None = None
    ) -> None:
        super().__init__()
        hidden = n_in * 3
        self.is_residual = stride == 1 and n_in == n_out
        inner = nn.ReLU if act is nn.Hardswish else act
        self.layers = nn.Sequential(
            conv_norm(n_in, hidden, 1, act=act),
            conv_norm(hidden, hidden, 3, stride, groups=hidden, act=act),
            nn.Identity() if gate is None else SqueezeExcite(hidden, inner, gate),
            conv_norm(hidden, n_out, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.is_residual else self.layers(x)


class MobileNet(nn.Module):
    """MobileNetV2's graph, short and narrow; its pool is a mean over the space axes."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_norm(3, width, 3, 2, act=nn.ReLU6),
            InvertedResidual(width, width, 1, nn.ReLU6),
            InvertedResidual(width, 2 * width, 2, nn.ReLU6),
            InvertedResidual(2 * width, 2 * width, 1, nn.ReLU6),
        )
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(2 * width, N_CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean([2, 3]))


def mobilenet_v3(width: int = 4) -> nn.Module:
    """MobileNetV3's graph: HardSwish, gates of HardSigmoid, a head of two layers."""
    return nn.Sequential(
        conv_norm(3, width, 3, 2, act=nn.Hardswish),
        InvertedResidual(width, width, 1, nn.ReLU, nn.Hardsigmoid),
        InvertedResidual(width, 2 * width, 2, nn.Hardswish, nn.Hardsigmoid),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        *(nn.Linear(2 * width, 16), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(16, N_CLASSES)),
    )


def efficientnet(width: int = 4) -> nn.Module:
    """EfficientNet's graph: SiLU, gates of Sigmoid."""
    return nn.Sequential(
        conv_norm(3, width, 3, 2, act=nn.SiLU),
        InvertedResidual(width, width, 1, nn.SiLU, nn.Sigmoid),
        InvertedResidual(width, 2 * width, 2, nn.SiLU, nn.Sigmoid),
        conv_norm(2 * width, 4 * width, 1, act=nn.SiLU),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * width, N_CLASSES)),
    )


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, convolution, twice; what comes out is joined to what went in."""

    def __init__(self, n_in: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.BatchNorm2d(n_in), nn.ReLU(inplace=True), nn.Conv2d(n_in, 2 * growth, 1, bias=False)),
            *(nn.BatchNorm2d(2 * growth), nn.ReLU(inplace=True), nn.Conv2d(2 * growth, growth, 3, 1, 1, bias=False)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


def densenet(growth: int = 4) -> nn.Module:
    """DenseNet's graph: a stem, two dense blocks with a transition between them, BatchNorm and ReLU at the end."""
    g = growth
    return nn.Sequential(
        *(nn.Conv2d(3, 2 * g, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * g), nn.ReLU(), nn.MaxPool2d(3, 1, 1)),
        *(DenseLayer(2 * g, g), DenseLayer(3 * g, g)),
        *(nn.BatchNorm2d(4 * g), nn.ReLU(), nn.Conv2d(4 * g, 2 * g, 1, bias=False), nn.AvgPool2d(2, 2)),
        *(DenseLayer(2 * g, g), DenseLayer(3 * g, g)),
        *(nn.BatchNorm2d(4 * g), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * g, N_CLASSES)),
    )


class Layers2d(nn.LayerNorm):
    """LayerNorm over the channels of (N, K, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    """Convolve channel by channel, then LayerNorm and two linear layers with channels last, scaled per channel."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n, n, 7, 1, 3, groups=n)
        self.layers = nn.Sequential(nn.LayerNorm(n, eps=1e-6), nn.Linear(n, 4 * n), nn.GELU(), nn.Linear(4 * n, n))
        self.scale = nn.Parameter(torch.full((n, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + self.scale * y


def convnext(width: int = 8) -> nn.Module:
    """ConvNeXt's graph: patches, two stages, LayerNorm before each change of scale and before the head."""
    return nn.Sequential(
        *(nn.Conv2d(3, width, 4, 4), Layers2d(width, eps=1e-6), ConvNextBlock(width)),
        *(Layers2d(width, eps=1e-6), nn.Conv2d(width, 2 * width, 2, 2), ConvNextBlock(2 * width)),
        *(nn.AdaptiveAvgPool2d(1), Layers2d(2 * width, eps=1e-6), nn.Flatten(), nn.Linear(2 * width, N_CLASSES)),
    )


BUILDERS: Mapping[str, Callable[[], nn.Module]] = {
    "convnext": convnext,
    "densenet": densenet,
    "efficientnet": efficientnet,
    "mobilenet": MobileNet,
    "mobilenet-v3": mobilenet_v3,
    "resnet": ResNet,
    "vgg": Vgg,
}
