"""Could we roll back right now: what the doctor finds, what it could not see, and that it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lastgood.core.config import ContainersConfig
from lastgood.core.errors import Refused, Retryable
from lastgood.core.plan import Role
from lastgood.runbook.doctor import Answer, Finding, examine
from lastgood.targets.compose import ComposeTarget
from lastgood.targets.compose.project import Project
from lastgood.targets.compose.stack import Stack
from lastgood.testing.stack import PROBE, WELL
from lastgood.testing.world import Crash
from tests.runbook.team import BAD, OLD, Team
from tests.targets.engine_double import engine_double

NO_ANSWER = Retryable("no answer", delay_s=1.0)
SAYS_NO = Refused("the token is not accepted", hint="renew it")


@pytest.fixture
def team(tmp_path: Path) -> Team:
    """v2 serves and is good, and v1 is what it would go back to."""
    team = Team.with_a_good_release(tmp_path)
    team.deploy(BAD, WELL)
    team.watch()
    return team


def found(team: Team) -> dict[str, Finding]:
    """What the doctor says, by check."""
    return {finding.check: finding for finding in examine(team.rooms())}


def test_a_stack_that_can_go_back_is_well_in_every_check(team: Team) -> None:
    assert {finding.answer for finding in found(team).values()} == {Answer.OK}


def test_what_it_would_go_back_to_is_named(team: Team) -> None:
    assert OLD in found(team)["last good release"].evidence


def test_a_clone_that_is_gone_is_told_where_its_dump_can_be_restored(team: Team) -> None:
    drop_clone(team)
    finding = found(team)["restore point"]
    assert finding.answer is Answer.OK
    assert finding.evidence.endswith("is gone: its dump would be restored beside first")


def test_how_the_next_restore_point_is_taken_is_said(team: Team) -> None:
    assert found(team)["next restore point"].evidence == "dumped and restored beside, for which nobody waits"
    team.allow_pause = "10s"
    assert found(team)["next restore point"].evidence.startswith("pause: it is copied: its sessions are ended")
    team.stack.uncopied = ("scheduler works in app and would not end",)
    told = found(team)["next restore point"].evidence
    assert told == "pause: none, it is dumped: scheduler works in app and would not end"


def test_looking_changes_nothing(team: Team) -> None:
    before = (team.stack.containers, team.stack.database, team.stack.frontend, list(team.journal.kept))
    found(team)
    assert (team.stack.containers, team.stack.database, team.stack.frontend, list(team.journal.kept)) == before


def drop_clone(team: Team) -> None:
    """Somebody drops the clones of the restore points."""
    names = frozenset(name for name in team.stack.database.databases if not name.startswith("clone_"))
    team.stack.database = replace(team.stack.database, databases=names)


def drop_clone_and_dump(team: Team) -> None:
    """Nothing of them is left that could be swapped in."""
    drop_clone(team)
    team.stack.database = replace(team.stack.database, restore_points=frozenset())


def damage_restore_point(team: Team) -> None:
    """What lies there of it is not what the journal has."""
    facts = team.stack.database
    team.stack.database = replace(facts, manifests=tuple((name, "another") for name, _ in facts.manifests))


def cannot_return(team: Team) -> None:
    """The frontend host keeps the old deployment and does not let it serve again."""
    kept = tuple(replace(d, can_return=d.id != f"dpl_{OLD}") for d in team.stack.frontend.deployments)
    team.stack.frontend = replace(team.stack.frontend, deployments=kept)


def deploy_and_die(team: Team) -> None:
    """A deploy is left in its middle."""

    def die() -> None:
        raise Crash

    team.stack.takes_s["serve-core"] = 2.0
    team.clock.after(1.0, die)
    with pytest.raises(Crash):
        team.deploy("v3", WELL)


def deploy_past_us(team: Team) -> None:
    """Somebody recreates a service from another image."""
    facts = team.stack.containers
    serving = tuple(replace(i, artifact="core-hotfix") if i.service == "core" else i for i in facts.serving)
    team.stack.containers = replace(facts, serving=serving)


def start_beside(team: Team) -> None:
    """Somebody has compose start its own copy behind an edge."""
    facts = team.stack.containers
    copy = replace(facts.serving[0], release="", instance="1234567890abcdef")
    bound = tuple(replace(i, release=BAD) for i in facts.serving)
    team.stack.containers = replace(facts, serving=bound, candidates=(copy,), switchable=frozenset({copy.service}))


def die_at_the_edge(team: Team) -> None:
    """Another lastgood dies between the edge's file and the edge."""
    team.stack.containers = replace(team.stack.containers, unwritten=frozenset({"core"}))


FAILS: dict[str, tuple[str, str, Callable[[Team], None]]] = {
    "the journal was changed": (
        "journal",
        "record 3 was changed",
        lambda team: setattr(team.journal, "damage", ("record 3 was changed",)),
    ),
    "a run did not finish": ("runs", "of v3 did not finish", deploy_and_die),
    "a service is sick": ("containers", "not serving: agent", lambda team: team.stack.sicken("agent")),
    "somebody deployed past us": ("what serves", f"core: not what was recorded as {BAD}", deploy_past_us),
    "the edge would start otherwise": (
        "file of the edge",
        "would send requests of core elsewhere than now",
        die_at_the_edge,
    ),
    "somebody started a copy beside": ("beside the edge", "core of no release", start_beside),
    "the files make no release": (
        "files",
        "web runs code from a bind mount",
        lambda team: setattr(team.stack, "unusable", ("web runs code from a bind mount",)),
    ),
    "images are gone": ("way back", f"{OLD}: core is gone", lambda team: team.stack.forget(OLD)),
    "the disk is too small": (
        "database",
        "1 GB free, 3 GB needed",
        lambda team: setattr(team.stack, "obstacles", ("1 GB free, 3 GB needed",)),
    ),
    "the clone is gone": ("restore point", "none that could be swapped in", drop_clone_and_dump),
    "the restore point is another": ("restore point", "is not the one that was proved", damage_restore_point),
    "the frontend cannot return": ("frontend", f"would go back to dpl_{OLD}", cannot_return),
    "the frontend host says no": (
        "frontend",
        "the token is not accepted",
        lambda team: team.stack.away.update({Role.FRONTEND: SAYS_NO}),
    ),
}


@pytest.mark.parametrize("trouble", FAILS)
def test_what_would_keep_it_from_going_back_fails_and_is_named(team: Team, trouble: str) -> None:
    check, evidence, begin = FAILS[trouble]
    begin(team)
    finding = found(team)[check]
    assert finding.answer is Answer.FAILED
    assert evidence in finding.evidence


@pytest.mark.parametrize("trouble", FAILS)
def test_what_failed_comes_with_one_thing_to_type(team: Team, trouble: str) -> None:
    FAILS[trouble][-1](team)
    assert [f.check for f in found(team).values() if f.answer is Answer.FAILED and not f.hint] == []


UNSEEN: dict[str, tuple[str, Callable[[Team], None]]] = {
    "the engine is away": ("containers", lambda team: team.stack.away.update({Role.CONTAINERS: NO_ANSWER})),
    "the database is away": ("database", lambda team: team.stack.away.update({Role.DATABASE: NO_ANSWER})),
    "the frontend host is away": ("frontend", lambda team: team.stack.away.update({Role.FRONTEND: NO_ANSWER})),
    "the metrics are away": ("signal traffic", lambda team: team.stack.blindfold("traffic")),
    "the feature's probe is away": (f"signal {PROBE}", lambda team: team.stack.blindfold(PROBE)),
}


@pytest.mark.parametrize("trouble", UNSEEN)
def test_what_could_not_be_seen_is_neither_ok_nor_failed(team: Team, trouble: str) -> None:
    check, begin = UNSEEN[trouble]
    begin(team)
    assert found(team)[check].answer is Answer.COULD_NOT_LOOK


@pytest.mark.parametrize("trouble", UNSEEN)
def test_what_could_not_be_seen_keeps_nothing_else_from_being_looked_at(team: Team, trouble: str) -> None:
    well = {check for check, finding in found(team).items() if finding.answer is Answer.OK}
    check, begin = UNSEEN[trouble]
    begin(team)
    part = {
        "containers": {"rung", "way back", "other ways back"},
        "database": {"restore point", "next restore point", "replay", "capture"},
    }.get(check, set())
    assert well - part - {check} <= {name for name, finding in found(team).items() if finding.answer is Answer.OK}


def test_what_a_rollback_would_cost_is_told_and_is_no_fault(team: Team) -> None:
    team.stack.cautions = ("audit has no primary key",)
    finding = found(team)["database notes"]
    assert (finding.answer, finding.evidence) == (Answer.OK, "audit has no primary key")


def test_what_no_deploy_runs_is_told_and_is_no_fault(team: Team) -> None:
    team.stack.awaited = (("buckets", "compose run buckets"),)
    finding = found(team)["left to you"]
    assert finding.answer is Answer.OK
    assert finding.evidence.endswith("before a deploy that needs it: compose run buckets")


def test_a_service_that_no_deploy_touches_and_that_is_not_as_its_file_says_is_told_and_is_no_fault(team: Team) -> None:
    team.stack.left_alone = (("mailer has no container", "compose up mailer"),)
    finding = found(team)["left as it is"]
    told = (finding.answer, finding.evidence, finding.hint)
    assert told == (Answer.OK, "mailer has no container", "compose up mailer")


def test_a_service_that_the_compose_file_no_longer_has_is_named_and_the_doctor_goes_on(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after it was renamed, or its profile left out."""
    project = Project({"name": "shop", "services": {"api": {"image": "a"}}})
    monkeypatch.setattr(Stack, "resolve", lambda _: project)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'engine.sock'}")
    config = ContainersConfig.model_validate({"compose": {"project": "shop"}, "services": ["web", "api"]})
    compose = ComposeTarget(config, root=tmp_path, state=tmp_path / "state", clock=team.clock)
    with engine_double(tmp_path / "engine.sock"):
        said = {finding.check: finding for finding in examine(replace(team.rooms(), containers=compose))}
    assert said["files"].answer is Answer.FAILED
    assert said["files"].evidence.startswith("containers.services names web, which the compose file does not have")
    assert said["journal"].answer is Answer.OK


def test_a_release_that_serves_and_has_none_before_it_has_nowhere_to_go(tmp_path: Path) -> None:
    finding = found(Team.with_a_good_release(tmp_path))["last good release"]
    assert (finding.answer, finding.evidence) == (Answer.FAILED, f"none before {OLD}")


def test_a_stack_that_was_never_deployed_is_told_to_record_what_is_good(tmp_path: Path) -> None:
    finding = found(Team(tmp_path))["last good release"]
    assert (finding.answer, finding.hint) == (Answer.FAILED, "lastgood record --good")


def test_a_part_that_is_not_configured_is_no_fault(tmp_path: Path) -> None:
    said = found(Team.with_a_good_release(tmp_path, parts=frozenset({Role.CONTAINERS})))
    assert {said["database"].evidence, said["frontend"].evidence} == {"skipped: none configured"}
    assert {said["database"].answer, said["frontend"].answer} == {Answer.OK}


def test_a_watch_without_eyes_fails(team: Team) -> None:
    findings = examine(replace(team.rooms(), sources=()))
    assert [f.answer for f in findings if f.check == "signals"] == [Answer.FAILED]
