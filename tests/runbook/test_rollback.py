"""A rollback from the verdict to what the team is told: what waits for whom, what is touched, and how it ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lastgood.core.errors import NeedsHuman, OutcomeUnknown, Refused, Retryable
from lastgood.core.migration import BrokenInvariant, FitsSchema
from lastgood.core.plan import Role
from lastgood.core.record import RunStarted, StepStarted
from lastgood.core.release import Standing
from lastgood.core.report import Loss, TerminalState
from lastgood.runbook.watch import WatchOutcome
from lastgood.testing.memory_stack import DOES_NOT_FIT, FITS, NOBODY_KNOWS
from lastgood.testing.world import Crash
from tests.runbook.stack import HALF_ERRORS, Stack

SENTENCE = "🚨 Deployment failed. Rollback to v1 completed. System operating normally. Investigation started."
BY_MIGRATION = BrokenInvariant(invariant="credits", by_migration=7, by_others=0, keys=("1",))
BY_APPLICATION = BrokenInvariant(invariant="credits", by_migration=0, by_others=2, keys=("1", "2"))
UNSEEN = [Retryable("too many connections", delay_s=1), Refused("wrong password")]
FRONTEND = frozenset({Role.FRONTEND})


@pytest.fixture
def proposing(tmp_path: Path) -> Stack:
    """Mode propose, and a bad release serves."""
    stack = Stack(tmp_path, mode="propose")
    stack.deploy("bad")
    return stack


@pytest.fixture
def migrated(tmp_path: Path) -> Stack:
    """Mode automatic with a database, and a bad release that brought a migration serves."""
    stack = Stack(tmp_path, database=True)
    stack.database.brings["bad"] = ("m1",)
    stack.deploy("bad")
    return stack


def frontend_too(tmp_path: Path) -> Stack:
    """v1 belongs to dpl_v1; with the bad release, another deployment went live."""
    stack = Stack(tmp_path, frontend=True, production="dpl_v1")
    stack.deploy("bad")
    stack.world.frontend = replace(stack.world.frontend, production="dpl_bad")
    return stack


def effects(stack: Stack) -> set[str]:
    """Steps that a rollback of `bad` had an effect with, after its gate."""
    run = stack.run
    started = {r.event.step for r in run.records if isinstance(r.event, StepStarted)}
    return {s.name for s in run.plan.steps if s.changes_what_serves and s.name in started}


def later(stack: Stack, act: str, at_s: float = 300) -> WatchOutcome:
    """Watch; a person answers so many seconds from now."""
    stack.clock.after(at_s, getattr(stack, act))
    return stack.watch()


# --- who is asked ---


def test_a_rollback_that_is_denied_ends_denied(proposing: Stack) -> None:
    assert later(proposing, "deny").terminal is TerminalState.DENIED


def test_a_rollback_that_is_aborted_ends_aborted(proposing: Stack) -> None:
    assert later(proposing, "abort").terminal is TerminalState.ABORTED_BY_HUMAN


@pytest.mark.parametrize("answer", ["deny", "abort"])
def test_a_persons_no_leaves_what_serves_untouched(proposing: Stack, answer: str) -> None:
    later(proposing, answer)
    assert proposing.serves == "bad"
    assert not effects(proposing)


@pytest.mark.parametrize("answer", ["deny", "abort"])
def test_a_persons_no_leaves_nothing_beside_what_serves(proposing: Stack, answer: str) -> None:
    """The gate had started the old release beside the new one, where it would take work from queues."""
    later(proposing, answer)
    assert not proposing.world.containers.candidates


@pytest.mark.parametrize("answer", ["deny", "abort"])
def test_a_persons_no_freezes_nothing(proposing: Stack, answer: str) -> None:
    later(proposing, answer)
    assert proposing.history.frozen is None


@pytest.mark.parametrize("answer", ["deny", "abort"])
def test_a_persons_no_bars_nothing(proposing: Stack, answer: str) -> None:
    later(proposing, answer)
    assert proposing.standing("bad") is Standing.RECORDED


def test_an_approval_that_is_older_than_ten_minutes_opens_nothing(proposing: Stack) -> None:
    def approves_and_the_machine_sleeps() -> None:
        proposing.approve()
        proposing.clock.sleep(601)

    proposing.clock.after(300, approves_and_the_machine_sleeps)
    assert later(proposing, "deny", 1000).terminal is TerminalState.DENIED


def test_an_approval_of_another_plan_opens_nothing(proposing: Stack) -> None:
    proposing.clock.after(300, lambda: proposing.approve("0" * 64))
    assert later(proposing, "deny", 400).terminal is TerminalState.DENIED


def test_a_question_that_nobody_answers_needs_a_person_and_touches_nothing(proposing: Stack) -> None:
    proposing.clock.after(300, lambda: proposing.clock.sleep(13 * 3600))
    assert proposing.watch().terminal is TerminalState.NEEDS_HUMAN
    assert proposing.serves == "bad"


def test_a_world_that_changed_while_a_person_thought_stops_the_plan(proposing: Stack) -> None:
    def somebody_cleans_up_and_then_it_is_approved() -> None:
        proposing.world.containers = replace(proposing.world.containers, held=frozenset())
        proposing.approve()

    proposing.clock.after(300, somebody_cleans_up_and_then_it_is_approved)
    assert proposing.watch().terminal is TerminalState.REFUSED
    assert proposing.serves == "bad"


def test_containers_and_frontend_go_back_at_once(tmp_path: Path) -> None:
    stack = frontend_too(tmp_path)
    assert stack.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert (stack.serves, stack.world.frontend.production) == ("v1", "dpl_v1")


# --- how often ---


def test_a_release_is_rolled_back_automatically_once_and_then_it_asks(stack: Stack) -> None:
    stack.deploy_and_watch("bad")
    stack.unfreeze()
    stack.deploy("bad", override=True)
    assert later(stack, "deny").terminal is TerminalState.DENIED


def test_the_third_rollback_in_a_day_asks(stack: Stack) -> None:
    bad_ones(stack, 2)
    stack.deploy("bad-3")
    assert later(stack, "deny").terminal is TerminalState.DENIED


def test_a_third_rollback_a_day_later_does_not_ask(stack: Stack) -> None:
    bad_ones(stack, 2)
    stack.clock.sleep(24 * 3600)
    assert stack.deploy_and_watch("bad-3").terminal is TerminalState.ROLLED_BACK_VERIFIED


def test_what_moved_nothing_does_not_count_as_a_rollback(stack: Stack) -> None:
    for name in ("stillborn-1", "stillborn-2"):
        stack.containers.trouble.failing["pass-gate"] = [Refused("never healthy")]
        stack.deploy(name)
        stack.unfreeze()
    assert stack.deploy_and_watch("bad").terminal is TerminalState.ROLLED_BACK_VERIFIED


def bad_ones(stack: Stack, how_many: int) -> None:
    stack.traffic.sick.update({f"bad-{number}": HALF_ERRORS for number in range(1, how_many + 2)})
    for number in range(1, how_many + 1):
        stack.deploy_and_watch(f"bad-{number}")
        stack.unfreeze()


# --- what is told ---


def test_the_sentence_is_sent_word_for_word_and_once(stack: Stack) -> None:
    stack.deploy_and_watch("bad")
    assert stack.notifier.said == [SENTENCE]


def test_the_sentence_is_not_sent_when_a_check_fails(stack: Stack) -> None:
    stack.checker.failing = True
    stack.deploy_and_watch("bad")
    assert not stack.said("System operating normally")


def test_a_second_line_says_which_invalid_rows_remain(migrated: Stack) -> None:
    migrated.database.broken = (BY_APPLICATION,)
    migrated.watch()
    (told,) = migrated.said(SENTENCE)
    assert told.splitlines()[1].startswith("Invalid rows remain: 2 rows break credits: 1, 2")


def test_a_further_line_says_which_rows_left_the_live_data(migrated: Stack) -> None:
    migrated.database.fit = DOES_NOT_FIT
    migrated.database.leaves = (Loss(table="missions", rows=12, file="exports/missions.csv"),)
    later(migrated, "approve")
    (told,) = migrated.said(SENTENCE)
    assert "12 of missions" in told.splitlines()[1]


def test_an_export_that_cannot_be_counted_does_not_undo_what_was_done(migrated: Stack) -> None:
    migrated.database.fit, migrated.database.uncounted = DOES_NOT_FIT, Refused("the export's list is damaged")
    outcome = later(migrated, "approve")
    assert outcome.terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert outcome.report is not None
    assert any("the export's list is damaged" in note for note in outcome.report.notes)


def test_a_channel_that_fails_stops_no_rollback_and_stands_in_the_report(stack: Stack) -> None:
    stack.notifier.away = OutcomeUnknown("no answer")
    outcome = stack.deploy_and_watch("bad")
    assert outcome.terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert outcome.report is not None
    assert "memory #dev-ops could not be told: no answer" in outcome.report.notes


def test_a_partial_rollback_says_its_parts(tmp_path: Path) -> None:
    stack = frontend_too(tmp_path)
    report = stack.roll_back(only=FRONTEND)
    assert report.parts == ("frontend",)
    assert len(stack.said("frontend went back to v1, and the checks passed. bad serves.")) == 1


def test_a_partial_rollback_bars_nothing(tmp_path: Path) -> None:
    stack = frontend_too(tmp_path)
    stack.roll_back(only=FRONTEND)
    assert stack.standing("bad") is Standing.RECORDED


def test_a_release_that_was_rolled_back_is_barred(stack: Stack) -> None:
    stack.deploy_and_watch("bad")
    assert stack.standing("bad") is Standing.BARRED


def test_evidence_that_cannot_be_saved_stops_no_rollback(stack: Stack) -> None:
    stack.deploy("bad")
    (stack.folder / "state").write_text("a file where a folder should be\n")
    assert stack.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED


# --- the database ---


def test_a_release_that_fits_the_schema_goes_back_without_a_question(migrated: Stack) -> None:
    assert migrated.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert migrated.world.database.fingerprint == "f2"


def test_a_release_that_does_not_fit_touches_nothing_that_serves_before_the_approval(migrated: Stack) -> None:
    migrated.database.fit = DOES_NOT_FIT
    assert later(migrated, "deny").terminal is TerminalState.DENIED
    assert not effects(migrated)


def test_a_release_that_does_not_fit_goes_back_after_its_database(migrated: Stack) -> None:
    migrated.database.fit = DOES_NOT_FIT
    assert later(migrated, "approve").terminal is TerminalState.ROLLED_BACK_VERIFIED
    names = [step.name for step in migrated.run.plan.steps]
    assert names.index("swap-database") < names.index("serve-core")


def test_a_release_of_which_nobody_knows_whether_it_fits_asks(migrated: Stack) -> None:
    migrated.database.fit = NOBODY_KNOWS
    assert later(migrated, "deny").terminal is TerminalState.DENIED
    assert not effects(migrated)


def test_rows_that_the_migration_broke_wait_for_a_person_and_the_containers_do_not(migrated: Stack) -> None:
    migrated.database.broken = (BY_MIGRATION,)
    served: list[str] = []
    migrated.clock.after(299, lambda: served.append(migrated.serves))
    later(migrated, "approve")
    assert served == ["v1"]
    assert migrated.world.database.fingerprint == "f1"


@pytest.mark.parametrize("says", UNSEEN, ids=["away", "refuses"])
def test_a_database_that_cannot_be_looked_at_holds_containers_up_where_migrations_differ(
    migrated: Stack, says: Retryable | Refused
) -> None:
    migrated.database.trouble.away = says
    assert later(migrated, "deny").terminal is TerminalState.DENIED
    assert migrated.serves == "bad"


@pytest.mark.parametrize("says", UNSEEN, ids=["away", "refuses"])
def test_a_database_that_cannot_be_looked_at_holds_nothing_up_where_no_migration_differs(
    tmp_path: Path, says: Retryable | Refused
) -> None:
    stack = Stack(tmp_path, database=True)
    stack.deploy("bad")
    stack.database.trouble.away = says
    stack.watch()
    assert stack.serves == "v1"


@pytest.mark.parametrize("fit", [FITS, DOES_NOT_FIT, NOBODY_KNOWS])
def test_the_database_goes_back_only_after_an_approval(migrated: Stack, fit: FitsSchema) -> None:
    migrated.database.fit, migrated.database.broken = fit, (BY_MIGRATION,)
    later(migrated, "deny")
    assert migrated.world.database.fingerprint == "f2"
    assert migrated.world.database.exists


# --- what goes wrong on the way ---


def test_an_image_that_is_not_held_is_refused_before_anything_stops(stack: Stack) -> None:
    stack.deploy("bad")
    stack.world.containers = replace(stack.world.containers, held=frozenset({"core-v1"}))
    assert stack.watch().terminal is TerminalState.REFUSED
    assert not effects(stack)
    assert stack.serves == "bad"


def test_a_no_before_effects_is_refused(stack: Stack) -> None:
    stack.deploy("bad")
    stack.containers.trouble.failing["pass-gate"] = [Refused("v1 never became healthy")]
    assert stack.watch().terminal is TerminalState.REFUSED


def test_a_no_after_effects_needs_a_person(stack: Stack) -> None:
    stack.deploy("bad")
    stack.containers.trouble.failing["serve-agent"] = [Refused("no space")]
    assert stack.watch().terminal is TerminalState.NEEDS_HUMAN


def test_a_run_that_needs_a_person_says_what_to_type(stack: Stack) -> None:
    stack.deploy("bad")
    stack.containers.trouble.failing["serve-agent"] = [NeedsHuman("half done", hint="docker ps")]
    report = stack.watch().report
    assert report is not None
    assert report.next_steps[0] == "docker ps"
    assert "lastgood rollback v1" in report.next_steps


def test_a_fence_without_a_swap_is_lifted(migrated: Stack) -> None:
    migrated.database.fit = DOES_NOT_FIT
    migrated.database.trouble.failing["swap-database"] = [Refused("somebody wrote to the clone")]
    assert later(migrated, "approve").terminal is TerminalState.NEEDS_HUMAN
    assert migrated.world.database.exists


def test_a_fence_that_cannot_be_lifted_is_said(migrated: Stack) -> None:
    migrated.database.fit = DOES_NOT_FIT
    migrated.database.trouble.failing = {"swap-database": [Refused("no")], "lift-fence": [Refused("no")] * 3}
    report = later(migrated, "approve").report
    assert report is not None
    assert "the fence could not be lifted" in report.notes


@pytest.mark.parametrize("step", ["pass-gate", "serve-core", "serve-agent", "clear-candidates"])
def test_an_answer_that_is_lost_is_settled_by_looking(stack: Stack, step: str) -> None:
    stack.deploy("bad")
    before = stack.world.effects[step]
    stack.containers.trouble.lost = {step}
    assert stack.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert stack.world.effects[step] == before + 1


def test_a_verification_that_fails_ends_degraded(stack: Stack) -> None:
    stack.checker.failing = True
    assert stack.deploy_and_watch("bad").terminal is TerminalState.ROLLED_BACK_DEGRADED


def test_a_verification_that_fails_starts_nothing_further(stack: Stack) -> None:
    stack.checker.failing = True
    stack.deploy_and_watch("bad")
    rollbacks = [e for e in stack.events(RunStarted) if isinstance(e, RunStarted) and e.plan.to_release == "v1"]
    assert len(rollbacks) == 1
    assert stack.history.deployments["d2"].watch is not None
    assert not stack.history.deployments["d2"].watch.bake


def test_a_rollback_whose_process_died_is_taken_up_by_the_watch(proposing: Stack) -> None:
    def dies() -> None:
        raise Crash

    proposing.clock.after(300, dies)
    with pytest.raises(Crash):
        proposing.watch()
    run = proposing.run.started.run
    later(proposing, "approve", 10)
    assert proposing.run.started.run == run
    assert proposing.terminal() is TerminalState.ROLLED_BACK_VERIFIED
