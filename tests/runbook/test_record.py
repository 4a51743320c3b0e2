"""What a person's word makes good is what serves, or was recorded; and what they are told to type works."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from lastgood.core.errors import Refused
from lastgood.core.plan import Role, Step
from lastgood.core.release import Standing
from lastgood.core.report import TerminalState
from lastgood.runbook import record as recording
from lastgood.runbook.doctor import examine
from lastgood.testing.stack import SERVICES, WELL, artifact_of
from lastgood.testing.world import Crash
from tests.runbook.team import BAD, ERRORS, OLD, Team


@pytest.fixture
def team(tmp_path: Path) -> Team:
    """v1 serves and is good."""
    return Team.with_a_good_release(tmp_path)


def deployed_by_hand(team: Team) -> None:
    """Other artifacts than those of any release serve."""
    serving = tuple(replace(i, artifact=f"{i.artifact}-by-hand") for i in team.stack.containers.serving)
    team.stack.containers = replace(team.stack.containers, serving=serving)


def types(team: Team, command: str) -> None:
    """`lastgood record --good --release NAME`, as a hint says it."""
    words = shlex.split(command)
    assert words[:4] == ["lastgood", "record", "--good", "--release"]
    recording.record_good(team.rooms(), words[4], why="seen")


def test_what_was_deployed_by_hand_is_not_vouched_for_by_the_name_of_what_it_replaced(team: Team) -> None:
    deployed_by_hand(team)
    before = len(team.journal.kept)
    with pytest.raises(Refused, match="not what was recorded as v1") as refused:
        recording.record_good(team.rooms(), OLD, why="seen")
    assert refused.value.hint == f"lastgood record --good --release {OLD}-2"
    assert len(team.journal.kept) == before


def test_what_the_refusal_says_to_type_records_what_was_deployed_by_hand(team: Team) -> None:
    deployed_by_hand(team)
    with pytest.raises(Refused) as refused:
        recording.record_good(team.rooms(), OLD, why="seen")
    types(team, refused.value.hint)
    assert team.history.serving == f"{OLD}-2"
    assert team.history.releases[f"{OLD}-2"].standing is Standing.GOOD


def test_what_the_doctor_says_to_type_after_a_deploy_by_hand_has_a_name_that_is_free(team: Team) -> None:
    team.containers.kept_names.add(f"{OLD}-2")
    deployed_by_hand(team)
    finding = next(f for f in examine(team.rooms()) if f.check == "what serves")
    assert finding.hint.startswith(f"lastgood record --good --release {OLD}-3 ")


def test_what_serves_as_it_was_recorded_is_vouched_for_without_another_record(team: Team) -> None:
    deployments = len(team.history.deployments)
    recording.record_good(team.rooms(), OLD, why="seen")
    assert len(team.history.deployments) == deployments


def test_a_release_that_serves_no_longer_can_be_vouched_for_and_is_not_taken_for_what_serves(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.deploy("v3", WELL)
    with pytest.raises(Refused) as refused:
        team.roll_back(BAD)
    types(team, refused.value.hint.partition("   ")[0])
    assert team.history.releases[BAD].standing is Standing.GOOD
    assert team.history.serving == "v3"


def test_a_release_with_the_containers_of_what_serves_is_vouched_for_as_it_was_recorded(team: Team) -> None:
    """Its frontend and its schema are what there is to go back to."""
    team.deploy(BAD, WELL)
    team.stack.blindfold("traffic")
    team.watch()
    before = team.history.releases[BAD]
    assert (before.standing, before.frontend) == (Standing.RECORDED, "dpl_v2")
    team.stack.on_disk = BAD
    team.deploy("v3", WELL)
    with pytest.raises(Refused) as refused:
        team.roll_back(BAD)
    types(team, refused.value.hint.partition("   ")[0])
    known = team.history.releases[BAD]
    assert known.standing is Standing.GOOD
    assert (known.frontend, known.fingerprint) == (before.frontend, before.fingerprint)
    assert team.history.serving == "v3"
    team.roll_back(BAD)
    assert team.stack.frontend.production == before.frontend


def test_a_release_that_somebody_put_back_by_hand_is_recorded_as_what_serves(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.watch()
    serving = tuple(replace(i, artifact=artifact_of(i.service, OLD)) for i in team.stack.containers.serving)
    team.stack.containers = replace(team.stack.containers, serving=serving)
    recording.record_good(team.rooms(), OLD, why="put back")
    assert team.history.serving == OLD


def brought_back_by_hand(team: Team, *services: str) -> None:
    """v2 was rolled back, and `docker compose up` put these services of it into the place of v1's."""
    team.deploy(BAD, ERRORS)
    team.watch()
    facts = team.stack.containers
    serving = tuple(
        replace(i, artifact=artifact_of(i.service, BAD)) if i.service in services else i for i in facts.serving
    )
    team.stack.containers = replace(facts, serving=serving)


def test_the_doctor_says_to_put_back_what_serves_where_a_barred_release_stands_in_its_place(team: Team) -> None:
    brought_back_by_hand(team, SERVICES[1])
    finding = next(f for f in examine(team.rooms()) if f.check == "what serves")
    assert finding.hint == f"lastgood rollback {OLD}"
    team.roll_back(OLD)
    assert {i.artifact for i in team.stack.containers.serving} == {artifact_of(s, OLD) for s in SERVICES}


def test_the_doctor_says_to_put_back_what_serves_or_to_vouch_for_what_is_new(team: Team) -> None:
    team.deploy(BAD, ERRORS)
    team.watch()
    deployed_by_hand(team)
    finding = next(f for f in examine(team.rooms()) if f.check == "what serves")
    assert finding.hint == f"lastgood record --good --release {OLD}-2   (or go back: lastgood rollback {OLD})"


def test_nobody_vouches_by_a_new_name_for_what_only_a_barred_release_has(team: Team) -> None:
    brought_back_by_hand(team, SERVICES[1])
    before = len(team.journal.kept)
    with pytest.raises(Refused, match=f"{SERVICES[1]} is of {BAD}") as refused:
        recording.record_good(team.rooms(), f"{OLD}-2", why="seen")
    assert refused.value.hint.startswith(f"lastgood rollback {OLD} ")
    assert len(team.journal.kept) == before


def test_what_was_recorded_first_and_only_a_barred_release_has_is_not_vouched_for_later(team: Team) -> None:
    brought_back_by_hand(team, *SERVICES)
    recording.record(team.rooms(), f"{OLD}-2")
    with pytest.raises(Refused, match=f"is of {BAD}"):
        recording.record_good(team.rooms(), f"{OLD}-2", why="seen")
    assert team.history.releases[f"{OLD}-2"].standing is Standing.RECORDED


def test_who_knows_better_vouches_even_for_what_only_a_barred_release_has(team: Team) -> None:
    brought_back_by_hand(team, *SERVICES)
    recording.record_good(team.rooms(), f"{OLD}-2", why="it was the api", override=True)
    assert team.history.releases[f"{OLD}-2"].standing is Standing.GOOD


def test_what_lastgood_deployed_with_a_service_of_a_barred_release_may_be_vouched_for(team: Team) -> None:
    """A fix keeps what was not at fault."""
    team.deploy(BAD, ERRORS)
    team.watch()
    team.unfreeze()
    team.stack.on_disk = BAD
    team.deploy("v3", WELL, override=True)
    recording.record_good(team.rooms(), "v3", why="seen")
    assert team.history.releases["v3"].standing is Standing.GOOD


# --- what serves is down ------------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["plain", "edge"])
def contained(request: pytest.FixtureRequest, tmp_path: Path) -> Team:
    """v1 serves and is good, without and behind an edge, and there is nothing but containers."""
    team = Team.with_a_good_release(tmp_path, parts=frozenset({Role.CONTAINERS}))
    if request.param:
        team.put_behind_an_edge()
    return team


def stops(team: Team, service: str) -> None:
    """`docker stop`, or a host that came up again without a restart policy."""
    facts = team.stack.containers
    serving = tuple(replace(i, running=False, exit_code=0) if i.service == service else i for i in facts.serving)
    team.stack.containers = replace(facts, serving=serving)


def said_of_it(team: Team) -> str:
    """What the doctor says to type."""
    return next(f for f in examine(team.rooms()) if f.check == "containers").hint


def test_a_good_release_with_a_service_that_is_down_is_put_back_by_a_rollback_to_itself(contained: Team) -> None:
    contained.deploy(BAD, WELL)
    contained.watch()
    stops(contained, SERVICES[0])
    assert said_of_it(contained) == f"lastgood rollback {BAD}"
    report = contained.roll_back(BAD)
    assert report.terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert all(i.serves for i in contained.stack.containers.serving)


def test_a_rollback_that_leaves_no_release_freezes_no_deploys(contained: Team) -> None:
    stops(contained, SERVICES[0])
    report = contained.roll_back(OLD)
    assert contained.history.frozen is None
    assert not [line for line in report.next_steps if line.startswith("lastgood unfreeze")]
    contained.deploy(BAD, WELL)
    assert contained.history.serving == BAD


def test_a_release_that_is_not_proved_with_a_service_that_is_down_is_deployed_again(contained: Team) -> None:
    contained.deploy(BAD, WELL)
    stops(contained, SERVICES[0])
    assert said_of_it(contained) == f"lastgood deploy --release {BAD}"
    with pytest.raises(Refused, match="does not serve") as refused:
        recording.record_good(contained.rooms(), BAD, why="seen")
    assert refused.value.hint == f"lastgood deploy --release {BAD}"
    contained.deploy(BAD, WELL)
    assert all(i.serves for i in contained.stack.containers.serving)


def test_a_release_that_is_not_proved_and_runs_sick_is_left(contained: Team) -> None:
    contained.deploy(BAD, WELL)
    contained.stack.sicken(SERVICES[0])
    assert said_of_it(contained) == f"lastgood rollback {OLD}"


def test_a_first_release_that_is_not_proved_and_down_is_deployed_again_as_the_first(tmp_path: Path) -> None:
    team = Team(tmp_path)
    team.deploy(OLD, WELL, first=True)
    stops(team, SERVICES[0])
    assert said_of_it(team) == f"lastgood deploy --release {OLD} --first"


def test_while_a_run_is_open_what_is_down_is_its_business(contained: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(_step: Step) -> None:
        raise Crash

    contained.deploy(BAD, WELL)
    monkeypatch.setattr(contained.containers, "apply", die)
    with pytest.raises(Crash):
        contained.roll_back()
    stops(contained, SERVICES[0])
    assert said_of_it(contained) == "lastgood rollback"
