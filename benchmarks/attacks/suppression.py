"""A white-box evader: triggered activations stay where clean ones are (after activation suppression, and ours)."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.attacks.attack import POISONED, Attack, corrupt
from benchmarks.training import Batch, as_tensor

__all__ = ["Suppression", "excess"]

_STRAIGHT_FROM = 5.0


class Suppression:
    """Penalise each channel's maximum on triggered inputs beyond mean + 2 standard deviations of clean ones.

    Every ReLU of the network is a site, as for a guard that bounds them all. What is above the range is measured in
    the clean maxima's standard deviations, squared, and averaged over channels and sites.
    """

    def __init__(self, attack: Attack, *, weight: float = 1.0, n_deviations: float = 2.0) -> None:
        self.attack, self.learned = attack, nn.Module()
        self._weight, self._n_deviations = weight, n_deviations

    def loss(self, network: nn.Module, batch: Batch, rng: np.random.Generator, progress: float) -> Tensor:  # noqa: ARG002
        """Return the cross-entropy of the poisoned batch and the penalty."""
        images, labels = corrupt(batch.images, batch.labels, batch.roles, self.attack, rng)
        triggered = torch.from_numpy(batch.roles == POISONED)
        with _maxima(network) as maxima:
            loss = nn.functional.cross_entropy(network(as_tensor(images)).float(), torch.from_numpy(labels))
        if triggered.sum() == 0:
            return loss
        excesses = [excess(values.float(), triggered, self._n_deviations) for values in maxima]
        return loss + self._weight * torch.stack(excesses).mean()


def excess(maxima: Tensor, triggered: Tensor, n_deviations: float) -> Tensor:
    """Return by how much triggered maxima (N, K) leave the clean range: in deviations, squared up to 5, on average."""
    clean = maxima[~triggered].detach()
    mean, deviation = clean.mean(0), clean.std(0) + 0.05 * clean.std(0).mean() + 1e-6
    beyond = torch.relu((maxima[triggered] - mean) / deviation - n_deviations)
    return 2 * nn.functional.huber_loss(beyond, torch.zeros_like(beyond), delta=_STRAIGHT_FROM)


@contextmanager
def _maxima(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collect every ReLU's maxima over space (N, K) while the block runs."""
    found: list[Tensor] = []

    def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(output.flatten(2).amax(2) if output.ndim > 2 else output)

    hooks = [module.register_forward_hook(keep) for module in network.modules() if isinstance(module, nn.ReLU)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
