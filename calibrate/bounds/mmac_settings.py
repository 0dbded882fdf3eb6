"""What may be set about MMAC: the published form, and ours."""

from dataclasses import dataclass

from calibrate.evaluation import CONFIDENCE

__all__ = ["MmacSettings", "PublishedMmacSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedMmacSettings:
    """How the official code learns; every default is its own.

    Args:
        epochs: Passes over the clean inputs.
        batch_size: Clean inputs per step, and synthetic ones: the sum of margins grows with it.
        learning_rate: Of Adam, in units of the activation.
        initial_bound: Where every bound starts.
        images_per_class: Synthetic inputs per class.
        ascent_steps: From noise to a large margin.
        ascent_learning_rate: Of these steps, in units of the input range.
        refresh_every: Epochs after which synthetic inputs are made anew.
        initial_cost: Of the sum of margins.
        cost_factor: The cost is multiplied by it after an epoch of high enough training accuracy, else divided.
        keep_accuracy: What is high enough, on inputs that the original gets right.
        first_check: The first epoch, from 0, after which the cost moves.
        check_every: Epochs between such checks.
    """

    epochs: int = 300
    batch_size: int = 200
    learning_rate: float = 0.1
    initial_bound: float = 1.0
    images_per_class: int = 50
    ascent_steps: int = 300
    ascent_learning_rate: float = 1e-2
    refresh_every: int = 100
    initial_cost: float = 0.002
    cost_factor: float = 1.2
    keep_accuracy: float = 0.95
    first_check: int = 40
    check_every: int = 10

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; expected at least 1")

    def checks_at(self, epoch: int) -> bool:
        """Say whether the cost moves after this epoch, counted from 0."""
        return epoch >= self.first_check and (epoch - self.first_check) % self.check_every == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MmacSettings:
    """How our form of MMAC learns.

    Args:
        steps: Updates of the bounds.
        batch_size: Clean inputs per step.
        learning_rate: Of Adam, on the logarithm of the bounds' distance from the mean.
        n_synthetic: Inputs that maximise a margin, over all classes.
        synthetic_batch_size: How many of them go into a step.
        first_ascent_steps: From their start to a large margin.
        ascent_steps: To follow the bounds, every time that these are checked.
        ascent_step: Its length along each coordinate, in units of the input range.
        check_every: Steps between two checks, each of which climbs again, validates and moves the cost.
        stop_after: Stop when so many checks in a row brought no better bounds.
        initial_cost: Of a margin that exceeds a clean one by as much again.
        cost_factor: The cost is multiplied by it after a check that passed, else divided.
        max_cost: It grows no further.
        validation_fraction: The part of the inputs, spread over the classes, that decides which bounds pass and is not
            learned from.
        confidence: With which the accuracy drop is within all that is allowed, one-sided.
    """

    steps: int = 160
    batch_size: int = 100
    learning_rate: float = 0.1
    n_synthetic: int = 100
    synthetic_batch_size: int = 33
    first_ascent_steps: int = 30
    ascent_steps: int = 6
    ascent_step: float = 0.05
    check_every: int = 10
    stop_after: int = 5
    initial_cost: float = 0.1
    cost_factor: float = 1.5
    max_cost: float = 10.0
    validation_fraction: float = 0.5
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        if self.steps < self.check_every:
            raise ValueError(f"steps is {self.steps}; expected at least one check, {self.check_every}")
