"""Progress: a bar on a terminal, a line now and then elsewhere."""

import io

from calibrate.progress import ProgressReport


class Stream(io.StringIO):
    """A stream that may say it is a terminal."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def _clock(*times: float):
    return iter(times).__next__


def test_a_terminal_gets_a_bar_that_grows_in_place():
    stream = Stream(is_terminal=True)
    with ProgressReport(stream, _clock(0, 1, 2)) as progress:
        for done in (0, 50, 100):
            progress("reading", done, 100)
    empty, half, full = stream.getvalue().split("\r")[1:]
    assert "0/100" in empty
    assert "[" + "#" * 14 + "." * 14 + "] 50/100  1 s left" in half
    assert full.endswith("[" + "#" * 28 + "] 100/100  2.0 s\n")


def test_elsewhere_a_stage_gets_one_line_when_it_is_done():
    stream = Stream(is_terminal=False)
    progress = ProgressReport(stream, _clock(0, 1, 2))
    for done in (0, 50, 100):
        progress("reading", done, 100)
    assert stream.getvalue() == "reading: 100 of 100, 2.0 s\n"


def test_elsewhere_long_work_gets_a_line_every_ten_seconds():
    stream = Stream(is_terminal=False)
    progress = ProgressReport(stream, _clock(0, 9, 11, 15, 22))
    for done in range(5):
        progress("reading", done, 100)
    assert stream.getvalue().splitlines() == [
        "reading: 2 of 100, 11.0 s, 539 s left",
        "reading: 4 of 100, 22.0 s, 528 s left",
    ]


def test_a_stage_that_says_twice_that_it_is_done_is_shown_once():
    for is_terminal in (False, True):
        stream = Stream(is_terminal=is_terminal)
        progress = ProgressReport(stream, _clock(0, 0))
        progress("choosing k", 7, 7)
        progress("choosing k", 7, 7)
        assert stream.getvalue().count("\n") == 1


def test_every_stage_starts_its_own_clock():
    stream = Stream(is_terminal=False)
    progress = ProgressReport(stream, _clock(0, 5, 7))
    for stage, done in (("one", 1), ("two", 0), ("two", 1)):
        progress(stage, done, 1)
    assert stream.getvalue().splitlines() == ["one: 1 of 1, 0.0 s", "two: 1 of 1, 2.0 s"]


def test_leaving_ends_an_unfinished_bar_and_no_finished_one():
    for done, n_lines in ((3, 1), (7, 1)):
        stream = Stream(is_terminal=True)
        with ProgressReport(stream, _clock(0)) as progress:
            progress("choosing k", done, 7)
        assert stream.getvalue().count("\n") == n_lines


def test_nothing_of_nothing_is_done():
    stream = Stream(is_terminal=True)
    ProgressReport(stream, _clock(0))("reading", 0, 0)
    assert stream.getvalue().endswith("0/0  0.0 s\n")
