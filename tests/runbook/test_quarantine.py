"""What a person decides about the quarantine is done once, whoever dies in between, and is never forgotten."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lastgood.cli.rendering import quarantine_lines, quarantine_rows
from lastgood.core.errors import OutcomeUnknown, Refused
from lastgood.core.plan import ReplayWrites, Role
from lastgood.core.quarantine import EntryChange, EntryState, QuarantineEntry
from lastgood.core.record import QuarantineDecided
from lastgood.runbook import kept
from lastgood.runbook.quarantine import discard, find, look, requeue
from lastgood.testing.stack import TABLE
from tests.runbook.team import Team
from tests.runbook.test_rollback import with_a_database_step


@pytest.fixture
def team(tmp_path: Path) -> Team:
    """The database went back, and one transaction did not fit."""
    team = with_a_database_step(tmp_path)
    team.roll_back()
    run = next(reversed(team.history.runs.values()))
    replay = next(s.action for s in run.plan.steps if isinstance(s.action, ReplayWrites)).replay
    change = EntryChange(
        table=TABLE, kind="updated", old={"id": "1", "title": "a"}, new={"id": "1", "title": "\x1b[2Jb"}
    )
    team.stack.quarantine.append(
        QuarantineEntry(
            id="7-0/1", replay=replay, reason="it does not fit", changes=(change,), xid=7, committed_at="at"
        )
    )
    team.stack.unfit.clear()
    return team


def state(team: Team) -> EntryState:
    return find(team.rooms(), "7-0/1").decision.state


def test_an_entry_waits_until_somebody_decides(team: Team) -> None:
    assert [one.decision.state for one in look(team.rooms())] == [EntryState.WAITING]


def test_a_requeue_is_noted_with_who_did_it(team: Team) -> None:
    requeue(team.rooms(), "7-0/1")
    assert (state(team), find(team.rooms(), "7-0/1").decision.by) == (EntryState.REQUEUED, team.who)


def test_a_second_requeue_puts_nothing_in(team: Team) -> None:
    requeue(team.rooms(), "7-0/1")
    assert "already" in requeue(team.rooms(), "7-0/1")[0]
    assert len(team.stack.committed) == 1


def test_an_entry_that_does_not_fit_goes_on_waiting(team: Team) -> None:
    team.stack.unfit[TABLE] = 1
    with pytest.raises(Refused, match="it does not fit"):
        requeue(team.rooms(), "7-0/1")
    assert state(team) is EntryState.WAITING


def test_a_requeue_whose_answer_was_lost_is_looked_up_and_not_repeated(team: Team) -> None:
    team.stack.loses_answers = True
    with pytest.raises(OutcomeUnknown):
        requeue(team.rooms(), "7-0/1")
    assert state(team) is EntryState.UNKNOWN
    assert "already" in requeue(team.rooms(), "7-0/1")[0]
    assert len(team.stack.committed) == 1
    assert state(team) is EntryState.REQUEUED


def test_a_requeue_that_was_never_committed_is_done_again(team: Team) -> None:
    team.stack.loses_answers = True
    with pytest.raises(OutcomeUnknown):
        requeue(team.rooms(), "7-0/1")
    team.stack.committed.clear()
    team.stack.loses_answers = False
    requeue(team.rooms(), "7-0/1")
    assert len(team.stack.committed) == 1


def test_leaving_an_entry_out_needs_a_reason(team: Team) -> None:
    with pytest.raises(Refused, match="needs a reason"):
        discard(team.rooms(), "7-0/1", " ")
    discard(team.rooms(), "7-0/1", "a test order")
    assert find(team.rooms(), "7-0/1").decision.why == "a test order"


def test_what_is_in_the_live_database_cannot_be_left_out(team: Team) -> None:
    requeue(team.rooms(), "7-0/1")
    with pytest.raises(Refused, match="is in the live database"):
        discard(team.rooms(), "7-0/1", "a test order")


def test_a_person_may_think_again(team: Team) -> None:
    discard(team.rooms(), "7-0/1", "a test order")
    requeue(team.rooms(), "7-0/1")
    assert [e.decision.state.value for e in team.events(QuarantineDecided)] == ["discarded", "unknown", "requeued"]


def test_without_a_database_there_is_no_quarantine(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path, parts=frozenset({Role.CONTAINERS}))
    with pytest.raises(Refused, match="no database is configured"):
        look(team.rooms())


def test_an_entry_is_shown_without_what_would_reach_into_the_terminal(team: Team) -> None:
    (row,) = quarantine_rows(look(team.rooms()))
    assert row[1:] == ("waiting", TABLE, "it does not fit")
    lines = list(quarantine_lines(find(team.rooms(), "7-0/1")))
    assert "    id  1" in lines
    assert "    title  a -> �[2Jb" in lines


def test_a_transaction_that_two_replays_told_of_waits_once_and_is_put_in_once(team: Team) -> None:
    first = team.stack.quarantine[0]
    team.stack.quarantine.append(replace(first, replay="replay-of-a-lifted-fence"))
    assert [one.entry.id for one in look(team.rooms())] == [first.id]
    requeue(team.rooms(), first.id)
    team.stack.quarantine.reverse()
    assert "already" in requeue(team.rooms(), first.id)[0]
    assert len(team.stack.committed) == 1


def test_nothing_is_put_in_while_a_deployment_is_watched(tmp_path: Path) -> None:
    team = with_a_database_step(tmp_path)
    with pytest.raises(Refused, match="is watched"):
        requeue(team.rooms(), "7-0/1")


def test_the_database_that_it_was_written_to_is_not_let_go_while_it_waits(team: Team) -> None:
    (one,) = kept.look(team.rooms())
    with pytest.raises(Refused, match=f"1 entries of the quarantine are from {one.name}, and wait"):
        kept.release(team.rooms(), one.name)
    discard(team.rooms(), "7-0/1", "a test order")
    kept.release(team.rooms(), one.name)
    assert kept.look(team.rooms()) == ()
