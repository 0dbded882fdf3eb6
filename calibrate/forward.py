"""Run a model over many inputs with onnxruntime, batch by batch, so that memory stays flat for any model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import onnx
import onnxruntime

from calibrate.graph import serialize, with_outputs
from calibrate.sites import Progress, Rows
from guard.model import CPU, CUDA, OrtModel
from guard.types import FloatArray, IntArray

__all__ = ["batches", "forward", "predict", "provider_of"]

_BATCH_BYTES = 64 * 2**20  # of what a batch yields
_MAX_ROWS = 64


def _silent(stage: str, done: int, total: int) -> None:
    """Show no progress."""


def forward(
    model: onnx.ModelProto, tensors: Sequence[str], inputs: Rows, *, device: str = "cpu"
) -> Iterator[tuple[int, Mapping[str, FloatArray]]]:
    """Yield any tensors (n, ...) of the graph batch by batch, with the number of inputs done so far."""
    probe = OrtModel(serialize(with_outputs(model, tensors)), label="probed", provider=provider_of(device))
    n_bytes = sum(a.nbytes for a in probe.run(inputs[0:1], tensors))
    for rows in batches(len(inputs), max(1, min(_MAX_ROWS, _BATCH_BYTES // max(1, n_bytes)))):
        found = cast("tuple[FloatArray, ...]", probe.run(inputs[rows], tensors))
        yield rows.stop, dict(zip(tensors, found, strict=True))


def predict(
    model: onnx.ModelProto,
    logits: str,
    inputs: Rows,
    *,
    progress: Progress = _silent,
    stage: str = "predicting",
    device: str = "cpu",
) -> IntArray:
    """Return (N,) the class with the largest logit."""
    classes = []
    for done, found in forward(model, [logits], inputs, device=device):
        classes.append(found[logits].argmax(axis=1))
        progress(stage, done, len(inputs))
    return np.concatenate(classes).astype(np.int64)


def provider_of(device: str) -> str:
    """Return onnxruntime's provider for a device as torch names it: the CPU's where it has none for CUDA."""
    is_cuda = device.startswith("cuda") and CUDA in onnxruntime.get_available_providers()
    return CUDA if is_cuda else CPU


def batches(n: int, size: int) -> Iterator[slice]:
    """Yield slices that cover n rows, each of at most this size."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
