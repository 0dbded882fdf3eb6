"""Saving replaces a bundle whole or not at all, touches nothing else, and readers see one bundle or the other."""

import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from bundles import bounded_model, clean_scores, manifest, original_model, tiny_bundle

from guard.bundle import (
    BOUNDED,
    MANIFEST,
    ORIGINAL,
    REPORT,
    THRESHOLDS,
    check_place,
    load_bundle,
    pack_scores,
    save_bundle,
)
from guard.errors import BundleError
from guard.folder import _exchange, _replace_in_two_steps


def contents(*, cap=4.0):
    return {ORIGINAL: original_model(), BOUNDED: bounded_model(cap=cap), THRESHOLDS: pack_scores(clean_scores())}


def bytes_in(folder):
    """Return what a folder holds, to the byte."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def names_in(folder):
    return {entry.name for entry in folder.iterdir()}


class Interrupted(Mapping):
    """Contents whose last file cannot be had."""

    def __init__(self, error):
        self.files, self.error = contents(), error

    def __iter__(self):
        return iter(self.files)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, name):
        if name == THRESHOLDS:
            raise self.error
        return self.files[name]


def test_a_bundle_is_saved_into_folders_that_do_not_exist_yet(tmp_path):
    save_bundle(str(tmp_path / "a" / "b"), manifest(), contents())
    assert load_bundle(tmp_path / "a" / "b").original == original_model()


def test_an_empty_folder_becomes_the_bundle(tmp_path):
    (tmp_path / "b").mkdir()
    save_bundle(tmp_path / "b", manifest(), contents())
    assert names_in(tmp_path) == {"b"}
    assert names_in(tmp_path / "b") == {ORIGINAL, BOUNDED, THRESHOLDS, MANIFEST}


def test_an_earlier_bundle_is_replaced_with_all_its_files(tmp_path):
    save_bundle(tmp_path / "b", manifest(name="earlier"), {**contents(), REPORT: b"<html>"})
    save_bundle(tmp_path / "b", manifest(name="later"), contents(cap=5))
    assert load_bundle(tmp_path / "b").manifest.model["name"] == "later"
    assert names_in(tmp_path / "b") == {ORIGINAL, BOUNDED, THRESHOLDS, MANIFEST}
    assert names_in(tmp_path) == {"b"}


def test_a_damaged_bundle_may_be_replaced(tmp_path):
    (tiny_bundle(tmp_path) / BOUNDED).unlink()
    check_place(tmp_path / "bundle")
    save_bundle(tmp_path / "bundle", manifest(), contents())
    load_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("names", [("notes.txt",), (MANIFEST, "index.html"), (MANIFEST, ORIGINAL, ".git"), (ORIGINAL,)])
def test_a_folder_of_anything_else_is_left_alone(tmp_path, names):
    place = tmp_path / "site"
    place.mkdir()
    for name in names:
        (place / name).write_text(name)
    for save in (check_place, lambda p: save_bundle(p, manifest(), contents())):
        with pytest.raises(BundleError, match="site exists and is no bundle; choose another folder or remove it"):
            save(place)
    assert bytes_in(tmp_path) == {f"site/{name}": name.encode() for name in names}


def test_a_file_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("work")
    with pytest.raises(BundleError, match="exists and is no bundle"):
        save_bundle(tmp_path / "file", manifest(), contents())
    with pytest.raises(BundleError, match="cannot write a bundle"):
        save_bundle(tmp_path / "file" / "below", manifest(), contents())
    assert bytes_in(tmp_path) == {"file": b"work"}


@pytest.mark.parametrize("leads_to", ["bundle", "nowhere"])
def test_a_link_is_left_alone_wherever_it_leads(tmp_path, leads_to):
    tiny_bundle(tmp_path)
    (tmp_path / "link").symlink_to(leads_to)
    before = bytes_in(tmp_path)
    with pytest.raises(BundleError, match="exists and is no bundle"):
        save_bundle(tmp_path / "link", manifest(), contents())
    assert (tmp_path / "link").is_symlink()
    assert bytes_in(tmp_path) == before


@pytest.mark.parametrize("name", ["x" * 300, "no\0name"])
def test_a_place_that_cannot_be_is_refused(tmp_path, name):
    for save in (check_place, lambda p: save_bundle(p, manifest(), contents())):
        with pytest.raises(BundleError, match="cannot write a bundle"):
            save(tmp_path / name)


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/b", MANIFEST, "more.onnx"])
def test_contents_that_are_no_part_of_a_bundle_are_not_written(tmp_path, name):
    with pytest.raises(BundleError, match="a bundle holds"):
        save_bundle(tmp_path / "b", manifest(), {**contents(), name: b""})
    assert not names_in(tmp_path)


@pytest.mark.parametrize("name", [ORIGINAL, BOUNDED, THRESHOLDS])
def test_a_bundle_without_a_required_file_is_not_written(tmp_path, name):
    with pytest.raises(BundleError, match=f"'{name}' is missing"):
        save_bundle(tmp_path / "b", manifest(), {k: v for k, v in contents().items() if k != name})
    assert not names_in(tmp_path)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({**contents(), THRESHOLDS: None}, TypeError), ({**contents(), THRESHOLDS: "text"}, TypeError),
        (Interrupted(RuntimeError()), RuntimeError), (Interrupted(KeyboardInterrupt()), KeyboardInterrupt),
    ],
)  # fmt: skip
def test_an_interrupted_save_leaves_the_earlier_bundle_and_nothing_else(tmp_path, given, error):
    before = bytes_in(tiny_bundle(tmp_path))
    with pytest.raises(error):
        save_bundle(tmp_path / "bundle", manifest(name="later"), given)
    assert bytes_in(tmp_path / "bundle") == before
    assert names_in(tmp_path) == {"bundle"}


def test_a_disk_that_fills_up_leaves_the_earlier_bundle_and_nothing_else(tmp_path):
    # In a process of its own, whose files cannot grow past the first one written.
    before = bytes_in(tiny_bundle(tmp_path))
    program = """if True:
        import resource, signal, sys
        sys.path.insert(0, "tests")
        from bundles import manifest
        from test_bundle_saving import contents, save_bundle, BundleError, BOUNDED
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            save_bundle(sys.argv[1], manifest(), {**contents(), BOUNDED: bytes(20_000)})
        except BundleError as error:
            sys.exit(f"refused: {error}")
    """
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", program, tmp_path / "bundle"]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert ran.stderr.startswith(f"refused: cannot write a bundle at {tmp_path / 'bundle'}: File too large")
    assert bytes_in(tmp_path / "bundle") == before
    assert names_in(tmp_path) == {"bundle"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux swaps folders in one step")
def test_folders_are_swapped_in_one_step(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name / f"was {name}").mkdir(parents=True)
    assert _exchange(tmp_path / "one", tmp_path / "other")
    assert names_in(tmp_path / "one") == {"was other"}
    assert names_in(tmp_path / "other") == {"was one"}


def test_where_folders_cannot_be_swapped_the_earlier_one_is_put_aside_first(tmp_path):
    tiny_bundle(tmp_path)
    save_bundle(tmp_path / "staging", manifest(name="later"), contents())
    _replace_in_two_steps(tmp_path / "staging", tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle").manifest.model["name"] == "later"
    assert names_in(tmp_path) == {"bundle"}


def test_where_the_second_step_fails_the_earlier_bundle_is_put_back(tmp_path):
    before = bytes_in(tiny_bundle(tmp_path))
    with pytest.raises(FileNotFoundError):
        _replace_in_two_steps(tmp_path / "staging", tmp_path / "bundle")
    assert bytes_in(tmp_path / "bundle") == before
    assert names_in(tmp_path) == {"bundle"}


def test_readers_see_one_bundle_or_the_other_while_it_is_replaced(tmp_path):
    bounded = {f"cap {cap}": bounded_model(cap=cap) for cap in (4.0, 5.0)}
    bundle, stop, seen, failures = tiny_bundle(tmp_path, name="cap 4.0"), threading.Event(), set(), []

    def read():
        while not stop.is_set():
            try:
                loaded = load_bundle(bundle)
            except BundleError as error:
                failures.append(str(error))
            else:
                seen.add((loaded.manifest.model["name"], loaded.bounded))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for i in range(60):
        cap = 4.0 + i % 2
        save_bundle(bundle, manifest(name=f"cap {cap}"), contents(cap=cap))
    stop.set()
    for reader in readers:
        reader.join()
    assert seen == set(bounded.items())
    assert not failures
