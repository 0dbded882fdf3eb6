"""Where a server's bundles lie on disk: read without following links. Knows nothing of what is served."""

import os
import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from guard.bundle import MANIFEST
from guard.errors import BundleError
from guard.runtime import Guard
from serving.errors import StartError
from serving.trial import try_out

__all__ = [
    "FIRST_VERSION",
    "Place",
    "Store",
    "fingerprint",
    "is_model_name",
    "open_place",
    "repository_store",
    "single_store",
    "without_root",
]

FIRST_VERSION = "1"
"""The version of a bundle that has no folder of versions round it."""

_VERSION = re.compile(r"[1-9][0-9]{0,17}")
"""As Triton reads it: no leading zero, and within int64."""

_LINK = "its folder is a link, which might lead anywhere; put the folder itself there"
_NO_VERSION = "it holds neither a bundle nor versions, which are folders named by whole numbers from 1"
_MAX_NAME = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one version of a model should be.

    Args:
        model: Its name.
        version: A whole number, or empty where the model has no version.
        label: What metrics and logs call it.
        folder: The bundle's.
        problem: Why no bundle can be read there, where that is known already.
    """

    model: str
    version: str
    label: str
    folder: Path
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Where bundles lie and how they are opened.

    Args:
        root: The folder that everything is in; what is told about a bundle leaves it out.
        places: Lists what should be served, as the disk has it now.
        open: Opens a bundle.
    """

    root: Path
    places: Callable[[], Sequence[Place]]
    open: Callable[[Path], Guard]


def repository_store(root: Path, open_bundle: Callable[[Path], Guard]) -> Store:
    """Return the store of a model repository: root/MODEL/VERSION, or root/MODEL itself as version 1."""
    return Store(root=root, places=lambda: tuple(_places(root)), open=open_bundle)


def single_store(folder: Path, model: str, open_bundle: Callable[[Path], Guard]) -> Store:
    """Return the store of one bundle."""
    place = Place(model=model, version=FIRST_VERSION, label=model, folder=folder)
    return Store(root=folder, places=lambda: (place,), open=open_bundle)


def open_place(store: Store, place: Place) -> Guard:
    """Return the guard of the bundle that lies in a place, after a first run.

    Raises:
        BundleError: It is not to be trusted, known already not to be there, or answers nothing.
        ModelError: onnxruntime refuses a model.
    """
    if place.problem:
        raise BundleError(place.problem)
    guard = store.open(place.folder)
    try_out(guard)
    return guard


def without_root(store: Store, text: str) -> str:
    """Return what clients may know of an error: not where on the machine the store is."""
    return text.replace(f"{store.root}/", "")


def is_model_name(name: str) -> bool:
    """Say whether a name can be a folder of a repository: one that does not leave it and is not hidden."""
    return 0 < len(name) <= _MAX_NAME and name.isprintable() and not name.startswith(".") and not set(name) & set("/\\")


def fingerprint(folder: Path) -> tuple[object, ...]:
    """Return what changes when a bundle or any of its files does; nothing where it cannot be read."""
    try:
        entries = sorted(folder.iterdir())
        return tuple((entry.name, *_identity(entry.lstat())) for entry in entries)
    except OSError:
        return ()


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _places(root: Path) -> Iterator[Place]:
    for folder in _folders(root):
        if not is_model_name(folder.name):
            continue
        if folder.is_symlink():
            yield _place(folder.name, "", folder, _LINK)
        elif os.path.lexists(folder / MANIFEST):
            yield _place(folder.name, FIRST_VERSION, folder)
        else:
            yield from _versions(folder)


def _versions(folder: Path) -> Iterator[Place]:
    try:
        versions = [entry for entry in _folders(folder) if _VERSION.fullmatch(entry.name)]
    except StartError as error:
        yield _place(folder.name, "", folder, str(error))
        return
    if not versions:
        yield _place(folder.name, "", folder, _NO_VERSION)
    for entry in sorted(versions, key=lambda entry: int(entry.name)):
        yield _place(folder.name, entry.name, entry, _LINK if entry.is_symlink() else None)


def _place(model: str, version: str, folder: Path, problem: str | None = None) -> Place:
    label = f"{model}/{version}" if version else model
    return Place(model=model, version=version, label=label, folder=folder, problem=problem)


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(entry for entry in root.iterdir() if entry.is_dir())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartError(f"cannot read the folder {reprlib.repr(str(root))}: {reason}") from error
