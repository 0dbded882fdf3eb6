"""Values that live in files and follow them: certificates and tokens are changed without a restart."""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from serving.errors import StartError

__all__ = ["FromFiles", "read_file"]

_logger = logging.getLogger(__name__)

T = TypeVar("T")


class FromFiles(Generic[T]):
    """A value read from files, and read again once they change; safe to use from several threads.

    A change that cannot be read, such as a certificate whose key is yet to be written, is said once in the log and
    leaves the last good value.

    Args:
        paths: The files.
        read: Returns the value, or raises StartError.

    Raises:
        StartError: The files cannot be read now.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._lock = threading.Lock()
        self._seen = self._stamps()
        self._value = read()

    def current(self) -> T:
        """Return the value as the files have it; costs one look at each file's date."""
        with self._lock:
            stamps = self._stamps()
            if stamps != self._seen:
                self._seen = stamps
                self._renew()
            return self._value

    def _renew(self) -> None:
        try:
            self._value = self._read()
        except StartError as error:
            _logger.error("what changed is not taken over, the last good files stay in use: %s", error)  # noqa: TRY400
        else:
            _logger.info("read again: %s", ", ".join(map(str, self._paths)))

    def _stamps(self) -> tuple[tuple[int, ...] | None, ...]:
        return tuple(_stamp(path) for path in self._paths)


def read_file(flag: str, path: Path) -> bytes:
    """Return a file's content.

    Args:
        flag: What the operator named it with.
        path: The file.

    Raises:
        StartError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartError(f"cannot read {flag} {path}: {error.strerror}; name a file that this user may read") from error


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
