"""The evidence about a migration: what changed, what broke, who broke it, and whether the last good release still runs.

Read-only on the live database.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from lastgood.core.facts import ServiceLog
from lastgood.core.migration import DatabaseEvidence, Fit, FitsSchema, SqlError, WayDown, WritesSince
from lastgood.core.ports import Clock
from lastgood.core.release import Down, Release
from lastgood.targets.postgres import amcheck, catalog, histories, restore_point, server_log, shelf, way_down
from lastgood.targets.postgres.broken import broken
from lastgood.targets.postgres.connect import Connection
from lastgood.targets.postgres.fitting import SESSION, TRIAL_S, Start, both, fits, starts, unique
from lastgood.targets.postgres.noted import Known, Migrations
from lastgood.targets.postgres.server import Server, databases
from lastgood.targets.postgres.writes import Comparison, WrittenBefore

# Data corrupted, index corrupted.
_STORAGE: Final = ("XX001", "XX002")


def collect(
    server: Server,
    kept: shelf.KeptPoint,
    target: Release,
    downs: Sequence[Down],
    *,
    migrations: Migrations,
    logs: Sequence[ServiceLog],
    start: Start | None,
    rewritten: Mapping[int, tuple[int, ...]],
    noted: Callable[[Known], Sequence[shelf.KeptMigration]],
    rehearsals: Path,
    invariants: Mapping[str, str],
    dumps: Path,
    scratch: Path,
    clock: Clock,
) -> DatabaseEvidence:
    """Collect everything since the restore point. downs, logs: as `Database.inspect` has them. start:
    runs what `target` runs by itself when it starts, None where that does not migrate. rewritten: columns by table
    that the migration gave other values. noted: of each migration since, as WrittenBefore has them. rehearsals: folder
    of what became of down migrations. dumps: folder of the restore points. scratch: folder for a dump of the schema,
    which is removed."""
    point = kept.point
    with server.connect() as live:
        restore_point.of_this_database(live, kept)
        errors = (*server_log.errors_since(server.config, live, point.taken_at, logs=logs), *server_log.errors_in(logs))
        changes = catalog.difference(kept.schema, catalog.objects(live))
        if changes:  # then it may be needed, and counts only as long as it is what was proved
            restore_point.dump_as_proved(dumps, point)
        known = migrations.since(live, kept) if point.snapshot else None
        migration = known.xids if known else None
        row = live.execute("SELECT pg_database_size(%s)", [server.live]).fetchone()
        with _clone(server, point.clone) as clone:
            breaking = tuple(broken(live, clone, invariants, migration))
            unsound, looked = amcheck.look(live) if changes or breaking else ((), "")
            old_release = FitsSchema(fit=Fit.YES, tried=0, reason="the schema is the one from before the deploy")
            down: WayDown | None = None
            # a migration of rows alone leaves the schema, and a history that the last good release may not know
            other_history = clone is None or histories.known(clone) != histories.known(live)
            if changes or (start and other_history):
                # it may be needed now, and counts only as long as it is what was proved
                restore_point.dump_as_proved(dumps, point)
                with shelf.passing(shelf.folder(scratch) / f"{unique(server)}.dump") as today:
                    server.tools.dump(server.live, today, session=SESSION, deadline_s=TRIAL_S, schema_only=True)
                    with _dump_before(server, kept, dumps=dumps, scratch=scratch) as before:
                        if changes:
                            old_release = fits(server, target, before=before, today=today)
                        if start:
                            starting = starts(server, target, start, before=before, today=today, then=clone, now=live)
                            old_release = both(old_release, starting)
                    if old_release.fit is Fit.NO and downs:
                        down = way_down.tried(
                            server, live, clone, kept, target, downs, today, rewritten=rewritten, rehearsals=rehearsals
                        )
            # Where the database stays nothing needs to be counted.
            writes = None
            if (changes or old_release.fit is Fit.NO) and clone and known is not None:
                writes = _writes(live, clone, kept, known.xids, WrittenBefore(noted(known)), clock)
        return DatabaseEvidence(
            database=server.live,
            changes=changes,
            errors=errors,
            broken=breaking,
            old_release=old_release,
            writes=writes,
            storage_faults=(*_storage_faults(live, errors, point.taken_at), *unsound),
            storage=looked,
            size_bytes=int(row[0]) if row else 0,
            way_down=down,
            doubts=known.doubts if known else (),
        )


@contextmanager
def _dump_before(server: Server, kept: shelf.KeptPoint, *, dumps: Path, scratch: Path) -> Generator[Path]:
    """Lend a dump with the schema of the restore point. An own dump may be in a format of which no schema alone can be
    restored: then it is that of its clone. It need not be there."""
    if kept.point.own is None:
        yield dumps / kept.point.path
        return
    with shelf.passing(shelf.folder(scratch) / f"{kept.point.id}.dump") as before:
        with server.maintenance() as maintenance:
            there = kept.point.clone in databases(maintenance)
        if there:
            server.tools.dump(kept.point.clone, before, session=SESSION, deadline_s=TRIAL_S, schema_only=True)
        yield before


@contextmanager
def _clone(server: Server, name: str) -> Generator[Connection | None]:
    """A connection to the clone, None when it is gone."""
    with server.maintenance() as maintenance:
        there = name in databases(maintenance)
    if not there:
        yield None
        return
    with server.connect(name) as connection:
        yield connection


def _storage_faults(live: Connection, errors: tuple[SqlError, ...], since: datetime) -> tuple[str, ...]:
    """What the storage did since then. A page that failed long ago says nothing of this deploy."""
    row = live.execute(
        "SELECT checksum_failures FROM pg_stat_database "
        "WHERE datname = current_database() AND checksum_last_failure > %s",
        [since],
    ).fetchone()
    failures = int(row[0]) if row and row[0] else 0
    told = tuple(f"SQLSTATE {e.sqlstate}, {e.count} times: {e.message}" for e in errors if e.sqlstate in _STORAGE)
    return (*((f"{failures} pages failed their checksum",) if failures else ()), *told)


def _writes(
    live: Connection,
    clone: Connection,
    kept: shelf.KeptPoint,
    migration: tuple[str, ...],
    before: WrittenBefore,
    clock: Clock,
) -> WritesSince:
    then, rows_then = {table.oid: table for table in kept.tables}, dict(kept.point.rows)
    counted: dict[str, int] = {}
    with live.transaction():
        live.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        comparison = Comparison(live, clone, since=kept.point.snapshot, migration=migration, before=before)
        for table in catalog.tables(live):
            was = then.get(table.oid)
            label = was.label if was else table.label
            counted[label] = sum(comparison.counts(table, was, rows_then=rows_then.get(label, 0)).values())
    elapsed_s = (clock.now() - kept.point.taken_at).total_seconds()
    most_first = tuple(sorted(counted.items(), key=lambda item: -item[1]))
    return WritesSince(tables=most_first, rate_per_s=sum(counted.values()) / elapsed_s if elapsed_s > 0 else 0.0)
