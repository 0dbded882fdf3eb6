"""What triggers are recovered from: the frozen model, and the images that carry them."""

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor

from calibrate.differentiable import DifferentiableModel, Precision
from guard.types import FloatArray

__all__ = ["Pixels", "Victim"]


class Victim:
    """The model that is inspected, frozen: probabilities of the target class, differentiable in the images.

    Args:
        model: The classifier.
        logits: The name of the tensor (N, C) that holds the logits.
        target_class: The class.
        channel_axis: The axis of K in its input.
        device: Where to compute, as torch names it.
        precision: In what.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        logits: str,
        *,
        target_class: int,
        channel_axis: int,
        device: str,
        precision: Precision,
    ) -> None:
        self._model = DifferentiableModel(model, device=device, precision=precision)
        self._logits = logits
        self._target_class = target_class
        self._channel_axis = channel_axis
        self.device = device

    def probabilities(self, images: Tensor) -> Tensor:
        """Return (N,) the softmax probability of the target class on images (N, K, H, W)."""
        logits = self._model.rows(images.movedim(1, self._channel_axis), output=self._logits)
        return logits.float().softmax(dim=1)[:, self._target_class]

    def place(self, values: FloatArray) -> Tensor:
        """Return values as float32 where the model is."""
        return torch.from_numpy(values.astype(np.float32)).to(self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """Images to synthesise on.

    Args:
        images: (N, K, H, W) float32.
        low: (K, 1, 1) the least value of each channel.
        high: (K, 1, 1) the greatest.
    """

    images: FloatArray
    low: FloatArray
    high: FloatArray

    def draw(self, n: int, rng: np.random.Generator) -> FloatArray:
        """Return up to n different images, drawn at random."""
        return self.images[rng.choice(len(self.images), size=min(n, len(self.images)), replace=False)]
