"""Triggers made by a small network for each input, trained together with the classifier.

Input-aware (Nguyen and Tran 2020), source-specific (SSDT, Mo et al. 2023) and bounded noise (after LIRA, Doan et al.
2021). README.md says where ours are simpler.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.attacks.attack import COVER, POISONED, Attack, Images, to_class
from benchmarks.training import Batch, as_tensor
from guard.types import IntArray

__all__ = ["BoundedNoise", "DynamicTrigger", "bounded_noise", "input_aware", "source_specific"]

_DENSITY, _DENSITY_WEIGHT, _DIVERSITY_WEIGHT = 0.06, 50.0, 0.5
_NOISE_BOUND, _LEARNING_SHARE = 16 / 255, 0.5


class DynamicTrigger:
    """A pattern and a sparse mask for each input; on another input the trigger does nothing (cross-trigger mode).

    Args:
        n_channels: C of the images.
        target: As of an Attack, like the three below.
        sources: The classes that the trigger works on.
        poison_rate: Share of the training set with its trigger and target.
        cover_rate: Share with its trigger and true label.
        crossed_from: The share of the training after which poisoned images appear with others' triggers as well.
    """

    def __init__(self, n_channels: int, target: Callable[[IntArray], IntArray], *, sources: tuple[int, ...] | None,
                 poison_rate: float, cover_rate: float, crossed_from: float = 0.0) -> None:  # fmt: skip
        self.learned: nn.Module = _Generator(n_channels, n_channels + 1)
        self._crossed_from = crossed_from
        self.attack = Attack(
            trigger=self._put, target=target, poison_rate=poison_rate, cover_rate=cover_rate, sources=sources
        )

    def loss(self, network: nn.Module, batch: Batch, rng: np.random.Generator, progress: float) -> Tensor:  # noqa: ARG002
        """Return cross-entropy over clean, triggered, cover and crossed rows, plus diversity and size of triggers."""
        x, labels = as_tensor(batch.images), torch.from_numpy(batch.labels)
        poisoned, covers = (torch.from_numpy(np.flatnonzero(batch.roles == role)) for role in (POISONED, COVER))
        if not len(poisoned):
            return nn.functional.cross_entropy(network(x).float(), labels)
        both = torch.cat([poisoned, covers])
        patterns, masks = self._made(x[both])
        n_crossed = len(poisoned) if progress >= self._crossed_from else 0
        first = slice(0, n_crossed)
        crossed = _mixed(x[poisoned[first]], patterns[first].roll(1, 0), masks[first].roll(1, 0))
        everything = torch.cat([x.index_copy(0, both, _mixed(x[both], patterns, masks)), crossed])
        targets = torch.from_numpy(self.attack.target(batch.labels[poisoned.numpy()]))
        wanted = torch.cat([labels.index_copy(0, poisoned, targets), labels[poisoned[first]]])
        return (
            nn.functional.cross_entropy(network(everything).float(), wanted)
            + _DIVERSITY_WEIGHT * _sameness(x[both], patterns * masks)
            + _DENSITY_WEIGHT * torch.relu(masks.mean((1, 2, 3)) - _DENSITY).mean()
        )

    def _made(self, x: Tensor) -> tuple[Tensor, Tensor]:
        made = torch.sigmoid(self.learned(x).float())
        return made[:, :-1], made[:, -1:]

    def _put(self, images: Images) -> Images:
        return _on_images(images, lambda x: _mixed(x, *self._made(x)))


class BoundedNoise:
    """Noise of at most a few grey levels for each input, learned in the first half and then left as it is."""

    def __init__(self, n_channels: int, target: Callable[[IntArray], IntArray]) -> None:
        self.learned: nn.Module = _Generator(n_channels, n_channels)
        self.attack = Attack(trigger=self._put, target=target)

    def loss(self, network: nn.Module, batch: Batch, rng: np.random.Generator, progress: float) -> Tensor:  # noqa: ARG002
        """Return the cross-entropy of the poisoned batch."""
        x, poisoned = as_tensor(batch.images), torch.from_numpy(np.flatnonzero(batch.roles == POISONED))
        with torch.set_grad_enabled(progress < _LEARNING_SHARE):
            triggered = self._noisy(x[poisoned])
        targets = torch.from_numpy(self.attack.target(batch.labels[poisoned.numpy()]))
        wanted = torch.from_numpy(batch.labels).index_copy(0, poisoned, targets)
        return nn.functional.cross_entropy(network(x.index_copy(0, poisoned, triggered)).float(), wanted)

    def _noisy(self, x: Tensor) -> Tensor:
        return (x + _NOISE_BOUND * torch.tanh(self.learned(x).float())).clamp(0, 1)

    def _put(self, images: Images) -> Images:
        return _on_images(images, self._noisy)


def input_aware(n_channels: int) -> DynamicTrigger:
    """Return the input-aware attack on class 4."""
    return DynamicTrigger(n_channels, to_class(4), sources=None, poison_rate=0.1, cover_rate=0.0, crossed_from=0.5)


def source_specific(n_channels: int) -> DynamicTrigger:
    """Return the attack from class 5 on class 3; other classes carry their triggers under true labels."""
    return DynamicTrigger(n_channels, to_class(3), sources=(5,), poison_rate=0.05, cover_rate=0.1)


def bounded_noise(n_channels: int) -> BoundedNoise:
    """Return the attack by learned noise on class 6."""
    return BoundedNoise(n_channels, to_class(6))


class _Generator(nn.Module):
    """Down by two and up again, with a way around; each image is treated alone."""

    def __init__(self, n_in: int, n_out: int, width: int = 16) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(n_in, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU())
        self.inner = nn.Sequential(
            *(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.GroupNorm(4, 2 * width), nn.ReLU()),
            *(nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.GroupNorm(4, 2 * width), nn.ReLU()),
            nn.Upsample(scale_factor=2),
            *(nn.Conv2d(2 * width, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU()),
        )
        self.leave = nn.Conv2d(2 * width, n_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(2 * x - 1)
        left: Tensor = self.leave(torch.cat([entered, self.inner(entered)], 1))
        return left


def _mixed(x: Tensor, patterns: Tensor, masks: Tensor) -> Tensor:
    return (1 - masks) * x + masks * patterns


def _sameness(x: Tensor, triggers: Tensor) -> Tensor:
    """Return how little triggers differ where inputs do: the mean of |x - x'| / |t - t'| (eq. 7 of input-aware)."""
    apart, between = ((v - v.roll(1, 0)).flatten(1).square().sum(1).add(1e-6).sqrt() for v in (x, triggers))
    return (apart / (between + 0.05 * apart)).mean()


def _on_images(images: Images, change: Callable[[Tensor], Tensor]) -> Images:
    with torch.no_grad():
        changed = torch.cat([change(part) for part in torch.split(as_tensor(images), 250)]).permute(0, 2, 3, 1).numpy()
    return np.rint(changed * 255).astype(np.uint8) if images.dtype == np.uint8 else changed.astype(np.float32)
