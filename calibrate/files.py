"""Files that a command writes beside its bundle: refused early where they cannot be, written whole or not at all."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from guard.errors import InputError

__all__ = ["check_place_of", "check_places_apart", "write_file", "write_json"]


def check_place_of(flag: str, path: str | None, *, bundle: str | None = None) -> None:
    """Refuse, before long work, what can be no file, and a file that would break the bundle.

    Args:
        flag: The flag that names the file, for the message.
        path: The file; None where there is none to write.
        bundle: A folder that must hold nothing else.

    Raises:
        InputError: No file can be there.
    """
    if path is None:
        return
    place = Path(path)
    if not place.name or place.is_dir():
        raise InputError(f"{flag} is {path!r}, which is a folder; give the name of a file")
    above = next((p for p in place.parents if p.exists()), None)
    if above is not None and not above.is_dir():
        raise InputError(f"{flag} is {path!r}, below {above}, which is no folder; choose another place")
    if bundle is not None and place.resolve().is_relative_to(Path(bundle).resolve()):
        raise InputError(f"{flag} is {path!r}, inside the bundle, which must hold nothing else; choose another place")


def check_places_apart(places: Mapping[str, str | None]) -> None:
    """Refuse one file, by flag, that would be written over another.

    Raises:
        InputError: Two flags name the same file.
    """
    flags: dict[Path, str] = {}
    for flag, path in places.items():
        if path is not None and (other := flags.setdefault(Path(path).resolve(), flag)) != flag:
            raise InputError(f"{other} and {flag} both name {path!r}; one would overwrite the other: give two files")


def write_json(flag: str, path: str, content: Mapping[str, object]) -> None:
    """Write JSON; see write_file."""
    write_file(flag, path, (json.dumps(content, indent=2) + "\n").encode())


def write_file(flag: str, path: str, content: bytes) -> None:
    """Write a file whole or not at all, making the folders above it.

    Raises:
        InputError: It cannot be written there; ``flag`` says in the message who asked for it.
    """
    target = Path(path)
    staging = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.write_bytes(content)
        staging.replace(target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}; choose another place for {flag}") from error
    finally:
        with contextlib.suppress(OSError):  # not there once it has been moved
            staging.unlink()
