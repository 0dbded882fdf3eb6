"""How triggers are put on images, family by family, differentiably.

Patches are MESA's (Qiao, Yang and Li, NeurIPS 2019, arXiv 1910.04749). Full-image blends and smooth warps are our
extension: they use the transformations of the attacks of the same names (Chen et al., arXiv 1712.05526; WaNet, Nguyen
and Tran, ICLR 2021).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["FAMILIES", "Family", "TriggerKind", "from_unit", "put_on", "trigger_shape"]

Family = Literal["blend", "patch", "warp"]
FAMILIES: tuple[Family, ...] = ("patch", "blend", "warp")

_WARP_AXES = 2  # a displacement has a horizontal and a vertical part


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerKind:
    """What all triggers of one generator have in common.

    Args:
        family: ``patch`` overwrites a square at any place; ``blend`` mixes a pattern into the whole image; ``warp``
            moves pixels along a smooth field.
        size: The patch's side in pixels; the largest side of the pattern, which is stretched over larger images; the
            side of the grid of displacements.
        strength: The pattern's share of the mixture; the largest displacement as a share of the image's side; 1 for
            patches.
    """

    family: Family
    size: int
    strength: float = 1.0

    def __str__(self) -> str:
        if self.family == "patch":
            return f"patch {self.size}x{self.size}"
        return f"{self.family} {self.strength:g}"


def trigger_shape(kind: TriggerKind, image: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape of one trigger for images (K, H, W)."""
    channels, height, width = image
    if kind.family == "warp":
        return _WARP_AXES, kind.size, kind.size
    if kind.family == "blend":
        return channels, min(kind.size, height), min(kind.size, width)
    return channels, kind.size, kind.size


def from_unit(kind: TriggerKind, unit: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Map values from [0, 1] to a trigger's own: pixels between low and high (K, 1, 1), or displacements."""
    if kind.family == "warp":
        return (2 * unit - 1) * kind.strength
    return low + unit * (high - low)


def put_on(kind: TriggerKind, images: Tensor, triggers: Tensor, places: Tensor) -> Tensor:
    """Return images that carry triggers, one each.

    Args:
        kind: How.
        images: (N, K, H, W).
        triggers: (N, ...) as trigger_shape says.
        places: (N, 2) the corners of patches; other families cover the whole image and ignore them.
    """
    if kind.family == "patch":
        return _overwritten(images, triggers, places)
    if kind.family == "blend":
        return images + kind.strength * (_stretched(triggers, images, mode="bilinear") - images)
    return _warped(images, triggers)


def _overwritten(images: Tensor, triggers: Tensor, places: Tensor) -> Tensor:
    n, channels, size, _ = triggers.shape
    side = torch.arange(size, device=images.device)
    rows = (places[:, :1] + side)[:, None, :, None]
    columns = (places[:, 1:] + side)[:, None, None, :]
    each = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return images.index_put((each, channel, rows, columns), triggers)


def _stretched(values: Tensor, images: Tensor, *, mode: str) -> Tensor:
    if values.shape[2:] == images.shape[2:]:
        return values
    return F.interpolate(values, size=images.shape[2:], mode=mode, align_corners=True)


def _warped(images: Tensor, displacements: Tensor) -> Tensor:
    n, _, height, width = images.shape
    # Displacements are shares of a side; torch counts a side as 2.
    field = 2 * _stretched(displacements, images, mode="bicubic").permute(0, 2, 3, 1)
    rows = torch.linspace(-1, 1, height, device=images.device)
    columns = torch.linspace(-1, 1, width, device=images.device)
    still = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).expand(n, -1, -1, -1)
    return F.grid_sample(images, still + field, mode="bilinear", padding_mode="border", align_corners=True)
