"""A deployment: what it asks for first, what it leaves when it stops, and what is known of the release afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from lastgood.cli.rendering import plan_lines
from lastgood.core.errors import NeedsHuman, OutcomeUnknown, Refused, Retryable
from lastgood.core.migration import Fit, FitsSchema
from lastgood.core.plan import Plan, Role, TakeRestorePoint
from lastgood.core.record import BaselineTaken, DeploymentEnded, StepStarted, WatchStarted
from lastgood.core.release import Release, Standing
from lastgood.core.report import TerminalState
from lastgood.runbook import deploy as deploying
from lastgood.runbook import record as recording
from lastgood.runbook.frontend import await_frontend
from lastgood.runbook.rollback import COMPENSATION
from lastgood.runbook.watch import baking, start_watch
from lastgood.testing.stack import SERVICES, WELL, Behaviour, MemoryContainers, artifact_of, commit_of
from lastgood.testing.world import Crash
from tests.runbook.team import BAD, ERRORS, OLD, Team

MIGRATING = Behaviour(migrations=("m2",))
NEVER_BOOTS = Behaviour(boots=False)


def nothing(_plan: Plan) -> bool:
    """A person who says no."""
    return False


def begun(team: Team) -> list[str]:
    """The steps that were begun, in their order."""
    return [event.step for event in team.events(StepStarted)]


# --- what it asks for first --------------------------------------------------------------------------------------


def test_a_deploy_without_a_good_release_asks_for_first(tmp_path: Path) -> None:
    team = Team(tmp_path)
    with pytest.raises(Refused) as refused:
        team.deploy(OLD)
    assert refused.value.hint == f"lastgood deploy --release {OLD} --first"


def test_a_first_deploy_serves(tmp_path: Path) -> None:
    team = Team(tmp_path)
    team.deploy(OLD, first=True)
    assert team.stack.serves_wholly
    assert team.history.serving == OLD


def test_a_release_that_is_not_vouched_for_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    team = Team(tmp_path)
    team.deploy(OLD, first=True)
    with pytest.raises(Refused) as refused:
        team.deploy(BAD)
    assert refused.value.hint == "lastgood record --good"


def test_a_person_who_says_no_leaves_everything_as_it_was(team: Team) -> None:
    before = team.stack.containers.serving
    with pytest.raises(Refused, match="not confirmed"):
        team.deploy(BAD, WELL, confirm=nothing)
    assert team.stack.containers.serving == before
    assert begun(team) == []


def test_who_is_told_how_to_say_yes_is_told_to_deploy_the_same_in_the_same_way(team: Team) -> None:
    """Without its name the checkout's would be deployed."""
    with pytest.raises(Refused) as refused:
        team.deploy(BAD, WELL, confirm=nothing)
    assert refused.value.hint == f"lastgood deploy --release {BAD} --yes"
    with pytest.raises(Refused) as refused:
        team.deploy(BAD, WELL, first=True, override=True, confirm=nothing)
    assert refused.value.hint == f"lastgood deploy --release {BAD} --first --even-if-barred --yes"


def test_what_the_services_wait_for_and_no_deploy_runs_is_said_before_anybody_agrees(team: Team) -> None:
    """Of two services that end, the command of lastgood.yaml that applies migrations runs one."""
    team.stack.awaited = (("migrate", "compose run migrate"), ("buckets", "compose run buckets"))
    shown: list[Plan] = []

    def see(plan: Plan) -> bool:
        shown.append(plan)
        return True

    team.deploy(BAD, WELL, confirm=see)
    (line,) = (line for line in plan_lines(shown[0]) if "is not run by lastgood" in line)
    assert line.startswith("note      buckets is not run by lastgood, ")
    assert line.endswith("before a deploy that needs it: compose run buckets")


def test_what_a_deploy_leaves_as_it_is_and_is_not_as_its_file_says_is_told_before_it_and_at_its_end(team: Team) -> None:
    team.stack.left_alone = (("mailer has no container", "compose up mailer"), ("cache is not as before", ""))
    shown: list[Plan] = []

    def see(plan: Plan) -> bool:
        shown.append(plan)
        return True

    team.deploy(BAD, WELL, confirm=see)
    lines = tuple(plan_lines(shown[0]))
    assert "note      mailer has no container: compose up mailer" in lines
    assert "note      cache is not as before" in lines
    after = team.told[team.told.index(f"{BAD} serves") :]
    assert "  note: mailer has no container: compose up mailer" in after
    assert "  note: cache is not as before" in after


def test_a_deploy_goes_on_where_nobody_can_tell_what_it_leaves_as_it_is(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left_alone(_: MemoryContainers) -> tuple[tuple[str, str], ...]:
        raise Refused("the resolved configuration cannot be read again")

    monkeypatch.setattr(MemoryContainers, "left_alone", left_alone)
    team.deploy(BAD, WELL)
    assert team.history.serving == BAD
    why = "whether services of no release are as their file says could not be seen: the resolved configuration cannot"
    assert any(line.startswith(f"  note: {why}") for line in team.told)


def test_the_plan_that_was_shown_is_the_plan_that_is_carried_out(team: Team) -> None:
    shown: list[Plan] = []

    def see(plan: Plan) -> bool:
        shown.append(plan)
        return True

    team.deploy(BAD, WELL, confirm=see)
    assert shown == [team.run.plan]


def test_what_the_migrations_would_do_is_shown_before_anything_and_stays_in_the_journal(team: Team) -> None:
    team.stack.fits = FitsSchema(fit=Fit.NO, tried=1, reason="42703 column title")
    shown: list[Plan] = []

    def see(plan: Plan) -> bool:
        shown.append(plan)
        assert begun(team) == []
        return True

    team.deploy(BAD, MIGRATING, confirm=see)
    outlook = shown[0].outlook
    assert outlook is not None
    assert (outlook.last_good, outlook.old_release) == (OLD, team.stack.fits)
    assert team.run.plan.outlook == outlook
    told = "\n".join(plan_lines(shown[0]))
    assert f"old code  {OLD} runs on the migrated schema: no (42703 column title)" in told


def test_what_a_restore_point_costs_is_shown_before_it_is_taken_by_what_the_one_before_took(team: Team) -> None:
    team.stack.database = replace(team.stack.database, size_bytes=1_340_000_000)
    team.stack.takes_s["take-restore-point"] = 20.0
    team.deploy(BAD, WELL)
    first = team.run.plan.cost
    assert first is not None
    assert (first.takes_s, first.by) == (11.0, "none was taken here yet: by what was measured elsewhere")
    taken = team.run.plan.steps[0].action
    assert isinstance(taken, TakeRestorePoint)

    team.watch()
    team.stack.database = replace(team.stack.database, size_bytes=2_680_000_000)
    team.deploy("v3", WELL)
    then = team.run.plan.cost
    assert then is not None
    assert (round(then.takes_s), then.by) == (40, f"{taken.restore_point} took 20.0 s")
    told = "\n".join(plan_lines(team.run.plan))
    assert f"costs     about 40 s for the restore point ({taken.restore_point} took 20.0 s)" in told
    assert "disk      6.4 GB at most for a dump and a copy of 2.7 GB; up to 4.3 GB of the server's log" in told
    assert "free      the server's volume 1.1 TB" in told


def taken(team: Team) -> TakeRestorePoint:
    """How the newest deploy takes its restore point."""
    action = team.run.plan.steps[0].action
    assert isinstance(action, TakeRestorePoint)
    return action


def test_without_a_pause_the_database_is_dumped(team: Team) -> None:
    team.deploy(BAD, WELL)
    assert taken(team).pause_s == 0
    assert team.run.plan.cost is not None
    assert team.run.plan.cost.pause is None
    assert not any("kept out" in line for line in team.told)


def test_where_a_pause_is_allowed_the_database_is_copied_and_the_plan_says_what_that_costs(team: Team) -> None:
    team.allow_pause = "10s"
    team.stack.database = replace(team.stack.database, size_bytes=1_000_000_000)
    team.deploy(BAD, WELL)
    name = taken(team).restore_point
    told = "\n".join(plan_lines(team.run.plan))
    assert taken(team).pause_s == 10
    assert "pause     it is copied: its sessions are ended, transactions under way with them, and new ones wait" in told
    assert "for about 2.5 s (none was taken here yet: by what was measured elsewhere), 10 s at most" in told
    assert "while nobody else is in it" in team.run.plan.steps[0].explain
    assert team.history.restore_points[name].copied
    assert any(f"kept out of app for 0.4 s while it was copied ({name})" in line for line in team.told)

    team.watch()
    team.stack.database = replace(team.stack.database, size_bytes=2_000_000_000)
    team.deploy("v3", WELL)
    assert f"for about 0.8 s ({name} took 0.4 s), 10 s at most" in "\n".join(plan_lines(team.run.plan))


@pytest.mark.parametrize(
    "size_bytes, uncopied, because",
    [
        (
            50_000_000_000,
            (),
            "a copy would take about 100.5 s (none was taken here yet: by what was measured elsewhere)",
        ),
        (1_000, ("scheduler works in app and would not end",), "scheduler works in app and would not end"),
    ],
    ids=["too-large", "in-the-way"],
)
def test_a_database_that_cannot_be_copied_in_the_pause_is_dumped_and_the_plan_says_why(
    team: Team, size_bytes: int, uncopied: tuple[str, ...], because: str
) -> None:
    team.allow_pause = "10s"
    team.stack.database = replace(team.stack.database, size_bytes=size_bytes)
    team.stack.uncopied = uncopied
    team.deploy(BAD, WELL)
    assert taken(team).pause_s == 0
    assert f"pause     none, it is dumped: {because}" in "\n".join(plan_lines(team.run.plan))
    assert not team.history.restore_points[taken(team).restore_point].copied


def test_a_copy_that_was_given_up_is_said_and_is_not_tried_again_before_more_is_allowed(team: Team) -> None:
    team.allow_pause, team.stack.copy_s = "2s", 60.0
    team.deploy(BAD, WELL)
    name = taken(team).restore_point
    why = "in vain, and it was dumped: it did not end within 2 s"
    assert any(f"kept out of app for 2.0 s, {why} ({name})" in line for line in team.told)
    team.watch()
    team.stack.database = replace(team.stack.database, size_bytes=team.stack.database.size_bytes + 1)
    team.deploy("v3", WELL)
    assert taken(team).pause_s == 0
    assert f"({name} took 2.0 s and was given up), and allow_pause is 2 s" in "\n".join(plan_lines(team.run.plan))
    team.watch()
    team.allow_pause = "90s"
    team.deploy("v4", WELL)
    assert taken(team).pause_s == 90


def test_what_users_notice_of_a_pause_is_no_fault_of_the_release_before(team: Team) -> None:
    team.allow_pause = "10s"
    team.deploy(BAD, WELL)
    team.deploy("v3", WELL)
    before = next(event for event in team.events(StepStarted) if event.run == team.run.started.run)
    ended = next(event for event in team.events(DeploymentEnded) if event.terminal is TerminalState.SUPERSEDED)
    order = [record.event for record in team.journal.kept]
    assert order.index(ended) < order.index(before)


def test_what_is_normal_is_read_before_a_pause(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path, baseline="30s")
    team.allow_pause = "10s"
    team.deploy(BAD, WELL)
    order = [type(record.event) for record in team.journal.kept]
    assert order.index(BaselineTaken) < order.index(StepStarted)


def test_a_release_without_migrations_has_no_outlook(team: Team) -> None:
    team.deploy(BAD, WELL)
    assert team.run.plan.outlook is None


def test_the_same_name_with_other_content_is_refused(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.watch()
    team.stack.on_disk = "something-else"
    with pytest.raises(Refused, match="recorded with other content"):
        team.deploy(BAD)


def test_the_name_of_the_only_good_release_is_not_told_that_there_is_none(team: Team) -> None:
    with pytest.raises(Refused, match="v1 is recorded already, is good and serves") as refused:
        team.deploy(OLD)
    assert refused.value.hint == "lastgood deploy --release ANOTHER-NAME"


def rolled_back(team: Team) -> None:
    """v2 went back, and a person lifted the freeze."""
    team.deploy(BAD, ERRORS)
    team.watch()
    team.unfreeze()


def test_a_release_that_was_rolled_back_is_barred(team: Team) -> None:
    rolled_back(team)
    with pytest.raises(Refused, match="barred") as refused:
        team.deploy(BAD)
    assert refused.value.hint == f"lastgood deploy --release {BAD} --even-if-barred"


def test_a_barred_release_is_barred_by_another_name_as_well(team: Team) -> None:
    rolled_back(team)
    team.stack.on_disk = BAD
    with pytest.raises(Refused, match=f"{BAD} by another name"):
        team.deploy("v2-again")


def test_what_was_prepared_and_then_refused_is_not_kept(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    rolled_back(team)
    team.deploy("v3", WELL)
    before = set(team.containers.kept_names)
    team.stack.on_disk = BAD
    with pytest.raises(Refused, match=f"{BAD} by another name"):
        team.deploy("v2-again")
    team.stack.on_disk = ""

    def unreadable(_self: object, _release: str) -> object:
        raise Refused("the migrations cannot be read", hint="ls")

    monkeypatch.setattr("lastgood.testing.stack.MemoryDatabase.ships", unreadable)
    for name in ("v4", "v3"):  # of what is recorded already everything stays
        with pytest.raises(Refused, match="cannot be read"):
            team.deploy(name)
    assert team.containers.kept_names == before


def test_a_barred_release_is_barred_when_its_commit_is_built_once_more(team: Team) -> None:
    rolled_back(team)
    team.containers.commits["v2-rebuilt"] = commit_of(BAD)
    with pytest.raises(Refused, match=f"{BAD} by another name"):
        team.deploy("v2-rebuilt")


def test_a_barred_release_serves_again_where_a_person_insists(team: Team) -> None:
    rolled_back(team)
    team.deploy(BAD, override=True)
    assert team.stack.serving == BAD


def test_deploys_are_frozen_after_a_rollback_and_say_how_to_lift_it(team: Team) -> None:
    team.deploy(BAD, ERRORS)
    team.watch()
    with pytest.raises(Refused, match="frozen") as refused:
        team.deploy("v3", WELL)
    assert refused.value.hint == "lastgood unfreeze -m 'why it is safe'"


def test_deploys_stay_frozen_when_the_bake_was_quiet(team: Team) -> None:
    team.deploy(BAD, ERRORS)
    team.watch()
    team.watch()
    with pytest.raises(Refused, match="frozen"):
        team.deploy("v3", WELL)


@pytest.mark.parametrize("why", ["", "  "])
def test_a_freeze_is_not_lifted_without_a_reason(team: Team, why: str) -> None:
    team.deploy(BAD, ERRORS)
    team.watch()
    with pytest.raises(Refused, match="needs a reason"):
        team.unfreeze(why)
    assert team.history.frozen is not None


def test_lifting_the_freeze_lets_pushes_go_live_again(team: Team) -> None:
    team.deploy(BAD, ERRORS)
    team.watch()
    assert not team.stack.frontend.auto_assign
    team.unfreeze()
    assert team.stack.frontend.auto_assign


def test_a_frontend_host_that_is_away_keeps_no_freeze_up_and_is_said(team: Team) -> None:
    team.deploy(BAD, ERRORS)
    team.watch()
    team.stack.away[Role.FRONTEND] = Retryable("vercel: no answer", delay_s=1.0)
    said = team.unfreeze()
    assert team.history.frozen is None
    assert any("vercel: no answer" in line for line in said)


def test_what_a_rollback_would_cost_is_told_and_refuses_nothing(team: Team) -> None:
    team.stack.cautions = ("audit has no primary key",)
    team.deploy(BAD, WELL)
    assert begun(team) != []
    assert "  note: audit has no primary key" in team.told


def test_what_keeps_a_restore_point_from_being_taken_refuses_the_deploy(team: Team) -> None:
    team.stack.obstacles = ("the disk is too small: 1 GB free, 3 GB needed",)
    with pytest.raises(Refused, match="the disk is too small"):
        team.deploy(BAD, WELL)
    assert begun(team) == []


def test_a_deploy_that_did_not_finish_keeps_the_next_one_out(team: Team) -> None:
    killed_at(team, "serve-agent", WELL)
    with pytest.raises(Refused, match="did not finish"):
        team.deploy("v3", WELL)


# --- what it does ------------------------------------------------------------------------------------------------


def test_a_restore_point_comes_before_the_gate_and_the_gate_before_the_migration(team: Team) -> None:
    team.deploy(BAD, MIGRATING)
    serve = [f"serve-{service}" for service in SERVICES]
    assert begun(team) == ["take-restore-point", "pass-gate", "migrate", *serve, "clear-candidates"]


def test_the_restore_point_of_a_deploy_is_known_to_the_journal(team: Team) -> None:
    team.deploy(BAD, MIGRATING)
    assert team.history.restore_point_of("d2") == next(iter(team.stack.points.values()))


def test_the_schema_that_a_release_left_is_known(team: Team) -> None:
    team.deploy(BAD, MIGRATING)
    assert team.history.releases[BAD].fingerprint == team.stack.database.fingerprint


def test_the_watch_begins_when_the_release_serves(team: Team) -> None:
    team.deploy(BAD, WELL)
    kinds = [type(record.event) for record in team.journal.kept]
    served = max(n for n, record in enumerate(team.journal.kept) if isinstance(record.event, StepStarted))
    assert kinds.index(WatchStarted) > served


def test_what_is_normal_is_read_before_anything_changes(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path, baseline="30s")
    team.deploy(BAD, ERRORS)
    (taken,) = team.events(BaselineTaken)
    assert len(taken.buckets) == 6
    first = next(r.seq for r in team.journal.kept if isinstance(r.event, StepStarted) and r.event.step == "serve-core")
    assert next(r.seq for r in team.journal.kept if isinstance(r.event, BaselineTaken)) < first


def test_a_step_that_takes_long_is_said_to(team: Team) -> None:
    team.stack.takes_s["serve-core"] = 5.0
    team.deploy(BAD, WELL)
    assert any("core serves from v2 ... (at most" in line for line in team.told)


def test_a_step_that_is_quick_is_not_said_to_take_long(team: Team) -> None:
    team.deploy(BAD, WELL)
    assert not [line for line in team.told if "... (at most" in line]


def test_a_frontend_that_is_still_building_is_waited_for_where_nobody_watches(team: Team) -> None:
    done = team.deploy(BAD, WELL, pushed=False)
    team.clock.after(8.0, lambda: team.stack.push(BAD))
    await_frontend(team.rooms(), done.deployment)
    assert team.history.releases[BAD].frontend == f"dpl_{BAD}"


def test_a_database_that_pauses_for_a_moment_when_the_release_serves_does_not_end_the_deploy(team: Team) -> None:
    def away() -> None:
        team.stack.away[Role.DATABASE] = Retryable("database app: connection refused", delay_s=2.0)
        team.clock.after(1.0, lambda: void(team.stack.away.pop(Role.DATABASE)))

    team.stack.takes_s["clear-candidates"] = 1.0
    team.clock.after(1.0, away)
    team.deploy(BAD, WELL)
    assert team.history.open_run is None
    assert team.history.releases[BAD].fingerprint == team.stack.database.fingerprint


def void(_value: object) -> None:
    """Something is done, and nobody asks what came of it."""


# --- when it stops -----------------------------------------------------------------------------------------------


def test_a_gate_that_fails_leaves_what_serves_untouched(team: Team) -> None:
    before = team.stack.containers
    team.deploy(BAD, NEVER_BOOTS)
    assert team.stack.containers.serving == before.serving
    assert team.stack.containers.candidates == ()
    assert not [step for step in begun(team) if step.startswith("serve-")]


def test_a_gate_that_fails_while_what_serves_is_slow_to_answer_recreates_nothing(team: Team) -> None:
    team.stack.sicken(SERVICES[0])
    before = team.stack.containers
    team.deploy(BAD, NEVER_BOOTS)
    assert team.stack.containers.serving == before.serving
    assert not [step for step in begun(team) if step.startswith("serve-")]


def test_a_gate_that_fails_ends_verified_with_the_gate_as_trigger(team: Team) -> None:
    report = team.deploy(BAD, NEVER_BOOTS).report
    assert report is not None
    assert (report.terminal, report.trigger) == (TerminalState.ROLLED_BACK_VERIFIED, "gate")
    assert "exited with 1 at the gate" in report.sentence


def test_a_gate_that_fails_bars_its_release(team: Team) -> None:
    team.deploy(BAD, NEVER_BOOTS)
    assert team.history.releases[BAD].standing is Standing.BARRED


def test_a_deploy_that_never_served_leaves_no_name_that_starts_it(team: Team) -> None:
    """Else whoever types `docker compose up` afterwards, from habit, puts it into production after all."""
    team.deploy(BAD, NEVER_BOOTS)
    assert (team.containers.named, f"the names are of {OLD} again" in team.report.notes) == (OLD, True)


def test_a_deploy_that_stopped_before_its_gate_leaves_no_name_that_starts_it(team: Team) -> None:
    without_a_restore_point(team)
    assert team.containers.named == OLD


def test_a_gate_that_fails_asks_nobody(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path, mode="propose", parts=frozenset({Role.CONTAINERS}))
    team.deploy(BAD, NEVER_BOOTS)
    assert team.report.terminal is TerminalState.ROLLED_BACK_VERIFIED


def kept_but_not_good(team: Team) -> None:
    """v2 serves, and nobody could tell whether it is good."""
    team.deploy(BAD, WELL)
    team.stack.blindfold("traffic")
    team.watch()
    team.stack.blind.clear()


def test_a_gate_that_fails_leaves_what_serves_although_that_is_not_proved_good(team: Team) -> None:
    kept_but_not_good(team)
    team.deploy("v3", NEVER_BOOTS)
    assert team.stack.serving == BAD


def test_a_deploy_that_died_at_its_gate_is_undone_to_what_serves(team: Team) -> None:
    kept_but_not_good(team)
    killed_at(team, "pass-gate", WELL, name="v3")
    assert team.roll_back().to_release == BAD


def test_a_gate_that_fails_on_a_first_deploy_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    team = Team(tmp_path)
    with pytest.raises(Refused, match="at the gate"):
        team.deploy(OLD, NEVER_BOOTS, first=True)
    assert team.stack.containers.serving == ()
    assert team.deployment.ended is not None
    assert team.deployment.ended.terminal is TerminalState.REFUSED


def without_a_restore_point(team: Team) -> Refused:
    """A deploy whose restore point cannot be taken; what it said."""
    team.fails("take-restore-point", Refused("the trial restore failed: 3 rows are missing", hint="df -h"))
    with pytest.raises(Refused) as refused:
        team.deploy(BAD, WELL)
    return refused.value


def test_a_restore_point_that_cannot_be_proved_refuses_the_deploy(team: Team) -> None:
    said = without_a_restore_point(team)
    assert "3 rows are missing" in said.message
    assert said.hint == "df -h"


def test_a_deploy_without_a_restore_point_changed_nothing(team: Team) -> None:
    before = (team.stack.containers, team.stack.database, dict(team.stack.effects))
    without_a_restore_point(team)
    serving = team.stack.containers.serving
    assert (serving, team.stack.database, dict(team.stack.effects)) == (before[0].serving, *before[1:])


def test_a_deploy_without_a_restore_point_ends_refused_and_tells_no_rollback(team: Team) -> None:
    without_a_restore_point(team)
    assert [e.terminal for e in team.events(DeploymentEnded) if e.deployment == "d2"] == [TerminalState.REFUSED]
    assert not [text for text in team.channel.texts if "Rollback" in text]


def test_a_deploy_without_a_restore_point_can_be_tried_again(team: Team) -> None:
    without_a_restore_point(team)
    team.deploy(BAD, WELL)
    assert team.stack.serving == BAD


def test_a_release_that_never_went_anywhere_is_not_barred(team: Team) -> None:
    without_a_restore_point(team)
    assert team.history.releases[BAD].standing is Standing.RECORDED


def test_a_deploy_without_a_restore_point_leaves_the_watch_of_what_serves_alone(team: Team) -> None:
    team.deploy(BAD, ERRORS)
    team.fails("take-restore-point", Refused("the disk is too small", hint="df -h"))
    with pytest.raises(Refused):
        team.deploy("v3", WELL)
    assert team.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED


def test_a_rollback_after_a_deploy_that_was_refused_is_watched_again(team: Team) -> None:
    team.deploy(BAD, ERRORS)
    team.fails("take-restore-point", Refused("the disk is too small", hint="df -h"))
    with pytest.raises(Refused):
        team.deploy("v3", WELL)
    team.watch()
    under = baking(team.rooms())
    assert under is not None
    assert under.deployment.release == BAD


def test_no_compensation_runs_where_all_is_well(team: Team) -> None:
    team.deploy(BAD, WELL)
    team.watch()
    assert COMPENSATION not in {run.started.trigger for run in team.history.runs.values()}


def test_a_deploy_that_stops_half_way_is_put_back(team: Team) -> None:
    team.fails("serve-orchestrator", Refused("the port is taken", hint="ss -ltn"))
    report = team.deploy(BAD, WELL).report
    assert report is not None
    assert report.terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert (team.stack.serving, team.stack.serves_wholly) == (OLD, True)


@pytest.mark.parametrize("mode", ["observe", "propose"])
def test_a_deploy_that_stops_half_way_asks_first_where_the_mode_says_so(tmp_path: Path, mode: str) -> None:
    team = Team.with_a_good_release(tmp_path, mode=mode)
    team.fails("serve-orchestrator", Refused("the port is taken", hint="ss -ltn"))
    serving: list[str] = []

    def look_and_approve() -> None:
        serving.append(team.stack.serving)
        team.approve()

    team.when_asked(look_and_approve)
    report = team.deploy(BAD, WELL).report
    assert report is not None
    assert (serving, report.terminal) == ([BAD], TerminalState.ROLLED_BACK_VERIFIED)


def test_a_deploy_that_stops_half_way_asks_when_the_days_rollbacks_are_used_up(team: Team) -> None:
    for name in ("v2", "v3"):
        team.fails("serve-orchestrator", Refused("the port is taken"))
        team.deploy(name, WELL)
        team.unfreeze()
    team.fails("serve-orchestrator", Refused("the port is taken"))
    team.when_asked(team.deny)
    report = team.deploy("v4", WELL).report
    assert report is not None
    assert report.terminal is TerminalState.DENIED


def test_a_first_deploy_that_stops_half_way_needs_a_person_and_says_what_is_where(tmp_path: Path) -> None:
    team = Team(tmp_path)
    team.fails("serve-orchestrator", Refused("the port is taken", hint="ss -ltn"))
    with pytest.raises(NeedsHuman, match="the port is taken"):
        team.deploy(OLD, first=True)
    assert team.deployment.ended is not None
    assert team.deployment.ended.terminal is TerminalState.NEEDS_HUMAN
    assert "the port is taken" in team.channel.texts[-1]


def test_an_engine_that_is_away_when_a_deploy_is_to_be_put_back_leaves_it_open_for_a_rollback(team: Team) -> None:
    def away() -> None:
        team.stack.away[Role.CONTAINERS] = Retryable("the engine does not answer", delay_s=1.0)

    team.stack.takes_s["serve-core"] = 1.0
    team.fails("serve-orchestrator", Refused("the port is taken"))
    team.clock.after(1.0, away)
    with pytest.raises(NeedsHuman) as raised:
        team.deploy(BAD, WELL)
    assert raised.value.hint == "lastgood rollback"
    team.stack.away.clear()
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED


def test_a_deploy_that_stopped_and_was_not_put_back_is_not_watched(team: Team) -> None:
    team.fails("serve-orchestrator", Refused("the port is taken"))
    team.stack.takes_s["serve-core"] = 1.0
    team.clock.after(1.0, lambda: team.stack.away.update({Role.CONTAINERS: Retryable("no answer", delay_s=1.0)}))
    with pytest.raises(NeedsHuman):
        team.deploy(BAD, WELL)
    with pytest.raises(Refused) as refused:
        start_watch(team.rooms(), team.deployment.deployment.id)
    assert refused.value.hint == "lastgood rollback"


def test_a_migration_that_fails_asks_before_the_database_goes_back(team: Team) -> None:
    team.fails("migrate", OutcomeUnknown("the migration command ended 1"), after=True)
    team.deploy(BAD, MIGRATING)
    assert "swap-database" not in team.stack.effects


def test_something_else_that_serves_stops_a_deploy_before_its_first_effect(team: Team) -> None:
    def also_deploy(_plan: Plan) -> bool:
        team.stack.put("agent", "agent-hotfix")
        return True

    with pytest.raises(Refused, match="agent-hotfix"):
        team.deploy(BAD, WELL, confirm=also_deploy)
    assert begun(team) == []


def test_something_else_that_serves_stops_a_deploy_in_its_middle(team: Team) -> None:
    team.stack.takes_s["serve-core"] = 1.0
    team.clock.after(1.0, lambda: team.stack.put("agent", "agent-hotfix"))
    with pytest.raises(NeedsHuman, match="agent-hotfix"):
        team.deploy(BAD, WELL)
    assert ("agent", "agent-hotfix") in {(i.service, i.artifact) for i in team.stack.containers.serving}


# --- when it is killed -------------------------------------------------------------------------------------------


def killed_at(team: Team, step: str, behaviour: Behaviour, *, name: str = BAD) -> None:
    """The process of a deploy dies within a step."""

    def die() -> None:
        raise Crash

    def look() -> None:
        die() if begun(team)[-1:] == [step] else team.clock.after(0.1, look)

    team.stack.takes_s[step] = 1.0
    team.clock.after(0.1, look)
    with pytest.raises(Crash):
        team.deploy(name, behaviour)
    team.stack.takes_s.clear()


def test_a_deploy_that_died_before_it_changed_anything_is_not_taken_up(team: Team) -> None:
    killed_at(team, "pass-gate", WELL)
    with pytest.raises(Refused) as refused:
        deploying.take_up(team.rooms())
    assert refused.value.hint == "lastgood rollback"


def test_a_deploy_that_died_before_it_changed_anything_is_undone_by_a_rollback(team: Team) -> None:
    killed_at(team, "pass-gate", WELL)
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert team.stack.containers.candidates == ()


def test_a_deploy_that_died_in_the_middle_is_taken_up_to_its_end(team: Team) -> None:
    killed_at(team, "serve-orchestrator", WELL)
    deploying.take_up(team.rooms())
    assert (team.history.serving, team.stack.serves_wholly) == (BAD, True)


def test_a_deploy_that_died_in_the_middle_has_each_effect_once(team: Team) -> None:
    killed_at(team, "serve-orchestrator", WELL)
    deploying.take_up(team.rooms())
    assert set(team.stack.effects.values()) == {1}


def test_a_rollback_of_a_killed_deploy_that_nobody_agreed_to_leaves_it_to_be_taken_up(team: Team) -> None:
    killed_at(team, "serve-orchestrator", WELL)
    with pytest.raises(Refused, match="not confirmed"):
        team.roll_back(confirm=nothing)
    deploying.take_up(team.rooms())
    assert team.history.serving == BAD


def test_a_killed_deploy_that_migrated_can_still_go_back_to_its_restore_point(team: Team) -> None:
    killed_at(team, "serve-core", MIGRATING)
    report = team.roll_back()
    assert report.terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert team.history.restore_point_of("d2") is not None


def test_a_release_whose_artifacts_serve_already_changes_no_service(team: Team) -> None:
    team.stack.on_disk = OLD
    team.deploy("v1-again", WELL)
    assert not [step for step in begun(team) if step.startswith("serve-")]
    assert {i.artifact for i in team.stack.containers.serving} == {artifact_of(s, OLD) for s in SERVICES}


def test_an_unanswered_question_keeps_nobody_from_a_rollback_and_is_refused_after_it(team: Team) -> None:
    team.deploy(BAD, ERRORS)

    def goes_home(_plan: Plan) -> bool:
        assert team.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
        return True

    with pytest.raises(Refused, match="deploys are frozen by lastgood"):
        team.deploy("v3", WELL, confirm=goes_home)
    assert (team.history.serving, "d3" in team.history.deployments) == (OLD, False)


@pytest.mark.parametrize(
    "meanwhile, why",
    [
        (lambda team: (team.roll_back(), team.unfreeze()), f"rollback .* of {OLD} began meanwhile"),
        (lambda team: team.watch(), f"the way back is {BAD} now"),
    ],
)
def test_a_plan_that_is_no_longer_true_when_it_is_agreed_to_is_not_carried_out(
    team: Team, meanwhile: Callable[[Team], object], why: str
) -> None:
    team.deploy(BAD, WELL)

    def late(_plan: Plan) -> bool:
        meanwhile(team)
        return True

    with pytest.raises(Refused, match=why):
        team.deploy("v3", WELL, confirm=late)
    assert "d3" not in team.history.deployments


def test_what_was_built_while_somebody_went_back_is_not_recorded(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    team.deploy(BAD, ERRORS)
    prepare = team.containers.prepare

    def slowly(name: str, recorded_at: datetime) -> Release:
        team.roll_back()
        return prepare(name, recorded_at)

    monkeypatch.setattr(team.containers, "prepare", slowly)
    with pytest.raises(Refused, match="deploys are frozen"):
        team.deploy("v3", WELL)
    assert (team.history.serving, "v3" in team.history.releases) == (OLD, False)


def test_two_do_not_prepare_at_once(team: Team) -> None:
    def another(_plan: Plan) -> bool:
        with pytest.raises(Refused, match="prepare is held by ada@laptop"):
            team.deploy("v4", WELL)
        with pytest.raises(Refused, match="prepare is held by ada@laptop"):
            recording.record_good(team.rooms(), "v5", why="")
        team.stack.push("v3")
        return True

    team.deploy("v3", WELL, confirm=another)
    assert team.history.serving == "v3"
