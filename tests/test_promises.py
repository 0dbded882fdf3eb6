"""What thresholds promise: quantiles that can be worked out by hand, and words."""

from dataclasses import replace

import pytest
from bundles import manifest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.promises import own_rate, promise


@pytest.mark.parametrize("n", [1, 99, 299, 2750])
def test_the_greatest_of_n_scores_is_exceeded_below_the_nth_root(n):
    assert own_rate(0, n, confidence=0.95) == pytest.approx(1 - 0.05 ** (1 / n))


def test_the_least_of_n_scores_is_exceeded_below_the_nth_root_from_above():
    assert own_rate(98, 99, confidence=0.95) == pytest.approx(0.95 ** (1 / 99))


@given(n=st.integers(2, 300), data=st.data())
def test_more_scores_past_a_threshold_mean_a_higher_rate(n, data):
    n_past = data.draw(st.integers(0, n - 2))
    assert n_past / n < own_rate(n_past, n, confidence=0.95) < own_rate(n_past + 1, n, confidence=0.95) <= 1


def test_a_promise_says_what_kind_it_is():
    cut = replace(manifest().thresholds["alert"], target_fpr=0.005)
    assert promise(cut, "rank") == "at most 0.5 % of clean inputs, on average over draws of the 200 samples"
    assert promise(cut, "certified").endswith("with 95 % confidence over draws of the 200 samples")
    assert "in name only" in promise(cut, "mmdf")
    assert promise(cut, "other") == "at most 0.5 % of clean inputs, by the rule other"
