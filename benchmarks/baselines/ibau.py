"""I-BAU: unlearn the universal perturbation that the model errs on most, with gradients through how it is found.

Zeng et al., *Adversarial Unlearning of Backdoors via Implicit Hypergradient* (ICLR 2022, arXiv 2110.03735). A round has
two parts. A perturbation of all images is raised on the loss against the model's own answers, one step of size 10 a
batch, less 0.001 times its squared length. Then, batch by batch, Adam descends on the loss of images of which 1 % carry
the perturbation, with the hypergradient of Eq. 5: the direct gradient plus what the weights do to the perturbation, by
five iterations of a fixed point with a gradient step of 0.1. All of this is as in the authors' code: 5 rounds, batches
of 100, learning rate 0.001, no clipping to the range of pixels. Differences: of every batch at least one image carries
the perturbation, and BatchNorms that were folded into convolutions are put back, see trainable.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines.classifier import OnnxClassifier
from benchmarks.baselines.trainable import Trainable, check_finite
from guard.types import FloatArray, IntArray

__all__ = ["Unlearning", "hypergradient", "unlearn"]

_INNER_STEP = 0.1
_FIXED_POINT_STEPS = 5
_LENGTH_WEIGHT = 0.001
_CARRYING_SHARE = 0.01

Batch = tuple[Tensor, Tensor]
Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlearning:
    """How to unlearn."""

    rounds: int = 5
    learning_rate: float = 1e-3
    perturbation_step: float = 10.0
    batch_size: int = 100
    seed: int = 0


def unlearn(
    classifier: OnnxClassifier, clean: FloatArray, labels: IntArray, settings: Unlearning | None = None
) -> onnx.ModelProto:
    """Unlearn backdoors on clean images.

    Raises:
        CalibrationError: The loss is no longer finite.
    """
    chosen = settings or Unlearning()
    network = Trainable(classifier.model, classifier.logits_name, clean)
    optimizer = torch.optim.Adam(network.weights.values(), lr=chosen.learning_rate)
    rows = torch.split(torch.arange(len(clean)), chosen.batch_size)
    batches = [(torch.from_numpy(clean)[part], torch.from_numpy(labels)[part]) for part in rows]
    generator = torch.Generator().manual_seed(chosen.seed)
    for round_ in range(chosen.rounds):
        perturbation = _perturb(network, batches, chosen.perturbation_step)
        for batch in batches:
            loss, gradients = hypergradient(network, perturbation, batches[0], _carrying(batch, generator))
            check_finite(loss, f"round {round_ + 1} of unlearning")
            for weight, gradient in zip(network.weights.values(), gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
    return network.written()


def _perturb(network: Trainable, batches: Sequence[Batch], step: float) -> Tensor:
    """Return one perturbation (1, ...) of all images that the model's own answers suffer from."""
    fixed = {name: weight.detach() for name, weight in network.weights.items()}
    perturbation = torch.zeros_like(batches[0][0][:1]).requires_grad_()
    for inputs, _ in batches:
        with torch.no_grad():
            answers = network(inputs, fixed).argmax(dim=1)
        (slope,) = torch.autograd.grad(_inner_loss(network, perturbation, (inputs, answers), fixed), [perturbation])
        perturbation = (perturbation - step * slope).detach().requires_grad_()
    return perturbation


def _inner_loss(network: Trainable, perturbation: Tensor, batch: Batch, weights: Weights) -> Tensor:
    inputs, labels = batch
    error = F.cross_entropy(network(inputs + perturbation, weights), labels)
    return _LENGTH_WEIGHT * perturbation.square().sum() - error


def _carrying(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Choose which images (n, 1, ...) of the batch carry the perturbation: 1, else 0."""
    inputs, labels = batch
    chosen = torch.randperm(len(inputs), generator=generator)[: max(1, int(_CARRYING_SHARE * len(inputs)))]
    carries = torch.zeros(len(inputs), *[1] * (inputs.dim() - 1)).index_fill(0, chosen, 1)
    return inputs, labels, carries


def hypergradient(
    network: Trainable, perturbation: Tensor, inner: Batch, outer: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return the outer loss, and its gradient by each weight through the perturbation as well (Eq. 5)."""
    weights = list(network.weights.values())
    inputs, labels, carries = outer
    loss = F.cross_entropy(network(inputs + carries * perturbation), labels)
    by_perturbation, *direct = torch.autograd.grad(loss, [perturbation, *weights])
    inner_loss = _inner_loss(network, perturbation, inner, network.weights)
    (slope,) = torch.autograd.grad(inner_loss, [perturbation], create_graph=True)
    stepped = perturbation - _INNER_STEP * slope
    adjoint = torch.zeros_like(perturbation)
    for _ in range(_FIXED_POINT_STEPS):
        (carried,) = torch.autograd.grad(stepped, [perturbation], grad_outputs=adjoint, retain_graph=True)
        adjoint = carried + by_perturbation
    indirect = torch.autograd.grad(stepped, weights, grad_outputs=adjoint, allow_unused=True)
    return loss, [d if i is None else d + i for d, i in zip(direct, indirect, strict=True)]
