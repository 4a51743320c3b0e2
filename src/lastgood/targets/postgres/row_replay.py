"""Puts the rows written since a restore point into its clone, in their last state: where no transaction was captured.

What can be told from rows alone is told, and no more: which rows differ, not in which order and by which transactions
they came to. A row that only the migration wrote stays as it was. Where the application wrote to a row too, a column
that the migration rewrote elsewhere in that table may hold its work or the application's: such a value waits in
quarantine, and the rest of the row is carried. A row that was gone when the migration was over may have been deleted by
it: its deletion waits as well.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from lastgood.core.errors import Refused
from lastgood.core.report import Loss, Replayed, RowProgress, RowWork
from lastgood.targets.postgres import catalog, shelf
from lastgood.targets.postgres.broken import broken_keys, keys_that_break
from lastgood.targets.postgres.catalog import Name, Table
from lastgood.targets.postgres.connect import Connection
from lastgood.targets.postgres.merge import CASCADING, NUMBERS, crosses_zones, written, zone_unknown
from lastgood.targets.postgres.replay import (
    APPLY,
    LEFT_OUT,
    QUARANTINE,
    REFUSE,
    disable_triggers,
    make_room,
)
from lastgood.targets.postgres.writes import (
    DELETED,
    INSERTED,
    REWRITTEN,
    UPDATED,
    WRITTEN,
    Change,
    Comparison,
    key_text,
)

AT_ONCE: Final = 500
SAMPLE: Final = 200
"""Rows of a table that are compared to see what the migration made of its columns."""
MOST_NOTED: Final = 10_000
"""Keys of a table that are noted when a migration is over; of one that lost more, no deletion is carried."""
ROUNDS: Final = 10
"""How often rows that break an invariant are taken out, and the rest is carried anew."""
_TAKEN: Final = "(23505)"
_WAITS_FOR_ANOTHER: Final = ("(23503)", _TAKEN)
"""A row that it refers to, or that has its key, may still come or go."""
_GREATEST_SMALL: Final = 2**15 - 1
_GREATEST: Final = 2**31 - 1
_TEXTS: Final = ("text", "character varying", "citext")
_UNIQUE: Final = """
SELECT n.nspname, r.relname, ARRAY(SELECT a.attname::text FROM pg_attribute a
    WHERE a.attrelid = r.oid AND a.attnum = ANY(x.indkey[0:indnkeyatts - 1]) ORDER BY a.attnum)
FROM pg_index x JOIN pg_class r ON r.oid = x.indrelid JOIN pg_namespace n ON n.oid = r.relnamespace
WHERE x.indisunique AND NOT x.indisprimary AND x.indexprs IS NULL AND n.nspname NOT LIKE 'pg\\_%'
"""
_REFERENCES: Final[LiteralString] = """
SELECT ARRAY[m.nspname, s.relname]::text[], ARRAY[n.nspname, r.relname]::text[], quote_ident(c.conname),
    c.confupdtype IN ('c', 'n', 'd'), c.confupdtype = 'c',
    pg_get_constraintdef(c.oid), obj_description(c.oid, 'pg_constraint'),
    ARRAY(SELECT k.attname::text FROM unnest(c.conkey) WITH ORDINALITY key (n, i)
          JOIN pg_attribute k ON (k.attrelid, k.attnum) = (c.conrelid, key.n) ORDER BY i),
    ARRAY(SELECT p.attname::text FROM unnest(c.confkey) WITH ORDINALITY key (n, i)
          JOIN pg_attribute p ON (p.attrelid, p.attnum) = (c.confrelid, key.n) ORDER BY i)
FROM pg_constraint c JOIN pg_class r ON r.oid = c.confrelid JOIN pg_namespace n ON n.oid = r.relnamespace
JOIN pg_class s ON s.oid = c.conrelid JOIN pg_namespace m ON m.oid = s.relnamespace
WHERE c.contype = 'f' AND c.conparentid = 0
"""
_WHILE_IT_RAN: Final = (
    "{} rows that the migration wrote last are as they were before: what was written to one of them while its command "
    "ran, before it came to that row, cannot be told, and is in the folder rewritten of the export"
)
_WHO_DELETED: Final = "whether the migration deleted it or the application cannot be told"
_MARK: Final = "CREATE TABLE lastgood.carried_rows (replay text NOT NULL, replayed json NOT NULL)"

Row = dict[str, Any]
_TakenAlong = dict[Name, list[tuple[str, list[list[str]]]]]
"""By table: the tables whose rows go when one here is deleted, and by which columns (its, theirs)."""


@dataclass(slots=True)
class _Written:
    """A row that is not as it was. values: what is carried, by the old schema's names; key: where it is found.
    table: that it stands in, by default what that was called."""

    then: Table
    kind: str
    key: Row
    values: Row
    old: Row | None
    reason: str = ""
    table: str = ""

    @property
    def label(self) -> str:
        return self.table or self.then.label

    @property
    def whole(self) -> Row:
        """All that is known of it, as it is to be."""
        return {**(self.old or {}), **self.key, **self.values}

    def is_in(self, table: Name, roots: Mapping[Name, Name]) -> bool:
        """Whether it stands there, or in a part of that."""
        return table in (self.then.called, roots.get(self.then.called))

    def values_at(self, place: tuple[str, str, str] | None, roots: Mapping[Name, Name]) -> Collection[object]:
        """Return its value of the column that a place names, those of its key where no place is known."""
        if place is None:
            return self.key.values()
        *table, column = place
        ours, row = self.then.called, (self.old or {}) | self.key | self.values
        return [row[column]] if tuple(table) in (ours, roots.get(ours)) and column in row else []

    def told(self) -> Row:
        shown = {"old": self.old, "new": None if self.kind == DELETED else self.values}
        change = {"table": self.label, "kind": self.kind, "key": self.key, **shown}
        return {
            "id": f"{self.label}:{'-'.join(str(v) for v in self.key.values()) or 'row'}",
            "xid": None,
            "commit_lsn": None,
            "committed_at": None,
            "reason": self.reason,
            "changes": [change],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reference:
    """A foreign key. follows: it changes with the key that it refers to; cascades: to what that becomes. own, theirs:
    names of the columns."""

    child: Name
    parent: Name
    name: str
    follows: bool
    cascades: bool
    definition: str
    comment: str | None
    own: tuple[str, ...]
    theirs: tuple[str, ...]

    def let_go(self, clone: Connection) -> None:
        """Take it out of the clone, until it is `put_back`."""
        clone.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(sql.Identifier(*self.child), self._name))

    def put_back(self, clone: Connection) -> None:
        """Put it into the clone, as it was; the server looks whether all of it is so."""
        table = sql.Identifier(*self.child)
        clone.execute(
            sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(table, self._name, written(self.definition))
        )
        if self.comment is not None:
            how = sql.SQL("COMMENT ON CONSTRAINT {} ON {} IS {}")
            clone.execute(how.format(self._name, table, sql.Literal(self.comment)))

    @property
    def _name(self) -> sql.SQL:
        return written(self.name)

    def without_row(self, clone: Connection) -> Iterator[str | None]:
        """Yield to what rows refer that is not there, as `_key` has it."""
        own, theirs = (
            sql.SQL(", ").join(sql.Identifier(of, name) for name in names)
            for of, names in (("c", self.own), ("p", self.theirs))
        )
        known = sql.SQL(" AND ").join(sql.SQL("{} IS NOT NULL").format(sql.Identifier("c", n)) for n in self.own)
        asked = sql.SQL(
            "SELECT row_to_json(k)::text FROM (SELECT DISTINCT {} FROM {} c WHERE {} "
            "AND NOT EXISTS (SELECT FROM {} p WHERE ({}) = ({}))) k"
        ).format(own, sql.Identifier(*self.child), known, sql.Identifier(*self.parent), theirs, own)
        for (text,) in clone.execute(asked).fetchall():
            yield _key(json_row(text), self.own)


@dataclass(slots=True)
class _Found:
    """All that was written. doubtful: values of which nobody can tell whose they are; left_out: those for which the old
    schema has no place; rewritten: how many rows the migration wrote last, and nobody before it as far as was noted."""

    rows: list[_Written] = field(default_factory=list["_Written"])
    doubtful: list[_Written] = field(default_factory=list["_Written"])
    left_out: list[Row] = field(default_factory=list[Row])
    rewritten: int = 0


def rewritten_columns(
    live: Connection, clone: Connection, kept: shelf.KeptPoint, *, migration: tuple[str, ...]
) -> dict[int, tuple[int, ...]]:
    """Return the columns by table that the migration gave other values, as far as SAMPLE rows of each table show it.

    Asked right after the migration: once the application has written to all of its rows, nothing shows it any more.
    """
    now = {table.oid: table for table in catalog.tables(live)}
    found: dict[int, tuple[int, ...]] = {}
    for was in kept.tables:
        if (table := now.get(was.oid)) is None or not was.key or not all(n in table.columns for n in was.key):
            continue
        rows = live.execute(
            sql.SQL("SELECT row_to_json(t.*)::text FROM ONLY {} t WHERE t.xmin::text = ANY(%s) LIMIT %s").format(
                table.identifier
            ),
            [list(migration), SAMPLE],
        )
        numbers = {name: number for number, name in was.columns.items()}
        different: set[int] = set()
        for row in (json_row(text) for (text,) in rows.fetchall()):
            key = {was.columns[n]: row[table.columns[n]] for n in was.key}
            query = sql.SQL("SELECT row_to_json(t.*)::text FROM ONLY {} t WHERE {}").format(
                was.identifier, _at(was, key)
            )
            if (before := clone.execute(query).fetchone()) is not None:
                different |= {numbers[name] for name in differing(table, was, row, json_row(before[0]))}
        if different:
            found[was.oid] = tuple(sorted(different))
    return found


def other_keys(
    live: Connection, clone: Connection, kept: shelf.KeptPoint, *, migration: tuple[str, ...]
) -> dict[int, shelf.OtherKeys]:
    """Return the keys by table that are not the clone's, at most MOST_NOTED of each kind. Nothing where none is gone.

    Asked right after the migration: later, nothing tells its deletions from the application's.
    """
    found: dict[int, shelf.OtherKeys] = {}
    rows_then, then = dict(kept.point.rows), {table.oid: table for table in kept.tables}
    with live.transaction():
        live.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        comparison = Comparison(live, clone, since=kept.point.snapshot, migration=migration)
        for now in catalog.tables(live):
            if (was := then.get(now.oid)) is None:
                continue
            rows, keys = comparison.other_keys(now, was, rows_then=rows_then.get(was.label, 0), most=MOST_NOTED)
            if rows or keys:
                gone = tuple(key_text(json_row(text)[name] for name in was.named(was.key)) for text in rows)
                made = tuple(key_text(json.loads(text, parse_float=Decimal)) for text in keys)
                whole = max(len(gone), len(made)) <= MOST_NOTED
                found[was.oid] = shelf.OtherKeys(gone=gone[:MOST_NOTED], made=made[:MOST_NOTED], whole=whole)
    return found if any(others.gone for others in found.values()) else {}


def carried(clone: Connection, replay: str) -> Replayed | None:
    """Return what became of the rows that this replay carried into the clone; None when none were carried.

    Raises Refused when another replay did: what was written since that one cannot be told from the clone any more.
    """
    if clone.execute("SELECT to_regclass('lastgood.carried_rows')").fetchone() == (None,):
        return None
    row = clone.execute("SELECT replay, replayed::text FROM lastgood.carried_rows").fetchone()
    if row is None:
        return None
    if row[0] != replay:
        raise Refused(
            f"{clone.info.dbname} holds the rows that {row[0]} carried, and is no restore point any more",
            hint="lastgood restore-points list",
        )
    return shelf.KEPT_REPLAY.validate_json(row[1])


def carry(
    comparison: Comparison,
    source: Connection,
    clone: Connection,
    kept: shelf.KeptPoint,
    into: Path,
    *,
    replay: str,
    invariants: Mapping[str, str],
    rewritten: Mapping[int, Collection[int]],
    migrations: Collection[shelf.KeptMigration],
    go_on: Callable[[RowProgress], None],
) -> Replayed:
    """Carry what `comparison` finds into the clone, all in one transaction of it. Both databases must be quiet.

    rewritten: columns by table that the migration is known to have rewritten. migrations: what was noted of each since,
    none where nothing was. Files in `into` hold what does not fit, written before that transaction ends. go_on: raises
    when there is no time left. Raises Refused when the rows break an invariant and nobody can tell which of them does.
    """
    found = _find(comparison, source, clone, kept, rewritten=rewritten, migrations=migrations, go_on=go_on)
    taken_out: list[_Written] = []
    made, references = catalog.generated(clone), _references(clone)
    for row in found.rows:
        row.values = {n: value for n, value in row.values.items() if (row.then.schema, row.then.name, n) not in made}
    with clone.transaction():
        _prepare(clone)
        before = {name: frozenset(keys_that_break(clone, text)) for name, text in invariants.items()}
        let_go = references.that_follow(found.rows)
        for reference in let_go:
            reference.let_go(clone)
        taken_along = _taken_along(clone)
        for _ in range(ROUNDS):
            with clone.transaction() as attempt:
                refused = _put(clone, found.rows, taken_along, go_on=go_on)
                waiting = [*refused, *taken_out, *found.doubtful]
                breaking = list(references.left_behind(clone, let_go, found.rows, waiting))
                breaking = breaking or list(_breaking(clone, found.rows, invariants, before))
                breaking += references.to_what_waits(found.rows, [*waiting, *breaking])
                breaking += references.to_nothing(clone, let_go, found.rows)
                if breaking:
                    raise psycopg.Rollback(attempt)
            if not breaking:
                break
            taken_out += breaking
            out = set(map(id, breaking))
            found.rows = [row for row in found.rows if id(row) not in out]
        else:
            raise Refused(f"the rows written since {kept.point.id} break invariants, and it cannot be told which do")
        for reference in let_go:
            reference.put_back(clone)
        replayed = _write_down(found, [*taken_out, *refused], source, clone, kept, into)
        stale = catalog.to_refresh(view.as_string(clone) for view in catalog.materialized_views(clone))
        large = (catalog.LARGE_OBJECTS_MADE,) if comparison.large_objects_written() else ()
        replayed = replace(replayed, notes=(*replayed.notes, *stale, *large))
        clone.execute(
            sql.SQL("INSERT INTO lastgood.carried_rows VALUES ({}, {})").format(
                sql.Literal(replay), sql.Literal(shelf.KEPT_REPLAY.dump_json(replayed).decode())
            )
        )
    return replayed


def _prepare(clone: Connection) -> None:
    make_room(clone)
    clone.execute(_MARK)
    clone.execute(REFUSE)
    clone.execute(APPLY)
    disable_triggers(clone)


# --- what was written ------------------------------------------------------------------------------------------------


def _find(
    comparison: Comparison,
    source: Connection,
    clone: Connection,
    kept: shelf.KeptPoint,
    *,
    rewritten: Mapping[int, Collection[int]],
    migrations: Collection[shelf.KeptMigration],
    go_on: Callable[[RowProgress], None],
) -> _Found:
    found, then, whose = _Found(), {table.oid: table for table in kept.tables}, _Whose(migrations)
    rows_then = dict(kept.point.rows)
    for now, so_far in comparison.one_after_another(catalog.tables(source)):
        go_on(so_far)
        was = then.get(now.oid)
        if was is None:
            continue
        ours: list[_Written] = []
        doubtful = {was.columns[number] for number in rewritten.get(was.oid, ()) if number in was.columns}
        written = 0
        for change in comparison.changes(now, was, rows_then=rows_then.get(was.label, 0)):
            if change.kind == REWRITTEN or change.doubt:
                doubtful |= differing(now, was, json_row(change.row), json_row(change.before))
                if change.doubt:
                    found.doubtful.append(replace(_of(now, was, change, _Found()), reason=change.doubt))
                found.rewritten += not change.doubt
                continue
            written += change.kind == WRITTEN
            row = _of(now, was, change, found)
            if reason := whose.doubt(row, by_migration=change.by_migration):
                found.doubtful.append(replace(row, reason=reason))
            else:
                ours.append(row)
        if written:
            _judge_keyless(ours, source, was, now, rows_then=rows_then.get(was.label, 0))
        for row in ours:
            _set_doubtful_apart(row, doubtful, found)
            _set_zones_apart(row, now, found)
            _check_large_objects(row, source, clone)
        found.rows += [row for row in ours if row.values or row.kind == DELETED]
    partitions = [*catalog.later_partitions(source, clone, kept.tables)]
    compared = comparison.one_after_another([later.leaf for later in partitions])
    for later, (_, so_far) in zip(partitions, compared, strict=True):
        go_on(so_far)
        for change in comparison.changes(later.leaf, None, rows_then=0):
            row = replace(_of(later.leaf, later.home, change, found), table=later.leaf.label)
            _set_zones_apart(row, later.leaf, found)
            _check_large_objects(row, source, clone)
            found.rows.append(row)
    return found


class _Whose:
    """What can be told of keys that came or went. noted: of each migration since, empty where nothing was."""

    def __init__(self, noted: Collection[shelf.KeptMigration]) -> None:
        self._seen = bool(noted) and all(migration.ended for migration in noted)
        keys = [(table, keys) for migration in noted for table, keys in migration.keys.items()]
        self._gone = {(table, key) for table, found in keys for key in found.gone}
        self._made = {(table, key) for table, found in keys for key in found.made}
        self._more = {table for table, found in keys if not found.whole}

    def doubt(self, row: _Written, *, by_migration: bool) -> str:
        """Say why this may be the migration's own work; empty where it is not."""
        table, key, label = row.then.oid, key_text(row.key.values()), row.then.label
        if row.kind == DELETED:
            if not self._seen:
                return f"nobody saw the migration end: {_WHO_DELETED}"
            if table in self._more:
                return f"more rows of {label} were gone when the migration was over than are noted: {_WHO_DELETED}"
            return f"it was gone when the migration was over: {_WHO_DELETED}" if (table, key) in self._gone else ""
        if row.kind == INSERTED and (by_migration or (table, key) in self._made) and (self._gone or not self._seen):
            return "the migration wrote it, and may have moved it here from a row that is there again"
        return ""


def _of(now: Table, was: Table, change: Change, found: _Found) -> _Written:
    """The row in the old schema's names. What it has no place for is left out, and noted."""
    row = json_row(change.row)
    if change.kind == DELETED:
        return _Written(then=was, kind=DELETED, key={n: row[n] for n in was.named(was.key)}, values={}, old=row)
    values = {name: row[now.columns[number]] for number, name in was.columns.items() if number in now.columns}
    before = json_row(change.before) if change.before else None
    if before is not None:
        different = differing(now, was, row, before)
        values = {name: value for name, value in values.items() if name in different}
    key = {was.columns[n]: row[now.columns[n]] for n in was.key if n in now.columns}
    new = {name: row[name] for n, name in now.columns.items() if n not in was.columns and row[name] is not None}
    if new:
        found.left_out.append({"commit_lsn": None, "committed_at": None, "table": was.label, "key": key, "values": new})
    return _Written(then=was, kind=change.kind, key=key, values=values, old=before)


def json_row(text: str | None) -> Row:
    """Read a row as the server writes it, numbers to their last digit."""
    row: Row = json.loads(text, parse_float=Decimal) if text else {}
    return row


def differing(now: Table, was: Table, row: Row, before: Row) -> set[str]:
    """Return the columns, by their old names, whose value is not the one before."""
    return {
        name
        for number, name in was.columns.items()
        if number in now.columns
        and not _same(row[now.columns[number]], before.get(name), types=(now.types[number], was.types[number]))
    }


def _same(one: object, other: object, *, types: tuple[str, str]) -> bool:
    """Equal, also where the migration gave the column a type that is written another way. Of one type, whatever is
    written alike: `true` is not 1 within a document, and 007 is not 7 but in a number."""
    if one is None or other is None:
        return one is other
    if all(kind.startswith(NUMBERS) and not kind.endswith("]") for kind in types):
        with suppress(InvalidOperation):
            return Decimal(str(one)) == Decimal(str(other))
    if types[0] == types[1]:
        return shelf.json_text(one) == shelf.json_text(other)
    return key_text([one]) == key_text([other])


def _judge_keyless(ours: Sequence[_Written], source: Connection, was: Table, now: Table, *, rows_then: int) -> None:
    """Without a key a row that was written is a new one only where there are as many more rows as were written."""
    ((_, rows_now),) = catalog.count_rows(source, (now,))
    if rows_now - rows_then != len(ours):
        for row in ours:
            row.reason = f"{was.label} has no key: whether this row is new or was changed cannot be told"


def _set_doubtful_apart(row: _Written, rewritten: set[str], found: _Found) -> None:
    doubtful = {name: row.values[name] for name in rewritten & row.values.keys()} if row.old is not None else {}
    if doubtful:
        names = ", ".join(sorted(doubtful))
        why = f"the migration rewrote {names} in {row.then.label}: whose value this is cannot be told"
        found.doubtful.append(
            _Written(then=row.then, kind=row.kind, key=row.key, values=doubtful, old=row.old, reason=why)
        )
        row.values = {name: value for name, value in row.values.items() if name not in doubtful}


def _set_zones_apart(row: _Written, now: Table, found: _Found) -> None:
    """A value that depends on a time zone waits: alone where the row is in the clone, else with its row."""
    types = {name: (row.then.types[n], now.types.get(n, row.then.types[n])) for n, name in row.then.columns.items()}
    zoned = [
        name for name, value in (row.key | row.values).items() if value is not None and crosses_zones(*types[name])
    ]
    if not zoned:
        return
    why = zone_unknown(f"{row.then.label}.{zoned[0]}", *types[zoned[0]])
    if row.old is None or row.kind == DELETED or not row.key.keys().isdisjoint(zoned):
        row.reason = row.reason or why
        return
    values = {name: row.values.pop(name) for name in zoned}
    found.doubtful.append(_Written(then=row.then, kind=row.kind, key=row.key, values=values, old=row.old, reason=why))


def _check_large_objects(row: _Written, source: Connection, clone: Connection) -> None:
    for number, name in row.then.columns.items():
        if catalog.lacks_large_object(source, clone, row.then.types[number], row.values.get(name)):
            told = f"{row.then.label}.{name} names large object {row.values[name]}"
            row.reason = row.reason or f"{told}, which was made since and is in no row"


# --- into the clone --------------------------------------------------------------------------------------------------


def _taken_along(clone: Connection) -> _TakenAlong:
    found: defaultdict[Name, list[tuple[str, list[list[str]]]]] = defaultdict(list)
    for schema, table, child, _, columns in clone.execute(CASCADING):
        found[schema, table].append((child, columns))
    return found | {leaf: found[root] for leaf, root in catalog.roots(clone).items() if root in found}


@dataclass(frozen=True, slots=True, kw_only=True)
class _References:
    """The foreign keys of the clone. One that follows the key that it refers to would have rows follow it that are not
    there any more, or are there already: what each became is in the live rows. So it is let go of while they are put
    into the clone, and what it stands for is looked at afterwards."""

    all: Sequence[_Reference]
    roots: Mapping[Name, Name]

    def that_follow(self, rows: Sequence[_Written]) -> list[_Reference]:
        """Return those that would follow one of these."""
        changed = defaultdict[Name, set[str]](set)
        for row in rows:
            if row.kind == UPDATED:
                for table in {row.then.called, self.roots.get(row.then.called, row.then.called)}:
                    changed[table] |= row.values.keys()
        return [key for key in self.all if key.follows and not changed[key.parent].isdisjoint(key.theirs)]

    def left_behind(
        self, clone: Connection, let_go: Sequence[_Reference], rows: Sequence[_Written], waiting: Sequence[_Written]
    ) -> Iterator[_Written]:
        """Have rows that wait follow the one that they refer to in the clone; yield it where they do not."""
        for key in let_go:
            gone = [row for row in rows if row.kind == DELETED and row.is_in(key.parent, self.roots)]
            moved = {
                _key(row.old or {}, key.theirs): row for row in (*gone, *self._given(rows, key.parent, key.theirs))
            }
            moved.pop(None, None)
            stay = [row for row in waiting if row.kind == DELETED and row.is_in(key.child, self.roots)]
            for row in (*stay, *self._given(waiting, key.child, key.own)) if moved else ():
                of = moved.get(_key(row.old, key.own)) if row.old else None
                if of is None or of.reason:
                    continue
                if key.cascades and DELETED not in (of.kind, row.kind):
                    values = {own: of.whole[theirs] for own, theirs in zip(key.own, key.theirs, strict=True)}
                    follow = _statement(replace(row, values=values), {}).as_string(clone)
                    if clone.execute("SELECT lastgood.apply(%s)", [[follow]]).fetchone() == (None,):
                        continue
                of.reason = f"rows of {'.'.join(key.child)} that wait refer to it as it was"
                yield of

    def to_what_waits(self, rows: Sequence[_Written], waiting: Sequence[_Written]) -> Iterator[_Written]:
        """Yield rows that came through and refer by a new value to one that waits: at that key stands another one."""
        for key in self.all:
            meant = {_key(row.whole, key.theirs): row for row in self._given(waiting, key.parent, key.theirs)}
            meant.pop(None, None)
            for row in self._given(rows, key.child, key.own) if meant else ():
                if not row.reason and (of := meant.get(_key(row.whole, key.own))) is not None:
                    row.reason = f"what it refers to in {of.label} waits"
                    yield row

    def to_nothing(
        self, clone: Connection, let_go: Sequence[_Reference], rows: Sequence[_Written]
    ) -> Iterator[_Written]:
        """Yield rows that refer to one that is not there, or that were at a key to which others still refer."""
        for key in let_go:
            missing = set(key.without_row(clone))
            ours = [row for row in rows if not row.reason] if missing else []
            for row in self._given(ours, key.child, key.own):
                if _key(row.whole, key.own) in missing:
                    row.reason = f"what it refers to in {'.'.join(key.parent)} is not there"
                    yield row
            missing -= {_key(row.whole, key.own) for row in self._given(ours, key.child, key.own)}
            for row in ours:
                if row.reason or not row.old or not row.is_in(key.parent, self.roots):
                    continue
                if _key(row.old, key.theirs) in missing:
                    row.reason = f"rows of {'.'.join(key.child)} that stay refer to it as it was"
                    yield row

    def _given(self, rows: Iterable[_Written], table: Name, names: Sequence[str]) -> Iterator[_Written]:
        """Yield those of a table that get a value there."""
        for row in rows:
            if row.kind != DELETED and not row.values.keys().isdisjoint(names) and row.is_in(table, self.roots):
                yield row


def _references(clone: Connection) -> _References:
    told = clone.execute(_REFERENCES).fetchall()
    return _References(
        all=[
            _Reference(
                child=(child[0], child[1]),
                parent=(parent[0], parent[1]),
                name=name,
                follows=follows,
                cascades=cascades,
                definition=definition,
                comment=comment,
                own=tuple(own),
                theirs=tuple(theirs),
            )
            for child, parent, name, follows, cascades, definition, comment, own, theirs in told
        ],
        roots=catalog.roots(clone),
    )


def _key(row: Row, names: Sequence[str]) -> str | None:
    """The same for what is equal; None where it refers to nothing, or is not told."""
    values = [row.get(name) for name in names]
    if None in values:
        return None
    return key_text(format(value.normalize(), "f") if isinstance(value, Decimal) else value for value in values)


def _put(
    clone: Connection, rows: Iterable[_Written], taken_along: _TakenAlong, *, go_on: Callable[[RowProgress], None]
) -> list[_Written]:
    """Put the rows into the clone; return those that do not fit, with the reason. What waits for another row is tried
    again as long as any comes through."""
    refused = [row for row in rows if row.reason]
    left = [row for row in rows if not row.reason]
    of = len(left)
    while left:
        waiting: list[_Written] = []
        for at in range(0, len(left), AT_ONCE):
            go_on(RowProgress(work=RowWork.PUT_BACK, done=of - len(left) + at, of=of))
            for row, answer in _answers(clone, left[at : at + AT_ONCE], taken_along):
                row.reason = answer
                if answer.endswith(_WAITS_FOR_ANOTHER):
                    waiting.append(row)
                elif answer and row.kind == DELETED and row.then.called in taken_along:
                    row.reason = "rows that stay would be taken along by its deletion"
                    waiting.append(row)
                elif answer:
                    refused.append(row)
        if len(waiting) == len(left):
            exchanged = _exchange(clone, waiting)
            if not exchanged:
                return [*refused, *waiting]
            waiting = [row for row in waiting if id(row) not in exchanged]
        for row in waiting:
            row.reason = ""
        left = waiting
    return refused


def _exchange(clone: Connection, waiting: Sequence[_Written]) -> set[int]:
    """Put rows into the clone of which each gets a unique value that another one has until then: all those at once,
    each with a value that nobody has in between. Return the ids of those that came through."""
    through = set[int]()
    unique = defaultdict[Name, list[tuple[str, ...]]](list)
    for schema, table, columns in clone.execute(_UNIQUE):
        unique[schema, table].append(tuple(columns))
    for rows in _circles([row for row in waiting if row.kind == UPDATED and row.reason.endswith(_TAKEN)], unique):
        told = {name for columns in unique[rows[0].then.called] for name in columns}
        for between in (
            [replace(row, values=dict.fromkeys(told & row.values.keys())) for row in rows],  # which no key refers by
            [replace(r, values={n: _nobodys(r, n, at) for n in told & r.values.keys()}) for at, r in enumerate(rows)],
        ):
            statements = [_statement(row, {}).as_string(clone) for row in (*between, *rows)]
            if clone.execute("SELECT lastgood.apply(%s)", [statements]).fetchone() == (None,):
                through.update(map(id, rows))
                for row in rows:
                    row.reason = ""
                break
    return through


def _circles(rows: Sequence[_Written], unique: Mapping[Name, Sequence[tuple[str, ...]]]) -> Iterator[list[_Written]]:
    """Yield those that hang together: one gets what another has."""

    def having(row: _Written, values: Row) -> Iterator[tuple[object, ...]]:
        for columns in unique[row.then.called]:
            told = [values.get(name) for name in columns]
            if None not in told and not row.values.keys().isdisjoint(columns):
                yield (row.then.called, columns, key_text(told))

    has = {of: row for row in rows for of in having(row, row.old or {})}
    circle = {id(row): [row] for row in rows}
    for row in rows:
        for of in having(row, {**(row.old or {}), **row.values}):
            other = circle[id(has.get(of, row))]
            if other is not (mine := circle[id(row)]):
                mine += other
                circle.update((id(each), mine) for each in other)
    yield from {id(each): each for each in circle.values() if len(each) > 1}.values()


def _nobodys(row: _Written, name: str, place: int) -> object:
    """A value that it has for a moment. One that is taken, or that a constraint refuses, lets the row wait."""
    kind = next(row.then.types[n] for n, column in row.then.columns.items() if column == name)
    if kind.startswith(NUMBERS):
        return (_GREATEST_SMALL if kind == "smallint" else _GREATEST) - place
    return f"{row.old[name]}~{place}" if row.old and kind.startswith(_TEXTS) and row.old[name] is not None else None


def _answers(clone: Connection, rows: Sequence[_Written], taken_along: _TakenAlong) -> Iterator[tuple[_Written, str]]:
    with clone.pipeline():
        said = ((row, _statement(row, taken_along).as_string(clone)) for row in rows)
        asked = [(row, clone.execute("SELECT lastgood.apply(%s)", [[statement]])) for row, statement in said]
    for row, answer in asked:
        told = answer.fetchone()
        yield row, str(told[0]) if told and told[0] else ""


def _statement(row: _Written, taken_along: _TakenAlong) -> sql.Composed:
    table, columns = row.then.identifier, sql.SQL(", ").join(map(sql.Identifier, row.values))
    key = _at(row.then, row.key)
    if row.kind == DELETED:
        alone = [
            sql.SQL(
                " AND NOT EXISTS (SELECT FROM {} c WHERE ({}) = (p.{}) "
                "AND (c.tableoid, c.ctid) <> (p.tableoid, p.ctid))"
            ).format(
                written(child),
                sql.SQL(", ").join(sql.SQL("c.") + sql.Identifier(own) for _, own in columns),
                sql.SQL(", p.").join(sql.Identifier(theirs) for theirs, _ in columns),
            )
            for child, columns in taken_along.get(row.then.called, ())
        ]
        return sql.SQL("DELETE FROM ONLY {} p WHERE {}{}").format(table, key, sql.Composed(alone))
    values = sql.SQL("SELECT {} FROM {}").format(columns, _record(row.then, row.values))
    if row.kind in (INSERTED, WRITTEN):
        return sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE {}").format(table, columns, values)
    return sql.SQL("UPDATE ONLY {} SET ({}) = ({}) WHERE {}").format(table, columns, values, key)


def _at(then: Table, key: Row) -> sql.Composed:
    names = sql.SQL(", ").join(map(sql.Identifier, key))
    return sql.SQL("({}) = (SELECT {} FROM {})").format(names, names, _record(then, key))


def _record(then: Table, values: Row) -> sql.Composed:
    return sql.SQL("json_populate_record(NULL::{}, {}::json)").format(
        then.identifier, sql.Literal(shelf.json_text(values))
    )


def _breaking(
    clone: Connection, rows: Iterable[_Written], invariants: Mapping[str, str], before: Mapping[str, frozenset[str]]
) -> Iterator[_Written]:
    """Yield the rows that break what held before: those of the table whose value the key is; where it is computed,
    each that has that key. Raises Refused when the key that a broken invariant names is none of a row that was
    carried."""
    ours, roots, seen = [row for row in rows if not row.reason], catalog.roots(clone), set[int]()
    for name, statement in invariants.items():
        broken, by_key = broken_keys(clone, statement), defaultdict[str, list[_Written]](list)
        for row in ours if set(broken.keys) - before[name] else ():
            for value in row.values_at(broken.place, roots):
                by_key[str(value)].append(row)
        for key in set(broken.keys) - before[name]:
            if not (found := by_key[key]):
                raise Refused(f"{name} breaks for {key}, which no row written since has as its key")
            sure = len({row.then.oid for row in found}) == 1
            doubt = f"the invariant {name} breaks for {key}, and of which table that key is cannot be told"
            for row in found:
                if id(row) not in seen:
                    seen.add(id(row))
                    row.reason = f"it breaks the invariant {name}: {key}" if sure else doubt
                    yield row


def _write_down(
    found: _Found, refused: Sequence[_Written], source: Connection, clone: Connection, kept: shelf.KeptPoint, into: Path
) -> Replayed:
    shelf.folder(into)
    waiting = [*refused, *found.doubtful]
    shelf.write_lines(into / QUARANTINE, (row.told() for row in waiting))
    shelf.write_lines(into / LEFT_OUT, found.left_out)
    carried_rows = Counter(row.then.label for row in found.rows if not row.reason)
    lost = Counter(row.label for row in waiting)
    left = Counter(line["table"] for line in found.left_out)
    return Replayed(
        units="rows",
        total=carried_rows.total() + len(waiting),
        quarantined=len(waiting),
        skipped=0,
        carried=tuple(sorted(carried_rows.items())),
        losses=tuple(Loss(table=t, rows=n, file=str(into / QUARANTINE)) for t, n in lost.most_common()),
        left_out=tuple(Loss(table=t, rows=n, file=str(into / LEFT_OUT)) for t, n in left.most_common()),
        notes=(
            "only the last state of each row was carried: no capture kept the transactions",
            *([_WHILE_IT_RAN.format(found.rewritten)] if found.rewritten else []),
            *_undeletable(source, kept),
            *catalog.came_and_went(source, clone, kept.tables),
        ),
    )


def _undeletable(source: Connection, kept: shelf.KeptPoint) -> Iterator[str]:
    now = {table.oid: table.columns for table in catalog.tables(source)}
    for was in kept.tables:
        if was.oid in now and not (was.key and all(number in now[was.oid] for number in was.key)):
            yield f"{was.label} has no key, or not the one it had: deletions cannot be told, and none was carried"
