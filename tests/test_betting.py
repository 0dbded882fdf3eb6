"""Bets are fair at their bound, lose below it, and pay for what happens too often."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from guard.betting import ALARM, BLOCK, MOST, RESTART, Bets

ONE = np.array([0])
TIMES = np.array([1.2, 1.5])  # so small that no purse reaches MOST in one block


def bets(bound=0.1, **options):
    return Bets(np.array([bound]), np.array([1.0]), times=TIMES, **options)


def settled(found, *counts):
    for count in counts:
        found.settle(ONE, np.array([[count]]))
    return found.evidence()


def expected_evidence(rate, *, bound):
    """Return what one coin is worth on average after one block of events at this rate."""
    chances = binom.pmf(np.arange(BLOCK + 1), BLOCK, rate)
    return sum(chance * settled(bets(bound), n)[0] for n, chance in enumerate(chances))


@pytest.mark.parametrize("bound", [0.001, 0.1, 0.6])
def test_a_bet_is_fair_at_the_bound(bound):
    assert expected_evidence(bound, bound=bound) == pytest.approx(1 + RESTART * BLOCK)


@given(bound=st.floats(0.001, 0.9), share=st.floats(0.001, 0.99))
def test_a_bet_loses_on_average_below_the_bound(bound, share):
    assert expected_evidence(share * bound, bound=bound) <= 1 + RESTART * BLOCK + 1e-9


def test_a_bet_gains_on_average_well_above_the_bound():
    assert expected_evidence(0.3, bound=0.1) > 1.5


def test_evidence_ends_at_the_most_and_falls_below_an_alarm_again():
    found = bets()
    assert settled(found, *[BLOCK] * 50).tolist() == [MOST]
    assert settled(found, *[0] * 300)[0] < ALARM < MOST


def test_what_is_given_anew_keeps_a_purse_from_emptying():
    found = bets()
    settled(found, *[0] * 10_000)
    quiet = found.evidence()[0]
    assert 0 < quiet == settled(found, *[0] * 1000)[0] < 1


def test_streams_share_the_evidence_and_do_not_touch_each_other():
    found = bets(n_streams=4)
    found.settle(np.array([2]), np.array([[BLOCK]]))
    evidence = found.evidence()
    assert evidence[2] == pytest.approx(settled(bets(), BLOCK)[0] / 4)
    assert evidence[[0, 1, 3]].tolist() == [settled(bets(), 0)[0] / 4] * 3


def test_an_event_that_may_always_happen_proves_nothing():
    assert settled(bets(1.0), *[BLOCK] * 20)[0] <= 1 + RESTART * BLOCK * 20 + 1e-9


def test_a_reset_gives_one_coin_again():
    found = bets()
    settled(found, BLOCK)
    found.reset()
    assert found.evidence().tolist() == [1.0]
