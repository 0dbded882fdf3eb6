"""Time several things in turn within one run, so that they share the machine's moods."""

import time
from collections.abc import Callable, Mapping

import numpy as np

__all__ = ["medians_s", "silent"]


def medians_s(actions: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Return each action's median seconds over interleaved rounds, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds + 1):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - started)
    return {name: float(np.median(values[1:])) for name, values in seconds.items()}


def silent(stage: str, done: int, total: int) -> None:
    """Show no progress: what is measured is the work."""
    del stage, done, total
