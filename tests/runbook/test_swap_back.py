"""A swap of the database is taken back by one command, as often as somebody wants, whoever dies in between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lastgood.cli.rendering import plan_lines
from lastgood.core.errors import LastgoodError, NeedsHuman, Refused
from lastgood.core.migration import Fit, FitsSchema
from lastgood.core.record import Unfrozen
from lastgood.core.report import TerminalState
from lastgood.runbook import swap_back
from lastgood.testing.stack import WELL, Behaviour
from lastgood.testing.world import Crash
from tests.runbook.team import BAD, OLD, Team

MIGRATING = Behaviour(migrations=("m2",))
CANNOT_RUN = FitsSchema(fit=Fit.NO, tried=1, reason="42703 title")


@pytest.fixture
def team(tmp_path: Path) -> Team:
    """The database went back, and what was replaced is kept."""
    team = Team.with_a_good_release(tmp_path)
    team.deploy(BAD, MIGRATING)
    team.stack.fits = CANNOT_RUN
    team.stack.database = replace(team.stack.database, pools=True)
    team.stack.containers = replace(team.stack.containers, can_hold=True)
    team.when_asked(team.approve)
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED
    team.watch()
    return team


def kept(team: Team) -> set[str]:
    return {name for name in team.stack.database.databases if "_bad_" in name or "_aside_" in name}


def taken_back(team: Team) -> str:
    plan = swap_back.look(team.rooms())
    swap_back.swap_back(team.rooms(), plan)
    return plan.id


def test_what_was_replaced_has_the_name_again_and_what_had_it_is_kept(team: Team) -> None:
    (replaced,) = kept(team)
    plan = swap_back.look(team.rooms())
    assert (swap_back.comes_back(plan), kept(team)) == (replaced, {replaced})
    swap_back.swap_back(team.rooms(), plan)
    assert kept(team) == {f"{team.stack.database.database}_aside_{plan.id}"}
    assert team.stack.database.exists
    assert not team.stack.database.paused
    assert not team.stack.containers.holding


def test_the_same_command_takes_that_back_as_well(team: Team) -> None:
    taken_back(team)
    (first,) = kept(team)
    again = swap_back.look(team.rooms())
    assert swap_back.comes_back(again) == first
    swap_back.swap_back(team.rooms(), again)
    assert kept(team) == {f"{team.stack.database.database}_aside_{again.id}"}


def test_where_nothing_is_kept_any_more_it_is_refused(team: Team) -> None:
    team.stack.database = replace(team.stack.database, databases=team.stack.database.databases - kept(team))
    with pytest.raises(Refused, match="is not kept any more"):
        swap_back.look(team.rooms())


def test_only_the_newest_swap_is_taken_back(team: Team) -> None:
    taken_back(team)
    newest = swap_back.comes_back(swap_back.look(team.rooms()))
    older = f"{team.stack.database.database}_bad_older"
    databases = team.stack.database.databases - {newest} | {older}
    team.stack.database = replace(team.stack.database, databases=databases)
    with pytest.raises(Refused, match=f"{newest}, which run .* replaced, is not kept any more"):
        swap_back.look(team.rooms())


def test_a_schema_is_not_taken_from_under_a_release_that_was_deployed_since(team: Team) -> None:
    team.rooms().memory.note(Unfrozen(by="t", why="mended"))
    team.deploy("v3", WELL)
    team.watch()
    with pytest.raises(Refused, match="v3 was deployed since the swap"):
        swap_back.look(team.rooms())


def test_a_person_is_told_since_when_and_why_the_database_went_back(team: Team) -> None:
    told = "\n".join(plan_lines(swap_back.look(team.rooms())))
    assert " UTC, " in told
    assert "42703 title" in told


def test_the_team_is_told_and_what_does_not_run_on_the_schema_is_named(team: Team) -> None:
    plan = swap_back.look(team.rooms())
    team.stack.behaves[OLD] = Behaviour(passes_smoke=False)
    with pytest.raises(NeedsHuman, match="on that schema v1 is not well: login"):
        swap_back.swap_back(team.rooms(), plan)
    assert "what it was before its last swap" in team.channel.texts[-1]
    assert team.stack.database.exists


def test_databases_that_are_others_by_now_are_left_alone(team: Team) -> None:
    plan = swap_back.look(team.rooms())
    taken_back(team)
    before = team.stack.database
    with pytest.raises(Refused, match="not what they were"):
        swap_back.swap_back(team.rooms(), plan)
    assert team.stack.database == before


def test_a_step_that_fails_lets_everybody_in_again(team: Team) -> None:
    before = team.stack.database.databases
    team.fails("swap-back", Refused("permission denied to rename database", hint="look"))
    with pytest.raises(NeedsHuman, match="permission denied"):
        taken_back(team)
    assert team.stack.database.databases == before
    assert team.stack.database.exists
    assert not team.stack.database.paused
    assert not team.stack.containers.holding


@pytest.mark.parametrize("at", ["after-intent:lift-fence", "after-act:lift-fence", "before-intent:lift-fence"])
def test_one_that_died_while_it_was_given_up_lets_everybody_in(
    team: Team, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = team.stack.database.databases
    plan = swap_back.look(team.rooms())
    team.fails("swap-back", Refused("permission denied to rename database", hint="look"))
    die_at(at, monkeypatch)
    with pytest.raises(Crash):
        swap_back.swap_back(team.rooms(), plan)
    monkeypatch.undo()
    with pytest.raises(NeedsHuman, match="permission denied"):
        swap_back.go_on(team.rooms())
    assert team.stack.database.databases == before
    assert (team.stack.database.exists, team.stack.database.paused) == (True, False)
    assert not team.stack.containers.holding
    assert team.history.open_run is None


@pytest.mark.parametrize("at", ["after-intent:hold-requests", "after-act:fence", "after-act:swap-back"])
def test_one_that_died_is_gone_on_with(team: Team, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (replaced,) = kept(team)
    plan = swap_back.look(team.rooms())
    die_at(at, monkeypatch)
    with pytest.raises(Crash):
        swap_back.swap_back(team.rooms(), plan)
    monkeypatch.undo()
    with pytest.raises(LastgoodError, match="is not over"):
        swap_back.look(team.rooms())
    assert swap_back.go_on(team.rooms())
    assert replaced not in kept(team)
    assert (team.stack.database.exists, team.stack.containers.holding) == (True, False)
    assert not swap_back.go_on(team.rooms())


def die_at(point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def killpoint(moment: str, step: str) -> None:
        if f"{moment}:{step}" == point:
            raise Crash

    monkeypatch.setattr("lastgood.runbook.carry_out.killpoint", killpoint)
