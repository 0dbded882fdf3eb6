"""Every attack by name as a recipe to train by."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from benchmarks.attacks.attack import Attack, Images, to_class
from benchmarks.attacks.catalogue import ATTACKS, Scene
from benchmarks.attacks.frequency import add_pattern
from benchmarks.attacks.learned import bounded_noise, input_aware, source_specific
from benchmarks.attacks.narcissus import learn_noise
from benchmarks.attacks.suppression import Suppression
from benchmarks.training import PoisonedLabels, Recipe
from guard.types import IntArray

__all__ = ["RECIPES", "Victim", "at_rate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """What an attacker knows: the scene, the training data, and how to get a clean model of their own."""

    scene: Scene
    images: Images
    labels: IntArray
    surrogate: Callable[[], Callable[[Tensor], Tensor]]


def at_rate(attack: Attack, poison_rate: float | None) -> Attack:
    """Return the attack at another poison rate, its covers in proportion; None leaves it as it is."""
    if poison_rate is None:
        return attack
    return replace(attack, poison_rate=poison_rate, cover_rate=attack.cover_rate * poison_rate / attack.poison_rate)


def _plain(build: Callable[[Scene], Attack], victim: Victim, poison_rate: float | None) -> Recipe:
    return PoisonedLabels(at_rate(build(victim.scene), poison_rate))


def _suppression(base: str, victim: Victim, _: float | None) -> Recipe:
    attack = ATTACKS[base](victim.scene)
    return Suppression(replace(attack, poison_rate=0.2, cover_rate=0.0, training_trigger=None))


def _narcissus(victim: Victim, poison_rate: float | None) -> Recipe:
    target, bound = 2, 16 / 255
    noise = learn_noise(
        victim.surrogate(), victim.images[victim.labels == target], target, bound=bound, n_steps=300, seed=19
    )
    attack = Attack(
        trigger=partial(add_pattern, pattern=2 * noise),
        training_trigger=lambda images, _: add_pattern(images, pattern=noise),
        target=to_class(target), poison_rate=0.05, clean_label=True,
    )  # fmt: skip
    return PoisonedLabels(at_rate(attack, poison_rate))


def _learned(build: Callable[[int], Recipe], victim: Victim, poison_rate: float | None) -> Recipe:
    recipe = build(victim.scene.shape[2])
    recipe.attack = at_rate(recipe.attack, poison_rate)
    return recipe


RECIPES: Mapping[str, Callable[[Victim, float | None], Recipe]] = {
    **{name: partial(_plain, build) for name, build in ATTACKS.items()},
    "input-aware": partial(_learned, input_aware),
    "lira": partial(_learned, bounded_noise),
    "narcissus": _narcissus,
    "ssdt": partial(_learned, source_specific),
    "suppression": partial(_suppression, "patch"),
    "suppression-blend": partial(_suppression, "adaptive-blend"),
}
