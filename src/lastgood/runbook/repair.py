"""Invalid rows are put right when a person has seen each of them: the old value, the new one, and where that is from.

The transaction is noted before it is committed, with the values that were there: where the answer is lost, or the
process dies, the server is asked what became of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace

from lastgood.core.errors import Refused
from lastgood.core.history import History
from lastgood.core.ports import Database
from lastgood.core.record import RowsRepaired
from lastgood.core.release import RestorePoint
from lastgood.core.repair import RepairPlan, RepairState
from lastgood.runbook.rollback import WENT_BACK
from lastgood.runbook.rooms import Rooms


def look(rooms: Rooms, since: str | None) -> RepairPlan:
    """Compare the invalid rows with a restore point: the named one, else that from before the deployment that went
    back last. Changes nothing. Raises Refused when there is none, or it is not what was proved."""
    return _database(rooms).repairs(since=_restore_point(rooms.memory.history(), since))


def repair(rooms: Rooms, since: str | None, *, agreed: Callable[[RepairPlan], bool]) -> RowsRepaired | None:
    """Put right what can be, once a person agreed to it; return what was done, None when there was nothing to do.

    agreed: is shown the plan that will be carried out, and says whether it is. Raises Refused, nothing changed, when
    nobody agreed, a run or a watch is under way, or a row is not as it was shown; OutcomeUnknown when the answer was
    lost: the same command looks first.
    """
    database = _database(rooms)
    with rooms.memory.journal.claim(rooms.who):
        history = rooms.memory.history()
        if (run := history.open_run) is not None:
            raise Refused(f"run {run.started.run} is not over", hint="lastgood status")
        if (under := history.open_deployment) is not None:
            # what breaks rows may still serve, and a rollback would take back what was put right
            raise Refused(f"{under.deployment.release} is watched: not before that is over", hint="lastgood status")
        _settle(rooms, database)
        plan = look(rooms, since)
        if not agreed(plan):
            raise Refused("nobody said yes, and nothing changed", hint="lastgood repair --yes")
        if not plan.rows:
            return None
        name = _new_id(history)
        noted: list[RowsRepaired] = []

        def about_to_commit(xid: int) -> None:
            noted.append(RowsRepaired(repair=name, plan=plan, state=RepairState.UNKNOWN, xid=xid, by=rooms.who))
            rooms.memory.note(noted[0])

        database.repair(plan.rows, about_to_commit=about_to_commit)
        done = replace(noted[0], state=RepairState.DONE)
        rooms.memory.note(done)
    return done


def _settle(rooms: Rooms, database: Database) -> None:
    """Look what became of a repair whose end nobody saw."""
    for known in rooms.memory.history().repairs.values():
        if known.state is RepairState.UNKNOWN and (committed := database.is_committed(known.xid)) is not None:
            state = RepairState.DONE if committed else RepairState.NOTHING
            rooms.memory.note(replace(known, state=state))
            rooms.story(f"repair {known.repair}, whose end nobody saw: {state.value}")


def _restore_point(history: History, name: str | None) -> RestorePoint:
    if name is not None:
        if (named := history.restore_points.get(name)) is None:
            known = ", ".join(history.restore_points) or "none"
            raise Refused(f"restore point {name!r} not found; known: {known}", hint="lastgood restore-points list")
        return named
    newest_first = list(reversed(history.deployments.values()))
    went_back = [d for d in newest_first if d.ended is not None and d.ended.terminal in WENT_BACK]
    for under in (*went_back, *newest_first):
        if (point := history.restore_point_of(under.deployment.id)) is not None:
            return point
    raise Refused("there is no restore point to compare with", hint="lastgood restore-points list")


def _new_id(history: History) -> str:
    while (made := secrets.token_hex(3)) in history.repairs or made in history.runs:
        pass
    return made


def _database(rooms: Rooms) -> Database:
    if rooms.database is None:
        raise Refused("no database is configured, so there are no rows to put right", hint="lastgood doctor")
    return rooms.database
