"""guard-calibrate in this process: fits that would work, and checks of what it refuses."""

from pathlib import Path

import numpy as np

from calibrate.__main__ import main

__all__ = ["check_refused", "fit_with", "save_data"]


def fit_with(paths: dict[str, Path], *options: str) -> int:
    return main(["fit", str(paths["model"]), "--data", str(paths["data"]), "--bundle", str(paths["bundle"]), *options])


def check_refused(status: int, capfd, *parts: str) -> str:
    """Check that one line of error and nothing else was printed; return it."""
    out, err = capfd.readouterr()
    progress, _, line = err.rpartition("guard-calibrate: error: ")
    assert (status, out) == (2, "")
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert all(" of " in step for step in progress.splitlines())
    assert all(part in line for part in parts), line
    return line


def save_data(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path
