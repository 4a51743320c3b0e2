"""A whole incident behind an edge: releases side by side, the switch, and who stands ready until when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lastgood.core.errors import NeedsHuman, OutcomeUnknown, Refused, Retryable
from lastgood.core.plan import Role, Step
from lastgood.core.record import DeploymentEnded, ReleaseJudged, WatchStarted
from lastgood.core.release import Standing
from lastgood.core.report import TerminalState
from lastgood.core.run import Finish
from lastgood.runbook import deploy as deploying
from lastgood.runbook import rollback
from lastgood.runbook import watch as watching
from lastgood.runbook.endings import WatchOutcome
from lastgood.runbook.frontend import await_frontend
from lastgood.runbook.rollback import look_ahead
from lastgood.testing.stack import WELL, Behaviour
from lastgood.testing.world import Crash
from tests.runbook.team import BAD, OLD, Team

ERRORS = Behaviour(errors=0.3)


def die(*_: object, **__: object) -> None:
    """The process dies before anything is sent."""
    raise Crash


def dies_in_its_gate(team: Team, name: str, *, started: bool = True) -> None:
    """A deploy of it that is killed once its gate has begun. started: with what it starts beside running."""
    keep = team.containers.apply

    def act(step: Step) -> None:
        if started:
            keep(step)
        raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(team.containers, "apply", act)
        with pytest.raises(Crash):
            team.deploy(name, WELL)


def asks_for_two(team: Team, release: str) -> None:
    """The files of a release ask for two instances of `core`."""
    team.stack.containers = replace(team.stack.containers, asked=frozenset({(release, "core", 2)}))


def watched_on(team: Team, deployment: str = "d2") -> WatchOutcome:
    """The process that watched goes on, whatever was deployed beside it."""
    return watching.watch_on(team.rooms(), deployment)


@pytest.fixture
def team(tmp_path: Path) -> Team:
    """OLD serves behind an edge, as a release of its own."""
    team = Team.with_a_good_release(tmp_path, parts=frozenset({Role.CONTAINERS}))
    team.put_behind_an_edge()
    return team


def beside(team: Team) -> set[str]:
    return {i.release for i in team.stack.containers.candidates}


def serving(team: Team) -> set[str]:
    return {i.release for i in team.stack.containers.serving}


def test_the_release_before_stands_ready_while_the_new_one_is_watched(team: Team) -> None:
    team.deploy(behaviour=WELL)
    assert (serving(team), beside(team)) == ({BAD}, {OLD})


def test_a_deploy_over_a_release_that_nobody_knows_to_be_good_keeps_the_good_one_ready(team: Team) -> None:
    team.deploy(behaviour=WELL)
    team.deploy("v3", ERRORS)
    assert (serving(team), beside(team)) == ({"v3"}, {OLD})
    assert team.roll_back().to_release == OLD
    assert team.stack.effects["pass-gate"] == 2  # of the two deploys: the way back found it ready


def test_it_is_stopped_when_the_watch_is_over(team: Team) -> None:
    team.deploy(behaviour=WELL)
    assert team.watch().terminal is TerminalState.HEALTHY_KEPT
    assert (serving(team), beside(team)) == ({BAD}, set())
    assert team.history.open_run is None


def test_a_bad_release_leaves_the_traffic_in_one_step_and_nothing_of_it_stays_up(team: Team) -> None:
    team.deploy(behaviour=ERRORS)
    assert team.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert [s.name for s in team.report.steps] == ["pass-gate", "switch-traffic", "settle"]
    assert (serving(team), beside(team)) == ({OLD}, set())
    # the standby was healthy: nothing had to be started
    assert team.stack.effects["pass-gate"] == 1


def test_a_switch_whose_answer_was_lost_is_looked_at_and_not_repeated(team: Team) -> None:
    team.deploy(behaviour=ERRORS)
    team.fails("switch-traffic", OutcomeUnknown("the edge was told and did not answer"), after=True)
    assert team.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert team.stack.effects["switch-traffic"] == 2  # the deploy's own, and this one


def test_a_gate_that_fails_moves_nothing_and_leaves_nothing_of_it_beside(team: Team) -> None:
    team.deploy(behaviour=Behaviour(boots=False))
    assert (serving(team), beside(team)) == ({OLD}, set())


def test_a_hotfix_that_fails_at_its_gate_takes_neither_the_standby_nor_the_watch_of_what_serves(team: Team) -> None:
    team.deploy(behaviour=ERRORS)
    team.deploy("v3", Behaviour(boots=False))
    assert (serving(team), beside(team)) == ({BAD}, {OLD})
    assert [begun.bake for begun in team.events(WatchStarted)] == [False]
    assert f"lastgood watch   (the watch of {BAD} goes on)" in team.report.next_steps
    assert team.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert (serving(team), beside(team)) == ({OLD}, set())
    assert team.stack.effects["pass-gate"] == 1  # of v2: the way back found it ready


def test_a_hotfix_that_dies_at_its_gate_takes_neither_the_standby_nor_the_watch(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    team.deploy(behaviour=ERRORS)
    monkeypatch.setattr(team.containers, "apply", die)
    with pytest.raises(Crash):
        team.deploy("v3", WELL)
    monkeypatch.undo()
    team.roll_back()
    assert (serving(team), beside(team)) == ({BAD}, {OLD})
    assert team.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("edge", [True, False])
def test_a_bad_release_goes_back_also_where_a_hotfix_died_at_its_gate(
    tmp_path: Path, *, edge: bool, started: bool
) -> None:
    team = Team.with_a_good_release(tmp_path, parts=frozenset({Role.CONTAINERS}))
    if edge:
        team.put_behind_an_edge()
    team.deploy(behaviour=ERRORS)
    dies_in_its_gate(team, "v3", started=started)
    assert watched_on(team).terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert (team.report.from_release, team.report.to_release) == (BAD, OLD)
    assert (team.stack.serving, beside(team)) == (OLD, set())
    history = team.history
    assert (history.open_run, history.open_deployment) == (None, None)
    assert [history.releases[name].standing for name in (BAD, "v3")] == [Standing.BARRED, Standing.RECORDED]
    ended = [(known.deployment.id, known.ended.terminal) for known in history.deployments.values() if known.ended]
    assert ended[1:] == [("d2", TerminalState.ROLLED_BACK_VERIFIED), ("d3", TerminalState.REFUSED)]
    assert team.events(WatchStarted)[-1] == replace(team.events(WatchStarted)[-1], deployment="d2", bake=True)


def test_a_bad_release_goes_back_also_where_the_undoing_of_a_hotfix_could_not_be_planned(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    team.deploy(behaviour=ERRORS)

    def away(*_: object, **__: object) -> None:
        raise Retryable("the engine does not answer", delay_s=2.0, hint="docker version")

    monkeypatch.setattr(deploying, "roll_back", away)
    with pytest.raises(NeedsHuman):
        team.deploy("v3", Behaviour(boots=False))
    monkeypatch.undo()
    assert watched_on(team).terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert (serving(team), beside(team)) == ({OLD}, set())


def test_a_bad_release_goes_back_also_where_a_hotfix_died_before_its_run_was_journaled(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    team.deploy(behaviour=ERRORS)
    monkeypatch.setattr(deploying, "RunStarted", die)
    with pytest.raises(Crash):
        team.deploy("v3", WELL)
    monkeypatch.undo()
    with pytest.raises(Refused, match="v3 never served"):
        watching.start_watch(team.rooms(), "d3")
    assert watched_on(team).terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert (team.report.from_release, team.report.to_release) == (BAD, OLD)
    assert (team.history.open_run, team.history.open_deployment) == (None, None)


def test_what_the_gate_of_a_hotfix_left_is_removed_also_where_nothing_can_go_back(team: Team) -> None:
    team.deploy(behaviour=ERRORS)
    dies_in_its_gate(team, "v3")
    assert beside(team) == {OLD, "v3"}
    team.journal.append(ReleaseJudged(release=OLD, good=False, by="bob", why="it has a hole"))
    assert watched_on(team).terminal is TerminalState.REFUSED
    assert (serving(team), beside(team)) == ({BAD}, {OLD})
    assert (team.history.open_run, team.history.open_deployment) == (None, None)


def test_a_hotfix_whose_gate_is_under_way_is_left_alone_by_the_watch(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    team.deploy(behaviour=ERRORS)
    dies_in_its_gate(team, "v3")
    monkeypatch.setattr(watching, "_not_now", die)
    with team.journal.claim("bob@laptop"), pytest.raises(Crash):
        watched_on(team)
    assert team.history.deployments["d3"].ended is None


def test_a_hotfix_that_moves_the_traffic_ends_the_watch_of_what_served(team: Team) -> None:
    team.deploy(behaviour=WELL)
    team.deploy("v3", WELL)
    assert team.events(DeploymentEnded)[-1].terminal is TerminalState.SUPERSEDED


def test_a_hotfix_whose_undoing_fails_leaves_the_standby_for_the_next_try(team: Team) -> None:
    team.deploy(behaviour=ERRORS)
    team.fails("clear-candidates", *[Refused("the engine refused to remove it")] * 3)
    team.deploy("v3", Behaviour(boots=False))
    assert (serving(team), beside(team)) == ({BAD}, {OLD})


def test_a_rollback_that_is_refused_before_the_switch_keeps_the_standby_for_the_next_try(team: Team) -> None:
    team.deploy(behaviour=ERRORS)
    containers = team.stack.containers
    team.stack.containers = replace(containers, candidates=containers.candidates[1:])  # somebody removed one
    team.fails("pass-gate", Refused("the disk is full", hint="df -h"))
    assert team.watch().terminal is not TerminalState.ROLLED_BACK_VERIFIED
    assert (serving(team), beside(team)) == ({BAD}, {OLD})
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert (serving(team), beside(team)) == ({OLD}, set())


def test_a_standby_that_cannot_be_stopped_is_said_and_the_release_is_good(team: Team) -> None:
    team.deploy(behaviour=WELL)
    team.fails("settle", *[Refused("the engine refused to stop it")] * 3)
    assert team.watch().terminal is TerminalState.HEALTHY_KEPT
    assert beside(team) == {OLD}
    assert any("kept ready for the watch is still there" in line for line in team.told)


def test_a_process_that_dies_while_it_stops_the_standby_is_followed_by_one_that_ends_it(team: Team) -> None:
    team.deploy(behaviour=WELL)
    team.fails("settle", OutcomeUnknown("the engine went away"))
    team.watch()
    assert (beside(team), team.history.open_run) == (set(), None)


@pytest.mark.parametrize("hotfix", [False, True])
def test_the_bake_after_a_rollback_lasts_whatever_had_failed_at_its_gate_before(team: Team, *, hotfix: bool) -> None:
    team.deploy(behaviour=ERRORS)
    if hotfix:
        team.deploy("v3", Behaviour(boots=False))
    assert team.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
    team.stack.behaves[OLD] = ERRORS
    assert team.watch().terminal is TerminalState.ROLLED_BACK_DEGRADED
    assert team.history.deployments["d2"].buckets


@pytest.mark.parametrize("edge", [True, False])
def test_a_person_goes_back_past_what_is_watched_also_while_a_hotfix_lies_at_its_gate(
    tmp_path: Path, *, edge: bool
) -> None:
    team = Team.with_a_good_release(tmp_path, parts=frozenset({Role.CONTAINERS}))
    if edge:
        team.put_behind_an_edge()
    team.deploy(behaviour=WELL)
    dies_in_its_gate(team, "v3")
    report = team.roll_back(OLD)
    assert (report.terminal, report.from_release) == (TerminalState.ROLLED_BACK_VERIFIED, BAD)
    assert not [line for line in report.next_steps if "goes on" in line]
    assert (team.stack.serving, beside(team)) == (OLD, set())
    history = team.history
    assert (history.open_run, history.open_deployment) == (None, None)
    assert history.releases[BAD].standing is Standing.BARRED
    assert [known.ended and known.ended.terminal for known in history.deployments.values()][1:] == [
        TerminalState.ROLLED_BACK_VERIFIED,
        TerminalState.REFUSED,
    ]
    assert watched_on(team).terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert team.history.deployments["d2"].buckets  # of its bake


def test_the_plan_past_what_is_watched_leaves_what_serves(team: Team) -> None:
    team.deploy(behaviour=WELL)
    dies_in_its_gate(team, "v3")
    assert [look_ahead(team.rooms(), name).from_release for name in (None, OLD)] == ["v3", BAD]


def test_a_person_who_does_not_say_yes_leaves_the_hotfix_where_it_was(team: Team) -> None:
    team.deploy(behaviour=WELL)
    dies_in_its_gate(team, "v3")
    with pytest.raises(Refused, match="not confirmed"):
        team.roll_back(OLD, confirm=lambda _plan: False)
    assert (team.history.deployments["d3"].ended, team.history.open_run is None) == (None, False)


def test_going_back_past_a_good_release_bars_it_also_while_a_hotfix_lies_at_its_gate(team: Team) -> None:
    team.deploy(behaviour=WELL)
    team.watch()
    dies_in_its_gate(team, "v3")
    assert team.roll_back(OLD).from_release == BAD
    history = team.history
    assert history.releases[BAD].standing is Standing.BARRED
    assert (history.open_deployment, history.deployments["d2"].watch and history.deployments["d2"].watch.bake) == (
        None,
        True,
    )


def test_only_the_frontend_goes_back_and_the_hotfix_is_left_to_be_undone(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path)
    team.deploy(behaviour=WELL)
    dies_in_its_gate(team, "v3")
    team.roll_back(OLD, only=frozenset({Role.FRONTEND}))
    assert (team.history.deployments["d2"].ended, team.history.deployments["d3"].ended) == (None, None)
    assert team.roll_back().to_release == BAD
    assert team.history.open_deployment == team.history.deployments["d2"]


def test_undoing_a_hotfix_whose_push_went_live_leaves_the_watch_of_what_serves(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path)
    team.deploy(behaviour=WELL)
    await_frontend(team.rooms(), "d2")
    team.deploy("v3", Behaviour(boots=False))
    assert "return-frontend" in [step.name for step in team.report.steps]
    assert team.history.open_deployment == team.history.deployments["d2"]


def test_a_release_that_fails_at_the_gate_of_its_own_second_deploy_is_not_watched_on(team: Team) -> None:
    team.deploy(behaviour=WELL)
    team.stack.containers = replace(team.stack.containers, serving=team.stack.containers.serving[1:])  # one is lost
    assert team.deploy(BAD, Behaviour(boots=False)).report == team.report
    assert (team.report.to_release, team.history.open_deployment) == (OLD, None)
    assert team.events(WatchStarted)[-1].bake


@pytest.mark.parametrize("edge", [True, False])
def test_a_gate_that_fails_beside_what_was_scaled_down_by_hand_is_no_degraded_rollback(
    tmp_path: Path, *, edge: bool
) -> None:
    team = Team.with_a_good_release(tmp_path, parts=frozenset({Role.CONTAINERS}))
    if edge:
        team.put_behind_an_edge()
    asks_for_two(team, OLD)
    team.deploy(behaviour=Behaviour(boots=False))
    assert team.report.terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert (team.stack.serving, len(team.stack.containers.of("core"))) == (OLD, 1)


def test_what_is_lost_of_it_meanwhile_is_told(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_one() -> Finish:
        team.stack.containers = facts
        return Finish()

    asks_for_two(team, OLD)
    (one,) = team.stack.containers.of("core")
    facts = team.stack.containers
    team.stack.containers = replace(facts, serving=(*facts.serving, replace(one, instance="core-again")))
    monkeypatch.setattr(rollback, "carry_out", lambda *_, **__: lose_one())
    team.deploy(behaviour=Behaviour(boots=False))
    assert team.report.terminal is TerminalState.ROLLED_BACK_DEGRADED


def test_a_deploy_that_had_nothing_to_change_is_what_serves(team: Team) -> None:
    team.deploy(behaviour=WELL)
    team.stack.on_disk = BAD
    team.deploy("v3", WELL)
    assert (team.history.serving, team.history.unserved) == ("v3", None)
    report = team.roll_back(OLD)
    assert (report.from_release, team.deployment.ended and team.deployment.ended.terminal) == (
        "v3",
        TerminalState.ROLLED_BACK_VERIFIED,
    )


def test_what_is_said_in_mode_observe_goes_back_from_what_is_bad_also_past_a_hotfix_left_at_its_gate(
    team: Team,
) -> None:
    """Without a name the rollback would undo the hotfix, bar it, and keep the release that is bad."""
    team.mode = "observe"
    team.deploy(BAD, ERRORS)
    dies_in_its_gate(team, "v3")
    team.clock.after(120.0, die)
    with pytest.raises(Crash):
        watching.watch_on(team.rooms(), "d2")
    said = next(text for text in team.channel.texts if "Mode observe" in text)
    assert said.endswith(f"To go back: lastgood rollback {OLD}")
    team.roll_back(said.rpartition(" ")[2])
    assert (team.history.serving, serving(team)) == (OLD, {OLD})
    assert team.history.releases["v3"].standing is Standing.RECORDED
