"""Small torch models of the families that the project promises to carry, and their export to ONNX."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Literal

import onnx
import torch
import torch_convnets
import torch_transformers
from torch import Tensor, nn
from torch_transformers import N_TOKENS, VOCABULARY

__all__ = ["FAMILIES", "Exporter", "build", "example_of", "export"]

Exporter = Literal["dynamo", "torchscript"]
FAMILIES = ("mlp", "mobilenet", "resnet", "vgg")
"""What every test that loops over families takes; tests/test_families.py takes the others."""
N_CLASSES = 10

_WARNINGS = (
    (UserWarning, "# The axis name: batch will not be used, since it shares"),  # of several inputs of one N
    (DeprecationWarning, "You are using the legacy TorchScript-based ONNX export"),
    (DeprecationWarning, "The feature will be removed"),
    (torch.jit.TracerWarning, "Converting a tensor to a Python boolean"),  # sizes that MultiheadAttention checks
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
)


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 16 * 16, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, N_CLASSES)
    )


_BUILDERS = {"mlp": _mlp, **torch_convnets.BUILDERS, **torch_transformers.BUILDERS}


def build(family: str, *, seed: int = 0) -> nn.Module:
    """Build an untrained model in eval mode whose BatchNorm statistics are those of some data."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = _BUILDERS[family]()
        with torch.no_grad():
            for _ in range(3):
                module.train()(example_of(16, family=family) if family == "text" else torch.rand(16, 3, 16, 16))
    return module.eval()


def example_of(n: int = 2, *, family: str = "resnet", seed: int = 1) -> Tensor:
    """Draw inputs: images (N, 3, 16, 16), or token ids (N, T) that end in padding."""
    generator = torch.Generator().manual_seed(seed)
    if family != "text":
        return torch.rand(n, 3, 16, 16, generator=generator)
    ids = torch.randint(1, VOCABULARY, (n, N_TOKENS), generator=generator)
    lengths = torch.randint(3, N_TOKENS + 1, (n, 1), generator=generator)
    return ids.where(torch.arange(N_TOKENS) < lengths, 0)


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
    *more: Tensor,
    exporter: Exporter,
    opset: int,
    dynamic_batch: bool = True,
    fold: bool = True,
    inputs: Sequence[str] = ("input",),
) -> onnx.ModelProto:
    """Export a module whose input is called ``input`` and whose output is called ``logits``.

    Args:
        module: Any module with one output.
        example: An input.
        more: Further inputs, where it takes several.
        exporter: Which of torch's exporters.
        opset: The opset to ask for: 11 to 20 of torchscript, 18 and newer of dynamo.
        dynamic_batch: Whether axis 0 stays free.
        fold: Whether BatchNorm may be folded into the convolutions.
        inputs: What the inputs are called.
    """
    target = io.BytesIO()
    examples = (example, *more)
    names = {"input_names": list(inputs), "output_names": ["logits"], "opset_version": opset}
    with _quiet():
        if exporter == "dynamo":
            free = ({0: torch.export.Dim("batch")},) * len(examples) if dynamic_batch else None
            program = torch.onnx.export(
                module, examples, dynamo=True, dynamic_shapes=free, optimize=fold, verbose=False, **names
            )
            return program.model_proto
        axes = {name: {0: "batch"} for name in (*inputs, "logits")} if dynamic_batch else None
        mode = torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE
        torch.onnx.export(
            module,
            examples,
            target,
            dynamo=False,
            dynamic_axes=axes,
            training=mode,
            do_constant_folding=fold,
            **names,
        )
    return onnx.load_from_string(target.getvalue())
