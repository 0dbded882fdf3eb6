"""What may be set about UNIT, and what its two profiles differ in."""

import math
from dataclasses import dataclass
from typing import Literal

from calibrate.bounds.unit_schedule import CostSchedule

__all__ = ["UnitSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSettings:
    """How UNIT learns; the defaults are the official code's, except for the profile.

    Args:
        profile: ``official-code`` keeps the bounds from before the update whose accuracy admitted them, lets the
            cost grow without end and takes every step; ``corrected`` keeps exactly the bounds that were tested,
            caps the cost at 100 and may stop early.
        granularity: One bound per ``neuron`` (K, H, W), which ties the bounds to one input size, or per ``channel``.
            Where any site has a free axis besides N, as in a model of free height and width, ``neuron`` gives way
            to ``channel`` at all sites; the settings that come with the bounds name the one used.
        steps: Updates of the bounds.
        learning_rate: Of Adam, in units of the activation: about what a bound can move in one step.
        scale_learning_rate: Multiply it, site by site, by the mean standard deviation of the site's neurons, so
            that a bound's reach does not depend on the scale of the activations.
        betas: Of Adam.
        initial_cost: Of loose bounds, against the cross-entropy.
        cost_up: Its factor after ``patience`` passes in a row.
        cost_down: Its divisor after ``patience`` fails in a row.
        patience: Steps in a row.
        max_cost: The cost grows no further; None for what the profile says.
        stop_after: In the corrected profile, stop when so many steps in a row brought no better bounds after some
            had passed: the bounds have reached what validation allows.
        deviations: The bounds start at the mean plus so many standard deviations.
        validation_fraction: The part of every class that decides which bounds pass.
        batch_size: Inputs per forward and backward pass; changes memory, not the result.
    """

    profile: Literal["corrected", "official-code"] = "corrected"
    granularity: Literal["channel", "neuron"] = "neuron"
    steps: int = 300
    learning_rate: float = 1e-3
    scale_learning_rate: bool = False
    betas: tuple[float, float] = (0.5, 0.9)
    initial_cost: float = 1e-3
    cost_up: float = 2.0
    cost_down: float = 2.0**1.5
    patience: int = 5
    max_cost: float | None = None
    stop_after: int = 50
    deviations: float = 4.0
    validation_fraction: float = 0.2
    batch_size: int = 128

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; expected at least 1")

    @property
    def schedule(self) -> CostSchedule:
        """The cost schedule."""
        cap = 1e2 if self.profile == "corrected" else math.inf
        return CostSchedule(
            initial_cost=self.initial_cost,
            cost_up=self.cost_up,
            cost_down=self.cost_down,
            patience=self.patience,
            max_cost=cap if self.max_cost is None else self.max_cost,
        )
