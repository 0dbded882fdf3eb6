"""Bounds per channel that descent moves on the channel's own scale: mean + scale * exp(t), and minus from below."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from calibrate.sites import ActivationBounds
from calibrate.statistics import Moments
from guard.types import FloatArray

__all__ = ["ScaledBounds"]

_LEAST_RATIO = 1e-3  # of a bound's distance from the mean, in standard deviations


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """Bounds of one site on one side: mean + scale * exp(t), with the scale negative for those from below."""

    mean: Tensor
    scale: Tensor
    start: Tensor
    t: Tensor

    @classmethod
    def beyond(cls, moments: Moments, *, sign: int, deviations: float, device: str) -> Self:
        """Start so many standard deviations beyond the mean."""
        start = np.full_like(moments.mean, math.log(deviations))
        return cls._of(moments.mean, sign * moments.std, start, device)

    @classmethod
    def at(cls, bound: FloatArray, moments: Moments, *, sign: int, device: str) -> Self:
        """Start at a bound; of a channel that is constant the bound's distance from it is the scale."""
        distance = sign * (bound - moments.mean)
        scale = np.where(moments.std > 0, moments.std, np.maximum(distance, 0))
        ratio = np.divide(distance, scale, out=np.ones_like(scale), where=scale > 0)
        return cls._of(moments.mean, sign * scale, np.log(np.maximum(ratio, _LEAST_RATIO)), device)

    @classmethod
    def _of(cls, mean: FloatArray, scale: FloatArray, start: FloatArray, device: str) -> Self:
        mean_, scale_, start_ = (torch.from_numpy(v.astype(np.float32)).to(device) for v in (mean, scale, start))
        return cls(mean=mean_, scale=scale_, start=start_, t=start_.clone().requires_grad_())

    @property
    def bound(self) -> Tensor:
        return self.mean + self.scale * self.t.exp()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledBounds:
    """Upper bounds mean + scale * exp(t), and mean - scale * exp(t) below where there is a lower bound.

    A step on t moves a bound by a share of its distance from the mean, whatever the scale of the activations, and no
    upper bound falls below the mean: of activations that are never negative it is not either.

    Args:
        above: Upper bounds by site tensor.
        below: Lower ones.
    """

    above: Mapping[str, _Side]
    below: Mapping[str, _Side]

    @classmethod
    def beyond(
        cls, maxima: Mapping[str, Moments], minima: Mapping[str, Moments], *, deviations: float, device: str
    ) -> Self:
        """Start so many standard deviations beyond the mean of the extremes; below only where any are negative.

        A channel whose extreme is the same on all clean inputs is bounded there.
        """
        negative = {site: m for site, m in minima.items() if (m.mean < 0).any()}
        above, below = (
            {site: _Side.beyond(m, sign=sign, deviations=deviations, device=device) for site, m in side.items()}
            for sign, side in ((1, maxima), (-1, negative))
        )
        return cls(above=above, below=below)

    @classmethod
    def at(cls, bounds: ActivationBounds, channels: Mapping[str, Moments], *, device: str) -> Self:
        """Start at these bounds, one per channel, given the moments of every channel over inputs and positions."""
        above, below = (
            {site: _Side.at(bound, channels[site], sign=sign, device=device) for site, bound in side.items()}
            for sign, side in ((1, bounds.upper), (-1, bounds.lower))
        )
        return cls(above=above, below=below)

    @property
    def parameters(self) -> list[Tensor]:
        """Everything that takes gradients."""
        return [side.t for side in self._sides]

    @property
    def upper(self) -> dict[str, Tensor]:
        """The upper bounds, differentiable."""
        return {site: side.bound for site, side in self.above.items()}

    @property
    def lower(self) -> dict[str, Tensor]:
        """The lower bounds of the sites that have any, differentiable."""
        return {site: side.bound for site, side in self.below.items()}

    @property
    def penalty(self) -> Tensor:
        """The sum over sites, and sides, of the mean of exp(t): how many scales the bounds leave."""
        return torch.stack([t.exp().mean() for t in self.parameters]).sum()

    @torch.no_grad()
    def hold(self) -> None:
        """Bring back to their start the bounds that descent has loosened beyond it."""
        for side in self._sides:
            side.t.clamp_(max=side.start)

    @property
    def _sides(self) -> list[_Side]:
        return [*self.above.values(), *self.below.values()]
