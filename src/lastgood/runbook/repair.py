"""Invalid rows are put right when a person has seen each of them: the old value, the new one, and where that is from.

The transaction is noted before it is committed, with the values that were there: where the answer is lost, or the
process dies, the server is asked what became of it. Nobody else is kept waiting while a person reads.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator
from contextlib import contextmanager

from lastgood.core.errors import Refused
from lastgood.core.history import History, RepairHistory
from lastgood.core.plan import Purpose
from lastgood.core.ports import Database
from lastgood.core.record import RepairBegun, RepairSeen
from lastgood.core.release import RestorePoint
from lastgood.core.repair import RepairPlan, RepairState
from lastgood.runbook.rollback import COMPENSATION, WENT_BACK, restore_point_before
from lastgood.runbook.rooms import Rooms


def look(rooms: Rooms, since: str | None = None) -> RepairPlan:
    """Compare the invalid rows with a restore point: the named one, else that with which the newest rollback compared.

    Writes nothing but what became of a repair whose end nobody saw. Raises Refused when there is nothing to compare
    with, or a run or a watch is under way.
    """
    with _alone(rooms) as database:
        return database.repairs(since=_restore_point(rooms.memory.history(), since))


def repair(rooms: Rooms, plan: RepairPlan) -> RepairHistory:
    """Put right what a person agreed to.

    Raises Refused, nothing changed, when a run or a watch is under way, or a row is not as it was shown; OutcomeUnknown
    when the answer was lost: the next look tells what became of it.
    """
    with _alone(rooms) as database:
        name = _new_id(rooms.memory.history())

        def about_to_commit(xid: int) -> None:
            rooms.memory.note(RepairBegun(repair=name, plan=plan, xid=xid, by=rooms.who))
            rooms.story(f"  repair {name}: transaction {xid}")

        database.repair(plan.rows, about_to_commit=about_to_commit)
        rooms.memory.note(RepairSeen(repair=name, state=RepairState.DONE))
        return rooms.memory.history().repairs[name]


@contextmanager
def _alone(rooms: Rooms) -> Generator[Database]:
    """Lend the database while nobody else works on it, and nothing that may break rows is watched."""
    if rooms.database is None:
        raise Refused("no database is configured, so there are no rows to put right", hint="lastgood doctor")
    with rooms.memory.journal.claim(rooms.who):
        history = rooms.memory.history()
        if (run := history.open_run) is not None:
            raise Refused(f"run {run.started.run} is not over", hint="lastgood status")
        if (under := history.open_deployment) is not None:
            # what breaks rows may still serve, and a rollback would take back what was put right
            raise Refused(f"{under.deployment.release} is watched: not before that is over", hint="lastgood status")
        for known in history.repairs.values():
            if known.state is RepairState.UNKNOWN:
                _settle(rooms, rooms.database, known)
        yield rooms.database


def _settle(rooms: Rooms, database: Database, known: RepairHistory) -> None:
    """Look what became of a repair whose end nobody saw. Where that cannot be told it stays unknown: a row that was not
    put right is found again, and one that was is not."""
    begun = known.begun
    try:
        committed = database.is_committed(begun.xid)
    except Refused as error:
        rooms.story(f"what became of repair {begun.repair} cannot be told: {error.message}")
        return
    if committed is not None:
        state = RepairState.DONE if committed else RepairState.NOTHING
        rooms.memory.note(RepairSeen(repair=begun.repair, state=state))
        rooms.story(f"repair {begun.repair}, whose end nobody saw: {state.value}")


def _restore_point(history: History, name: str | None) -> RestorePoint:
    if name is not None:
        if (named := history.restore_points.get(name)) is None:
            known = ", ".join(history.restore_points) or "none"
            raise Refused(f"restore point {name!r} not found; known: {known}", hint="lastgood restore-points list")
        if named.own:
            raise Refused(
                f"{name} is a dump of your own, which does not tell which table is which",
                hint="lastgood restore-points list",
            )
        return named
    went_back = [
        run
        for run in reversed(history.runs.values())
        if run.plan.purpose is Purpose.ROLLBACK
        and run.started.trigger != COMPENSATION
        and run.ended is not None
        and run.ended.terminal in WENT_BACK
    ]
    if went_back:
        point = restore_point_before(history, went_back[0].plan.to_release, at=went_back[0].record.at)
    else:
        point = restore_point_before(history, "")
    if point is None:
        raise Refused("there is no restore point to compare with", hint="lastgood restore-points list")
    return point


def _new_id(history: History) -> str:
    while (made := secrets.token_hex(3)) in history.repairs or made in history.runs:
        pass
    return made
