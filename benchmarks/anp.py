"""A small port of ANP, adversarial neuron pruning (Wu and Wang, NeurIPS 2021), to compare with.

Each channel z before an activation is standardised over the batch and becomes (1 + xi) mean + (m + delta) sd z, mean
and sd being those of the clean images: what BatchNorm does in training mode with a scale (m + delta) gamma and a
shift (1 + xi) beta, for graphs into whose weights it is folded. The noise delta and xi is drawn from [-eps, eps] and
moved by one signed gradient step to raise the loss; the mask m in [0, 1] is then moved to lower alpha * loss without
noise + (1 - alpha) * loss with it. Channels are pruned, smallest mask first, as long as the clean accuracy on the
same images falls by no more than is allowed; a pruned one is held at its mean. The constants are the official code's,
but for the iterations where a caller says so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.differentiable import Change, DifferentiableModel

__all__ = ["AnpSettings", "Masked", "fit_masks", "masking"]


Noise = tuple[Tensor, Tensor]
"""delta and xi, (1, K, 1, 1) each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnpSettings:
    """The official constants, but for the number of iterations, 2000 there."""

    iterations: int = 2000
    eps: float = 0.4
    alpha: float = 0.2
    learning_rate: float = 0.2
    momentum: float = 0.9
    batch_size: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """Masks, clean means and clean standard deviations (1, K, 1, 1) by tensor."""

    masks: Mapping[str, Tensor]
    means: Mapping[str, Tensor]
    deviations: Mapping[str, Tensor]


def fit_masks(
    model: DifferentiableModel,
    logits: str,
    tensors: Sequence[str],
    inputs: Tensor,
    labels: Tensor,
    settings: AnpSettings,
) -> Masked:
    """Learn the masks of these tensors (N, K, H, W) on clean inputs and labels."""
    means, deviations = _moments(model, tensors, inputs)
    masks = {name: torch.ones_like(mean).requires_grad_() for name, mean in means.items()}
    optimizer = torch.optim.SGD(masks.values(), lr=settings.learning_rate, momentum=settings.momentum)
    generator = torch.Generator().manual_seed(0)
    for _ in range(settings.iterations):
        rows = torch.randint(len(inputs), (settings.batch_size,), generator=generator)

        def loss(noise: Mapping[str, Noise], rows: Tensor = rows) -> Tensor:
            (found,) = model(
                inputs[rows],
                outputs=[logits],
                at=_noisy(Masked(masks=masks, means=means, deviations=deviations), noise),
            )
            return F.cross_entropy(found, labels[rows])

        noise = _worst_noise(loss, means, settings.eps, generator)
        optimizer.zero_grad()
        (settings.alpha * loss({})).backward()  # type: ignore[no-untyped-call]
        ((1 - settings.alpha) * loss(noise)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            for mask in masks.values():
                mask.clamp_(0, 1)
    fitted = {name: mask.detach() for name, mask in masks.items()}
    return Masked(masks=fitted, means=means, deviations=deviations)


def masking(masked: Masked, threshold: float) -> dict[str, Change]:
    """Return the changes that hold every channel whose mask is at most the threshold at its clean mean."""

    def change(name: str) -> Change:
        kept, mean = (masked.masks[name] > threshold).float(), masked.means[name]
        return lambda z: mean + kept * (z - mean)

    return {name: change(name) for name in masked.masks}


@torch.no_grad()
def _moments(
    model: DifferentiableModel, tensors: Sequence[str], inputs: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    parts = [model(part, outputs=tensors) for part in torch.split(inputs, 250)]
    values = {name: torch.cat([part[place] for part in parts]) for place, name in enumerate(tensors)}
    means = {name: v.mean(dim=(0, 2, 3), keepdim=True) for name, v in values.items()}
    return means, {name: v.std(dim=(0, 2, 3), keepdim=True) for name, v in values.items()}


def _noisy(masked: Masked, noise: Mapping[str, Noise]) -> dict[str, Change]:
    def change(name: str) -> Change:
        mean, deviation, mask = masked.means[name], masked.deviations[name], masked.masks[name]
        delta, xi = noise.get(name, (torch.zeros(()), torch.zeros(())))

        def batch_norm(z: Tensor) -> Tensor:
            centred = z - z.mean(dim=(0, 2, 3), keepdim=True)
            scale = centred.square().mean(dim=(0, 2, 3), keepdim=True).add(1e-5).sqrt()
            return (1 + xi) * mean + (mask + delta) * deviation * centred / scale

        return batch_norm

    return {name: change(name) for name in masked.masks}


def _worst_noise(
    loss: Callable[[Mapping[str, Noise]], Tensor], means: Mapping[str, Tensor], eps: float, generator: torch.Generator
) -> dict[str, Noise]:
    """Draw noise and take one signed step of eps up the loss, as the official code does without projecting back."""
    drawn = [((2 * torch.rand(2, *mean.shape, generator=generator) - 1) * eps) for mean in means.values()]
    noise = [value.requires_grad_() for value in drawn]
    slopes = torch.autograd.grad(loss({name: (n[0], n[1]) for name, n in zip(means, noise, strict=True)}), noise)
    moved = ((n + eps * slope.sign()).detach() for n, slope in zip(noise, slopes, strict=True))
    return {name: (n[0], n[1]) for name, n in zip(means, moved, strict=True)}
