"""Whether there are enough clean samples for what is asked, and what to ask for where there are not."""

import itertools
from dataclasses import dataclass, replace

from calibrate.bounds import NEEDS, Needs
from calibrate.data import PARTS, part_sizes
from calibrate.draft import FitSettings
from calibrate.inspection.mesa import LEAST_SAMPLES
from calibrate.thresholds import RULES, Rule
from guard.errors import CalibrationError

__all__ = ["check_enough"]

_FEW_SHOT = "few-shot"
_RATES = tuple(float(f"{digits}e-{places}") for places in range(7, 1, -1) for digits in range(10, 100))  # to two digits


def check_enough(n: int, settings: FitSettings) -> None:
    """Refuse too few samples before the long work rather than after it.

    Raises:
        CalibrationError: The method, the false-positive rate or the estimate asked for takes more than n samples. The
            message says how many are missing, and how these can be used all the same where that is possible.
    """
    wanted = _Wanted(settings=settings)
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
    """The least that is wanted of each part by a method, a false-positive rate and an estimate."""

    settings: FitSettings

    @property
    def for_method(self) -> int:
        return NEEDS.get(self.settings.method, Needs()).of_bounds_set(self.settings.max_accuracy_drop)

    @property
    def for_rate(self) -> int:
        return RULES[self.settings.rule].required(self.settings.target_fpr)

    @property
    def for_estimate(self) -> int:
        return LEAST_SAMPLES if self.settings.estimate_tpr else 0

    @property
    def rate_is_for_bounds_set(self) -> bool:
        return RULES[self.settings.rule].part != "threshold"

    @property
    def least(self) -> tuple[int, int, int]:
        """How many samples each part takes at least."""
        in_bounds = self.for_rate if self.rate_is_for_bounds_set else 1
        in_threshold = 1 if self.rate_is_for_bounds_set else self.for_rate
        return max(self.for_method, self.for_estimate, in_bounds), in_threshold, 1

    def fits(self, n: int) -> bool:
        return all(size >= least for size, least in zip(part_sizes(n), self.least, strict=True))

    def total(self) -> int:
        """Return the least n whose parts are large enough."""
        n_bounds, n_threshold, _ = self.least
        n = max(int(n_bounds / PARTS[0]), int(n_threshold / PARTS[1])) - 2
        while n < 1 or not self.fits(n):
            n += 1
        return n

    def lacking(self, n: int) -> str:
        """Say what n samples are too few for."""
        n_bounds, n_threshold, _ = part_sizes(n)
        lacks = []
        if n_threshold < self.least[1]:
            lacks.append(
                f"a false-positive rate of {self.settings.target_fpr:g} takes {self.for_rate} in the threshold set,"
                f" {PARTS[1]:.0%} of them"
            )
        lacks += [
            f"{what} takes {needed} in the bounds set, {PARTS[0]:.0%} of them"
            for what, needed in ((self._method(), self.for_method), ("--estimate-tpr", self.for_estimate))
            if n_bounds < needed
        ]
        return " and ".join(lacks) or "each of the three parts takes at least one"

    def _method(self) -> str:
        settings, needs = self.settings, NEEDS.get(self.settings.method, Needs())
        drop = f" at --max-accuracy-drop {settings.max_accuracy_drop:g}" if needs.measured_share else ""
        return f"--method {settings.method}{drop}"


def _or_what(n: int, settings: FitSettings) -> str:
    """Say with which options n samples are enough, if with any; the method changes only where it must."""
    n_threshold = part_sizes(n)[1]
    lowest = _lowest_rate(n_threshold, RULES[settings.rule])
    estimates = dict.fromkeys((settings.estimate_tpr, False))
    methods = dict.fromkeys((settings.method, _FEW_SHOT))
    for estimate, method, rate in itertools.product(estimates, methods, (settings.target_fpr, lowest)):
        changed = replace(settings, estimate_tpr=estimate, method=method, target_fpr=rate)
        if rate < 1 and _Wanted(settings=changed).fits(n):
            return f", or use these {' and '.join(_changes(changed, settings))}"
    least = replace(settings, method=_FEW_SHOT, target_fpr=0.5, estimate_tpr=False)
    return f"; {_Wanted(settings=least).total()} are the least for any method"


def _changes(changed: FitSettings, settings: FitSettings) -> list[str]:
    rate = changed.target_fpr
    options = [f"--target-fpr {rate:g}"] if rate != settings.target_fpr else []
    options += [f"--correct-fpr {rate:g}"] if rate > settings.correct_fpr else []
    options += [f"--method {changed.method}"] if changed.method != settings.method else []
    without = ["without --estimate-tpr"] if changed.estimate_tpr != settings.estimate_tpr else []
    return ([f"with {' '.join(options)}"] if options else []) + without


def _lowest_rate(n: int, rule: Rule) -> float:
    """Return the lowest rate, to two digits, that n scores of clean inputs allow; 1 where they allow none."""
    return next((rate for rate in _RATES if rule.required(rate) <= n), 1.0)
