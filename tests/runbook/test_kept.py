"""What a swap replaced is kept until a person lets it go, and is not let go while anything needs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lastgood.core.errors import Refused
from lastgood.core.migration import Fit, FitsSchema
from lastgood.core.record import DatabaseReleased
from lastgood.core.report import TerminalState
from lastgood.runbook import kept
from lastgood.runbook.doctor import examine
from lastgood.testing.stack import Behaviour
from tests.runbook.team import BAD, Team

MIGRATING = Behaviour(migrations=("m2",))
CANNOT_RUN = FitsSchema(fit=Fit.NO, tried=1, reason="42703 title")


@pytest.fixture
def team(tmp_path: Path) -> Team:
    """The database went back, and what was replaced is kept."""
    team = Team.with_a_good_release(tmp_path)
    team.deploy(BAD, MIGRATING)
    team.stack.fits = CANNOT_RUN
    team.when_asked(team.approve)
    return team


def test_a_kept_database_is_let_go_by_name_and_the_journal_has_who_did(team: Team) -> None:
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED
    (one,) = kept.look(team.rooms())
    assert one.name in next(f.evidence for f in examine(team.rooms()) if f.check == "kept databases")
    kept.release(team.rooms(), one.name)
    assert kept.look(team.rooms()) == ()
    events = [record.event for record in team.rooms().memory.journal.records()]
    assert [e.database for e in events if isinstance(e, DatabaseReleased)] == [one.name]


def test_the_live_database_is_never_let_go(team: Team) -> None:
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED
    name = team.stack.database.database
    with pytest.raises(Refused, match=f"'{name}' is no database that a swap keeps"):
        kept.release(team.rooms(), name)
    assert team.stack.database.exists
