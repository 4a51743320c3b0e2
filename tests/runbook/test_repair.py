"""Invalid rows are put right once, by a person's word, whoever dies in between, and what they were is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lastgood.cli.rendering import repair_lines, repaired_lines
from lastgood.core.errors import OutcomeUnknown, Refused
from lastgood.core.history import RepairHistory
from lastgood.core.record import RepairBegun, RestorePointKept
from lastgood.core.release import DumpFormat
from lastgood.core.repair import NotRepaired, RepairPlan, RepairState
from lastgood.runbook import record as recording
from lastgood.runbook.repair import look, repair
from lastgood.testing.stack import WELL, Behaviour
from lastgood.testing.world import START
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


def repaired(team: Team) -> RepairHistory:
    return repair(team.rooms(), look(team.rooms()))


def states(team: Team) -> list[RepairState]:
    return [known.state for known in team.history.repairs.values()]


def test_the_report_names_the_command(team: Team) -> None:
    assert any(line.startswith("lastgood repair ") for line in team.report.next_steps)


def test_looking_changes_nothing(team: Team) -> None:
    before = dict(team.stack.broken)
    assert {row.key[0][1] for row in look(team.rooms()).rows} == before.keys()
    assert team.stack.broken == before
    assert states(team) == []


def test_what_a_person_agreed_to_is_put_right_and_noted_with_the_old_values(team: Team) -> None:
    done = repaired(team)
    assert team.stack.broken == {}
    assert states(team) == [RepairState.DONE]
    assert (done.begun.by, done.begun.plan.rows[0].columns[0].now) == (team.who, "0")
    assert look(team.rooms()).rows == ()


def test_a_row_that_was_changed_since_it_was_shown_refuses_all(team: Team) -> None:
    plan = look(team.rooms())
    team.stack.broken.popitem()
    with pytest.raises(Refused, match="not as it was shown"):
        repair(team.rooms(), plan)
    assert states(team) == []


def test_a_lost_answer_is_looked_up_by_the_next_command(team: Team) -> None:
    team.stack.loses_answers = True
    with pytest.raises(OutcomeUnknown):
        repaired(team)
    assert states(team) == [RepairState.UNKNOWN]
    assert look(team.rooms()).rows == ()
    assert states(team) == [RepairState.DONE]


def test_a_repair_that_was_never_committed_is_known_as_one_that_changed_nothing(team: Team) -> None:
    team.stack.loses_answers = True
    broken = dict(team.stack.broken)
    with pytest.raises(OutcomeUnknown):
        repaired(team)
    team.stack.committed.clear()
    team.stack.broken |= broken
    team.stack.loses_answers = False
    repaired(team)
    assert states(team) == [RepairState.NOTHING, RepairState.DONE]


def test_a_release_that_is_watched_is_left_alone(team: Team) -> None:
    plan = look(team.rooms())
    team.unfreeze()
    team.deploy("v3", WELL)
    for command in (lambda: look(team.rooms()), lambda: repair(team.rooms(), plan)):
        with pytest.raises(Refused, match="v3 is watched"):
            command()


def test_the_restore_point_is_the_one_with_which_the_newest_rollback_compared(team: Team) -> None:
    (known,) = team.history.restore_points
    assert look(team.rooms()).since == look(team.rooms(), known).since == known
    with pytest.raises(Refused, match=f"'rp-x' not found; known: {known}"):
        look(team.rooms(), "rp-x")


def test_after_a_deploy_that_mended_the_cause_it_is_still_the_one_before_the_bad_release(team: Team) -> None:
    (known,) = team.history.restore_points
    team.unfreeze()
    team.deploy("v3", WELL)
    recording.vouch(team.rooms(), "v3", why="looked at it")
    assert len(team.history.restore_points) == 2
    assert look(team.rooms()).since == known


def test_a_rollback_after_the_watch_counts_too(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path)
    team.deploy("v2", WELL)
    team.watch()
    team.deploy("v3", WELL)
    team.watch()
    team.stack.broken["7"] = False
    team.roll_back(OLD)
    assert look(team.rooms()).since == team.history.restore_point_id("d2")


def test_a_dump_of_ones_own_is_nothing_to_compare_with(team: Team) -> None:
    (known,) = team.history.restore_points.values()
    own = replace(known, id="own", own=DumpFormat.PLAIN)
    team.journal.append(RestorePointKept(restore_point=own))
    with pytest.raises(Refused, match="a dump of your own"):
        look(team.rooms(), "own")


def test_a_person_reads_every_value_and_what_stays(team: Team) -> None:
    done = repaired(team)
    told = "\n".join(repaired_lines(done))
    assert f"repair {done.begun.repair}  done, by {team.who} at " in told
    assert "credits  '0' -> '100'" in told


def test_what_stands_in_a_row_looks_like_no_other_row_and_is_cut(team: Team) -> None:
    plan = look(team.rooms())
    forged = replace(plan.rows[0], key=(("id", "1\n    credits  '0' -> '9'\x1b[2J"),))
    long = replace(forged.columns[0], now="x" * 5000)
    left = NotRepaired(invariant="owner", rows=30, keys=("1", "2\n3"), why="no key")
    shown = RepairPlan(since="rp", taken_at=START, rows=(replace(forged, columns=(long,)),), left=(left,))
    _, row, value, _, stays = repair_lines(shown)
    assert row == "missions 1     credits  '0' -> '9'\ufffd[2J  breaks credits"
    assert len(value) < 300
    assert stays == "stays  30 rows of owner (1, 2 3, ...): no key"


def test_who_repaired_is_in_the_journal(team: Team) -> None:
    repaired(team)
    assert [event.by for event in team.events(RepairBegun)] == [team.who]
