"""A rollback whose database goes back by down migrations: told before, rehearsed, asked for, carried out, reported; and
what becomes of one that does not hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lastgood.core.errors import OutcomeUnknown, Retryable
from lastgood.core.migration import Fit, FitsSchema, Rung
from lastgood.core.record import StepStarted
from lastgood.core.release import Down
from lastgood.core.report import Report, TerminalState
from lastgood.runbook.rollback import choose_target, plan_rollback
from lastgood.testing.stack import Behaviour
from lastgood.testing.world import Crash, Crashes
from tests.runbook.team import BAD, OLD, Team

GOES_DOWN = Behaviour(errors=0.3, migrations=("m2",), goes_down=True)


@pytest.fixture
def down(team: Team) -> Team:
    return going_down(team)


def going_down(team: Team) -> Team:
    """v2 serves on a schema that v1 cannot run on, and ships the way down; rows were written since."""
    team.deploy(BAD, GOES_DOWN)
    team.stack.fits = FitsSchema(fit=Fit.NO, tried=3, reason="42703 column title")
    team.stack.written["missions"] = 12
    team.stack.aside["missions.mood"] = 5
    team.stack.effects.clear()
    return team


def agreed(team: Team) -> Report:
    team.when_asked(team.approve)
    return team.roll_back()


def steps(team: Team) -> list[str]:
    begun = [e.step for e in team.events(StepStarted) if e.run == team.report.run]
    return list(dict.fromkeys(begun))


def rung(team: Team) -> Rung:
    """That of a rollback which is planned now."""
    rooms = team.rooms()
    decision = plan_rollback(rooms, choose_target(team.history, None), plan_id="r9").database
    assert decision is not None
    return decision.rung


def test_the_database_goes_back_where_it_is_and_the_old_release_serves(down: Team) -> None:
    report = agreed(down)
    assert report.terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert (down.stack.database.migrations, down.stack.serving) == (("m1",), OLD)
    assert steps(down)[:4] == ["save-dump", "rehearse-down", "migrate-down", "pass-gate"]
    assert not any("_bad_" in name for name in down.stack.database.databases)


def test_rows_that_were_written_since_are_where_they_were(down: Team) -> None:
    agreed(down)
    assert down.stack.written["missions"] >= 12


def test_whoever_is_asked_is_told_how_the_rehearsal_went_and_what_is_set_aside(down: Team) -> None:
    agreed(down)
    told = "\n".join(down.told)
    assert "rung           D2 down migration" in told
    assert "sets aside     missions.mood 5; every other value stays where it is" in told
    assert "pause          about 0.4 s in which nobody can write, as in the rehearsal" in told


def test_the_report_says_which_rung_and_where_what_was_set_aside_is(down: Team) -> None:
    report = agreed(down)
    assert "database: D2 down migration, every row stayed in its place" in report.notes
    assert [(left.table, left.rows) for left in report.aside] == [("missions.mood", 5)]


def test_nothing_is_taken_down_before_a_person_said_yes(down: Team) -> None:
    down.when_asked(down.deny)
    assert down.roll_back().terminal is TerminalState.DENIED
    assert down.stack.database.migrations == ("m1", "m2")


def test_a_rehearsal_that_loses_rows_refuses_the_rollback_and_touches_nothing(down: Team) -> None:
    down.stack.loses_rows = "missions has 12 rows, and missions would have 11 afterwards"
    report = down.roll_back()
    assert report.terminal is TerminalState.REFUSED
    assert down.stack.loses_rows in report.notes[-1]
    assert (down.stack.database.migrations, down.stack.serving) == (("m1", "m2"), BAD)
    assert set(down.stack.effects) == {"save-dump"}


def test_what_a_rehearsal_refused_is_not_planned_again(down: Team) -> None:
    assert rung(down) is Rung.D2
    down.stack.loses_rows = "missions has 12 rows, and missions would have 11 afterwards"
    down.roll_back()
    assert rung(down) is Rung.D3B


def test_a_release_that_ships_no_way_down_goes_back_by_a_swap(team: Team) -> None:
    team.deploy(BAD, Behaviour(errors=0.3, migrations=("m2",)))
    team.stack.fits = FitsSchema(fit=Fit.NO, tried=3, reason="42703 column title")
    assert rung(team) is Rung.D3B


def test_a_way_down_that_a_known_release_did_not_ship_before_is_kept_from_its_next_deploy(team: Team) -> None:
    behaviour = Behaviour(errors=0.3, migrations=("m2",))
    team.deploy(BAD, behaviour)
    recorded = team.history.releases[BAD].release
    team.stack.fits = FitsSchema(fit=Fit.NO, tried=3, reason="42703 column title")
    assert agreed(team).terminal is TerminalState.ROLLED_BACK_VERIFIED
    team.unfreeze()
    team.deploy(BAD, replace(behaviour, goes_down=True), override=True)
    down = Down(migrations=("m2",), sql="down m2")
    assert team.history.releases[BAD].release == replace(recorded, downs=(down,))
    assert rung(team) is Rung.D2


def test_a_table_that_is_held_is_tried_for_again(down: Team) -> None:
    down.fails("migrate-down", Retryable("a table is not to be had; held by 4711 psql (active)", delay_s=2.0))
    assert agreed(down).terminal is TerminalState.ROLLED_BACK_VERIFIED


def test_an_answer_that_was_lost_is_looked_for_and_nothing_is_repeated(down: Team) -> None:
    down.fails("migrate-down", OutcomeUnknown("the connection was lost"), after=True)
    assert agreed(down).terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert down.stack.effects["migrate-down"] == 1


def test_killed_anywhere_in_it_the_next_command_ends_it_the_same(tmp_path: Path) -> None:
    whole = going_down(Team.with_a_good_release(tmp_path / "whole"))
    counting = whole.journal.crashes = whole.stack.crashes = Crashes()
    assert agreed(whole).terminal is TerminalState.ROLLED_BACK_VERIFIED
    for at in range(1, counting.count + 1):
        team = going_down(Team.with_a_good_release(tmp_path / str(at)))
        team.journal.crashes = team.stack.crashes = Crashes(at)
        with pytest.raises(Crash):
            agreed(team)
        if team.history.open_run is not None or team.history.open_deployment is not None:
            team.roll_back()
        assert team.report.terminal is TerminalState.ROLLED_BACK_VERIFIED, f"killed at {at}"
        assert (team.stack.effects, team.stack.database.migrations) == (whole.stack.effects, ("m1",)), f"killed at {at}"
