"""What a deploy lets go of, what the watch says of the ways back, and what is refused because it is not kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lastgood.cli.rendering import release_rows
from lastgood.core.errors import Refused, Retryable
from lastgood.core.plan import Role
from lastgood.core.record import ReleaseLetGo, ReleaseRecorded
from lastgood.core.release import Missing
from lastgood.runbook.holding import let_go_of_old
from lastgood.runbook.record import vouch
from lastgood.runbook.rollback import look_ahead
from lastgood.testing.stack import WELL
from lastgood.testing.world import Crash, Crashes
from tests.runbook.team import OLD, Team

CONTAINERS = frozenset({Role.CONTAINERS})
NEWER = ("v2", "v3", "v4", "v5", "v6", "v7")


def kept_well(team: Team, *names: str) -> None:
    """Deploy each, and keep it as healthy."""
    for name in names:
        team.deploy(name, WELL)
        team.watch()


@pytest.fixture
def long_ago(tmp_path: Path) -> Team:
    """Seven good releases: v1 is the oldest, v7 serves."""
    team = Team.with_a_good_release(tmp_path, parts=CONTAINERS)
    kept_well(team, *NEWER)
    return team


def test_a_deploy_lets_go_of_the_oldest_and_their_files_are_gone(long_ago: Team) -> None:
    assert [e.release for e in long_ago.events(ReleaseLetGo)] == [OLD]
    assert long_ago.containers.kept_names == set(NEWER)
    assert any(f"{OLD} is not kept any more" in line for line in long_ago.told)


def test_going_back_to_one_that_is_not_kept_is_refused_with_the_reason(long_ago: Team) -> None:
    with pytest.raises(Refused, match="v1 is not kept any more: not among the newest 5"):
        long_ago.roll_back(OLD)


@pytest.fixture
def bad(tmp_path: Path) -> Team:
    """v2 serves, and v1 is where a rollback goes."""
    team = Team.with_a_good_release(tmp_path, parts=CONTAINERS)
    team.deploy(behaviour=WELL)
    return team


def test_a_way_back_that_is_gone_is_no_plan(bad: Team) -> None:
    bad.stack.forget(OLD)
    with pytest.raises(Refused, match="v1 cannot serve again: core is gone") as refused:
        look_ahead(bad.rooms(), None)
    assert refused.value.hint == "docker pull core"


def test_a_way_back_that_is_not_safe_is_a_plan_that_says_so(bad: Team) -> None:
    bad.containers.unheld.add(OLD)
    assert look_ahead(bad.rooms(), OLD).warnings == ("v1 lost its tags; next: docker tag",)


def test_a_way_back_of_which_nothing_is_started_need_not_be_there(bad: Team) -> None:
    bad.stack.forget(OLD)
    assert look_ahead(bad.rooms(), None, only=frozenset({Role.FRONTEND})).to_release == OLD


def test_nobody_can_vouch_for_one_that_is_not_kept(long_ago: Team) -> None:
    with pytest.raises(Refused, match="v1 is not kept any more"):
        vouch(long_ago.rooms(), OLD, why="it was fine")


def test_one_that_is_deployed_again_is_kept_again(long_ago: Team) -> None:
    kept_well(long_ago, OLD)
    assert not long_ago.history.releases[OLD].let_go
    assert len([e for e in long_ago.events(ReleaseRecorded) if e.release.id == OLD]) == 2
    assert OLD in long_ago.containers.kept_names


def test_what_cannot_be_removed_now_is_no_target_and_is_removed_after_the_next_deploy(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path, parts=CONTAINERS)
    team.containers.in_use.add(OLD)
    kept_well(team, *NEWER)
    assert team.history.releases[OLD].let_go
    assert OLD in team.containers.kept_names
    assert any("something of it is left: v1 is in use" in line for line in team.told)
    team.containers.in_use.clear()
    kept_well(team, "v8")
    assert OLD not in team.containers.kept_names


def test_an_engine_that_does_not_answer_costs_nobody_the_deploy(long_ago: Team) -> None:
    rooms = long_ago.rooms()
    long_ago.stack.away[Role.CONTAINERS] = Retryable("the docker engine does not answer", delay_s=1.0)
    let_go_of_old(rooms)
    assert any("could not be let go of now: the docker engine does not answer" in line for line in long_ago.told)


def test_a_good_release_that_nothing_can_bring_back_is_let_go_of_with_the_reason(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path, parts=CONTAINERS)
    kept_well(team, "v2", "v3")
    team.stack.forget(OLD)
    kept_well(team, "v4")
    assert "core is gone" in team.history.releases[OLD].let_go


def test_what_lastgood_yaml_alone_keeps_from_going_back_is_kept_until_it_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    team = Team.with_a_good_release(tmp_path, parts=CONTAINERS)
    kept_well(team, "v2", "v3")
    no_edge = Missing(what="there is no edge now", fix="lastgood deploy", lost=True, by_config=True)
    with monkeypatch.context() as without:
        without.setattr(team.containers, "missing", lambda release: (no_edge,) if release.id in (OLD, "v2") else ())
        kept_well(team, "v4")
    assert team.events(ReleaseLetGo) == []
    assert team.roll_back(OLD).to_release == OLD


def test_the_last_good_one_is_never_let_go_of_though_nothing_can_bring_it_back(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path, parts=CONTAINERS)
    team.stack.forget(OLD)
    team.deploy("v2", WELL, first=True)
    assert team.events(ReleaseLetGo) == []


def test_a_deploy_that_could_not_be_rolled_back_is_refused_with_what_is_gone(team: Team) -> None:
    team.stack.forget(OLD)
    with pytest.raises(Refused, match="this deploy could not be rolled back: v1 cannot serve again: core is gone"):
        team.deploy("v2", WELL)
    assert list(team.history.releases) == [OLD]


def test_what_lost_its_tags_is_held_again_before_the_containers_that_use_it_are_replaced(team: Team) -> None:
    team.containers.unheld.add(OLD)

    def confirm(_plan: object) -> bool:
        assert team.containers.unheld == set()
        return True

    team.deploy("v2", WELL, confirm=confirm)


def test_the_watch_holds_again_what_a_cleaning_took_the_tags_from(team: Team) -> None:
    team.deploy("v2", WELL)
    team.containers.unheld.add(OLD)
    team.watch()
    assert team.containers.unheld == set()
    assert not any("lost its tags" in line for line in team.told)


def test_the_list_says_which_are_not_kept(long_ago: Team) -> None:
    rows = {row[0]: row for row in release_rows(long_ago.history)}
    assert "not kept any more" in rows[OLD]
    assert [name for name, row in rows.items() if "not kept any more" in row] == [OLD]


@pytest.mark.parametrize("at", range(1, 5))
def test_letting_go_that_dies_leaves_no_target_without_its_files_and_is_finished_later(tmp_path: Path, at: int) -> None:
    team = Team.with_a_good_release(tmp_path, parts=CONTAINERS)
    kept_well(team, "v2", "v3", "v4")
    rooms = team.rooms()
    rooms = replace(rooms, config=rooms.config.model_copy(update={"retain": 1}))
    team.journal.crashes = Crashes(at)
    with pytest.raises(Crash):
        let_go_of_old(rooms)
    ways = {name for name, known in team.history.releases.items() if known.is_way_back}
    assert ways <= team.containers.kept_names
    team.journal.crashes = Crashes()
    let_go_of_old(rooms)
    assert team.containers.kept_names == {"v3", "v4"}
    assert [e.release for e in team.events(ReleaseLetGo)] == [OLD, "v2"]


def test_the_watch_names_an_older_way_back_that_was_cleaned_away_and_says_what_to_do(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path, parts=CONTAINERS)
    kept_well(team, "v2")
    team.deploy("v3", WELL)
    team.stack.forget(OLD)
    team.watch()
    said = [line for line in team.told if f"{OLD} is no way back any more: core is gone" in line]
    assert len(said) == 1
    assert "Next: docker pull core" in said[0]


@pytest.mark.slow
def test_the_watch_looks_through_the_ways_back_once_an_hour(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path, parts=CONTAINERS, window="3h")
    kept_well(team, "v2")
    team.deploy("v3", WELL)
    team.clock.after(1800.0, lambda: team.stack.forget(OLD))
    heard: list[float] = []
    began = team.clock.now()
    team.when_told("is no way back any more", lambda: heard.append((team.clock.now() - began).total_seconds()))
    team.watch()
    assert len(heard) == 1
    assert 3600 <= heard[0] < 3660


def test_a_release_with_submodules_that_are_not_there_says_so_when_it_is_deployed(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path, parts=CONTAINERS)
    team.containers.unresolved = ("libs/agents has no commit 0123456789ab",)
    team.deploy("v2", WELL)
    assert any("v2 cannot be built again from its commit: libs/agents has no commit" in line for line in team.told)
