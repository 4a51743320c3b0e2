"""The evidence about a migration: what changed, what broke, who broke it, and whether the last good release still runs.

Read-only on the live database. Statements are executed on a copy of today's schema and rolled back: PREPARE would not
see a new NOT NULL or CHECK.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql

from lastgood.core.migration import BrokenInvariant, DatabaseEvidence, Fit, FitsSchema, SqlError, WritesSince
from lastgood.core.ports import Clock
from lastgood.core.release import Release
from lastgood.targets.postgres import catalog, server_log, shelf
from lastgood.targets.postgres.connect import Connection
from lastgood.targets.postgres.server import Server, create_beside, databases, drop_own
from lastgood.targets.postgres.writes import Comparison, migration_xids

TRIAL_S: Final = 60.0
STATEMENT_S: Final = 5.0
MOST_ROWS: Final = 1_000
MOST_KEYS: Final = 20
# Class 42: syntax error or access rule violation; 23502 and 23514: what a new NOT NULL or CHECK says.
_UNFIT: Final = ("42", "23502", "23514")
# Data corrupted, index corrupted.
_STORAGE: Final = ("XX001", "XX002")


def collect(
    server: Server,
    kept: shelf.KeptPoint,
    target: Release,
    *,
    invariants: Mapping[str, str],
    scratch: Path,
    clock: Clock,
) -> DatabaseEvidence:
    """Collect everything since the restore point. scratch: folder for a dump of the schema, which is removed."""
    point = kept.point
    with server.connect() as live:
        errors = server_log.errors_since(server.config, live, point.taken_at)
        changes = catalog.difference(kept.schema, catalog.objects(live))
        migration = migration_xids(live, point.snapshot)
        row = live.execute("SELECT pg_database_size(%s)", [server.live]).fetchone()
        with _clone(server, point.clone) as clone:
            broken = tuple(_broken(live, clone, invariants, migration))
            # Where the schema is the old one nothing will be swapped, so nothing needs to be counted.
            writes = _writes(live, clone, kept, migration, clock) if changes and clone else None
            fits = (
                _fits(server, target, clone, scratch=scratch)
                if changes
                else FitsSchema(fit=Fit.YES, tried=0, reason="the schema is the one from before the deploy")
            )
        return DatabaseEvidence(
            database=server.live,
            changes=changes,
            errors=errors,
            broken=broken,
            old_release=fits,
            writes=writes,
            storage_faults=_storage_faults(live, errors),
            size_bytes=int(row[0]) if row else 0,
        )


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


def _storage_faults(live: Connection, errors: tuple[SqlError, ...]) -> tuple[str, ...]:
    row = live.execute("SELECT checksum_failures FROM pg_stat_database WHERE datname = current_database()").fetchone()
    failures = int(row[0]) if row and row[0] else 0
    told = tuple(f"SQLSTATE {e.sqlstate}, {e.count} times: {e.message}" for e in errors if e.sqlstate in _STORAGE)
    return (*((f"{failures} pages failed their checksum",) if failures else ()), *told)


def _writes(
    live: Connection, clone: Connection, kept: shelf.KeptPoint, migration: tuple[str, ...], clock: Clock
) -> WritesSince:
    then, rows_then = {table.oid: table for table in kept.tables}, dict(kept.point.rows)
    counted: dict[str, int] = {}
    with live.transaction():
        live.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        comparison = Comparison(live, clone, since=kept.point.snapshot, migration=migration)
        for table in catalog.tables(live):
            was = then.get(table.oid)
            label = was.label if was else table.label
            counted[label] = sum(comparison.counts(table, was, rows_then=rows_then.get(label, 0)).values())
    elapsed_s = (clock.now() - kept.point.taken_at).total_seconds()
    most_first = tuple(sorted(counted.items(), key=lambda item: -item[1]))
    return WritesSince(tables=most_first, rate_per_s=sum(counted.values()) / elapsed_s if elapsed_s > 0 else 0.0)


def _broken(
    live: Connection, clone: Connection | None, invariants: Mapping[str, str], migration: tuple[str, ...]
) -> Iterator[BrokenInvariant]:
    """Invariants with rows that break them now and did not in the clone."""
    for name, statement in invariants.items():
        now = _rows(live, statement)
        new = [key for key in now or () if key not in set(_rows(clone, statement) or ())] if clone else now
        if not new:
            continue
        by_migration = _written_by(live, statement, new, migration)
        yield BrokenInvariant(
            invariant=name, by_migration=by_migration, by_others=len(new) - by_migration, keys=tuple(new[:MOST_KEYS])
        )


def _rows(connection: Connection, statement: str) -> list[str] | None:
    """Return the keys of the first rows that break an invariant, None when it cannot be asked on this schema."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute("SET TRANSACTION READ ONLY")
            found = connection.execute(statement.encode()).fetchmany(MOST_ROWS)
    except psycopg.Error:
        if connection.broken:
            raise
        return None
    return [str(row[0]) for row in found]


def _written_by(live: Connection, statement: str, keys: list[str], migration: tuple[str, ...]) -> int:
    """Count the rows of these keys that the migration wrote. The planner tells which table the first column is of; a
    key that is computed belongs to nobody, and counts as not the migration's."""
    try:
        with live.transaction(force_rollback=True):
            live.execute("SET TRANSACTION READ ONLY")
            explained = live.execute(b"EXPLAIN (VERBOSE, FORMAT JSON) " + statement.encode()).fetchone()
            found = _origin(explained[0][0]["Plan"]) if explained else None
            if found is None:
                return 0
            table, column = found
            row = live.execute(
                sql.SQL("SELECT count(*) FROM {} WHERE {}::text = ANY(%s) AND xmin::text = ANY(%s)").format(
                    table, sql.Identifier(column)
                ),
                [keys, list(migration)],
            ).fetchone()
            return int(row[0]) if row else 0
    except psycopg.Error:
        if live.broken:
            raise
        return 0


def _origin(plan: dict[str, Any]) -> tuple[sql.Identifier, str] | None:
    """Return table and column of the plan's first output: `m.id` where `m` is the alias of a scanned table, or a bare
    `id` where only one table is scanned. plan: as EXPLAIN prints it in JSON."""
    output: list[str] = plan.get("Output") or [""]
    first = output[0]
    alias, column = first.split(".", 1) if "." in first else ("", first)
    if not column.replace("_", "").isalnum():
        return None
    scanned: dict[str, sql.Identifier] = {}
    nodes = [plan]
    while nodes:
        node = nodes.pop()
        if "Relation Name" in node:
            scanned[str(node["Alias"])] = sql.Identifier(str(node["Schema"]), str(node["Relation Name"]))
        nodes += node.get("Plans") or []
    if not alias and len(scanned) == 1:
        (alias,) = scanned
    return (scanned[alias], column) if alias in scanned else None


def _fits(server: Server, target: Release, clone: Connection | None, *, scratch: Path) -> FitsSchema:
    """Execute the release's statements on an empty copy of today's schema."""
    if not target.statements:
        return FitsSchema(fit=Fit.UNKNOWN, tried=0, reason=f"{target.id} recorded no statements")
    with _copy_of_schema(server, scratch) as name, server.connect(name, statement_s=STATEMENT_S) as copy:
        undecided: list[str] = []
        for statement in target.statements:
            failed = _fails(copy, statement)
            if failed is None:
                continue
            before = _fails(clone, statement) if clone else None
            told = f"SQLSTATE {failed.sqlstate} {failed.diag.message_primary} in `{' '.join(statement.split())[:60]}`"
            if (failed.sqlstate or "").startswith(_UNFIT) and (before is None or before.sqlstate != failed.sqlstate):
                return FitsSchema(fit=Fit.NO, tried=len(target.statements), reason=told)
            undecided.append(told)
    tried = len(target.statements)
    if undecided:
        return FitsSchema(fit=Fit.UNKNOWN, tried=tried, reason=undecided[0])
    return FitsSchema(fit=Fit.YES, tried=tried, reason=f"{tried} statements of {target.id} run on today's schema")


def _fails(connection: Connection, statement: str) -> psycopg.Error | None:
    """Execute and roll back; return the error, None when there was none."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement.encode())
    except psycopg.Error as error:
        if connection.broken:
            raise
        return error
    return None


@contextmanager
def _copy_of_schema(server: Server, scratch: Path) -> Generator[str]:
    """A database with today's schema and no rows, gone afterwards. Those of commands that were killed go too."""
    prefix = f"{server.live}_lg_try_"
    name = f"{prefix}{os.getpid()}_{secrets.token_hex(2)}"
    with server.maintenance(statement_s=TRIAL_S) as maintenance:
        for left in databases(maintenance):
            pid = left.removeprefix(prefix).split("_")[0]
            if left.startswith(prefix) and not (pid.isdigit() and Path(f"/proc/{pid}").exists()):
                drop_own(maintenance, server, left)
        try:
            with shelf.passing(shelf.folder(scratch) / f"{name}.dump") as dump:
                server.tools.dump(server.live, dump, deadline_s=TRIAL_S, schema_only=True)
                create_beside(maintenance, server, name)
                server.tools.restore(dump, name, deadline_s=TRIAL_S)
            yield name
        finally:
            drop_own(maintenance, server, name)
