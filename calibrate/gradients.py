"""Gradients, or in one line why there are none."""

import torch
from torch import Tensor

from guard.errors import CalibrationError

__all__ = ["NoGradientError", "backward", "gradient", "in_one_line"]

_REASON_LENGTH = 300  # what torch says can run to pages


class NoGradientError(CalibrationError):
    """A model has no gradient, or none that can be computed here; the caller knows what needs none."""


def backward(loss: Tensor) -> None:
    """Add a loss's gradients to those of what it was computed from.

    Raises:
        NoGradientError: It depends on nothing that takes gradients, or torch cannot compute them.
    """
    _check(loss)
    try:
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    except RuntimeError as error:
        raise NoGradientError(f"the gradient cannot be computed: {in_one_line(error)}") from error


def gradient(value: Tensor, of: Tensor) -> Tensor:
    """Return the gradient of a value in what it was computed from (raises as backward does)."""
    _check(value)
    try:
        return torch.autograd.grad(value, of)[0]
    except RuntimeError as error:
        raise NoGradientError(f"the gradient cannot be computed: {in_one_line(error)}") from error


def _check(value: Tensor) -> None:
    if not value.requires_grad:
        raise NoGradientError(
            "no gradient gets through the model: an operator without one, such as a comparison or ArgMax, lies on"
            " every way to its logits"
        )


def in_one_line(error: Exception) -> str:
    """Return what an error says, cut to a length, without a full stop."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return reason[:_REASON_LENGTH].rstrip(".")
