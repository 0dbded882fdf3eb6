"""Ctrl-C in a real process: a fit ends in one line, and what was there before is still whole."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from guard.bundle import load_bundle


def _interrupt_after(line: str, arguments: list[str]) -> tuple[int, str]:
    """Run a fit, send SIGINT when standard error has told this; return its status and the rest that it told."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "calibrate", "fit", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        assert any(told.startswith(line) for told in process.stderr)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    return process.returncode, rest


def _contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(("stage", "is_replaced"), [("predicting labels", False), ("activation statistics", True)])
def test_an_interrupt_leaves_an_earlier_bundle_and_nothing_else(digits, digits_bundle, tmp_path, stage, is_replaced):
    if is_replaced:
        shutil.copytree(digits_bundle, tmp_path / "bundle")
    status, told = _interrupt_after(stage, [
        str(digits.model), "--data", str(_unlabelled(digits.clean, tmp_path.parent / f"{tmp_path.name}.npz")),
        "--bundle", str(tmp_path / "bundle"), "--method", "unit-published", "--target-fpr", "0.05",
    ])  # fmt: skip
    assert (status, told.splitlines()[-1]) == (130, "guard-calibrate: interrupted; nothing was written")
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"] * is_replaced
    if is_replaced:
        assert _contents(tmp_path / "bundle") == _contents(digits_bundle)
        load_bundle(tmp_path / "bundle")


def _unlabelled(data: Path, place: Path) -> Path:
    with np.load(data) as arrays:
        np.savez(place, inputs=arrays["inputs"])
    return place
