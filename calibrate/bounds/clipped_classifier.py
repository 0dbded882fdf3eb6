"""A classifier whose activations are clipped at bounds that take gradients."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.differentiable import Change, DifferentiableModel, Precision, Tensors
from calibrate.gradients import backward
from calibrate.sites import Site
from guard.rows import each
from guard.types import BoolArray, Inputs, IntArray

__all__ = ["ClippedClassifier", "LabelledInputs", "clip_at", "endless_batches"]

_NO_BOUNDS: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledInputs:
    """Inputs (N, ...) in memory, by name for a model with several, and their classes (N,)."""

    inputs: Tensors
    labels: Tensor

    @classmethod
    def of(cls, inputs: Inputs, labels: IntArray) -> "LabelledInputs":
        """Share the arrays' memory."""
        return cls(inputs=each(torch.from_numpy, inputs), labels=torch.from_numpy(labels))

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int) -> Iterator[tuple[Tensors, Tensor]]:
        """Yield inputs and labels in order, ``size`` rows at a time."""
        for start in range(0, len(self), size):
            yield _rows(self.inputs, start, size), self.labels[start : start + size]


def _rows(inputs: Tensors, start: int, size: int) -> Tensors:
    return each(lambda tensor: tensor[start : start + size], inputs)


def endless_batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield row numbers below n, so many at a time and each once before any comes again."""
    while True:
        yield from torch.split(torch.randperm(n, generator=generator), size)


def clip_at(upper: Tensor, lower: Tensor | None = None) -> Change:
    """Return the change x -> min(max(x, lower), upper), or min(x, upper) without a lower bound."""
    if lower is None:
        return lambda x: torch.minimum(x, upper.to(x.dtype))
    return lambda x: torch.minimum(torch.maximum(x, lower.to(x.dtype)), upper.to(x.dtype))


class ClippedClassifier:
    """The original with min(max(x, lower), upper) at every site.

    An original whose graph declares a fixed N runs that many rows at a time, whatever ``batch_size`` says.

    Args:
        model: The original.
        logits: The name of the tensor (N, C) that holds the logits.
        sites: The activations to clip.
        batch_size: Inputs per forward and backward pass: what memory grows with.
        device: Where to compute, as torch names it.
        precision: In what weights and activations are held (see DifferentiableModel); logits are float32 all the same.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        logits: str,
        sites: Sequence[Site],
        *,
        batch_size: int,
        device: str = "cpu",
        precision: Precision = "float32",
    ) -> None:
        self._model = DifferentiableModel(model, device=device, precision=precision)
        self._logits = logits
        self._sites = tuple(site.tensor for site in sites)
        self._batch_size = self._model.fixed_batch or batch_size
        self.device = torch.device(device)

    def logits(self, inputs: Tensors, upper: Mapping[str, Tensor], lower: Mapping[str, Tensor] = _NO_BOUNDS) -> Tensor:
        """Return float32 logits (N, C) with the bounds put in; a site without an upper bound stays as it is."""
        at = {site: clip_at(upper[site], lower.get(site)) for site in self._sites if site in upper}
        return self._model.rows(inputs, output=self._logits, at=at).float()

    def add_cross_entropy_gradients(self, data: LabelledInputs, parameters: Mapping[str, Tensor]) -> float:
        """Add the gradients of the mean cross-entropy over all data to the bounds' gradients; return that mean.

        The sum over mini-batches is the gradient of the whole: the original normalises row by row.
        """
        total = 0.0
        for inputs, labels in data.batches(self._batch_size):
            logits = self.logits(inputs, {site: p.relu() for site, p in parameters.items()})
            loss = F.cross_entropy(logits, labels.to(self.device), reduction="sum") / len(data)
            backward(loss)
            total += loss.item()
        return total

    def accuracy(
        self, data: LabelledInputs, upper: Mapping[str, Tensor], lower: Mapping[str, Tensor] = _NO_BOUNDS
    ) -> float:
        """Return the fraction of the data that is classified as labelled."""
        return int(self.is_right(data, upper, lower).sum()) / len(data)

    @torch.no_grad()
    def is_right(
        self, data: LabelledInputs, upper: Mapping[str, Tensor], lower: Mapping[str, Tensor] = _NO_BOUNDS
    ) -> BoolArray:
        """Return (N,) which rows of the data are classified as labelled."""
        rows = [
            self.logits(inputs, upper, lower).argmax(1).cpu() == labels
            for inputs, labels in data.batches(self._batch_size)
        ]
        return torch.cat(rows).numpy()
