"""A bundle comes back as it was saved, and whatever else lies in its folder is refused."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import bounded_model, clean_scores, manifest, original_model, tiny_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guard.bundle import (
    BOUNDED,
    MANIFEST,
    ORIGINAL,
    REPORT,
    THRESHOLDS,
    Bundle,
    load_bundle,
    pack_scores,
    save_bundle,
)
from guard.errors import BundleError
from guard.manifest import write_manifest

FILES = (ORIGINAL, BOUNDED, THRESHOLDS)


def contents(**others):
    scores = pack_scores(clean_scores())
    return {ORIGINAL: original_model(), BOUNDED: bounded_model(), THRESHOLDS: scores, **others}


def bytes_in(folder):
    """Return what a folder holds, to the byte."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refusal(path):
    with pytest.raises(BundleError) as refused:
        load_bundle(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def equal(one: Bundle, other: Bundle):
    return (one.manifest, one.original, one.bounded) == (other.manifest, other.original, other.bounded) and (
        one.clean_scores.tobytes() == other.clean_scores.tobytes()
    )


def rewritten(folder, **values):
    """Write the bundle's manifest anew with other values, digests and all, as an attacker can."""
    signed = replace(load_bundle(folder).manifest, **values)
    (folder / MANIFEST).write_bytes(write_manifest(signed))


def test_a_bundle_comes_back_as_it_was_saved(tmp_path):
    saved = save_bundle(tmp_path / "b", manifest(), contents(**{REPORT: b"<html>"}))
    loaded = load_bundle(str(tmp_path / "b"))
    assert loaded.manifest == saved == replace(manifest(), files=saved.files)
    assert (loaded.original, loaded.bounded) == (original_model(), bounded_model())
    assert loaded.clean_scores.tolist() == clean_scores().tolist()
    assert set(bytes_in(tmp_path / "b")) == {*FILES, REPORT, MANIFEST}


def test_the_same_bundle_is_the_same_bytes_in_every_file(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        tiny_bundle(tmp_path / name)
    assert bytes_in(tmp_path / "one") == bytes_in(tmp_path / "other")


def test_a_bundle_behind_a_linked_folder_loads(tmp_path):
    bundle = tiny_bundle(tmp_path)
    (tmp_path / "current").symlink_to(bundle)
    assert equal(load_bundle(tmp_path / "current"), load_bundle(bundle))


@pytest.mark.parametrize("name", ["nowhere", "no\0where", "x" * 300, "bundle/manifest.json", "bundle/manifest.json/x"])
def test_what_is_no_folder_is_refused(tmp_path, name):
    tiny_bundle(tmp_path)
    assert "is no folder that can be read" in refusal(tmp_path / name)


def test_an_empty_folder_is_refused(tmp_path):
    assert "manifest.json cannot be read: No such file" in refusal(tmp_path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "change", [lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b[:-1], lambda b: b"", lambda b: b + b"\0"]
)
def test_an_altered_file_is_refused_by_name(tmp_path, name, change):
    file = tiny_bundle(tmp_path) / name
    file.write_bytes(change(file.read_bytes()))
    assert str(file) in refusal(tmp_path / "bundle")


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_file_is_refused_by_name(tmp_path, name):
    (tiny_bundle(tmp_path) / name).unlink()
    assert f"{name} cannot be read: No such file" in refusal(tmp_path / "bundle")


@pytest.mark.parametrize("name", ["extra", "x\ny", REPORT, ".hidden", "x" * 200, os.fsdecode(b"\xff")])
@pytest.mark.parametrize("put", [Path.touch, Path.mkdir])
def test_whatever_the_manifest_does_not_name_is_refused(tmp_path, name, put):
    put(tiny_bundle(tmp_path) / name)
    assert "which its manifest does not name" in refusal(tmp_path / "bundle")


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_link_is_refused_even_to_the_right_file(tmp_path, name):
    file = tiny_bundle(tmp_path) / name
    file.symlink_to(file.rename(tmp_path / "elsewhere"))
    assert f"{name} is a link" in refusal(tmp_path / "bundle")


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir])
def test_a_pipe_or_folder_in_place_of_a_file_is_refused_without_waiting(tmp_path, name, put):
    file = tiny_bundle(tmp_path) / name
    file.unlink()
    put(file)
    assert f"{name} is no plain file" in refusal(tmp_path / "bundle")


@pytest.mark.timeout(10)
def test_a_device_in_place_of_a_file_is_refused(tmp_path):
    file = tiny_bundle(tmp_path) / ORIGINAL
    file.unlink()
    try:
        os.mknod(file, 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root makes devices")
    assert f"{ORIGINAL} is no plain file" in refusal(tmp_path / "bundle")


def test_a_file_larger_than_said_is_not_even_read(tmp_path):
    os.truncate(tiny_bundle(tmp_path) / BOUNDED, 2**40)
    assert f"{BOUNDED} has {2**40} bytes" in refusal(tmp_path / "bundle")


def test_a_manifest_larger_than_any_is_not_even_read(tmp_path):
    os.truncate(tiny_bundle(tmp_path) / MANIFEST, 2**40)
    assert f"{MANIFEST} has {2**40} bytes" in refusal(tmp_path / "bundle")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b", "", ".", "..", "\0", "x\ny", MANIFEST, "more.onnx"]
)
def test_a_manifest_that_names_other_files_is_refused(tmp_path, name):
    bundle = tiny_bundle(tmp_path)
    files = load_bundle(bundle).manifest.files
    rewritten(bundle, files={**files, name: files[ORIGINAL]})
    assert "the manifest names the file" in refusal(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_manifest_that_does_not_name_a_required_file_is_refused(tmp_path, name):
    bundle = tiny_bundle(tmp_path)
    files = load_bundle(bundle).manifest.files
    rewritten(bundle, files={other: digest for other, digest in files.items() if other != name})
    assert f"the manifest does not name {name}" in refusal(bundle)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_byte_of_any_file_can_be_changed_unnoticed(tmp_path, data):
    bundle = tmp_path / "bundle"
    if not bundle.exists():
        tiny_bundle(tmp_path)
    before = load_bundle(bundle)
    file = bundle / data.draw(st.sampled_from([*FILES, MANIFEST]))
    content = file.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    file.write_bytes(content[:position] + bytes([data.draw(st.integers(0, 255))]) + content[position + 1 :])
    try:
        assert equal(load_bundle(bundle), before)
    except BundleError:
        pass
    finally:
        file.write_bytes(content)
