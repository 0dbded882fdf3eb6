"""Train one generator of triggers at one level of the staircase (MESA, arXiv 1910.04749).

    min over G of  E_z max(0, beta - F(G(z)))  -  alpha * I_hat(G(z); z)

F is the softmax probability of the target class on images that carry the trigger; the hinge is taken per image, as in
the official code, where it reads -mean(min(p, beta)): the same up to a constant.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calibrate.gradients import backward
from calibrate.inspection.mesa_settings import MesaSettings
from calibrate.inspection.mutual_information import MutualInformation, StatisticsNetwork
from calibrate.inspection.trigger_families import TriggerKind, from_unit, put_on, trigger_shape
from calibrate.inspection.trigger_generators import TriggerGenerator
from calibrate.inspection.trigger_places import PlaceChoice, Places
from calibrate.inspection.victim import Pixels, Victim
from guard.types import FloatArray, IntArray

__all__ = ["Synthesis", "mean_pairwise_distance", "synthesise"]

_CHECK_EVERY = 25  # iterations over which the success is averaged
_REACHED = 0.97  # of the level
_GROWTH = 1.03  # of the diversity between checks, below which it has settled
_N_COMPARED = 128  # triggers whose distances are taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthesis:
    """What training one generator gave.

    Args:
        bank: (n, ...) triggers sampled from it, in the images' own units.
        places: Where they go.
        diversity: The mean pairwise L2 distance of its triggers, whose values are taken to [0, 1] for that.
        iterations: Steps taken.
        stopped: Why it ended.
    """

    bank: FloatArray
    places: Places
    diversity: float
    iterations: int
    stopped: str


class _Trainer:
    """One generator in training, its statistics network, and the choice of places."""

    def __init__(
        self, victim: Victim, pixels: Pixels, kind: TriggerKind, places: PlaceChoice, *, beta: float,
        settings: MesaSettings, rng: np.random.Generator,
    ) -> None:  # fmt: skip
        self._victim, self._pixels, self._kind, self._places = victim, pixels, kind, places
        self._beta, self._settings, self._rng = beta, settings, rng
        channels, height, width = pixels.images.shape[1:]
        self._shape = trigger_shape(kind, (channels, height, width))
        self._low, self._high = victim.place(pixels.low), victim.place(pixels.high)
        sizes = (settings.n_noise, int(np.prod(self._shape)), settings.width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            self._generator = TriggerGenerator(*sizes).to(victim.device)
            statistics = StatisticsNetwork(*sizes).to(victim.device)
        rate, betas = settings.learning_rate, settings.adam_betas
        self._optimizer = torch.optim.Adam(self._generator.parameters(), lr=rate, betas=betas)
        self._information = MutualInformation(statistics, learning_rate=rate, betas=betas, ema_rate=settings.ema_rate)

    def step(self) -> float:
        """Take one step; return the mean of min(p, beta), or NaN where loss or gradient is none: then no step."""
        images = self._victim.place(self._pixels.draw(self._settings.batch_size, self._rng))
        noise, other = self._noise(len(images)), self._noise(len(images))
        values = self._generator(noise)
        self._information.update(noise, values.detach(), other)
        chosen = self._places.draw(len(images), self._rng)
        success = self._success(images, values, chosen)
        loss = -success.mean() - self._settings.alpha * self._information.estimate(noise, values, other)
        self._optimizer.zero_grad()
        backward(loss)
        norm = torch.nn.utils.get_total_norm(p.grad for p in self._generator.parameters() if p.grad is not None)
        if not torch.isfinite(loss + norm):
            return float("nan")
        self._optimizer.step()
        self._places.learn(chosen, success.detach().cpu().numpy())
        return float(success.detach().mean())

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Return n triggers (n, n_values) in [0, 1]."""
        self._generator.eval()
        values: Tensor = self._generator(self._noise(n))
        self._generator.train()
        return values

    def in_units(self, values: Tensor) -> FloatArray:
        """Return triggers (n, ...) in the images' own units."""
        return np.asarray(self._as_triggers(values).cpu().numpy())

    def _success(self, images: Tensor, values: Tensor, chosen: IntArray) -> Tensor:
        """Return (N,) min(p, beta) for images with these triggers at the chosen places."""
        smoothed = values + self._settings.smoothing * self._victim.place(self._rng.standard_normal(values.shape))
        if self._settings.profile != "official-code":
            smoothed = smoothed.clamp(0, 1)
        corners = torch.from_numpy(self._places.corners[chosen]).to(images.device)
        triggered = put_on(self._kind, images, self._as_triggers(smoothed), corners)
        return self._victim.probabilities(triggered).clamp(max=self._beta)

    def _as_triggers(self, values: Tensor) -> Tensor:
        return from_unit(self._kind, values.reshape(len(values), *self._shape), self._low, self._high)

    def _noise(self, n: int) -> Tensor:
        return self._victim.place(self._rng.random((n, self._settings.n_noise)))


def synthesise(
    victim: Victim,
    pixels: Pixels,
    kind: TriggerKind,
    places: PlaceChoice,
    *,
    beta: float,
    settings: MesaSettings,
    rng: np.random.Generator,
    progress: Callable[[int, int], None],
) -> Synthesis:
    """Train one generator and sample its bank.

    Args:
        victim: What is to be fooled.
        pixels: The images to fool it on.
        kind: How triggers are put on.
        places: Where; it learns.
        beta: The level of success.
        settings: How to train.
        rng: Draws everything.
        progress: Told the steps done, and of how many.
    """
    trainer = _Trainer(victim, pixels, kind, places, beta=beta, settings=settings, rng=rng)
    iterations, stopped = _train(trainer, beta, settings, progress)
    bank = trainer.sample(settings.bank_size)
    return Synthesis(
        bank=trainer.in_units(bank),
        places=places.places(),
        diversity=mean_pairwise_distance(bank[:_N_COMPARED]),
        iterations=iterations,
        stopped=stopped,
    )


def mean_pairwise_distance(values: Tensor) -> float:
    """Return the mean L2 distance between two different rows of (n, values)."""
    return float(torch.nn.functional.pdist(values.float()).mean())


def _train(
    trainer: _Trainer, beta: float, settings: MesaSettings, progress: Callable[[int, int], None]
) -> tuple[int, str]:
    """Return the steps taken and why they ended."""
    recent: deque[float] = deque(maxlen=_CHECK_EVERY)
    diversity = 0.0
    for iteration in range(1, settings.iterations + 1):
        success = trainer.step()
        if np.isnan(success):
            return iteration - 1, f"the loss or its gradient was NaN or infinite at iteration {iteration}"
        recent.append(success)
        progress(iteration, settings.iterations)
        if settings.profile == "official-code" or iteration % _CHECK_EVERY:
            continue
        before, diversity = diversity, mean_pairwise_distance(trainer.sample(_N_COMPARED))
        if np.mean(recent) >= _REACHED * beta and diversity <= _GROWTH * before:
            progress(settings.iterations, settings.iterations)
            return iteration, "level reached, diversity settled"
    return settings.iterations, "every iteration taken"
