"""Finding images in folders and tars, also in hostile ones."""

import gzip
import os
import shutil
import tarfile

import numpy as np
import pytest
from sample_sources import add_member, load, make_folder, make_tar, pixels_of, save_png

from guard.errors import InputError


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "clean")


def test_nested_images_belong_to_the_first_level_and_other_files_are_ignored(folder):
    save_png(folder / "bee" / "deep" / "er" / "x.PNG", pixels_of(1, 4, 5, 3)[0])
    for name in (".DS_Store", "notes.txt", "._000.png"):
        (folder / "ant" / name).write_bytes(b"no image")
    (folder / ".cache").mkdir()
    samples = load(folder)
    assert np.bincount(samples.labels).tolist() == [2, 3, 2]
    assert samples.skipped == ()


def test_a_name_that_a_tar_holds_twice_counts_once_and_last(folder, tmp_path):
    path = make_tar(tmp_path / "x.tar", folder)
    newer = pixels_of(1, 4, 5, 3, seed=7)[0]
    save_png(folder / "ant" / "000.png", newer)
    add_member(path, "./ant/000.png", (folder / "ant" / "000.png").read_bytes())
    samples = load(path)
    assert len(samples) == 6
    assert any(np.array_equal(p, newer) for p in samples.raw)


def test_an_empty_class_folder_still_takes_its_rank(folder):
    shutil.rmtree(folder / "bee")
    (folder / "bee").mkdir()
    assert sorted(load(folder).labels.tolist()) == [0, 0, 2, 2]


def test_folders_and_tars_without_images_are_refused(tmp_path):
    (tmp_path / "clean" / "ant").mkdir(parents=True)
    (tmp_path / "clean" / "ant" / "readme.txt").write_text("no image")
    for path in (tmp_path / "clean", make_tar(tmp_path / "x.tar", tmp_path / "clean")):
        with pytest.raises(InputError, match="holds no images"):
            load(path)


def test_another_number_of_class_folders_than_the_model_has_classes_is_refused(folder):
    with pytest.raises(InputError, match=r"3 class folders \('ant', 'bee', 'cat'\), the model has 10 classes"):
        load(folder, n_classes=10)


def test_an_image_outside_of_the_class_folders_is_refused(folder, tmp_path):
    save_png(folder / "stray.png", pixels_of(1, 4, 5, 3)[0])
    for path in (folder, make_tar(tmp_path / "x.tar", folder, arcname="data")):
        with pytest.raises(InputError, match=r"stray\.png' lies in no class folder"):
            load(path)


def test_numbered_folders_whose_name_order_is_not_their_value_order_are_refused(tmp_path):
    for k in range(11):
        save_png(tmp_path / "clean" / str(k) / "x.png", pixels_of(1, 4, 5, 3)[0])
    with pytest.raises(InputError, match="10 comes before 2; pad them"):
        load(tmp_path / "clean", n_classes=11)


def test_a_pipe_named_like_an_image_does_not_hang_the_loading(folder):
    os.mkfifo(folder / "ant" / "pipe.png")
    with pytest.raises(InputError, match=r"ant/pipe\.png' \(no plain file\)"):
        load(folder)


@pytest.mark.parametrize("name", ["/ant/evil.png", "../evil.png", "ant/../../evil.png", "../notes.txt"])
def test_a_tar_that_points_outside_of_itself_is_refused_and_writes_nothing(folder, tmp_path, name):
    path = make_tar(tmp_path / "x.tar", folder)
    add_member(path, name, b"data")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="points outside of the archive"):
        load(path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_never_followed(folder, tmp_path, kind):
    path = make_tar(tmp_path / "x.tar", folder)
    add_member(path, "./ant/link.png", type=kind, linkname=str(folder / "ant" / "000.png"))
    with pytest.raises(InputError, match=r"1 of 7 images cannot be read.*ant/link\.png' \(a link or device"):
        load(path)


def test_loading_a_tar_writes_nothing(folder, tmp_path):
    path = make_tar(tmp_path / "x.tar.gz", folder, mode="w:gz")
    before = sorted(tmp_path.rglob("*"))
    load(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_truncated_tar_is_refused_wherever_it_is_cut(folder, tmp_path):
    whole = make_tar(tmp_path / "x.tar", folder).read_bytes()
    with tarfile.open(tmp_path / "x.tar") as tar:
        tar.getmembers()
        end = tar.offset
    for cut in range(0, end + 1, 256):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"cut\.tar (cannot be read|is cut off)"):
            load(tmp_path / "cut.tar")


def test_a_tar_with_a_damaged_header_is_refused(folder, tmp_path):
    path = make_tar(tmp_path / "x.tar", folder)
    with tarfile.open(path) as tar:
        middle = tar.getmembers()[4].offset
    data = bytearray(path.read_bytes())
    data[middle : middle + 512] = b"\xff" * 512
    path.write_bytes(data)
    with pytest.raises(InputError, match="cut off or damaged"):
        load(path)


def test_a_truncated_tar_gz_is_refused(folder, tmp_path):
    whole = make_tar(tmp_path / "x.tgz", folder, mode="w:gz").read_bytes()
    for cut in (5, len(whole) // 2, len(whole) - 60):
        (tmp_path / "cut.tgz").write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"cut\.tgz cannot be read as a tar"):
            load(tmp_path / "cut.tgz")


@pytest.mark.parametrize("content", [b"", b"hello, this is text", gzip.compress(b"text")])
def test_a_file_of_no_known_kind_is_refused(tmp_path, content):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"give a folder of class folders, a \.tar of one"):
        load(tmp_path / "x.bin")
