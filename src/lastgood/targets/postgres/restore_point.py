"""Takes a restore point: one exported snapshot is dumped, hashed, restored beside the live database, and compared.

Nobody is blocked meanwhile. The restored copy is kept: it is the proof, and the clone that a swap puts in place. Where
the server can, it is the snapshot of a slot, from which every later transaction can be had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, LiteralString

import psycopg
from psycopg import sql

from lastgood.core.errors import Bug, Refused, Retryable
from lastgood.core.ports import Clock
from lastgood.core.release import RestorePoint
from lastgood.targets.postgres import capture, catalog, shelf, writes
from lastgood.targets.postgres.capture import Captures
from lastgood.targets.postgres.connect import APPLICATION, Connection
from lastgood.targets.postgres.properties import properties
from lastgood.targets.postgres.server import (
    Server,
    create_beside,
    databases,
    drop_own,
    end_tool,
    forget_replayed,
    open_ledger,
)

HINT: Final = "lastgood restore-points"
SESSION: Final = f"{APPLICATION} restore point"
CAPTURES: Final = "captures"
"""Folder beside the restore points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Snapshot:
    """What the live database was at one moment."""

    taken_at: datetime
    boundary: str
    schema: dict[str, str]
    tables: tuple[catalog.Table, ...]
    sequences: tuple[catalog.Sequence, ...]
    rows: tuple[tuple[str, int], ...]


def take(
    server: Server,
    folder: Path,
    restore_point: str,
    *,
    keep: int,
    lossless: bool,
    deadline_s: float,
    clock: Clock,
) -> None:
    """Take and prove a restore point; older ones than the newest `keep` are removed. lossless: take none without a
    capture; else what keeps one from beginning is written down with the restore point.

    What an earlier attempt left is removed first, and earlier captures end: the server keeps its log for one at a
    time. Raises Refused when the copy is not what was dumped: then neither dump nor clone nor capture is left.
    """
    until = clock.now() + timedelta(seconds=deadline_s)

    def left_s() -> float:
        return max((until - clock.now()).total_seconds(), 1.0)

    shelf.folder(folder)
    dump, clone = folder / f"{shelf.checked(restore_point)}.dump", server.clone_name(restore_point)
    with open_ledger(server) as ledger:
        forget_replayed(ledger, clone)
    with server.maintenance(statement_s=deadline_s) as maintenance:
        _clean_up(server, maintenance, clone, dump)
        slot = capture.slot_of(restore_point)
        captures = Captures(server, folder / CAPTURES)
        captures.end()
        begun, lossy = None, capture.obstacles(server)
        try:
            with ExitStack() as open_capture:
                try:
                    if not lossy:
                        begun = open_capture.enter_context(captures.opened(slot, deadline_s=left_s()))
                except Retryable as error:
                    lossy = (error.message,)
                if lossy and lossless:
                    raise Refused(
                        f"not every transaction could be replayed: {'; '.join(lossy)}", hint="lastgood doctor"
                    )
                snapshot = _dump(server, dump, left_s=left_s, exported=begun.snapshot if begun else "")
            create_beside(maintenance, server, clone)
            server.tools.restore(dump, clone, session=SESSION, deadline_s=left_s())
            if begun is not None:
                with server.connect(clone) as copy:  # the dump shows what the capture did to the schema
                    captures.uncover(copy, slot, snapshot.tables)
            proved = _prove(server, maintenance, clone, snapshot, deadline_s=left_s())
        except BaseException:
            for put_back in (captures.end, lambda: _clean_up(server, maintenance, clone, dump)):
                with suppress(psycopg.Error):  # what went wrong first is what is told; the next attempt does it as well
                    put_back()
            raise
        point = RestorePoint(
            id=restore_point,
            database=server.live,
            taken_at=snapshot.taken_at,
            path=dump.name,
            sha256=shelf.sha256(dump),
            size_bytes=dump.stat().st_size,
            fingerprint=catalog.fingerprint(snapshot.schema),
            snapshot=snapshot.boundary,
            clone=clone,
            rows=snapshot.rows,
            proved_at=clock.now(),
            captured=begun is not None,
            lossy_because=lossy,
        )
        kept = shelf.KeptPoint(
            point=point,
            schema=snapshot.schema,
            tables=snapshot.tables,
            sequences=snapshot.sequences,
            clone_snapshot=proved,
            slot=slot if begun is not None else "",
            position=begun.position if begun is not None else "",
        )
        shelf.write(folder / f"{restore_point}.json", shelf.KEPT_POINT, kept)
        _retire(server, folder, maintenance, keep=keep)


def _clean_up(server: Server, maintenance: Connection, clone: str, dump: Path) -> None:
    """Remove what an attempt left: its tools first, which go on in a container when their caller is killed."""
    end_tool(maintenance, SESSION, (server.live, clone))
    drop_own(maintenance, server, clone)
    dump.unlink(missing_ok=True)


def newest(folder: Path, live: str) -> shelf.KeptPoint | None:
    """Return the restore point of the live database that was taken last; None when there is none."""
    ours = [kept for kept in shelf.kept(folder, shelf.KEPT_POINT) if kept.point.database == live]
    return max(ours, key=lambda kept: kept.point.taken_at, default=None)


def captured(folder: Path, live: str, slots: Mapping[str, int]) -> dict[str, int]:
    """Return the restore points of the live database whose capture is among these slots, and the slot's figure."""
    points = shelf.kept(folder, shelf.KEPT_POINT)
    return {k.point.id: slots[k.slot] for k in points if k.slot in slots and k.point.database == live}


def _dump(server: Server, dump: Path, *, left_s: Callable[[], float], exported: str = "") -> _Snapshot:
    """Dump exactly what one snapshot shows, and describe the same one. exported: that, by default a new one."""
    with server.connect(statement_s=left_s()) as connection:
        connection.execute("SET idle_in_transaction_session_timeout = 0")
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        if exported:
            connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(exported)))
        else:
            exported = _one(connection, "SELECT pg_export_snapshot()")
        taken_at = datetime.fromisoformat(_one(connection, "SELECT now()::text"))
        boundary = _one(connection, "SELECT pg_current_snapshot()::text")
        tables = catalog.tables(connection)
        # Counted first: the locks that pg_dump needs are then had, or not to be had, by a connection that can say so.
        found = _Snapshot(
            taken_at=taken_at,
            boundary=boundary,
            schema=catalog.objects(connection),
            tables=tables,
            sequences=catalog.sequences(connection),
            rows=catalog.count_rows(connection, tables),
        )
        server.tools.dump(server.live, dump, session=SESSION, deadline_s=left_s(), snapshot=exported)
        return found


def _prove(server: Server, maintenance: Connection, clone: str, snapshot: _Snapshot, *, deadline_s: float) -> str:
    """Compare the restored copy with the snapshot: every object, every count of rows, and who may connect. Return the
    moment of it, as a snapshot of the clone. Raises Refused."""
    live, copy = properties(maintenance, server.live), properties(maintenance, clone)
    if live != copy:
        name = min(name for name in live.keys() | copy.keys() if live.get(name) != copy.get(name))
        raise Refused(f"the clone has {name} {copy.get(name, 'not')}, the live database {live.get(name, 'not')}")
    with server.connect(clone, statement_s=deadline_s) as connection:
        changes = catalog.difference(snapshot.schema, catalog.objects(connection))
        if changes:
            told = "; ".join(f"{c.object} {c.change}" for c in changes[:3])
            raise Refused(f"the trial restore has another schema than the live database: {told}")
        rows = catalog.count_rows(connection, catalog.tables(connection))
        if rows != snapshot.rows:
            was, now = next((a, b) for a, b in zip(snapshot.rows, rows, strict=True) if a != b)
            raise Refused(f"the trial restore has {now[1]} rows in {now[0]}, the snapshot had {was[1]}")
        connection.execute("ANALYZE")
        return _one(connection, "SELECT pg_current_snapshot()::text")


def _one(connection: Connection, query: LiteralString) -> str:
    row = connection.execute(query).fetchone()
    if row is None:
        raise Bug("a SELECT without FROM gave no row")
    return str(row[0])


def _retire(server: Server, folder: Path, maintenance: Connection, *, keep: int) -> None:
    """Remove all but the newest `keep` restore points, with their clones; the manifest first, so none is half there."""
    points = (kept.point for kept in shelf.kept(folder, shelf.KEPT_POINT))
    ours = sorted((p for p in points if p.database == server.live), key=lambda p: p.taken_at)
    for point in ours[:-keep]:
        (folder / f"{point.id}.json").unlink(missing_ok=True)
        (folder / point.path).unlink(missing_ok=True)
        drop_own(maintenance, server, point.clone)


def read(folder: Path, restore_point: str) -> shelf.KeptPoint:
    """Return a kept restore point. Raises Refused when there is none."""
    path = folder / f"{shelf.checked(restore_point)}.json"
    return shelf.read(path, shelf.KEPT_POINT, what=f"restore point {restore_point}", hint=HINT)


def proved(folder: Path, live: str) -> frozenset[str]:
    """Return the restore points of the live database whose dump is there in its full size."""
    found: set[str] = set()
    for kept in shelf.kept(folder, shelf.KEPT_POINT):
        point = kept.point
        dump = folder / point.path
        if point.database == live and dump.is_file() and dump.stat().st_size == point.size_bytes:
            found.add(point.id)
    return frozenset(found)


def verified(folder: Path, restore_point: str) -> RestorePoint:
    """Return a restore point whose dump has the hash it had. Raises Refused otherwise."""
    point = read(folder, restore_point).point
    dump = folder / point.path
    if not dump.is_file():
        raise Refused(f"the dump of {restore_point} is gone: {point.path}", hint=HINT)
    if shelf.sha256(dump) != point.sha256:
        raise Refused(f"the dump of {restore_point} is not the one that was proved: its hash differs", hint=HINT)
    return point


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
        if written := next((t.label for t in there if writes.written_after(connection, t, kept.clone_snapshot)), ""):
            raise Refused(f"{kept.point.clone} is not as it was proved: somebody wrote to {written}")
