"""The story on a terminal, and where there is none."""

from __future__ import annotations

import sys

import pytest

from lastgood.cli import screen
from lastgood.cli.screen import Screen


def test_on_a_terminal_a_line_that_changes_is_written_over_and_makes_room(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = Screen()
    for line in ("1 of 3", "2 of 3"):
        shown.update(line)
    shown.say("done")
    shown.say("next")
    assert capsys.readouterr().err == "\r\x1b[K1 of 3\r\x1b[K2 of 3\r\x1b[Kdone\nnext\n"


def test_without_a_terminal_it_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Screen()
    for line in ("1 of 3", "2 of 3"):
        shown.update(line)
    monkeypatch.setattr(screen, "EVERY_S", 0.0)
    shown.update("3 of 3\x1b[31m")
    assert capsys.readouterr().err == "1 of 3\n3 of 3\ufffd[31m\n"
