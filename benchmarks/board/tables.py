"""The scoreboard's tables: cells in, Markdown out; what misses a goal is bold."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import mean

from benchmarks.board.cell import Cell, Rates, area, rates
from benchmarks.board.goals import goals
from benchmarks.zoo_entries import ENTRIES

__all__ = ["Board", "certified", "der", "marginal", "short", "tables"]

Board = Mapping[str, Mapping[str, Cell]]
"""Cells by the entry's name and the contender's."""

_LEAST_AUROC, _LEAST_TPR = 0.97, 0.75
_CERTIFIED = ((0.05, 1000), (0.01, 1000), (0.001, 3000))
_ATTACKED = ("asr", "guarded_asr", "robust_accuracy")
_LARGE = "auto, 2000"


def tables(board: Board, contenders: Sequence[str]) -> Iterator[str]:
    """Yield the page's lines."""
    attacks = [entry for entry, cells in board.items() if any(len(c.triggered_scores) for c in cells.values())]
    yield from goals(board, attacks)
    yield "\n## AUROC\n"
    yield from _grid(board, attacks, contenders, area, least=_LEAST_AUROC, digits=4)
    yield "\n## TPR where clean data are flagged at 1 % (marginal rule; means over 100 splits)\n"
    yield from _grid(board, attacks, contenders, lambda cell: marginal(cell).tpr, least=_LEAST_TPR, digits=3)
    yield f"\n## Certified thresholds: {_LARGE} clean images\n"
    yield from _certified_table(board, attacks)
    yield "\n## Answers\n"
    yield from _answers(
        board, [c for c in contenders if any(c in cells and cells[c].answers for cells in board.values())]
    )
    yield "\n## Cost, on clean images\n"
    yield from _cost(board, contenders)


def marginal(cell: Cell, target: float = 0.01) -> Rates:
    """Return rates of the marginal rule with as many threshold images as the contender has, 99 at least."""
    n = max(cell.n_thresholds, 99)
    return rates(cell, "rank", n, target=target)


def certified(cell: Cell, target: float, n: int) -> Rates | None:
    """Return rates of the certified rule with n threshold images; None where there are not as many to draw."""
    if len(cell.clean_scores) < 2 * n:
        return None
    return rates(cell, "certified", n, target=target)


def der(answers: Mapping[str, float]) -> float:
    """Return the defence effectiveness rate, (max(0, ASR lost) - max(0, ACC lost) + 1) / 2 (BackdoorBench)."""
    lost = max(0.0, answers["accuracy"] - answers["guarded_accuracy"])
    return (max(0.0, answers["asr"] - answers["guarded_asr"]) - lost + 1) / 2


def short(name: str) -> str:
    """Return an entry's name without what all have in common."""
    return name.removeprefix("cifar10-").removeprefix("resnet18-")


def _grid(
    board: Board,
    attacks: Sequence[str],
    contenders: Sequence[str],
    value: Callable[[Cell], float],
    *,
    least: float,
    digits: int,
) -> Iterator[str]:
    yield f"| attack | group | {' | '.join(contenders)} |"
    yield f"|---|---|{'---|' * len(contenders)}"
    columns: dict[str, list[float]] = {name: [] for name in contenders}
    for attack in attacks:
        cells = []
        for name in contenders:
            cell = board[attack].get(name)
            if cell is None or not len(cell.triggered_scores):
                cells.append("")
                continue
            found = value(cell)
            columns[name].append(found)
            cells.append(f"**{found:.{digits}f}**" if found < least else f"{found:.{digits}f}")
        yield f"| {short(attack)} | {ENTRIES[attack].group} | {' | '.join(cells)} |"
    for label, join in (("mean", mean), ("worst", min)):
        ends = [f"{join(c):.{digits}f}" if len(c) == len(attacks) else "" for c in columns.values()]
        yield f"| {label} | | {' | '.join(ends)} |"


def _certified_table(board: Board, attacks: Sequence[str]) -> Iterator[str]:
    heads = [f"TPR at {t:.1%} | FPR [5 %, 95 % of splits] | splits kept" for t, _ in _CERTIFIED]
    yield f"| attack | {' | '.join(heads)} |"
    yield f"|---|{'---|' * 3 * len(_CERTIFIED)}"
    for attack in attacks:
        if (cell := board[attack].get(_LARGE)) is None:
            continue
        found = [certified(cell, target, n) for target, n in _CERTIFIED]
        cells = [
            f"{r.tpr:.3f} | {r.fpr:.4f} [{r.low:.4f}, {r.high:.4f}] | {r.kept:.2f}" if r else " | | " for r in found
        ]
        yield f"| {short(attack)} | {' | '.join(cells)} |"


def _answers(board: Board, contenders: Sequence[str]) -> Iterator[str]:
    yield "| model | method | ACC | ACC, guarded | FPR | ASR | ASR, guarded | RA, guarded | DER |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for entry, cells in board.items():
        for name in contenders:
            if name not in cells or not cells[name].answers:
                continue
            found = cells[name].answers
            attacked = [""] * (len(_ATTACKED) + 1)
            if "asr" in found:
                attacked = [f"{x:.3f}" for x in (*(found[k] for k in _ATTACKED), der(found))]
            yield (
                f"| {short(entry)} | {name} | {found['accuracy']:.4f} | {found['guarded_accuracy']:.4f} |"
                f" {found['fpr']:.4f} | {' | '.join(attacked)} |"
            )


def _cost(board: Board, contenders: Sequence[str]) -> Iterator[str]:
    yield "| method | passes per image | ms per image, one core | seconds to fit |"
    yield "|---|---|---|---|"
    for name in contenders:
        cells = [found[name] for found in board.values() if name in found]
        if cells:
            means = [mean(getattr(cell, key) for cell in cells) for key in ("passes", "ms", "fit_s")]
            yield f"| {name} | {means[0]:.3f} | {means[1]:.2f} | {means[2]:.1f} |"
