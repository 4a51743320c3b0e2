"""The restore points as a person asks for them: which are there, whether they are still what was proved, and an own
dump among them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lastgood.core.deploying import pause
from lastgood.core.errors import Refused
from lastgood.core.facts import DatabaseFacts
from lastgood.core.history import History
from lastgood.core.plan import Pause, why_no_way_back, why_restored_first
from lastgood.core.ports import Database
from lastgood.core.record import RestorePointKept
from lastgood.core.release import LogPoint, RestorePoint
from lastgood.runbook.rooms import Rooms


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A restore point of the journal. kept: whether anything of it is there still; why_not: why the database could not
    go back to it now, empty when it could; first: why its dump would be restored beside before that. captured: whether
    every transaction since it can be replayed."""

    restore_point: RestorePoint
    kept: bool
    why_not: str
    captured: bool
    first: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A restore point that was read whole. wrong: what is not as it was proved, empty when all is."""

    restore_point: RestorePoint
    wrong: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """An own dump that is a restore point now, or was one already. fits: the good release that left its schema, empty
    where none has recorded one."""

    restore_point: RestorePoint
    new: bool
    fits: str


def look(rooms: Rooms) -> tuple[Listed, ...]:
    """Return the restore points of the journal, oldest first, and what is so of each, as far as a quick look tells.
    Changes nothing."""
    known = tuple(rooms.memory.history().restore_points.values())
    facts = database_of(rooms).observe() if known else None
    there = dict(facts.manifests) if facts else {}
    return tuple(
        Listed(
            restore_point=point,
            kept=point.id in there or point.clone in facts.databases,
            why_not=why_no_way_back(point, facts),
            captured=point.id in facts.captures,
            first=why_restored_first(point, facts),
        )
        for point in known
        if facts
    )


def next_pause(rooms: Rooms, history: History, facts: DatabaseFacts) -> Pause | None:
    """Say for how long a restore point that is taken now keeps everybody out of the database, or why it need not; None
    where no pause is allowed. Changes nothing."""
    allowed_s = rooms.config.database.restore_points.allow_pause if rooms.config.database else None
    if allowed_s is None:
        return None
    return pause(allowed_s, history, facts.size_bytes, in_the_way=database_of(rooms).not_copied_because())


def check(rooms: Rooms, name: str | None) -> Iterator[Checked]:
    """Read restore points whole, dump and clone, and compare them with the journal: the named one, by default each of
    which anything is there. Changes nothing. Raises Refused when there is none of that name."""
    listed = look(rooms)
    if name is not None and name not in {one.restore_point.id for one in listed}:
        known = ", ".join(one.restore_point.id for one in listed) or "none"
        raise Refused(f"restore point {name!r} not found; known: {known}", hint="lastgood restore-points list")
    for one in listed:
        if one.restore_point.id == name or (name is None and one.kept):
            yield Checked(restore_point=one.restore_point, wrong=_wrong(rooms, one.restore_point))


def _wrong(rooms: Rooms, point: RestorePoint) -> str:
    deadline_s = rooms.deadlines.database_s
    try:
        with rooms.if_slow(2.0, lambda: rooms.story(f"  reading {point.id} whole ... (at most {deadline_s:,.0f} s)")):
            database_of(rooms).prove(point, deadline_s=deadline_s)
    except Refused as error:
        return error.message
    return ""


def add(rooms: Rooms, dump: Path, *, name: str | None, taken_at: datetime | None) -> Added:
    """Make an operator's own dump a restore point. Needs the RUN lease.

    It must have the schema that a good release left to which a rollback would go, where that is recorded. Raises
    Refused, nothing changed, when it is not whole, not of this database, or not of that schema.
    """
    deadline_s = rooms.deadlines.database_s

    def register(database: Database, expected: Mapping[str, str], known: Collection[RestorePoint]) -> RestorePoint:
        if missing := database.preflight():
            raise Refused(f"no restore point could be made: {'; '.join(missing)}", hint="lastgood doctor")
        rooms.story(f"copying {dump}, restoring it beside and proving it (at most {deadline_s:,.0f} s)")
        return database.register(
            dump, name=name, taken_at=taken_at, expected=expected, known=known, deadline_s=deadline_s
        )

    return _added(rooms, register)


def recover(rooms: Rooms, *, to: str | None, at: datetime | None) -> Added:
    """Have pgBackRest bring the database back beside, and make that a restore point. Needs the RUN lease.

    to: restore point whose place in the server's log is meant, by default the newest that has one; at: a moment
    instead. What a catastrophe left is not asked whether a deploy could begin on it. Raises Refused as `add` does, and
    where pgBackRest cannot bring that back.
    """
    place, deadline_s = _place(rooms, to) if at is None else LogPoint(at=at), rooms.deadlines.database_s

    def recovered(database: Database, expected: Mapping[str, str], known: Collection[RestorePoint]) -> RestorePoint:
        rooms.story(f"recovering the database of {place.at:%Y-%m-%d %H:%M:%S} UTC (at most {deadline_s:,.0f} s)")
        return database.recover(
            place,
            expected=expected,
            known=known,
            deadline_s=deadline_s,
            progress=lambda line: rooms.story(f"  {line}"),
        )

    return _added(rooms, recovered)


def _place(rooms: Rooms, name: str | None) -> LogPoint:
    """The place in the server's log of a restore point that was taken at a deploy."""
    points = rooms.memory.history().restore_points.values()
    places = {point.id: point.log for point in points if point.log and point.own is None}
    if not places:
        raise Refused(
            "no restore point has a place in the server's log: each deploy notes one where pgBackRest is configured",
            hint="lastgood restore-points recover --at TIME",
        )
    chosen = name or next(reversed(places))
    if chosen not in places:
        raise Refused(
            f"restore point {chosen!r} has no place in the server's log; known: {', '.join(places)}",
            hint="lastgood restore-points list",
        )
    return places[chosen]


def _added(
    rooms: Rooms, kept_by: Callable[[Database, Mapping[str, str], Collection[RestorePoint]], RestorePoint]
) -> Added:
    """Journal what a database keeps as a restore point, where nothing speaks against it."""
    database, history = database_of(rooms), rooms.memory.history()
    if (run := history.open_run) is not None:
        raise Refused(f"{run.plan.purpose.value} {run.started.run} did not finish", hint="lastgood rollback")
    expected = {known.release.id: known.fingerprint for known in history.goes_back_to() if known.fingerprint}
    kept = kept_by(database, expected, tuple(history.restore_points.values()))
    new = history.restore_points.get(kept.id) != kept
    if new:
        rooms.memory.note(RestorePointKept(restore_point=kept))
    fits = next((release for release, schema in expected.items() if schema == kept.fingerprint), "")
    return Added(restore_point=kept, new=new, fits=fits)


def database_of(rooms: Rooms) -> Database:
    """Return the database. Raises Refused when none is configured."""
    if rooms.database is None:
        raise Refused("no database is configured, so there are no restore points", hint="lastgood doctor")
    return rooms.database
