"""A rollback from decision to report: in which order, with whose yes, how it ends, and what the team is told of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lastgood.cli.rendering import plan_lines
from lastgood.core.errors import LastgoodError, NeedsHuman, OutcomeUnknown, Refused, Retryable
from lastgood.core.facts import DatabaseFacts
from lastgood.core.migration import Fit, FitsSchema
from lastgood.core.plan import HELD_AT_MOST_S, Plan, Purpose, Role, Step
from lastgood.core.record import ApprovalGiven, Event, Record, RunEnded, StepStarted, Told
from lastgood.core.release import Standing
from lastgood.core.report import DryRun, Loss, Replayed, Report, TerminalState
from lastgood.runbook import by_hand
from lastgood.runbook import record as recording
from lastgood.runbook import rollback as returning
from lastgood.runbook.watch import watch_on
from lastgood.testing.stack import SERVICES, WELL, Behaviour, Stack, artifact_of
from lastgood.testing.world import Crash, Crashes, instance_of
from tests.runbook.team import BAD, ERRORS, OLD, Team

SENTENCE = f"🚨 Deployment failed. Rollback to {OLD} completed. System operating normally. Investigation started."
MIGRATING = Behaviour(errors=0.3, migrations=("m2",))
BREAKING = replace(MIGRATING, migration_breaks=3)
CANNOT_RUN = FitsSchema(fit=Fit.NO, tried=3, reason="42703 column title")
NOBODY_KNOWS = FitsSchema(fit=Fit.UNKNOWN, tried=0, reason="no statements were recorded")
NO_ANSWER = Retryable("no answer", delay_s=1.0)


def deployed(team: Team, behaviour: Behaviour = ERRORS, fits: FitsSchema | None = None) -> Team:
    """v2 serves, and rows were written since. Only the effects of what follows are counted."""
    team.deploy(BAD, behaviour)
    team.stack.fits = fits or team.stack.fits
    team.stack.written["missions"] = 12
    team.stack.effects.clear()
    team.stack.asked.clear()
    return team


def begun(team: Team) -> list[str]:
    """The steps that the newest rollback began, in their order, each once."""
    steps = [e.step for e in team.events(StepStarted) if e.run == team.report.run]
    return list(dict.fromkeys(steps))


def world(team: Team) -> object:
    """Everything that a person would find."""
    stack = team.stack
    return stack.containers.serving, stack.containers.candidates, stack.database, stack.frontend


# --- the way back ------------------------------------------------------------------------------------------------


def test_a_rollback_brings_every_service_and_the_frontend_back(team: Team) -> None:
    deployed(team).roll_back()
    assert (team.stack.serving, team.stack.serves_wholly) == (OLD, True)
    assert team.stack.frontend.production == f"dpl_{OLD}"


def test_a_rollback_has_each_effect_once(team: Team) -> None:
    deployed(team).roll_back()
    assert team.stack.asked == team.stack.effects
    assert set(team.stack.effects.values()) == {1}


def test_a_release_that_runs_on_todays_schema_comes_back_at_once_and_leaves_the_database(team: Team) -> None:
    deployed(team, MIGRATING).roll_back()
    serve = [f"serve-{service}" for service in SERVICES]
    assert begun(team) == ["pass-gate", *serve, "clear-candidates", "return-frontend"]


def test_a_service_that_the_bad_release_added_does_not_go_on_serving(team: Team) -> None:
    deployed(team).stack.put("billing", artifact_of("billing", BAD))
    report = team.roll_back()
    assert report.terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert {i.service for i in team.stack.containers.serving} == set(SERVICES)
    assert ("services of other releases", True) in [(check.name, check.passed) for check in report.checks]


def test_a_service_that_the_good_release_does_not_have_makes_no_verified_rollback(team: Team) -> None:
    def somebody_adds_it(_plan: Plan) -> bool:
        team.stack.put("billing", artifact_of("billing", BAD))
        return True

    report = deployed(team).roll_back(confirm=somebody_adds_it)
    assert report.terminal is TerminalState.ROLLED_BACK_DEGRADED
    (failed,) = [check for check in report.checks if not check.passed]
    assert (failed.name, failed.detail) == ("services of other releases", f"billing: {OLD} does not have it")


def test_a_part_that_is_not_configured_is_skipped_and_the_report_says_so(tmp_path: Path) -> None:
    team = Team.with_a_good_release(tmp_path, parts=frozenset({Role.CONTAINERS}))
    report = deployed(team).roll_back()
    assert report.terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert {"database: none configured", "frontend: none configured"} <= set(report.notes)


def test_only_the_parts_that_were_asked_for_go_back(team: Team) -> None:
    deployed(team).roll_back(only=frozenset({Role.FRONTEND}))
    assert (team.stack.serving, team.stack.frontend.production) == (BAD, f"dpl_{OLD}")


def test_a_partial_rollback_bars_nothing(team: Team) -> None:
    deployed(team).roll_back(only=frozenset({Role.FRONTEND}))
    assert team.history.releases[BAD].standing is Standing.RECORDED


def test_a_partial_rollback_does_not_say_that_the_release_went_back(team: Team) -> None:
    deployed(team).roll_back(only=frozenset({Role.FRONTEND}))
    assert SENTENCE not in team.channel.texts


def test_a_plan_that_was_not_agreed_to_leaves_everything_as_it_was(team: Team) -> None:
    before = world(deployed(team))
    with pytest.raises(Refused, match="not confirmed"):
        team.roll_back(confirm=lambda _plan: False)
    assert world(team) == before
    assert team.history.frozen is None


@pytest.mark.parametrize(
    "target, only, typed",
    [
        (None, frozenset(Role), "lastgood rollback --yes"),
        (OLD, frozenset(Role), f"lastgood rollback {OLD} --yes"),
        (None, frozenset({Role.FRONTEND}), "lastgood rollback --only frontend --yes"),
        (
            OLD,
            frozenset({Role.FRONTEND, Role.CONTAINERS}),
            f"lastgood rollback {OLD} --only containers,frontend --yes",
        ),
    ],
)
def test_who_is_told_how_to_say_yes_is_told_to_go_back_to_the_same(
    team: Team, target: str | None, only: frozenset[Role], typed: str
) -> None:
    with pytest.raises(Refused) as refused:
        deployed(team).roll_back(target, only=only, confirm=lambda _plan: False)
    assert refused.value.hint == typed


def test_the_plan_that_was_agreed_to_is_the_plan_that_is_carried_out(team: Team) -> None:
    shown: list[Plan] = []

    def agree(plan: Plan) -> bool:
        shown.append(plan)
        return True

    deployed(team).roll_back(confirm=agree)
    assert shown == [team.run.plan]


def test_an_unanswered_question_keeps_nobody_from_going_back_and_its_plan_is_refused_after_that(team: Team) -> None:
    def late(_plan: Plan) -> bool:
        team.roll_back(yes=True)
        return True

    with pytest.raises(Refused, match=f"not begun: rollback .* of {OLD} began meanwhile"):
        deployed(team).roll_back(confirm=late)
    assert [run.plan.purpose for run in team.history.runs.values()].count(Purpose.ROLLBACK) == 1


def test_a_plan_that_was_shown_is_refused_where_something_else_was_recorded_meanwhile(team: Team) -> None:
    def late(_plan: Plan) -> bool:
        with team.journal.claim(team.who):
            recording.record(team.rooms(), "v2b")
        return True

    with pytest.raises(Refused, match="not begun: v2b was recorded meanwhile as what serves"):
        deployed(team).roll_back(confirm=late)


@pytest.mark.parametrize("release", [BAD, "v9"])
def test_a_release_that_is_not_good_is_no_target(team: Team, release: str) -> None:
    before = world(deployed(team))
    with pytest.raises(Refused):
        team.roll_back(release)
    assert world(team) == before


def test_the_release_that_was_left_is_barred(team: Team) -> None:
    deployed(team).roll_back()
    assert team.history.releases[BAD].standing is Standing.BARRED


# --- the database ------------------------------------------------------------------------------------------------


def test_a_release_that_cannot_run_on_todays_schema_waits_for_a_person_with_nothing_touched(team: Team) -> None:
    before = world(deployed(team, MIGRATING, CANNOT_RUN))
    while_it_waits: list[object] = []

    def look_and_deny() -> None:
        while_it_waits.append(undumped(team))
        team.deny()

    team.when_asked(look_and_deny)
    team.roll_back()
    assert while_it_waits == [before]
    assert "schema         missions.title: renamed to name" in team.told


def test_what_a_service_says_of_the_server_is_cited_and_a_silent_engine_keeps_nobody_from_going_back(
    team: Team,
) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)
    team.stack.logged = {"core": ('column "title" does not exist',)}
    team.when_asked(team.deny)
    team.roll_back()
    decision = team.run.plan.database
    assert decision is not None
    assert any("SQLSTATE 42703, 1 times in the log of core, names title" in reason for reason in decision.reasons)


def undumped(team: Team) -> object:
    """Everything that a person would find, but for the safety dump, which reads and is kept."""
    stack = team.stack
    database: DatabaseFacts = replace(stack.database, dumps=frozenset())
    return stack.containers.serving, stack.containers.candidates, database, stack.frontend


def test_a_release_that_cannot_run_on_todays_schema_comes_back_database_first(team: Team) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)
    team.when_asked(team.approve)
    team.roll_back()
    steps = begun(team)
    assert steps.index("swap-database") < steps.index("pass-gate") < steps.index("serve-core")


def test_a_candidate_is_not_started_on_a_schema_that_it_cannot_run_on(team: Team) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)
    team.when_asked(team.approve)
    team.roll_back()
    assert begun(team).index("swap-database") < begun(team).index("pass-gate")


def test_the_database_goes_back_to_the_schema_from_before_the_deploy(team: Team) -> None:
    before = team.stack.database.fingerprint
    deployed(team, MIGRATING, CANNOT_RUN)
    team.when_asked(team.approve)
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert team.stack.database.fingerprint == before


def test_the_database_that_was_replaced_is_kept(team: Team) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)
    team.when_asked(team.approve)
    report = team.roll_back()
    assert f"app_bad_{report.run}" in team.stack.database.databases


def test_what_was_written_since_is_in_the_live_data_afterwards(team: Team) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)
    team.when_asked(team.approve)
    report = team.roll_back()
    assert report.replayed is not None
    assert (report.replayed.carried, report.losses) == ((("missions", 12),), ())


def test_what_does_not_fit_is_counted_in_the_report_and_told(team: Team) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)
    team.stack.unfit["missions"] = 5
    team.when_asked(team.approve)
    report = team.roll_back()
    assert [(loss.table, loss.rows) for loss in report.losses] == [("missions", 5)]
    assert "5 of missions" in team.channel.texts[-1]


def test_where_the_server_keeps_transactions_they_are_replayed_before_the_fence(team: Team) -> None:
    team.stack.captures = True
    deployed(team, MIGRATING, CANNOT_RUN)
    team.when_asked(team.approve)
    team.roll_back()
    steps = begun(team)
    assert steps.index("catch-up") < steps.index("fence") < steps.index("replay-writes") < steps.index("swap-database")


def test_what_the_server_keeps_for_a_replay_is_let_go_of_when_the_watch_is_over(team: Team) -> None:
    team.stack.captures = True
    team.deploy(BAD)
    assert team.stack.database.captures
    team.watch()
    assert not team.stack.database.captures


def test_what_the_server_keeps_for_a_replay_outlives_the_rollback_until_its_bake_is_over(team: Team) -> None:
    team.stack.captures = True
    deployed(team)
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert team.stack.database.captures
    team.watch()
    assert not team.stack.database.captures


def filled_and_over(team: Team) -> None:
    """A rollback is denied after it caught up, and the capture ends."""
    team.stack.captures = True
    deployed(team, MIGRATING, CANNOT_RUN)
    point = next(reversed(team.stack.points))
    facts = team.stack.database
    team.stack.database = replace(facts, filled=frozenset({point}), captures=frozenset())


def test_where_an_earlier_rollback_filled_the_clone_its_dump_is_restored_and_the_rows_go_back(team: Team) -> None:
    filled_and_over(team)
    team.when_asked(team.approve)
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED
    steps = begun(team)
    assert steps.index("save-dump") < steps.index("restore-clone") < steps.index("fence") < steps.index("replay-writes")


def test_what_would_be_replayed_is_tried_once_the_dump_is_restored(team: Team) -> None:
    filled_and_over(team)
    plan = returning.plan_rollback(team.rooms(), team.history.releases[OLD], plan_id="r9")
    assert returning.dry_run(team.rooms(), plan)[0].startswith("tried          not yet: restore the dump of rp-")
    team.stack.dry_run = replace(
        team.stack.dry_run, replayed=Replayed(units="rows", total=12, quarantined=0, skipped=0)
    )
    assert "tried          12 of 12 rows written since can be replayed" in shown_when_asked(team)


def test_a_log_that_grows_too_large_is_told_of_and_then_let_go_of(team: Team) -> None:
    team.stack.captures = True
    team.deploy(BAD)
    grown = replace(team.stack.database, capture_bytes=3 << 30)
    team.clock.after(60.0, lambda: setattr(team.stack, "database", grown))
    team.clock.after(120.0, lambda: setattr(team.stack, "database", replace(grown, capture_bytes=5 << 30)))
    team.clock.after(200.0, lambda: team.told.append(f"captures: {len(team.stack.database.captures)}"))
    team.watch()
    said = [text for text in team.channel.texts if "of log for a replay" in text]
    assert [text.partition("; ")[2][:15] for text in said] == ["at the limit th", "the capture was"]
    assert "captures: 0" in team.told


def test_a_restore_point_that_cannot_bring_everything_back_says_since_when(team: Team) -> None:
    team.stack.lossy_because = ("a transaction stayed open",)
    team.deploy(BAD)
    (said,) = (line for line in team.told if "would lose writes since 2026-01-01 00:0" in line)
    assert "all but the last state of each row: a transaction stayed open" in said


def test_a_deploy_that_must_be_lossless_is_refused_where_transactions_could_not_be_replayed(team: Team) -> None:
    team.stack.lossy_because = ("wal_level is replica",)
    team.lossless = True
    with pytest.raises(Refused, match="wal_level is replica"):
        team.deploy(BAD)
    assert team.stack.asked == {}


def test_what_would_be_lost_is_shown_before_anybody_is_asked(team: Team) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)
    team.when_asked(team.deny)
    team.roll_back()
    waiting = next(n for n, line in enumerate(team.told) if line.startswith("waiting at"))
    shown = "\n".join(team.told[:waiting])
    for word in ("app at", "restore point  rp-", "min old", "replays        12 rows now"):
        assert word in shown


def shown_when_asked(team: Team) -> str:
    team.when_asked(team.deny)
    team.roll_back()
    waiting = next(n for n, line in enumerate(team.told) if line.startswith("waiting at"))
    return "\n".join(team.told[:waiting])


def test_what_a_replay_would_leave_out_is_tried_before_anybody_is_asked(team: Team) -> None:
    team.stack.captures = True
    deployed(team, MIGRATING, CANNOT_RUN)
    lost = (Loss(table="missions", rows=3, file="tried/quarantine.jsonl"),)
    left = (Loss(table="totals", rows=2, file="tried/left-out.jsonl"),)
    replayed = Replayed(units="transactions", total=40, quarantined=2, skipped=1, losses=lost, left_out=left)
    team.stack.dry_run = DryRun(replayed=replayed, whole=False, pause_s=0.64)
    shown = shown_when_asked(team)
    assert "tried          37 of the first 39 transactions written since can be replayed" in shown
    assert "would wait     2 in quarantine (missions 3); why: tried/quarantine.jsonl" in shown
    assert "left out       2 rows of totals; tried/left-out.jsonl" in shown
    assert "pause          about 0.6 s in which nobody can write" in shown
    assert "then           core, orchestrator, agent of v1 must serve before they answer again" in shown


def test_no_step_says_that_it_loses_nothing(team: Team) -> None:
    team.stack.captures = True
    deployed(team, MIGRATING, CANNOT_RUN)
    team.when_asked(team.deny)
    team.roll_back()
    lines = list(plan_lines(team.run.plan))
    assert not [line for line in lines if "loses nothing" in line]
    (catch_up,) = (line for line in lines if "replay the transactions since" in line)
    assert "sets aside: what does not fit the old schema, in quarantine" in catch_up


def test_what_was_written_is_told_by_table_and_with_what_it_is_sure_of(team: Team) -> None:
    team.stack.captures = True
    deployed(team, MIGRATING, CANNOT_RUN)
    replayed = Replayed(
        units="transactions", total=4, quarantined=0, skipped=1, carried=(("missions", 5), ("users", 1)), notes=("odd",)
    )
    team.stack.dry_run = DryRun(replayed=replayed, whole=True, pause_s=0.6)
    shown = shown_when_asked(team)
    assert "tried          3 of 3 transactions written since can be replayed (rows: missions 5, users 1)" in shown
    assert "would skip     1 of the migration's own" in shown
    assert "would lose     none of them: each is replayed, waits, is skipped or is listed here" in shown
    assert "note           odd" in shown


def test_a_dry_run_that_is_not_whole_says_nothing_of_the_rest(team: Team) -> None:
    team.stack.captures = True
    deployed(team, MIGRATING, CANNOT_RUN)
    team.stack.dry_run = replace(team.stack.dry_run, whole=False)
    shown = shown_when_asked(team)
    assert "not tried      the rest: what becomes of it is known when it is replayed" in shown
    assert "would lose" not in shown


def test_where_only_rows_can_be_told_that_is_tried_as_well(team: Team) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)
    lost = (Loss(table="missions", rows=1, file="tried/quarantine.jsonl"),)
    replayed = Replayed(units="rows", total=12, quarantined=1, skipped=0, carried=(("missions", 11),), losses=lost)
    team.stack.dry_run = DryRun(replayed=replayed, whole=True, pause_s=3.21)
    shown = shown_when_asked(team)
    assert "tried          11 of 12 rows written since can be replayed (rows: missions 11)" in shown
    assert "would wait     1 in quarantine (missions 1); why: tried/quarantine.jsonl" in shown
    assert "would lose     every state of a row but its last; the replaced database is kept" in shown
    assert "pause          about 3.2 s in which nobody can write" in shown


def test_what_would_leave_with_a_swap_to_an_own_dump_is_counted_as_far_as_it_can_be(team: Team) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)
    team.stack.dry_run = DryRun(replayed=None, whole=True, pause_s=1.0, more=(("missions", 7), ("users", 2)))
    shown = shown_when_asked(team)
    assert "would lose     rows that are more now than in it: missions 7, users 2" in shown
    assert "rows that were changed cannot be counted; all of them stay in the replaced database" in shown


def test_a_replay_that_cannot_be_tried_keeps_nobody_from_being_asked(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    team.stack.captures = True
    deployed(team, MIGRATING, CANNOT_RUN)

    def busy(*_: object) -> DryRun:
        raise Retryable("the slot is in use", delay_s=1.0)

    monkeypatch.setattr("lastgood.testing.stack.MemoryDatabase.try_replay", busy)
    shown = shown_when_asked(team)
    assert "tried          nothing: the slot is in use" in shown
    assert "so not known   what would be replayed, wait or be lost, and for how long nobody could write" in shown


def put_another_in_its_place(team: Team) -> None:
    """Somebody copies another restore point over the one that was proved."""
    facts = team.stack.database
    others = tuple((name, "of another one") for name, _ in facts.manifests)
    team.stack.database = replace(facts, manifests=others)


def test_a_restore_point_that_is_not_the_one_of_the_journal_is_no_way_back(team: Team) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)
    put_another_in_its_place(team)
    before = world(team)
    team.when_asked(team.deny)
    report = team.roll_back()
    assert report.terminal is TerminalState.DENIED
    assert any("is not the one that was proved" in note for note in report.notes)
    assert [step.name for step in report.steps if step.target == "database"] == []
    assert world(team) == before


def test_a_restore_point_that_was_exchanged_after_the_approval_stops_before_the_fence(team: Team) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)

    def approve_and_exchange() -> None:
        put_another_in_its_place(team)
        team.approve()

    team.when_asked(approve_and_exchange)
    report = team.roll_back()
    assert report.terminal is TerminalState.REFUSED
    assert any("is not the one that was proved" in note for note in report.notes)
    assert "fence" not in team.stack.effects


def test_a_release_of_which_nobody_knows_whether_it_runs_asks_before_it_serves(team: Team) -> None:
    deployed(team, MIGRATING, NOBODY_KNOWS)
    serving: list[str] = []

    def look_and_approve() -> None:
        serving.append(team.stack.serving)
        team.approve()

    team.when_asked(look_and_approve)
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert serving == [BAD]


def test_rows_that_the_migration_broke_wait_for_a_person_and_the_containers_do_not(team: Team) -> None:
    deployed(team, BREAKING)
    serving: list[str] = []

    def look_and_approve() -> None:
        serving.append(team.stack.serving)
        team.approve()

    team.when_asked(look_and_approve)
    team.roll_back()
    assert serving == [OLD]
    assert team.stack.broken == {}


def test_a_repair_that_was_denied_says_what_serves(team: Team) -> None:
    deployed(team, BREAKING)
    team.when_asked(team.deny)
    report = team.roll_back()
    assert report.terminal is TerminalState.DENIED
    assert f"{OLD} serves" in team.channel.texts[-1]


def test_a_release_that_was_left_is_barred_although_the_repair_was_denied(team: Team) -> None:
    deployed(team, BREAKING)
    team.when_asked(team.deny)
    team.roll_back()
    assert team.history.releases[BAD].standing is Standing.BARRED
    assert team.history.frozen is not None


UNSEEN = [Retryable("too many connections", delay_s=1.0), Refused("wrong password", hint="renew it")]


@pytest.mark.parametrize("says", UNSEEN, ids=["away", "refuses"])
def test_a_database_that_cannot_be_looked_at_asks_where_migrations_differ(team: Team, says: LastgoodError) -> None:
    deployed(team, MIGRATING)
    team.stack.away[Role.DATABASE] = says
    team.when_asked(team.deny)
    team.roll_back()
    assert team.stack.serving == BAD


@pytest.mark.parametrize("says", UNSEEN, ids=["away", "refuses"])
def test_a_database_that_cannot_be_looked_at_holds_nothing_up_where_no_migration_differs(
    team: Team, says: LastgoodError
) -> None:
    deployed(team)
    team.stack.away[Role.DATABASE] = says
    team.roll_back()
    assert team.stack.serving == OLD


DATABASE_STEPS = {"catch-up", "fence", "export-writes", "replay-writes", "swap-database"}


@pytest.mark.parametrize("behaviour,fits", [(MIGRATING, CANNOT_RUN), (BREAKING, None)], ids=["first", "after"])
def test_mode_automatic_never_touches_the_database_without_a_person(
    team: Team, behaviour: Behaviour, fits: FitsSchema | None
) -> None:
    deployed(team, behaviour, fits)
    team.when_asked(lambda: team.clock.sleep(12 * 3600.0))
    team.watch()
    assert not DATABASE_STEPS & team.stack.asked.keys()


# --- who said yes ------------------------------------------------------------------------------------------------


def waits_again(team: Team, approve: Callable[[], None]) -> bool:
    """A run waits, its process dies, somebody approves so, and it is taken up: whether it still waits."""
    deployed(team, MIGRATING, CANNOT_RUN)

    def die() -> None:
        raise Crash

    team.when_asked(die)
    with pytest.raises(Crash):
        team.roll_back()
    approve()
    team.told.clear()
    team.when_told("waiting at", team.deny)
    return team.roll_back().terminal is TerminalState.DENIED


def test_an_approval_opens_a_run_that_is_taken_up(team: Team) -> None:
    assert not waits_again(team, team.approve)


def test_an_approval_opens_nothing_after_ten_minutes(team: Team) -> None:
    def approve_and_forget() -> None:
        team.approve()
        team.clock.sleep(10 * 60.0 + 1)

    assert waits_again(team, approve_and_forget)


def test_an_approval_of_another_plan_opens_nothing(team: Team) -> None:
    assert waits_again(team, lambda: team.approve(plan_hash="f" * 64))


def test_an_approval_of_another_run_opens_nothing(team: Team) -> None:
    def approve_the_deploy() -> None:
        run = next(iter(team.history.runs))
        plan_hash = team.run.plan.hash
        team.journal.append(ApprovalGiven(run=run, plan_hash=plan_hash, by="grace@laptop"))

    assert waits_again(team, approve_the_deploy)


def asked_by_the_mode(tmp_path: Path, behaviour: Behaviour = ERRORS, fits: FitsSchema | None = None) -> Team:
    """In mode propose a watch began a rollback, and its process died while it asked."""

    def die() -> None:
        raise Crash

    team = deployed(Team.with_a_good_release(tmp_path, mode="propose"), behaviour, fits)
    team.when_asked(die)
    with pytest.raises(Crash):
        team.watch()
    team.told.clear()
    return team


def test_a_rollback_that_the_mode_asks_about_is_what_a_person_asks_for_with_yes(tmp_path: Path) -> None:
    team = asked_by_the_mode(tmp_path)
    report = team.roll_back(yes=True)
    assert report.terminal is TerminalState.ROLLED_BACK_VERIFIED
    (approval,) = team.events(ApprovalGiven)
    assert (approval.run, approval.by, approval.why) == (report.run, team.who, "chat is down")


@pytest.mark.parametrize(
    "behaviour,fits",
    [(MIGRATING, CANNOT_RUN), (BREAKING, None), (MIGRATING, NOBODY_KNOWS)],
    ids=["the database goes first", "the database goes after", "nobody knows whether it fits"],
)
def test_what_asks_whoever_begins_it_asks_with_yes_as_well(
    tmp_path: Path, behaviour: Behaviour, fits: FitsSchema | None
) -> None:
    team = asked_by_the_mode(tmp_path, behaviour, fits)
    team.when_asked(team.deny)
    assert team.roll_back(yes=True).terminal is TerminalState.DENIED
    assert team.events(ApprovalGiven) == []


@pytest.mark.parametrize("only", [frozenset({Role.CONTAINERS}), frozenset({Role.FRONTEND})])
def test_yes_to_a_part_is_no_yes_to_the_whole(tmp_path: Path, only: frozenset[Role]) -> None:
    team = asked_by_the_mode(tmp_path)
    team.when_asked(team.deny)
    assert team.roll_back(only=only, yes=True).terminal is TerminalState.DENIED


def test_a_person_who_says_yes_elsewhere_need_not_approve_what_the_mode_asks_about(tmp_path: Path) -> None:
    team = deployed(Team.with_a_good_release(tmp_path, mode="propose"))

    def interrupt(line: str) -> None:
        if "following it" in line:
            raise Crash

    def say_yes() -> None:
        with pytest.raises(Crash):
            by_hand.go_back(replace(team.rooms(), story=interrupt), yes=True)

    team.when_asked(say_yes)
    assert team.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED


def test_an_abort_takes_effect_before_the_next_effect(team: Team) -> None:
    deployed(team)
    team.stack.takes_s["serve-core"] = 5.0
    team.clock.after(1.0, team.abort)
    assert team.roll_back().terminal is TerminalState.ABORTED_BY_HUMAN
    assert "serve-orchestrator" not in team.stack.asked


def test_a_run_that_was_aborted_in_its_middle_says_what_is_done(team: Team) -> None:
    deployed(team)
    team.stack.takes_s["serve-core"] = 5.0
    team.clock.after(1.0, team.abort)
    team.roll_back()
    assert "done: serve-core" in team.channel.texts[-1]


@pytest.mark.parametrize("answer", ["deny", "abort"])
def test_a_persons_no_before_anything_began_freezes_and_bars_nothing(tmp_path: Path, answer: str) -> None:
    team = deployed(Team.with_a_good_release(tmp_path, mode="propose"))
    team.when_asked(getattr(team, answer))
    team.watch()
    assert team.history.frozen is None
    assert team.history.releases[BAD].standing is Standing.RECORDED


# --- what the team is told ---------------------------------------------------------------------------------------


def test_the_sentence_of_the_procedure_is_sent_word_for_word_and_once(team: Team) -> None:
    deployed(team).roll_back()
    assert team.channel.texts == [SENTENCE]


def test_rows_that_stay_invalid_are_a_second_line(team: Team) -> None:
    deployed(team)
    team.stack.broken |= {"7": False, "8": False}
    team.roll_back()
    assert team.channel.texts == [f"{SENTENCE}\nInvalid rows remain: at least 2 rows break credits: 7, 8"]


BAD_ENDS: dict[str, Callable[[Team], None]] = {
    "a smoke test": lambda team: team.stack.behaves.update({OLD: Behaviour(passes_smoke=False)}),
    "nothing answers": lambda team: setattr(team.checker, "broken", "no answer within 60 s"),
    "a service is sick": lambda team: team.clock.after(1.0, lambda: team.stack.sicken("agent")),
}


@pytest.mark.parametrize("trouble", BAD_ENDS)
def test_a_check_that_fails_ends_degraded(team: Team, trouble: str) -> None:
    deployed(team)
    team.stack.takes_s["return-frontend"] = 2.0
    BAD_ENDS[trouble](team)
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_DEGRADED


@pytest.mark.parametrize("trouble", BAD_ENDS)
def test_the_sentence_of_the_procedure_is_not_sent_when_a_check_fails(team: Team, trouble: str) -> None:
    deployed(team)
    team.stack.takes_s["return-frontend"] = 2.0
    BAD_ENDS[trouble](team)
    team.roll_back()
    assert "System operating normally" not in "".join(team.channel.texts)
    assert "these checks fail" in team.channel.texts[-1]


def test_a_release_that_came_back_degraded_goes_no_further_back(team: Team) -> None:
    team.deploy("v1b", WELL)
    team.watch()
    deployed(team)
    team.stack.behaves["v1b"] = Behaviour(passes_smoke=False)
    team.watch()
    assert team.stack.serving == "v1b"
    assert team.history.open_run is None


def test_a_check_that_fails_for_a_moment_is_tried_again(team: Team) -> None:
    deployed(team)
    team.checker.broken = "the pool reconnects"
    team.clock.after(1.0, lambda: setattr(team.checker, "broken", ""))
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED


TROUBLES: dict[str, list[LastgoodError]] = {
    "down": [Retryable("slack: no connection", delay_s=1.0)],
    "429": [Retryable("slack: told to wait", delay_s=60.0)],
    "revoked": [Refused("slack does not accept the token", hint="renew it")],
    "lost": [OutcomeUnknown("slack: the answer was lost")],
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_channel_that_fails_never_stops_a_rollback(team: Team, trouble: str) -> None:
    deployed(team)
    team.channel.errors = TROUBLES[trouble] * 10
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_channel_that_fails_is_reported(team: Team, trouble: str) -> None:
    deployed(team)
    team.channel.errors = TROUBLES[trouble] * 10
    report = team.roll_back()
    assert f"#dev-ops could not be told: {TROUBLES[trouble][0].message}" in report.notes


def test_a_channel_that_is_slow_is_waited_for_and_changes_no_ending(team: Team) -> None:
    deployed(team)
    team.channel.takes_s = 10.0
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert team.channel.texts == [SENTENCE]


def test_a_channel_that_was_down_for_a_moment_is_told_after_all(team: Team) -> None:
    deployed(team)
    team.channel.errors = [Retryable("slack: told to wait", delay_s=2.0)]
    team.roll_back()
    assert team.channel.texts == [SENTENCE]


def test_what_could_not_be_told_is_told_by_who_watches_afterwards(team: Team) -> None:
    deployed(team)
    team.channel.errors = [Retryable("slack: told to wait", delay_s=60.0)]
    team.watch()
    assert team.channel.texts == []
    team.clock.sleep(5.0)
    team.watch()
    assert team.channel.texts == [SENTENCE]


def test_a_message_whose_answer_was_lost_is_not_sent_twice(team: Team) -> None:
    deployed(team)
    team.channel.errors = [OutcomeUnknown("slack: the answer was lost")]
    team.roll_back()
    assert len(team.events(Told)) == 1


# --- when a step does not go as it should ------------------------------------------------------------------------


def test_a_step_that_is_refused_before_any_effect_is_a_refusal(team: Team) -> None:
    deployed(team)
    team.fails("pass-gate", Refused("core of v1 exited with 1", hint="less gate.log"))
    report = team.roll_back()
    assert report.terminal is TerminalState.REFUSED
    assert "less gate.log" in report.next_steps


def test_a_refusal_says_that_nothing_was_touched_and_lets_deploys_through(team: Team) -> None:
    before = world(deployed(team))
    team.fails("pass-gate", Refused("core of v1 exited with 1", hint="less gate.log"))
    team.roll_back()
    assert world(team) == before
    assert "nothing was touched" in team.channel.texts[-1]
    assert team.history.frozen is None


def test_a_step_that_is_refused_after_an_effect_needs_a_person_with_something_to_type(team: Team) -> None:
    deployed(team)
    team.fails("serve-orchestrator", Refused("the port is taken", hint="ss -ltnp"))
    report = team.roll_back()
    assert report.terminal is TerminalState.NEEDS_HUMAN
    assert report.next_steps[0] == "ss -ltnp"
    assert f"lastgood rollback {OLD}" in report.next_steps
    assert "ss -ltnp" in team.channel.texts[-1]


def test_a_step_that_is_refused_after_an_effect_keeps_deploys_frozen(team: Team) -> None:
    deployed(team)
    team.fails("serve-orchestrator", Refused("the port is taken", hint="ss -ltnp"))
    team.roll_back()
    assert team.history.frozen is not None


def test_what_a_person_is_told_to_type_brings_it_back(team: Team) -> None:
    deployed(team)
    team.fails("serve-orchestrator", Refused("the port is taken", hint="ss -ltnp"))
    team.roll_back()
    assert team.roll_back(OLD).terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert team.stack.serves_wholly


def test_a_step_that_does_not_work_now_is_tried_again(team: Team) -> None:
    deployed(team)
    team.fails("serve-core", NO_ANSWER, NO_ANSWER)
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED


def test_a_step_that_never_works_is_given_up(team: Team) -> None:
    deployed(team)
    team.fails("serve-orchestrator", *[NO_ANSWER] * 20)
    assert team.roll_back().terminal is TerminalState.NEEDS_HUMAN
    assert team.stack.asked["serve-orchestrator"] == 3


@pytest.mark.parametrize("step", ["serve-core", "return-frontend", "pass-gate"])
def test_an_answer_that_was_lost_is_settled_by_looking_and_not_by_repeating(team: Team, step: str) -> None:
    deployed(team)
    team.fails(step, OutcomeUnknown("the connection was lost"), after=True)
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert team.stack.asked[step] == 1


def test_a_step_whose_answer_was_lost_and_that_is_seen_not_done_is_sent_again(team: Team) -> None:
    deployed(team)
    team.fails("serve-core", OutcomeUnknown("the connection was lost"))
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert team.stack.effects["serve-core"] == 1


def test_an_engine_that_is_away_for_a_moment_when_the_run_begins_is_waited_for(team: Team) -> None:
    deployed(team)

    def go_away(_plan: Plan) -> bool:
        team.stack.away[Role.CONTAINERS] = NO_ANSWER
        team.clock.after(1.0, lambda: void(team.stack.away.pop(Role.CONTAINERS)))
        return True

    assert team.roll_back(confirm=go_away).terminal is TerminalState.ROLLED_BACK_VERIFIED


def void(_value: object) -> None:
    """Something is done, and nobody asks what came of it."""


@pytest.mark.parametrize("step", ["export-writes", "replay-writes", "swap-database"])
def test_a_fence_without_a_swap_is_lifted_again(team: Team, step: str) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)
    team.stack.database = replace(team.stack.database, pools=True)
    team.when_asked(team.approve)
    team.fails(step, Refused("the disk is full", hint="df -h"))
    report = team.roll_back()
    assert report.terminal is TerminalState.NEEDS_HUMAN
    assert team.stack.database.exists
    assert not team.stack.database.paused
    assert "the fence was lifted again" in report.notes


def test_a_database_that_nobody_comes_back_to_is_no_verified_rollback(team: Team) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)
    team.when_asked(team.approve)
    team.stack.never_back = True
    report = team.roll_back()
    assert report.terminal is TerminalState.ROLLED_BACK_DEGRADED
    assert [check.name for check in report.checks if not check.passed] == ["database clients"]


def test_clients_that_wait_at_the_pooler_are_let_in_when_a_rollback_stops_before_the_fence(team: Team) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)
    team.when_asked(team.approve)
    team.stack.database = replace(team.stack.database, pools=True, paused=True)  # a command died just before it
    team.fails("fence", Refused("no", hint="look"))
    report = team.roll_back()
    assert not team.stack.database.paused
    assert "the fence was lifted again" in report.notes


@pytest.mark.parametrize("step", ["fence", "replay-writes", "serve-core"])
def test_requests_that_wait_when_a_rollback_stops_are_passed_on(team: Team, step: str) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)
    team.stack.containers = replace(team.stack.containers, can_hold=True)
    team.when_asked(team.approve)
    team.fails(step, Refused("no", hint="look"))
    report = team.roll_back()
    assert not team.stack.containers.holding
    assert "the requests that waited were passed on" in report.notes


def test_requests_that_cannot_be_made_to_wait_keep_nothing_from_going_back(team: Team) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)
    team.stack.containers = replace(team.stack.containers, can_hold=True)
    team.when_asked(team.approve)
    team.fails("hold-requests", Refused("the edge does not answer", hint="docker ps"))
    report = team.roll_back()
    assert report.terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert [(s.name, s.state, s.note) for s in report.steps if s.state != "done"] == [
        ("hold-requests", "failed", "the edge does not answer")
    ]


@pytest.mark.parametrize("step", ["fence", "replay-writes", "swap-database"])
def test_who_takes_a_run_up_lets_requests_wait_again_where_that_has_run_out(
    team: Team, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)
    team.stack.containers = replace(team.stack.containers, can_hold=True)
    team.when_asked(team.approve)
    take = Stack.take

    def die(stack: Stack, each: Step) -> None:
        if each.name == step:
            monkeypatch.setattr(Stack, "take", take)
            stack.clock.sleep(HELD_AT_MOST_S)
            raise Crash
        take(stack, each)

    monkeypatch.setattr(Stack, "take", die)
    with pytest.raises(Crash):
        team.roll_back()
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert team.stack.effects["hold-requests"] == 2


def test_requests_that_may_still_wait_are_named_with_how_long(team: Team) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)
    team.stack.containers = replace(team.stack.containers, can_hold=True)
    team.when_asked(team.approve)
    team.fails("fence", Refused("no", hint="look"))
    team.fails("pass-requests", Refused("the edge is gone", hint="docker ps"))
    report = team.roll_back()
    assert "requests still wait: pass-requests: the edge is gone" in report.notes


def test_a_fence_that_cannot_be_lifted_says_how_a_person_lifts_it(team: Team) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)
    team.when_asked(team.approve)
    team.fails("export-writes", Refused("the disk is full", hint="df -h"))
    team.fails("lift-fence", Refused("permission denied to rename database", hint="psql -c 'ALTER DATABASE ...'"))
    report = team.roll_back()
    assert report.terminal is TerminalState.NEEDS_HUMAN
    assert any("ALTER DATABASE" in line for line in report.next_steps)


def test_a_replay_that_cannot_be_counted_does_not_keep_a_rollback_from_its_end(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed(team, MIGRATING, CANNOT_RUN)
    team.when_asked(team.approve)

    def damaged(_self: object, _replay: str) -> object:
        raise Refused("the replay is damaged", hint="lastgood explain")

    monkeypatch.setattr("lastgood.testing.stack.MemoryDatabase.replayed", damaged)
    report = team.roll_back()
    assert report.terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert any("the replay is damaged" in note for note in report.notes)


def test_a_target_whose_images_are_gone_is_refused_before_anything_is_stopped(team: Team) -> None:
    deployed(team)
    team.stack.forget(OLD)
    before = world(team)
    report = team.roll_back()
    assert report.terminal is TerminalState.REFUSED
    assert world(team) == before
    assert "is not on this host" in "".join(report.notes)


def test_images_that_a_registry_still_has_are_fetched_before_anything_is_stopped(team: Team) -> None:
    deployed(team)
    team.stack.forget(OLD)
    team.stack.registry = frozenset(artifact_of(service, OLD) for service in SERVICES)
    report = team.roll_back()
    assert report.terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert (team.stack.serving, team.stack.serves_wholly) == (OLD, True)


def test_images_of_what_passes_no_gate_are_fetched_too(team: Team) -> None:
    team.stack.containers = replace(team.stack.containers, ungated=frozenset(SERVICES))
    deployed(team)
    team.stack.forget(OLD)
    team.stack.registry = frozenset(artifact_of(service, OLD) for service in SERVICES)
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert (team.stack.serving, team.stack.serves_wholly) == (OLD, True)


def test_what_the_rollback_leaves_alone_need_not_be_fetched(team: Team) -> None:
    deployed(team)
    team.stack.forget(OLD)
    facts = team.stack.containers
    data = tuple(i for i in facts.serving if i.service == "core")
    serving = tuple(i for i in facts.serving if i not in data)
    team.stack.containers = replace(facts, stateful=data, serving=serving)
    team.stack.registry = frozenset(artifact_of(service, OLD) for service in SERVICES if service != "core")
    report = team.roll_back()
    assert {i.artifact for i in team.stack.containers.serving} == team.stack.registry, report.notes


def hotfix(team: Team) -> None:
    """Somebody puts something else in the place of a service."""
    team.stack.put("agent", "agent-hotfix")


def test_a_world_that_changed_since_the_plan_stops_the_run_before_its_first_effect(team: Team) -> None:
    deployed(team)

    def change(_plan: Plan) -> bool:
        hotfix(team)
        return True

    report = team.roll_back(confirm=change)
    assert report.terminal is TerminalState.REFUSED
    assert not team.stack.asked


def test_a_world_that_changed_while_a_person_thought_stops_the_run(tmp_path: Path) -> None:
    team = deployed(Team.with_a_good_release(tmp_path, mode="propose"))

    def change_and_approve() -> None:
        hotfix(team)
        team.approve()

    team.when_asked(change_and_approve)
    team.watch()
    assert ("agent", "agent-hotfix") in {(i.service, i.artifact) for i in team.stack.containers.serving}


def test_something_else_that_serves_in_the_middle_of_a_rollback_stops_it(team: Team) -> None:
    deployed(team)
    team.stack.takes_s["serve-core"] = 1.0
    team.clock.after(1.0, lambda: hotfix(team))
    report = team.roll_back()
    assert report.terminal is TerminalState.NEEDS_HUMAN
    assert any("agent-hotfix" in note for note in report.notes)
    assert ("agent", "agent-hotfix") in {(i.service, i.artifact) for i in team.stack.containers.serving}


def test_a_person_can_roll_back_what_somebody_else_put_there_before_the_plan(team: Team) -> None:
    deployed(team)
    hotfix(team)
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert team.stack.serves_wholly


# --- others at work ----------------------------------------------------------------------------------------------


class Follower:
    """A second `lastgood rollback`, in a process of its own that waits on the same clock."""

    def __init__(self, team: Team) -> None:
        self._rooms = replace(team.rooms(), story=self._hear)
        self._follows = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._reports: list[Report] = []

    def begin(self) -> None:
        """Type it, and go on once it says that it follows."""
        self._thread.start()
        assert self._follows.wait(10.0)

    def report(self) -> Report:
        """What it printed."""
        self._thread.join(10.0)
        return self._reports[0]

    def _ask(self) -> None:
        self._reports.append(by_hand.go_back(self._rooms))

    def _hear(self, line: str) -> None:
        if "following it" in line:
            self._follows.set()


def test_a_second_rollback_follows_the_first_to_its_report(team: Team) -> None:
    deployed(team)
    second = Follower(team)
    team.stack.takes_s["serve-core"] = 60.0
    team.clock.after(30.0, second.begin)
    first = team.roll_back()
    assert second.report() == first


def test_a_second_rollback_begins_no_run(team: Team) -> None:
    deployed(team)
    second = Follower(team)
    team.stack.takes_s["serve-core"] = 60.0
    team.clock.after(30.0, second.begin)
    before = len(team.history.runs)
    team.roll_back()
    second.report()
    assert len(team.history.runs) == before + 1


def test_a_deploy_during_a_rollback_is_refused(team: Team) -> None:
    deployed(team)
    refused: list[str] = []

    def also_deploy() -> None:
        with pytest.raises(Refused) as error:
            team.deploy("v3", WELL, pushed=False)
        refused.append(error.value.message)

    team.stack.takes_s["serve-core"] = 60.0
    team.clock.after(30.0, also_deploy)
    team.roll_back()
    assert len(refused) == 1
    assert "ada@laptop" in refused[0]


def test_a_run_that_another_process_left_is_finished_and_not_begun_again(team: Team) -> None:
    deployed(team)

    def die() -> None:
        raise Crash

    team.stack.takes_s["serve-core"] = 2.0
    team.clock.after(1.0, die)
    with pytest.raises(Crash):
        team.roll_back()
    run = team.run.started.run
    assert team.roll_back().run == run


def test_a_container_that_nobody_may_touch_and_that_went_is_told_by_whoever_takes_the_run_up(team: Team) -> None:
    def go_and_die() -> None:
        team.stack.containers = replace(team.stack.containers, stateful=(instance_of("db", "another"),))
        raise Crash

    deployed(team)
    team.stack.containers = replace(team.stack.containers, stateful=(instance_of("db", "postgres"),))
    team.stack.takes_s["serve-core"] = 2.0
    team.clock.after(1.0, go_and_die)
    with pytest.raises(Crash):
        team.roll_back()
    report = team.roll_back()
    assert report.terminal is TerminalState.ROLLED_BACK_DEGRADED
    assert ("containers that are never touched", "gone: db") in [(c.name, c.detail) for c in report.checks]


# --- what is kept ------------------------------------------------------------------------------------------------


def evidence(team: Team) -> Path:
    """The folder of the newest incident."""
    return team.root / ".lastgood" / "incidents" / team.run.started.run


def test_evidence_is_saved_before_the_first_effect(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    deployed(team)
    saved: list[bool] = []
    apply = Stack.apply

    def look_first(stack: Stack, step: Step) -> None:
        saved.append((evidence(team) / "incident.json").exists() and (evidence(team) / "core.log").exists())
        apply(stack, step)

    monkeypatch.setattr(Stack, "apply", look_first)
    team.roll_back()
    assert saved[0]


def test_the_evidence_holds_the_window_and_the_commits_of_both_releases(team: Team) -> None:
    deployed(team)
    team.watch()
    kept = json.loads((team.root / team.report.evidence_file / "incident.json").read_text())
    assert kept["commits"] == {BAD: f"c0ffee-{BAD}", OLD: f"c0ffee-{OLD}"}
    assert len(kept["window"]) == len(team.deployment.watched)


def test_evidence_that_cannot_be_saved_does_not_stop_a_rollback(team: Team) -> None:
    deployed(team)
    team.containers.lost = Retryable("docker logs: no answer", delay_s=1.0)
    assert team.roll_back().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert any("docker logs: no answer" in line for line in team.told)


def test_a_report_names_the_checks_and_the_steps_with_how_each_ended(team: Team) -> None:
    report = deployed(team).roll_back()
    assert {"health", "login", "create mission", "chat with agent"} <= {c.name for c in report.checks if c.passed}
    assert {s.state for s in report.steps} == {"done"}


# --- when the journal or the process dies ------------------------------------------------------------------------


class FullDisk:
    """A journal that takes so many more records and then nothing."""

    def __init__(self, team: Team, records: int) -> None:
        self._append, self._left = team.journal.append, records
        team.journal.append = self.append  # type: ignore[method-assign]  # the same disk, full

    def append(self, event: Event) -> Record:
        if self._left == 0:
            raise NeedsHuman("the journal cannot be used: no space left on device")
        self._left -= 1
        return self._append(event)


def records_of(make: Callable[[Path], Team], folder: Path) -> int:
    """How many records a whole rollback writes."""
    team = make(folder)
    before = len(team.journal.kept)
    team.roll_back()
    return len(team.journal.kept) - before


def with_a_database_step(folder: Path) -> Team:
    """v2 is deployed, v1 cannot run on its schema, and somebody approves as soon as it is asked."""
    team = deployed(Team.with_a_good_release(folder), MIGRATING, CANNOT_RUN)
    team.when_told("waiting at", team.approve)
    return team


def test_a_journal_that_cannot_be_written_stops_before_the_effect_whichever_record_it_is(tmp_path: Path) -> None:
    for left in range(records_of(with_a_database_step, tmp_path / "whole")):
        team = with_a_database_step(tmp_path / str(left))
        FullDisk(team, left)
        with pytest.raises(NeedsHuman):
            team.roll_back()
        begun = {event.step for event in team.events(StepStarted)}
        assert team.stack.asked.keys() <= begun, f"after {left} records"


def ending(team: Team) -> object:
    """How it ended, and what was done to get there."""
    return (
        team.report.terminal,
        team.stack.serving,
        team.stack.serves_wholly,
        team.stack.database.fingerprint,
        team.stack.frontend.production,
        dict(team.stack.effects),
        [event.terminal for event in team.events(RunEnded) if event.run == team.report.run],
    )


def killed_everywhere(folder: Path) -> Iterator[Team]:
    """A rollback that is not killed, and then one for each moment at which it could be, taken up."""
    whole = with_a_database_step(folder / "whole")
    counting = whole.journal.crashes = whole.stack.crashes = Crashes()
    whole.roll_back()
    yield whole
    for at in range(1, counting.count + 1):
        team = with_a_database_step(folder / str(at))
        team.journal.crashes = team.stack.crashes = Crashes(at)
        with pytest.raises(Crash):
            team.roll_back()
        if team.history.open_run is not None or team.history.open_deployment is not None:
            team.roll_back()
        yield team


@pytest.mark.slow
def test_a_rollback_that_is_killed_anywhere_and_taken_up_ends_the_same_with_each_effect_once(tmp_path: Path) -> None:
    whole, *killed = killed_everywhere(tmp_path)
    for at, team in enumerate(killed, start=1):
        assert ending(team) == ending(whole), f"killed at {at}"


@pytest.mark.slow
def test_a_team_is_told_the_same_however_often_the_rollback_was_killed(tmp_path: Path) -> None:
    for at, team in enumerate(killed_everywhere(tmp_path)):
        sentences = {event for event, text in team.channel.messages if text.startswith("🚨")}
        assert len(sentences) == 1, f"killed at {at}"


def test_what_was_decided_is_not_decided_again_by_who_takes_it_up(team: Team) -> None:
    deployed(team)

    def die() -> None:
        raise Crash

    team.stack.takes_s["serve-core"] = 2.0
    team.clock.after(1.0, die)
    with pytest.raises(Crash):
        team.roll_back()
    plan = team.run.plan
    returning.take_up(team.rooms())
    assert team.run.plan == plan


# --- whole incidents, watched -------------------------------------------------------------------------------------


def bad_release(folder: Path) -> Team:
    """v2 fails requests, and the watch puts v1 back by itself."""
    return deployed(Team.with_a_good_release(folder))


def denied(folder: Path) -> Team:
    """The watch proposes, and somebody says no."""
    team = deployed(Team.with_a_good_release(folder, mode="propose"))
    team.clock.after(120.0, team.deny)
    return team


def database_first(folder: Path) -> Team:
    """The watch asks for the database, and somebody says yes."""
    team = deployed(Team.with_a_good_release(folder), MIGRATING, CANNOT_RUN)
    team.clock.after(120.0, team.approve)
    return team


INCIDENTS: dict[str, tuple[Callable[[Path], Team], TerminalState, str]] = {
    "containers": (bad_release, TerminalState.ROLLED_BACK_VERIFIED, OLD),
    "denied": (denied, TerminalState.DENIED, BAD),
    "database-first": (database_first, TerminalState.ROLLED_BACK_VERIFIED, OLD),
}


def lived_through(folder: Path, incident: str, *crash_at: int) -> Team:
    """The incident, watched by as many lives as it takes."""
    team = INCIDENTS[incident][0](folder)
    team.journal.crashes = team.stack.crashes = Crashes(*crash_at)
    for _life in range(5):
        try:
            watch_on(team.rooms(), team.deployment.deployment.id)
        except Crash:
            continue
        return team
    raise AssertionError("the incident never ends")


@pytest.mark.slow
@pytest.mark.parametrize("incident", INCIDENTS)
def test_an_incident_whose_watch_dies_anywhere_ends_the_same_with_each_effect_once(
    tmp_path: Path, incident: str
) -> None:
    _, terminal, serves = INCIDENTS[incident]
    whole = lived_through(tmp_path / "whole", incident)
    for at in range(1, whole.journal.crashes.count + 1):
        team = lived_through(tmp_path / str(at), incident, at)
        assert (team.report.terminal, team.stack.serving) == (terminal, serves), f"killed at {at}"
        assert team.stack.effects == whole.stack.effects, f"killed at {at}"
        ends = [event for event in team.events(RunEnded) if event.terminal is terminal]
        assert len(ends) == 1, f"killed at {at}"
        watch = team.deployment.watch
        assert watch is not None
        assert watch.bake is (terminal is TerminalState.ROLLED_BACK_VERIFIED), f"killed at {at}"


# --- what others start from ---------------------------------------------------------------------------------------


def test_after_a_rollback_the_names_are_of_what_serves_again(team: Team) -> None:
    deployed(team).roll_back()
    assert team.containers.named == OLD
    assert f"the names are of {OLD} again" in team.report.notes


def test_names_that_cannot_be_put_back_are_told_and_fail_no_rollback(team: Team) -> None:
    deployed(team)
    team.containers.nameless = Refused("the disk is full", hint="df")
    report = team.roll_back()
    assert report.terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert [note for note in report.notes if "the disk is full" in note]


def test_a_rollback_of_the_database_alone_moves_no_name(team: Team) -> None:
    deployed(team, MIGRATING).roll_back(only=frozenset({Role.DATABASE}))
    assert team.containers.named == BAD
