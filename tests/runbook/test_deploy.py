"""A deploy: what is asked for first, what a stop leaves, and what it means for the releases before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lastgood.core.errors import Refused, Retryable
from lastgood.core.facts import FrontendDeployment
from lastgood.core.reading import NoData
from lastgood.core.release import Standing
from lastgood.core.report import TerminalState
from lastgood.runbook.deploy import give_up
from lastgood.runbook.rollback import COMPENSATION
from lastgood.runbook.watch import baking
from lastgood.testing.world import START, Crash, Crashes
from tests.runbook.stack import Stack

NEVER_HEALTHY = Refused("core of v2 never became healthy")


def hint_of(stack: Stack, name: str) -> str:
    """What a refused deploy asks for."""
    with pytest.raises(Refused) as refused:
        stack.deploy(name)
    return refused.value.hint


def test_a_good_release_becomes_what_serves(stack: Stack) -> None:
    stack.deploy("v2")
    assert stack.serves == "v2"


def test_without_any_release_it_asks_for_first(tmp_path: Path) -> None:
    assert hint_of(Stack(tmp_path, recorded=False), "v1") == "lastgood deploy --first"


def test_the_first_deploy_is_deployed(tmp_path: Path) -> None:
    stack = Stack(tmp_path, recorded=False)
    stack.deploy("v2", first=True)
    assert stack.serves == "v2"


def test_a_plan_that_is_not_confirmed_changes_nothing(stack: Stack) -> None:
    with pytest.raises(Refused):
        stack.deploy("v2", confirm=lambda _plan: False)
    assert not stack.world.effects
    assert stack.history.open_deployment is None


# --- the gate ---


@pytest.fixture
def stillborn(stack: Stack) -> Stack:
    """v2 never becomes healthy."""
    stack.containers.trouble.failing["pass-gate"] = [NEVER_HEALTHY]
    return stack


def test_a_gate_that_fails_leaves_what_serves_untouched(stillborn: Stack) -> None:
    stillborn.deploy("v2")
    assert stillborn.serves == "v1"
    assert not stillborn.world.effects.keys() & {"serve-core", "serve-agent"}


def test_a_gate_that_fails_ends_rolled_back_verified_with_trigger_gate(stillborn: Stack) -> None:
    report = stillborn.deploy("v2").report
    assert report is not None
    assert (report.terminal, report.trigger) == (TerminalState.ROLLED_BACK_VERIFIED, "gate")


def test_a_gate_that_fails_asks_nobody_in_mode_propose(tmp_path: Path) -> None:
    stack = Stack(tmp_path, mode="propose")
    stack.containers.trouble.failing["pass-gate"] = [NEVER_HEALTHY]
    stack.deploy("v2")
    assert stack.terminal() is TerminalState.ROLLED_BACK_VERIFIED


def test_a_gate_that_fails_leaves_what_serves_even_where_that_is_not_proved_good(stack: Stack) -> None:
    """v2 was kept inconclusive and serves; v3 that never boots is no reason to put v1 in its place."""
    stack.deploy("v2")
    stack.traffic.instead = NoData(reason="nothing")
    stack.watch()
    stack.containers.trouble.failing["pass-gate"] = [NEVER_HEALTHY]
    stack.deploy("v3")
    assert stack.serves == "v2"


def test_a_release_that_did_not_pass_the_gate_is_barred(stillborn: Stack) -> None:
    stillborn.deploy("v2")
    assert stillborn.standing("v2") is Standing.BARRED


def test_a_deploy_that_died_at_its_gate_is_undone_to_what_serves(stack: Stack) -> None:
    stack.deploy("v2")
    stack.traffic.instead = NoData(reason="nothing")
    stack.watch()
    stack.world.crashes = Crashes(1)
    with pytest.raises(Crash):
        stack.deploy("v3")
    give_up(stack.rooms(), "given up by ada")
    assert stack.roll_back().to_release == "v2"


# --- half-way ---


def test_a_deploy_that_stops_half_way_is_put_back(stack: Stack) -> None:
    stack.containers.trouble.failing["serve-agent"] = [Refused("no space")]
    report = stack.deploy("v2").report
    assert report is not None
    assert report.terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert {i.artifact for i in stack.world.containers.serving} == {"core-v1", "agent-v1"}


def test_a_deploy_that_stops_half_way_asks_when_the_days_rollbacks_are_used_up(stack: Stack) -> None:
    for name in ("v2", "v3"):
        stack.containers.trouble.failing["serve-agent"] = [Refused("no space")]
        stack.deploy(name)
        stack.unfreeze()
    stack.containers.trouble.failing["serve-agent"] = [Refused("no space")]
    stack.clock.after(300, stack.deny)
    report = stack.deploy("v4").report
    assert report is not None
    assert report.terminal is TerminalState.DENIED


# --- the restore point ---


@pytest.fixture
def full_disk(tmp_path: Path) -> Stack:
    """A stack with a database, of which no restore point can be taken."""
    stack = Stack(tmp_path, database=True)
    stack.database.trouble.failing["take-restore-point"] = [Refused("the disk is too small", hint="df -h")]
    return stack


def test_a_restore_point_that_fails_refuses(full_disk: Stack) -> None:
    assert hint_of(full_disk, "v2") == "df -h"
    assert full_disk.terminal() is TerminalState.REFUSED


def test_a_restore_point_that_fails_changes_nothing(full_disk: Stack) -> None:
    hint_of(full_disk, "v2")
    assert not full_disk.world.effects


def test_a_restore_point_that_fails_bars_and_freezes_nothing(full_disk: Stack) -> None:
    hint_of(full_disk, "v2")
    assert full_disk.standing("v2") is Standing.RECORDED
    assert full_disk.history.frozen is None


def test_after_a_restore_point_that_failed_the_same_release_can_be_deployed(full_disk: Stack) -> None:
    hint_of(full_disk, "v2")
    full_disk.deploy("v2")
    assert full_disk.serves == "v2"


def test_a_restore_point_that_fails_leaves_the_watch_of_what_serves_alone(tmp_path: Path) -> None:
    stack = Stack(tmp_path, database=True)
    stack.deploy("bad")
    stack.database.trouble.failing["take-restore-point"] = [Refused("the disk is too small", hint="df -h")]
    hint_of(stack, "v3")
    under = stack.history.open_deployment
    assert under is not None
    assert under.deployment.release == "bad"
    stack.watch(under.deployment.id)
    assert stack.serves == "v1"


def test_a_rollback_after_a_deploy_that_was_refused_is_watched_again(tmp_path: Path) -> None:
    stack = Stack(tmp_path, database=True)
    stack.deploy("bad")
    stack.database.trouble.failing["take-restore-point"] = [Refused("the disk is too small", hint="df -h")]
    hint_of(stack, "v3")
    stack.watch("d2")
    under = baking(stack.rooms())
    assert under is not None
    assert under.deployment.release == "bad"


def test_a_restore_point_that_could_not_be_taken_is_refused_before_anything_begins(tmp_path: Path) -> None:
    stack = Stack(tmp_path, database=True)
    stack.database.missing = ("pg_dump is not there",)
    assert hint_of(stack, "v2") == "lastgood doctor"
    assert "v2" not in {d.deployment.release for d in stack.history.deployments.values()}


def test_a_restore_point_is_kept_in_the_journal(tmp_path: Path) -> None:
    stack = Stack(tmp_path, database=True)
    stack.deploy("v2")
    assert stack.history.restore_point_of("d2") is not None


# --- after a rollback ---


@pytest.fixture
def rolled_back(stack: Stack) -> Stack:
    """A bad release was rolled back."""
    stack.deploy_and_watch("bad")
    return stack


def test_deploys_are_frozen_until_a_person_lifts_it(rolled_back: Stack) -> None:
    assert hint_of(rolled_back, "v2").startswith("lastgood unfreeze")
    rolled_back.unfreeze()
    rolled_back.deploy("v2")
    assert rolled_back.serves == "v2"


def test_a_barred_release_needs_the_override(rolled_back: Stack) -> None:
    rolled_back.unfreeze()
    assert "--even-if-barred" in hint_of(rolled_back, "bad")
    rolled_back.deploy("bad", override=True)
    assert rolled_back.serves == "bad"


def test_the_same_artifacts_under_another_name_need_the_override(rolled_back: Stack) -> None:
    rolled_back.unfreeze()
    rolled_back.containers.content["good-again"] = "bad"
    assert "--even-if-barred" in hint_of(rolled_back, "good-again")


def test_the_same_clean_commit_under_another_name_needs_the_override(stack: Stack) -> None:
    stack.containers.commits = {"bad": "c" * 40, "rebuilt": "c" * 40}
    stack.deploy_and_watch("bad")
    stack.unfreeze()
    assert "--even-if-barred" in hint_of(stack, "rebuilt")


# --- the frontend ---


def test_the_frontend_is_learnt_while_watching(tmp_path: Path) -> None:
    """The host knows the push at once, and needs a minute to build it."""
    stack = Stack(tmp_path, frontend=True, production="dpl_v1")
    stack.containers.commits["v2"] = "c" * 40
    stack.deploy("v2")
    built = FrontendDeployment(id="dpl_v2", commit="c" * 40, state="READY", created_at=START)
    host_shows(stack, replace(built, state="BUILDING"), production="dpl_v1")
    stack.clock.after(60, lambda: host_shows(stack, built, production="dpl_v2"))
    stack.watch()
    assert stack.history.releases["v2"].frontend == "dpl_v2"


def host_shows(stack: Stack, deployment: FrontendDeployment, *, production: str) -> None:
    stack.world.frontend = replace(stack.world.frontend, production=production, deployments=(deployment,))


def test_a_frontend_host_that_is_away_ends_no_watch(tmp_path: Path) -> None:
    stack = Stack(tmp_path, frontend=True, production="dpl_v1")
    stack.deploy("v2")
    stack.frontend.trouble.away = Retryable("no answer", delay_s=1)
    assert stack.watch().terminal is TerminalState.HEALTHY_KEPT


def test_no_compensation_runs_where_all_is_well(stack: Stack) -> None:
    stack.deploy_and_watch("v2")
    assert COMPENSATION not in {r.started.trigger for r in stack.history.runs.values()}
