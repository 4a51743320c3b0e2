"""The watch window: what it concludes, what it never concludes, and who may act on it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from lastgood.core.errors import NeedsHuman, Refused, Retryable
from lastgood.core.migration import Fit, FitsSchema
from lastgood.core.plan import Role
from lastgood.core.ports import Right
from lastgood.core.reading import NoData, Reading
from lastgood.core.record import BucketSeen, DeploymentEnded, RunStarted, Told
from lastgood.core.release import Standing
from lastgood.core.report import TerminalState
from lastgood.testing.stack import NO_ANSWER, PROBE, SERVICES, WELL, Behaviour
from lastgood.testing.world import Crash
from tests.runbook.team import BAD, ERRORS, OLD, Team

EYES = ("traffic", PROBE, "data")
WINDOW_S = 300.0
BAKE_S = 60.0
INTERVAL_S = 5.0
BREAKING_ROWS = Behaviour(breaks_rows=True)


def die() -> None:
    """Kill -9."""
    raise Crash


def watch_until(team: Team, seconds: float) -> None:
    """Watch, and die so long after."""
    team.clock.after(seconds, die)
    with pytest.raises(Crash):
        team.watch()


def watched_s(team: Team) -> float:
    """How long the newest watch took, from its start to its last bucket."""
    assert team.deployment.watch is not None
    return (team.deployment.buckets[-1].at - team.deployment.watch.at).total_seconds()


def world(team: Team) -> object:
    """Everything that a person would find."""
    stack = team.stack
    return stack.containers.serving, stack.containers.candidates, stack.database, stack.frontend


def touched(team: Team) -> object:
    """The same, and what was done to it."""
    return world(team), dict(team.stack.effects)


# --- what it concludes -------------------------------------------------------------------------------------------


def test_a_release_without_a_fault_is_kept_and_good(team: Team) -> None:
    team.deploy(BAD, WELL)
    assert team.watch().terminal is TerminalState.HEALTHY_KEPT
    assert team.history.releases[BAD].standing is Standing.GOOD


@pytest.mark.parametrize(
    "behaviour,trigger",
    [
        (ERRORS, "error-rate"),
        (Behaviour(slow=0.3), "latency"),
        (Behaviour(answers=False), PROBE),
        (BREAKING_ROWS, "data"),
        (replace(ERRORS, after_s=120.0), "error-rate"),
    ],
    ids=["errors", "latency", "feature", "data", "late"],
)
def test_a_release_that_turns_bad_goes_back_and_the_report_names_the_trigger(
    team: Team, behaviour: Behaviour, trigger: str
) -> None:
    team.deploy(BAD, behaviour)
    outcome = team.watch()
    assert outcome.report is not None
    assert (outcome.report.trigger, team.stack.serving) == (trigger, OLD)


def test_a_watch_says_in_one_line_what_it_sees_beside_its_limits(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.watch()
    assert any("5xx 0.0%" in line and "limit 1%" in line and "left" in line for line in team.told)


def test_a_trigger_that_was_red_before_the_deploy_is_not_armed_and_says_so(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path, baseline="30s")
    team.stack.behaves[OLD] = ERRORS
    team.deploy(BAD, ERRORS)
    outcome = team.watch()
    assert outcome.report is None
    assert any("error-rate: not armed, already over its limit before the deploy" in line for line in team.told)


def test_rows_that_were_invalid_before_the_deploy_are_not_held_against_it(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path, baseline="30s")
    team.stack.broken["legacy"] = False
    team.deploy(BAD, WELL)
    assert team.watch().terminal is TerminalState.HEALTHY_KEPT


# --- blindness ---------------------------------------------------------------------------------------------------


NOTHING = NoData(reason="nothing")
BLIND = [pytest.param(NO_ANSWER, id="down"), pytest.param(NOTHING, id="no-data")]


def blind_team(tmp_path: Path, *eyes: str, behaviour: Behaviour = ERRORS, says: Reading = NO_ANSWER) -> Team:
    """v2 is watched, and these eyes see nothing of it."""
    team = Team.with_a_good_release(tmp_path)
    team.deploy(BAD, behaviour)
    team.stack.blindfold(*eyes, says=says)
    return team


def pages(team: Team) -> list[str]:
    """What the team was told while the watch went on."""
    return [text for text in team.channel.texts if text.startswith("👁")]


@pytest.mark.parametrize("says", BLIND)
def test_a_blind_watch_never_rolls_back(tmp_path: Path, says: Reading) -> None:
    team = blind_team(tmp_path, *EYES, says=says)
    before = touched(team)
    team.watch()
    assert touched(team) == before


@pytest.mark.parametrize("says", BLIND)
def test_a_blind_watch_ends_inconclusive(tmp_path: Path, says: Reading) -> None:
    assert blind_team(tmp_path, *EYES, says=says).watch().terminal is TerminalState.INCONCLUSIVE_KEPT


def test_a_blind_watch_makes_no_release_good(tmp_path: Path) -> None:
    team = blind_team(tmp_path, *EYES)
    team.watch()
    assert team.history.releases[BAD].standing is Standing.RECORDED


@pytest.mark.parametrize("says", BLIND)
def test_a_blind_watch_pages_once(tmp_path: Path, says: Reading) -> None:
    team = blind_team(tmp_path, *EYES, says=says)
    team.watch()
    assert len(pages(team)) == 1


def test_a_blind_watch_that_is_taken_up_does_not_page_again(tmp_path: Path) -> None:
    team = blind_team(tmp_path, *EYES)
    watch_until(team, 100.0)
    team.watch()
    assert len(pages(team)) == 1


def test_one_missed_look_pages_nobody(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.clock.after(50.0, lambda: team.stack.blindfold("traffic"))
    team.clock.after(56.0, team.stack.blind.clear)
    team.watch()
    assert pages(team) == []


def test_a_probe_that_fails_rolls_back_although_the_traffic_cannot_be_seen(tmp_path: Path) -> None:
    team = blind_team(tmp_path, "traffic", behaviour=Behaviour(answers=False))
    outcome = team.watch()
    assert outcome.terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert team.stack.serving == OLD


@pytest.mark.parametrize(
    "blind_s,terminal", [(20.0, TerminalState.HEALTHY_KEPT), (40.0, TerminalState.INCONCLUSIVE_KEPT)]
)
def test_a_window_that_was_seen_for_less_than_nine_tenths_is_not_good(
    team: Team, blind_s: float, terminal: TerminalState
) -> None:
    team.deploy(BAD, WELL)
    team.clock.after(101.0, lambda: team.stack.blindfold(*EYES))
    team.clock.after(101.0 + blind_s, team.stack.blind.clear)
    assert team.watch().terminal is terminal


def test_a_process_that_was_away_for_a_minute_of_five_leaves_a_release_that_is_not_good(team: Team) -> None:
    team.deploy(BAD, WELL)
    watch_until(team, 100.0)
    team.clock.sleep(60.0)
    assert team.watch().terminal is TerminalState.INCONCLUSIVE_KEPT


def test_what_could_not_be_seen_is_told_at_the_end(tmp_path: Path) -> None:
    team = blind_team(tmp_path, "data", behaviour=WELL)
    team.watch()
    assert f"{BAD} was kept, but is not proved good" in team.channel.texts[-1]
    assert "blind to data" in team.channel.texts[-1]


# --- a watch that is interrupted ---------------------------------------------------------------------------------


def test_a_watch_that_is_killed_and_taken_up_keeps_its_evidence(team: Team) -> None:
    team.deploy(BAD, ERRORS)
    watch_until(team, 43.0)
    outcome = team.watch()
    assert "300 of 1,000 requests = 30.0%" in outcome.sentence


def test_the_window_of_a_watch_that_is_taken_up_ends_when_it_would_have_ended(team: Team) -> None:
    team.deploy(BAD, WELL)
    watch_until(team, 200.0)
    team.clock.sleep(50.0)
    team.watch()
    assert WINDOW_S <= watched_s(team) < WINDOW_S + INTERVAL_S


def test_a_fault_in_the_last_look_still_goes_back(team: Team) -> None:
    team.deploy(BAD, replace(ERRORS, after_s=WINDOW_S - 20.0))
    assert team.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED


def test_a_second_watcher_is_refused_by_name(team: Team) -> None:
    team.deploy(BAD, WELL)
    refused: list[str] = []

    def also_watch() -> None:
        with pytest.raises(Refused) as error:
            team.watch()
        refused.append(error.value.message)

    team.clock.after(20.0, also_watch)
    team.watch()
    assert len(refused) == 1
    assert "ada@laptop" in refused[0]


def test_each_interval_is_counted_once_although_a_second_watcher_came(team: Team) -> None:
    team.deploy(BAD, WELL)

    def also_watch() -> None:
        with pytest.raises(Refused):
            team.watch()

    team.clock.after(20.0, also_watch)
    team.watch()
    seen = [event.bucket.at for event in team.events(BucketSeen)]
    assert all((later - at).total_seconds() >= INTERVAL_S for at, later in pairwise(seen))


def test_a_watcher_waits_for_one_that_was_superseded_and_lets_go_at_its_next_look(team: Team) -> None:
    team.deploy(BAD, WELL)
    with ExitStack() as other:
        other.enter_context(team.journal.claim("grace@laptop", Right.WATCH))
        team.clock.after(6.0, other.pop_all().close)
        assert team.watch().terminal is TerminalState.HEALTHY_KEPT


def test_a_watch_whose_journal_cannot_be_written_stops(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    team.deploy(BAD, ERRORS)
    monkeypatch.setattr(team.journal, "append", full)
    before = touched(team)
    with pytest.raises(NeedsHuman):
        team.watch()
    assert touched(team) == before


def full(_event: object) -> None:
    """A disk that takes nothing more."""
    raise NeedsHuman("the journal cannot be used: no space left on device")


def test_a_newer_deploy_supersedes_the_watch(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.clock.after(60.0, lambda: void(team.deploy("v3", WELL)))
    assert team.watch().terminal is TerminalState.SUPERSEDED


def void(_value: object) -> None:
    """Something is done, and nobody asks what came of it."""


# --- the frontend ------------------------------------------------------------------------------------------------


def test_the_frontend_of_a_release_is_learnt_while_it_is_watched(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.watch()
    assert team.history.releases[BAD].frontend == f"dpl_{BAD}"


def test_a_frontend_that_did_not_change_is_the_one_that_serves(team: Team) -> None:
    team.deploy(BAD, WELL, pushed=False)
    team.watch()
    assert team.history.releases[BAD].frontend == f"dpl_{OLD}"


def test_a_frontend_host_that_is_away_does_not_keep_a_release_from_being_good(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.stack.away[Role.FRONTEND] = Retryable("vercel: no answer", delay_s=1.0)
    assert team.watch().terminal is TerminalState.HEALTHY_KEPT


def test_a_frontend_host_that_never_answers_holds_no_watch_up(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.host.lets_go.clear()
    try:
        assert team.watch().terminal is TerminalState.HEALTHY_KEPT
    finally:
        team.host.lets_go.set()


# --- who may act -------------------------------------------------------------------------------------------------


def test_mode_observe_touches_nothing(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path, mode="observe")
    team.deploy(BAD, ERRORS)
    before = touched(team)
    team.watch()
    assert touched(team) == before


def test_mode_observe_says_it_once_and_what_to_type(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path, mode="observe")
    team.deploy(BAD, ERRORS)
    watch_until(team, 100.0)
    team.watch()
    said = [text for text in team.channel.texts if "Mode observe: nothing is done" in text]
    assert len(said) == 1
    assert said[0].endswith(f"lastgood rollback {OLD}")


def test_a_bad_release_in_mode_observe_does_not_become_good(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path, mode="observe")
    team.deploy(BAD, ERRORS)
    assert team.watch().terminal is TerminalState.INCONCLUSIVE_KEPT
    assert team.history.releases[BAD].standing is Standing.RECORDED


def proposing(tmp_path: Path) -> Team:
    """A bad release is watched, and nothing may be done without a person."""
    team = Team.with_a_good_release(tmp_path, mode="propose")
    team.deploy(BAD, ERRORS)
    return team


def test_mode_propose_goes_back_once_a_person_approves(tmp_path: Path) -> None:
    team = proposing(tmp_path)
    team.when_asked(team.approve)
    assert team.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED


def test_mode_propose_changes_nothing_that_serves_before_the_answer(tmp_path: Path) -> None:
    team = proposing(tmp_path)
    serving: list[str] = []

    def look_and_approve() -> None:
        serving.append(team.stack.serving)
        team.approve()

    team.when_asked(look_and_approve)
    team.watch()
    assert serving == [BAD]


def test_mode_propose_asks_once_and_says_what_to_type(tmp_path: Path) -> None:
    team = proposing(tmp_path)
    team.when_asked(team.deny)
    team.watch()
    asked = [text for text in team.channel.texts if "A person must approve" in text]
    assert len(asked) == 1
    assert f"lastgood approve {team.report.run}" in asked[0]


Answer = Callable[[Team], None]
NO_ANSWERS: dict[str, tuple[Answer, TerminalState]] = {
    "deny": (Team.deny, TerminalState.DENIED),
    "abort": (Team.abort, TerminalState.ABORTED_BY_HUMAN),
    "nobody": (lambda team: team.clock.sleep(12 * 3600.0), TerminalState.NEEDS_HUMAN),
}


@pytest.mark.parametrize("answer", NO_ANSWERS)
def test_a_proposal_without_a_yes_ends_by_its_name(tmp_path: Path, answer: str) -> None:
    team, (act, terminal) = proposing(tmp_path), NO_ANSWERS[answer]
    team.when_asked(lambda: act(team))
    assert team.watch().terminal is terminal


@pytest.mark.parametrize("answer", NO_ANSWERS)
def test_a_proposal_without_a_yes_leaves_everything_as_it_was(tmp_path: Path, answer: str) -> None:
    team, (act, _) = proposing(tmp_path), NO_ANSWERS[answer]
    before = world(team)
    team.when_asked(lambda: act(team))
    team.watch()
    assert world(team) == before


@pytest.mark.parametrize("answer", NO_ANSWERS)
def test_a_proposal_without_a_yes_says_that_the_bad_release_still_serves(tmp_path: Path, answer: str) -> None:
    team, (act, _) = proposing(tmp_path), NO_ANSWERS[answer]
    team.when_asked(lambda: act(team))
    team.watch()
    assert "Deployment failed" not in "".join(team.channel.texts)
    assert team.history.serving == BAD


# --- how often ---------------------------------------------------------------------------------------------------


def rolled_back(team: Team, release: str) -> None:
    """A bad release is deployed and goes back by itself; a person lifts the freeze."""
    team.deploy(release, ERRORS, override=True)
    assert team.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
    team.unfreeze()


def asks(team: Team, release: str) -> bool:
    """Whether the next bad release waits for a person."""
    team.deploy(release, ERRORS, override=True)
    team.when_asked(team.deny)
    return team.watch().terminal is TerminalState.DENIED


def test_a_release_goes_back_by_itself_once_and_then_it_is_proposed(team: Team) -> None:
    rolled_back(team, BAD)
    assert asks(team, BAD)


def test_two_releases_a_day_go_back_by_themselves_and_then_it_is_proposed(team: Team) -> None:
    rolled_back(team, "v2")
    rolled_back(team, "v3")
    assert asks(team, "v4")


def test_a_day_later_the_next_one_goes_back_by_itself_again(team: Team) -> None:
    rolled_back(team, "v2")
    rolled_back(team, "v3")
    team.clock.sleep(24 * 3600.0)
    rolled_back(team, "v4")


def test_deploys_that_failed_at_the_gate_use_up_nothing_of_the_day(team: Team) -> None:
    for release in ("v2", "v3"):
        team.deploy(release, Behaviour(boots=False))
        team.unfreeze()
    rolled_back(team, "v4")


# --- after a rollback --------------------------------------------------------------------------------------------


def test_after_a_rollback_the_system_is_watched_again_and_a_quiet_bake_changes_nothing(team: Team) -> None:
    team.deploy(BAD, ERRORS)
    team.watch()
    before = touched(team)
    assert team.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert touched(team) == before


def bad_bake(team: Team) -> None:
    """The release that came back is bad as well."""
    team.deploy(BAD, ERRORS)
    team.watch()
    team.stack.behaves[OLD] = ERRORS


def test_a_bake_that_fails_rolls_nothing_back(team: Team) -> None:
    bad_bake(team)
    before = touched(team)
    team.watch()
    assert touched(team) == before


def test_a_bake_that_fails_begins_no_run(team: Team) -> None:
    bad_bake(team)
    runs = len(team.events(RunStarted))
    team.watch()
    assert len(team.events(RunStarted)) == runs


def test_a_bake_that_fails_ends_degraded_and_names_its_owner(team: Team) -> None:
    bad_bake(team)
    assert team.watch().terminal is TerminalState.ROLLED_BACK_DEGRADED
    assert "bad still or again" in team.channel.texts[-1]
    assert "ada is needed" in team.channel.texts[-1]


def test_a_bake_that_fails_opens_an_incident_linked_to_the_rollback(team: Team) -> None:
    bad_bake(team)
    team.watch()
    folder = team.root / ".lastgood" / "incidents"
    (linked,) = [path for path in folder.iterdir() if path.name != team.run.started.run]
    assert f'"linked_to": "{team.run.started.run}"' in (linked / "incident.json").read_text()
    assert str(linked.relative_to(team.root)) in team.channel.texts[-1]


def test_a_bake_ends_after_its_own_window(team: Team) -> None:
    team.deploy(BAD, ERRORS)
    team.watch()
    team.watch()
    assert BAKE_S <= watched_s(team) < BAKE_S + INTERVAL_S


def test_a_bake_that_is_blind_is_another_page_than_the_watch_that_was(tmp_path: Path) -> None:
    team = blind_team(tmp_path, "traffic", behaviour=Behaviour(answers=False))
    team.watch()
    team.watch()
    assert [text.partition(",")[0] for text in pages(team)] == [f"👁 watching {BAD}", f"👁 baking {OLD}"]


def test_a_bake_that_saw_nothing_says_so(team: Team) -> None:
    team.deploy(BAD, ERRORS)
    team.watch()
    team.stack.blindfold(*EYES)
    assert "blind to" in team.watch().sentence


def test_rows_that_the_bad_release_left_do_not_fail_the_bake(team: Team) -> None:
    team.deploy(BAD, BREAKING_ROWS)
    team.watch()
    assert team.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED


def test_what_was_red_before_the_deploy_does_not_fail_the_bake(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path, baseline="30s")
    team.stack.behaves[OLD] = ERRORS
    team.deploy(BAD, Behaviour(errors=0.3, answers=False))
    team.watch()
    assert team.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED


def test_a_new_deploy_ends_the_bake(team: Team) -> None:
    team.deploy(BAD, ERRORS)
    team.watch()
    team.unfreeze()
    team.clock.after(20.0, lambda: void(team.deploy("v3", ERRORS)))
    team.watch()
    assert not [text for text in team.channel.texts if "bad still or again" in text]


# --- others at work ----------------------------------------------------------------------------------------------


def test_a_rollback_that_cannot_be_planned_now_is_tried_again(team: Team) -> None:
    team.deploy(BAD, ERRORS)
    team.stack.away[Role.CONTAINERS] = Retryable("the engine does not answer", delay_s=1.0)
    team.clock.after(90.0, lambda: void(team.stack.away.pop(Role.CONTAINERS)))
    assert team.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED


def test_a_person_who_holds_the_right_to_run_keeps_the_watch_going(team: Team) -> None:
    team.deploy(BAD, ERRORS)
    somebody = team.journal.claim("grace@laptop")
    team.clock.after(10.0, lambda: void(somebody.__enter__()))
    team.clock.after(90.0, lambda: void(somebody.__exit__(None, None, None)))
    assert team.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED


def test_a_rollback_that_a_person_finished_meanwhile_is_not_rolled_back(team: Team) -> None:
    """Between the verdict and the right to act, somebody else was quicker; a release before v1 is good, too."""
    team.deploy("v1b", WELL)
    team.watch()
    team.deploy(BAD, ERRORS)
    team.journal.meanwhile.append(team.roll_back)
    team.watch()
    assert team.stack.serving == "v1b"


def test_an_engine_that_refuses_is_told_and_nothing_was_touched(team: Team) -> None:
    team.deploy(BAD, ERRORS)
    team.stack.away[Role.CONTAINERS] = Refused("the socket refuses", hint="chmod")
    assert team.watch().terminal is TerminalState.REFUSED
    assert "Rollback refused, nothing was touched: the socket refuses" in team.channel.texts[-1]


def waiting_and_dead(team: Team) -> None:
    """A rollback got as far as its question, and its process died."""
    team.when_told("waiting at", die)
    with pytest.raises(Crash):
        team.roll_back()


def test_a_window_that_ends_while_a_rollback_waits_makes_no_release_good(tmp_path: Path) -> None:
    """A person's rollback waits for its answer, and the watch beside it sees nothing bad."""
    team = Team.with_a_good_release(tmp_path, mode="observe")
    team.deploy(BAD, Behaviour(migrations=("m2",)))
    team.stack.fits = FitsSchema(fit=Fit.NO, tried=3, reason="42703 column title")
    waiting_and_dead(team)
    with ExitStack() as other:
        other.enter_context(team.journal.claim("grace@laptop"))
        team.clock.after(WINDOW_S + 60.0, other.pop_all().close)
        team.clock.after(WINDOW_S + 70.0, team.approve)
        assert team.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert team.history.releases[BAD].standing is Standing.BARRED


def test_a_rollback_whose_process_died_is_taken_up_by_the_watch(tmp_path: Path) -> None:
    team = proposing(tmp_path)
    team.when_told("waiting at", die)
    with pytest.raises(Crash):
        team.watch()
    run = team.run.started.run
    team.clock.after(10.0, team.approve)
    team.watch()
    assert (team.report.run, team.report.terminal) == (run, TerminalState.ROLLED_BACK_VERIFIED)


def test_something_else_that_serves_during_the_watch_is_noticed(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.clock.after(60.0, lambda: team.stack.put("agent", "agent-hotfix"))
    outcome = team.watch()
    assert outcome.terminal is TerminalState.NEEDS_HUMAN
    assert "agent" in outcome.sentence
    assert "agent-hotfix" in outcome.sentence


def test_something_else_that_serves_is_told_with_what_to_type(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.clock.after(60.0, lambda: team.stack.put("agent", "agent-hotfix"))
    team.watch()
    assert "lastgood record" in team.channel.texts[-1]
    assert "lastgood rollback" in team.channel.texts[-1]


def test_something_else_that_serves_during_the_bake_is_told_with_the_way_back_to_what_was_put_back(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.watch()
    team.deploy("v3", ERRORS)
    team.watch()
    assert team.history.serving == BAD
    team.clock.after(20.0, lambda: team.stack.put("agent", "agent-hotfix"))
    team.watch()
    assert team.channel.texts[-1].endswith(f"if not: lastgood rollback {BAD}")


def test_something_else_that_serves_is_never_rolled_over(team: Team) -> None:
    team.deploy(BAD, replace(ERRORS, after_s=60.0))
    team.clock.after(60.0, lambda: team.stack.put("agent", "agent-hotfix"))
    team.watch()
    assert ("agent", "agent-hotfix") in {(i.service, i.artifact) for i in team.stack.containers.serving}


def test_a_service_that_is_down_for_a_moment_is_nobody_elses_doing(team: Team) -> None:
    team.deploy(BAD, WELL)
    whole = team.stack.containers

    def show(*services: str) -> None:
        serving = tuple(i for i in whole.serving if i.service in services)
        team.stack.containers = replace(whole, serving=serving)

    team.clock.after(60.0, lambda: show(*SERVICES[:-1]))
    team.clock.after(90.0, lambda: show(*SERVICES))
    assert team.watch().terminal is TerminalState.HEALTHY_KEPT


def test_a_rollback_by_a_person_ends_the_watch_and_is_no_failed_bake(team: Team) -> None:
    team.deploy(BAD, ERRORS)
    team.clock.after(40.0, lambda: void(team.roll_back()))
    assert team.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert not [text for text in team.channel.texts if "bad still or again" in text]


def test_a_way_back_that_somebody_cleaned_away_is_told_while_the_release_is_watched(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.clock.after(60.0, lambda: team.stack.forget(OLD))
    team.watch()
    assert [text for text in team.channel.texts if f"core, orchestrator, agent of {OLD} is not on this host" in text]


def test_an_engine_that_stays_away_ends_with_a_person_and_not_never(team: Team) -> None:
    team.deploy(BAD, ERRORS)
    team.stack.away[Role.CONTAINERS] = Retryable("the engine does not answer", delay_s=1.0)
    assert team.watch().terminal is TerminalState.NEEDS_HUMAN
    assert "lastgood rollback" in team.channel.texts[-1]


def test_an_ending_is_journaled_once(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.watch()
    ended = [event for event in team.events(DeploymentEnded) if event.deployment == team.deployment.deployment.id]
    assert len(ended) == 1


def test_a_channel_that_is_down_does_not_change_how_a_watch_ends(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.channel.errors = [Retryable("slack: told to wait", delay_s=60.0)] * 10
    assert team.watch().terminal is TerminalState.HEALTHY_KEPT
    assert [event.delivered for event in team.events(Told)] == [False]


def test_copies_that_somebody_woke_beside_the_edge_are_told_once_by_the_watch(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.put_behind_an_edge()
    team.start_beside("1234567890abcdef")
    team.watch()
    assert len([text for text in team.channel.texts if text.endswith("Next: docker stop 1234567890ab")]) == 1
