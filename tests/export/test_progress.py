"""What the commands show while they work, to somebody who watches and to a log file."""

import io
import sys

import pytest

from erniem_export.progress import Terminal


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Screen, True), (io.StringIO, False)])
def test_long_work_has_a_bar_where_somebody_watches(stream, shown, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream())
    assert list(Terminal().track(["a", "b", "c"], "layer")) == ["a", "b", "c"]
    Terminal().phase("Building", 1, 2)
    said = sys.stderr.getvalue()
    assert ("0/3 [" in said and "layer/s" in said) == shown
    assert ("Building 1/2" in said) == shown
    assert bool(said) == shown


def test_steps_and_notes_are_lines_for_both(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    Terminal().step("loading")
    Terminal().note("no plan")
    assert sys.stderr.getvalue() == "loading ...\nno plan\n"
