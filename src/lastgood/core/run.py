"""Carrying out a plan, one decision at a time: what to do next follows from the plan and the journal alone.

The invariant: an effect is only started after its intent is durable, and a step whose intent is found without an
answer is looked at before anything is sent again. So a run that dies anywhere reaches the same end when it is taken
up again, with every effect once, as long as `observe` is truthful. Where a target cannot tell, the run stops for a
person; it never guesses, and no waiting time ends in an effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from lastgood.core.plan import HELD_AT_MOST_S, HoldRequests, PassRequests, Plan, Seen, Step
from lastgood.core.record import (
    AbortAsked,
    ApprovalDenied,
    ApprovalGiven,
    Record,
    StepFailed,
    StepSeen,
    StepStarted,
)
from lastgood.core.report import StepOutcome, TerminalState

APPROVAL_LIFE: Final = timedelta(minutes=10)
"""OWASP ASVS 5.0, 6.5.5: an out-of-band approval lives at most ten minutes."""
LOOKS: Final = 5
"""How often an unclear answer is looked at again before a person is asked."""
DEATHS: Final = 2
"""How often a process may die in a step beyond its attempts: a step that kills each process must not do so for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """Journal the intent with this attempt number, look, act unless it is done, look again, journal what was seen."""

    step: Step
    attempt: int
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observe:
    """Look at the step and journal what was seen; send nothing."""

    step: Step
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitApproval:
    """A person must approve before this step. Nothing happens until then."""

    step: Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The run ends before the plan does. step: where, None before the first."""

    terminal: TerminalState
    reason: str
    step: Step | None = None
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Every step was seen done, but for those that only spare users something and could not be."""


Next = Apply | Observe | AwaitApproval | Stop | Finish


@dataclass(slots=True)
class _Progress:
    """What the journal says of one step. touched: an attempt may have changed something, done or not."""

    attempts: int = 0
    failures: int = 0
    open: bool = False
    done: bool = False
    touched: bool = False
    unclear: int = 0
    failed: StepFailed | None = None
    note: str = ""
    began_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def duration_s(self) -> float:
        return round((self.ended_at - self.began_at).total_seconds(), 3) if self.began_at and self.ended_at else 0.0


@dataclass(slots=True)
class _Tally:
    """approvals: when each was given, and the hash of its plan. denied: None once the first step that needs a person
    began: then it is too late. began_with: how many approvals there were at that moment, None before it."""

    steps: dict[str, _Progress] = field(default_factory=dict[str, _Progress])
    approvals: list[tuple[datetime, str]] = field(default_factory=list[tuple[datetime, str]])
    began_with: int | None = None
    denied: ApprovalDenied | None = None
    abort: AbortAsked | None = None


def advance(plan: Plan, records: Sequence[Record], now: datetime) -> Next:
    """Say what to do next. records: of this run, oldest first. now: aware UTC, used only for the age of an approval."""
    tally = _tally(plan, records)
    for step in plan.steps:
        progress = tally.steps[step.name]
        if progress.done:
            continue
        if step.only_spares and (progress.unclear or _left_behind(plan, tally, step)):
            continue
        if progress.open:
            return _look(step, progress)
        if tally.abort:
            return Stop(
                terminal=TerminalState.ABORTED_BY_HUMAN,
                step=step,
                reason=_who("aborted", tally.abort.by, tally.abort.why),
            )
        final = progress.failed is not None and not progress.failed.again
        given_up = progress.failures >= step.attempts or progress.attempts >= step.attempts + DEATHS
        if (final or given_up) and step.only_spares:
            continue
        if progress.failed and final:
            return _stopped(plan, tally, step, progress.failed.reason, progress.failed.hint)
        if given_up:
            last, hint = progress.note or "the target does not show it done", ""
            if progress.failed:
                last, hint = progress.failed.reason, progress.failed.hint
            return _stopped(plan, tally, step, f"gave up after {progress.attempts} attempts: {last}", hint)
        if step.needs_approval and tally.denied:
            reason = _who("denied", tally.denied.by, tally.denied.why)
            return Stop(terminal=TerminalState.DENIED, step=step, reason=reason)
        if step.needs_approval and not _approved(plan, tally, now):
            return AwaitApproval(step=step)
        return Apply(
            step=step, attempt=progress.attempts + 1, delay_s=progress.failed.delay_s if progress.failed else 0.0
        )
    return Finish()


def _left_behind(plan: Plan, tally: _Tally, step: Step) -> bool:
    """Whether the plan went on without waiting for it: then it is not gone back to."""
    names = [each.name for each in plan.steps]
    return any(tally.steps[name].attempts for name in names[names.index(step.name) + 1 :])


def lapsed_hold(plan: Plan, records: Sequence[Record], step: Step, now: datetime) -> tuple[Step, int] | None:
    """The hold that `step` relies on, where it was had and its time has run out, and the number of its next attempt;
    None where there is nothing to be held again."""
    tally = _tally(plan, records)
    names = [each.name for each in plan.steps]
    before = plan.steps[: names.index(step.name)]
    hold = next((each for each in before if isinstance(each.action, HoldRequests)), None)
    if hold is None or any(isinstance(each.action, PassRequests) for each in before):
        return None
    progress = tally.steps[hold.name]
    if not progress.done or progress.ended_at is None or progress.attempts >= hold.attempts + DEATHS:
        return None
    lapsed = now - progress.ended_at >= timedelta(seconds=HELD_AT_MOST_S)
    return (hold, progress.attempts + 1) if lapsed else None


def _look(step: Step, progress: _Progress) -> Next:
    if progress.unclear >= LOOKS:
        return Stop(
            terminal=TerminalState.NEEDS_HUMAN,
            step=step,
            reason=f"{step.name} was started and cannot be told done or not done: {progress.note or 'no clear answer'}",
        )
    return Observe(step=step, delay_s=2.0**progress.unclear if progress.unclear else 0.0)


def _stopped(plan: Plan, tally: _Tally, step: Step, reason: str, hint: str) -> Stop:
    """REFUSED only while nothing was changed: no earlier step is done and this one left nothing behind."""
    failed = tally.steps[step.name].failed
    touched = any(tally.steps[s.name].touched for s in plan.steps if s.changes_what_serves)
    asks = failed is not None and failed.needs_human
    terminal = TerminalState.NEEDS_HUMAN if touched or asks else TerminalState.REFUSED
    return Stop(terminal=terminal, step=step, reason=f"{step.name}: {reason}", hint=hint)


def _approved(plan: Plan, tally: _Tally, now: datetime) -> bool:
    """An approval opens the first step that needs one for ten minutes; once that step began, it holds for the run.

    One that lies ahead, after a clock that jumped back, opens nothing until its time has come.
    """
    plan_hash = plan.hash  # taken only where it decides: it costs more than all the rest
    of_this = [at for at, bound_to in tally.approvals[: tally.began_with] if bound_to == plan_hash]
    return any(tally.began_with is not None or timedelta() <= now - at <= APPROVAL_LIFE for at in of_this)


def _who(what: str, by: str, why: str) -> str:
    return f"{what} by {by}" + (f": {why}" if why else "")


def _tally(plan: Plan, records: Iterable[Record]) -> _Tally:
    tally = _Tally(steps={step.name: _Progress() for step in plan.steps})
    asking = {step.name for step in plan.steps if step.needs_approval}
    for record in records:
        match record.event:
            case StepStarted(step=name, attempt=attempt):
                progress = tally.steps[name]
                progress.attempts, progress.open, progress.failed = attempt, True, None
                progress.began_at = progress.began_at or record.at
                if name in asking and tally.began_with is None:
                    tally.began_with = len(tally.approvals)
            case StepSeen(step=name) as event:
                progress = tally.steps[name]
                progress.note, progress.ended_at = event.note, record.at
                progress.done = event.seen is Seen.DONE
                progress.open = event.seen is Seen.UNKNOWN
                progress.unclear = progress.unclear + 1 if progress.open else 0
                progress.failures += event.applied and event.seen is Seen.NOT_DONE
                progress.touched = True  # by a process that died, too
            case StepFailed(step=name) as event:
                progress = tally.steps[name]
                progress.open, progress.done = False, False
                progress.failed, progress.note = event, event.reason
                progress.ended_at = record.at
                progress.failures += 1
                progress.touched |= event.needs_human
            case ApprovalGiven(plan_hash=plan_hash):
                tally.approvals.append((record.at, plan_hash))
            case ApprovalDenied() as event if tally.began_with is None:
                tally.denied = event
            case AbortAsked() as event:
                tally.abort = event
            case _:
                pass
    return tally


def outcomes(plan: Plan, records: Sequence[Record]) -> tuple[StepOutcome, ...]:
    """What became of each step, in the plan's order. duration_s: over all attempts, as journaled."""
    tally = _tally(plan, records)
    found: list[StepOutcome] = []
    for step in plan.steps:
        progress = tally.steps[step.name]
        state = (
            "done"
            if progress.done
            else "unknown"
            if progress.open
            else "failed"
            if progress.failed
            else "not done"
            if progress.attempts
            else "not started"
        )
        found.append(
            StepOutcome(
                name=step.name,
                target=step.role.value,
                state=state,
                duration_s=progress.duration_s,
                note=progress.note,
                began_at=progress.began_at,
                ended_at=progress.ended_at,
                changes_what_serves=step.changes_what_serves,
            )
        )
    return tuple(found)


def began_what_was_asked(plan: Plan, records: Sequence[Record]) -> bool:
    """Whether a step that waits for a person was started: from then on it is too late to deny, not to abort."""
    tally = _tally(plan, records)
    return any(tally.steps[s.name].attempts for s in plan.steps if s.needs_approval)


def began_serving_change(plan: Plan, records: Sequence[Record]) -> bool:
    """Whether a step that users can notice was started: from then on a killed deploy is taken up, before it undone."""
    tally = _tally(plan, records)
    return any(tally.steps[s.name].attempts for s in plan.steps if s.changes_what_serves)


__all__ = [
    "APPROVAL_LIFE",
    "Apply",
    "AwaitApproval",
    "Finish",
    "Next",
    "Observe",
    "Stop",
    "advance",
    "began_serving_change",
    "began_what_was_asked",
    "lapsed_hold",
    "outcomes",
]
