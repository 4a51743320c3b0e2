"""Which transactions are the migration's: told by the sessions that wrote them, and noted as soon as it is over.

A session is the migration's when it calls itself as the migration command is told to, when it wrote to the history of
the migrations, or when it began after the command did and changed the schema and rows in one transaction. Whatever such
a session wrote is the migration's, also in a transaction that changed no schema; what another one wrote is the
application's, also beside a change of the schema. Where the sessions are not known, the catalogs tell who changed the
schema, and it is said that only they did (docs/replay.md).

The note is a file for each restore point, made with it and empty at first: one that is missing says that nothing is
known, and not that there was no migration. It is begun before the command is run, so that one which was cut off is
seen. As long as it is open and nothing was read from the slot, the marks in the log can still be read.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psycopg
from pydantic import TypeAdapter

from lastgood.targets.postgres import catalog, marks, restore_point, shelf
from lastgood.targets.postgres.connect import Connection, one
from lastgood.targets.postgres.writes import catalog_xids

COMMAND: Final = "migration-by-lastgood"
"""What the migration command is told to call its sessions (PGAPPNAME). Not as lastgood's own sessions begin: what those
provoke in the server's log is nobody's failure."""
FOLDER: Final = "noted"
"""Folder beside the restore points."""
_HINT: Final = "lastgood doctor"
_BY_CATALOGS: Final = (
    "the migration's transactions are told by the catalogs alone ({}): a step of it that changed no schema counts as "
    "the application's, and what the application wrote beside a change of the schema as the migration's"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """What is known of the migrations since a restore point, until the next one. since: its snapshot.

    began: snapshot of when the command was run that is the newest, empty where none was; began_at: the same, seconds
    since 1970 by the server's clock. open: nobody has looked since that one began. xids: the migration's transactions,
    as xmin shows them. doubts: why that may not be all of it, or too much, one sentence each.
    """

    since: str
    began: str = ""
    began_at: float = 0.0
    open: bool = False
    xids: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


NOTED: Final = TypeAdapter(Noted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The migration's transactions, as xmin shows them. doubts: as of `Noted`. by_steps: whether a step brought every
    change of the schema, as far as is known."""

    xids: tuple[str, ...]
    doubts: tuple[str, ...] = ()
    by_steps: bool = True


@dataclass(frozen=True, slots=True)
class Migrations:
    """Those of the live database. points: folder of the restore points."""

    points: Path

    def none(self, kept: shelf.KeptPoint) -> None:
        """Write down that no migration command was run since a restore point that was taken just now. Notes of restore
        points that are gone go."""
        for gone in shelf.names(self.points / FOLDER) - shelf.names(self.points):
            (self.points / FOLDER / f"{gone}.json").unlink(missing_ok=True)
        self._write(kept, Noted(since=kept.point.snapshot))

    def begin(self, live: Connection, kept: shelf.KeptPoint) -> None:
        """Write down that a migration command is about to be run. One that is run again goes on."""
        marks.say_numbers(live, said=True)
        before = self._read(kept)
        if before is not None and before.open:
            return
        self._write(
            kept,
            Noted(
                since=kept.point.snapshot,
                began=one(live, "SELECT pg_current_snapshot()::text"),
                began_at=float(one(live, "SELECT extract(epoch FROM clock_timestamp())::text")),
                open=True,
                xids=before.xids if before else (),
                doubts=before.doubts if before else (),
            ),
        )

    def end(self, live: Connection, kept: shelf.KeptPoint, *, at_once: bool) -> None:
        """Look at what is open, and write down what the migration's transactions are: before anything is read from the
        slot. Nothing that was committed later is the migration's. Safe to repeat. at_once: the command is over only
        now."""
        noted = self._read(kept)
        if noted is not None and noted.open:
            self._write(kept, replace(_looked(live, kept, noted, at_once=at_once), open=False))
            marks.say_numbers(live, said=False)

    def since(self, live: Connection, kept: shelf.KeptPoint) -> Known:
        """Return the transactions of every migration since a restore point: each deploy took one of its own.

        live: to the database that the restore point was taken of, under whichever name. Nothing is changed.
        """
        xids, doubts, by_steps = set[str](), dict[str, None](), True
        every = self.deploys(kept)
        for point, following in zip(every, (*every[1:], None), strict=True):
            noted = self._read(point)
            if noted is None or not noted.began:
                found = _unnoted(live, point, following, noted)
                by_steps = by_steps and not found.doubts
            else:
                found = _looked(live, point, noted, at_once=False) if noted.open else noted
            xids.update(found.xids)
            doubts.update(dict.fromkeys(found.doubts))
        return Known(xids=tuple(sorted(xids)), doubts=tuple(doubts), by_steps=by_steps)

    def deploys(self, kept: shelf.KeptPoint) -> tuple[shelf.KeptPoint, ...]:
        """Return a restore point and those that later deploys of its database took, oldest first."""
        later = [
            other
            for other in restore_point.every(self.points)
            if other.point.taken_at >= kept.point.taken_at and other.point.id != kept.point.id
            if other.point.database == kept.point.database and other.point.own is None
        ]
        return (kept, *sorted(later, key=lambda other: other.point.taken_at))

    def _path(self, kept: shelf.KeptPoint) -> Path:
        return self.points / FOLDER / f"{shelf.checked(kept.point.id)}.json"

    def _read(self, kept: shelf.KeptPoint) -> Noted | None:
        """None as well for what was noted of an earlier restore point of that name."""
        path = self._path(kept)
        if not path.exists():
            return None
        noted = shelf.read(path, NOTED, what=f"note of the migration since {kept.point.id}", hint=_HINT)
        return noted if noted.since == kept.point.snapshot else None

    def _write(self, kept: shelf.KeptPoint, noted: Noted) -> None:
        shelf.folder(self.points / FOLDER)
        shelf.write(self._path(kept), NOTED, noted)


@dataclass(frozen=True, slots=True)
class _Session:
    pid: int
    began: float | None

    def may_be_in(self, sessions: Iterable[_Session]) -> bool:
        """Whether one of them is the same, as far as both are known: a number is given out again."""
        return any(
            self.pid == other.pid and (self.began == other.began or self.began is None or other.began is None)
            for other in sessions
        )


def _unnoted(live: Connection, kept: shelf.KeptPoint, following: shelf.KeptPoint | None, noted: Noted | None) -> Noted:
    """What the catalogs tell of a deploy without a migration command. following: restore point of the next one, where
    there is one. noted: None where it is not known that there was no command."""
    changed = catalog_xids(live, kept.point.snapshot)
    if following is not None:
        changed -= catalog_xids(live, following.point.snapshot)
    why = ""
    if noted is None:
        why = f"there is no note of a migration since {kept.point.id}"
    elif changed or kept.schema != (following.schema if following else catalog.objects(live)):
        why = f"the schema was changed since {kept.point.id} without a step"
    doubts = (_BY_CATALOGS.format(why),) if why else ()
    return Noted(since=kept.point.snapshot, xids=_texts(changed), doubts=doubts)


def _looked(live: Connection, kept: shelf.KeptPoint, noted: Noted, *, at_once: bool) -> Noted:
    """What is known now of a migration that began. at_once: it ended only now; else its last word in the history is
    taken for its end, and who began later and changed the schema is the application."""
    changed = catalog_xids(live, noted.began)
    if why := _unmarked(live, kept):
        return _with(noted, changed, (_BY_CATALOGS.format(why),))
    wrote: defaultdict[_Session, array[int]] = defaultdict(lambda: array("I"))
    migrating, maybe, numberless = set[_Session](), set[_Session](), set[_Session]()
    try:
        for mark in marks.read(live, kept.slot):
            session = _Session(mark.pid, mark.began)
            if not wrote[session] or wrote[session][-1] != mark.xid:
                wrote[session].append(mark.xid)
            wrote[session].extend(mark.xids or ())
            if mark.xids is None:
                numberless.add(session)
            changes = not changed.isdisjoint((mark.xid, *(mark.xids or ())))
            if changes and mark.began is not None and mark.began >= noted.began_at:
                maybe.add(session)
            if mark.history or mark.name == COMMAND:
                migrating |= {session, *maybe}
                maybe.clear()
    except psycopg.Error as error:
        if live.broken:
            raise
        why = f"the marks in the log could not be read: {' '.join(str(error).split())}"
        return _with(noted, changed, (_BY_CATALOGS.format(why),))
    if at_once:
        migrating |= maybe
    its, others = set[int](), set[int]()
    for session, xids in wrote.items():
        if session.may_be_in(migrating):
            its.update(xids)
        elif migrating or (session.began is not None and session.began < noted.began_at):
            others.update(changed.intersection(xids))
    return _with(noted, its | changed - others, _doubts(live, kept, migrating, numberless))


def _doubts(
    live: Connection, kept: shelf.KeptPoint, migrating: set[_Session], numberless: set[_Session]
) -> Sequence[str]:
    """Say why the marks may not tell all. numberless: sessions that wrote without saying their subtransactions."""
    doubts: list[str] = []
    if not migrating:
        doubts.append(_BY_CATALOGS.format("no session wrote to the history of the migrations"))
    if any(session.may_be_in(migrating) for session in numberless):
        doubts.append(
            "a session of the migration did not tell the numbers of its subtransactions all the while: where rows are "
            "looked at, what it wrote in one that changed no schema counts as the application's"
        )
    if unmarked := marks.gaps(live, (table.oid for table in kept.tables)):
        doubts.append(
            f"lastgood's trigger was not on {', '.join(unmarked)} all the while: what the migration wrote there and "
            "nowhere else, in a transaction that changed no schema, counts as the application's"
        )
    return doubts


def _unmarked(live: Connection, kept: shelf.KeptPoint) -> str:
    """Say why no transaction bears a mark that can be read; empty when it does."""
    if not kept.slot:
        return "nothing was captured"
    row = live.execute(
        "SELECT s.confirmed_flush_lsn <= %s::pg_lsn, s.wal_status <> 'lost', "
        "EXISTS (SELECT FROM pg_publication WHERE pubname = %s), to_regnamespace(%s) IS NOT NULL "
        "FROM pg_replication_slots s WHERE s.slot_name = %s",
        [kept.position, marks.publication_of(kept.slot), marks.SCHEMA, kept.slot],
    ).fetchone()
    unread, whole, prepared, armed = row or (False, False, False, False)
    if not (unread and whole):
        return "the capture was read already" if whole else "the capture is over"
    if not (prepared and armed):
        return "transactions were not marked any more"
    return ""


def _with(noted: Noted, xids: Iterable[int], doubts: Iterable[str]) -> Noted:
    every = tuple(dict.fromkeys((*noted.doubts, *doubts)))
    return replace(noted, xids=tuple(sorted({*noted.xids, *_texts(xids)})), doubts=every)


def _texts(xids: Iterable[int]) -> tuple[str, ...]:
    return tuple(sorted(map(str, xids)))
