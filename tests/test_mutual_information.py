"""MINE against what is known in closed form."""

import math

import numpy as np
import pytest
import torch

from calibrate.inspection.mutual_information import MutualInformation, StatisticsNetwork


def estimated(correlation: float, *, steps: int = 800, n: int = 256) -> float:
    """Return MINE's estimate for two Gaussians of this correlation, averaged over fresh draws."""
    rng = np.random.default_rng(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = StatisticsNetwork(1, 1, 64)
    information = MutualInformation(network, learning_rate=2e-3, betas=(0.5, 0.999), ema_rate=0.01)

    def draw(n: int) -> list[torch.Tensor]:
        first, second, other = rng.standard_normal((3, n, 1)).astype(np.float32)
        joined = correlation * first + math.sqrt(1 - correlation**2) * second
        return [torch.from_numpy(values) for values in (first, joined, other)]

    for _ in range(steps):
        information.update(*draw(n))
    with torch.no_grad():
        return float(information.estimate(*draw(20_000)))


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_the_estimate_on_gaussians_agrees_with_the_closed_form(correlation):
    assert estimated(correlation) == pytest.approx(-0.5 * math.log(1 - correlation**2), abs=0.06)


def test_the_gradient_divides_by_a_running_mean_of_the_exponentials():
    """Its bias is that of E exp S of one batch; the published code follows it at a rate of .001."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = StatisticsNetwork(1, 1, 8)
    information = MutualInformation(network, learning_rate=0.0, betas=(0.5, 0.999), ema_rate=0.001)
    first, (noise, values, other) = torch.randn(2, 3, 64, 1, generator=torch.Generator().manual_seed(0))
    information.update(*first)
    information.update(noise, values, other)
    found = [p.grad.clone() for p in network.parameters()]
    before, now = (network(other, values).exp().mean() for _, values, other in (first, (noise, values, other)))
    running = (before + 0.001 * (now - before)).detach()
    gain = network(noise, values).mean() - now / running
    for gradient, expected in zip(found, torch.autograd.grad(-gain, list(network.parameters())), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_the_estimate_gives_values_a_gradient_towards_more_information():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = StatisticsNetwork(1, 1, 32)
    information = MutualInformation(network, learning_rate=1e-2, betas=(0.5, 0.999), ema_rate=0.01)
    noise, other = torch.randn(2, 128, 1, generator=torch.Generator().manual_seed(1))
    gain = torch.tensor(0.1, requires_grad=True)
    for _ in range(100):
        information.update(noise, (gain * noise + 0.1).detach(), other)
    (slope,) = torch.autograd.grad(information.estimate(noise, gain * noise + 0.1, other), gain)
    assert slope > 0
