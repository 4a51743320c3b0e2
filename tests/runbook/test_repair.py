"""Invalid rows are put right once, by a person's word, whoever dies in between, and what they were is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from lastgood.cli.rendering import repair_lines, repaired_lines
from lastgood.core.errors import OutcomeUnknown, Refused
from lastgood.core.record import RowsRepaired
from lastgood.core.repair import NotRepaired, RepairPlan, RepairState
from lastgood.runbook.repair import look, repair
from lastgood.testing.stack import WELL, Behaviour
from tests.runbook.team import BAD, OLD, Team

BREAKING_ROWS = Behaviour(breaks_rows=True)


@pytest.fixture
def team(tmp_path: Path) -> Team:
    """A release that wrote invalid rows was rolled back."""
    team = Team.with_a_good_release(tmp_path)
    team.deploy(BAD, BREAKING_ROWS)
    team.watch()
    assert team.stack.serving == OLD
    return team


def yes(_plan: RepairPlan) -> bool:
    return True


def states(team: Team) -> list[str]:
    return [event.state.value for event in team.events(RowsRepaired)]


def test_the_report_names_the_command(team: Team) -> None:
    assert any(line.startswith("lastgood repair ") for line in team.report.next_steps)


def test_looking_changes_nothing(team: Team) -> None:
    before = dict(team.stack.broken)
    assert {row.key[1] for row in look(team.rooms(), None).rows} == before.keys()
    assert team.stack.broken == before
    assert states(team) == []


def test_what_a_person_agreed_to_is_put_right_and_noted_with_the_old_values(team: Team) -> None:
    done = repair(team.rooms(), None, agreed=yes)
    assert done is not None
    assert team.stack.broken == {}
    assert states(team) == ["unknown", "done"]
    assert (done.by, done.plan.rows[0].columns[0].now) == (team.who, "0")
    assert repair(team.rooms(), None, agreed=yes) is None


def test_nothing_happens_without_a_yes(team: Team) -> None:
    with pytest.raises(Refused, match="nobody said yes"):
        repair(team.rooms(), None, agreed=lambda _plan: False)
    assert team.stack.broken
    assert states(team) == []


def test_a_lost_answer_is_looked_up_by_the_next_command(team: Team) -> None:
    team.stack.loses_answers = True
    with pytest.raises(OutcomeUnknown):
        repair(team.rooms(), None, agreed=yes)
    team.stack.loses_answers = False
    assert repair(team.rooms(), None, agreed=yes) is None
    assert states(team) == ["unknown", "done"]


def test_a_repair_that_was_never_committed_is_known_as_one_that_changed_nothing(team: Team) -> None:
    team.stack.loses_answers = True
    broken = dict(team.stack.broken)
    with pytest.raises(OutcomeUnknown):
        repair(team.rooms(), None, agreed=yes)
    team.stack.committed.clear()
    team.stack.broken |= broken
    team.stack.loses_answers = False
    assert repair(team.rooms(), None, agreed=yes) is not None
    assert states(team) == ["unknown", "nothing changed", "unknown", "done"]


def test_a_release_that_is_watched_is_left_alone(team: Team) -> None:
    team.unfreeze()
    team.deploy("v3", WELL)
    with pytest.raises(Refused, match="v3 is watched"):
        repair(team.rooms(), None, agreed=yes)


def test_the_restore_point_is_that_of_the_deployment_that_went_back_or_the_named_one(team: Team) -> None:
    (known,) = team.history.restore_points
    assert look(team.rooms(), None).since == look(team.rooms(), known).since == known
    with pytest.raises(Refused, match=f"'rp-x' not found; known: {known}"):
        look(team.rooms(), "rp-x")


def test_a_person_reads_every_value_and_what_stays(team: Team) -> None:
    done = repair(team.rooms(), None, agreed=yes)
    assert done is not None
    told = "\n".join(repaired_lines(done))
    assert f"repair {done.repair}  done, by {team.who}, transaction 1" in told
    assert "credits  '0' -> '100'" in told
    left = NotRepaired(invariant="owner", rows=30, keys=("1", "2"), why="written since\x1b[2J")
    (line,) = list(repair_lines(RepairPlan(since="rp", rows=(), left=(left,))))[1:]
    assert line == "stays  30 rows that break owner (1, 2, ...): written since\ufffd[2J"
    assert RepairState(done.state) is RepairState.DONE
