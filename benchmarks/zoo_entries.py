"""The classifiers of the zoo, in the order in which they are trained."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = ["ENTRIES", "Entry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One classifier and how it came about.

    Args:
        attack: A name of ``attacks.catalogue.ATTACKS``; ``none`` for a clean model.
        group: What makes the attack special; scoreboards take means over groups.
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
    architecture: str = "resnet18"
    width: int = 16
    poison_rate: float | None = None
    n_epochs: int = 7
    seed: int = 0
    base: str | None = None
    given: bool = False


def _entries() -> Iterator[Entry]:
    for attack, group in (("badnets", "patch"), ("wanet", "warp"), ("blend", "blend"), ("all2all", "all-to-all"),
                          ("tact", "source-specific"), ("none", "clean")):  # fmt: skip
        yield Entry(attack=attack, group=group, given=True)
    for attack, group in (("adaptive-blend", "adaptive"), ("bpp", "full-image"), ("sig", "clean-label"),
                          ("low-frequency", "full-image"), ("patch", "patch"), ("adaptive-patch", "adaptive"),
                          ("margin", "evader"), ("reflection", "blend"), ("colour", "full-image")):  # fmt: skip
        yield Entry(attack=attack, group=group)
    for attack, group in (("badnets", "low-rate"), ("blend", "low-rate"), ("wanet", "low-rate")):
        for poison_rate in (0.01, 0.005):
            yield Entry(attack=attack, group=group, poison_rate=poison_rate)
    yield Entry(attack="none", group="clean", seed=1)


def _name(entry: Entry) -> str:
    attack = "clean" if entry.attack == "none" else entry.attack
    rate = f"-{1000 * entry.poison_rate:g}permille" if entry.poison_rate else ""
    return f"cifar10-{entry.architecture}-{attack}{rate}" + (f"-seed{entry.seed}" if entry.seed else "")


ENTRIES: Mapping[str, Entry] = {_name(entry): entry for entry in _entries()}
