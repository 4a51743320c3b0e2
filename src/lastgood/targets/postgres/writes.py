"""The rows written since a restore point, told apart exactly: by the rows' transaction ids and by the clone's keys.

A row counts as touched when its transaction was not surely over at the snapshot. Subtransactions have ids of their
own that a snapshot does not list, so everything from the snapshot's xmin on is looked at, and compared with the clone.
The migration's own rewriting is not anybody's write; but a row that it rewrote and that is not in the clone was
inserted between the restore point and the migration, and is a write like any other. So is one that was written to in
between: whose its values are cannot be told any more, so which rows those are is noted when the migration begins.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final, LiteralString

from psycopg import sql

from lastgood.core.release import NAME_GRAMMAR
from lastgood.core.report import Loss, RowProgress, RowWork
from lastgood.targets.postgres import catalog, shelf
from lastgood.targets.postgres.catalog import Table
from lastgood.targets.postgres.connect import Connection

INSERTED: Final = "inserted"
UPDATED: Final = "updated"
DELETED: Final = "deleted"
WRITTEN: Final = "written"
"""In a table without a primary key: inserted or updated, nobody can tell."""
REWRITTEN: Final = "rewritten by the migration"
MOST_TOUCHED: Final = 100_000
"""Keys of a table that are noted when a migration begins; of one with more, whatever it rewrites counts as written."""
_WHOSE: Final = "whether a value is the migration's or somebody's who wrote before cannot be told"

# xmin has 32 bits; the epoch is the current one, or the one before where the number is still ahead.
_FULL_XID: Final[LiteralString] = """(
    ((c.next >> 32) - CASE WHEN {row}.xmin::text::bigint > (c.next & 4294967295) THEN 1 ELSE 0 END) << 32
) + {row}.xmin::text::bigint"""
_NEXT: Final[LiteralString] = "(SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next)"
_ROW: Final = sql.SQL("row_to_json(t.*)::text")

# Whatever defines a table, a type or a function is a row of these catalogs; whoever writes there may be a migration.
# Not pg_class: an application that truncates a table writes there too.
_CATALOGS: Final = (
    "pg_attribute", "pg_attrdef", "pg_constraint", "pg_index", "pg_type", "pg_enum", "pg_proc",
    "pg_trigger", "pg_namespace", "pg_sequence", "pg_rewrite", "pg_policy",
)  # fmt: skip
# Neither what is temporary nor what `marks` made, as it made it.
_LASTING: Final[Mapping[str, LiteralString]] = {
    "pg_attribute": "EXISTS (SELECT FROM pg_class r WHERE r.oid = t.attrelid AND r.relpersistence <> 't')",
    "pg_constraint": "NOT EXISTS (SELECT FROM pg_class r WHERE r.oid = t.conrelid AND r.relpersistence = 't')",
    "pg_index": "EXISTS (SELECT FROM pg_class r WHERE r.oid = t.indrelid AND r.relpersistence <> 't')",
    "pg_attrdef": "EXISTS (SELECT FROM pg_class r WHERE r.oid = t.adrelid AND r.relpersistence <> 't')",
    "pg_sequence": "EXISTS (SELECT FROM pg_class r WHERE r.oid = t.seqrelid AND r.relpersistence <> 't')",
    "pg_type": "t.typnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname LIKE 'pg\\_temp\\_%')",
    "pg_namespace": "t.nspname NOT LIKE 'pg\\_%' AND t.nspname <> 'lastgood_marks'",
    "pg_proc": "t.pronamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname = 'lastgood_marks')",
    "pg_trigger": "NOT (t.tgname = 'lastgood_marks' AND t.tgenabled = 'A')",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One row that is not as it was. row: as JSON text now, or for a deleted one as it was; before: likewise.
    by_migration: whether the migration was the last to write it; doubt: why somebody may have written to it before."""

    kind: str
    row: str
    before: str | None = None
    by_migration: bool = False
    doubt: str = ""


def key_text(values: Iterable[object]) -> str:
    """The same for a number and for the text that the migration made of it."""
    return json.dumps([value if isinstance(value, str) else shelf.json_text(value) for value in values])


def touched(
    live: Connection, tables: Sequence[Table], *, since: str, migration: Sequence[str]
) -> dict[int, shelf.TouchedKeys]:
    """Return which rows were written since a snapshot by others than the migration, by the oid of each table with any.

    Asked just before the migration begins: of a row that it rewrites nothing tells it later.
    """
    found: dict[int, shelf.TouchedKeys] = {}
    then = {table.oid: table for table in tables}
    for now in catalog.tables(live):
        was = then.get(now.oid)
        keyed = was is not None and bool(was.key) and all(number in now.columns for number in was.key)
        names = now.named(was.key) if was is not None and keyed else ()
        rows = live.execute(
            sql.SQL("SELECT json_build_array({})::text FROM ONLY {} t, {} c WHERE {} AND NOT t.xmin::text = ANY({}) "
                    "LIMIT {}").format(
                sql.SQL(", ").join(sql.Identifier("t", name) for name in names),
                now.identifier,
                sql.SQL(_NEXT),
                _since(since),
                sql.Literal(list(migration)),
                sql.Literal(MOST_TOUCHED + 1 if keyed else 1),
            )
        ).fetchall()  # fmt: skip
        if rows and was is not None:
            keys = [key_text(json.loads(text, parse_float=Decimal)) for (text,) in rows[:MOST_TOUCHED] if keyed]
            found[now.oid] = shelf.TouchedKeys(keys=tuple(keys), whole=keyed and len(rows) <= MOST_TOUCHED)
    return found


def either(
    one: Mapping[int, shelf.TouchedKeys], other: Mapping[int, shelf.TouchedKeys]
) -> dict[int, shelf.TouchedKeys]:
    """Return what was written to at one of two moments."""
    found = dict(one)
    for oid, more in other.items():
        less = found.get(oid, shelf.TouchedKeys(keys=(), whole=True))
        keys = tuple(dict.fromkeys((*less.keys, *more.keys)))
        found[oid] = shelf.TouchedKeys(keys=keys, whole=less.whole and more.whole)
    return found


def large_objects_made(connection: Connection, since: str) -> bool:
    """Whether large objects were made since a snapshot: they stand in no table and in no slot, and are not compared."""
    row = connection.execute(
        sql.SQL("SELECT EXISTS (SELECT FROM pg_largeobject_metadata t, {} c WHERE {})").format(
            sql.SQL(_NEXT), _since(since)
        )
    ).fetchone()
    return bool(row and row[0])


class WrittenBefore:
    """What is known of the rows that were written to before a migration rewrote them. noted: of each migration since
    the restore point, its own first; empty where nothing was. The first has what each of them found when it began.
    """

    def __init__(self, noted: Sequence[shelf.KeptMigration]) -> None:
        found = noted[0].touched if noted else None
        self._seen, self._tables = found is not None, found or {}
        self._keys = {oid: frozenset(found.keys) for oid, found in self._tables.items()}

    def doubt(self, then: Table, key: Sequence[object] | None) -> str:
        """Say why somebody may have written to a row that the migration wrote last; empty where nobody did. key: None
        where it is not known."""
        if not self._seen:
            return f"nobody saw what was written before the migration rewrote this row: {_WHOSE}"
        if (noted := self._tables.get(then.oid)) is None:
            return ""
        if key is None or not noted.whole:
            return f"{then.label} was written to before the migration, and this row may be one of those: {_WHOSE}"
        if key_text(key) in self._keys[then.oid]:
            return f"it was written to between the restore point and the migration, which then rewrote it: {_WHOSE}"
        return ""


def catalog_xids(connection: Connection, since: str) -> frozenset[int]:
    """Return the transactions and subtransactions of which a change of the schema since the snapshot is still to be
    seen, as the 32-bit numbers that xmin shows."""
    found: set[int] = set()
    for name in _CATALOGS:
        rows = connection.execute(
            sql.SQL(
                "SELECT DISTINCT t.xmin::text FROM {} t, {} c WHERE {} >= pg_snapshot_xmin({})::text::bigint AND {}"
            ).format(
                sql.Identifier("pg_catalog", name),
                sql.SQL(_NEXT),
                sql.SQL(_FULL_XID.format(row="t")),
                sql.SQL("{}::pg_snapshot").format(sql.Literal(since)),
                sql.SQL(_LASTING.get(name, "true")),
            )
        )
        found.update(int(xid) for (xid,) in rows)
    return frozenset(found)


def written_after(connection: Connection, table: Table, snapshot: str) -> bool:
    """Whether a row of a table is of a transaction that `snapshot` does not see."""
    row = connection.execute(
        sql.SQL("SELECT EXISTS (SELECT FROM ONLY {} t, {} c WHERE NOT pg_visible_in_snapshot({}, {}))").format(
            table.identifier,
            sql.SQL(_NEXT),
            sql.SQL("({})::text::xid8").format(sql.SQL(_FULL_XID.format(row="t"))),
            sql.SQL("{}::pg_snapshot").format(sql.Literal(snapshot)),
        )
    ).fetchone()
    return bool(row and row[0])


class Comparison:
    """One table now against the same table in the clone.

    live, clone: connections to the two databases; live may be read-only. since: the restore point's snapshot. before:
    by default the migration's rewriting alone is asked for, whoever wrote before it.
    """

    def __init__(
        self,
        live: Connection,
        clone: Connection,
        *,
        since: str,
        migration: tuple[str, ...],
        before: WrittenBefore | None = None,
    ) -> None:
        self._live, self._clone, self._since, self._migration = live, clone, since, migration
        self._before = before

    def one_after_another(self, tables: Sequence[Table]) -> Iterator[tuple[Table, RowProgress]]:
        """Yield each table of the live database, and how far a comparison of them all is before it."""
        rows = self._live.execute(
            "SELECT oid::int8, pg_table_size(oid)::int8 FROM pg_class WHERE oid = ANY(%s)", [[t.oid for t in tables]]
        )
        sizes: dict[int, int] = dict(rows.fetchall())
        done, of = 0, sum(sizes.values())
        for table in tables:
            yield table, RowProgress(work=RowWork.COMPARED, done=done, of=of)
            done += sizes.get(table.oid, 0)

    def counts(self, now: Table, then: Table | None, *, rows_then: int) -> Mapping[str, int]:
        """Count by kind. An updated row that was written back as it was is counted too; deletions by arithmetic."""
        counted: Counter[str] = Counter()
        if then is None or not self._shared_key(now, then):
            row = self._live.execute(sql.SQL("SELECT count(*) FROM ({}) touched").format(self._touched(now))).fetchone()
            written = int(row[0]) if row else 0
            if then is not None and self._doubt(now, then, None):
                written += sum(by for by, _ in self._live.execute(self._touched(now, rows=True)))
            return {INSERTED if then is None else WRITTEN: written}
        self._lend_touched(now, then)
        rows = self._clone.execute(
            sql.SQL("SELECT CASE WHEN c.ctid IS NULL THEN {} ELSE {} END, count(*) FROM lastgood_now n {} "
                    "WHERE c.ctid IS NULL OR NOT n.by_migration GROUP BY 1").format(
                sql.Literal(INSERTED), sql.Literal(UPDATED), self._joined(now, then)
            )
        )  # fmt: skip
        counted.update({kind: int(count) for kind, count in rows})
        rewritten = self._clone.execute(
            sql.SQL("SELECT n.row::text FROM lastgood_now n {} WHERE c.ctid IS NOT NULL AND n.by_migration AND ({})")
            .format(self._joined(now, then), self._differs(now, then))
        )  # fmt: skip
        counted[UPDATED] += sum(bool(self._doubt(now, then, text)) for (text,) in rewritten)
        counted[DELETED] = self._gone(now, rows_then=rows_then, inserted=counted[INSERTED])
        return counted

    def changes(self, now: Table, then: Table | None, *, rows_then: int) -> Iterator[Change]:
        """Yield every row that differs. Both databases must be quiet."""
        if then is None or not self._shared_key(now, then):
            for by_migration, row in self._live.execute(self._touched(now, rows=True)):
                if not by_migration:
                    yield Change(kind=INSERTED if then is None else WRITTEN, row=row)
                elif then is not None:
                    yield self._by_migration(WRITTEN, row, None, self._doubt(now, then, None))
            return
        self._lend_touched(now, then)
        inserted = 0
        for kind, row, before, by_migration in self._clone.execute(
            sql.SQL(
                "SELECT CASE WHEN c.ctid IS NULL THEN {} WHEN n.by_migration THEN {} ELSE {} END, n.row::text, "
                "CASE WHEN c.ctid IS NOT NULL THEN row_to_json(c.*)::text END, n.by_migration "
                "FROM lastgood_now n {} WHERE c.ctid IS NULL OR {}"
            ).format(
                sql.Literal(INSERTED),
                sql.Literal(REWRITTEN),
                sql.Literal(UPDATED),
                self._joined(now, then),
                self._differs(now, then),
            )
        ):
            inserted += kind == INSERTED
            if kind == REWRITTEN:
                yield self._by_migration(UPDATED, row, before, self._doubt(now, then, row))
            else:
                yield Change(kind=kind, row=row, before=before, by_migration=by_migration)
        if self._gone(now, rows_then=rows_then, inserted=inserted):
            yield from self._deleted(now, then)

    def other_keys(self, now: Table, then: Table, *, rows_then: int, most: int) -> tuple[list[str], list[str]]:
        """Return the rows whose keys are gone, and the keys of rows that are new and that the migration wrote: as JSON
        text, one more than `most` of each where there are more. Nothing of a table without a comparable key.

        `live` must be in a transaction that sees one moment.
        """
        if not self._shared_key(now, then):
            return [], []
        keys = self._keys(now, then, of="t")
        self._copy(self._touched(now, key=keys, told=sql.SQL("NULL")), self._lend_empty(now, then))
        new = sql.SQL("FROM lastgood_now n {} WHERE c.ctid IS NULL").format(self._joined(now, then))
        counted = self._clone.execute(sql.SQL("SELECT count(*) {}").format(new)).fetchone()
        gone = self._gone(now, rows_then=rows_then, inserted=int(counted[0]) if counted else 0)
        key = sql.SQL(", ").join(sql.Identifier("n", f"key{number}") for number in range(len(keys)))
        made = self._clone.execute(
            sql.SQL("SELECT json_build_array({})::text {} AND n.by_migration LIMIT {}").format(
                key, new, sql.Literal(most + 1)
            )
        ).fetchall()
        deleted = self._deleted(now, then, most=most + 1) if gone else ()
        return [change.row for change in deleted], [text for (text,) in made]

    def large_objects_written(self) -> bool:
        return large_objects_made(self._live, self._since)

    @staticmethod
    def _by_migration(kind: str, row: str, before: str | None, doubt: str) -> Change:
        """kind: what it is where somebody may have written to it."""
        return Change(kind=kind if doubt else REWRITTEN, row=row, before=before, by_migration=True, doubt=doubt)

    def _doubt(self, now: Table, then: Table, row: str | None) -> str:
        if self._before is None:
            return ""
        if row is None:
            return self._before.doubt(then, None)
        told = json.loads(row, parse_float=Decimal)
        return self._before.doubt(then, [told[name] for name in now.named(then.key)])

    def _gone(self, now: Table, *, rows_then: int, inserted: int) -> int:
        """How many rows of the clone are not there any more: no key is compared for that."""
        ((_, rows_now),) = catalog.count_rows(self._live, (now,))
        return max(0, rows_then + inserted - rows_now)

    def _deleted(self, now: Table, then: Table, *, most: int | None = None) -> Iterator[Change]:
        """Rows of the clone whose key is not there any more. most: by default all of them."""
        keys = self._keys(now, then, of="t")
        query = sql.SQL("SELECT {}, false, NULL FROM ONLY {} t").format(sql.SQL(", ").join(keys), now.identifier)
        self._copy(query, self._lend_empty(now, then))
        for (row,) in self._clone.execute(
            sql.SQL(
                "SELECT row_to_json(c.*)::text FROM ONLY {} c WHERE NOT EXISTS (SELECT FROM lastgood_now n WHERE {}) "
                "LIMIT {}"
            ).format(then.identifier, self._same_key(now, then), sql.Literal(most))
        ):
            yield Change(kind=DELETED, row=row)

    @staticmethod
    def _shared_key(now: Table, then: Table) -> bool:
        return bool(then.key) and all(number in now.columns for number in then.key)

    @staticmethod
    def _keys(now: Table, then: Table, *, of: LiteralString) -> list[sql.Composable]:
        """The key's columns in `now` (of `t`) or `then` (of `c`); as text where the migration changed a type."""
        table, row = (now, "t") if of == "t" else (then, "c")
        retyped = any(now.types[number] != then.types[number] for number in then.key)
        text = sql.SQL("::text" if retyped else "")
        return [sql.Composed([sql.Identifier(row, name), text]) for name in table.named(then.key)]

    @staticmethod
    def _differs(now: Table, then: Table) -> sql.Composed:
        """A column that both have is not as it was; or somebody filled one that came since."""
        shared = [
            sql.SQL("n.row->{} IS DISTINCT FROM to_jsonb(c.{})").format(
                sql.Literal(now.columns[number]), sql.Identifier(name)
            )
            for number, name in then.columns.items()
            if number in now.columns
        ]
        new = [
            sql.SQL("(NOT n.by_migration AND n.row->{} <> 'null'::jsonb)").format(sql.Literal(name))
            for number, name in now.columns.items()
            if number not in then.columns
        ]
        return sql.SQL(" OR ").join([*shared, *new])

    def _touched(
        self, now: Table, *, key: Sequence[sql.Composable] = (), rows: bool = False, told: sql.SQL = _ROW
    ) -> sql.Composed:
        """The rows written since: key, whether the migration wrote it, row or what is told in its place.

        Of a table without a comparable key and without `rows`, only those that the migration did not write.
        """
        by_migration = sql.SQL("t.xmin::text = ANY({})").format(sql.Literal(list(self._migration)))
        wanted: list[sql.Composable] = [*key, by_migration]
        wanted += [told] if rows or key else []
        where = _since(self._since)
        if not rows and not key:
            where = sql.SQL("{} AND NOT {}").format(where, by_migration)
        return sql.SQL("SELECT {} FROM ONLY {} t, {} c WHERE {}").format(
            sql.SQL(", ").join(wanted), now.identifier, sql.SQL(_NEXT), where
        )

    def _lend_touched(self, now: Table, then: Table) -> None:
        self._copy(self._touched(now, key=self._keys(now, then, of="t")), self._lend_empty(now, then))

    def _lend_empty(self, now: Table, then: Table) -> sql.Composed:
        """Make a temporary table of keys in the clone, and return the statement that fills it."""
        keys = [
            sql.SQL("{} AS {}").format(key, sql.Identifier(f"key{number}"))
            for number, key in enumerate(self._keys(now, then, of="c"))
        ]
        with self._clone.transaction(), catalog.no_event_fires(self._clone):
            self._clone.execute("DROP TABLE IF EXISTS pg_temp.lastgood_now")
            self._clone.execute(
                sql.SQL(
                    "CREATE TEMPORARY TABLE lastgood_now AS "
                    "SELECT {}, false AS by_migration, NULL::jsonb AS row FROM ONLY {} c WITH NO DATA"
                ).format(sql.SQL(", ").join(keys), then.identifier)
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

    def _joined(self, now: Table, then: Table) -> sql.Composed:
        return sql.SQL("LEFT JOIN ONLY {} c ON {}").format(then.identifier, self._same_key(now, then))

    def _same_key(self, now: Table, then: Table) -> sql.Composed:
        return sql.SQL(" AND ").join(
            sql.SQL("n.{} = {}").format(sql.Identifier(f"key{number}"), key)
            for number, key in enumerate(self._keys(now, then, of="c"))
        )


def _since(snapshot: str) -> sql.Composed:
    """The transaction of row `t` was not surely over at the snapshot."""
    return sql.SQL("{} >= pg_snapshot_xmin({}::pg_snapshot)::text::bigint").format(
        sql.SQL(_FULL_XID.format(row="t")), sql.Literal(snapshot)
    )


def export(
    comparison: Comparison,
    kept: shelf.KeptPoint,
    tables: tuple[Table, ...],
    into: Path,
    *,
    go_on: Callable[[RowProgress], None],
) -> shelf.KeptExport:
    """Write one file of JSON lines for each table with changed rows, and return what it holds.

    What the migration rewrote is written too, into a folder of its own, and is not a loss: the swap takes it back.
    go_on: called before each table, raises when there is no time left.
    """
    then, rows_then = {table.oid: table for table in kept.tables}, dict(kept.point.rows)
    losses: list[Loss] = []
    rewritten: list[Loss] = []
    for table, so_far in comparison.one_after_another(tables):
        go_on(so_far)
        was = then.get(table.oid)
        label = was.label if was else table.label
        changes = comparison.changes(table, was, rows_then=rows_then.get(label, 0))
        lost, again = _export_table(changes, label, f"{stem(was or table)}.jsonl", into)
        losses += [lost] if lost.rows else []
        rewritten += [again] if again.rows else []
    gone = then.keys() - {table.oid for table in tables}
    notes = [
        f"{then[oid].label} was dropped: what was written to it before that cannot be told" for oid in sorted(gone)
    ]
    notes += [f"{t.label} has no primary key: deletions cannot be told" for t in kept.tables if not t.key]
    if comparison.large_objects_written():
        notes.append("large objects were written, which are not exported: they are in the database that is kept")
    return shelf.KeptExport(export=into.name, losses=tuple(losses), rewritten=tuple(rewritten), notes=tuple(notes))


def stem(table: Table) -> str:
    """The table's name where that can be a file's and no other table can have the same."""
    parts = (table.name,) if table.schema == "public" else (table.schema, table.name)
    plain = all(NAME_GRAMMAR.fullmatch(part) and "." not in part for part in parts)
    return ".".join(parts) if plain else f"table-{table.oid}"


def _export_table(changes: Iterator[Change], label: str, name: str, into: Path) -> tuple[Loss, Loss]:
    files = into / name, shelf.folder(into / "rewritten") / name
    counted = [0, 0]
    opened = [os.fdopen(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") for path in files]
    try:
        for change in changes:
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
    lost, again = (
        Loss(table=label, rows=rows, file=str(path.relative_to(into)))
        for path, rows in zip(files, counted, strict=True)
    )
    return lost, again
