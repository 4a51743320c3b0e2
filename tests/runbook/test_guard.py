"""The guard: what nobody watches is watched, and what a way back lost is told, whoever went home."""

from __future__ import annotations

from pathlib import Path

import pytest

from lastgood.core.errors import Retryable
from lastgood.core.plan import Role
from lastgood.core.ports import Right
from lastgood.core.report import TerminalState
from lastgood.runbook.guard import EVERY_S, guard
from lastgood.runbook.watch import watch_on
from lastgood.testing.stack import WELL
from lastgood.testing.world import Crash, Crashes
from tests.runbook.team import BAD, ERRORS, OLD, Team

CONTAINERS = frozenset({Role.CONTAINERS})


class Interrupted(BaseException):
    """As Ctrl-C does."""


def dies(_step: object) -> None:
    """The process dies before anything is sent."""
    raise Crash


def dies_at_its_gate(team: Team, name: str) -> None:
    """A deploy of it whose process dies once its gate has begun."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(team.containers, "apply", dies)
        with pytest.raises(Crash):
            team.deploy(name, WELL)


def guarded(team: Team, seconds: float) -> None:
    """`lastgood guard`, interrupted after a time."""

    def interrupt() -> None:
        raise Interrupted

    team.clock.after(seconds, interrupt)
    with pytest.raises(Interrupted):
        guard(team.rooms())


@pytest.fixture
def team(tmp_path: Path) -> Team:
    return Team.with_a_good_release(tmp_path, parts=CONTAINERS)


def test_a_release_that_nobody_watches_is_put_back_when_it_turns_bad(team: Team) -> None:
    team.deploy(BAD, ERRORS)
    guarded(team, 600.0)
    assert team.report.terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert team.history.serving == OLD


def test_a_good_one_is_watched_to_its_end_and_the_next_one_as_well(team: Team) -> None:
    team.deploy("v2", WELL)
    team.clock.after(400.0, lambda: team.deploy("v3", WELL))
    guarded(team, 1200.0)
    ends = [d.ended.terminal for d in team.history.deployments.values() if d.ended]
    assert (len(ends), set(ends)) == (3, {TerminalState.HEALTHY_KEPT})


def test_what_serves_is_watched_also_while_a_deploy_that_nobody_carries_on_lies_at_its_gate(team: Team) -> None:
    team.deploy(BAD, ERRORS)
    dies_at_its_gate(team, "v3")
    left = team.waiting
    guarded(team, 600.0)
    assert (team.report.from_release, team.report.to_release, team.history.serving) == (BAD, OLD, OLD)
    assert any(f"run {left} is half-way" in text for text in team.channel.texts)


def test_what_came_back_is_watched_also_while_a_deploy_that_nobody_carries_on_lies_at_its_gate(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path, parts=CONTAINERS, bake="10m")
    team.deploy(BAD, ERRORS)
    team.watch()
    team.unfreeze()
    dies_at_its_gate(team, "v3")
    team.stack.behaves[OLD] = ERRORS
    guarded(team, 300.0)
    assert any("after the rollback of v2 the system is bad still or again" in text for text in team.channel.texts)


def test_a_bake_goes_on_beside_a_deploy_that_lies_at_its_gate(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path, parts=CONTAINERS, bake="10m")
    team.deploy(BAD, ERRORS)
    team.watch()
    team.unfreeze()
    team.clock.after(60.0, lambda: dies_at_its_gate(team, "v3"))
    watch_on(team.rooms(), "d2")
    assert len(team.history.deployments["d2"].buckets) > 100


def test_a_deploy_left_at_its_gate_is_told_with_the_command_that_undoes_it(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.watch()
    dies_at_its_gate(team, "v3")
    guarded(team, 60.0)
    assert any("is half-way" in text and text.endswith("Next: lastgood rollback") for text in team.channel.texts)


def test_what_somebody_watches_is_theirs(team: Team) -> None:
    team.deploy("v2", WELL)
    with team.journal.claim("a deploy", Right.WATCH):
        guarded(team, 100.0)
    assert not team.deployment.buckets


def test_a_way_back_that_was_cleaned_away_is_told_although_nothing_is_watched(team: Team) -> None:
    team.deploy("v2", WELL)
    team.watch()
    team.clock.after(1800.0, lambda: team.stack.forget(OLD))
    guarded(team, 7300.0)
    said = [text for text in team.channel.texts if f"{OLD} is no way back any more: core is gone" in text]
    assert len(said) == 1


def test_a_run_that_a_person_left_is_told_once_and_not_gone_on_with(team: Team) -> None:
    team.deploy("v2", WELL)
    team.watch()
    team.journal.crashes = Crashes(8)
    with pytest.raises(Crash):
        team.roll_back()
    team.journal.crashes = Crashes()
    run = team.waiting
    guarded(team, 300.0)
    assert team.waiting == run
    assert len([text for text in team.channel.texts if f"run {run} is half-way" in text]) == 1


def test_an_engine_that_does_not_answer_ends_nothing(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    team.deploy("v2", WELL)
    team.watch()
    missing, asked = team.containers.missing, list[str]()

    def away(release: object) -> object:
        asked.append("")
        if len(asked) < 4:
            raise Retryable("the engine does not answer", delay_s=1.0)
        return missing(release)  # type: ignore[arg-type] # as it was asked

    monkeypatch.setattr(team.containers, "missing", away)
    guarded(team, 5 * EVERY_S)
    assert len(asked) > 4
    assert any("the engine does not answer; looking again in" in line for line in team.told)


def test_copies_that_somebody_woke_beside_the_edge_are_told_once_with_what_stops_them(team: Team) -> None:
    """As `docker compose restart` does: whoever asks for the service by its name is answered by the old release."""
    team.put_behind_an_edge()
    guarded(team, 2 * EVERY_S)
    assert not [text for text in team.channel.texts if "docker stop" in text]
    team.start_beside("1234567890abcdef")
    guarded(team, 4 * EVERY_S)
    (said,) = [text for text in team.channel.texts if "docker stop" in text]
    assert "core of no release: started past lastgood, and asked by name inside of the stack" in said
    assert said.endswith("Next: docker stop 1234567890ab")


def test_copies_that_stand_still_beside_the_edge_are_nothing_to_tell(team: Team) -> None:
    team.put_behind_an_edge()
    team.start_beside("1234567890abcdef", running=False)
    guarded(team, 2 * EVERY_S)
    assert not [text for text in team.channel.texts if "docker stop" in text]
