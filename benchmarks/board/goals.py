"""What the default method aims at, each goal with the figure that was measured, met or missed."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean

from benchmarks.board.cell import Cell, area, rates
from benchmarks.zoo_entries import ENTRIES

__all__ = ["goals"]

_PLAIN = ("badnets", "patch", "blend", "wanet")
_LEAST_SUCCESS = 0.5  # attacks that work less often are none


def goals(board: Mapping[str, Mapping[str, Cell]], attacks: Sequence[str]) -> Iterator[str]:
    """Yield a table of goals; evaders, and attacks that hardly work, count in none of them."""
    counted = [a for a in attacks if ENTRIES[a].group != "evader" and _works(board[a])]
    yield f"\n## Goals, over {len(counted)} attacks without the evaders\n"
    yield "| goal | measured | |"
    yield "|---|---|---|"
    for text, found, least, digits in _found(board, counted):
        verdict = "met" if found >= least else "**missed**"
        yield f"| {text} | {abs(found):.{digits}f} | {verdict} |"
    left = [a for a in attacks if a not in counted and ENTRIES[a].group != "evader"]
    if left:
        yield f"\nNot counted, because the attack itself succeeds on less than half of the inputs: {', '.join(left)}."


def _found(board: Mapping[str, Mapping[str, Cell]], attacks: Sequence[str]) -> Iterator[tuple[str, float, float, int]]:
    """Yield goal, figure, least figure and digits; what should be small is negative."""
    small, few, large = ([board[a][name] for a in attacks if name in board[a]] for name in
                         ("auto, 200", "auto, 50", "auto, 2000"))  # fmt: skip
    plain = [board[a]["auto, 200"] for a in attacks if ENTRIES[a].attack in _PLAIN and "auto, 200" in board[a]]
    if plain and small:
        yield "200 images: worst AUROC of patch, Blend, WaNet >= .999", min(map(area, plain)), 0.999, 4
        areas = list(map(area, small))
        yield "200 images: mean AUROC >= .995", mean(areas), 0.995, 4
        yield "200 images: worst AUROC >= .97", min(areas), 0.97, 4
        tprs = [rates(c, "rank", 100, target=0.01).tpr for c in small]
        yield "200 images, 1 % marginal: mean TPR >= .95", mean(tprs), 0.95, 3
        yield "200 images, 1 % marginal: worst TPR >= .75", min(tprs), 0.75, 3
    if few:
        areas = list(map(area, few))
        yield "5 images per class: mean AUROC >= .98", mean(areas), 0.98, 4
        yield "5 images per class: worst AUROC >= .93", min(areas), 0.93, 4
    if large:
        certified = [rates(c, "certified", 1000, target=0.01) for c in large]
        yield "2000 images, 1 % certified: mean TPR >= .97", mean(r.tpr for r in certified), 0.97, 3
        yield "2000 images, 1 % certified: worst TPR >= .80", min(r.tpr for r in certified), 0.80, 3
        yield "2000 images: fewest splits of 100 within the rate >= .95", min(r.kept for r in certified), 0.95, 2
        yield from _answered([c.answers for c in large])


def _answered(answers: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, float, float, int]]:
    asr = [a["guarded_asr"] for a in answers]
    lost = [a["accuracy"] - a["guarded_accuracy"] for a in answers]
    ders = [(max(0.0, a["asr"] - a["guarded_asr"]) - max(0.0, x) + 1) / 2 for a, x in zip(answers, lost, strict=True)]
    yield "guarded: mean ASR <= .02", -mean(asr), -0.02, 3
    yield "guarded: worst ASR <= .08", -max(asr), -0.08, 3
    yield (
        "guarded: mean robust accuracy / clean accuracy >= .95",
        mean(a["robust_accuracy"] / a["accuracy"] for a in answers),
        0.95,
        3,
    )
    yield "guarded: mean clean accuracy lost <= .003", -mean(lost), -0.003, 4
    yield "guarded: worst clean accuracy lost <= .005", -max(lost), -0.005, 4
    yield "guarded: mean DER >= .97", mean(ders), 0.97, 3


def _works(cells: Mapping[str, Cell]) -> bool:
    found = [cell.answers["asr"] for cell in cells.values() if "asr" in cell.answers]
    return not found or found[0] >= _LEAST_SUCCESS
