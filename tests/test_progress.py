"""The progress bar: drawn on terminals, lines now and then elsewhere, and never left open."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from boxsup_d2.utils import progress
from boxsup_d2.utils.progress import ProgressBar, track

SHOW_CURSOR = "\x1b[?25h"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is drawn on a terminal."""
    drawn = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=drawn, force_terminal=True, width=120))
    return drawn


def test_bar_counts_on_from_what_was_done(terminal: io.StringIO) -> None:
    bar = ProgressBar("label [x]", 8, done=3)
    assert terminal.getvalue().rstrip().endswith(SHOW_CURSOR), "whatever happens to the process"
    bar.update(2)
    bar.update(1, "still")
    bar.close()
    bar.close()
    text = terminal.getvalue()
    assert "label [x]" in text, "names are not markup"
    assert "still" in text
    assert "6/8" in text
    assert "images/s" in text
    assert text.rstrip().endswith(SHOW_CURSOR)


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for line_every, lines in ((0, ["label: 1 of 3 masks", "label: 3 of 3 masks"]), (60, [])):
        bar = ProgressBar("label", 3, unit="mask", line_every=line_every)
        bar.update()
        bar.update(2)
        bar.close()
        out, err = capsys.readouterr()
        assert out == ""
        assert [line.split(",")[0] for line in err.splitlines()] == lines


def test_long_work_says_from_the_start_how_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = ProgressBar("train", 100, done=20, unit="iteration")
    for seconds in (3, 3, 60):
        now[0] += seconds
        bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "train: 21 of 100 iterations, 0.33 iterations/s, 4 min left",
        "train: 23 of 100 iterations, 0.05 iterations/s, 28 min left",
    ]


def test_tracked_items_are_the_same(terminal: io.StringIO) -> None:
    assert list(track("abc", "letters", 3, unit="letter")) == ["a", "b", "c"]
    assert "3/3" in terminal.getvalue()
    shown = len(terminal.getvalue())
    assert list(track("abc", "letters", 3, shown=False)) == ["a", "b", "c"]
    assert len(terminal.getvalue()) == shown


def test_failure_closes_the_bar(terminal: io.StringIO) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        list(track(items(), "writing", 3))
    assert terminal.getvalue().rstrip().endswith(SHOW_CURSOR)
    ProgressBar("next", 1).close()
