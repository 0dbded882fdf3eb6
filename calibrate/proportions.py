"""A share of counted trials, and how well the count determines it."""

import math
from dataclasses import dataclass
from statistics import NormalDist

__all__ = ["Proportion", "wilson_interval"]


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
        """Return Wilson's interval of the share; all of [0, 1] without trials."""
        return wilson_interval(self.share, self.n, confidence) if self.n else (0.0, 1.0)


def wilson_interval(share: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a share of n trials (Wilson 1927), within [0, 1]."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    reach = z / scale * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return max(0.0, centre - reach), min(1.0, centre + reach)
