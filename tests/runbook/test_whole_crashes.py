"""An incident whose process dies anywhere, and that is taken up by the watch, ends as if nothing had died."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from lastgood.core.record import RunEnded
from lastgood.core.release import Standing
from lastgood.core.report import TerminalState
from lastgood.testing.memory_stack import DOES_NOT_FIT
from lastgood.testing.world import Crash, Crashes
from tests.runbook.stack import Stack

LIVES = 5


def bad_release(folder: Path) -> Stack:
    stack = Stack(folder)
    stack.deploy("bad")
    return stack


def denied(folder: Path) -> Stack:
    stack = Stack(folder, mode="propose")
    stack.deploy("bad")
    stack.clock.after(300, stack.deny)
    return stack


def database_first(folder: Path) -> Stack:
    stack = Stack(folder, database=True)
    stack.database.brings["bad"], stack.database.fit = ("m1",), DOES_NOT_FIT
    stack.deploy("bad")
    stack.clock.after(300, stack.approve)
    return stack


INCIDENTS: dict[str, tuple[Callable[[Path], Stack], TerminalState, str]] = {
    "containers": (bad_release, TerminalState.ROLLED_BACK_VERIFIED, "v1"),
    "denied": (denied, TerminalState.DENIED, "bad"),
    "database-first": (database_first, TerminalState.ROLLED_BACK_VERIFIED, "v1"),
}


def lived_through(folder: Path, incident: str, *crash_at: int) -> Stack:
    """The incident, with as many lives as it takes."""
    stack = INCIDENTS[incident][0](folder)
    stack.world.effects.clear()
    stack.journal.crashes = stack.world.crashes = Crashes(*crash_at)
    for _life in range(LIVES):
        try:
            stack.watch()
        except Crash:
            continue
        return stack
    raise AssertionError("the incident never ends")


@pytest.mark.parametrize("incident", INCIDENTS)
def test_an_incident_that_dies_anywhere_ends_the_same(tmp_path: Path, incident: str) -> None:
    _, terminal, serves = INCIDENTS[incident]
    whole = lived_through(tmp_path, incident)
    for at in range(1, whole.journal.crashes.count + 1):
        stack = lived_through(tmp_path, incident, at)
        assert stack.terminal() is terminal, f"crash at {at}"
        assert stack.serves == serves, f"crash at {at}"
        assert effects(stack) == effects(whole), f"crash at {at}"
        assert (stack.standing("bad") is Standing.BARRED) == (serves == "v1"), f"crash at {at}"
        ends = [e for e in stack.events(RunEnded) if isinstance(e, RunEnded) and e.terminal is terminal]
        assert len(ends) == 1, f"crash at {at}"


def effects(stack: Stack) -> Counter[str]:
    return +stack.world.effects
