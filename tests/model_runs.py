"""What two models said of a batch, written down or drawn at random."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from guard.scores import softmax
from guard.types import Answers, ModelRun

__all__ = ["ANY", "FLOATS", "INF", "NAN", "ROUND", "answers", "logits", "run_of", "runs", "soft_answers"]

INF, NAN = np.inf, np.nan
FLOATS = (np.float16, np.float32, np.float64)
ROUND = st.integers(-3, 3).map(float)
"""Few values, so that many are tied."""
ANY = st.one_of(ROUND, st.floats(-1e4, 1e4), st.just(-INF))


def answers(rows, dtype=np.float64):
    outputs = np.asarray(rows, dtype=dtype)
    return Answers(outputs=outputs, logits=outputs.astype(np.float64))


def run_of(original, bounded, dtype=np.float64):
    return ModelRun(original=answers(original, dtype), bounded=answers(bounded, dtype))


def soft_answers(logits, dtype):
    """A model that ends in a softmax, whose logits stand beside its output."""
    logits = np.asarray(logits, dtype=np.float64)
    return Answers(outputs=softmax(logits).astype(dtype), logits=logits)


@st.composite
def logits(draw, n_rows=None, n_classes=None, elements=ANY):
    shape = (n_rows or draw(st.integers(1, 5)), n_classes or draw(st.sampled_from([2, 3, 10])))
    return draw(hnp.arrays(np.float64, shape, elements=elements))


@st.composite
def runs(draw):
    """Two models' rows, and which are corrected, and which of these excluded. Each bounded row answers something."""
    original = draw(logits())
    bounded = draw(logits(*original.shape))
    bounded[:, draw(st.integers(0, original.shape[1] - 1))] = draw(st.floats(-1e4, 1e4))
    dtype, probabilities = draw(st.sampled_from(FLOATS)), draw(st.booleans())
    original[:, 0] = np.where(np.isneginf(original.max(axis=1)), 0, original[:, 0])
    of = soft_answers if probabilities else answers
    corrected = draw(hnp.arrays(bool, len(original)))
    excluded = corrected & draw(hnp.arrays(bool, len(original)))
    return ModelRun(original=of(original, dtype), bounded=of(bounded, dtype)), corrected, excluded, probabilities
