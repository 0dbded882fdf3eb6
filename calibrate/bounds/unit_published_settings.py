"""What may be set about UNIT as published."""

from dataclasses import dataclass
from typing import Literal

from calibrate.bounds.unit_schedule import CostSchedule

__all__ = ["PublishedUnitSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedUnitSettings:
    """How UNIT learns; the defaults are the official code's.

    Args:
        granularity: One bound per ``neuron`` (K, H, W), which ties the bounds to one input size, or per ``channel``.
            Where any site has a free axis besides N, as in a model of free height and width, ``neuron`` gives way
            to ``channel`` at all sites; the settings that come with the bounds name the one used.
        steps: Updates of the bounds.
        learning_rate: Of Adam, in units of the activation: about what a bound can move in one step.
        betas: Of Adam.
        initial_cost: Of loose bounds, against the cross-entropy.
        cost_up: Its factor after ``patience`` passes in a row.
        cost_down: Its divisor after ``patience`` fails in a row.
        patience: Steps in a row.
        deviations: The bounds start at the mean plus so many standard deviations.
        validation_fraction: The part of the inputs, spread over the classes, that decides which bounds pass.
        batch_size: Inputs per forward and backward pass; changes memory, not the result.
    """

    granularity: Literal["channel", "neuron"] = "neuron"
    steps: int = 300
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.9)
    initial_cost: float = 1e-3
    cost_up: float = 2.0
    cost_down: float = 2.0**1.5
    patience: int = 5
    deviations: float = 4.0
    validation_fraction: float = 0.2
    batch_size: int = 128

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; expected at least 1")

    @property
    def schedule(self) -> CostSchedule:
        """The cost schedule."""
        return CostSchedule(
            initial_cost=self.initial_cost,
            cost_up=self.cost_up,
            cost_down=self.cost_down,
            patience=self.patience,
        )
