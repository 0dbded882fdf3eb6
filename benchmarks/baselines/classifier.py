"""An ONNX classifier of images that counts the rows it is run on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx

from calibrate.forward import batches, provider_of
from calibrate.graph import serialize, with_outputs
from guard.model import OrtModel
from guard.scores import predicted_class, softmax
from guard.types import FloatArray, IntArray

__all__ = ["OnnxClassifier", "Tally"]

_MAX_ROWS = 128


@dataclass(slots=True)
class Tally:
    """How many rows were run."""

    rows: int = 0


class OnnxClassifier:
    """A classifier in onnxruntime, with one session per set of tensors asked for.

    Args:
        model: A model with one input.
        logits: The name of the tensor (N, C) that holds the logits.
        tally: Where rows are counted; variants of one classifier share it.
        threads: Threads of one run; by default as many as this process may use.
        device: Where to run, ``cpu`` or ``cuda``.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        logits: str,
        *,
        tally: Tally | None = None,
        threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.model = model
        self.logits_name = logits
        self.tally = Tally() if tally is None else tally
        self._threads = threads
        self._device = device
        self._sessions: dict[tuple[str, ...], OrtModel] = {}

    def variant(self, model: onnx.ModelProto) -> "OnnxClassifier":
        """Return a classifier for a changed model, whose rows count here too."""
        return OnnxClassifier(model, self.logits_name, tally=self.tally, threads=self._threads, device=self._device)

    def run(self, inputs: FloatArray, tensors: Sequence[str]) -> tuple[FloatArray, ...]:
        """Return tensors of the graph (N, ...) for model-ready inputs (N, ...)."""
        names = tuple(tensors)
        if names not in self._sessions:
            model, provider = serialize(with_outputs(self.model, names)), provider_of(self._device)
            self._sessions[names] = OrtModel(model, label="baseline", threads=self._threads, provider=provider)
        parts = [self._sessions[names].run(inputs[rows], names) for rows in batches(len(inputs), _MAX_ROWS)]
        self.tally.rows += len(inputs)
        return tuple(cast("FloatArray", np.concatenate(found)) for found in zip(*parts, strict=True))

    def logits(self, inputs: FloatArray) -> FloatArray:
        """Return (N, C) logits."""
        return self.run(inputs, [self.logits_name])[0]

    def probabilities(self, inputs: FloatArray) -> FloatArray:
        """Return (N, C) probabilities."""
        return softmax(self.logits(inputs).astype(np.float64))

    def predict(self, inputs: FloatArray) -> IntArray:
        """Return (N,) predicted classes."""
        return predicted_class(self.logits(inputs))
