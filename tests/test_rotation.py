"""A file of lines never grows past its size, keeps only so many, and holds whole lines alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.rotation import RotatingFile


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write(path, lines, **limits):
    file = RotatingFile(path, **limits)
    for line in lines:
        file.write(line)
    file.close()


def test_a_line_that_fits_to_the_byte_is_written_and_the_next_begins_a_new_file(tmp_path):
    write(tmp_path / "a", [b"1234\n", b"5678\n", b"9\n"], max_bytes=10, n_files=3)
    assert files(tmp_path) == {"a": b"9\n", "a.1": b"1234\n5678\n"}


def test_only_so_many_files_are_kept(tmp_path):
    write(tmp_path / "a", [b"%d\n" % i for i in range(9)], max_bytes=2, n_files=3)
    assert files(tmp_path) == {"a": b"8\n", "a.1": b"7\n", "a.2": b"6\n"}


def test_one_file_is_begun_anew(tmp_path):
    write(tmp_path / "a", [b"1\n", b"2\n"], max_bytes=2, n_files=1)
    assert files(tmp_path) == {"a": b"2\n"}


def test_what_is_there_is_appended_to_and_counts(tmp_path):
    (tmp_path / "a").write_bytes(b"old\n")
    write(tmp_path / "a", [b"new\n", b"newer\n"], max_bytes=8, n_files=2)
    assert files(tmp_path) == {"a": b"newer\n", "a.1": b"old\nnew\n"}


def test_a_file_that_was_moved_away_is_made_again(tmp_path):
    path = tmp_path / "a"
    file = RotatingFile(path, max_bytes=99, n_files=2)
    file.write(b"1\n")
    path.rename(tmp_path / "moved")
    file.write(b"2\n")
    file.close()
    assert files(tmp_path) == {"a": b"2\n", "moved": b"1\n"}


def test_of_a_link_it_is_the_file_that_is_put_aside(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").touch()
    (tmp_path / "link").symlink_to(tmp_path / "files" / "a")
    write(tmp_path / "link", [b"1\n", b"2\n"], max_bytes=2, n_files=2)
    assert files(tmp_path / "files") == {"a": b"2\n", "a.1": b"1\n"}
    assert (tmp_path / "link").is_symlink()


def test_only_the_owner_may_read_it(tmp_path):
    write(tmp_path / "a", [b"1\n"], max_bytes=99, n_files=2)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


@settings(max_examples=50, deadline=None)
@given(lines=st.lists(st.integers(1, 30), max_size=40), max_bytes=st.integers(1, 64), n_files=st.integers(1, 4))
def test_no_file_is_larger_and_the_youngest_lines_are_kept_in_order(tmp_path_factory, lines, max_bytes, n_files):
    folder = tmp_path_factory.mktemp("rotated")
    written = [b"x" * (n - 1) + b"\n" for n in lines]
    write(folder / "a", written, max_bytes=max_bytes, n_files=n_files)
    found = files(folder)
    assert len(found) <= n_files
    # A line that is longer by itself has a file of its own.
    assert all(len(content) <= max_bytes or content.count(b"\n") == 1 for content in found.values())
    in_order = b"".join(found[name] for name in sorted(found, reverse=True))
    assert b"".join(written).endswith(in_order)


FULL = """
import resource, sys
from pathlib import Path
from serving.rotation import RotatingFile
file = RotatingFile(Path(sys.argv[1]), max_bytes=10**6, n_files=2)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 100))
for line in (b"12345\\n", b"1234567890\\n", b"123\\n"):
    try:
        file.write(line)
        print("written")
    except OSError as error:
        print(error.strerror)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
file.write(b"again\\n")
"""


def test_where_the_disk_is_full_no_half_line_is_left_and_it_goes_on_once_there_is_room(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path / "a"], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["written", "File too large", "written"]
    assert files(tmp_path) == {"a": b"12345\n123\nagain\n"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_device_without_room_raises_each_time():
    file = RotatingFile(Path("/dev/full"), max_bytes=9, n_files=2)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            file.write(b"1\n")
    file.close()


def test_a_pipe_that_nobody_reads_is_an_error_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device"):
        RotatingFile(tmp_path / "pipe", max_bytes=9, n_files=2)
