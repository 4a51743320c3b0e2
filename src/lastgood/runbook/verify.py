"""Verification after a rollback: checks that say yes or no, each named in the report. Nothing is concluded from
silence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from lastgood.core.deploying import left_as_found, never_touched
from lastgood.core.errors import LastgoodError
from lastgood.core.history import ReleaseHistory
from lastgood.core.plan import MigrateDown, Plan, ReturnFrontend, Role, SwapDatabase
from lastgood.core.ports import Database
from lastgood.core.release import RestorePoint
from lastgood.core.report import Check
from lastgood.runbook.rooms import Rooms

TRIES: Final = 3
PAUSE_S: Final = 2.0
"""A pool that reconnects after a switch needs a moment; three tries two seconds apart, then it is a failure."""


def verify(rooms: Rooms, plan: Plan, target: ReleaseHistory, restore_point: RestorePoint | None) -> tuple[Check, ...]:
    """Run every configured check of the plan's scope against `target`; a group that fails is tried three times in
    all."""
    groups: list[tuple[str, Callable[[], tuple[Check, ...]]]] = []
    if Role.CONTAINERS in plan.scope:
        found = left_as_found(plan)
        groups.append(("containers", lambda: rooms.containers.checks(target.release, found=found)))
        if plan.stateful:
            groups.append(("containers", lambda: (never_touched(plan, rooms.containers.observe()),)))
    database, replaced = rooms.database, _replaced(plan)
    if database is not None and {Role.CONTAINERS, Role.DATABASE} & set(plan.scope):
        went_back = replaced or any(isinstance(s.action, MigrateDown) for s in plan.steps)
        fingerprint = restore_point.fingerprint if went_back and restore_point else ""
        groups.append(("database", partial(database.checks, fingerprint)))
    if (frontend := rooms.frontend) is not None and Role.FRONTEND in plan.scope:
        returned = next(
            (s.action.deployment for s in plan.steps if isinstance(s.action, ReturnFrontend)), target.frontend
        )
        if returned:
            groups.append(("frontend", lambda: frontend.checks(returned)))
    if Role.CONTAINERS in plan.scope:
        groups += [(type(checker).__name__, partial(checker.run, target.names)) for checker in rooms.checkers]
    if database is not None and replaced:
        # last: by now the smoke tests have given every service something to do
        groups.append(("database clients", partial(_who, database, replaced)))
    checks: list[Check] = []
    for name, look in groups:
        checks += _tried(rooms, name, look)
    for check in checks:
        rooms.story(f"  {check.answer:<6}  {check.name}" + (f"  {check.told}" if check.told else ""))
    return tuple(checks)


def _who(database: Database, replaced: str) -> tuple[Check, ...]:
    return (database.clients(replaced),)


def _replaced(plan: Plan) -> str:
    """What the replaced database is called, empty where none is."""
    return next((s.action.kept_as for s in plan.steps if isinstance(s.action, SwapDatabase)), "")


def _tried(rooms: Rooms, name: str, look: Callable[[], tuple[Check, ...]]) -> tuple[Check, ...]:
    found: tuple[Check, ...] = ()
    for attempt in range(TRIES):
        if attempt:
            rooms.clock.sleep(PAUSE_S)
        try:
            found = look()
        except LastgoodError as error:
            found = (Check(name=name, passed=False, detail=f"could not look: {error.message}"),)
        if all(check.passed for check in found):
            break
    return found
