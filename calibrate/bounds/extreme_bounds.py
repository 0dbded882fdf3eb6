"""Bounds per channel that descent moves in units of how far the channel's extremes spread on clean inputs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from calibrate.statistics import Moments

__all__ = ["ExtremeBounds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """Bounds on one side: mean + spread * exp(t), with the spread negative for those from below."""

    mean: Tensor
    spread: Tensor
    t: Tensor

    @classmethod
    def of(cls, moments: Moments, *, sign: int, deviations: float, device: str) -> Self:
        mean, spread = (torch.from_numpy(v.astype(np.float32)).to(device) for v in (moments.mean, sign * moments.std))
        return cls(mean=mean, spread=spread, t=torch.full_like(mean, math.log(deviations)).requires_grad_())

    @property
    def bound(self) -> Tensor:
        return self.mean + self.spread * self.t.exp()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtremeBounds:
    """Upper bounds mean + sd * exp(t) of the maxima over positions; lower ones, of the minima, where any are negative.

    A step on t moves a bound by a share of its distance from the mean, whatever the scale of the activations, and no
    upper bound falls below the mean of the maxima: of activations that are never negative it is not either. A channel
    whose maximum is the same on all clean inputs is bounded there.

    Args:
        above: Upper bounds by site tensor.
        below: Lower ones.
    """

    above: Mapping[str, _Side]
    below: Mapping[str, _Side]

    @classmethod
    def of(
        cls, maxima: Mapping[str, Moments], minima: Mapping[str, Moments], *, deviations: float, device: str
    ) -> Self:
        """Start so many standard deviations beyond the mean of the extremes."""
        negative = {site: m for site, m in minima.items() if (m.mean < 0).any()}
        above, below = (
            {site: _Side.of(m, sign=sign, deviations=deviations, device=device) for site, m in side.items()}
            for sign, side in ((1, maxima), (-1, negative))
        )
        return cls(above=above, below=below)

    @property
    def parameters(self) -> list[Tensor]:
        """Everything that takes gradients."""
        return [side.t for side in (*self.above.values(), *self.below.values())]

    @property
    def upper(self) -> dict[str, Tensor]:
        """The upper bounds, differentiable."""
        return {site: side.bound for site, side in self.above.items()}

    @property
    def lower(self) -> dict[str, Tensor]:
        """The lower bounds, differentiable."""
        return {site: side.bound for site, side in self.below.items()}

    @property
    def penalty(self) -> Tensor:
        """The sum over sites, and sides, of the mean of exp(t): how many deviations the bounds leave."""
        return torch.stack([t.exp().mean() for t in self.parameters]).sum()
