"""FT: go on training on the clean images, and hope that the backdoor is forgotten.

Settings of BackdoorBench's FT (Wu et al., NeurIPS 2022, arXiv 2206.12654): SGD with learning rate 0.01, momentum 0.9
and weight decay 5e-4 over 100 epochs of cosine annealing, batches of 256, images shifted by up to four pixels and
flipped. Differences: a BatchNorm that was folded into its convolution is put back, see trainable.py; shift and flip can
be switched off for images that do not allow them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines.classifier import OnnxClassifier
from benchmarks.baselines.trainable import Trainable, check_finite
from guard.types import FloatArray, IntArray

__all__ = ["FineTuning", "fine_tune"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuning:
    """How to fine-tune; ``shift`` is in pixels, for images (N, K, H, W)."""

    epochs: int = 100
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256
    shift: int = 4
    flip: bool = True
    seed: int = 0


def fine_tune(
    classifier: OnnxClassifier, clean: FloatArray, labels: IntArray, settings: FineTuning | None = None
) -> onnx.ModelProto:
    """Train all weights further on the clean images.

    Raises:
        CalibrationError: The loss is no longer finite.
    """
    chosen = settings or FineTuning()
    network = Trainable(classifier.model, classifier.logits_name, clean)
    optimizer = torch.optim.SGD(
        network.weights.values(),
        lr=chosen.learning_rate, momentum=chosen.momentum, weight_decay=chosen.weight_decay,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=chosen.epochs)
    generator = torch.Generator().manual_seed(chosen.seed)
    for epoch in range(chosen.epochs):
        for inputs, targets in _batches(torch.from_numpy(clean), torch.from_numpy(labels), chosen, generator):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(inputs, training=True), targets)
            check_finite(loss, f"epoch {epoch + 1} of fine-tuning")
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
        schedule.step()
    return network.written()


def _batches(
    inputs: Tensor, labels: Tensor, chosen: FineTuning, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(inputs), generator=generator)
    for rows in torch.split(order, chosen.batch_size):
        yield _augmented(inputs[rows], chosen, generator), labels[rows]


def _augmented(images: Tensor, chosen: FineTuning, generator: torch.Generator) -> Tensor:
    """Shift each image by so many pixels at most, filling with zeros, and mirror every second one at random."""
    if chosen.flip:
        is_flipped = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(is_flipped[:, None, None, None], images.flip(3), images)
    if not chosen.shift:
        return images
    padded = F.pad(images, [chosen.shift] * 4)
    corners = torch.randint(0, 2 * chosen.shift + 1, (len(images), 2), generator=generator).tolist()
    height, width = images.shape[2:]
    return torch.stack([p[:, r : r + height, c : c + width] for p, (r, c) in zip(padded, corners, strict=True)])
