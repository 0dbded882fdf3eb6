"""Train classifiers on poisoned images, epoch by epoch, each of them kept so that an interrupted training goes on."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.attacks.attack import Attack, Images, corrupt
from guard.types import IntArray

__all__ = ["Batch", "PoisonedLabels", "Recipe", "Schedule", "as_tensor", "classify", "train", "written_whole"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Images (N, H, W, C), their true labels (N,) and the roles of their rows (N,): a batch, or all there are."""

    images: Images
    labels: IntArray
    roles: NDArray[np.int8]


class Recipe(Protocol):
    """What an attacker minimises; ``learned`` is trained beside the network and may make the attack's trigger."""

    attack: Attack
    learned: nn.Module

    def loss(self, network: nn.Module, batch: Batch, rng: np.random.Generator, progress: float) -> Tensor:
        """Return the loss of a batch, at a share of the training that is done."""


class PoisonedLabels:
    """The plain attack: whatever it does is done to the training data."""

    def __init__(self, attack: Attack) -> None:
        self.attack, self.learned = attack, nn.Module()

    def loss(self, network: nn.Module, batch: Batch, rng: np.random.Generator, progress: float) -> Tensor:  # noqa: ARG002
        """Return the cross-entropy of the poisoned batch."""
        images, labels = corrupt(batch.images, batch.labels, batch.roles, self.attack, rng)
        return nn.functional.cross_entropy(network(as_tensor(images)).float(), torch.from_numpy(labels))


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast, with one cycle of the learning rate (Smith 2018).

    Args:
        n_epochs: Epochs in all.
        peak_rate: The highest learning rate.
        warm_up: Share of the training until then.
        batch_size: Images per step.
        weight_decay: Of the network's weights.
        generator_rate: Adam's learning rate for what an attack learns beside the network.
        n_padded: By how many pixels images are shifted at most.
        mirrored: Whether half of the images are mirrored.
        adaptive: AdamW instead of stochastic gradient descent, as transformers need it.
    """

    n_epochs: int
    peak_rate: float = 0.2
    warm_up: float = 0.25
    batch_size: int = 128
    weight_decay: float = 5e-4
    generator_rate: float = 1e-3
    n_padded: int = 4
    mirrored: bool = True
    adaptive: bool = False

    def rate(self, progress: float) -> float:
        """Return the learning rate, up and down in straight lines."""
        up, down = progress / self.warm_up, (1 - progress) / (1 - self.warm_up)
        return self.peak_rate * max(min(up, down), 1e-3)


def train(
    network: nn.Module, recipe: Recipe, rows: Batch, *, schedule: Schedule, seed: int, checkpoint: Path,
    say: Callable[[str], None],
) -> float:  # fmt: skip
    """Train in place on all rows, from the checkpoint if there is one; return the seconds that it took in all.

    Every epoch draws from its own seeded generator, so that an interrupted training ends as one that was not.

    Raises:
        FloatingPointError: The loss is not finite; the checkpoint of the epoch before is kept.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch leaves this form out
    optimizers = _optimizers(network, recipe, schedule)
    first, seconds = _resume(checkpoint, network, recipe, optimizers)
    for epoch in range(first, schedule.n_epochs):
        started, rng = time.monotonic(), np.random.default_rng([seed, epoch])
        torch.manual_seed(seed * 1000 + epoch)
        network.train()
        order, losses = rng.permutation(len(rows.labels)), []
        n_steps = math.ceil(len(order) / schedule.batch_size)
        for i, chosen in enumerate(np.array_split(order, n_steps)):
            progress = (epoch + i / n_steps) / schedule.n_epochs
            optimizers[0].param_groups[0]["lr"] = schedule.rate(progress)
            losses.append(_step(network, recipe, _batch(rows, chosen, schedule, rng), rng, progress, optimizers))
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"the loss is {losses[-1]} in epoch {epoch + 1}, batch {i + 1}")
        seconds += time.monotonic() - started
        _keep(checkpoint, network, recipe, optimizers, epoch + 1, seconds)
        say(f"epoch {epoch + 1} of {schedule.n_epochs}: loss {np.mean(losses):.3f}, {seconds:.0f} s so far")
    return seconds


def classify(network: nn.Module, images: Images, *, batch_size: int = 250) -> IntArray:
    """Return the predicted classes (N,)."""
    network.eval()
    with torch.no_grad():
        parts = [network(as_tensor(images[i : i + batch_size])).argmax(1) for i in range(0, len(images), batch_size)]
    return torch.cat(parts).numpy().astype(np.int64)


def as_tensor(images: Images) -> Tensor:
    """Return images (N, H, W, C) as floats (N, C, H, W) in [0, 1]; bytes are scaled."""
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor


def written_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` write beside the path and rename the file, so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}-{path.name}")
    write(beside)
    return beside.replace(path)


def _step(
    network: nn.Module, recipe: Recipe, batch: Batch, rng: np.random.Generator, progress: float,
    optimizers: list[torch.optim.Optimizer],
) -> float:  # fmt: skip
    for optimizer in optimizers:
        optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = recipe.loss(network, batch, rng, progress)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for optimizer in optimizers:
        optimizer.step()
    return float(loss.detach())


def _batch(rows: Batch, chosen: IntArray, schedule: Schedule, rng: np.random.Generator) -> Batch:
    images = _augmented(rows.images[chosen], schedule, rng)
    return Batch(images=images, labels=rows.labels[chosen], roles=rows.roles[chosen])


def _augmented(images: Images, schedule: Schedule, rng: np.random.Generator) -> Images:
    """Shift each image by up to a few pixels, the edges black, and mirror half of them."""
    n_images, height, width = images.shape[:3]
    pad = schedule.n_padded
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows = rng.integers(2 * pad + 1, size=(n_images, 1)) + np.arange(height)
    columns = rng.integers(2 * pad + 1, size=(n_images, 1)) + np.arange(width)
    if schedule.mirrored:
        columns = np.where(rng.random((n_images, 1)) < 0.5, columns[:, ::-1], columns)
    augmented: Images = padded[np.arange(n_images)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return augmented


def _optimizers(network: nn.Module, recipe: Recipe, schedule: Schedule) -> list[torch.optim.Optimizer]:
    weights, decay = network.parameters(), schedule.weight_decay
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(weights, weight_decay=decay)
        if schedule.adaptive
        else torch.optim.SGD(weights, lr=1.0, momentum=0.9, nesterov=True, weight_decay=decay)
    ]
    if learned := list(recipe.learned.parameters()):
        optimizers.append(torch.optim.Adam(learned, lr=schedule.generator_rate))
    return optimizers


def _keep(
    checkpoint: Path, network: nn.Module, recipe: Recipe, optimizers: list[torch.optim.Optimizer], epoch: int,
    seconds: float,
) -> None:  # fmt: skip
    state = {
        "network": network.state_dict(), "learned": recipe.learned.state_dict(), "epoch": epoch, "seconds": seconds,
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }  # fmt: skip
    written_whole(checkpoint, lambda path: torch.save(state, path))


def _resume(
    checkpoint: Path, network: nn.Module, recipe: Recipe, optimizers: list[torch.optim.Optimizer]
) -> tuple[int, float]:
    if not checkpoint.exists():
        return 0, 0.0
    state = torch.load(checkpoint, weights_only=True)
    network.load_state_dict(state["network"])
    recipe.learned.load_state_dict(state["learned"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    return int(state["epoch"]), float(state["seconds"])
