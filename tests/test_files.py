"""Files beside a bundle: refused early where they cannot be, written whole or not at all."""

import json
import os

import pytest

from calibrate.files import check_place_of, write_file, write_json
from guard.errors import InputError


def test_no_file_is_always_fine():
    check_place_of("--json", None)


def test_a_file_is_written_with_the_folders_above_it_and_nothing_else(tmp_path):
    target = tmp_path / "deep" / "figures.json"
    check_place_of("--json", str(target))
    write_json("--json", str(target), {"a": 1})
    assert json.loads(target.read_text()) == {"a": 1}
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("place", ["", ".", "/", "file/figures.json", "file/deep/figures.json", "folder"])
def test_what_can_be_no_file_is_refused_before_the_work(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="--report is"):
        check_place_of("--report", place)


def test_a_file_inside_the_bundle_is_refused(tmp_path):
    with pytest.raises(InputError, match="inside the bundle"):
        check_place_of("--json", str(tmp_path / "figures.json"), bundle=str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_names_the_flag(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="choose another place for --report"):
        write_file("--report", str(tmp_path / "page.html"), b"")


def test_a_file_that_cannot_replace_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot write"):
        write_file("--report", str(tmp_path / "taken"), b"<html>")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
