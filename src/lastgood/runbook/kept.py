"""The databases that a swap replaced: which are kept, and that a person lets one go."""

from __future__ import annotations

from lastgood.core.errors import Refused
from lastgood.core.facts import KeptDatabase
from lastgood.core.plan import ReplayWrites
from lastgood.core.ports import Database
from lastgood.core.quarantine import EntryState
from lastgood.core.record import DatabaseReleased
from lastgood.runbook import quarantine
from lastgood.runbook.rooms import Rooms


def look(rooms: Rooms) -> tuple[KeptDatabase, ...]:
    """Return those that are there, oldest first. Changes nothing."""
    return _database(rooms).kept()


def find(rooms: Rooms, name: str) -> KeptDatabase:
    """Return a kept database that may be let go. Changes nothing.

    Raises Refused when it is none, a run is under way, or something that was written to it waits in the quarantine:
    only that database tells what its names were.
    """
    if (run := rooms.memory.history().open_run) is not None:
        raise Refused(f"run {run.started.run} is not over", hint="lastgood status")
    there = look(rooms)
    found = next((one for one in there if one.name == name), None)
    if found is None:
        known = ", ".join(one.name for one in there) or "none"
        raise Refused(f"{name!r} is no database that a swap keeps; kept: {known}", hint="lastgood kept list")
    if waiting := _waiting(rooms, name):
        raise Refused(f"{waiting} entries of the quarantine are from {name}, and wait", hint="lastgood quarantine list")
    return found


def release(rooms: Rooms, name: str) -> None:
    """Drop it, for good. Raises as `find` does, nothing changed, and when another process holds the right to act."""
    with rooms.memory.journal.claim(rooms.who):
        found = find(rooms, name)
        rooms.memory.note(DatabaseReleased(database=found.name, by=rooms.who))
        _database(rooms).release(found.name, deadline_s=rooms.deadlines.database_s)


def _waiting(rooms: Rooms, name: str) -> int:
    replays = {
        step.action.replay
        for run in rooms.memory.history().runs.values()
        for step in run.plan.steps
        if isinstance(step.action, ReplayWrites) and step.action.kept_as == name
    }
    return sum(
        one.entry.replay in replays and one.decision.state in (EntryState.WAITING, EntryState.UNKNOWN)
        for one in quarantine.look(rooms)
    )


def _database(rooms: Rooms) -> Database:
    if rooms.database is None:
        raise Refused("no database is configured, so none is kept", hint="lastgood doctor")
    return rooms.database
