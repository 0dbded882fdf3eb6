"""The classifiers of the zoo, in the order in which they are trained."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

__all__ = ["ENTRIES", "Entry"]

_GIVEN = {
    "badnets": "patch", "wanet": "warp", "blend": "full-image", "all2all": "all-to-all", "tact": "source-specific",
    "none": "clean",
}  # fmt: skip
_DIGITS = {"badnets": "patch", "blend": "full-image", "all2all": "all-to-all", "tact": "source-specific",
           "adaptive-blend": "adaptive", "none": "clean"}  # fmt: skip
_TRAINED = {
    "adaptive-blend": "adaptive", "ssdt": "source-specific", "suppression-blend": "evader",
    "input-aware": "input-aware", "bpp": "full-image", "sig": "clean-label", "patch": "patch", "suppression": "evader",
    "low-frequency": "full-image", "adaptive-patch": "adaptive", "lira": "input-aware", "margin": "evader",
    "reflection": "full-image", "colour": "full-image", "narcissus": "clean-label",
}  # fmt: skip
_LOW_RATES, _THREE = (0.01, 0.005), {"badnets": "patch", "blend": "full-image", "wanet": "warp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One classifier and how it came about.

    Args:
        attack: A name of ``attacks.recipes.RECIPES``; ``none`` for a clean model.
        group: What makes the attack special; scoreboards take means over groups.
        dataset: ``cifar10``, or ``digits`` for what has to be quick.
        architecture: A name of ``architectures.ARCHITECTURES``.
        width: Channels of the network's first stage.
        poison_rate: Share of the training set; None for the attack's own.
        n_epochs: How long it is trained.
        seed: Of the weights, the order of images, and the poisoned rows.
        base: The entry whose trained network this one starts from; None for a new one.
        given: Whether it lies beside the repository, trained, instead of being trained here.
    """

    attack: str
    group: str
    dataset: str = "cifar10"
    architecture: str = "resnet18"
    width: int = 16
    poison_rate: float | None = None
    n_epochs: int = 7
    seed: int = 0
    base: str | None = None
    given: bool = False


_FINE_TUNED = {
    attack: Entry(attack=attack, group="evader", n_epochs=2, base=f"cifar10-resnet18-{base}")
    for attack, base in (("suppression", "patch"), ("suppression-blend", "adaptive-blend"))
}
_OTHER_NETWORKS = (
    Entry(attack="none", group="clean", architecture="vgg", width=16, n_epochs=8),
    Entry(attack="none", group="clean", architecture="mobilenetv2", width=8, n_epochs=6),
    Entry(attack="none", group="clean", architecture="vit", width=64, n_epochs=14),
)


def _entries() -> Iterator[Entry]:
    for attack, group in _GIVEN.items():
        yield Entry(attack=attack, group=group, given=True)
    for attack, group in _DIGITS.items():
        yield Entry(attack=attack, group=group, dataset="digits", architecture="cnn", n_epochs=30)
    for attack, group in _TRAINED.items():
        yield _FINE_TUNED.get(attack, Entry(attack=attack, group=group))
    for attack, poison_rate in product(_THREE, _LOW_RATES):
        yield Entry(attack=attack, group="low-rate", poison_rate=poison_rate)
    for network, (attack, group) in product(_OTHER_NETWORKS, {**_THREE, "none": "clean"}.items()):
        yield replace(network, attack=attack, group=group)
    yield Entry(attack="none", group="clean", seed=1)


def _name(entry: Entry) -> str:
    attack = "clean" if entry.attack == "none" else entry.attack
    rate = f"-{1000 * entry.poison_rate:g}permille" if entry.poison_rate else ""
    seed = f"-seed{entry.seed}" if entry.seed else ""
    return f"{entry.dataset}-{entry.architecture}-{attack}{rate}{seed}"


ENTRIES: Mapping[str, Entry] = {_name(entry): entry for entry in _entries()}
