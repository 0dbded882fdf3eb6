"""Adversarial noise on the neurons of a classifier: each channel's scale times 1 + delta, its shift times 1 + xi.

BAN (Xu et al., NeurIPS 2024, arXiv 2405.19928) puts it on BatchNorm's gamma and beta. In training mode a channel has
mean beta and centred part gamma * x_hat, so that for any channel z of a model into which BatchNorm was folded the same
noise reads (ours; exact for BatchNorm):

    z' = (1 + delta) * s * (z - mean(z)) / std(z) + (1 + xi) * mu       mu, s: mean and standard deviation of clean z

mean(z) and std(z) are those of the batch under noise while the noise is sought, and their running average afterwards,
as in a network that stays in training mode. A LayerNorm takes the noise on its own scale and shift.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.differentiable import Change
from calibrate.inspection.noise_places import Place

__all__ = ["ChannelMoments", "NeuronNoise", "Reference"]

_MOMENTUM = 0.1  # torch's BatchNorm
_EPSILON = 1e-7  # of the mean variance of a place: channels that never change stay finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a place does on clean inputs: per channel, or shaped as a LayerNorm's scale.

    Args:
        scale: s, the standard deviation; the scale itself at a normalisation.
        shift: mu, the mean; the shift itself at a normalisation.
    """

    scale: Tensor
    shift: Tensor


class NeuronNoise:
    """Noise on all places of a model, and the running statistics that go with it.

    Args:
        places: Where.
        references: By tensor name, what the places do on clean inputs.
        size: The largest absolute value of delta and xi at the start.
        batch_statistics: Whether to standardise with the batch's statistics, which takes batches of some size.
        generator: Draws the start.
    """

    def __init__(
        self,
        places: Sequence[Place],
        references: Mapping[str, Reference],
        *,
        size: float,
        batch_statistics: bool,
        generator: torch.Generator,
    ) -> None:
        self._places = {place.tensor: place for place in places}
        self._references = references
        self._batch_statistics = batch_statistics
        self._running = {t: (r.shift.clone(), r.scale.square()) for t, r in references.items()}
        self.deltas = {t: _uniform(r.scale, size, generator) for t, r in references.items()}
        self.xis = {t: _uniform(r.shift, size, generator) for t, r in references.items()}

    @property
    def parameters(self) -> list[Tensor]:
        """Every delta and xi."""
        return [*self.deltas.values(), *self.xis.values()]

    def changes(self, *, training: bool) -> dict[str, Change]:
        """Return what to put on the graph's tensors; in training, batch statistics are used and kept."""
        return {tensor: self._change(place, training=training) for tensor, place in self._places.items()}

    @torch.no_grad()
    def ascend(self, step: float, *, limit: float | None) -> None:
        """Take a step along the sign of the gradients, within the limit if there is one, and drop the gradients."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.add_(step * parameter.grad.sign())
                parameter.grad = None
            if limit is not None:
                parameter.clamp_(-limit, limit)

    def _change(self, place: Place, *, training: bool) -> Change:
        reference, delta, xi = self._references[place.tensor], self.deltas[place.tensor], self.xis[place.tensor]
        if place.kind == "LayerNorm":
            return lambda z: (z + delta * (z - reference.shift) + xi * reference.shift).to(z.dtype)
        mean, variance = self._running[place.tensor]
        use_batch = training and self._batch_statistics
        epsilon = _EPSILON * float(reference.scale.square().mean()) or _EPSILON

        def change(z: Tensor) -> Tensor:
            channels_first = z.movedim(place.channel_axis, 1)
            noisy = F.batch_norm(
                channels_first.float() if z.dtype == torch.float64 else channels_first,
                mean,
                variance,
                (1 + delta) * reference.scale,
                (1 + xi) * reference.shift,
                training=use_batch,
                momentum=_MOMENTUM,
                eps=epsilon,
            )
            return noisy.movedim(1, place.channel_axis).to(z.dtype)

        return change


def _uniform(like: Tensor, size: float, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(like.shape, generator=generator) * 2 * size - size
    return drawn.to(like.device).requires_grad_()


class ChannelMoments:
    """Collects what a place does on clean inputs, batch by batch."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._n = 0
        self._sum = self._squares = torch.zeros(())
        self._n_axes = 0

    def record(self, z: Tensor, *, kept: float = 1.0) -> Tensor:
        """Take in the first rows of a batch, this share of them, and hand it on: copies fill a batch of fixed N up."""
        self._n_axes = z.dim()
        if self._place.kind == "pre-activations":
            inputs = z[: round(len(z) * kept)]
            values = inputs.movedim(self._place.channel_axis, 1).transpose(0, 1).flatten(1)
            variance, mean = torch.var_mean(values.float(), dim=1, correction=0)
            n = values.shape[1]
            self._n += n
            self._sum = self._sum + n * mean.double()
            self._squares = self._squares + n * (variance.double() + mean.double().square())
        return z

    def reference(self, constants: Mapping[str, Tensor]) -> Reference:
        """Return scale and shift, measured or read from the normalisation's own constants."""
        place = self._place
        if place.kind == "pre-activations":
            mean = self._sum / self._n
            variance = (self._squares / self._n - mean.square()).clamp(min=0)
            return Reference(scale=variance.sqrt().float(), shift=mean.float())
        scale = constants[place.scale].float()
        shift = constants[place.shift].float() if place.shift else torch.zeros_like(scale)
        if place.kind == "BatchNorm":
            return Reference(scale=scale.abs(), shift=shift)
        if place.channel_axis == 1:
            scale, shift = (value.view(-1, *(1,) * (self._n_axes - 2)) for value in (scale, shift))
        return Reference(scale=scale, shift=shift)
