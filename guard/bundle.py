"""The bundle on disk: the only thing that crosses from calibration to serving. Nothing else touches its files.

A bundle is a folder of plain files. It is untrusted until every file has been checked against the manifest, and what
was checked is what is used: files are read once, and models are opened from those bytes.
"""

import ctypes
import errno
import hashlib
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from guard.errors import BundleError
from guard.manifest import FileDigest, Manifest, read_manifest, write_manifest
from guard.types import FloatArray

__all__ = [
    "BOUNDED",
    "MANIFEST",
    "ORIGINAL",
    "REPORT",
    "THRESHOLDS",
    "Bundle",
    "check_place",
    "load_bundle",
    "pack_scores",
    "save_bundle",
]

MANIFEST, ORIGINAL, BOUNDED, THRESHOLDS = "manifest.json", "original.onnx", "bounded.onnx", "thresholds.npz"
REPORT = "report.html"

_REQUIRED = frozenset({ORIGINAL, BOUNDED, THRESHOLDS})
_ALLOWED = _REQUIRED | {REPORT}
_MAX_MANIFEST_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A verified bundle in memory.

    Args:
        manifest: What it says of itself.
        original: The original model, serialised.
        bounded: The bounded model, serialised.
        clean_scores: (n,) ascending scores of the threshold set.
    """

    manifest: Manifest
    original: bytes
    bounded: bytes
    clean_scores: FloatArray


def load_bundle(path: str | Path) -> Bundle:
    """Read a bundle and verify every byte of it.

    Raises:
        BundleError: The folder is missing, a file is missing, extra, a link or altered, or the manifest is wrong.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BundleError(f"{folder} is no folder; a bundle is a folder that guard-calibrate fit writes")
    manifest = read_manifest(_read_regular(folder / MANIFEST, limit=_MAX_MANIFEST_BYTES))
    _check_names(folder, set(manifest.files))
    contents = {name: _read_verified(folder / name, digest) for name, digest in sorted(manifest.files.items())}
    scores = _unpack_scores(contents[THRESHOLDS])
    if any(threshold.n != len(scores) for threshold in manifest.thresholds.values()):
        raise BundleError(f"{THRESHOLDS} holds {len(scores)} scores, but the manifest's thresholds name another number")
    return Bundle(manifest=manifest, original=contents[ORIGINAL], bounded=contents[BOUNDED], clean_scores=scores)


def save_bundle(path: str | Path, manifest: Manifest, contents: Mapping[str, bytes]) -> Manifest:
    """Write a bundle beside its place and rename it there, so that an earlier one is replaced whole or not at all.

    Args:
        path: The bundle's folder; an earlier bundle there is replaced, anything else is left alone.
        manifest: Its ``files`` are filled in from contents.
        contents: Every file but the manifest, by name.

    Returns:
        The manifest as written.

    Raises:
        BundleError: The place is taken by something that is no bundle, or cannot be written.
    """
    target = Path(path)
    check_place(target)
    manifest = replace(manifest, files={name: _digest(content) for name, content in sorted(contents.items())})
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise BundleError(f"cannot write a bundle at {target}: {error.strerror}") from error
    try:
        for name, content in {**contents, MANIFEST: write_manifest(manifest)}.items():
            _write(staging / name, content)
        staging.chmod(0o755)
        _move_into_place(staging, target)
    except OSError as error:
        raise BundleError(f"cannot write a bundle at {target}: {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def pack_scores(clean_scores: FloatArray) -> bytes:
    """Return the content of thresholds.npz: the clean scores, ascending, as ``clean_scores``."""
    buffer = io.BytesIO()
    np.savez(buffer, clean_scores=np.sort(clean_scores).astype(np.float64))
    return buffer.getvalue()


def check_place(path: str | Path) -> None:
    """Refuse, before long work, a place where no bundle can be saved.

    Raises:
        BundleError: The place is taken by something that is no bundle.
    """
    target = Path(path)
    if not target.exists() and not target.is_symlink():
        return
    if target.is_dir() and not target.is_symlink() and ((target / MANIFEST).is_file() or not any(target.iterdir())):
        return
    raise BundleError(f"{target} exists and is no bundle; choose another folder or remove it")


def _unpack_scores(content: bytes) -> FloatArray:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            scores = np.asarray(arrays["clean_scores"])
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise BundleError(f"{THRESHOLDS} holds no clean_scores ({error}); fit the bundle again") from error
    is_sorted = (
        scores.dtype == np.float64 and scores.ndim == 1 and len(scores) > 0 and bool((np.diff(scores) >= 0).all())
    )
    if not is_sorted:
        raise BundleError(f"clean_scores in {THRESHOLDS} are not ascending float64 numbers; fit the bundle again")
    return scores


def _check_names(folder: Path, named: set[str]) -> None:
    if outside := sorted(named - _ALLOWED):
        raise BundleError(f"the manifest names the file {outside[0]!r}; a bundle holds {', '.join(sorted(_ALLOWED))}")
    if missing := sorted(_REQUIRED - named):
        raise BundleError(f"the manifest does not name {', '.join(missing)}; fit the bundle again")
    present = {entry.name for entry in folder.iterdir()}
    if extra := sorted(present - named - {MANIFEST}):
        raise BundleError(f"{folder} holds {extra[0]!r}, which its manifest does not name; remove it")


def _read_regular(file: Path, *, limit: int | None = None) -> bytes:
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError as error:
        reason = (
            "is a link, which a bundle must not hold"
            if error.errno == errno.ELOOP
            else f"cannot be read: {error.strerror}"
        )
        raise BundleError(f"{file} {reason}") from error
    with os.fdopen(descriptor, "rb") as stream:
        try:
            content = stream.read(-1 if limit is None else limit + 1)
        except OSError as error:
            raise BundleError(f"{file} cannot be read: {error.strerror}") from error
    if limit is not None and len(content) > limit:
        raise BundleError(f"{file} is larger than {limit} bytes, which no manifest is")
    return content


def _read_verified(file: Path, digest: FileDigest) -> bytes:
    content = _read_regular(file)
    if (found := _digest(content)) != digest:
        raise BundleError(
            f"{file} is not the file that was saved: SHA-256 {found.sha256[:12]}... of {found.n_bytes} bytes, but the"
            f" manifest says {str(digest.sha256)[:12]}... of {digest.n_bytes}; restore it or fit the bundle again"
        )
    return content


def _digest(content: bytes) -> FileDigest:
    return FileDigest(sha256=hashlib.sha256(content).hexdigest(), n_bytes=len(content))


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
        earlier = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".earlier", dir=target.parent))
        target.rename(earlier)
        try:
            staging.rename(target)
        except OSError:
            earlier.rename(target)
            raise
        shutil.rmtree(earlier)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders with Linux's renameat2; say whether that was possible."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
