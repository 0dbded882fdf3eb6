"""What may be set about MESA, and what its two profiles differ in."""

from dataclasses import dataclass
from typing import Literal, Self

from calibrate.inspection.trigger_families import TriggerKind

__all__ = ["MesaSettings"]

_SIDE = 32  # of the images that MESA was published on
_PATTERN_SIDE = 32
_FIELD_SIDE = 4  # of WaNet's grid of displacements


@dataclass(frozen=True, slots=True, kw_only=True)
class MesaSettings:
    """How triggers are recovered.

    Args:
        profile: ``official-code`` puts one batch's patches at one place, never on the last row or column, counts images
            of the target class in the loss, takes every iteration and trains every level; ``corrected`` draws a place
            per image, uses the last row and column, leaves those images out, keeps smoothed triggers within the
            images' range, stops early, and tries no level above one that is missed.
        kinds: What triggers to look for; None for one kind per family, sized by the image: patches of 3 pixels per
            32 of the image's shorter side and at least 3, blends of 0.05, warps of up to 1/32 of the side.
        betas: The staircase: the levels of success, each of a generator of its own.
        alpha: The weight of the entropy.
        n_noise: Numbers of noise per trigger.
        width: Of the hidden layers of generator and statistics network.
        iterations: At most so many steps per generator.
        batch_size: Images per step.
        learning_rate: Of Adam, for both networks.
        adam_betas: Of Adam.
        ema_rate: See MutualInformation.
        smoothing: The standard deviation of the noise on a trigger, in shares of its range.
        max_images: Use at most so many images.
        measured_share: The part of these on which success is measured; the rest is fitted on.
        bank_size: Triggers sampled from each generator.
    """

    profile: Literal["corrected", "official-code"] = "corrected"
    kinds: tuple[TriggerKind, ...] | None = None
    betas: tuple[float, ...] = (0.9, 0.8, 0.5)
    alpha: float = 0.1
    n_noise: int = 64
    width: int = 512
    iterations: int = 300
    batch_size: int = 64
    learning_rate: float = 5e-4
    adam_betas: tuple[float, float] = (0.5, 0.999)
    ema_rate: float = 0.01
    smoothing: float = 0.1
    max_images: int = 1500
    measured_share: float = 0.3
    bank_size: int = 256

    @classmethod
    def official_code(cls) -> Self:
        """Return the constants of the official code: 10 epochs of floor(8000 / 128) steps, 3x3 patches.

        Of 10,000 images 8000 are fitted on, and 2000 measure.
        """
        return cls(
            profile="official-code",
            kinds=(TriggerKind(family="patch", size=3),),
            iterations=10 * (8000 // 128),
            batch_size=128,
            learning_rate=2e-4,
            ema_rate=0.001,
            max_images=10_000,
            measured_share=0.2,
        )

    def kinds_for(self, height: int, width: int) -> tuple[TriggerKind, ...]:
        """Return the kinds to look for in images of this size."""
        if self.kinds is not None:
            return self.kinds
        side = max(3, round(3 * min(height, width) / _SIDE))
        return (
            TriggerKind(family="patch", size=side),
            TriggerKind(family="blend", size=_PATTERN_SIDE, strength=0.05),
            TriggerKind(family="warp", size=_FIELD_SIDE, strength=1 / 32),
        )
