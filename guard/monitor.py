"""Sequential evidence over a stream of verdicts: does something come in that calibration has not seen?

One flagged row in a hundred is what clean traffic does by itself; the question is when many are too many, asked again
at every row for as long as a service runs. The answer here is betting (e-processes; Ville 1939, Shafer and Vovk 2019):
a bettor who may not gain on clean rows, whatever they are, and who has gained a thousandfold, has seen other rows.

The reference is fixed: the clean scores that calibration left. Given those, p-values of clean rows are no uniform
numbers, so nothing here takes them to be. A bet is on an *event*: that a score lies past the k-th largest clean score.
How often clean rows do that is unknown, but with n clean scores it is at most the upper quantile of Beta(k, n + 1 - k)
with the confidence asked for, and bets lose money at any rate up to that bound. What is promised, for each of the three
kinds of evidence by itself (the model's, that of all its classes together, drift):

    With 95 % confidence in the calibration set: if clean rows come independently, as those of calibration did, evidence
    reaches ALARM within the first T rows after a reset with a probability of at most (1 + RESTART * T) / ALARM, for
    every T at once.

That is a thousandth at first, and a first false alarm that is on average 10^8 rows away or further. It is not promised
where one odd clean input comes again and again, nor where clean data change: drift evidence is there to tell that case.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.betting import ALARM, BLOCK, Bets
from guard.conformal import highest_rate
from guard.errors import InputError
from guard.types import BoolArray, FloatArray, IntArray, Verdict

__all__ = ["ALARM", "Monitor", "Reading", "Reference"]

_MISS = 0.05  # the chance that a calibration set is one for which the promise fails
_LADDER = 8  # from one rank to the next
_TAIL = 10  # one row in ten is in the tail, for the ladder and for drift
_FIRST, _NEXT = 3 / 4, 1 / 4  # what the largest clean score has of money and misses, and each rank of the one before
_TIMES = np.array([1.5, 3.0, 10.0, 100.0])  # how many times the bound a bet takes the rate to be, roughly
_TIMES_OF_HALVES = np.array([1.1, 1.3, 2.0])
_ONLY = np.array([0])  # the one stream of bets that are not per class


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The clean scores that new ones are compared with.

    Args:
        scores: (n,) ascending.
        predicted_class: (n,) the class of each; None in bundles that do not tell.
    """

    scores: FloatArray
    predicted_class: IntArray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a monitor knows at one moment. No evidence is past MOST.

    Args:
        n_rows: Rows since the last reset.
        triggers: Evidence that rows are past the largest clean scores more often than clean rows are.
        triggers_by_class: (C,) the same of rows that the original sends to one class, divided by C: the sum over
            classes, and so any one of them, keeps the promise.
        drift: Evidence that the middle of the scores has moved, either way. Rows in the tail, where triggered ones
            are, do not count for it.
    """

    n_rows: int
    triggers: float
    triggers_by_class: FloatArray
    drift: float

    @property
    def has_drifted(self) -> bool:
        """Whether clean data have changed, so that evidence of triggers may be of that too: calibrate again."""
        return self.drift >= ALARM

    @property
    def is_attacked(self) -> bool:
        """Whether a few rows are extreme while the others are as usual, or one class in ten or fewer draws them."""
        n_drawn, n_classes = len(self.suspected_target_classes), len(self.triggers_by_class)
        if self.has_drifted:
            return 0 < n_drawn <= n_classes / _TAIL
        return self.triggers >= ALARM or n_drawn > 0

    @property
    def suspected_target_classes(self) -> tuple[int, ...]:
        """The classes with an alarm of their own, the strongest first."""
        order = np.argsort(-self.triggers_by_class, kind="stable")
        return tuple(int(c) for c in order if self.triggers_by_class[c] >= ALARM)


class Monitor:
    """Gathers evidence of one model's verdicts in memory of a fixed size; safe to use from several threads.

    Args:
        reference: What calibration left.
        n_classes: C.

    Raises:
        InputError: The reference is empty.
    """

    def __init__(self, reference: Reference, *, n_classes: int) -> None:
        n = len(reference.scores)
        if not n:
            raise InputError("a monitor needs clean scores to compare with, and was given none; give a bundle's")
        ranks = _ladder(n)
        self._n_classes = n_classes
        self._cuts = reference.scores[n - ranks]
        self._class_cuts = _class_cuts(reference, ranks, n_classes)
        self._middle = _Middle(reference.scores)
        shares = _FIRST * _NEXT ** np.arange(len(ranks))
        # Classes of few clean scores refer to the cuts of all, which are one more event that is to be bounded.
        bounds, class_bounds = (_bounds(n, ranks, misses=shares * _MISS / split) for split in (1, n_classes + 1))
        self._bets = Bets(bounds, shares, times=_TIMES)
        self._class_bets = Bets(class_bounds, shares, times=_TIMES, n_streams=n_classes)
        self._drift_bets = Bets(self._middle.bounds, np.array([0.5, 0.5]), times=_TIMES_OF_HALVES)
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget every row."""
        with self._lock:
            self._n_rows = 0
            for bets in (self._bets, self._class_bets, self._drift_bets):
                bets.reset()
            self._rows, self._middle_rows = _Blocks(2), _Blocks(1)

    def update(self, verdict: Verdict) -> None:
        """Take in the rows of one verdict, in their order."""
        rows = np.column_stack([verdict.score, verdict.predicted_class])
        with self._lock:
            self._n_rows += len(rows)
            for block in self._rows.cut(rows):
                self._settle(block[:, 0], block[:, 1].astype(np.int64))

    def read(self) -> Reading:
        """Return the evidence so far."""
        with self._lock:
            return Reading(
                n_rows=self._n_rows,
                triggers=float(self._bets.evidence()[0]),
                triggers_by_class=self._class_bets.evidence(),
                drift=float(self._drift_bets.evidence()[0]),
            )

    def _settle(self, scores: FloatArray, classes: IntArray) -> None:
        self._bets.settle(_ONLY, _past(scores, self._cuts).sum(axis=0)[None])
        seen, place = np.unique(classes, return_inverse=True)
        counts = np.zeros((len(seen), len(self._cuts)), dtype=np.int64)
        np.add.at(counts, place, _past(scores, self._class_cuts[classes]))
        self._class_bets.settle(seen, counts)
        for sides in self._middle_rows.cut(self._middle.sides(scores)[:, None]):
            n_above = int(sides.sum())
            self._drift_bets.settle(_ONLY, np.array([[n_above, BLOCK - n_above]]))


class _Middle:
    """Tells which half of the middle a score is in, all but the tenth of clean scores that are largest.

    How often clean rows are in either half is bounded by the inequality of Dvoretzky, Kiefer and Wolfowitz with
    Massart's constant (1990), which ties among scores do not weaken.
    """

    def __init__(self, scores: FloatArray) -> None:
        n = len(scores)
        n_middle = max(n - n // _TAIL, 1)
        self._upper, self._median = scores[n_middle - 1], scores[(n_middle - 1) // 2]
        within, below = np.searchsorted(scores, [self._upper, self._median], side="right") / n
        far = np.sqrt(np.log(2 / _MISS) / (2 * n))
        above_bound = 1 - max(below - far, 0.0) / min(within + far, 1.0)
        below_bound = (below + far) / max(within - far, 1e-9)
        self.bounds = np.clip([above_bound, below_bound], 0.0, 1.0)

    def sides(self, scores: FloatArray) -> BoolArray:
        """Return for each score in the middle whether it is above the median."""
        return np.asarray(scores[scores <= self._upper] > self._median)


class _Blocks:
    """Cuts rows into blocks, and keeps the rest, fewer than BLOCK rows, for the next time."""

    def __init__(self, width: int) -> None:
        self._rest: FloatArray = np.zeros((0, width))

    def cut(self, rows: NDArray[np.generic]) -> Iterator[FloatArray]:
        """Yield the whole blocks (BLOCK, width)."""
        waiting = np.concatenate([self._rest, rows])
        whole = len(waiting) - len(waiting) % BLOCK
        self._rest = waiting[whole:].copy()
        for start in range(0, whole, BLOCK):
            yield waiting[start : start + BLOCK]


def _ladder(n: int) -> IntArray:
    """Return ranks from the largest clean score down into the tail: 1, 8, 64, ... up to a tenth of n."""
    ranks = [1]
    while ranks[-1] * _LADDER * _TAIL <= n:
        ranks.append(ranks[-1] * _LADDER)
    return np.array(ranks, dtype=np.int64)


def _bounds(n: int, ranks: IntArray, *, misses: FloatArray) -> FloatArray:
    """Return the rates at which clean rows pass the ranks at most, each but for a chance of its own."""
    return np.array([highest_rate(n, int(rank), miss=float(m)) for rank, m in zip(ranks, misses, strict=True)])


def _class_cuts(reference: Reference, ranks: IntArray, n_classes: int) -> FloatArray:
    """Return (C, E) the scores of these ranks within each class, or where these are few, among all.

    "A row is of this class and past its k-th largest score" is an event of all rows, and as bounded as the k-th largest
    score of all: any score of another class counts as lowest. With ten scores a rank, an event stays rare too when one
    class comes several times as often as in calibration.
    """
    cuts = np.tile(reference.scores[len(reference.scores) - ranks], (n_classes, 1))
    if reference.predicted_class is not None:
        for c in range(n_classes):
            own = reference.scores[reference.predicted_class == c]
            known = ranks[ranks * _TAIL <= len(own)]
            cuts[c, : len(known)] = own[len(own) - known]
    return cuts


def _past(scores: FloatArray, cuts: FloatArray) -> BoolArray:
    """Return (N, E) which scores are past which cuts; NaN is past all of them."""
    return np.asarray(~(scores[:, None] <= cuts))
