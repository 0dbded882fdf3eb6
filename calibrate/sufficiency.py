"""Whether there are enough clean samples for what is asked, and what to ask for where there are not."""

import math
from dataclasses import dataclass
from fractions import Fraction

from calibrate.bounds import NEEDS, Needs
from calibrate.data import PARTS, part_sizes
from calibrate.draft import FitSettings
from calibrate.thresholds import RULES
from guard.errors import CalibrationError

__all__ = ["check_enough"]

_FEW_SHOT = "few-shot"


def check_enough(n: int, settings: FitSettings) -> None:
    """Refuse too few samples before the long work rather than after it.

    Raises:
        CalibrationError: The method or the false-positive rate takes more than n samples. The message says how many
            are missing, and how these can be used all the same where that is possible.
    """
    wanted = _Wanted.of(settings.method, settings.target_fpr, settings.rule)
    total = wanted.total()
    if n >= total:
        return
    more = " with a higher --limit" if n == settings.limit else ""
    raise CalibrationError(
        f"{n} samples are too few: {wanted.lacking(n)}, so it takes {total} in all and {total - n} are missing;"
        f" give more clean samples{more}{_or_what(n, settings)}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """The least that is wanted of a method and a false-positive rate."""

    method: str
    n_bounds: int
    target_fpr: float
    n_threshold: int

    @classmethod
    def of(cls, method: str, target_fpr: float, rule: str) -> "_Wanted":
        in_threshold_set = RULES[rule].part == "threshold"
        required = RULES[rule].required(target_fpr)
        n_bounds = NEEDS.get(method, Needs()).n_samples
        return cls(
            method=method,
            n_bounds=n_bounds if in_threshold_set else max(n_bounds, required),
            target_fpr=target_fpr,
            n_threshold=required if in_threshold_set else 1,
        )

    def fits(self, n: int) -> bool:
        n_bounds, n_threshold, n_held_out = part_sizes(n)
        return n_bounds >= self.n_bounds and n_threshold >= self.n_threshold and n_held_out >= 1

    def total(self) -> int:
        """Return the least n whose parts are large enough."""
        n = max(int(self.n_bounds / PARTS[0]), int(self.n_threshold / PARTS[1])) - 2
        while n < 1 or not self.fits(n):
            n += 1
        return n

    def lacking(self, n: int) -> str:
        """Say what n samples are too few for."""
        n_bounds, n_threshold, _ = part_sizes(n)
        lacks = []
        if n_threshold < self.n_threshold:
            lacks.append(
                f"a false-positive rate of {self.target_fpr:g} takes {self.n_threshold} in the threshold set,"
                f" {PARTS[1]:.0%} of them"
            )
        if n_bounds < self.n_bounds:
            lacks.append(f"--method {self.method} takes {self.n_bounds} in the bounds set, {PARTS[0]:.0%} of them")
        return " and ".join(lacks) or "each of the three parts takes at least one"


def _or_what(n: int, settings: FitSettings) -> str:
    """Say with which options n samples are enough, if with any; the method changes only where it must."""
    n_threshold = part_sizes(n)[1]
    lowest = _lowest_rate(n_threshold) if n_threshold else 1.0
    for method in (settings.method, _FEW_SHOT):
        for rate in (settings.target_fpr, lowest):
            if _Wanted.of(method, rate, settings.rule).fits(n) and rate < 1:
                return f", or use these with {' '.join(_options(method, rate, settings))}"
    return f"; {_Wanted.of(_FEW_SHOT, 0.5, settings.rule).total()} are the least for any method"


def _options(method: str, rate: float, settings: FitSettings) -> list[str]:
    options = [f"--target-fpr {rate:g}"] if rate != settings.target_fpr else []
    options += [f"--correct-fpr {rate:g}"] if rate > settings.correct_fpr else []
    return options + ([f"--method {method}"] if method != settings.method else [])


def _lowest_rate(n: int) -> float:
    """Return the lowest rate that n ranked scores can promise, 1 / (n + 1), rounded up to two digits."""
    rate = Fraction(1, n + 1)
    unit = Fraction(10) ** (math.floor(math.log10(rate)) - 1)
    return float(f"{float(math.ceil(rate / unit) * unit):.2g}")
