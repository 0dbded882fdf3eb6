"""Show how far long work is: a bar on a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

__all__ = ["ProgressReport"]

_WIDTH = 28
_LINE_EVERY_S = 10.0


class ProgressReport:
    """Draws progress; it is called as calibrate.sites.Progress is. Leaving it as a context ends an unfinished bar.

    Args:
        stream: Where to draw; standard error, as it is at that moment, by default.
        clock: Seconds that only grow.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._stage = ""
        self._started = self._shown = 0.0
        self._is_finished = self._is_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_open:
            self._stream.write("\n")
            self._stream.flush()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Say that ``done`` of ``total`` steps of a stage are done."""
        now = self._clock()
        if stage != self._stage:
            self._stage, self._started, self._shown = stage, now, now
        elif self._is_finished:
            return
        self._is_finished = done >= total
        if self._stream.isatty():
            self._draw_bar(done, total, now - self._started)
        elif self._is_finished or now - self._shown >= _LINE_EVERY_S:
            self._shown = now
            left = "" if self._is_finished else f", {_remaining(done / total, now - self._started)}"
            self._stream.write(f"{stage}: {done} of {total}, {now - self._started:.1f} s{left}\n")
            self._stream.flush()

    def _draw_bar(self, done: int, total: int, elapsed_s: float) -> None:
        share = done / total if total else 1.0
        filled = int(share * _WIDTH)
        left = _remaining(share, elapsed_s) if 0 < share < 1 else f"{elapsed_s:.1f} s"
        bar = "#" * filled + "." * (_WIDTH - filled)
        self._stream.write(f"\r\x1b[K{self._stage:<24.24} [{bar}] {done}/{total}  {left}")
        self._is_open = not self._is_finished
        if self._is_finished:
            self._stream.write("\n")
        self._stream.flush()


def _remaining(share: float, elapsed_s: float) -> str:
    """Say how long the rest takes at the pace so far."""
    return f"{elapsed_s * (1 - share) / share:.0f} s left" if share > 0 else "time left unknown"
