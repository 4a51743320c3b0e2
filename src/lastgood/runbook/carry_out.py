"""Carrying out a plan that is in the journal: ask `core.run.advance`, do that one thing, journal it, ask again.

For each step: intent, look, act, look, journal what was seen. The same loop begins a run and takes one up that died;
it cannot tell the difference, and need not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from threading import Event
from typing import Final, Self, assert_never

from lastgood.core.errors import ConfigError, LastgoodError, NeedsHuman, OutcomeUnknown, Refused, Retryable
from lastgood.core.facts import ContainerFacts, DatabaseFacts, Facts
from lastgood.core.history import RunHistory
from lastgood.core.plan import (
    CatchUp,
    ExportWrites,
    Plan,
    ReplayWrites,
    Role,
    Seen,
    Step,
    seen,
    started_beside,
    world_agrees,
)
from lastgood.core.record import StepFailed, StepSeen, StepStarted
from lastgood.core.report import Progress, RowProgress, TerminalState, progress_line, same_work
from lastgood.core.retention import capture_over
from lastgood.core.run import Apply, AwaitApproval, Finish, Observe, Stop, advance, began_serving_change, lapsed_hold
from lastgood.runbook.killpoint import killpoint
from lastgood.runbook.looking import Aside, patiently
from lastgood.runbook.rooms import Rooms

POLL_S: Final = 0.5
SLOW_S: Final = 1.0
"""Silence for longer looks like a hang: then it is said what is being done, and how long it may take."""
LOOK_S: Final = 1.0
"""How often it is looked how far a replay is."""
LOG_S: Final = 15.0
"""How often the log that is kept is looked at while a person is waited for."""
FRESH_S: Final = 10.0
"""How long a look at all that a plan needs is good for the step after it, too: while requests wait, each look is time
that users wait."""
NEXT_S: Final = 1.0
"""How long what the containers showed after a step is good for the step after it, which looks itself before it acts."""
APPROVAL_WAIT_S: Final = 12 * 3600.0
"""A run that nobody answers for half a day ends NEEDS_HUMAN; it never ends in an effect."""


def carry_out(
    rooms: Rooms,
    run: str,
    *,
    before: Callable[[Step], None] = lambda _step: None,
    ask: Callable[[RunHistory, Step], None] = lambda _run, _step: None,
) -> Finish | Stop:
    """Carry the run's plan on from where the journal says it is, to its end or to a stop. Needs the RUN lease.

    before: called before each attempt of a step. ask: called once when a person is needed.
    """
    with _Log(rooms) as log:
        return _carry_out(rooms, run, log, before=before, ask=ask)


def _carry_out(
    rooms: Rooms, run: str, log: _Log, *, before: Callable[[Step], None], ask: Callable[[RunHistory, Step], None]
) -> Finish | Stop:
    waiting_since: datetime | None = None
    agreed_at: datetime | None = None
    shown: Facts | None = None
    while True:
        history = rooms.memory.history().runs[run]
        plan = history.plan
        decided = advance(plan, history.records, rooms.clock.now())
        match decided:
            case Finish() as finish:
                return finish
            case Stop() as stop:
                return stop
            case AwaitApproval(step=step):
                agreed_at = None
                if waiting_since is None:
                    waiting_since = rooms.clock.now()
                    ask(history, step)
                elif (rooms.clock.now() - waiting_since).total_seconds() > APPROVAL_WAIT_S:
                    return Stop(terminal=TerminalState.NEEDS_HUMAN, step=step, reason="nobody approved or denied")
                elif over := log.too_large():
                    return Stop(terminal=_unfinished(history), step=step, reason=over, hint="lastgood rollback")
                rooms.clock.sleep(POLL_S)
            case Observe(step=step, delay_s=delay_s):
                rooms.clock.sleep(delay_s)
                shown = _note_seen(rooms, run, step, rooms.clock.now(), applied=False)
            case Apply(step=step, attempt=attempt, delay_s=delay_s):
                rooms.clock.sleep(delay_s)
                if (
                    attempt == 1
                    and _is_looked_at(plan, step)
                    and not is_fresh(agreed_at, rooms.clock.now(), for_s=FRESH_S)
                ):
                    agreed_at = rooms.clock.now()
                    if drift := _drift(rooms, history):
                        return Stop(
                            terminal=_unfinished(history),
                            step=step,
                            reason=_changed(drift).message,
                            hint=_changed(drift).hint,
                        )
                before(step)
                _hold_again(rooms, history, step)
                moved = began_serving_change(plan, history.records)
                shown = _apply(rooms, plan, step, attempt, moved=moved, shown=shown)
            case _:
                assert_never(decided)


def _unfinished(history: RunHistory) -> TerminalState:
    """How a run ends that may not go on: refused, as long as users could notice none of it."""
    changed = began_serving_change(history.plan, history.records)
    return TerminalState.NEEDS_HUMAN if changed else TerminalState.REFUSED


class _Log:
    """The server's log that is kept for a replay, looked at now and then while a person is waited for: half a day of it
    must not fill the disk of production."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms, self._looked_at = rooms, rooms.clock.now()
        self._server = Aside(rooms.database.observe) if rooms.database else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server:
            self._server.close()

    def too_large(self) -> str:
        """Say so when it is; empty while it is not, or nobody knows."""
        now, config = self._rooms.clock.now(), self._rooms.config.database
        if self._server is None or config is None or (now - self._looked_at).total_seconds() < LOG_S:
            return ""
        self._looked_at, facts = now, self._server.answer()
        if not isinstance(facts, DatabaseFacts):
            return ""
        return capture_over(facts, limit_bytes=config.restore_points.capture_limit, until=None, now=now)


def _is_looked_at(plan: Plan, step: Step) -> bool:
    """Whether all that the plan needs is looked at before this step: its first one, and what a person answered for."""
    return step is next(iter(plan.steps), None) or step.needs_approval


def is_fresh(looked_at: datetime | None, now: datetime, *, for_s: float) -> bool:
    """Whether a look is good still. One from the future, after a clock that was set back, is of nobody knows when."""
    return looked_at is not None and 0.0 <= (now - looked_at).total_seconds() < for_s


def _drift(rooms: Rooms, history: RunHistory) -> tuple[str, ...]:
    """Return in which way the world is not what the plan was made for.

    The frontend has no say: its host may be away, and the rest goes back all the same.
    """
    roles = {s.role for s in history.plan.steps} - {Role.FRONTEND}
    try:
        facts = {role: patiently(rooms.clock, rooms.target(role).observe) for role in roles}
    except (Refused, Retryable, OutcomeUnknown) as error:
        return (f"could not look: {error.message}",)
    return world_agrees(history.plan, facts)


def _hold_again(rooms: Rooms, history: RunHistory, step: Step) -> None:
    """Let requests wait again where a step of the database relies on that and the time of the hold has run out."""
    if step.role is Role.DATABASE and (found := lapsed_hold(history.plan, history.records, step, rooms.clock.now())):
        _apply(rooms, history.plan, *found, moved=True, shown=None)


def _changed(drift: tuple[str, ...]) -> Refused:
    return Refused(f"the world changed since the plan was made: {'; '.join(drift)}", hint="lastgood plan")


def _apply(rooms: Rooms, plan: Plan, step: Step, attempt: int, *, moved: bool, shown: Facts | None) -> Facts | None:
    """Take one step, and look what came of it; return that, None where nobody looked.

    moved: whether users could notice a step of the plan already. Until then nobody's container is stopped unasked; from
    then on going through with it is better than half of it. shown: what was seen last.
    """
    run = plan.id
    killpoint("before-intent", step.name)
    began = rooms.clock.now()
    rooms.memory.note(StepStarted(run=run, step=step.name, attempt=attempt))
    killpoint("after-intent", step.name)
    said, done = "", None
    try:
        target = rooms.target(step.role)
        with ExitStack() as working:
            over = Event()
            working.enter_context(rooms.if_slow(SLOW_S, lambda: _follow(rooms, step, over)))
            working.callback(over.set)
            # the target of the database looks itself before it acts, and requests may be waiting
            done = None if step.role is Role.DATABASE else _done_already(rooms, plan, step, moved=moved, shown=shown)
            if done is None:
                target.apply(step)
    except (ConfigError, Refused, NeedsHuman) as error:
        _note_failed(rooms, run, step, error, again=False, needs_human=isinstance(error, NeedsHuman))
        return None
    except Retryable as error:
        # a host that asks for an hour of patience is not there for this step
        again = error.delay_s <= step.deadline_s
        _note_failed(rooms, run, step, error, again=again, delay_s=error.delay_s if again else 0.0)
        return None
    except OutcomeUnknown as error:
        said = error.message
        rooms.story(f"  {step.name}: {said}; looking")
    killpoint("after-act", step.name)
    shown = _note_seen(rooms, run, step, began, applied=True, said=said, shown=done)
    killpoint("after-seen", step.name)
    return shown


def _done_already(rooms: Rooms, plan: Plan, step: Step, *, moved: bool, shown: Facts | None) -> Facts | None:
    """Return what the target shows where the step is done already, None where it is to be taken. Raises Refused when
    the plan was not made for what the containers show."""
    target = rooms.target(step.role)
    if step.role is not Role.CONTAINERS:
        facts = target.observe()
    elif isinstance(shown, ContainerFacts) and is_fresh(shown.observed_at, rooms.clock.now(), for_s=NEXT_S):
        facts = shown
    else:
        # an engine that was killed is back in seconds; how long a host may be away is the step's own affair
        facts = patiently(rooms.clock, target.observe)
    if seen(step, facts) is Seen.DONE:
        return facts
    if isinstance(facts, ContainerFacts):
        drift = world_agrees(plan, {step.role: facts})
        if drift := drift if moved else (*drift, *started_beside(plan, facts)):
            raise _changed(drift)
    return None


def _follow(rooms: Rooms, step: Step, over: Event) -> None:
    """Say what takes long, and of a replay, until it is over, how far it is."""
    rooms.story(f"  {step.explain} ... (at most {step.deadline_s:,.0f} s)")
    began: tuple[datetime, Progress | RowProgress] | None = None
    while isinstance(step.action, CatchUp | ExportWrites | ReplayWrites) and not over.wait(LOOK_S):
        now = rooms.database.progress() if rooms.database else None
        if now is not None:
            if began is None or not same_work(began[1], now):
                began = (rooms.clock.now(), now)
            took_s = (rooms.clock.now() - began[0]).total_seconds()
            rooms.update(f"  {progress_line(began[1], now, took_s=took_s)}")


def _note_seen(
    rooms: Rooms,
    run: str,
    step: Step,
    began: datetime,
    *,
    applied: bool,
    said: str = "",
    shown: Facts | None = None,
) -> Facts | None:
    """Look, and journal what was seen; return that, None where nobody could look. said: what the target answered when
    it was asked to act, kept as the reason where the step is not seen done. shown: where it was looked at just now."""
    try:
        shown = shown or rooms.target(step.role).observe()
        state = seen(step, shown)
        note = "" if state is Seen.DONE else said
    except (Refused, Retryable, OutcomeUnknown) as error:
        # refused, too: a token that expired in the middle leaves the step unclear, it does not undo it
        state, note, shown = Seen.UNKNOWN, error.message, None
    elapsed_s = (rooms.clock.now() - began).total_seconds()
    rooms.memory.note(StepSeen(run=run, step=step.name, seen=state, elapsed_s=elapsed_s, note=note, applied=applied))
    rooms.story(f"  {step.explain}  {state.value}, {elapsed_s:.1f} s" + (f"  ({note})" if note else ""))
    return shown


def _note_failed(
    rooms: Rooms,
    run: str,
    step: Step,
    error: LastgoodError,
    *,
    again: bool,
    delay_s: float = 0.0,
    needs_human: bool = False,
) -> None:
    rooms.memory.note(
        StepFailed(
            run=run,
            step=step.name,
            reason=error.message,
            again=again,
            delay_s=delay_s,
            hint=error.hint,
            needs_human=needs_human,
        )
    )
    rooms.story(f"  {step.explain}  failed: {error.message}")
