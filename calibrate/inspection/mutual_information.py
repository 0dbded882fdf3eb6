"""How much a trigger tells of the noise it was made from: MINE (Belghazi et al., ICML 2018, arXiv 1801.04062).

    I_hat(Z; T) = E_joint S(z, t) - log E_independent exp S(z', t)

S is a network trained to make I_hat large. MESA (arXiv 1910.04749) uses it for the entropy of a generator's output:
the output is a function of the noise, so that I(G(z); z) is its entropy.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MutualInformation", "StatisticsNetwork"]

_SLOPE = 0.2
_TINY = 1e-8  # under the logarithm, as in MESA's official code


class StatisticsNetwork(nn.Module):
    """S(z, t): three linear layers with LeakyReLU after each, as in MESA's official code."""

    def __init__(self, n_noise: int, n_values: int, width: int) -> None:
        super().__init__()
        self._of_noise = nn.Linear(n_noise, width, bias=False)
        self._of_values = nn.Linear(n_values, width)
        self._hidden = nn.Linear(width, width)
        self._last = nn.Linear(width, 1)

    def forward(self, noise: Tensor, values: Tensor) -> Tensor:
        """Return (N,) the statistic of noise (N, n_noise) and values (N, n_values)."""
        hidden = F.leaky_relu(self._of_noise(noise) + self._of_values(values), _SLOPE)
        hidden = F.leaky_relu(self._hidden(hidden), _SLOPE)
        return F.leaky_relu(self._last(hidden), _SLOPE).squeeze(1)


class MutualInformation:
    """An estimate that is trained along.

    Args:
        network: S, trained by ``update``.
        learning_rate: Of Adam.
        betas: Of Adam.
        ema_rate: How fast the running mean of E exp S follows; it corrects the gradient's bias (MINE, section 3.2).
    """

    def __init__(
        self, network: StatisticsNetwork, *, learning_rate: float, betas: tuple[float, float], ema_rate: float
    ) -> None:
        self._network = network
        self._optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, betas=betas)
        self._ema_rate = ema_rate
        self._mean: Tensor | None = None

    def estimate(self, noise: Tensor, values: Tensor, other_noise: Tensor) -> Tensor:
        """Return I_hat in nats, with its gradient in the values.

        Args:
            noise: (N, n_noise) what the values were made from.
            values: (N, n_values).
            other_noise: (N, n_noise) drawn independently of the values.
        """
        joint, independent = self._network(noise, values), self._network(other_noise, values)
        information: Tensor = joint.mean() - (independent.exp().mean() + _TINY).log()
        return information

    def update(self, noise: Tensor, values: Tensor, other_noise: Tensor) -> None:
        """Take one step of S towards a larger I_hat, by the gradient whose bias is corrected."""
        joint, independent = self._network(noise, values), self._network(other_noise, values)
        mean_exp = independent.exp().mean()
        current = mean_exp.detach()
        self._mean = current if self._mean is None else self._mean + self._ema_rate * (current - self._mean)
        gain = joint.mean() - (mean_exp + _TINY).log() * current / self._mean
        self._optimizer.zero_grad()
        (-gain).backward()
        self._optimizer.step()
