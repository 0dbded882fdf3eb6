"""How many rows pass until the evidence of a monitor is an alarm, on the scores that the scoreboard has measured.

``python -m benchmarks.sequential`` prints the table of docs/alerting.md. It needs the cells of ``make scoreboard``.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.board.cell import Cell, load_cell
from guard.monitor import ALARM, Monitor, Reference
from guard.types import FloatArray, Verdict

CELLS = Path("out/scoreboard")
N_SPLITS, N_CLEAN_SCORES = 20, 1000
N_QUIET, N_ATTACKED, STEP = 20_000, 12_000, 160
SHARES = (0.01, 0.02, 0.05)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What one split of the clean scores came to.

    Args:
        is_false: Whether an alarm, of triggers or of drift, was raised on clean rows.
        delay: Attacked rows until evidence of triggers was an alarm; infinite where it never was.
    """

    is_false: bool
    delay: float


def main() -> None:
    """Print the table."""
    print("| attack | flagged at 1 % | " + " | ".join(f"{share:.0%}" for share in SHARES) + " | false alarms |")
    print("|---|---|" + "---|" * len(SHARES) + "---|")
    for place in sorted(CELLS.glob("cifar10-resnet18-*--auto-2000.json")):
        cell = load_cell(place.with_suffix(""))
        if cell is not None and len(cell.triggered_scores):
            print(_row(place.name.split("--")[0].removeprefix("cifar10-resnet18-"), cell), flush=True)


def _row(attack: str, cell: Cell) -> str:
    tpr = float((cell.triggered_scores > np.quantile(cell.clean_scores, 0.99)).mean())
    found = {share: [watch(cell, share, seed) for seed in range(N_SPLITS)] for share in SHARES}
    delays = (_told([one.delay for one in watches]) for watches in found.values())
    n_false = sum(one.is_false for one in found[SHARES[0]])
    return f"| {attack} | {tpr:.0%} | {' | '.join(delays)} | {n_false} of {N_SPLITS} |"


def _told(delays: list[float]) -> str:
    median, late = np.quantile(delays, (0.5, 0.9), method="higher")
    return ", ".join(f"{n:,.0f}" if np.isfinite(n) else f"over {N_ATTACKED:,}" for n in (median, late))


def watch(cell: Cell, share: float, seed: int) -> Watch:
    """Draw clean scores to refer to, stream rows of the others, and attack after a while."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(cell.clean_scores)
    monitor = Monitor(Reference(scores=np.sort(order[:N_CLEAN_SCORES])), n_classes=2)
    others, is_false = order[N_CLEAN_SCORES:], False
    for _ in range(0, N_QUIET, STEP):
        monitor.update(_verdict(rng.choice(others, STEP)))
        reading = monitor.read()
        is_false |= max(reading.triggers, reading.drift) >= ALARM
    for n_attacked in range(STEP, N_ATTACKED + 1, STEP):
        attacked = rng.random(STEP) < share
        monitor.update(_verdict(np.where(attacked, rng.choice(cell.triggered_scores, STEP), rng.choice(others, STEP))))
        if monitor.read().triggers >= ALARM:
            return Watch(is_false=is_false, delay=n_attacked)
    return Watch(is_false=is_false, delay=np.inf)


def _verdict(scores: FloatArray) -> Verdict:
    """Return a verdict of which nothing but the score is to be read: cells keep no classes."""
    nothing, none = np.zeros(len(scores)), np.zeros(len(scores), dtype=bool)
    classes = np.zeros(len(scores), dtype=np.int64)
    return Verdict(
        predicted_class=classes, corrected_class=classes, p_value=nothing, divergence=nothing, score=scores,
        flagged=none, corrected=none, outputs=nothing[:, None],
    )  # fmt: skip


if __name__ == "__main__":
    main()
