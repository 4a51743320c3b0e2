"""What a person asks for: go back now, or let deploys through again. Who asks second follows the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from lastgood.core.errors import LastgoodError, Refused
from lastgood.core.history import RunHistory
from lastgood.core.plan import Plan, Purpose, Role
from lastgood.core.record import ApprovalGiven, Frozen, Unfrozen
from lastgood.core.report import Report
from lastgood.core.run import began_what_was_asked
from lastgood.runbook.given_up import give_up, keep_restore_points, pass_over
from lastgood.runbook.ground import Ground
from lastgood.runbook.rollback import (
    BY_LASTGOOD,
    BY_PERSON,
    COMPENSATION,
    Cause,
    Proposal,
    begin,
    choose_target,
    left_by,
    passed_over,
    propose,
    take_up,
)
from lastgood.runbook.rooms import Rooms

POLL_S: Final = 0.5


def go_back(
    rooms: Rooms,
    *,
    target: str | None = None,
    only: frozenset[Role] = frozenset(Role),
    why: str = "",
    confirm: Callable[[Plan], bool] = lambda _plan: True,
    yes: bool = False,
) -> Report:
    """Roll back; or follow the rollback that another process carries out, or finish the one that a process left.

    confirm: is shown the plan and says whether to go on; without yes it is asked while nobody has the right to run, and
    the plan that was shown is refused where it is no longer true after that. yes: approves the one that is under way
    where it waits for a person only because none had asked for it; a database step is never approved so. Raises
    Refused, nothing changed, when confirm says no, when there is nothing to go back to, or when another process does
    something else.
    """
    run = rooms.memory.history().open_run
    holder = rooms.memory.journal.holder()
    if run is not None and yes and _is_asked_for(run, target, only):
        approve(rooms, run, why)
        rooms.story(f"approved {run.started.run} (plan {run.plan.hash[:12]}), valid for ten minutes")
    if run is not None and run.plan.purpose is Purpose.ROLLBACK and holder:
        rooms.story(f"rollback {run.started.run} is under way by {holder}; following it")
        return follow(rooms, run.started.run)
    with rooms.memory.journal.claim(rooms.who):
        begun_by = run.started.by if run is not None and run.started.trigger == COMPENSATION else BY_LASTGOOD
        if (report := take_up(rooms)) is not None:
            return report
        if run is not None and begun_by != BY_LASTGOOD:
            raise Refused(
                f"{run.started.run}, which {begun_by} began, was carried on, and nothing else done",
                hint="lastgood status",
            )
        if (left := rooms.memory.history().open_run) is not None:
            keep_restore_points(rooms, left.plan)

        if yes:  # nobody is waited for
            return _begin(rooms, *_agreed(rooms, target, only, why, confirm), only)
    # a question may stay open for long, and what serves may turn bad meanwhile
    ground = Ground.of(rooms.memory.history())
    agreed = _agreed(rooms, target, only, why, confirm)
    _check_stands(rooms, ground)
    with rooms.memory.journal.claim(rooms.who):
        _check_stands(rooms, ground)
        return _begin(rooms, *agreed, only)


def _agreed(
    rooms: Rooms, target: str | None, only: frozenset[Role], why: str, confirm: Callable[[Plan], bool]
) -> tuple[Cause, Proposal]:
    """What a person asks for, planned, shown and agreed to. Raises Refused, nothing changed, when it was not."""
    history = rooms.memory.history()
    under = left_by(history, choose_target(history, target).release.id)
    cause = Cause(
        trigger=BY_PERSON,
        sentence=why or f"{rooms.who} asked for it",
        by=rooms.who,
        deployment=under.deployment.id if under else "",
    )
    return cause, propose(rooms, cause, target=target, only=only, agreed=confirm)


def _check_stands(rooms: Rooms, ground: Ground) -> None:
    if lost := ground.lost(rooms.memory.history()):
        raise Refused(f"this rollback was not begun: {lost}", hint="lastgood status")


def _begin(rooms: Rooms, cause: Cause, proposal: Proposal, only: frozenset[Role]) -> Report:
    """Needs the RUN lease."""
    why, over = f"given up by {rooms.who}", passed_over(rooms.memory.history(), proposal.plan.to_release)
    if over is not None and Role.CONTAINERS in only:
        pass_over(rooms, over.deployment.id, why)
    else:
        give_up(rooms, why)
    return begin(rooms, cause, proposal)


def _is_asked_for(run: RunHistory, target: str | None, only: frozenset[Role]) -> bool:
    """Whether an open run does what a person asks for, waits for their yes and for nobody else's."""
    plan = run.plan
    same = target in (None, plan.to_release) and only.issuperset(plan.scope)
    database = any(step.role is Role.DATABASE for step in plan.steps)
    return same and run.started.asks_itself and not database and not began_what_was_asked(plan, run.records)


def approve(rooms: Rooms, run: RunHistory, why: str) -> None:
    """Say yes to the plan of an open run, for ten minutes."""
    rooms.memory.note(ApprovalGiven(run=run.started.run, plan_hash=run.plan.hash, by=rooms.who, why=why))


def follow(rooms: Rooms, run: str) -> Report:
    """Wait for another process's run to end. Raises Refused when that process dies first."""
    while True:
        holder = rooms.memory.journal.holder()  # before the journal: it may end in between
        known = rooms.memory.history().runs[run]
        if known.ended and known.ended.report:
            return known.ended.report
        if holder is None:
            raise Refused(f"run {run} was left by its process", hint="lastgood rollback")
        rooms.clock.sleep(POLL_S)


def freeze(rooms: Rooms, why: str) -> None:
    """Refuse deploys until a person lifts it."""
    rooms.memory.note(Frozen(by=rooms.who, why=why or "no reason given"))


def unfreeze(rooms: Rooms, why: str) -> tuple[str, ...]:
    """Let deploys through again, and pushes go live where a rollback turned that off. Returns what is so now, one line
    each.

    A frontend host that does not answer holds no deploy up. Raises Refused, nothing changed, without a reason.
    """
    if not why.strip():
        raise Refused("lifting the freeze needs a reason", hint="lastgood unfreeze -m 'why it is safe'")
    rooms.memory.note(Unfrozen(by=rooms.who, why=why))
    return ("deploys are allowed again", *_let_pushes_go_live(rooms))


def _let_pushes_go_live(rooms: Rooms) -> tuple[str, ...]:
    if rooms.frontend is None:
        return ()
    try:
        if rooms.frontend.observe().auto_assign:
            return ()
        rooms.frontend.resume_auto_assign()
    except LastgoodError as error:
        return (f"frontend: whether pushes go live is not known ({error.message}); again: lastgood unfreeze",)
    return ("frontend: pushes go live again",)
