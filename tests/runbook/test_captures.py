"""What the server keeps for a replay has an end, also where nobody watches: by size, by time, or by the server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lastgood.core.errors import Refused, Retryable
from lastgood.core.plan import Plan, Role
from lastgood.core.ports import Right
from lastgood.core.report import TerminalState
from lastgood.runbook import captures
from lastgood.runbook import deploy as deploying
from lastgood.runbook import record as recording
from lastgood.runbook.doctor import Answer, Finding, examine
from lastgood.testing.stack import WELL
from lastgood.testing.world import Crash
from tests.runbook.team import BAD, Team
from tests.runbook.test_rollback import CANNOT_RUN, MIGRATING, deployed

BOUND = "psql -c \"ALTER SYSTEM SET max_slot_wal_keep_size = '4096MB'\" -c 'SELECT pg_reload_conf()'"


@pytest.fixture
def team(tmp_path: Path) -> Team:
    """v2 serves, what is written is kept, and nobody watches."""
    team = Team.with_a_good_release(tmp_path)
    team.stack.captures = True
    team.deploy(BAD, WELL)
    return team


def grows(team: Team, gib: int) -> None:
    team.stack.database = replace(team.stack.database, capture_bytes=gib << 30)


def unbounded(team: Team) -> None:
    team.stack.database = replace(team.stack.database, slot_limit_bytes=None)


def kept(team: Team) -> bool:
    return bool(team.stack.database.captures)


def capture_of(team: Team) -> Finding:
    return next(finding for finding in examine(team.rooms()) if finding.check == "capture")


def test_a_log_that_is_small_and_may_be_needed_stays_and_nobody_is_told(team: Team) -> None:
    captures.mind(team.rooms())
    assert kept(team)
    assert team.channel.texts == []


def test_a_command_finds_a_log_at_half_of_its_limit_and_tells_once(team: Team) -> None:
    grows(team, 3)
    captures.mind(team.rooms())
    captures.mind(team.rooms())
    assert kept(team)
    assert [text.partition("; ")[2][:15] for text in team.channel.texts] == ["at the limit th"]


def test_nobody_is_told_of_a_log_that_grows_while_a_restore_point_is_taken(team: Team) -> None:
    grows(team, 5)
    with team.rooms().memory.journal.claim("a deploy"):
        captures.mind(team.rooms())
    assert kept(team)
    assert team.channel.texts == []


def test_a_command_ends_a_log_that_is_over_its_limit_and_tells(team: Team) -> None:
    grows(team, 5)
    captures.mind(team.rooms())
    assert not kept(team)
    assert "limit 4096 MiB; the capture was ended" in team.channel.texts[-1]


def test_a_command_ends_a_log_that_outlived_the_watch_that_nobody_held(team: Team) -> None:
    team.clock.sleep(301.0)
    captures.mind(team.rooms())
    assert not kept(team)
    assert "could be needed until" in team.channel.texts[-1]


def test_a_log_that_a_deploy_left_which_was_killed_is_bounded_too(team: Team) -> None:
    team.watch()
    team.stack.takes_s["take-restore-point"] = 2.0

    def die() -> None:
        raise Crash

    team.clock.after(1.0, die)
    with pytest.raises(Crash):
        team.deploy("v3", WELL)
    team.stack.database = replace(team.stack.database, capture_left=True)
    captures.mind(team.rooms())
    assert team.stack.database.capture_left
    grows(team, 5)
    captures.mind(team.rooms())
    assert not team.stack.database.capture_left
    assert team.history.open_run is not None  # and the deploy is still to be undone
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED


def test_a_log_that_the_server_gave_up_is_told_of_and_tidied_away(team: Team) -> None:
    team.stack.database = replace(team.stack.database, captures=frozenset(), capture_left=True)
    captures.mind(team.rooms())
    assert "can no longer be replayed one by one; the capture was ended" in team.channel.texts[-1]
    assert not team.stack.database.capture_left


def test_who_is_vouched_for_needs_no_log_any_more(team: Team) -> None:
    recording.vouch(team.rooms(), BAD, why="seen")
    team.clock.sleep(1.0)
    before = list(team.channel.texts)
    captures.mind(team.rooms())
    assert not kept(team)
    assert team.channel.texts == before


def test_a_watch_that_lives_is_left_to_end_it_by_time(team: Team) -> None:
    team.clock.sleep(301.0)
    with team.journal.claim("eve@host", Right.WATCH):
        captures.mind(team.rooms())
    assert kept(team)


def test_a_server_that_is_away_stops_no_command(team: Team) -> None:
    team.stack.away[Role.DATABASE] = Retryable("no answer", delay_s=1.0)
    captures.mind(team.rooms())
    assert "could not be looked at: no answer" in team.told[-1]


def test_where_nothing_was_captured_nobody_is_asked(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path)
    team.deploy(BAD, WELL)
    team.stack.away[Role.DATABASE] = Retryable("no answer", delay_s=1.0)
    before = list(team.told)
    captures.mind(team.rooms())
    assert team.told == before


def test_who_deploys_and_does_not_watch_is_told_what_is_kept_and_until_when(team: Team) -> None:
    (said,) = captures.leave(team.rooms())
    assert "until 2026-01-01 00:05 UTC, at most 4096 MiB; nobody watches" in said
    assert kept(team)


def test_without_a_limit_of_the_server_nothing_is_kept_where_nobody_watches(team: Team) -> None:
    unbounded(team)
    said = captures.leave(team.rooms())
    assert not kept(team)
    assert "would put back only the last state of rows" in said[0]
    assert said[1] == f"to bound it: {BOUND}"


def test_what_could_not_be_ended_is_not_called_ended(team: Team) -> None:
    unbounded(team)
    with team.journal.claim("eve@host"):
        said = captures.leave(team.rooms())
    assert "is still kept" in said[0]


def planned(team: Team, *, watched: bool) -> Plan:
    """What a person is shown before the next deploy."""
    shown: list[Plan] = []

    def no(plan: Plan) -> bool:
        shown.append(plan)
        return False

    with pytest.raises(Refused, match="not confirmed"):
        deploying.deploy(team.rooms(), "v3", first=False, override=False, confirm=no, watched=watched)
    return shown[0]


def test_a_deploy_says_beforehand_that_nobody_bounds_the_log(team: Team) -> None:
    team.watch()
    assert planned(team, watched=True).warnings == ()
    unbounded(team)
    (warning,) = planned(team, watched=True).warnings
    assert "should the watch die, the server's log grows" in warning
    assert BOUND in warning
    (warning,) = planned(team, watched=False).warnings
    assert "nobody will watch, so its log is kept no longer than the deploy" in warning


def test_a_deploy_that_must_be_lossless_is_refused_where_its_log_would_not_be_kept(team: Team) -> None:
    team.watch()
    team.lossless = True
    planned(team, watched=False)
    unbounded(team)
    planned(team, watched=True)
    with pytest.raises(Refused, match="nobody will watch"):
        deploying.deploy(team.rooms(), "v3", first=False, override=False, confirm=lambda _: True, watched=False)


def test_the_doctor_fails_a_log_without_any_end(team: Team) -> None:
    assert capture_of(team).answer is Answer.OK
    unbounded(team)
    finding = capture_of(team)
    assert (finding.answer, finding.hint) == (Answer.FAILED, BOUND)
    with team.journal.claim("eve@host", Right.WATCH):
        assert capture_of(team).answer is Answer.OK


def test_a_log_that_grows_too_large_while_a_person_is_asked_ends_and_nothing_was_touched(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path)
    team.stack.captures = True
    deployed(team, MIGRATING, CANNOT_RUN)
    team.when_asked(lambda: grows(team, 5), after_s=3600.0)
    report = team.roll_back()
    assert report.terminal is TerminalState.REFUSED
    assert any("of log for a replay, limit 4096 MiB" in note for note in report.notes)
    assert not kept(team)
    assert team.stack.serving == BAD
    assert "fence" not in team.stack.effects


def test_a_rollback_that_died_keeps_what_it_replays_from(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path)
    team.stack.captures = True
    deployed(team, MIGRATING, CANNOT_RUN)
    team.when_asked(team.approve)

    def die() -> None:
        raise Crash

    team.stack.takes_s["fence"] = 2.0
    team.clock.after(1.0, die)
    with pytest.raises(Crash):
        team.roll_back()
    grows(team, 5)
    captures.mind(team.rooms())
    assert kept(team)


def test_a_log_that_somebody_in_the_way_keeps_is_not_told_to_have_ended(team: Team) -> None:
    grows(team, 5)
    with team.journal.claim("eve@host"):
        captures.mind(team.rooms())
    assert kept(team)
    assert team.channel.texts == []
    captures.mind(team.rooms())
    assert not kept(team)
    assert "the capture was ended" in team.channel.texts[-1]


def test_a_log_of_a_database_that_was_replaced_goes_without_a_word(team: Team) -> None:
    team.stack.database = replace(team.stack.database, foreign=team.stack.database.captures)
    captures.mind(team.rooms())
    assert not kept(team)
    assert team.channel.texts == []
