"""Thresholds and p-values held against brute force, and the promise itself against many calibrations."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import beta, binom

from guard.conformal import (
    certified_rank,
    exceeds,
    fit_certified_threshold,
    fit_threshold,
    highest_rate,
    p_values,
    required_for_certificate,
    required_samples,
)
from guard.errors import CalibrationError
from guard.types import Threshold

INF, NAN = np.inf, np.nan
RATES = st.integers(1, 999).map(lambda thousandths: thousandths / 1000)
FEW = st.integers(-2, 2).map(float)
"""Few values, so that many are tied."""


def one_to(n):
    """Return scores whose k-th smallest is k, in no order."""
    return np.random.default_rng(0).permutation(np.arange(1.0, n + 1))


@pytest.mark.parametrize(
    ("n", "rate", "rank"),
    [
        (1, 0.5, 1), (1, 0.9, 1), (3, 0.5, 2), (4, 0.2, 4), (9, 0.1, 9), (10, 0.1, 10), (19, 0.1, 18), (20, 0.1, 19),
        (99, 0.01, 99), (100, 0.01, 100), (198, 0.01, 198), (199, 0.01, 198), (250, 0.01, 249), (500, 0.01, 496),
        (500, 0.005, 499), (999, 0.001, 999), (1000, 0.005, 996), (2000, 0.001, 1999), (19, 0.05, 19), (99, 0.29, 71),
    ],
)  # fmt: skip
def test_the_threshold_is_the_kth_smallest_score(n, rate, rank):
    assert fit_threshold(one_to(n), target_fpr=rate) == Threshold(value=float(rank), target_fpr=rate, n=n)


@given(n=st.integers(1, 3000), rate=RATES)
def test_the_rank_is_the_formulas_in_exact_arithmetic(n, rate):
    rank = math.ceil((n + 1) * (1 - Fraction(round(rate * 1000), 1000)))
    if rank > n:
        with pytest.raises(CalibrationError):
            fit_threshold(np.arange(1.0, n + 1), target_fpr=rate)
    else:
        assert fit_threshold(np.arange(1.0, n + 1), target_fpr=rate).value == rank


@pytest.mark.parametrize(
    ("rate", "needed"), [(0.5, 1), (0.9, 1), (0.1, 9), (0.05, 19), (0.01, 99), (0.005, 199), (0.001, 999), (0.3, 3)]
)
def test_the_samples_required_are_the_published_ones(rate, needed):
    assert required_samples(rate) == needed


@given(rate=RATES)
def test_the_samples_required_are_the_fewest_that_are_enough(rate):
    n = required_samples(rate)
    assert fit_threshold(one_to(n), target_fpr=rate).value == n
    if n > 1:
        with pytest.raises(CalibrationError):
            fit_threshold(one_to(n - 1), target_fpr=rate)


def test_a_very_low_rate_is_refused_at_once():
    with pytest.raises(CalibrationError, match="takes 9999999999999999,"):
        fit_threshold(one_to(10), target_fpr=1e-16)


def test_too_few_samples_are_refused_with_the_number_missing():
    with pytest.raises(CalibrationError, match=r"60 clean scores .* of 0\.01: it takes 99, so 39 are missing"):
        fit_threshold(one_to(60), target_fpr=0.01)


@pytest.mark.parametrize("rate", [0, 1, -0.01, 1.5, NAN, INF])
def test_a_rate_that_is_no_fraction_is_refused(rate):
    with pytest.raises(CalibrationError, match="must lie between 0 and 1"):
        fit_threshold(one_to(100), target_fpr=rate)


def test_no_scores_at_all_are_too_few():
    with pytest.raises(CalibrationError, match="0 clean scores"):
        fit_threshold(np.zeros(0), target_fpr=0.5)


@pytest.mark.parametrize("bad", [INF, NAN])
def test_scores_that_are_not_finite_count_as_the_largest(bad):
    scores = np.where(np.arange(100) < 4, bad, np.arange(100.0))
    assert fit_threshold(scores, target_fpr=0.1).value == 94
    assert fit_threshold(scores, target_fpr=0.05).value == 99


@pytest.mark.parametrize("bad", [INF, NAN])
def test_a_threshold_that_would_flag_nothing_is_refused(bad):
    scores = np.where(np.arange(100) < 5, bad, np.arange(100.0))
    with pytest.raises(CalibrationError, match="5 of 100 clean scores are not finite"):
        fit_threshold(scores, target_fpr=0.05)


def test_only_scores_above_the_threshold_are_past_it_and_nan_is():
    scores = np.array([1, 2, np.nextafter(2, 3), INF, NAN, -INF])
    cut = Threshold(value=2.0, target_fpr=0.1, n=9)
    assert exceeds(scores, cut).tolist() == [False, False, True, True, True, False]


@given(
    clean=hnp.arrays(float, st.integers(1, 30), elements=FEW | st.just(INF)),
    scores=hnp.arrays(float, st.integers(1, 10), elements=FEW | st.sampled_from([INF, -INF])),
)
def test_p_values_are_the_share_of_scores_at_least_as_large(clean, scores):
    found = p_values(np.sort(clean), scores)
    expected = [(1 + sum(c >= s for c in clean)) / (len(clean) + 1) for s in scores]
    assert found.tolist() == expected


def test_the_p_value_of_nan_is_that_of_infinity():
    assert p_values(np.array([1.0, 2, 3]), np.array([NAN, INF, 3, 0])).tolist() == [0.25, 0.25, 0.5, 1]


@given(clean=hnp.arrays(float, st.integers(1, 60), elements=FEW | st.floats(-5, 5)), rate=RATES, score=FEW)
def test_a_score_is_past_the_threshold_exactly_where_its_p_value_is_at_most_the_rate(clean, rate, score):
    if len(clean) < required_samples(rate):
        return
    threshold = fit_threshold(clean, target_fpr=rate)
    scores = np.array([score, threshold.value, np.nextafter(threshold.value, INF)])
    assert (exceeds(scores, threshold) == (p_values(np.sort(clean), scores) <= rate)).all()


@given(clean=hnp.arrays(float, st.integers(2, 40), elements=FEW | st.floats(-5, 5)))
def test_a_p_value_of_an_exchangeable_score_is_at_most_a_with_probability_at_most_a(clean):
    # Each of the n + 1 scores in turn is the new one: an exact average over the orders they could have come in.
    found = np.array([p_values(np.sort(np.delete(clean, i)), clean[i : i + 1])[0] for i in range(len(clean))])
    for a in np.arange(1, len(clean) + 1) / len(clean):
        assert (found <= a).mean() <= a


@pytest.mark.parametrize(
    ("n", "rate"), [(99, 0.01), (150, 0.01), (199, 0.01), (19, 0.05), (99, 0.05), (110, 0.05), (99, 0.1), (105, 0.1)]
)
def test_calibrated_again_and_again_the_false_positive_rate_is_the_one_promised(n, rate):
    # Scores are uniform, so a threshold's own false-positive rate is 1 - value, which is Beta(n + 1 - k, k).
    repetitions = 2000
    clean = np.random.default_rng(n).random((repetitions, n))
    measured = np.array([1 - fit_threshold(scores, target_fpr=rate).value for scores in clean])
    n_above = n + 1 - math.ceil((n + 1) * (1 - Fraction(str(rate))))
    exact = n_above / (n + 1)
    four_sigma = 4 * math.sqrt(exact * (1 - exact) / (n + 2) / repetitions)
    assert exact <= rate < exact + 1 / (n + 1)
    # The next rank in either direction would move the mean by 1/(n + 1), far past this bound.
    assert four_sigma < 0.5 / (n + 1)
    assert abs(measured.mean() - exact) < four_sigma


def test_ties_only_lower_the_false_positive_rate():
    draws = np.random.default_rng(5).integers(0, 8, size=(2000, 100)).astype(float)
    flagged = [exceeds(d[99:], fit_threshold(d[:99], target_fpr=0.1))[0] for d in draws]
    assert np.mean(flagged) <= 0.1 + 4 * math.sqrt(0.1 * 0.9 / 2000)


@pytest.mark.parametrize(
    ("n", "rate", "r"),
    [
        (298, 0.01, None), (299, 0.01, 0), (500, 0.01, 1), (1000, 0.01, 4), (2000, 0.01, 12), (5000, 0.01, 38),
        (10000, 0.01, 83), (58, 0.05, None), (59, 0.05, 0), (200, 0.05, 4), (500, 0.05, 16), (1000, 0.05, 38),
        (2000, 0.05, 83), (5000, 0.05, 224), (10000, 0.05, 463), (2994, 0.001, None), (5000, 0.001, 1),
        (10000, 0.001, 4), (1, 0.95, 0), (1, 0.94, None),
    ],
)  # fmt: skip
def test_the_certified_rank_is_the_tabled_one(n, rate, r):
    assert certified_rank(n, rate) == r


@given(n=st.integers(1, 5000), rate=RATES)
@example(n=10**6, rate=0.01)
@example(n=10**6, rate=0.5)
@example(n=10**6, rate=0.999)
@example(n=10**6, rate=1e-6)
def test_the_certified_rank_is_the_largest_that_the_binomial_distribution_allows(n, rate):
    r = certified_rank(n, rate)
    assert r is None or binom.cdf(r, n, rate) <= 0.05 * (1 + 1e-7)
    assert binom.cdf(0 if r is None else r + 1, n, rate) > 0.05 * (1 - 1e-7)


@given(rate=RATES)
def test_the_samples_that_a_certificate_takes_are_the_fewest_that_are_enough(rate):
    n = required_for_certificate(rate)
    assert certified_rank(n, rate) is not None
    assert n == 1 or certified_rank(n - 1, rate) is None


@pytest.mark.parametrize(("rate", "needed"), [(0.05, 59), (0.01, 299), (0.005, 598), (0.001, 2995)])
def test_the_samples_that_a_certificate_takes_are_the_tabled_ones(rate, needed):
    assert required_for_certificate(rate) == needed


def test_the_certified_threshold_is_a_score_of_its_rank_from_above():
    assert fit_certified_threshold(one_to(1000), target_fpr=0.01) == Threshold(value=996.0, target_fpr=0.01, n=1000)
    assert fit_certified_threshold(one_to(299), target_fpr=0.01).value == 299


def test_what_cannot_be_certified_is_refused_with_the_number_missing():
    with pytest.raises(CalibrationError, match=r"certify a .* of 0\.01 with 95 % .*: it takes 299, so 199 are missing"):
        fit_certified_threshold(one_to(100), target_fpr=0.01)
    with pytest.raises(CalibrationError, match="must lie between 0 and 1"):
        fit_certified_threshold(one_to(100), target_fpr=1.0)
    with pytest.raises(CalibrationError, match="not finite"):
        fit_certified_threshold(np.full(300, INF), target_fpr=0.01)


@pytest.mark.parametrize(("n", "rate"), [(100, 0.05), (299, 0.01), (500, 0.05), (1000, 0.01)])
def test_a_certified_thresholds_own_rate_is_too_high_in_at_most_5_percent_of_draws(n, rate):
    rng, n_draws = np.random.default_rng(0), 2000
    # Of uniform scores, what lies above a threshold is a share of one minus it.
    rates = [1 - fit_certified_threshold(rng.random(n), target_fpr=rate).value for _ in range(n_draws)]
    n_above = int((np.array(rates) > rate).sum())
    assert n_above <= binom.ppf(0.999, n_draws, 0.05)
    # The chance is that of the rank: r is the largest, so that it is not far below.
    chance = binom.cdf(certified_rank(n, rate), n, rate)
    assert binom.ppf(0.001, n_draws, chance) <= n_above <= binom.ppf(0.999, n_draws, chance)


@given(n=st.integers(1, 3000), share=st.floats(0, 1), miss=st.floats(1e-6, 0.9))
def test_the_highest_rate_is_the_quantile_of_the_beta_distribution(n, share, miss):
    rank = 1 + round(share * (n - 1))
    assert highest_rate(n, rank, miss=miss) == pytest.approx(beta.ppf(1 - miss, rank, n + 1 - rank), rel=1e-6)
