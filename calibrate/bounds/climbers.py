"""Synthetic inputs that climb to a large margin, and climb on as the bounds move that they climb under."""

from dataclasses import dataclass

import torch
from torch import Tensor

from calibrate.bounds.maximum_margin import InputRange, Logits, ascend_by_sign

__all__ = ["Climbers", "Start", "climb", "renew_climbers", "start_climbers"]

_AT_A_TIME = 100  # so that memory stays flat


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What climbers start with.

    Args:
        clean: (N, ...) clean inputs.
        within: The range of inputs.
        n_classes: C.
        generator: Of all that is drawn, on the host.
    """

    clean: Tensor
    within: InputRange
    n_classes: int
    generator: torch.Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Climbers:
    """Inputs (M, ...) in units of the input range, longest climbing first, and the class (M,) that each climbs to."""

    units: Tensor
    classes: Tensor

    def drawn(self, n: int, generator: torch.Generator) -> "Climbers":
        """Draw n of them, with replacement."""
        rows = _rows(len(self.units), n, generator, self.units.device)
        return Climbers(units=self.units[rows], classes=self.classes[rows])


def start_climbers(start: Start, n: int) -> Climbers:
    """Start n climbers towards classes drawn at random, half from noise and half from clean inputs."""
    device, generator = start.clean.device, start.generator
    noise = torch.rand((n // 2, *start.clean.shape[1:]), generator=generator).to(device)
    clean = start.clean[_rows(len(start.clean), n - n // 2, generator, device)]
    classes = torch.randint(start.n_classes, (n,), generator=generator).to(device)
    return Climbers(units=torch.cat([noise, start.within.units_of(clean)]), classes=classes)


def renew_climbers(start: Start, climbers: Climbers, n: int) -> Climbers:
    """Replace the quarter of n that has climbed longest, so that other starts and classes have their turn, and fill up.

    Fewer than n are there where some were dropped.
    """
    kept = slice(n // 4, None)
    fresh = start_climbers(start, n - len(climbers.units[kept]))
    return Climbers(
        units=torch.cat([climbers.units[kept], fresh.units]),
        classes=torch.cat([climbers.classes[kept], fresh.classes]),
    )


def climb(logits: Logits, climbers: Climbers, within: InputRange, *, steps: int, step: float) -> Climbers:
    """Take steps of one length along each coordinate, to a larger margin; drop those whose gradient is not finite."""
    if not len(climbers.units):
        return climbers
    parts = zip(torch.split(climbers.units, _AT_A_TIME), torch.split(climbers.classes, _AT_A_TIME), strict=True)
    units = torch.cat(
        [ascend_by_sign(logits, part, classes, within, steps=steps, step=step) for part, classes in parts]
    )
    is_number = units.isfinite().flatten(1).all(1)
    return Climbers(units=units[is_number], classes=climbers.classes[is_number])


def _rows(n: int, size: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randint(n, (size,), generator=generator).to(device)
