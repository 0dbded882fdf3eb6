"""The cost of loose bounds: the numbers that prove its schedule equal to the official code's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.bounds.unit_schedule import CostSchedule, CostState, next_cost, start_cost


def _follow(steps: str, schedule: CostSchedule | None = None) -> CostState:
    """Run the schedule through passes (p) and fails (f)."""
    schedule = schedule or CostSchedule()
    state = start_cost(schedule)
    for step in steps:
        state = next_cost(state, passed=step == "p", schedule=schedule)
    return state


@pytest.mark.parametrize(
    ("steps", "cost"),
    [
        ("", 1e-3),
        ("pppp", 1e-3),
        ("ppppp", 2e-3),
        ("ppppfpppp", 1e-3),
        ("ppppp" + "fffff", 7.0711e-4),
        ("ppppp" + "fffff" + "ppppp", 1e-3),
        ("ppppp" + "fffff" + "ppppp" + "pppp", 2e-3),
        ("ppppp" + "fffff" + "ppppf" + "pppp", 7.0711e-4),
        ("p" * 300, 1.153e15),
    ],
)
def test_the_cost_follows_passes_and_fails_as_in_the_official_code(steps, cost):
    assert _follow(steps).cost == pytest.approx(cost, rel=1e-3)


def test_the_step_that_recovers_the_cost_counts_as_the_first_pass():
    assert _follow("ppppp" + "fffff" + "ppppp") == CostState(cost=1e-3, passes=1)


@given(st.text(alphabet="pf", max_size=400))
def test_the_cost_stays_positive_and_under_its_cap(steps):
    state = _follow(steps, CostSchedule(max_cost=1e2))
    assert 0 < state.cost <= 1e2
    assert max(state.passes, state.fails, state.recoveries) < 5
