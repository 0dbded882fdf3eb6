"""Measure the scoreboard and write it: ``python -m benchmarks.board [--quick] [--kept] [--only NAME ...]``.

Stopped, it goes on where it was: cells are kept in ``out/scoreboard``. Entries of the zoo that are not trained are left
out; ``python -m benchmarks.zoo`` trains them, which ``--quick`` does for its own.
"""

import argparse
import fcntl
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.__main__ import circumstances
from benchmarks.board.cell import Cell, load_cell, save_cell
from benchmarks.board.contenders import CONTENDERS, Scene
from benchmarks.board.plots import draw
from benchmarks.board.tables import tables
from benchmarks.zoo import SHARED, is_trained
from benchmarks.zoo_entries import ENTRIES

CELLS = Path("out/scoreboard")
PAGE, QUICK_PAGE = Path("benchmarks/scoreboard.md"), Path("out/scoreboard-quick.md")
SEED = 0


def main() -> None:
    """Measure what is missing, then write the page and its pictures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.board", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="digits alone, a few methods; minutes")
    parser.add_argument("--kept", action="store_true", help="measure nothing: write what there is")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure only these entries or methods")
    arguments = parser.parse_args()
    dataset = "digits" if arguments.quick else "cifar10"
    if arguments.quick and not arguments.kept:  # these train in seconds
        digits = [n for n, entry in ENTRIES.items() if entry.dataset == dataset and not is_trained(n)]
        if digits:
            subprocess.run([sys.executable, "-m", "benchmarks.zoo", *digits], check=True)
    entries = [n for n, entry in ENTRIES.items() if entry.dataset == dataset and _is_there(n)]
    contenders = [name for name, found in CONTENDERS.items() if found.quick or not arguments.quick]
    if not arguments.kept:
        _measure(entries, contenders, arguments.only or ())
    _write(entries, contenders, QUICK_PAGE if arguments.quick else PAGE)


def _is_there(name: str) -> bool:
    return is_trained(name) and (ENTRIES[name].dataset == "digits" or (SHARED / "data").is_dir())


def _measure(entries: Sequence[str], contenders: Sequence[str], only: Sequence[str]) -> None:
    CELLS.mkdir(parents=True, exist_ok=True)
    for method in contenders:
        for entry in entries:
            wanted = method in only or (not CONTENDERS[method].slow and (not only or entry in only))
            place = _place(entry, method)
            if not wanted or place.with_suffix(".json").exists():
                continue
            with place.with_suffix(".lock").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                save_cell(place, CONTENDERS[method].measure(Scene.of(entry), SEED))
                print(f"{entry}: {method}", flush=True)


def _write(entries: Sequence[str], contenders: Sequence[str], page: Path) -> None:
    board: dict[str, dict[str, Cell]] = {}
    for entry in entries:
        found = {method: load_cell(_place(entry, method)) for method in contenders}
        board[entry] = {method: cell for method, cell in found.items() if cell is not None}
    measured = [m for m in contenders if any(m in cells for cells in board.values())]
    page.parent.mkdir(parents=True, exist_ok=True)
    draw(board, measured, page.with_suffix(""))
    page.write_text("\n".join([*_head(page), *tables(board, measured)]) + "\n")
    print(f"written: {page}")


def _head(page: Path) -> list[str]:
    pictures = [f"![{alt}]({page.stem}-{name}.svg)" for name, alt in (
        ("map", "TPR by attack and method"), ("cost", "cost against TPR"), ("roc", "ROC curves"))]  # fmt: skip
    return [
        "# Scoreboard",
        "",
        f"{circumstances()}; one thread per measurement; written by `make scoreboard`.",
        "",
        "Each model of the [zoo](attacks/README.md) against each [baseline](baselines/README.md) and the guard as",
        "`guard-calibrate fit` makes it with no option but the number of clean images (and, with 50 of them, the rate",
        "that 25 threshold images can promise, 4 %). One seed. Clean images to fit on come from the calibration tar;",
        "scores are measured on clean and triggered images of the test tar, of the latter those that the attack takes",
        "to its target. `few-shot` is the two-pass divergence with our bounds; it, `auto, 200` and the baselines see",
        "200 clean images in all. Thresholds are drawn 100 times from the clean test images. Bold misses: AUROC below",
        ".97, TPR below .75; an empty cell was not measured (TeCo takes minutes per model; `mmdf`, which learns MMAC's",
        "bounds as published, an hour). RA: triggered images answered with their true class. DER is BackdoorBench's.",
        "",
        *pictures,
    ]


def _place(entry: str, method: str) -> Path:
    return CELLS / f"{entry}--{method.replace(', ', '-')}"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
