"""What an attack is: a trigger, a target for each label, and the share of the training set it takes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.types import FloatArray, IntArray

__all__ = [
    "CLEAN", "COVER", "POISONED", "Attack", "Images", "RandomTrigger", "Trigger", "choose_roles", "corrupt",
    "on_unit_scale", "to_class", "to_next", "triggered_rows",
]  # fmt: skip

Images = NDArray[np.uint8] | FloatArray
"""Images (N, H, W, C), as bytes or as floats in [0, 1]."""
Trigger = Callable[[Images], Images]
RandomTrigger = Callable[[Images, np.random.Generator], Images]

CLEAN, POISONED, COVER = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """A backdoor attack by poisoned training data.

    Args:
        trigger: What puts the trigger on at test time.
        target: Labels (N,) to the classes the attacker wants for them.
        poison_rate: Share of the training set that is triggered and labelled with its target.
        cover_rate: Share that carries the cover trigger and keeps its true label.
        training_trigger: The trigger of poisoned images, where it differs from the one at test time.
        cover_trigger: The trigger of cover images, where it differs from the one of poisoned images.
        sources: The classes that the trigger works on; None for all but the target.
        clean_label: Whether only images of the target class are poisoned, so that no label is wrong.
        flip_rate: Share of the poisoned images whose label is changed; the others keep the true one.
    """

    trigger: Trigger
    target: Callable[[IntArray], IntArray]
    poison_rate: float = 0.1
    cover_rate: float = 0.0
    training_trigger: RandomTrigger | None = None
    cover_trigger: RandomTrigger | None = None
    sources: tuple[int, ...] | None = None
    clean_label: bool = False
    flip_rate: float = 1.0


def to_class(target: int) -> Callable[[IntArray], IntArray]:
    """Return a target that is one class for every label."""
    return lambda labels: np.full_like(labels, target)


def to_next(n_classes: int) -> Callable[[IntArray], IntArray]:
    """Return a target that is label + 1 modulo C (all-to-all)."""
    return lambda labels: (labels + 1) % n_classes


def on_unit_scale(images: Images, change: Callable[[FloatArray], FloatArray]) -> Images:
    """Change images in [0, 1], cut to that range; bytes are scaled before and rounded after."""
    if images.dtype == np.uint8:
        changed = np.clip(change(images.astype(np.float32) / 255), 0, 1)
        return np.rint(changed * 255).astype(np.uint8)
    return np.clip(change(images.astype(np.float32)), 0, 1).astype(np.float32)


def choose_roles(labels: IntArray, attack: Attack, rng: np.random.Generator) -> NDArray[np.int8]:
    """Draw which rows are poisoned and which are covers, in exact numbers; the others stay clean.

    Raises:
        ValueError: The attack asks for more rows than are eligible.
    """
    roles = np.full(len(labels), CLEAN, dtype=np.int8)
    own = labels == attack.target(labels)
    eligible = own if attack.clean_label else _attacked(labels, attack)
    for role, rate in ((POISONED, attack.poison_rate), (COVER, attack.cover_rate)):
        n_rows, rows = round(rate * len(labels)), np.flatnonzero(eligible & (roles == CLEAN))
        if n_rows > len(rows):
            raise ValueError(f"the attack asks for {n_rows} rows of {len(labels)}, but only {len(rows)} are eligible")
        roles[rng.choice(rows, n_rows, replace=False)] = role
        eligible = ~eligible if attack.sources is not None else np.ones_like(own)
    return roles


def corrupt(
    images: Images, labels: IntArray, roles: NDArray[np.int8], attack: Attack, rng: np.random.Generator
) -> tuple[Images, IntArray]:
    """Return a batch as the victim trains on it: triggers on and labels changed where the roles say so."""
    images, labels = images.copy(), labels.copy()
    poisoned, covers = np.flatnonzero(roles == POISONED), np.flatnonzero(roles == COVER)
    trigger = attack.training_trigger or (lambda images, _: attack.trigger(images))
    if len(poisoned):
        images[poisoned] = trigger(images[poisoned], rng)
        flipped = poisoned[rng.random(len(poisoned)) < attack.flip_rate]
        labels[flipped] = attack.target(labels[flipped])
    if len(covers):
        images[covers] = (attack.cover_trigger or trigger)(images[covers], rng)
    return images, labels


def triggered_rows(labels: IntArray, attack: Attack, n_rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw rows to put the trigger on at test time: of the sources, and none whose label is its target already."""
    rows = np.flatnonzero(_attacked(labels, attack))
    return np.sort(rng.choice(rows, min(n_rows, len(rows)), replace=False))


def _attacked(labels: IntArray, attack: Attack) -> NDArray[np.bool_]:
    other: NDArray[np.bool_] = labels != attack.target(labels)
    return other if attack.sources is None else other & np.isin(labels, attack.sources)
