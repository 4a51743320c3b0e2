"""What `lastgood status` and `lastgood history` say after an incident is what is so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lastgood.cli.rendering import history_rows, release_rows, report_lines
from lastgood.cli.status import Status, look
from lastgood.core.errors import NeedsHuman, Refused, Retryable
from lastgood.core.plan import Role
from lastgood.core.record import ReleaseLetGo, ReleaseRecorded
from lastgood.core.release import Standing
from lastgood.core.report import TerminalState
from lastgood.runbook.watch import watchable
from lastgood.testing.stack import WELL, Behaviour
from lastgood.testing.world import Crash
from tests.runbook.team import BAD, OLD, Team

NEVER_BOOTS = Behaviour(boots=False)
TAKEN = Refused("the port is taken", hint="ss -ltnp")


def status(team: Team) -> Status:
    return look(team.rooms())


def ending(team: Team) -> TerminalState:
    """How the newest deployment ended, as the journal has it."""
    assert team.deployment.ended is not None
    return team.deployment.ended.terminal


def refused_once(team: Team) -> Team:
    """v2 serves, and the rollback to v1 was refused at the gate."""
    team.deploy(BAD, WELL)
    team.fails("pass-gate", Refused("core of v1 exited with 1"))
    assert team.roll_back().terminal is TerminalState.REFUSED
    return team


def stopped_half_way(team: Team) -> Team:
    refused_once(team)
    team.fails("serve-orchestrator", TAKEN)
    assert team.roll_back().terminal is TerminalState.NEEDS_HUMAN
    return team


def dies_in(team: Team, step: str) -> None:
    """The process of a rollback dies within a step."""

    def die() -> None:
        raise Crash

    team.stack.takes_s[step] = 1.0
    team.clock.after(0.5, die)
    with pytest.raises(Crash):
        team.roll_back()
    team.stack.takes_s.clear()


# --- a second run about the same deployment ----------------------------------------------------------------------


def test_a_rollback_that_needs_a_person_is_what_status_says_although_one_was_refused_before(team: Team) -> None:
    stopped_half_way(team)
    said = status(team)
    assert said.state == "NEEDS_HUMAN"
    assert "next: ss -ltnp" in said.lines


def test_a_rollback_after_one_that_was_refused_is_in_the_history(team: Team) -> None:
    refused_once(team)
    team.roll_back()
    assert ending(team) is TerminalState.ROLLED_BACK_VERIFIED
    assert team.report.run in next(row[4] for row in history_rows(team.history) if row[1] == BAD)


def test_a_rollback_that_touches_nothing_leaves_the_ending_from_before(team: Team) -> None:
    stopped_half_way(team)
    team.fails("pass-gate", TAKEN)
    assert team.roll_back(OLD).terminal is TerminalState.REFUSED
    assert (status(team).state, ending(team)) == ("NEEDS_HUMAN", TerminalState.NEEDS_HUMAN)


def test_a_rollback_of_a_release_that_was_kept_is_how_its_deployment_ended(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.watch()
    team.roll_back()
    assert ending(team) is TerminalState.ROLLED_BACK_VERIFIED


def test_a_part_that_went_back_by_itself_ends_no_deployment(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.watch()
    team.roll_back(only=frozenset({Role.FRONTEND}))
    assert ending(team) is TerminalState.HEALTHY_KEPT


# --- a rollback to what serves already ---------------------------------------------------------------------------


def put_right(team: Team) -> Team:
    """A container of v1 was sick while v1 served, and a person typed `rollback v1`."""
    team.stack.sicken("agent")
    assert team.roll_back(OLD).terminal is TerminalState.ROLLED_BACK_VERIFIED
    return team


def test_putting_right_what_serves_is_not_told_as_a_deployment_that_failed(team: Team) -> None:
    put_right(team)
    assert team.channel.texts == [
        "ℹ️ v1 served already. What was not as it left it was put right, and the checks passed."
    ]
    assert next(report_lines(team.report)).startswith("ROLLED_BACK_VERIFIED  v1 put right  (run ")


def test_putting_right_what_serves_bars_nothing_and_says_nothing_of_the_checkout(team: Team) -> None:
    release = team.history.releases[OLD].release
    team.journal.append(ReleaseLetGo(release=OLD, why="a clean-up"))
    team.journal.append(ReleaseRecorded(release=replace(release, commit="4e1f" * 10)))
    report = put_right(team).report
    assert [note for note in report.notes if "checkout" in note] == []
    assert [step for step in report.next_steps if "lastgood watch" in step] == []
    assert team.history.releases[OLD].standing is Standing.GOOD


def test_putting_right_what_serves_is_in_the_history_and_changes_no_ending(team: Team) -> None:
    put_right(team)
    ((_, release, _, ended, runs, _),) = history_rows(team.history)
    assert (release, ended, runs) == (OLD, "HEALTHY_KEPT", team.report.run)


def test_putting_right_what_serves_brings_a_rollback_that_needed_a_person_to_its_end(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.fails("return-frontend", NeedsHuman("look at the host"))
    assert team.roll_back().terminal is TerminalState.NEEDS_HUMAN
    assert team.roll_back(OLD).terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert (status(team).state, ending(team)) == ("IDLE", TerminalState.ROLLED_BACK_VERIFIED)


# --- a release that never served ---------------------------------------------------------------------------------


def test_a_release_that_failed_at_the_gate_is_told_as_one_that_never_served(team: Team) -> None:
    team.deploy(BAD, NEVER_BOOTS, pushed=False)
    told = team.channel.texts[-1]
    assert told.startswith("ℹ️ v2 was not deployed (pass-gate: ")
    assert told.endswith("It never served, nothing had to be put back: v1 serves, and the checks passed.")
    assert next(report_lines(team.report)).startswith("ROLLED_BACK_VERIFIED  v2 never served, v1 does  (run ")


def test_a_deploy_that_stops_names_its_step_once(team: Team) -> None:
    team.deploy(BAD, NEVER_BOOTS)
    assert [line for line in team.told if line.startswith("deploy stopped at pass-gate: ")]
    assert [line for line in team.told if "pass-gate: pass-gate" in line] == []


def test_a_release_that_served_in_part_is_told_as_a_deployment_that_failed(team: Team) -> None:
    team.fails("serve-orchestrator", TAKEN)
    team.deploy(BAD, WELL)
    assert team.channel.texts[-1].startswith("🚨 Deployment failed. Rollback to v1 completed.")


def test_a_release_without_a_change_that_turns_bad_is_told_as_a_deployment_that_failed(team: Team) -> None:
    team.stack.behaves["v2"] = Behaviour(errors=0.3)
    team.deploy(BAD)
    team.watch()
    assert "Deployment failed." in team.channel.texts[-1]


# --- what serves -------------------------------------------------------------------------------------------------


def test_a_rollback_that_stopped_half_way_says_which_service_answers_from_which_release(team: Team) -> None:
    stopped_half_way(team)
    said = status(team)
    assert said.serving == ""
    assert said.answering == {"core": (OLD,), "orchestrator": (BAD,), "agent": (BAD,)}
    assert said.said == "no release serves whole: core of v1; orchestrator, agent of v2"


def test_no_release_of_a_rollback_that_stopped_half_way_is_listed_as_what_serves(team: Team) -> None:
    stopped_half_way(team)
    assert {row[0]: row[2] for row in release_rows(team.history)} == {OLD: "serves in part", BAD: "serves in part"}


def test_what_was_left_half_way_serves_whole_again_once_it_is_carried_through(team: Team) -> None:
    stopped_half_way(team)
    team.roll_back(OLD)
    assert status(team).said == "v1 serves"


def test_a_deploy_that_stopped_half_way_and_was_put_back_leaves_one_release_that_serves(team: Team) -> None:
    team.fails("serve-orchestrator", TAKEN)
    team.deploy(BAD, WELL)
    assert status(team).said == "v1 serves"


def test_a_step_that_left_nothing_changed_leaves_what_serves(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.fails("serve-core", TAKEN)
    team.roll_back()
    assert status(team).said == "v2 serves"


@pytest.mark.parametrize("answered", [True, False], ids=["switched", "no-answer"])
def test_a_death_past_the_switch_is_never_said_to_leave_the_release_before(team: Team, answered: bool) -> None:
    team.put_behind_an_edge()
    team.deploy(BAD, WELL)
    dies_in(team, "settle" if answered else "switch-traffic")
    said = status(team)
    assert said.state == "INTERRUPTED"
    assert said.said.startswith("v1 serves" if answered else "v2 serves, or v1 already")
    assert said.serving == ("v1" if answered else "")


def test_a_person_who_aborted_half_way_is_told_no_release_that_serves_only_in_part(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.stack.takes_s["serve-core"] = 5.0
    team.clock.after(1.0, team.abort)
    team.roll_back()
    assert "What serves: lastgood status" in team.channel.texts[-1]


# --- what waits for a person --------------------------------------------------------------------------------------


def test_what_a_run_waits_for_is_said_also_where_its_process_died(tmp_path: Path) -> None:
    def die() -> None:
        raise Crash

    team = Team.with_a_good_release(tmp_path, mode="propose")
    team.deploy(BAD, Behaviour(errors=0.3))
    team.when_asked(die)
    with pytest.raises(Crash):
        team.watch()
    said = status(team)
    assert said.state == "INTERRUPTED"
    assert f"for: lastgood approve {team.waiting} " in " ".join(said.lines)
    team.approve()
    assert "lastgood approve" not in " ".join(status(team).lines)


def test_who_holds_a_right_is_named(team: Team) -> None:
    seen: list[Status] = []

    def asked(_plan: object) -> bool:
        seen.append(status(team))
        with team.journal.claim("grace@laptop"):
            seen.append(status(team))
        return False

    with pytest.raises(Refused, match="not confirmed"):
        team.deploy(BAD, WELL, confirm=asked)
    preparing = "a release is prepared by ada@laptop; a rollback does not wait for that"
    assert (seen[0].lines[-1:], seen[1].lines[-1:]) == ((preparing,), ("the right to run is held by grace@laptop",))


def test_no_watch_is_named_to_go_on_with_a_deploy_that_died_at_its_gate(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(_step: object) -> None:
        raise Crash

    monkeypatch.setattr(team.containers, "apply", dies)
    with pytest.raises(Crash):
        team.deploy(BAD, WELL)
    assert status(team).lines[-1] == "next       lastgood rollback"


def test_what_serves_can_be_watched_while_a_deploy_lies_at_its_gate(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(_step: object) -> None:
        raise Crash

    team.deploy(BAD, WELL)
    monkeypatch.setattr(team.containers, "apply", dies)
    with pytest.raises(Crash):
        team.deploy("v3", WELL)
    under = watchable(team.rooms())
    assert under is not None
    assert under.deployment.release == BAD


def test_what_does_not_serve_though_its_release_does_is_said_with_what_to_type(team: Team) -> None:
    team.stack.sicken("agent")
    assert f"not serving now: agent   (next: lastgood rollback {OLD})" in status(team).lines


def test_an_engine_that_does_not_answer_keeps_no_status_back(team: Team) -> None:
    team.stack.away[Role.CONTAINERS] = Retryable("the engine does not answer", delay_s=1.0)
    found = status(team)
    assert found.said == f"{OLD} serves"
    assert "what runs now could not be seen: the engine does not answer" in found.lines


# --- what runs beside ---------------------------------------------------------------------------------------------


def test_status_says_who_is_asked_beside_the_edge_and_what_stops_them(team: Team) -> None:
    team.put_behind_an_edge()
    assert not [line for line in status(team).lines if "docker stop" in line]
    team.start_beside("1234567890abcdef")
    (said,) = [line for line in status(team).lines if "docker stop" in line]
    assert said.startswith("core of no release: started past lastgood")
    assert said.endswith("(next: docker stop 1234567890ab)")
