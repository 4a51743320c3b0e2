"""What a run does next, from its plan and its records alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lastgood.core.plan import Plan, Seen
from lastgood.core.record import ApprovalDenied, ApprovalGiven, Event, Record, StepFailed, StepSeen, StepStarted
from lastgood.core.report import TerminalState
from lastgood.core.run import (
    APPROVAL_LIFE,
    DEATHS,
    LOOKS,
    Apply,
    AwaitApproval,
    Finish,
    Next,
    Observe,
    Stop,
    advance,
    began_serving_change,
    began_what_was_asked,
    lapsed_hold,
    outcomes,
)
from lastgood.testing.world import START
from tests.core.examples import EVIDENCE, UNCHANGED, deploy_plan, rollback_plan
from tests.core.run_records import (
    aborted,
    any_records,
    approved,
    denied,
    done,
    events_about,
    failed,
    found,
    records,
    started,
)

PLAIN = rollback_plan(None)
ASKING = rollback_plan(EVIDENCE)
HOLDING = rollback_plan(EVIDENCE, edge=True)
DEPLOY = deploy_plan()
STEPS = [step.name for step in PLAIN.steps]
BEFORE_THE_FENCE = done("save-dump")


def after(*events: Event, plan: Plan = PLAIN, in_s: float = 0.0) -> Next:
    """What comes after these events, a second apart, `in_s` after the last of them."""
    kept = records(*events)
    return advance(plan, kept, _end(kept) + timedelta(seconds=in_s))


def _end(kept: Sequence[Record]) -> datetime:
    return kept[-1].at if kept else START


def stop(found_: Next) -> Stop:
    assert isinstance(found_, Stop), found_
    return found_


# --- one step after the other ----------------------------------------------------------------------------------------


def test_a_run_begins_with_its_first_step() -> None:
    assert after() == Apply(step=PLAIN.steps[0], attempt=1)


@pytest.mark.parametrize("at", range(1, len(STEPS)))
def test_a_step_that_is_done_is_followed_by_the_next(at: int) -> None:
    assert after(*done(*STEPS[:at])) == Apply(step=PLAIN.steps[at], attempt=1)


def test_a_run_whose_steps_are_all_done_is_finished() -> None:
    assert after(*done(*STEPS)) == Finish()


def test_a_plan_without_steps_is_finished_at_once() -> None:
    assert after(plan=replace(PLAIN, steps=())) == Finish()


def test_a_step_that_another_process_left_done_is_not_applied_again() -> None:
    left = (started("pass-gate"), found("pass-gate", Seen.DONE, applied=False))
    assert after(*left) == Apply(step=PLAIN.steps[1], attempt=1)


# --- answers that were lost ------------------------------------------------------------------------------------------


def test_an_intent_without_an_answer_is_looked_at_before_anything_is_sent() -> None:
    assert after(started("pass-gate")) == Observe(step=PLAIN.steps[0])


@pytest.mark.parametrize("looks,delay_s", [(1, 2.0), (2, 4.0), (3, 8.0), (4, 16.0)])
def test_an_unclear_answer_is_looked_at_again_ever_more_slowly(looks: int, delay_s: float) -> None:
    unclear = [found("pass-gate", Seen.UNKNOWN)] * looks
    assert after(started("pass-gate"), *unclear) == Observe(step=PLAIN.steps[0], delay_s=delay_s)


def test_an_answer_that_stays_unclear_needs_a_person() -> None:
    ending = stop(after(started("pass-gate"), *[found("pass-gate", Seen.UNKNOWN, note="no such host")] * LOOKS))
    assert ending.terminal is TerminalState.NEEDS_HUMAN
    assert ending.reason.endswith("no such host")


def test_a_clear_answer_begins_the_count_of_looks_anew() -> None:
    unclear = [found("pass-gate", Seen.UNKNOWN)] * (LOOKS - 1)
    again = (found("pass-gate", Seen.NOT_DONE), started("pass-gate", 2), found("pass-gate", Seen.UNKNOWN))
    assert after(started("pass-gate"), *unclear, *again) == Observe(step=PLAIN.steps[0], delay_s=2.0)


def test_a_step_that_turned_out_not_done_is_attempted_again() -> None:
    left = (started("pass-gate"), found("pass-gate", Seen.NOT_DONE, applied=False))
    assert after(*left) == Apply(step=PLAIN.steps[0], attempt=2)


# --- attempts --------------------------------------------------------------------------------------------------------


def test_a_failure_that_is_worth_another_attempt_gets_it_after_its_delay() -> None:
    events = (started("pass-gate"), failed("pass-gate", again=True, delay_s=7.0))
    assert after(*events) == Apply(step=PLAIN.steps[0], attempt=2, delay_s=7.0)


def tried(step: str, attempts: int, answer: StepFailed | StepSeen) -> list[Event]:
    return [event for n in range(1, attempts + 1) for event in (started(step, n), answer)]


def test_a_step_is_not_attempted_more_often_than_its_plan_says() -> None:
    events = tried(
        "pass-gate", PLAIN.steps[0].attempts, failed("pass-gate", again=True, reason="no room", hint="df -h")
    )
    assert (stop(after(*events)).reason, stop(after(*events)).hint) == (
        "pass-gate: gave up after 2 attempts: no room",
        "df -h",
    )


def test_a_step_that_never_shows_as_done_is_given_up() -> None:
    events = [*done("pass-gate"), *tried("serve-core", 3, found("serve-core", Seen.NOT_DONE))]
    assert stop(after(*events)).reason == "serve-core: gave up after 3 attempts: the target does not show it done"


def test_what_the_target_answered_is_the_reason_for_giving_up() -> None:
    events = [*done("pass-gate"), *tried("serve-core", 3, found("serve-core", Seen.NOT_DONE, note="exit code 137"))]
    assert stop(after(*events)).reason == "serve-core: gave up after 3 attempts: exit code 137"


def test_a_process_that_dies_in_a_step_does_not_use_up_its_attempts() -> None:
    events = tried("pass-gate", PLAIN.steps[0].attempts, found("pass-gate", Seen.NOT_DONE, applied=False))
    assert isinstance(after(*events), Apply)


def test_a_step_that_kills_each_process_does_not_do_so_for_ever() -> None:
    most = PLAIN.steps[0].attempts + DEATHS
    events = tried("pass-gate", most, found("pass-gate", Seen.NOT_DONE, applied=False))
    assert isinstance(after(*events), Stop)


# --- where it stops, and what may be said of that --------------------------------------------------------------------


def test_a_refusal_at_the_first_step_touched_nothing() -> None:
    ending = stop(after(started("pass-gate"), failed("pass-gate", again=False, reason="no image", hint="docker pull")))
    assert ending == Stop(
        terminal=TerminalState.REFUSED, step=PLAIN.steps[0], reason="pass-gate: no image", hint="docker pull"
    )


def test_a_refusal_after_steps_that_nobody_can_notice_touched_nothing() -> None:
    events = (*done("pass-gate"), started("serve-core"), failed("serve-core", again=False))
    assert stop(after(*events)).terminal is TerminalState.REFUSED


def test_a_refusal_after_something_that_serves_was_changed_needs_a_person() -> None:
    serve, following = "serve-core", "serve-orchestrator"
    events = (*done("pass-gate", serve), started(following), failed(following, again=False))
    assert stop(after(*events)).terminal is TerminalState.NEEDS_HUMAN


@pytest.mark.parametrize("applied", [True, False], ids=["by-this-process", "by-one-that-died"])
def test_a_refusal_after_an_attempt_that_may_have_changed_something_needs_a_person(*, applied: bool) -> None:
    """The process that died may have stopped the old container before the new one was there."""
    first = (started("serve-core"), found("serve-core", Seen.NOT_DONE, applied=applied))
    events = (*done("pass-gate"), *first, started("serve-core", 2), failed("serve-core", again=False))
    assert stop(after(*events)).terminal is TerminalState.NEEDS_HUMAN


@pytest.mark.parametrize("step", ["pass-gate", "serve-core"])
def test_a_step_that_asks_for_a_person_gets_one(step: str) -> None:
    """A gate that cannot be cleared away is no less in need of a person than a service that is half switched."""
    before = done(*STEPS[: STEPS.index(step)])
    ending = stop(after(*before, started(step), failed(step, again=False, needs_human=True)))
    assert ending.terminal is TerminalState.NEEDS_HUMAN


# --- a person's yes --------------------------------------------------------------------------------------------------


def test_a_step_that_needs_a_person_waits_for_one() -> None:
    assert after(*BEFORE_THE_FENCE, plan=ASKING) == AwaitApproval(step=ASKING.step("fence"))


def test_what_comes_before_that_step_waits_for_nobody() -> None:
    assert after(plan=ASKING) == Apply(step=ASKING.step("save-dump"), attempt=1)


@pytest.mark.parametrize("in_s,opens", [(0, True), (600, True), (600.001, False), (86400, False), (-1, False)])
def test_an_approval_opens_the_step_for_ten_minutes(*, in_s: float, opens: bool) -> None:
    """One from the future, after a clock that jumped back, waits until its time has come."""
    decided = after(*BEFORE_THE_FENCE, approved(ASKING), plan=ASKING, in_s=in_s)
    assert isinstance(decided, Apply if opens else AwaitApproval)


def test_an_approval_may_be_given_before_it_is_asked_for() -> None:
    assert isinstance(after(approved(ASKING), *BEFORE_THE_FENCE, plan=ASKING), Apply)


def test_an_approval_that_expired_may_be_given_again() -> None:
    early, late = records(approved(ASKING), *BEFORE_THE_FENCE), START + timedelta(hours=1)
    again = replace(early[0], seq=99, at=late)
    assert isinstance(advance(ASKING, [*early, again], late), Apply)


def test_an_approval_of_another_plan_opens_nothing() -> None:
    changed = replace(ASKING, to_release="older")
    assert isinstance(after(*BEFORE_THE_FENCE, approved(changed), plan=ASKING), AwaitApproval)


def test_an_approval_holds_for_the_run_once_its_first_step_began() -> None:
    """Ten minutes are for the answer, not for the export behind the fence."""
    events = (*BEFORE_THE_FENCE, approved(ASKING), *done("fence"))
    decided = after(*events, plan=ASKING, in_s=3 * APPROVAL_LIFE.total_seconds())
    assert decided == Apply(step=ASKING.step("export-writes"), attempt=1)


def test_an_approval_that_was_fresh_when_it_was_read_does_not_expire_behind_the_fence() -> None:
    """Between the decision and the intent the world is looked at once more, which takes its time."""
    first, *rest = records(approved(ASKING), *BEFORE_THE_FENCE, *done("fence"))
    later = [replace(record, at=record.at + APPROVAL_LIFE) for record in rest]
    assert isinstance(advance(ASKING, [first, *later], _end(later)), Apply)


def test_a_step_that_began_without_a_valid_approval_opens_no_other() -> None:
    assert isinstance(after(*BEFORE_THE_FENCE, *done("fence"), plan=ASKING), AwaitApproval)


def test_an_approval_that_came_after_the_step_had_begun_opens_no_other() -> None:
    assert isinstance(after(*BEFORE_THE_FENCE, *done("fence"), approved(ASKING), plan=ASKING), AwaitApproval)


# --- a person's no ---------------------------------------------------------------------------------------------------


def test_a_denial_ends_the_run_at_the_step_that_waits() -> None:
    ending = stop(after(*BEFORE_THE_FENCE, denied("we fix forward"), plan=ASKING))
    assert ending == Stop(
        terminal=TerminalState.DENIED, step=ASKING.step("fence"), reason="denied by ada: we fix forward"
    )


def test_an_approval_after_a_denial_opens_nothing() -> None:
    assert stop(after(*BEFORE_THE_FENCE, denied(), approved(ASKING), plan=ASKING)).terminal is TerminalState.DENIED


def test_a_denial_takes_back_an_approval_whose_step_did_not_begin() -> None:
    assert stop(after(*BEFORE_THE_FENCE, approved(ASKING), denied(), plan=ASKING)).terminal is TerminalState.DENIED


def test_a_denial_comes_too_late_once_the_step_began() -> None:
    """Then it is `abort` that stops the run: what is decided is decided."""
    events = (*BEFORE_THE_FENCE, approved(ASKING), *done("fence"), denied())
    assert after(*events, plan=ASKING) == Apply(step=ASKING.step("export-writes"), attempt=1)


def test_a_denial_does_not_keep_the_steps_that_need_nobody_from_going_on() -> None:
    assert after(denied(), *done("pass-gate"), plan=ASKING) == Apply(step=ASKING.step("save-dump"), attempt=1)


# --- abort -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", range(len(STEPS)))
def test_an_abort_takes_effect_before_the_next_step(at: int) -> None:
    ending = stop(after(*done(*STEPS[:at]), aborted("wrong release")))
    assert (ending.terminal, ending.step) == (TerminalState.ABORTED_BY_HUMAN, PLAIN.steps[at])


def test_an_abort_says_who_and_why() -> None:
    assert stop(after(aborted("wrong release"))).reason == "aborted by ada: wrong release"


def test_an_abort_in_a_step_looks_first_what_became_of_it() -> None:
    assert after(started("pass-gate"), aborted()) == Observe(step=PLAIN.steps[0])


def test_an_abort_keeps_a_step_from_its_next_attempt() -> None:
    events = (started("pass-gate"), failed("pass-gate", again=True), aborted())
    assert stop(after(*events)).terminal is TerminalState.ABORTED_BY_HUMAN


def test_an_abort_after_the_last_step_changes_nothing() -> None:
    assert after(*done(*STEPS), aborted()) == Finish()


def test_an_abort_ends_the_waiting_for_a_person() -> None:
    assert stop(after(*BEFORE_THE_FENCE, aborted(), plan=ASKING)).terminal is TerminalState.ABORTED_BY_HUMAN


# --- what became of each step ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "events,state",
    [
        pytest.param([], "not started", id="nothing"),
        pytest.param([started("pass-gate")], "unknown", id="an-intent"),
        pytest.param([started("pass-gate"), found("pass-gate", Seen.UNKNOWN)], "unknown", id="an-unclear-answer"),
        pytest.param([started("pass-gate"), found("pass-gate", Seen.NOT_DONE)], "not done", id="it-does-not-show"),
        pytest.param([started("pass-gate"), failed("pass-gate", again=True)], "failed", id="a-refusal"),
        pytest.param(done("pass-gate"), "done", id="it-shows"),
        pytest.param(
            [started("pass-gate"), failed("pass-gate", again=True), *done("pass-gate")], "done", id="the-second-attempt"
        ),
    ],
)
def test_the_state_of_a_step_is_what_was_seen_last(events: list[Event], state: str) -> None:
    assert outcomes(PLAIN, records(*events))[0].state == state


def test_outcomes_are_in_the_order_of_the_plan() -> None:
    assert [outcome.name for outcome in outcomes(PLAIN, records(*done("return-frontend", "pass-gate")))] == STEPS


def test_a_step_lasted_from_its_first_intent_to_its_last_answer() -> None:
    events = (started("pass-gate"), failed("pass-gate", again=True), *done("pass-gate"))
    outcome = outcomes(PLAIN, records(*events, every_s=1.5))[0]
    assert (outcome.duration_s, outcome.began_at) == (4.5, START)


def test_a_step_without_an_answer_has_lasted_no_time_yet() -> None:
    outcome = outcomes(PLAIN, records(started("pass-gate")))[0]
    assert (outcome.duration_s, outcome.ended_at) == (0.0, None)


@pytest.mark.parametrize(
    "plan,events,began",
    [
        pytest.param(DEPLOY, [], False, id="nothing"),
        pytest.param(DEPLOY, done("take-restore-point", "pass-gate"), False, id="the-gate"),
        pytest.param(DEPLOY, [started("migrate")], True, id="the-intent-to-migrate"),
        pytest.param(PLAIN, [started("serve-core")], True, id="the-intent-to-serve"),
        pytest.param(PLAIN, [started("return-frontend")], True, id="the-frontend"),
        pytest.param(ASKING, [*BEFORE_THE_FENCE, approved(ASKING)], False, id="an-approval"),
        pytest.param(ASKING, [started("fence"), failed("fence", again=True)], True, id="a-fence-that-failed"),
    ],
)
def test_what_users_can_notice_begins_with_the_intent(plan: Plan, events: list[Event], *, began: bool) -> None:
    assert began_serving_change(plan, records(*events)) is began


@pytest.mark.parametrize(
    "events,began",
    [((*BEFORE_THE_FENCE, approved(ASKING)), False), ((*BEFORE_THE_FENCE, approved(ASKING), started("fence")), True)],
)
def test_it_is_too_late_to_deny_once_an_approved_step_began(events: Sequence[Event], began: bool) -> None:
    assert began_what_was_asked(ASKING, records(*events)) is began


# --- requests that wait ----------------------------------------------------------------------------------------------

AT_THE_HOLD = (*done("save-dump"), approved(HOLDING))


@pytest.mark.parametrize(
    "events",
    [
        (started("hold-requests"), failed("hold-requests", again=False)),
        (started("hold-requests"), failed("hold-requests", again=False, needs_human=True)),
        tuple(e for n in (1, 2, 3) for e in (started("hold-requests", n), failed("hold-requests", again=True))),
        tuple(e for n in (1, 2, 3) for e in (started("hold-requests", n), found("hold-requests", Seen.NOT_DONE))),
        (started("hold-requests"), found("hold-requests", Seen.UNKNOWN)),
    ],
    ids=["refused", "asks for a person", "failed again and again", "never seen done", "never clear"],
)
def test_requests_that_cannot_be_made_to_wait_do_not_keep_the_database_from_going_back(
    events: tuple[Event, ...],
) -> None:
    decided = after(*AT_THE_HOLD, *events, plan=HOLDING)
    assert isinstance(decided, Apply)
    assert decided.step.name == "fence"
    assert isinstance(after(*AT_THE_HOLD, *events, aborted(), plan=HOLDING), Stop)


@pytest.mark.parametrize(
    "events, step, in_s, attempt",
    [
        (done("hold-requests"), "fence", 60, 2),
        (done("hold-requests"), "fence", 59, None),
        (done("hold-requests", "fence"), "swap-database", 60, 2),
        ((), "fence", 60, None),
        ((started("hold-requests"), failed("hold-requests", again=False)), "fence", 60, None),
        ((*done("hold-requests"), started("hold-requests", 2), failed("hold-requests", again=True)), "fence", 60, None),
        ((*done("hold-requests"), started("hold-requests", 5), found("hold-requests", Seen.DONE)), "fence", 60, None),
        (done("hold-requests"), "save-dump", 60, None),
        (done("hold-requests"), "settle", 60, None),
    ],
)
def test_a_hold_whose_time_has_run_out_is_wanted_again_until_requests_are_passed_on(
    events: Sequence[Event], step: str, in_s: float, attempt: int | None
) -> None:
    kept = records(*events)
    wanted = lapsed_hold(HOLDING, kept, HOLDING.step(step), _end(kept) + timedelta(seconds=in_s))
    assert (wanted[1] if wanted else None) == attempt


@pytest.mark.parametrize(
    "again",
    [
        (failed("hold-requests", again=True),),
        (found("hold-requests", Seen.UNKNOWN),),
        (found("hold-requests", Seen.NOT_DONE),),
        (),
    ],
    ids=["failed", "unclear", "not done", "died"],
)
def test_a_plan_behind_the_fence_never_goes_back_to_a_hold(again: tuple[Event, ...]) -> None:
    events = (*AT_THE_HOLD, *done("hold-requests", "fence"), started("hold-requests", 2), *again)
    decided = after(*events, plan=HOLDING)
    assert isinstance(decided, Apply)
    assert decided.step.name != "hold-requests"
    assert {o.name: o.state for o in outcomes(HOLDING, records(*events))}["hold-requests"] != "done" or not again


# --- what may never be, whatever the records say ---------------------------------------------------------------------

PLANS = (PLAIN, ASKING, DEPLOY, rollback_plan(UNCHANGED), HOLDING)
RUNS = st.one_of(
    [st.tuples(st.just(plan), any_records(events_about(plan, [step.name for step in plan.steps]))) for plan in PLANS]
)
# everything before the fence is done, so that most runs stand where it matters
AT_THE_FENCE = any_records(events_about(ASKING, ["fence", "export-writes"])).map(
    lambda kept: [*records(*BEFORE_THE_FENCE), *kept]
)
NOWS = st.sampled_from([0.0, 1.0, 599.0, 601.0, 86400.0, -3600.0])


def told_of(step: str, kept: Sequence[Record]) -> StepStarted | StepSeen | StepFailed | None:
    """The last thing that the records say of a step."""
    about = [r.event for r in kept if isinstance(r.event, StepStarted | StepSeen | StepFailed) and r.event.step == step]
    return about[-1] if about else None


@given(run=RUNS, in_s=NOWS)
@settings(max_examples=60)
def test_nothing_is_applied_whose_last_attempt_has_no_clear_answer(run: tuple[Plan, list[Record]], in_s: float) -> None:
    plan, kept = run
    decided = advance(plan, kept, _end(kept) + timedelta(seconds=in_s))
    if isinstance(decided, Apply):
        last = told_of(decided.step.name, kept)
        assert (
            last is None or isinstance(last, StepFailed) or (isinstance(last, StepSeen) and last.seen is Seen.NOT_DONE)
        )


@given(run=RUNS, in_s=NOWS)
@settings(max_examples=60)
def test_nothing_is_applied_before_all_that_comes_before_it_is_done(
    run: tuple[Plan, list[Record]], in_s: float
) -> None:
    plan, kept = run
    decided = advance(plan, kept, _end(kept) + timedelta(seconds=in_s))
    if isinstance(decided, Apply):
        before = plan.steps[: plan.steps.index(decided.step)]
        states = [outcome.state for outcome in outcomes(plan, kept)[: len(before)]]
        assert {state for step, state in zip(before, states, strict=True) if not step.only_spares} <= {"done"}
        assert "not started" not in states


@given(kept=AT_THE_FENCE, in_s=NOWS)
@settings(max_examples=150)
def test_nothing_that_needs_a_person_is_applied_without_a_valid_approval(kept: list[Record], in_s: float) -> None:
    now = _end(kept) + timedelta(seconds=in_s)
    decided = advance(ASKING, kept, now)
    if not (isinstance(decided, Apply) and decided.step.needs_approval):
        return
    asking = {step.name for step in ASKING.steps if step.needs_approval}
    begin = next((n for n, r in enumerate(kept) if isinstance(r.event, StepStarted) and r.event.step in asking), None)
    until = kept[:begin]
    assert not any(isinstance(r.event, ApprovalDenied) for r in until)
    approvals = [r for r in until if isinstance(r.event, ApprovalGiven) and r.event.plan_hash == ASKING.hash]
    # the first of these steps needs a fresh one; later ones only that there was one before the first
    assert any(begin is not None or timedelta() <= now - r.at <= timedelta(minutes=10) for r in approvals)


@given(run=RUNS)
@settings(max_examples=60)
def test_a_run_that_says_it_touched_nothing_began_nothing_that_users_can_notice(
    run: tuple[Plan, list[Record]],
) -> None:
    plan, kept = run
    decided = advance(plan, kept, _end(kept))
    if isinstance(decided, Stop) and decided.terminal is TerminalState.REFUSED:
        noticed = {step.name for step in plan.steps if step.changes_what_serves}
        assert not any(isinstance(r.event, StepSeen) and r.event.step in noticed for r in kept)
