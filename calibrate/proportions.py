"""A share of counted trials, and how well the count determines it."""

import math
from dataclasses import dataclass
from statistics import NormalDist

__all__ = ["Proportion"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proportion:
    """How many of n independent trials succeeded.

    Args:
        count: The successes.
        n: The trials.
    """

    count: int
    n: int

    @property
    def share(self) -> float:
        """The fraction of successes; 0 without trials."""
        return self.count / self.n if self.n else 0.0

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return Wilson's score interval (1927) of the share; all of [0, 1] without trials."""
        if not self.n:
            return 0.0, 1.0
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        scale = 1 + z * z / self.n
        centre = (self.share + z * z / (2 * self.n)) / scale
        reach = z / scale * math.sqrt(self.share * (1 - self.share) / self.n + (z / (2 * self.n)) ** 2)
        return max(0.0, centre - reach), min(1.0, centre + reach)
