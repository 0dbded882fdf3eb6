"""A folder of files on disk: read without trust, replaced in one step."""

import ctypes
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from guard.errors import BundleError

__all__ = ["identity", "names_in", "read_plain", "write_folder", "written_at"]

# No link is followed, and no pipe waited on.
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def identity(folder: Path) -> tuple[int, ...]:
    """Return what changes when another folder takes this one's place; nothing where there is none."""
    try:
        found = folder.stat()
    except (OSError, ValueError):
        return ()
    return found.st_dev, found.st_ino, found.st_ctime_ns


def written_at(file: Path) -> float | None:
    """Return when a file was last written, in seconds since the epoch; None where it is gone."""
    try:
        return file.lstat().st_mtime
    except (OSError, ValueError):
        return None


def names_in(folder: Path) -> set[str]:
    """Return the names of everything in a folder.

    Raises:
        BundleError: It is no folder, or cannot be read.
    """
    try:
        return {entry.name for entry in folder.iterdir()}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BundleError(
            f"{folder} is no folder that can be read ({reason}); a bundle is a folder that guard-calibrate fit writes"
        ) from error


def read_plain(file: Path, *, limit: int) -> bytes:
    """Read a file that nobody vouches for: no link, no pipe, no device, and not past a limit.

    Raises:
        BundleError: It is any of these, or cannot be read.
    """
    try:
        descriptor = os.open(file, _READ_FLAGS)
        try:
            return _read_descriptor(descriptor, file, limit)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BundleError(f"{file} is a link, which a bundle must not hold; put the file itself there") from error
        raise BundleError(f"{file} cannot be read: {error.strerror}; restore it or fit the bundle again") from error


def _read_descriptor(descriptor: int, file: Path, limit: int) -> bytes:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise BundleError(f"{file} is no plain file; restore it or fit the bundle again")
    if found.st_size > limit:
        raise BundleError(f"{file} has {found.st_size} bytes where {limit} are the most; restore it")
    with os.fdopen(descriptor, "rb", closefd=False) as stream:
        return stream.read(limit)


def write_folder(target: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a folder beside its place and rename it there: an earlier one is replaced whole or not at all.

    Raises:
        OSError: It cannot be written; what was at the place is still there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".partial", dir=target.parent))
    try:
        for name, content in contents.items():
            _write(staging / name, content)
        staging.chmod(0o755)
        _move_into_place(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _move_into_place(staging: Path, target: Path) -> None:
    """Swap in one step where the system can, so that there is a whole bundle at every moment."""
    if not target.exists():
        staging.rename(target)
    elif not _exchange(staging, target):
        _replace_in_two_steps(staging, target)


def _replace_in_two_steps(staging: Path, target: Path) -> None:
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".earlier", dir=target.parent))
    earlier = aside / "bundle"
    try:
        target.rename(earlier)
        staging.rename(target)
    except OSError:
        if earlier.exists():
            earlier.rename(target)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders with Linux's renameat2; say whether that was possible."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
