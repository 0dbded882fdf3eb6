"""Switch channels off in the order of a score, as long as a few clean inputs do not notice."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.differentiable import Change, DifferentiableModel
from calibrate.sites import Site
from guard.types import FloatArray

__all__ = ["PruningRule", "Switchable", "keeping", "prune"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningRule:
    """When to stop: the first channel that changes a prediction or lifts the mean KL beyond ``max_kl`` stays."""

    max_kl: float = 0.05
    max_share: float = 0.05  # of any layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Switchable:
    """A classifier whose channels can be switched off."""

    model: DifferentiableModel
    logits: str
    sites: Sequence[Site]

    @torch.no_grad()
    def predict(self, inputs: FloatArray, at: Mapping[str, Change]) -> FloatArray:
        """Return logits (N, C) under changes, 250 inputs at a time."""
        parts = torch.split(torch.from_numpy(inputs), 250)
        return np.asarray(torch.cat([self.model(part, outputs=[self.logits], at=at)[0] for part in parts]))


def keeping(switchable: Switchable, pruned: Mapping[str, Sequence[int]]) -> dict[str, Change]:
    """Return the changes that switch these channels off, by site."""
    changes: dict[str, Change] = {}
    for site in switchable.sites:
        if pruned.get(site.tensor):
            changes[site.tensor] = _off(list(pruned[site.tensor]), site.channel_axis)
    return changes


def prune(
    switchable: Switchable, scores: Mapping[str, FloatArray], inputs: FloatArray, rule: PruningRule
) -> dict[str, list[int]]:
    """Return by site the channels that are switched off, the most suspicious first, over all sites together."""
    before = torch.from_numpy(switchable.predict(inputs, {})).log_softmax(dim=1)
    pruned: dict[str, list[int]] = {}
    for tensor, channel in _ranked(scores, rule.max_share):
        attempt = {**pruned, tensor: [*pruned.get(tensor, []), channel]}
        after = torch.from_numpy(switchable.predict(inputs, keeping(switchable, attempt))).log_softmax(dim=1)
        same = bool((after.argmax(dim=1) == before.argmax(dim=1)).all())
        if not same or float(F.kl_div(after, before, log_target=True, reduction="batchmean")) > rule.max_kl:
            break
        pruned = attempt
    return pruned


def _ranked(scores: Mapping[str, FloatArray], max_share: float) -> Iterator[tuple[str, int]]:
    left = {tensor: int(max_share * len(values)) for tensor, values in scores.items()}
    entries = [(-float(s), tensor, j) for tensor, values in scores.items() for j, s in enumerate(values)]
    for _, tensor, channel in sorted(entries):
        if left[tensor] > 0:
            left[tensor] -= 1
            yield tensor, channel


def _off(channels: list[int], axis: int) -> Change:
    def change(x: Tensor) -> Tensor:
        return x.index_fill(axis, torch.tensor(channels), 0.0)

    return change
