"""Bets against events being rarer than a bound: fair at the bound, so that a gain is evidence (e-processes).

A bettor who starts with one coin, and whose bets do not gain on average whatever came before, ever owns A coins with a
probability of at most 1 / A (Ville 1939). One who is given a little more at every row keeps that promise but for what
he was given: within T rows (1 + RESTART * T) / A, and A is reached after (A - 1) / RESTART rows or more on average. It
is a Shiryaev-Roberts procedure (Shin, Ramdas and Rinaldo 2024: an e-detector) that starts with something in hand.
"""

import numpy as np
from numpy.typing import NDArray

from guard.types import FloatArray, IntArray

__all__ = ["ALARM", "BLOCK", "MOST", "RESTART", "Bets"]

ALARM = 1000.0
"""Evidence from which on there is an alarm: the bettor's gain, and one over the chance of a false alarm."""

RESTART = 1e-5
"""What the bettor is given anew per row, so that a long quiet time does not use up what he bets on a later attack."""

BLOCK = 16
"""Rows that are settled together: evidence is as of the last whole block, however rows were batched."""

MOST = 1e5
"""Where evidence ends, so that it falls again within thousands of clean rows once an attack is over."""


class Bets:
    """Bettors on E events in S streams: one for each stream, event and rate, every one with a purse of his own.

    A row multiplies a purse by (1 - (1 - u)^r) / u where the event happened and by (1 - u)^(r - 1) where not: fair at
    the bound u, a loss on average below it, best where the event's rate is 1 - (1 - u)^r, about r times the bound.

    Args:
        bounds: (E,) the highest rates of the events on clean rows, in (0, 1].
        shares: (E,) of the money, at most 1 together.
        times: The rates r, each with an equal share.
        n_streams: S, with equal shares too.
    """

    def __init__(self, bounds: FloatArray, shares: FloatArray, *, times: FloatArray, n_streams: int = 1) -> None:
        u = bounds[:, None]
        self._if_so, self._if_not = (1 - (1 - u) ** times) / u, (1 - u) ** (times - 1)
        self._if_never = self._if_not**BLOCK
        self._shares = shares / len(times) / n_streams
        self._purses = np.ones((n_streams, *self._if_so.shape))

    def reset(self) -> None:
        """Give every bettor one coin again."""
        self._purses[:] = 1

    def settle(self, streams: IntArray, counts: NDArray[np.integer]) -> None:
        """Pay for one block of every stream.

        Args:
            streams: (s,) those in which an event happened; others may be among them, and none twice.
            counts: (s, E) in how many of the block's rows each event happened there.
        """
        self._purses += RESTART * BLOCK
        n = counts[:, :, None]
        paid = self._purses[streams] * self._if_so**n * self._if_not ** (BLOCK - n)
        self._purses *= self._if_never
        self._purses[streams] = np.minimum(paid, MOST * len(self._purses))

    def evidence(self) -> FloatArray:
        """Return (S,) what the bettors of each stream own, by their shares; MOST or less."""
        return np.asarray(self._purses.sum(axis=2) @ self._shares)
