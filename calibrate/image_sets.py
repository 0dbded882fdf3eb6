"""Find labelled images: in a folder of class folders, or in a tar of one that is read in place."""

import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path, PurePosixPath

import numpy as np

from guard.errors import InputError
from guard.types import IntArray

__all__ = ["ImageSet", "open_images"]

Parts = tuple[str, ...]

_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_MAX_FILE_BYTES = 1 << 29
_BAD_TAR = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """Images that are listed but not yet read, sorted by class and name.

    Args:
        names: Each image's name inside its folder or archive.
        labels: (N,) each image's class.
        offsets: (N,) where each image lies; reading in this order never goes back.
        read: Returns the bytes of the image with this index; raises OSError where it has none.
    """

    names: tuple[str, ...]
    labels: IntArray
    offsets: IntArray
    read: Callable[[int], bytes]


@contextmanager
def open_images(path: Path, *, n_classes: int) -> Iterator[ImageSet]:
    """List the images of a folder of class folders, or of a tar of one, which stays open meanwhile.

    Args:
        path: The folder or archive. Nothing of an archive is written to disk and no link in it is followed.
        n_classes: The number of class folders there must be. A class is the rank of its folder's name.

    Yields:
        The images.

    Raises:
        InputError: It cannot be read, holds no images, or its folders are not the model's classes.
    """
    if path.is_dir():
        yield _folder_images(path, n_classes)
        return
    try:
        tar = tarfile.open(path)  # noqa: SIM115 - only opening may fail here; it is closed below
    except _BAD_TAR as error:
        raise _bad_tar(path, error) from error
    with tar:
        yield _tar_images(path, tar, n_classes)


def _folder_images(path: Path, n_classes: int) -> ImageSet:
    try:
        class_folders = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
        loose = [p for p in path.iterdir() if p.is_file()]
    except OSError as error:
        raise InputError(f"{path} cannot be listed ({error.strerror}); make it readable") from error
    found = chain(loose, *(_files_below(folder) for folder in class_folders))
    images = sorted(parts for file in found if _is_image(parts := file.relative_to(path).parts))
    labels = _labels(path, images, {(p.name,) for p in class_folders}, n_classes)

    def read(index: int) -> bytes:
        file = path.joinpath(*images[index])
        if not file.is_file():
            raise OSError("no plain file")
        _check_size(file.stat().st_size)
        return file.read_bytes()

    return ImageSet(names=tuple("/".join(p) for p in images), labels=labels, offsets=np.arange(len(images)), read=read)


def _files_below(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        yield from (Path(root, name) for name in names)


def _tar_images(path: Path, tar: tarfile.TarFile, n_classes: int) -> ImageSet:
    members = _members(path, tar)
    # An archive that was appended to holds a name twice; the last one is what unpacking would leave.
    by_parts = {PurePosixPath(m.name).parts: m for m in members}
    folders = {parts for parts, m in by_parts.items() if m.isdir() and _is_visible(parts)}
    files = {parts: m for parts, m in by_parts.items() if not m.isdir() and _is_image(parts)}
    images = sorted(files)
    labels = _labels(path, images, folders, n_classes)

    def read(index: int) -> bytes:
        member = files[images[index]]
        source = tar.extractfile(member) if member.isreg() else None
        if source is None:
            raise OSError("a link or device, which is never followed")
        _check_size(member.size)
        return source.read()

    return ImageSet(
        names=tuple("/".join(p) for p in images),
        labels=labels,
        offsets=np.array([files[p].offset_data for p in images], dtype=np.int64),
        read=read,
    )


def _members(path: Path, tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    try:
        members = tar.getmembers()
        whole = _ends_properly(tar)
    except _BAD_TAR as error:
        raise _bad_tar(path, error) from error
    if not whole:
        raise InputError(f"{path} is cut off or damaged: it has no end-of-archive mark; make the tar again")
    for member in members:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise InputError(
                f"{path} has a member {member.name!r} that points outside of the archive; "
                "make the tar again with names relative to the folder"
            )
    return members


def _ends_properly(tar: tarfile.TarFile) -> bool:
    """Look for the zero block at the end: tarfile takes damage after the first member for the end."""
    source = tar.fileobj
    if source is None:
        return False
    source.seek(tar.offset)
    return source.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _bad_tar(path: Path, error: BaseException) -> InputError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return InputError(
        f"{path} cannot be read as a tar ({reason}); give a folder of class folders, a .tar of one, an .npz or an .npy"
    )


def _check_size(n_bytes: int) -> None:
    if n_bytes > _MAX_FILE_BYTES:
        raise OSError(f"{n_bytes} bytes, more than the {_MAX_FILE_BYTES} that an image may have")


def _is_visible(parts: Parts) -> bool:
    return not any(part.startswith(".") for part in parts)


def _is_image(parts: Parts) -> bool:
    return _is_visible(parts) and PurePosixPath(parts[-1]).suffix.lower() in _SUFFIXES


def _labels(path: Path, images: list[Parts], folders: set[Parts], n_classes: int) -> IntArray:
    """Return each image's class: the rank of its class folder's name, empty class folders counted too."""
    if not images:
        known = ", ".join(sorted(_SUFFIXES))
        raise InputError(f"{path} holds no images ({known}); give one folder of images per class")
    depth = _common_depth(images, folders)
    loose = ["/".join(p) for p in images if len(p) == depth + 1]
    if loose:
        raise InputError(f"{path}: {loose[0]!r} lies in no class folder; move it into the folder of its class")
    classes = sorted({p[depth] for p in images} | {p[depth] for p in folders if len(p) > depth})
    _check_classes(path, classes, n_classes)
    ranks = {name: rank for rank, name in enumerate(classes)}
    return np.array([ranks[p[depth]] for p in images], dtype=np.int64)


def _common_depth(images: list[Parts], folders: Collection[Parts]) -> int:
    """Count the leading folders that everything shares, such as ``dataset/`` around the class folders."""
    depth = 0
    while any(len(p) > depth + 2 for p in images):
        if len({p[depth] for p in chain(images, folders) if len(p) > depth}) > 1:
            break
        depth += 1
    return depth


def _check_classes(path: Path, classes: list[str], n_classes: int) -> None:
    if len(classes) != n_classes:
        some = ", ".join(map(repr, classes[:5])) + (", ..." if len(classes) > 5 else "")
        raise InputError(
            f"{path} has {len(classes)} class folders ({some}), the model has {n_classes} classes; "
            "give one folder per class, empty where there are no images"
        )
    if all(name.isdecimal() for name in classes):
        for first, second in pairwise(classes):
            if int(first) > int(second):
                raise InputError(
                    f"{path}: the class folders are numbers, and by name {first} comes before {second}; "
                    "pad them with zeros, so that their order by name is their order by value"
                )
