"""Wilson's interval against what is known of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.proportions import Proportion


def test_the_interval_is_wilsons():
    assert Proportion(count=81, n=263).interval() == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I


def test_certain_outcomes_still_leave_doubt():
    assert Proportion(count=10, n=10).interval() == pytest.approx((0.7225, 1), abs=1e-4)
    assert Proportion(count=0, n=10).interval() == pytest.approx((0, 0.2775), abs=1e-4)


def test_nothing_tried_says_nothing():
    assert Proportion(count=0, n=0).share == 0
    assert Proportion(count=0, n=0).interval() == (0.0, 1.0)


@given(n=st.integers(1, 5000), data=st.data())
def test_the_interval_holds_the_share_and_stays_in_range(n, data):
    outcome = Proportion(count=data.draw(st.integers(0, n)), n=n)
    low, high = outcome.interval()
    assert 0 <= low <= outcome.share + 1e-12
    assert outcome.share - 1e-12 <= high <= 1
