"""A file of lines that never grows past a size: full ones are put aside, the oldest is deleted."""

import contextlib
import os
import stat
from itertools import pairwise
from pathlib import Path

__all__ = ["RotatingFile"]

_OWNER_ONLY = 0o600


class RotatingFile:
    """Appends whole lines to a file; used from one thread.

    A line that cannot be written leaves no part of itself behind. Every line looks for the file anew, so that one which
    was moved away, or could not be had for a while, is made again.

    Args:
        path: The file, or a link to it. Full ones become path.1 (the youngest), path.2 and so on.
        max_bytes: Of one file. What is no regular file is never put aside.
        n_files: How many are kept, the one that is written to among them.

    Raises:
        OSError: The file cannot be opened, or its folder not be written, which putting files aside takes.
    """

    def __init__(self, path: Path, *, max_bytes: int, n_files: int) -> None:
        path = _target(path)
        self._path = path
        self._max_bytes = max_bytes
        self._files = [path, *(path.with_name(f"{path.name}.{i}") for i in range(1, n_files))]
        self._descriptor: int | None = _open(path)
        if stat.S_ISREG(os.fstat(self._descriptor).st_mode) and not os.access(path.parent, os.W_OK | os.X_OK):
            self.close()
            raise PermissionError(0, "its folder cannot be written, so that no full file could be put aside")

    def write(self, line: bytes) -> None:
        """Append a line.

        Raises:
            OSError: It cannot be written.
        """
        status = os.fstat(self._ready())
        if stat.S_ISREG(status.st_mode) and status.st_size and status.st_size + len(line) > self._max_bytes:
            self._put_aside()
        descriptor = self._ready()
        before = os.fstat(descriptor)
        n_written = 0
        try:
            while n_written < len(line):
                n_written += os.write(descriptor, line[n_written:])
        except OSError:
            if n_written and stat.S_ISREG(before.st_mode):
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, before.st_size)
            raise

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _ready(self) -> int:
        """Return the descriptor of what lies at the path by now."""
        if self._descriptor is not None and not _is_at(self._path, self._descriptor):
            self.close()
        if self._descriptor is None:
            self._descriptor = _open(self._path)
        return self._descriptor

    def _put_aside(self) -> None:
        self.close()
        if len(self._files) == 1:
            self._path.unlink()
        for source, to in reversed(list(pairwise(self._files))):
            with contextlib.suppress(FileNotFoundError):
                source.replace(to)


def _open(path: Path) -> int:
    # Without O_NONBLOCK, which Windows lacks, a pipe that nobody reads would hold the server up.
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), _OWNER_ONLY)


def _target(path: Path) -> Path:
    """Return what a link leads to, so that never the link is put aside; /dev/stdout may lead to a pipe with no path."""
    target = path.resolve()
    return target if target.exists() else path


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False
