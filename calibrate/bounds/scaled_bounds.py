"""Bounds per channel that descent tightens on the scale of the channel itself: mean + sd * exp(t)."""

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
    """Bounds of one site on one side: mean + sign * sd * exp(t), with t at most where it starts."""

    mean: Tensor
    reach: Tensor  # sign * sd
    start: Tensor
    t: Tensor

    @classmethod
    def of(cls, bound: FloatArray, channel: Moments, *, sign: int, device: str) -> "_Side":
        distance = sign * (bound - channel.mean)
        ratio = np.divide(distance, channel.std, out=np.ones_like(channel.std), where=channel.std > 0)
        start = _tensor(np.log(np.maximum(ratio, _LEAST_RATIO)), device)
        return cls(
            mean=_tensor(channel.mean, device),
            reach=_tensor(sign * channel.std, device),
            start=start,
            t=start.clone().requires_grad_(),
        )

    @property
    def bound(self) -> Tensor:
        return self.mean + self.reach * self.t.exp()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledBounds:
    """Upper bounds mean + sd * exp(t), and mean - sd * exp(t) below where there is a lower bound.

    An upper bound cannot fall below the channel's clean mean, so that it is never negative where activations are not. A
    step on t moves a bound by a share of its distance from the mean, whatever the scale of the activations. A channel
    that is constant on clean inputs is bounded at its constant.
    """

    above: Mapping[str, _Side]
    below: Mapping[str, _Side]

    @classmethod
    def of(cls, bounds: ActivationBounds, channels: Mapping[str, Moments], *, device: str) -> Self:
        """Start at these bounds, one per channel, given the moments of every channel over inputs and positions."""
        return cls(
            above={s: _Side.of(b, channels[s], sign=1, device=device) for s, b in bounds.upper.items()},
            below={s: _Side.of(b, channels[s], sign=-1, device=device) for s, b in bounds.lower.items()},
        )

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

    @torch.no_grad()
    def hold(self) -> None:
        """Bring back to their start the bounds that descent has loosened beyond it."""
        for side in self._sides:
            side.t.clamp_(max=side.start)

    @property
    def _sides(self) -> list[_Side]:
        return [*self.above.values(), *self.below.values()]


def _tensor(values: FloatArray, device: str) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(device)
