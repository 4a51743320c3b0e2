"""The restore points as a person asks for them: which are there, and whether they are still what was proved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lastgood.core.errors import Refused
from lastgood.core.plan import why_no_way_back
from lastgood.core.ports import Database
from lastgood.core.release import RestorePoint
from lastgood.runbook.rooms import Rooms


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A restore point of the journal. kept: whether anything of it is there still; why_not: why the database could not
    go back to it now, empty when it could. captured: whether every transaction since it can be replayed."""

    restore_point: RestorePoint
    kept: bool
    why_not: str
    captured: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A restore point that was read whole. wrong: what is not as it was proved, empty when all is."""

    restore_point: RestorePoint
    wrong: str


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
        )
        for point in known
        if facts
    )


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


def database_of(rooms: Rooms) -> Database:
    """Return the database. Raises Refused when none is configured."""
    if rooms.database is None:
        raise Refused("no database is configured, so there are no restore points", hint="lastgood doctor")
    return rooms.database
