"""Where patches go.

MESA draws one place per batch. Many attacks keep their patch at one place, and a model may answer to it nowhere else,
so the `corrected` profile learns where patches work. The distribution over places that maximises

    E success + alpha * entropy

is the Gibbs distribution, proportional to exp(success / alpha): the places' own form of MESA's objective. Ours.
"""

from dataclasses import dataclass

import numpy as np

from guard.types import FloatArray, IntArray

__all__ = ["PlaceChoice", "Places", "corners_of", "draw_corners"]

_ALPHA = 0.05  # of the entropy over places
_EXPLORED = 0.25  # of a batch goes to places drawn evenly
_PRIOR_VISITS = 4
_FORGETTING = 0.1  # the least weight of a new visit: the triggers improve all the time
_MOST_PER_AXIS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """A distribution over places.

    Args:
        corners: (P, 2) rows and columns of upper left corners.
        weights: (P,) how probable each is; 1 in sum.
    """

    corners: IntArray
    weights: FloatArray


def corners_of(image: tuple[int, int], size: int, *, as_published: bool = False) -> IntArray:
    """Return the upper left corners that keep a patch inside the image.

    Args:
        image: Its height and width.
        size: The patch's side.
        as_published: Leave out the last row and column, as the official code does.

    Returns:
        (P, 2) rows and columns; 32 of each, the ends included, where there are more.
    """
    ends = [max(side - size - as_published, 0) for side in image]
    rows, columns = (np.unique(np.linspace(0, end, min(end + 1, _MOST_PER_AXIS)).round()) for end in ends)
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.int64)


def draw_corners(places: Places, n: int, rng: np.random.Generator) -> IntArray:
    """Return (n, 2) corners."""
    return places.corners[rng.choice(len(places.corners), size=n, p=places.weights / places.weights.sum())]


class PlaceChoice:
    """Places whose success is learned while triggers are trained.

    Args:
        corners: (P, 2) what there is to choose from.
        expected: (P,) the success expected before any visit.
        one_per_batch: Draw one place for all of a batch, all places alike, and learn nothing: as published.
    """

    def __init__(self, corners: IntArray, expected: FloatArray, *, one_per_batch: bool = False) -> None:
        self.corners = corners
        self._values = expected.astype(np.float64)
        self._visits = np.full(len(corners), _PRIOR_VISITS)
        self._one_per_batch = one_per_batch

    def draw(self, n: int, rng: np.random.Generator) -> IntArray:
        """Return (n,) which corners to try: mostly those that work, some drawn evenly."""
        if self._one_per_batch:
            return np.repeat(rng.integers(0, len(self.corners), size=1), n)
        chosen = rng.choice(len(self.corners), size=n, p=self.places().weights)
        anywhere = rng.integers(0, len(self.corners), size=n)
        return np.where(rng.random(n) < _EXPLORED, anywhere, chosen)

    def learn(self, chosen: IntArray, success: FloatArray) -> None:
        """Take in how well a trigger worked at each of the corners tried."""
        if self._one_per_batch:
            return
        for place, worked in zip(chosen, success, strict=True):
            self._visits[place] += 1
            self._values[place] += (worked - self._values[place]) * max(1 / self._visits[place], _FORGETTING)

    def places(self) -> Places:
        """Return the Gibbs distribution of what was learned."""
        weights = np.exp((self._values - self._values.max()) / _ALPHA)
        return Places(corners=self.corners, weights=weights / weights.sum())
