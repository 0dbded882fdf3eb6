"""Find where in the image a patch could reach the target class.

Neural Cleanse (Wang et al., IEEE S&P 2019) looks for the smallest mask m and a pattern that send all images to a class:

    min over m, pattern of  cross-entropy((1 - m) * x + m * pattern)  +  cost * sum of m

The cost follows the success, as there. We only use where the mask lies; MESA recovers what goes there.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from calibrate.gradients import backward
from calibrate.inspection.victim import Pixels, Victim
from guard.types import FloatArray, IntArray

__all__ = ["Location", "expected_success", "locate"]

_LEARNING_RATE = 0.1
_BETAS = (0.5, 0.9)
_START = -2.0  # of the mask, before the sigmoid: nearly transparent
_COST = 1e-2  # of one pixel of mask, to begin with
_FACTOR = 1.1  # by which the cost follows
_WANTED = 0.9  # success above which the mask has to shrink
_TINY = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where a patch could reach the target class.

    Args:
        mask: (H, W) from 0 to 1.
        stopped: Why the search ended early; empty where it did not.
    """

    mask: FloatArray
    stopped: str


def locate(
    victim: Victim,
    pixels: Pixels,
    *,
    iterations: int,
    batch_size: int,
    rng: np.random.Generator,
    progress: Callable[[int, int], None],
) -> Location:
    """Look for the smallest mask; it stays as it was before the first step whose loss is NaN or infinite.

    Args:
        victim: What is to be fooled.
        pixels: The images to fool it on.
        iterations: Steps.
        batch_size: Images per step.
        rng: Draws the images.
        progress: Told the steps done, and of how many.
    """
    channels, height, width = pixels.images.shape[1:]
    low, high = victim.place(pixels.low), victim.place(pixels.high)
    mask = torch.full((1, height, width), _START, device=victim.device, requires_grad=True)
    pattern = torch.zeros(channels, height, width, device=victim.device, requires_grad=True)
    optimizer = torch.optim.Adam([mask, pattern], lr=_LEARNING_RATE, betas=_BETAS)
    cost, stopped = _COST, ""
    for iteration in range(1, iterations + 1):
        images = victim.place(pixels.draw(batch_size, rng))
        opacity, painted = mask.sigmoid(), low + pattern.sigmoid() * (high - low)
        probability = victim.probabilities(images + opacity * (painted - images))
        loss = -(probability + _TINY).log().mean() + cost * opacity.sum()
        optimizer.zero_grad()
        backward(loss)
        norm = torch.nn.utils.get_total_norm(p.grad for p in (mask, pattern) if p.grad is not None)
        if not torch.isfinite(loss + norm):
            stopped = f"the loss of the place or its gradient was NaN or infinite at iteration {iteration}"
            break
        optimizer.step()
        cost *= _FACTOR if float(probability.detach().mean()) > _WANTED else 1 / _FACTOR
        progress(iteration, iterations)
    return Location(mask=np.asarray(mask.detach().sigmoid()[0].cpu().numpy()), stopped=stopped)


def expected_success(mask: FloatArray, corners: IntArray, size: int) -> FloatArray:
    """Return (P,) from 0 to 1 how much of the mask a patch at each corner covers, the best as 1."""
    sums = np.pad(mask.astype(np.float64), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    top, left = corners.T
    covered = sums[top + size, left + size] - sums[top, left + size] - sums[top + size, left] + sums[top, left]
    return np.asarray(covered / max(covered.max(), _TINY))
