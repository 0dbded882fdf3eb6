"""Small torch models of the families that the project promises to carry, and their export to ONNX."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Literal

import onnx
import torch
from torch import Tensor, nn

__all__ = ["FAMILIES", "Exporter", "build", "example_of", "export"]

Exporter = Literal["dynamo", "torchscript"]
FAMILIES = ("mlp", "mobilenet", "resnet", "vgg")
N_CLASSES = 10

_WARNINGS = (
    (DeprecationWarning, "You are using the legacy TorchScript-based ONNX export"),
    (DeprecationWarning, "The feature will be removed"),
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
)


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


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, convolve channel by channel, project."""

    def __init__(self, n_in: int, n_out: int, stride: int, expansion: int = 3) -> None:
        super().__init__()
        hidden = n_in * expansion
        self.is_residual = stride == 1 and n_in == n_out
        self.layers = nn.Sequential(
            nn.Conv2d(n_in, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, n_out, 1, bias=False),
            nn.BatchNorm2d(n_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.is_residual else self.layers(x)


class MobileNet(nn.Module):
    """MobileNetV2's graph, short and narrow; its pool is a mean over the space axes."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
            InvertedResidual(width, width, 1),
            InvertedResidual(width, 2 * width, 2),
            InvertedResidual(2 * width, 2 * width, 1),
        )
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(2 * width, N_CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean([2, 3]))


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 16 * 16, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, N_CLASSES)
    )


_BUILDERS = {"mlp": _mlp, "mobilenet": MobileNet, "resnet": ResNet, "vgg": Vgg}


def build(family: str, *, seed: int = 0) -> nn.Module:
    """Build an untrained model in eval mode whose BatchNorm statistics are those of some data."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = _BUILDERS[family]()
        with torch.no_grad():
            for _ in range(3):
                module.train()(torch.rand(16, 3, 16, 16))
    return module.eval()


def example_of(n: int = 2, *, seed: int = 1) -> Tensor:
    """Draw inputs for the models above, shape (N, 3, 16, 16)."""
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporters say about themselves."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        for category, message in _WARNINGS:
            warnings.filterwarnings("ignore", message, category)
        yield


def export(
    module: nn.Module,
    example: Tensor,
    *,
    exporter: Exporter,
    opset: int,
    dynamic_batch: bool = True,
    fold: bool = True,
) -> onnx.ModelProto:
    """Export a module whose input is called ``input`` and whose output is called ``logits``.

    Args:
        module: Any module with one input and one output.
        example: An input.
        exporter: Which of torch's exporters.
        opset: The opset to ask for: 11 to 20 of torchscript, 18 and newer of dynamo.
        dynamic_batch: Whether axis 0 stays free.
        fold: Whether BatchNorm may be folded into the convolutions.
    """
    target = io.BytesIO()
    names = {"input_names": ["input"], "output_names": ["logits"], "opset_version": opset}
    with _quiet():
        if exporter == "dynamo":
            free = ({0: torch.export.Dim("batch")},) if dynamic_batch else None
            program = torch.onnx.export(
                module, (example,), dynamo=True, dynamic_shapes=free, optimize=fold, verbose=False, **names
            )
            return program.model_proto
        axes = {"input": {0: "batch"}, "logits": {0: "batch"}} if dynamic_batch else None
        mode = torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE
        torch.onnx.export(
            module,
            (example,),
            target,
            dynamo=False,
            dynamic_axes=axes,
            training=mode,
            do_constant_folding=fold,
            **names,
        )
    return onnx.load_from_string(target.getvalue())
