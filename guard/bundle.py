"""The bundle on disk: the only thing that crosses from calibration to serving. Nothing else touches its files.

A bundle is a folder of plain files. It is untrusted until every file has been checked against the manifest, and what
was checked is what is used: files are read once, and models are opened from those bytes.
"""

import hashlib
import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from guard.detector import Detector, unpack_detector
from guard.errors import BundleError
from guard.folder import identity, names_in, read_plain, write_folder, written_at
from guard.manifest import FileDigest, Manifest, read_manifest, write_manifest
from guard.score_file import NPZ_ERRORS, THRESHOLDS, pack_scores, read_arrays, unpack_scores
from guard.types import FloatArray, IntArray

__all__ = [
    "BOUNDED",
    "DETECTOR",
    "FINDINGS",
    "MANIFEST",
    "OBSERVED",
    "ORIGINAL",
    "REPORT",
    "THRESHOLDS",
    "Bundle",
    "check_place",
    "load_bundle",
    "pack_scores",
    "save_bundle",
]

MANIFEST, ORIGINAL, BOUNDED = "manifest.json", "original.onnx", "bounded.onnx"
OBSERVED, DETECTOR = "observed.onnx", "detector.npz"
FINDINGS, REPORT = "findings.npz", "report.html"

_REQUIRED = frozenset({ORIGINAL, BOUNDED, THRESHOLDS})
_DETECTING = frozenset({OBSERVED, DETECTOR})
_FOR_PEOPLE = frozenset({FINDINGS, REPORT})
_ALLOWED = _REQUIRED | _DETECTING | _FOR_PEOPLE
_MAX_MANIFEST_BYTES = 64 * 2**20
_ATTEMPTS = 5
_IMAGE_RANK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A verified bundle in memory.

    Args:
        manifest: What it says of itself.
        original: The original model, serialised.
        bounded: The bounded model, serialised.
        clean_scores: (n,) ascending scores of the clean samples that the thresholds were fitted on.
        clean_classes: (n,) the class that the original gives each of them; None where the bundle does not tell.
        written_at: When the manifest was written, in seconds since the epoch, as its file says; None of a bundle that
            never was on disk.
        observed: The original with the outputs that the one-pass detector reads, serialised, where the score needs one.
        detector: What the detector learned, where there is one.
        findings: What was found while fitting, as calibrate packs it, where it was kept; no verdict depends on it.
    """

    manifest: Manifest
    original: bytes
    bounded: bytes
    clean_scores: FloatArray
    clean_classes: IntArray | None = None
    written_at: float | None = None
    observed: bytes | None = None
    detector: Detector | None = None
    findings: bytes | None = None


def load_bundle(path: str | Path) -> Bundle:
    """Read a bundle and verify every byte of it.

    A bundle that is replaced while it is read is read again: what is returned is one of the two, never a mixture.

    Raises:
        BundleError: The folder is missing, a file is missing, extra, a link or altered, or the manifest is wrong.
    """
    folder = Path(path)
    for _ in range(_ATTEMPTS - 1):
        before = identity(folder)
        try:
            return _load(folder)
        except BundleError:
            if identity(folder) == before:
                raise
    return _load(folder)


def _load(folder: Path) -> Bundle:
    present = names_in(folder)
    manifest = read_manifest(read_plain(folder / MANIFEST, limit=_MAX_MANIFEST_BYTES))
    _check_names(folder, present=present, named=set(manifest.files), required=_required(manifest))
    contents = {name: _read_verified(folder / name, digest) for name, digest in sorted(manifest.files.items())}
    scores, classes = unpack_scores(contents[THRESHOLDS], n_classes=manifest.n_classes)
    if any(threshold.n != len(scores) for threshold in manifest.thresholds.values()):
        raise BundleError(f"{THRESHOLDS} holds {len(scores)} scores, but the manifest's thresholds name another number")
    return Bundle(
        manifest=manifest,
        original=contents[ORIGINAL],
        bounded=contents[BOUNDED],
        clean_scores=scores,
        clean_classes=classes,
        written_at=written_at(folder / MANIFEST),
        observed=contents.get(OBSERVED),
        detector=_unpack_detector(contents, manifest),
        findings=contents.get(FINDINGS),
    )


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
    _check_contents(contents, required=_required(manifest))
    manifest = replace(manifest, files={name: _digest(content) for name, content in sorted(contents.items())})
    try:
        write_folder(target, {**contents, MANIFEST: write_manifest(manifest)})
    except OSError as error:
        raise BundleError(f"cannot write a bundle at {target}: {error.strerror}") from error
    return manifest


def check_place(path: str | Path) -> None:
    """Refuse, before long work, a place where no bundle can be saved.

    Raises:
        BundleError: The place is taken by something that is no bundle.
    """
    target = Path(path)
    try:
        target.lstat()
    except FileNotFoundError:
        existing = next(parent for parent in target.absolute().parents if parent.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            raise BundleError(f"cannot write a bundle at {target}: {existing} is not writable") from None
        return
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot write a bundle at {target}: {error}") from error
    if target.is_symlink() or not target.is_dir() or not _is_replaceable(names_in(target)):
        raise BundleError(f"{target} exists and is no bundle; choose another folder or remove it")


def _is_replaceable(present: set[str]) -> bool:
    # Many a folder has a manifest.json: one foreign file more, and it is somebody's work.
    return not present or (MANIFEST in present and present <= _ALLOWED | {MANIFEST})


def _required(manifest: Manifest) -> frozenset[str]:
    return _REQUIRED if manifest.detector is None else _REQUIRED | _DETECTING


def _check_contents(contents: Mapping[str, bytes], *, required: frozenset[str]) -> None:
    if wrong := sorted(contents.keys() - _FOR_PEOPLE ^ required):
        raise BundleError(
            f"a bundle holds {', '.join(sorted(required))} and may hold {FINDINGS} and {REPORT};"
            f" {reprlib.repr(wrong[0])} is missing or too much"
        )


def _unpack_detector(contents: Mapping[str, bytes], manifest: Manifest) -> Detector | None:
    if manifest.detector is None:
        return None
    try:
        found = unpack_detector(read_arrays(contents[DETECTOR]), n_sites=len(manifest.detector["sites"]))
        if not _can_fill(found.fill, manifest):
            raise ValueError(f"fill holds {len(found.fill)} channels, not those of the inputs")
    except NPZ_ERRORS as error:
        raise BundleError(
            f"{DETECTOR} is not what a detector needs ({reprlib.repr(str(error))}); fit the bundle again"
        ) from error
    return found


def _can_fill(pixel: FloatArray, manifest: Manifest) -> bool:
    """Say whether there is no pixel to hide places with, or it has as many channels as the images that go in."""
    shape = manifest.inputs[0].shape
    if len(manifest.inputs) > 1 or len(shape) != _IMAGE_RANK:
        return not len(pixel)
    return len(pixel) in (0, shape[1 if manifest.preprocessing["layout"] == "nchw" else 3] or len(pixel))


def _check_names(folder: Path, *, present: set[str], named: set[str], required: frozenset[str]) -> None:
    if outside := sorted(named - _ALLOWED):
        raise BundleError(
            f"the manifest names the file {reprlib.repr(outside[0])}; a bundle holds {', '.join(sorted(_ALLOWED))}"
        )
    if missing := sorted(required - named):
        raise BundleError(f"the manifest does not name {', '.join(missing)}; fit the bundle again")
    if extra := sorted(present - named - {MANIFEST}):
        raise BundleError(f"{folder} holds {reprlib.repr(extra[0])}, which its manifest does not name; remove it")


def _read_verified(file: Path, digest: FileDigest) -> bytes:
    found = _digest(content := read_plain(file, limit=digest.n_bytes))
    if found != digest:
        raise BundleError(
            f"{file} is not the file that was saved: SHA-256 {found.sha256[:12]}... of {found.n_bytes} bytes, but the"
            f" manifest says {digest.sha256[:12]}... of {digest.n_bytes}; restore it or fit the bundle again"
        )
    return content


def _digest(content: bytes) -> FileDigest:
    return FileDigest(sha256=hashlib.sha256(content).hexdigest(), n_bytes=len(content))
