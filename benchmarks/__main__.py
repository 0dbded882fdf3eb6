"""Run measurements: ``python -m benchmarks [NAME ...]``; each prints one section for results.md."""

import argparse
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from benchmarks import (
    bounds,
    detection,
    fitting,
    insertion,
    inspection,
    mitigation,
    passes,
    published,
    serving_cost,
    serving_load,
    sharing,
    shift,
    suspicion,
)
from benchmarks.one_part import LOOKS
from calibrate.bounds import METHODS

OUT = Path("out/benchmarks")
MEASUREMENTS: Mapping[str, Callable[[Path], Iterator[str]]] = {
    "bounds": bounds.measure,
    "detection": detection.measure,
    "fitting": fitting.measure,
    "insertion": insertion.measure,
    "inspection": inspection.measure,
    "mitigation": mitigation.measure,
    "passes": passes.measure,
    "published": published.measure,
    "serving_cost": serving_cost.measure,
    "serving_load": serving_load.measure,
    "sharing": sharing.measure,
    "shift": shift.measure,
    "suspicion": suspicion.measure,
}
ROWS: Mapping[str, Callable[[Path], Iterator[str]]] = {
    **{f"fitting:{method}": partial(fitting.measure, methods=[method], parts=[]) for method in METHODS},
    "inspection:kept": partial(inspection.measure, only_kept=True),
    "published:kept": partial(published.measure, only_kept=True),
    "serving_load:ours": partial(serving_load.measure, peers=False),
    **{f"fitting:{part}": partial(fitting.measure, methods=[], parts=[part]) for part in LOOKS},
}


def main() -> None:
    """Print the sections asked for, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)}; all by default;"
                        " fitting:METHOD or fitting:LOOK for one row")  # fmt: skip
    names = parser.parse_args().names or list(MEASUREMENTS)
    known = {**MEASUREMENTS, **ROWS}
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no measurement {unknown[0]!r}; choose of {', '.join(known)}")
    OUT.mkdir(parents=True, exist_ok=True)
    for name in names:
        print(f"\n## {name}\n\n{circumstances()}; `python -m benchmarks {name}`\n", flush=True)
        for line in known[name](OUT):
            print(line, flush=True)


def circumstances() -> str:
    """Say on what machine and commit figures are measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ": unknown")
    return (
        f"{len(os.sched_getaffinity(0))} cores of {model.split(':')[1].strip()}, Python {platform.python_version()},"
        f" commit {commit.stdout.strip() or 'unknown'}"
    )


if __name__ == "__main__":
    main()
