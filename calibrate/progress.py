"""Show how far long work is: a bar on a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

__all__ = ["ProgressReport"]

_WIDTH = 28
_LINE_EVERY_S = 10.0


class ProgressReport:
    """Draws progress; it is called as calibrate.sites.Progress is.

    Args:
        stream: Where to draw.
        clock: Seconds that only grow.
    """

    def __init__(self, stream: TextIO = sys.stderr, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._stage = ""
        self._started = self._shown = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Say that ``done`` of ``total`` steps of a stage are done."""
        now = self._clock()
        if stage != self._stage:
            self._stage, self._started, self._shown = stage, now, now
        if self._stream.isatty():
            self._draw_bar(done, total, now - self._started)
        elif done >= total or now - self._shown >= _LINE_EVERY_S:
            self._shown = now
            self._stream.write(f"{stage}: {done} of {total}, {now - self._started:.1f} s\n")
            self._stream.flush()

    def _draw_bar(self, done: int, total: int, elapsed_s: float) -> None:
        share = done / total if total else 1.0
        filled = int(share * _WIDTH)
        left = f"{elapsed_s * (1 - share) / share:.0f} s left" if 0 < share < 1 else f"{elapsed_s:.1f} s"
        bar = "#" * filled + "." * (_WIDTH - filled)
        self._stream.write(f"\r\x1b[K{self._stage:<24.24} [{bar}] {done}/{total}  {left}")
        if done >= total:
            self._stream.write("\n")
        self._stream.flush()
