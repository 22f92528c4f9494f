"""infra/progress.py: whole lines in a file, a bar on a terminal, nothing about what is short."""

import contextlib
import io
import re
import sys
import time

import pytest

from infra import progress
from infra.run import Run
from infra.settings import RunSettings
from test_trainer import trained


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def lines_of(monkeypatch):
    """lines_of(loop) -> what loop() writes to a standard error that is no terminal."""
    monkeypatch.setattr(progress, "EVERY", 0.1)

    def lines(loop):
        with contextlib.redirect_stderr(io.StringIO()) as error:
            loop()
        text = error.getvalue()
        assert "\r" not in text and "\x1b" not in text and (not text or text.endswith("\n"))
        return text.splitlines()

    return lines


def slowly(n, seconds):
    for k in range(n):
        time.sleep(seconds / n)
        yield k


def test_a_long_loop_writes_a_line_now_and_then(lines_of):
    done, start = [], time.monotonic()
    lines = lines_of(lambda: done.extend(progress.bar(slowly(60, 0.6), desc="Grow 1", total=60)))
    assert done == list(range(60))
    assert 2 <= len(lines) <= (time.monotonic() - start) / 0.1
    found = [re.fullmatch(r"Grow 1: (\d+) of 60, 00:0\d", line) for line in lines]
    counts = [int(one[1]) for one in found]
    assert counts == sorted(set(counts)) and 0 < counts[0] and counts[-1] <= 60


def test_updates_that_are_counted_write_lines_too(lines_of):
    def loop():
        bar = progress.bar(desc="BC", total=30, initial=10)
        for _ in slowly(20, 0.4):
            bar.update()
        bar.close()

    start, lines = time.monotonic(), lines_of(loop)
    assert 1 <= len(lines) <= (time.monotonic() - start) / 0.1
    counts = [int(re.fullmatch(r"BC: (\d+) of 30, 00:0\d", line)[1]) for line in lines]
    assert counts == sorted(set(counts)) and 10 < counts[0] and counts[-1] <= 30


@pytest.mark.parametrize("disable", [False, True])
def test_a_short_loop_writes_nothing(lines_of, monkeypatch, disable):
    assert lines_of(lambda: list(progress.bar(range(1000), desc="Grow 1"))) == []
    monkeypatch.setattr(progress, "EVERY", 5)
    assert lines_of(lambda: list(progress.bar(slowly(9, 0.05), desc="it", disable=disable))) == []


def test_what_is_not_to_be_shown_writes_nothing(lines_of):
    assert lines_of(lambda: list(progress.bar(slowly(30, 0.3), desc="it", disable=True))) == []


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress.bar(slowly(5, 0.3), desc="Grow 1", total=5)) == [*range(5)]
    text = sys.stderr.getvalue()
    assert "Grow 1:   0%" in text and "\n" not in text
    assert not text.rpartition("\r")[2].strip() and not text.split("\r")[-2].strip()


def test_a_run_and_a_training_say_how_far_they_are(lines_of, tmp_path, monkeypatch):
    """A training without a title says nothing, nor does a step that is done at once."""
    run = Run(RunSettings(out=str(tmp_path / "run")), "x")
    assert lines_of(lambda: list(run.progress("Grow 2")(range(3)))) == []
    monkeypatch.setattr(progress, "EVERY", -1.0)
    said = lines_of(lambda: list(run.progress("Grow 2")(range(3))))
    assert said[-1].startswith("Grow 2: 3 of 3, ")
    for title, end in (("Improve 1,2", "Improve 1,2: 12 of 12, "), (None, "")):
        said = lines_of(lambda: trained(title=title))
        assert (said[-1] if said else "").startswith(end) and bool(said) == bool(title)
