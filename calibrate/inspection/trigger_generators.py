"""The network that makes triggers of noise (MESA's official code, arXiv 1910.04749)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TriggerGenerator"]

_N_LAYERS = 4
_SLOPE = 0.2


class TriggerGenerator(nn.Module):
    """Four linear layers, each of which also sees its quarter of the noise; BatchNorm and LeakyReLU in between.

    Args:
        n_noise: Numbers of noise per trigger, a multiple of 4.
        n_values: Numbers per trigger.
        width: Of the hidden layers.
    """

    def __init__(self, n_noise: int, n_values: int, width: int) -> None:
        super().__init__()
        quarter = n_noise // _N_LAYERS
        inner = [nn.Linear(width + quarter, width) for _ in range(_N_LAYERS - 2)]
        self._layers = nn.ModuleList([nn.Linear(quarter, width), *inner, nn.Linear(width + quarter, n_values)])
        self._norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(_N_LAYERS - 1))

    def forward(self, noise: Tensor) -> Tensor:
        """Return (N, n_values) in [0, 1] of noise (N, n_noise)."""
        quarters = noise.chunk(_N_LAYERS, dim=1)
        hidden = quarters[0]
        for layer, norm, quarter in zip(self._layers, self._norms, quarters[1:], strict=False):
            hidden = torch.cat([F.leaky_relu(norm(layer(hidden)), _SLOPE), quarter], dim=1)
        return torch.sigmoid(self._layers[-1](hidden))
