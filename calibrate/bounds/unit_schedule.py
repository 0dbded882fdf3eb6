"""UNIT's cost of loose bounds, raised while validation passes and lowered while it fails."""

import math
from dataclasses import dataclass, replace

__all__ = ["CostSchedule", "CostState", "next_cost", "start_cost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostSchedule:
    """When and how the cost moves.

    Args:
        initial_cost: Where it starts, and where it returns to after a recovery.
        cost_up: The factor after ``patience`` passes in a row.
        cost_down: The divisor after ``patience`` fails in a row.
        patience: Steps in a row that move the cost.
        max_cost: It never grows beyond. Without a cap it reaches 1e15 in 300 passes, from where one failing
            streak needs half the steps to bring it back to where the cross-entropy counts.
    """

    initial_cost: float = 1e-3
    cost_up: float = 2.0
    cost_down: float = 2.0**1.5
    patience: int = 5
    max_cost: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class CostState:
    """The cost and how many steps in a row have passed, failed, or passed below the initial cost."""

    cost: float
    passes: int = 0
    fails: int = 0
    recoveries: int = 0


def start_cost(schedule: CostSchedule) -> CostState:
    """Return the state before the first step."""
    return CostState(cost=schedule.initial_cost)


def next_cost(state: CostState, *, passed: bool, schedule: CostSchedule) -> CostState:
    """Return the state after a step that passed or failed validation."""
    state = _recover(state, passed=passed, schedule=schedule)
    state = replace(state, passes=(state.passes + 1) * passed, fails=(state.fails + 1) * (not passed))
    if state.passes == schedule.patience:
        return replace(state, cost=min(state.cost * schedule.cost_up, schedule.max_cost), passes=0)
    if state.fails == schedule.patience:
        return replace(state, cost=state.cost / schedule.cost_down, fails=0)
    return state


def _recover(state: CostState, *, passed: bool, schedule: CostSchedule) -> CostState:
    """Count passes below the initial cost; enough of them bring the cost back, and the step counts as the first."""
    if not passed or state.cost >= schedule.initial_cost:
        return replace(state, recoveries=0)
    if state.recoveries + 1 == schedule.patience:
        return start_cost(schedule)
    return replace(state, recoveries=state.recoveries + 1)
