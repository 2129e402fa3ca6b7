"""Long work says how far it has come: a bar on a terminal, else a line every so often."""

import io
import pickle
import sys
import time

import pytest

from combo_hf.files import progress
from combo_hf.files.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """Seconds that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_where_there_is_no_terminal(clock: list, capsys: pytest.CaptureFixture):
    with Progress("training", "step", total=100, done=10) as bar:
        for seconds, done in ((10, 20), (29, 30), (31, 40), (50, 50), (75, 60)):
            clock[0] = 100 + seconds
            bar(done, note="loss 1.5")
        bar.advance(3)
    assert capsys.readouterr().err.splitlines() == [
        "training: 40/100 steps after 0:00:31, about 0:01:02 to go, loss 1.5",
        "training: 60/100 steps after 0:01:15, about 0:01:00 to go, loss 1.5",
    ]


def test_a_total_that_is_not_known_and_nothing_done(clock: list, capsys: pytest.CaptureFixture):
    bar = Progress("film.mp4", "window")
    bar(0, None)
    clock[0] += 40
    bar(0, None)
    clock[0] += 40
    bar(3, None)
    assert capsys.readouterr().err.splitlines() == [
        "film.mp4: 0 windows after 0:00:40",
        "film.mp4: 3 windows after 0:01:20",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_hidden(clock: list, monkeypatch: pytest.MonkeyPatch, terminal: bool):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress("a", "clip", 3, shown=False) as bar:
        clock[0] += 999
        bar.advance()
    assert screen.getvalue() == ""


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    sent = pickle.loads(pickle.dumps(Progress("clips", "clip")))
    with sent as bar:
        bar(1, 4, "loss 2")
        bar(4)
    assert "clips:   0%" in screen.getvalue() or "clips: 0clip" in screen.getvalue()
    assert sent.done == sent.total == 4


def test_a_stage_says_that_it_goes_on(capsys, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_LINE", 0.01)
    with progress.stage("reading"):
        deadline = time.monotonic() + 10
        while not (written := capsys.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert written == "reading: 0:00:00\n"
    with progress.silence(), progress.stage("reading"):
        time.sleep(0.05)
    monkeypatch.setattr(progress, "FIRST_LINE", 3.0)
    with progress.stage("quick"):
        pass
    assert capsys.readouterr().err == ""
