"""The rows written since a restore point, told apart exactly: by the rows' transaction ids and by the clone's keys.

A row counts as touched when its transaction was not surely over at the snapshot. Subtransactions have ids of their
own that a snapshot does not list, so everything from the snapshot's xmin on is looked at, and compared with the clone.
The migration's own rewriting is not anybody's write; but a row that it rewrote and that is not in the clone was
inserted between the restore point and the migration, and is a write like any other.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, LiteralString

from psycopg import sql

from lastgood.core.release import NAME_GRAMMAR
from lastgood.core.report import Loss
from lastgood.targets.postgres import catalog, shelf
from lastgood.targets.postgres.catalog import Table
from lastgood.targets.postgres.connect import Connection

INSERTED: Final = "inserted"
UPDATED: Final = "updated"
DELETED: Final = "deleted"
WRITTEN: Final = "written"
"""In a table without a primary key: inserted or updated, nobody can tell."""
REWRITTEN: Final = "rewritten by the migration"

# xmin has 32 bits; the epoch is the current one, or the one before where the number is still ahead.
_FULL_XID: Final = """(
    ((c.next >> 32) - CASE WHEN {row}.xmin::text::bigint > (c.next & 4294967295) THEN 1 ELSE 0 END) << 32
) + {row}.xmin::text::bigint"""
_NEXT: Final = "(SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next)"

# Whatever defines a table, a type or a function is a row of these catalogs; its writer is a migration.
_CATALOGS: Final = (
    "pg_class", "pg_attribute", "pg_attrdef", "pg_constraint", "pg_index", "pg_type", "pg_enum", "pg_proc",
    "pg_trigger", "pg_namespace", "pg_sequence", "pg_rewrite", "pg_policy",
)  # fmt: skip
_NOT_TEMPORARY: Final[Mapping[str, LiteralString]] = {
    "pg_class": "NOT (t.relpersistence = 't' OR t.relname LIKE 'pg\\_toast\\_%')",
    "pg_attribute": "EXISTS (SELECT FROM pg_class r WHERE r.oid = t.attrelid AND r.relpersistence <> 't')",
    "pg_constraint": "NOT EXISTS (SELECT FROM pg_class r WHERE r.oid = t.conrelid AND r.relpersistence = 't')",
    "pg_index": "EXISTS (SELECT FROM pg_class r WHERE r.oid = t.indrelid AND r.relpersistence <> 't')",
    "pg_attrdef": "EXISTS (SELECT FROM pg_class r WHERE r.oid = t.adrelid AND r.relpersistence <> 't')",
    "pg_sequence": "EXISTS (SELECT FROM pg_class r WHERE r.oid = t.seqrelid AND r.relpersistence <> 't')",
    "pg_type": "t.typnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname LIKE 'pg\\_temp\\_%')",
    "pg_namespace": "t.nspname NOT LIKE 'pg\\_%'",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One row that is not as it was. row: as JSON text now, or for a deleted one as it was; before: likewise."""

    kind: str
    row: str
    before: str | None = None


def migration_xids(connection: Connection, since: str) -> tuple[str, ...]:
    """Return the transactions that changed the schema since the snapshot, as the 32-bit numbers that xmin shows."""
    found: set[str] = set()
    for name in _CATALOGS:
        rows = connection.execute(
            sql.SQL(
                "SELECT DISTINCT t.xmin::text FROM {} t, {} c WHERE {} >= pg_snapshot_xmin({})::text::bigint AND {}"
            ).format(
                sql.Identifier("pg_catalog", name),
                sql.SQL(_NEXT),
                sql.SQL(_FULL_XID.format(row="t")),
                sql.SQL("{}::pg_snapshot").format(sql.Literal(since)),
                sql.SQL(_NOT_TEMPORARY.get(name, "true")),
            )
        )
        found.update(xid for (xid,) in rows)
    return tuple(sorted(found))


class Comparison:
    """One table now against the same table in the clone.

    live, clone: connections to the two databases; live may be read-only. since: the restore point's snapshot.
    """

    def __init__(self, live: Connection, clone: Connection, *, since: str, migration: tuple[str, ...]) -> None:
        self._live, self._clone, self._since, self._migration = live, clone, since, migration

    def counts(self, now: Table, then: Table | None, *, rows_then: int) -> Mapping[str, int]:
        """Count by kind. An updated row that was written back as it was is counted too; deletions by arithmetic."""
        counted: Counter[str] = Counter()
        if then is None or not self._shared_key(now, then):
            row = self._live.execute(sql.SQL("SELECT count(*) FROM ({}) touched").format(self._touched(now))).fetchone()
            return {INSERTED if then is None else WRITTEN: int(row[0]) if row else 0}
        self._lend_touched(now, then)
        rows = self._clone.execute(
            sql.SQL("SELECT CASE WHEN c.ctid IS NULL THEN {} ELSE {} END, count(*) FROM lastgood_now n {} "
                    "WHERE c.ctid IS NULL OR NOT n.by_migration GROUP BY 1").format(
                sql.Literal(INSERTED), sql.Literal(UPDATED), self._joined(then)
            )
        )  # fmt: skip
        counted.update({kind: int(count) for kind, count in rows})
        ((_, rows_now),) = catalog.count_rows(self._live, (now,))
        counted[DELETED] = max(0, rows_then + counted[INSERTED] - rows_now)
        return counted

    def changes(self, now: Table, then: Table | None) -> Iterator[Change]:
        """Yield every row that differs. Both databases must be quiet."""
        if then is None or not self._shared_key(now, then):
            for by_migration, row in self._live.execute(self._touched(now, rows=True)):
                if not by_migration:
                    yield Change(kind=INSERTED if then is None else WRITTEN, row=row)
                elif then is not None:
                    yield Change(kind=REWRITTEN, row=row)
            return
        self._lend_touched(now, then)
        differs = sql.SQL(" OR ").join(
            sql.SQL("n.row->{} IS DISTINCT FROM to_jsonb(c.{})").format(
                sql.Literal(now.columns[number]), sql.Identifier(name)
            )
            for number, name in then.columns.items()
            if number in now.columns
        )
        yield from (
            Change(kind=kind, row=row, before=before)
            for kind, row, before in self._clone.execute(
                sql.SQL(
                    "SELECT CASE WHEN c.ctid IS NULL THEN {} WHEN n.by_migration THEN {} ELSE {} END, n.row::text, "
                    "CASE WHEN c.ctid IS NOT NULL THEN row_to_json(c)::text END "
                    "FROM lastgood_now n {} WHERE c.ctid IS NULL OR {}"
                ).format(
                    sql.Literal(INSERTED), sql.Literal(REWRITTEN), sql.Literal(UPDATED), self._joined(then), differs
                )
            )
        )
        yield from self._deleted(now, then)

    def _deleted(self, now: Table, then: Table) -> Iterator[Change]:
        """Rows of the clone whose key is not there any more."""
        keys = sql.SQL(", ").join(sql.Identifier(name) for name in now.named(then.key))
        self._copy(sql.SQL("SELECT {}, false, NULL FROM ONLY {}").format(keys, now.identifier), self._lend_empty(then))
        for (row,) in self._clone.execute(
            sql.SQL(
                "SELECT row_to_json(c)::text FROM ONLY {} c WHERE NOT EXISTS (SELECT FROM lastgood_now n WHERE {})"
            ).format(then.identifier, self._same_key(then))
        ):
            yield Change(kind=DELETED, row=row)

    @staticmethod
    def _shared_key(now: Table, then: Table) -> bool:
        return bool(then.key) and all(number in now.columns for number in then.key)

    def _touched(self, now: Table, *, key: tuple[int, ...] = (), rows: bool = False) -> sql.Composed:
        """The rows whose transaction was not surely over at the snapshot: key, whether the migration wrote it, row.

        Of a table without a comparable key and without `rows`, only those that the migration did not write.
        """
        by_migration = sql.SQL("t.xmin::text = ANY({})").format(sql.Literal(list(self._migration)))
        wanted: list[sql.Composable] = [*(sql.Identifier("t", name) for name in now.named(key)), by_migration]
        wanted += [sql.SQL("row_to_json(t)::text")] if rows or key else []
        where = sql.SQL("{} >= pg_snapshot_xmin({}::pg_snapshot)::text::bigint").format(
            sql.SQL(_FULL_XID.format(row="t")), sql.Literal(self._since)
        )
        if not rows and not key:
            where = sql.SQL("{} AND NOT {}").format(where, by_migration)
        return sql.SQL("SELECT {} FROM ONLY {} t, {} c WHERE {}").format(
            sql.SQL(", ").join(wanted), now.identifier, sql.SQL(_NEXT), where
        )

    def _lend_touched(self, now: Table, then: Table) -> None:
        self._copy(self._touched(now, key=then.key), self._lend_empty(then))

    def _lend_empty(self, then: Table) -> sql.Composed:
        """Make a temporary table of keys in the clone, and return the statement that fills it."""
        keys = sql.SQL(", ").join(sql.Identifier(name) for name in then.named(then.key))
        self._clone.execute("DROP TABLE IF EXISTS pg_temp.lastgood_now")
        self._clone.execute(
            sql.SQL(
                "CREATE TEMPORARY TABLE lastgood_now AS "
                "SELECT {}, false AS by_migration, NULL::jsonb AS row FROM ONLY {} WITH NO DATA"
            ).format(keys, then.identifier)
        )
        return sql.Composed([sql.SQL("COPY pg_temp.lastgood_now FROM STDIN")])

    def _copy(self, query: sql.Composed, into: sql.Composed) -> None:
        with (
            self._live.cursor() as reading,
            self._clone.cursor() as writing,
            reading.copy(sql.SQL("COPY ({}) TO STDOUT").format(query)) as source,
            writing.copy(into) as sink,
        ):
            for block in source:
                sink.write(block)
        self._clone.execute("ANALYZE pg_temp.lastgood_now")

    def _joined(self, then: Table) -> sql.Composed:
        return sql.SQL("LEFT JOIN ONLY {} c ON {}").format(then.identifier, self._same_key(then))

    @staticmethod
    def _same_key(then: Table) -> sql.Composed:
        return sql.SQL(" AND ").join(
            sql.SQL("n.{} = c.{}").format(sql.Identifier(name), sql.Identifier(name)) for name in then.named(then.key)
        )


def export(comparison: Comparison, kept: shelf.KeptPoint, tables: tuple[Table, ...], into: Path) -> shelf.KeptExport:
    """Write one file of JSON lines for each table with changed rows, and return what it holds.

    What the migration rewrote is written too, into files of its own, and is not a loss: the swap takes it back.
    """
    then = {table.oid: table for table in kept.tables}
    losses: list[Loss] = []
    rewritten: list[Loss] = []
    for table in tables:
        lost, again = _export_table(comparison, table, then.get(table.oid), into)
        losses += [lost] if lost.rows else []
        rewritten += [again] if again.rows else []
    gone = then.keys() - {table.oid for table in tables}
    notes = tuple(f"{then[oid].label} was dropped: what was written to it before that cannot be told" for oid in gone)
    keyless = tuple(f"{t.label} has no primary key: deletions cannot be told" for t in kept.tables if not t.key)
    return shelf.KeptExport(export=into.name, losses=tuple(losses), rewritten=tuple(rewritten), notes=notes + keyless)


def _export_table(comparison: Comparison, now: Table, then: Table | None, into: Path) -> tuple[Loss, Loss]:
    label = then.label if then else now.label
    stem = label if NAME_GRAMMAR.fullmatch(label) else f"table-{now.oid}"
    files = into / f"{stem}.jsonl", into / f"{stem}.rewritten.jsonl"
    counted = [0, 0]
    opened = [os.fdopen(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") for path in files]
    try:
        for change in comparison.changes(now, then):
            which = 1 if change.kind == REWRITTEN else 0
            counted[which] += 1
            before = f', "before": {change.before}' if change.before else ""
            opened[which].write(f'{{"change": "{change.kind}", "row": {change.row}{before}}}\n'.encode())
    finally:
        for file in opened:
            file.flush()
            os.fsync(file.fileno())
            file.close()
    for path, rows in zip(files, counted, strict=True):
        if not rows:
            path.unlink()
    lost, again = (Loss(table=label, rows=n, file=path.name) for path, n in zip(files, counted, strict=True))
    return lost, again
