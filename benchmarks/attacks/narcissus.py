"""Clean-label noise that already means the target to a model of the attacker's own (after Zeng et al. 2023)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.attacks.attack import Images
from benchmarks.training import as_tensor
from guard.types import FloatArray

__all__ = ["learn_noise"]


def learn_noise(
    surrogate: Callable[[Tensor], Tensor], images: Images, target: int, *, bound: float, n_steps: int, seed: int
) -> FloatArray:
    """Return one noise (H, W, C) within +-bound that makes the surrogate surest of the target on target images.

    Args:
        surrogate: Images (N, C, H, W) in [0, 1] to logits.
        images: Images of the target class.
        target: The target class.
        bound: The largest change of a pixel.
        n_steps: Steps of signed gradient descent, of 64 images each; the step shrinks in a straight line.
        seed: Of the choice of images.
    """
    rng = np.random.default_rng(seed)
    noise = torch.zeros(1, images.shape[3], *images.shape[1:3], requires_grad=True)
    for step in range(n_steps):
        x = as_tensor(images[rng.choice(len(images), 64)])
        wanted = torch.full((len(x),), target)
        loss = nn.functional.cross_entropy(surrogate((x + noise).clamp(0, 1)), wanted)
        (gradient,) = torch.autograd.grad(loss, noise)
        with torch.no_grad():
            noise -= bound / 5 * (1 - step / n_steps) * gradient.sign()
            noise.clamp_(-bound, bound)
    return noise.detach()[0].permute(1, 2, 0).numpy().astype(np.float32)
