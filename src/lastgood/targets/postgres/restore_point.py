"""Takes a restore point: one exported snapshot is dumped, hashed, restored beside the live database, and compared.

Nobody is blocked meanwhile. The restored copy is kept: it is the proof, and the clone that a swap puts in place. Where
the server can, it is the snapshot of a slot, from which every later transaction can be had.

Where a pause is allowed, the clone is a copy of the files, see `template`, and the dump is read from it: the one is not
proved by the other then, but every row of the copy was read.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from lastgood.core.errors import Refused, Retryable
from lastgood.core.ports import Clock
from lastgood.core.release import DumpFormat, LogPoint, RestorePoint
from lastgood.targets.postgres import capture, catalog, preflight, sessions, shelf, template, writes
from lastgood.targets.postgres.capture import Beginning, Captures, Opened
from lastgood.targets.postgres.connect import APPLICATION, Connection, one
from lastgood.targets.postgres.properties import make_alike, properties
from lastgood.targets.postgres.server import (
    Identity,
    Server,
    create_beside,
    databases,
    drop_own,
    end_tool,
    forget_clone,
    identity,
    note_restored,
    open_ledger,
    own_name,
    rename,
    restored_at,
)

HINT: Final = "lastgood restore-points list"
SESSION: Final = f"{APPLICATION} restore point"
_AGAIN: Final = "_again"
"""Of what is restored once more, as long as it is not proved: no restore point's name begins like that."""
CAPTURES: Final = "captures"
"""Folder beside the restore points."""
_ENDINGS: Final = {DumpFormat.CUSTOM: "dump", DumpFormat.DIRECTORY: "dir", DumpFormat.PLAIN: "sql"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Snapshot:
    """What the live database was at one moment."""

    taken_at: datetime
    boundary: str
    schema: dict[str, str]
    tables: tuple[catalog.Table, ...]
    sequences: tuple[catalog.Sequence, ...]
    rows: tuple[tuple[str, int], ...] | None
    """None where they were not counted: nobody has the time while all wait."""
    identity: Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A clone and what it shows. lossy: why no capture began with it."""

    snapshot: _Snapshot
    begun: Opened | None
    lossy: tuple[str, ...]
    paused_s: float = 0.0
    not_copied: str = ""


def take(
    server: Server,
    folder: Path,
    restore_point: str,
    *,
    keep: int,
    lossless: bool,
    pause_s: float = 0.0,
    mark: Callable[[], LogPoint | None],
    deadline_s: float,
    clock: Clock,
) -> None:
    """Take and prove a restore point; older ones than the newest `keep` are removed. lossless: take none without a
    capture; else what keeps one from beginning is written down with the restore point. pause_s: for how long its users
    may be kept out of the database; where it cannot be copied in that time, it is dumped. mark: called as the last,
    gives its place in the server's log where that is archived.

    What an earlier attempt left is removed first, and earlier captures end: the server keeps its log for one at a
    time. Raises Refused when the copy is not what was dumped: then neither dump nor clone nor capture is left.
    """
    until = clock.now() + timedelta(seconds=deadline_s)

    def left_s() -> float:
        return max((until - clock.now()).total_seconds(), 1.0)

    shelf.folder(folder)
    dump, clone = folder / f"{shelf.checked(restore_point)}.dump", server.clone_name(restore_point)
    with open_ledger(server) as ledger:
        forget_clone(ledger, clone)
    with server.maintenance(statement_s=deadline_s) as maintenance:
        clean_up(server, maintenance, clone, dump)
        with server.connect() as live:
            slot = capture.slot_of(live, restore_point)
        captures = Captures(server, folder / CAPTURES)
        captures.end()
        taking = _Taking(server, maintenance, captures, slot, clone, dump, lossless, left_s)
        try:
            made = taking.by_copy(pause_s) if pause_s else taking.by_dump()
            if isinstance(made, template.NotCopied):
                captures.end()
                clean_up(server, maintenance, clone, dump)
                made = replace(taking.by_dump(), paused_s=made.paused_s, not_copied=made.because)
            snapshot, begun = made.snapshot, made.begun
            rows, proved = _prove(server, maintenance, clone, snapshot.schema, snapshot.rows, deadline_s=left_s())
            log = mark()
            if begun is not None and slot not in captures.alive(maintenance):
                made = replace(made, lossy=("the server let go of the slot's log before the restore was over",))
                begun = None
                captures.end()
                taking.refuse(made.lossy)
        except BaseException:
            for put_back in (captures.end, lambda: clean_up(server, maintenance, clone, dump)):
                with suppress(psycopg.Error):  # what went wrong first is what is told; the next attempt does it as well
                    put_back()
            raise
        point = RestorePoint(
            id=restore_point,
            database=server.live,
            taken_at=snapshot.taken_at,
            path=dump.name,
            sha256=shelf.hashed(dump, what=_named(restore_point), hint=HINT),
            size_bytes=dump.stat().st_size,
            fingerprint=catalog.fingerprint(snapshot.schema),
            snapshot=snapshot.boundary,
            clone=clone,
            rows=rows,
            proved_at=clock.now(),
            captured=begun is not None,
            lossy_because=made.lossy,
            log=log,
            paused_s=made.paused_s,
            not_copied=made.not_copied,
        )
        kept = shelf.KeptPoint(
            point=point,
            schema=snapshot.schema,
            tables=snapshot.tables,
            sequences=snapshot.sequences,
            clone_snapshot=proved,
            slot=slot if begun is not None else "",
            position=begun.position if begun is not None else "",
            identities=captures.identities(slot) if begun is not None else {},
            ready=one(maintenance, "SELECT pg_current_wal_lsn()::text"),
            identity=snapshot.identity,
        )
        shelf.write(folder / f"{restore_point}.json", shelf.KEPT_POINT, kept)
        _retire(server, folder, maintenance, point, keep=keep)


@dataclass(frozen=True, slots=True)
class _Taking:
    """One attempt: how it comes to its clone and its dump."""

    server: Server
    maintenance: Connection
    captures: Captures
    slot: str
    clone: str
    dump: Path
    lossless: bool
    left_s: Callable[[], float]

    def by_dump(self) -> _Made:
        """Dump what the capture's first snapshot shows, and restore that."""
        server = self.server
        begun, lossy = None, capture.obstacles(server)
        with ExitStack() as open_capture:
            try:
                if not lossy:
                    begun = open_capture.enter_context(self.captures.opened(self.slot, deadline_s=self.left_s()))
            except Retryable as error:
                lossy = (error.message,)
            self.refuse(lossy)
            snapshot = _dump(server, self.dump, left_s=self.left_s, exported=begun.snapshot if begun else "")
        create_beside(self.maintenance, server, self.clone)
        server.tools.restore(self.dump, self.clone, session=SESSION, deadline_s=self.left_s())
        if begun is not None:
            self._uncover(snapshot)
        return _Made(snapshot=snapshot, begun=begun, lossy=lossy)

    def by_copy(self, pause_s: float) -> _Made | template.NotCopied:
        """Copy the live database, where the capture begins in the same moment, and dump the copy."""
        server = self.server
        beginning, lossy = None, capture.obstacles(server, copied=True)
        with ExitStack() as prepared:
            try:
                if not lossy:
                    beginning = prepared.enter_context(self._prepared())
            except Refused as error:
                return template.NotCopied(because=error.message, paused_s=0.0)
            except Retryable as error:
                lossy = (error.message,)
            self.refuse(lossy)
            copied = template.copy(server, self.clone, most_s=pause_s, beginning=beginning, look=_described)
        if isinstance(copied, template.NotCopied):
            return copied
        make_alike(self.maintenance, server.live, self.clone)
        if copied.begun is not None:
            self._uncover(copied.seen)
        server.tools.dump(self.clone, self.dump, session=SESSION, deadline_s=self.left_s())
        return _Made(snapshot=copied.seen, begun=copied.begun, lossy=lossy, paused_s=copied.paused_s)

    @contextmanager
    def _prepared(self) -> Generator[Beginning]:
        """Where a table is locked, its sessions are ended as all will be in a moment."""
        with ExitStack() as prepared:
            try:
                beginning = prepared.enter_context(self.captures.prepared(self.slot, deadline_s=self.left_s()))
            except Retryable:
                sessions.check_that_all_may_be_ended(self.maintenance, self.server.live)
                sessions.end(self.maintenance, self.server.live)
                beginning = prepared.enter_context(self.captures.prepared(self.slot, deadline_s=self.left_s()))
            yield beginning

    def refuse(self, lossy: tuple[str, ...]) -> None:
        """Raise Refused where a capture is wanted and something keeps it from beginning."""
        if lossy and self.lossless:
            raise Refused(f"not every transaction could be replayed: {'; '.join(lossy)}", hint="lastgood doctor")

    def _uncover(self, snapshot: _Snapshot) -> None:
        """Of a clone that shows what the capture did to the schema."""
        with self.server.connect(self.clone) as copy, catalog.no_event_fires(copy):
            self.captures.uncover(copy, self.slot, snapshot.tables)


def restore_again(server: Server, folder: Path, kept: shelf.KeptPoint, *, deadline_s: float, clock: Clock) -> None:
    """Restore the dump of a restore point beside, and give it the name of the clone when it is proved as that was. What
    has the name until then is dropped first: there need not be room for both.

    Safe to repeat. Raises Refused, naming what is wrong, when the dump is not the one that was proved or not of those
    contents, or there is no room.
    """
    until, point = clock.now() + timedelta(seconds=deadline_s), kept.point

    def left_s() -> float:
        return max((until - clock.now()).total_seconds(), 1.0)

    dump_as_proved(folder, point)
    with server.connect() as live:
        of_this_database(live, kept)
    again = own_name(server.live, _AGAIN)
    with server.maintenance(statement_s=deadline_s) as maintenance:
        end_tool(maintenance, SESSION, (again, point.clone))
        for left in (again, point.clone):
            drop_own(maintenance, server, left)
        with server.connect() as live:
            if lines := preflight.room_for_clone(live, server):
                raise Refused(f"the dump of {point.id} cannot be restored: {'; '.join(lines)}", hint=HINT)
        try:
            create_beside(maintenance, server, again)
            server.tools.restore(folder / point.path, again, session=SESSION, deadline_s=left_s())
            with server.connect(again) as copy, catalog.no_event_fires(copy):
                identities = kept.identities or dict.fromkeys((table.oid for table in kept.tables), "DEFAULT")
                Captures(server, folder / CAPTURES).uncover(copy, kept.slot, kept.tables, identities=identities)
            _, proved_at = _prove(server, maintenance, again, kept.schema, point.rows, deadline_s=left_s())
        except BaseException:
            with suppress(psycopg.Error):  # what went wrong first is what is told; the next attempt does it as well
                drop_own(maintenance, server, again)
            raise
    with open_ledger(server) as ledger, ledger.transaction():
        note_restored(ledger, point.clone, proved_at)
        rename(ledger, again, point.clone)


def clean_up(server: Server, maintenance: Connection, clone: str, dump: Path) -> None:
    """Remove what an attempt left, also one to restore a clone once more, after which nobody else may come: its tools
    first, which go on in a container when their caller is killed."""
    again = own_name(server.live, _AGAIN)
    end_tool(maintenance, SESSION, (server.live, clone, again))
    template.forget(server)
    for left in (clone, again):
        drop_own(maintenance, server, left)
    if dump.is_dir() and not dump.is_symlink():
        shutil.rmtree(dump)
    else:
        dump.unlink(missing_ok=True)


def newest(folder: Path, live: str) -> shelf.KeptPoint | None:
    """Return the restore point of the live database that lastgood took last; None when there is none."""
    ours = [kept for kept in every(folder) if kept.point.database == live and kept.point.own is None]
    return max(ours, key=lambda kept: kept.point.taken_at, default=None)


def captured(folder: Path, live: str, slots: Mapping[str, int]) -> dict[str, int]:
    """Return the restore points of the live database whose capture is among these slots, and the slot's figure."""
    return {k.point.id: slots[k.slot] for k in every(folder) if k.slot in slots and k.point.database == live}


def positions(folder: Path, of: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return the slot of each of these restore points, and from where it read when it was made."""
    return {k.point.id: (k.slot, k.position) for k in every(folder) if k.point.id in of and k.slot}


def ready(folder: Path, live: str) -> dict[str, str]:
    """Return the slots of the live database's restore points, and where the server's log ended when each was
    proved."""
    return {k.slot: k.ready for k in every(folder) if k.slot and k.ready and k.point.database == live}


def _dump(server: Server, dump: Path, *, left_s: Callable[[], float], exported: str = "") -> _Snapshot:
    """Dump exactly what one snapshot shows, and describe the same one. exported: that, by default a new one."""
    with server.connect(statement_s=left_s()) as connection:
        connection.execute("SET idle_in_transaction_session_timeout = 0")
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        if exported:
            connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(exported)))
        else:
            exported = one(connection, "SELECT pg_export_snapshot()")
        # Counted first: the locks that pg_dump needs are then had, or not to be had, by a connection that can say so.
        described = _described(connection)
        found = replace(described, rows=catalog.count_rows(connection, described.tables))
        server.tools.dump(server.live, dump, session=SESSION, deadline_s=left_s(), snapshot=exported)
        return found


def _described(connection: Connection) -> _Snapshot:
    """Describe the database at this moment, but for its rows."""
    return _Snapshot(
        taken_at=datetime.fromisoformat(one(connection, "SELECT now()::text")),
        boundary=_boundary(connection),
        schema=catalog.objects(connection),
        tables=catalog.tables(connection),
        sequences=catalog.sequences(connection),
        rows=None,
        identity=identity(connection),
    )


def _prove(
    server: Server,
    maintenance: Connection,
    clone: str,
    schema: Mapping[str, str],
    counted: tuple[tuple[str, int], ...] | None,
    *,
    deadline_s: float,
) -> tuple[tuple[tuple[str, int], ...], str]:
    """Compare a clone with what was seen: every object, every count of rows where they were counted, and who may
    connect. Return how many rows each table has, and the moment of it, as a snapshot of the clone. Raises Refused."""
    live, copy = properties(maintenance, server.live), properties(maintenance, clone)
    if live != copy:
        name = min(name for name in live.keys() | copy.keys() if live.get(name) != copy.get(name))
        raise Refused(f"the clone has {name} {copy.get(name, 'not')}, the live database {live.get(name, 'not')}")
    with server.connect(clone, statement_s=deadline_s) as connection:
        changes = catalog.difference(schema, catalog.objects(connection))
        if changes:
            told = "; ".join(f"{c.object} {c.change}" for c in changes[:3])
            raise Refused(f"the trial restore has another schema than the live database: {told}")
        rows = catalog.count_rows(connection, catalog.tables(connection))
        if counted is not None and counted != rows:
            was, now = next((a, b) for a, b in zip(counted, rows, strict=True) if a != b)
            raise Refused(f"the trial restore has {now[1]} rows in {now[0]}, the snapshot had {was[1]}")
        connection.execute("ANALYZE")
        return rows, one(connection, "SELECT pg_current_snapshot()::text")


def _boundary(connection: Connection) -> str:
    """Return the snapshot as text that the server reads again. That of a slot may begin behind its own end, where
    transactions were aborted while the slot was made: what is before its beginning is over all the same (PostgreSQL
    source, XidInMVCCSnapshot asks for xmin first)."""
    xmin, xmax, running = one(connection, "SELECT pg_current_snapshot()::text").split(":")
    return f"{xmin}:{max(int(xmin), int(xmax))}:{running}"


def _retire(server: Server, folder: Path, maintenance: Connection, taken: RestorePoint, *, keep: int) -> None:
    """Remove all but the newest `keep` restore points, with their clones; the manifest first, so none is half there.
    taken: the one that was taken just now, which stays whatever the others say of their age. An operator's own dump
    stays for ever: lastgood did not make it, and may not be able to have it again."""
    others = (kept.point for kept in every(folder) if kept.point.id != taken.id and kept.point.own is None)
    ours = sorted((p for p in others if p.database == server.live), key=lambda p: p.taken_at, reverse=True)
    for point in ours[keep - 1 :]:
        (folder / f"{point.id}.json").unlink(missing_ok=True)
        (folder / point.path).unlink(missing_ok=True)
        drop_own(maintenance, server, point.clone)


def read(folder: Path, restore_point: str, *, manifest: str = "") -> shelf.KeptPoint:
    """Return what is kept of a restore point. manifest: the hash that the journal has of it, empty where it has none.

    Raises Refused when nothing is kept under that name, or not what was proved under it.
    """
    path, what = _manifest(folder, restore_point), _named(restore_point)
    kept = shelf.read(path, shelf.KEPT_POINT, what=what, hint=HINT, sha256=manifest)
    point = kept.point
    for name, found, expected in (
        ("id", point.id, restore_point),
        ("dump", point.path, dump_of(folder, restore_point, point.own).name),
        ("clone", point.clone, own_name(point.database, restore_point)),
        ("fingerprint", point.fingerprint, catalog.fingerprint(kept.schema)),
    ):
        if found != expected:
            raise Refused(f"{what}: {path} has the {name} {found}, expected {expected}", hint=HINT)
    return kept


def dump_of(folder: Path, restore_point: str, own: DumpFormat | None) -> Path:
    """Where the dump of a restore point lies: what lastgood takes is in the custom format."""
    return folder / f"{shelf.checked(restore_point)}.{_ENDINGS[own or DumpFormat.CUSTOM]}"


def size_of(dump: Path) -> int:
    """Bytes of a dump, or of all the files of one. Raises OSError when it is not there."""
    if dump.is_dir() and not dump.is_symlink():
        return sum(member.lstat().st_size for member in dump.iterdir())
    return dump.lstat().st_size


def hash_of(dump: Path, own: DumpFormat | None, *, what: str) -> str:
    """Hash a dump, or the names and hashes of all the files of one. Raises Refused as `shelf.hashed` does."""
    if own is not DumpFormat.DIRECTORY:
        return shelf.hashed(dump, what=what, hint=HINT)
    members = shelf.members(dump, what=what, hint=HINT)
    lines = (f"{member.name} {shelf.hashed(member, what=what, hint=HINT)}\n" for member in members)
    return sha256("".join(lines).encode()).hexdigest()


def _named(restore_point: str) -> str:
    return f"restore point {restore_point}"


def _manifest(folder: Path, restore_point: str) -> Path:
    return folder / f"{shelf.checked(restore_point)}.json"


def every(folder: Path) -> Iterator[shelf.KeptPoint]:
    """Return what is kept and can be read: one that was damaged must not hide the others."""
    for name in sorted(shelf.names(folder)):
        with suppress(Refused):
            yield read(folder, name)


def as_journaled(folder: Path, point: RestorePoint) -> shelf.KeptPoint:
    """Return what is kept of a restore point that the journal knows. Raises Refused when it is not the same in every
    word."""
    kept, known = read(folder, point.id, manifest=point.manifest), replace(point, manifest="")
    for field in fields(known):
        found, expected = getattr(kept.point, field.name), getattr(known, field.name)
        if found != expected:
            told = f"{_manifest(folder, point.id)} has {field.name} {found}, expected {expected} as the journal has it"
            raise Refused(f"{_named(point.id)} is not the one that was proved: {told}", hint=HINT)
    return kept


def proved(folder: Path, live: str) -> dict[str, str]:
    """Return the restore points of the live database whose dump is there in its full size, with the hash of the
    manifest that says so."""
    found: dict[str, str] = {}
    for kept in every(folder):
        point = kept.point
        with suppress(Refused, OSError):
            if point.database == live and size_of(folder / point.path) == point.size_bytes:
                found[point.id] = shelf.hashed(_manifest(folder, point.id), what=_named(point.id), hint=HINT)
    return found


def foreign(folder: Path, of: Collection[str], live: Connection) -> frozenset[str]:
    """Return those restore points that were taken of another database than the one that is connected to."""
    found: set[str] = set()
    for kept in every(folder):
        if kept.point.id in of:
            try:
                of_this_database(live, kept)
            except Refused:
                found.add(kept.point.id)
    return frozenset(found)


def first_read(folder: Path, restore_point: str) -> RestorePoint:
    """Return a restore point that was just proved, as it goes into the journal: from then on nothing of it changes
    unseen. Raises Refused when it is not there in every word and every byte."""
    manifest = shelf.hashed(_manifest(folder, restore_point), what=_named(restore_point), hint=HINT)
    point = read(folder, restore_point, manifest=manifest).point
    dump_as_proved(folder, point)
    return replace(point, manifest=manifest)


def dump_as_proved(folder: Path, point: RestorePoint) -> None:
    """Read the whole dump. Raises Refused when it is not there, or has another hash than it had."""
    dump = folder / point.path
    found = hash_of(dump, point.own, what=f"dump of {point.id}")
    if found != point.sha256:
        told = f"the hash of {dump} is {found[:12]}, expected {point.sha256[:12]}"
        raise Refused(f"the dump of {point.id} is not the one that was proved: {told}", hint=HINT)


def of_this_database(connection: Connection, kept: shelf.KeptPoint) -> None:
    """Raises Refused when a restore point was taken of another database than the one that is connected to, or of
    another one's earlier self: transaction ids and table numbers of the one say nothing of the other."""
    if kept.identity is None:
        return
    now, then, name = identity(connection), kept.identity, connection.info.dbname
    for what, found, expected in (
        ("another server", then.system, now.system),
        ("another version of PostgreSQL", then.major, now.major),
        (f"another database than the one that is called {name} now", then.oid or now.oid, now.oid),
    ):
        if found != expected:
            raise Refused(f"{_named(kept.point.id)} is of {what}: {found}, expected {expected}", hint=HINT)


def schema_as_proved(clone: Connection, kept: shelf.KeptPoint) -> None:
    """Compare the clone's schema with what was proved. Raises Refused when it differs."""
    if changes := catalog.difference(kept.schema, catalog.objects(clone)):
        raise Refused(f"{kept.point.clone} is not as it was proved: {changes[0].object} {changes[0].change}")


def clone_as_proved(server: Server, kept: shelf.KeptPoint, *, deadline_s: float) -> None:
    """Compare the clone with what was proved. Raises Refused when it is gone or differs."""
    with server.maintenance() as maintenance:
        if kept.point.clone not in databases(maintenance):
            raise Refused(f"database {kept.point.clone}, the clone of {kept.point.id}, is gone", hint=HINT)
    with server.connect(kept.point.clone, statement_s=deadline_s) as connection:
        schema_as_proved(connection, kept)
        there = catalog.tables(connection)
        if catalog.count_rows(connection, there) != kept.point.rows:
            raise Refused(f"{kept.point.clone} is not as it was proved: its rows are other in number")
        with open_ledger(server) as ledger:
            proved_at = restored_at(ledger, kept.point.clone) or kept.clone_snapshot
        if written := next((t.label for t in there if writes.written_after(connection, t, proved_at)), ""):
            raise Refused(f"{kept.point.clone} is not as it was proved: somebody wrote to {written}")
