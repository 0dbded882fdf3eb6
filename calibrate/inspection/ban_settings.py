"""What may be set about BAN, and where each default comes from."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["BanSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BanSettings:
    """How BAN looks for a backdoor.

    "README" is that of the official code (GitHub xiaoyunxxy/ban at 8a0f918), "code" its scripts; both where they agree.

    Args:
        seeds: Repetitions, each with a mask and a noise of its own. Ours; the paper runs one.
        noise: The largest relative change of a neuron's scale and shift, eps. README and code: 0.3.
        noise_steps: Sign-gradient steps of size noise / noise_steps. README: 30 (code: 1).
        project: Keep the noise within ``noise``, as the paper defines it (Eq. 4). The released code does not: a random
            start and the steps together reach twice ``noise``.
        mask_weight: Lambda, the weight of the mask's size; None for ln C, the cross-entropy of guessing: keeping every
            feature then costs as much as knowing nothing. Ours; README: 0.75 (code: 0.25) for ``log-l1``, at which a
            clean model's votes gather too.
        mask_penalty: ``mean`` is lambda times the mean of the mask (ours); ``log-l1`` has the released code's gradient,
            lambda / norm1(m) per entry, which grows as the mask shrinks and may empty it.
        mask_steps: Adam steps. Code: 20 epochs of 20 batches (README: ``--print-every 20``).
        mask_learning_rate: Of Adam. README and code: 0.01.
        batch_size: Inputs per step of either search. Code: 128.
        n_fitting: How many clean inputs the searches of one seed see. Code: 500, 1 % of CIFAR-10's training set.
        n_votes: How many clean inputs vote at most, those fitted on among them. Code: 5000, 10 % of it.
    """

    seeds: int = 5
    noise: float = 0.3
    noise_steps: int = 30
    project: bool = True
    mask_weight: float | None = None
    mask_penalty: Literal["log-l1", "mean"] = "mean"
    mask_steps: int = 400
    mask_learning_rate: float = 0.01
    batch_size: int = 128
    n_fitting: int = 500
    n_votes: int = 5000
