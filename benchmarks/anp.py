"""A small port of ANP, adversarial neuron pruning (Wu and Wang, NeurIPS 2021), to compare with.

Each channel before an activation, z = mean + (z - mean), becomes (1 + xi) mean + (m + delta)(z - mean). The noise
delta and xi is drawn from [-eps, eps] and moved by one signed gradient step to raise the loss; the mask m in [0, 1]
is then moved to lower alpha * loss without noise + (1 - alpha) * loss with it. Channels whose mask falls below the
threshold are set to their mean. The constants are the official code's. Where it differs: BatchNorm is folded away in
these graphs, so that delta and xi act on the deviation and the mean over the clean images in place of BatchNorm's
scale and shift, and statistics are those of all images, not of each batch.
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
    threshold: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """Masks and clean means (1, K, 1, 1) by tensor."""

    masks: Mapping[str, Tensor]
    means: Mapping[str, Tensor]


def fit_masks(
    model: DifferentiableModel,
    logits: str,
    tensors: Sequence[str],
    inputs: Tensor,
    labels: Tensor,
    settings: AnpSettings,
) -> Masked:
    """Learn the masks of these tensors (N, K, H, W) on clean inputs and labels."""
    means = _means(model, tensors, inputs)
    masks = {name: torch.ones_like(mean).requires_grad_() for name, mean in means.items()}
    optimizer = torch.optim.SGD(masks.values(), lr=settings.learning_rate, momentum=settings.momentum)
    generator = torch.Generator().manual_seed(0)
    for _ in range(settings.iterations):
        rows = torch.randint(len(inputs), (settings.batch_size,), generator=generator)

        def loss(noise: Mapping[str, Noise], rows: Tensor = rows) -> Tensor:
            (found,) = model(inputs[rows], outputs=[logits], at=_noisy(masks, means, noise))
            return F.cross_entropy(found, labels[rows])

        noise = _worst_noise(loss, means, settings.eps, generator)
        optimizer.zero_grad()
        (settings.alpha * loss({})).backward()  # type: ignore[no-untyped-call]
        ((1 - settings.alpha) * loss(noise)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            for mask in masks.values():
                mask.clamp_(0, 1)
    return Masked(masks={name: mask.detach() for name, mask in masks.items()}, means=means)


def masking(masked: Masked, threshold: float) -> dict[str, Change]:
    """Return the changes that set every channel whose mask is below the threshold to its mean."""
    kept = {name: (mask >= threshold).float() for name, mask in masked.masks.items()}
    return _noisy(kept, masked.means, {})


@torch.no_grad()
def _means(model: DifferentiableModel, tensors: Sequence[str], inputs: Tensor) -> dict[str, Tensor]:
    parts = [model(part, outputs=tensors) for part in torch.split(inputs, 250)]
    return {
        name: torch.cat([part[place] for part in parts]).mean(dim=(0, 2, 3), keepdim=True)
        for place, name in enumerate(tensors)
    }


def _noisy(masks: Mapping[str, Tensor], means: Mapping[str, Tensor], noise: Mapping[str, Noise]) -> dict[str, Change]:
    def change(name: str) -> Change:
        mean, mask = means[name], masks[name]
        delta, xi = noise.get(name, (torch.zeros(()), torch.zeros(())))
        return lambda z: (1 + xi) * mean + (mask + delta) * (z - mean)

    return {name: change(name) for name in masks}


def _worst_noise(
    loss: Callable[[Mapping[str, Noise]], Tensor], means: Mapping[str, Tensor], eps: float, generator: torch.Generator
) -> dict[str, Noise]:
    """Draw noise and take one signed step of eps up the loss, as the official code does without projecting back."""
    drawn = [((2 * torch.rand(2, *mean.shape, generator=generator) - 1) * eps) for mean in means.values()]
    noise = [value.requires_grad_() for value in drawn]
    slopes = torch.autograd.grad(loss({name: (n[0], n[1]) for name, n in zip(means, noise, strict=True)}), noise)
    moved = ((n + eps * slope.sign()).detach() for n, slope in zip(noise, slopes, strict=True))
    return {name: (n[0], n[1]) for name, n in zip(means, moved, strict=True)}
