"""What a person's word makes good is what serves, or was recorded; and what they are told to type works."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from lastgood.core.errors import Refused
from lastgood.core.release import Standing
from lastgood.runbook import record as recording
from lastgood.runbook.doctor import examine
from lastgood.testing.stack import WELL, artifact_of
from tests.runbook.team import BAD, OLD, Team


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
