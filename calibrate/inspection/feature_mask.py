"""BAN's mask over the last feature map: what correct labels need, and with it what they do not.

Xu, Liu, Koffas, Yu and Picek, "BAN: Detecting Backdoors Activated by Adversarial Neuron Noise", NeurIPS 2024,
arXiv 2405.19928, after BTI-DBF (ICLR 2024). Over m in [0, 1], one for all inputs, it minimises

    mean of  CE(h(m * g(x)), y) - CE(h((1 - m) * g(x)), y)   +   lambda * R(m)
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.gradients import backward
from calibrate.inspection.ban_settings import BanSettings
from guard.errors import CalibrationError

__all__ = ["learn_mask", "mask_loss", "size_penalty"]

_TINY = 1e-12  # a mask of zeros has a size of 0, not of 0 / 0

Head = Callable[[Tensor], Tensor]
"""From features (n, ...) to logits (n, C)."""


def learn_mask(
    head: Head,
    features: Tensor,
    labels: Tensor,
    *,
    weight: float,
    settings: BanSettings,
    generator: torch.Generator,
    report: Callable[[int], None],
) -> Tensor:
    """Learn the mask by Adam from a uniform start.

    The features are those of the clean model and computed once: the gradient runs through the head alone. The mask is
    brought back to [0, 1] after every step; the released code does so before it, and may end just outside.

    Args:
        head: h.
        features: (n, ...) g(x) of clean inputs.
        labels: (n,) their classes.
        weight: Lambda.
        settings: How to learn, but for lambda.
        generator: Draws the start and the batches.
        report: Told how many steps are done.

    Returns:
        The mask, shaped as the features of one input.

    Raises:
        CalibrationError: The loss is NaN or infinite.
    """
    mask = torch.rand(features.shape[1:], generator=generator).to(features.device).requires_grad_()
    optimizer = torch.optim.Adam([mask], lr=settings.mask_learning_rate)
    for step in range(1, settings.mask_steps + 1):
        rows = torch.randint(len(features), (settings.batch_size,), generator=generator).to(features.device)
        optimizer.zero_grad()
        size = size_penalty(mask, settings.mask_penalty)
        loss = mask_loss(head, features[rows], labels[rows], mask) + weight * size
        _check_finite(loss, step, settings)
        backward(loss)
        optimizer.step()
        with torch.no_grad():
            mask.clamp_(0, 1)
        report(step)
    return mask.detach()


def _check_finite(loss: Tensor, step: int, settings: BanSettings) -> None:
    if not torch.isfinite(loss):
        raise CalibrationError(
            f"BAN's mask loss is {loss.item()} at step {step} of {settings.mask_steps}; expected a finite number: "
            "check that the model's logits on the clean data are finite"
        )


def mask_loss(head: Head, features: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Return how much better the masked features explain the labels than the rest does, negated: low is good."""
    kept, rest = (head((part * features).to(features.dtype)).float() for part in (mask, 1 - mask))
    return F.cross_entropy(kept, labels) - F.cross_entropy(rest, labels)


def size_penalty(mask: Tensor, form: Literal["log-l1", "mean"]) -> Tensor:
    """Return the mask's size; in ``log-l1`` its value is always 1 and its gradient sign(m) / norm1(m), as released."""
    norm = mask.abs().sum()
    return norm / norm.detach().clamp(min=_TINY) if form == "log-l1" else norm / mask.numel()
