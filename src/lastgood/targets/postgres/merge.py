"""Says a transaction again in the words of the old schema: its statements against the clone, each of which must hit one
row.

A three-way merge. The row that the transaction found is the base, so only what it changed is written: a number by as
much as it changed, anything else only over the value that the transaction found. Replaying last values instead would
bring back, through rows that many write to, what was kept out (measured: 1,560 of 2,000 rows silently wrong).
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import Enum
from typing import Final, LiteralString, TypeAlias

from psycopg import sql

from lastgood.core.config import Merging
from lastgood.targets.postgres import catalog
from lastgood.targets.postgres.catalog import Table
from lastgood.targets.postgres.connect import Connection
from lastgood.targets.postgres.pgoutput import Change, Relation, RowChange, Transaction, Truncation, Unsent, Value

NUMBERS: Final = ("smallint", "integer", "bigint", "numeric", "real", "double precision")
_TIMES: Final = ("date", "timestamp", "time")
NO_NUMBER: Final = frozenset({"NaN", "Infinity", "-Infinity"})
PUT_IN: Final = "put in"
"""In place of a row's key: the migration put a row into the table that was not in it."""
_LONGEST: Final = 200
"""Characters of a key that are written down as they are; what is longer is told by its hash."""
FORGOTTEN: Final = "forgotten"
"""In place of a row's key: of this column, not everything that the migration made of it is remembered."""

# ruff: noqa: S608 # every name and value in a statement is quoted by `_name` and `_literal`
# Numbers, by column. exact: the difference of two floating ones is not what was added. tying: it tells rows apart or
# ties them together. named: only certain values are allowed, indexed or kept together, so it is a code and no quantity.
_NUMBERS: Final[LiteralString] = r"""
SELECT n.nspname, r.relname, a.attname,
    coalesce(nullif(y.typbasetype, 0), y.oid) NOT IN ('real'::regtype, 'float8'::regtype),
    EXISTS (SELECT FROM pg_index x WHERE x.indrelid = r.oid AND x.indisunique AND a.attnum = ANY(x.indkey::int2[]))
    OR EXISTS (SELECT FROM pg_constraint c WHERE c.conrelid = r.oid AND c.contype = 'f' AND a.attnum = ANY(c.conkey))
    OR EXISTS (SELECT FROM pg_constraint c WHERE c.confrelid = r.oid AND c.contype = 'f' AND a.attnum = ANY(c.confkey)),
    EXISTS (SELECT FROM pg_constraint c, pg_get_constraintdef(c.oid) told WHERE c.contype = 'c'
            AND ((c.conrelid, c.conkey) = (r.oid, ARRAY[a.attnum]) OR c.contypid = y.oid)
            AND told LIKE '% = %' AND told !~ '[<>]')
    OR EXISTS (SELECT FROM pg_index x WHERE x.indrelid = r.oid
               AND strpos(pg_get_expr(x.indpred, x.indrelid), quote_ident(a.attname) || ' = ') > 0)
    OR EXISTS (SELECT FROM pg_partition_ancestors(r.oid) o JOIN pg_partitioned_table p ON p.partrelid = o.relid
               JOIN pg_attribute k ON k.attrelid = o.relid AND k.attnum = ANY(p.partattrs::int2[])
               WHERE k.attname = a.attname)
FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace
JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped JOIN pg_type y ON y.oid = a.atttypid
WHERE r.relkind IN ('r', 'p') AND coalesce(nullif(y.typbasetype, 0), y.oid)
    IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'numeric'::regtype, 'real'::regtype, 'float8'::regtype)
"""
# What tells the rows of a table apart.
_UNIQUE: Final[LiteralString] = """
SELECT indrelid::int8, ARRAY(SELECT unnest(indkey[0:indnkeyatts - 1])::int) FROM pg_index
WHERE indisunique AND indisvalid AND indpred IS NULL AND indexprs IS NULL
"""
# What a column's type is made of has no operator class that says what is equal; a row's type may hold such a column.
_BY_TEXT: Final[LiteralString] = """
WITH RECURSIVE made AS (
    SELECT a.attrelid, a.attname, a.atttypid AS type FROM pg_attribute a WHERE a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT m.attrelid, m.attname, CASE WHEN y.typtype = 'd' THEN y.typbasetype ELSE y.typelem END
    FROM made m JOIN pg_type y ON y.oid = m.type WHERE y.typtype = 'd' OR y.typcategory = 'A'
)
SELECT n.nspname, r.relname, m.attname FROM made m JOIN pg_type y ON y.oid = m.type
JOIN pg_class r ON r.oid = m.attrelid AND r.relkind IN ('r', 'p') JOIN pg_namespace n ON n.oid = r.relnamespace
WHERE y.typtype NOT IN ('d', 'e', 'r', 'm') AND y.typcategory <> 'A' AND NOT EXISTS (
    SELECT FROM pg_opclass o JOIN pg_am w ON w.oid = o.opcmethod AND w.amname IN ('btree', 'hash')
    WHERE o.opcdefault AND (o.opcintype = y.oid OR EXISTS (
        SELECT FROM pg_cast t WHERE (t.castsource, t.casttarget, t.castmethod, t.castcontext) =
            (y.oid, o.opcintype, 'b', 'i'))))
"""
_ROOTS: Final[LiteralString] = """
SELECT n.nspname, r.relname, quote_ident(m.nspname) || '.' || quote_ident(p.relname),
    CASE WHEN m.nspname = 'public' THEN '' ELSE m.nspname || '.' END || p.relname,
    ARRAY(SELECT k.attname::text FROM pg_partition_ancestors(r.oid) o
          JOIN pg_partitioned_table t ON t.partrelid = o.relid
          JOIN pg_attribute k ON k.attrelid = o.relid AND k.attnum = ANY(t.partattrs::int2[]))
FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace
JOIN pg_class p ON p.oid = pg_partition_root(r.oid) JOIN pg_namespace m ON m.oid = p.relnamespace
WHERE r.relispartition AND r.relkind = 'r'
"""
# scaled: one factor explains all, a value more or less for what was rounded.
_REWRITING: Final[LiteralString] = r"""
SELECT count(*), count(DISTINCT was), count(DISTINCT made), min(made - was) = max(made - was),
    max((made * sign(was) - 1) / nullif(abs(was), 0)) <= min((made * sign(was) + 1) / nullif(abs(was), 0)),
    bool_or(made = 0)
FROM (
    SELECT was::numeric, made::numeric FROM lastgood.rewritten
    WHERE (relation, number) IN (SELECT * FROM unnest(%(tables)s::oid[], %(numbers)s::int[]))
    AND CASE WHEN was ~ %(digits)s AND made ~ %(digits)s THEN was::numeric <> made::numeric ELSE false END
) pairs
"""
_FORGOTTEN: Final[LiteralString] = """
SELECT relation::int8, number FROM lastgood.rewritten
WHERE key = %(key)s AND (relation, number) IN (SELECT * FROM unnest(%(tables)s::oid[], %(numbers)s::int[]))
"""
# Rows with something there that the migration took out and did not put back, where it also put in others.
_REFILLED: Final[LiteralString] = """
SELECT count(*) FILTER (WHERE CASE WHEN was ~ %(digits)s THEN was::numeric <> 0 ELSE false END)
FROM lastgood.taken_out
WHERE (relation, number) IN (SELECT * FROM unnest(%(tables)s::oid[], %(numbers)s::int[]))
HAVING bool_or(key = %(put_in)s)
"""
_DIGITS: Final = "^-?[0-9.]+(e[-+]?[0-9]+)?$"
# A deletion here takes rows of other tables along, which the transaction speaks of itself.
CASCADING: Final[LiteralString] = """
SELECT n.nspname, r.relname, quote_ident(m.nspname) || '.' || quote_ident(s.relname),
    CASE WHEN m.nspname = 'public' THEN '' ELSE m.nspname || '.' END || s.relname,
    ARRAY(SELECT ARRAY[p.attname::text, k.attname::text] FROM unnest(c.conkey, c.confkey) key (ours, theirs)
          JOIN pg_attribute k ON (k.attrelid, k.attnum) = (c.conrelid, key.ours)
          JOIN pg_attribute p ON (p.attrelid, p.attnum) = (c.confrelid, key.theirs))
FROM pg_constraint c JOIN pg_class r ON r.oid = c.confrelid JOIN pg_namespace n ON n.oid = r.relnamespace
JOIN pg_class s ON s.oid = c.conrelid JOIN pg_namespace m ON m.oid = s.relnamespace
WHERE c.contype = 'f' AND c.confdeltype IN ('c', 'n', 'd') AND c.conparentid = 0
"""
# A key here that changes changes rows of other tables, which the transaction speaks of itself.
_FOLLOWING: Final[LiteralString] = """
SELECT CASE WHEN n.nspname = 'public' THEN '' ELSE n.nspname || '.' END || r.relname,
    CASE WHEN m.nspname = 'public' THEN '' ELSE m.nspname || '.' END || s.relname,
    quote_ident(m.nspname) || '.' || quote_ident(s.relname), c.confupdtype = 'c',
    ARRAY(SELECT p.attname::text FROM unnest(c.confkey) WITH ORDINALITY key (n, i)
          JOIN pg_attribute p ON (p.attrelid, p.attnum) = (c.confrelid, key.n) ORDER BY i),
    ARRAY(SELECT k.attname::text FROM unnest(c.conkey) WITH ORDINALITY key (n, i)
          JOIN pg_attribute k ON (k.attrelid, k.attnum) = (c.conrelid, key.n) ORDER BY i)
FROM pg_constraint c JOIN pg_class r ON r.oid = c.confrelid JOIN pg_namespace n ON n.oid = r.relnamespace
JOIN pg_class s ON s.oid = c.conrelid JOIN pg_namespace m ON m.oid = s.relnamespace
WHERE c.contype = 'f' AND c.confupdtype IN ('c', 'n', 'd') AND c.conparentid = 0
"""

# Of a reference, and whether its values are written alike where they are equal, here and there.
_REFERRING: Final[LiteralString] = """
WITH kinds AS (
    SELECT y.oid, CASE
        WHEN b.oid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) THEN 'integer'
        WHEN b.oid IN ('text'::regtype, 'varchar'::regtype) THEN 'text'
        WHEN b.typtype = 'e' OR b.oid IN ('bool'::regtype, 'uuid'::regtype, 'date'::regtype, 'timestamp'::regtype,
            'timestamptz'::regtype) THEN b.oid::text END AS kind
    FROM pg_type y JOIN pg_type b ON b.oid = coalesce(nullif(y.typbasetype, 0), y.oid)
)
SELECT CASE WHEN m.nspname = 'public' THEN '' ELSE m.nspname || '.' END || s.relname, n.nspname, r.relname,
    quote_ident(n.nspname) || '.' || quote_ident(r.relname), t.theirs, t.own, t.alike
FROM pg_constraint c JOIN pg_class r ON r.oid = c.confrelid JOIN pg_namespace n ON n.oid = r.relnamespace
JOIN pg_class s ON s.oid = c.conrelid JOIN pg_namespace m ON m.oid = s.relnamespace,
LATERAL (SELECT array_agg(p.attname::text ORDER BY i) AS theirs, array_agg(k.attname::text ORDER BY i) AS own,
        bool_and(coalesce(a.kind = b.kind AND coalesce(l.collisdeterministic, true), false)) AS alike
    FROM unnest(c.confkey, c.conkey) WITH ORDINALITY key (theirs, own, i)
    JOIN pg_attribute p ON (p.attrelid, p.attnum) = (c.confrelid, key.theirs) JOIN kinds a ON a.oid = p.atttypid
    JOIN pg_attribute k ON (k.attrelid, k.attnum) = (c.conrelid, key.own) JOIN kinds b ON b.oid = k.atttypid
    LEFT JOIN pg_collation l ON l.oid = p.attcollation) t
WHERE c.contype = 'f' AND c.conparentid = 0
"""


_Place: TypeAlias = tuple[int, int]
"""Of a column: its table's oid and its number."""


class Misfit(Exception):
    """The old schema has no words for a change. str(): why, one line."""


class _Rewriting(Enum):
    """What the migration did to a number. KEPT: nothing, or it moved all that it touched by the same; a difference
    means what it meant. SINGLE: certain rows, each in its own way. SCALED: it may count in another unit now."""

    KEPT = "kept"
    SINGLE = "single"
    SCALED = "scaled"


def crosses_zones(was: str, now: str) -> bool:
    """Whether one of two types, as format_type writes them, holds moments and the other one what a clock shows. Which
    zone the migration read the values in is not in the log: by its own setting, or by words of its own (USING)."""
    return _knows_zones(was) != _knows_zones(now)


def zone_unknown(column: str, was: str, now: str) -> str:
    """Say why such a value waits."""
    return f"{column} was {was} and is {now} now: in which time zone its values are meant cannot be told"


def _knows_zones(of: str) -> bool:
    return "with time zone" in of or of.startswith("tstz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Columns that hold numbers, as (schema, table, column). counting: they are merged by as much as they changed;
    measuring: these, and every other one that does not tell rows apart or tie them together."""

    counting: frozenset[tuple[str, str, str]]
    measuring: frozenset[tuple[str, str, str]]


def numbers(connection: Connection, merging: Mapping[str, Merging]) -> Numbers:
    """Return what the catalogs say of the numbers in a database, and what was configured over it."""
    counting: set[tuple[str, str, str]] = set()
    measuring: set[tuple[str, str, str]] = set()
    roots = {(schema, table): label for schema, table, _, label, _ in connection.execute(_ROOTS)}
    for schema, table, column, exact, tying, named in connection.execute(_NUMBERS):
        label = table if schema == "public" else f"{schema}.{table}"
        configured = merging.get(f"{label}.{column}") or merging.get(f"{roots.get((schema, table))}.{column}")
        by_itself = Merging.SET if tying or named else Merging.DELTA
        if exact and (configured or by_itself) is Merging.DELTA:
            counting.add((schema, table, column))
        if not tying:
            measuring.add((schema, table, column))
    return Numbers(counting=frozenset(counting), measuring=frozenset(measuring))


def compared_by_text(connection: Connection) -> set[tuple[str, str, str]]:
    """Return (schema, table, column) of every column whose values cannot be compared, or only by their size."""
    return set(connection.execute(_BY_TEXT))


def defined_by(connection: Connection, transactions: Collection[int]) -> set[tuple[int, int]]:
    """Return (table, column) of every column whose newest definition is by one of these transactions."""
    return set(
        connection.execute(
            "SELECT attrelid::bigint, attnum::int FROM pg_attribute WHERE attnum > 0 AND xmin::text::bigint = ANY(%s)",
            [list(transactions)],
        )
    )


def misnamed(connection: Connection, merging: Mapping[str, Merging]) -> Iterator[str]:
    """Yield what of `database.merge` is not in the database, or no exact number and is to be merged like one."""
    exact = {(schema, table, column): exact for schema, table, column, exact, *_ in connection.execute(_NUMBERS)}
    columns = {
        (schema, table, column)
        for schema, table, column in connection.execute(
            "SELECT n.nspname, r.relname, a.attname FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace "
            "JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped "
            "WHERE r.relkind IN ('r', 'p')"
        )
    }
    for name, how in merging.items():
        *schema, table, column = name.split(".")
        place = (schema[0] if schema else "public", table, column)
        if place not in columns:
            yield f"database.merge.{name}: the database has no such column"
        elif how is Merging.DELTA and not exact.get(place):
            yield f"database.merge.{name}: delta is for smallint, integer, bigint and numeric, which this is not"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Root:
    """The partitioned table that a table is a part of. table: as it is written in a statement; label: as people say
    it. columns: what tells its parts apart, by name."""

    table: str
    label: str
    columns: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """Rows that a transaction takes out of parts of partitioned tables, and those that it puts into some: each by what
    stays of its key when it moves to another part, as text. Where that is not known, by the partitioned table alone,
    which stands for any row of it: `into` holds that as well."""

    out: frozenset[str]
    into: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Of changes, as text: table and key, or the table alone, which stands for any row of it. touched: of each row that
    they write to. remade: of each that they make, delete or give another key: what stands there is another row then in
    a database that has not got them; by every key that others refer by. referred: of each to which they make a row
    refer; with what stands for any row that got a key there, and a query that finds one that stands there."""

    touched: frozenset[str]
    remade: frozenset[str]
    referred: frozenset[tuple[str, str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A transaction in the words of the old schema. rows: by table. left_out: (table, key, values by column) for which
    the old schema has no place; of a table that it does not have, the whole row before in place of the key."""

    statements: tuple[str, ...]
    rows: tuple[tuple[str, int], ...]
    left_out: tuple[tuple[str, Mapping[str, Value], Mapping[str, Value]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """Of a table as the server describes it: (place in a row, number) of what the old schema does not make itself, and
    the types by which values are sent. table, names: as they are written in a statement. later: columns that the old
    schema does not have, by number. made: by the server itself; what it does not make any more is sent, and is in
    `numbers` and `later` below zero. counting, measuring: as Numbers has them. by_text: what
    is compared by its text."""

    then: Table
    migrated: bool
    table: str
    names: Mapping[int, str]
    numbers: tuple[tuple[int, int], ...]
    types: Mapping[int, str]
    made: frozenset[int]
    later: Mapping[int, str]
    counting: frozenset[int]
    measuring: frozenset[int]
    by_text: frozenset[int]
    root: _Root | None

    def told(self, values: tuple[Value, ...] | None) -> dict[int, Value]:
        """By number."""
        return {number: values[place] for place, number in self.numbers} if values is not None else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Following:
    """A foreign key that follows the key that it refers to. child: the table that it is of, as people say it; table: as
    it is written in a statement. cascades: it becomes what the key becomes. theirs, own: names of the columns."""

    child: str
    table: str
    cascades: bool
    theirs: tuple[str, ...]
    own: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Referring:
    """A foreign key. parent: the table that it refers to, as people say it; table: as it is written in a statement.
    theirs, own: names of the columns. alike: equal values are written alike."""

    parent: str
    table: str
    theirs: tuple[str, ...]
    own: tuple[str, ...]
    alike: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cascading:
    """A foreign key by which a deletion takes rows along. parent: whose; table: out of which, as it is written in a
    statement. theirs, own: names of the columns."""

    parent: str
    table: str
    theirs: tuple[str, ...]
    own: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A change, by the numbers of the columns. moved: to another part of the partitioned table. following: columns that
    another change of the transaction's changes by then, so that `old` has the new value there; it is looked at again.
    """

    columns: _Columns
    old: Mapping[int, Value]
    new: Mapping[int, Value]
    moved: bool = False
    following: frozenset[int] = frozenset()

    @property
    def then(self) -> Table:
        return self.columns.then

    @property
    def whole(self) -> dict[int, Value]:
        """What it is after the change: of a long value that did not change only the row before is sent."""
        return {n: self.old.get(n) if value is Unsent.UNCHANGED else value for n, value in self.new.items()}


class Merge:
    """source, clone: connections, for what the catalogs say. then: the tables of the restore point. merging: how
    columns are merged, by table.column; the clone's catalogs say it of all others.

    Everything is told by a table's oid and a column's number in the source, which outlive a renaming; the clone has the
    names of the restore point.
    """

    def __init__(
        self,
        source: Connection,
        clone: Connection,
        *,
        then: tuple[Table, ...],
        now: tuple[Table, ...],
        merging: Mapping[str, Merging],
    ) -> None:
        self._source, self._clone = source, clone
        self._then, self._now = {t.oid: t for t in then}, {t.oid: t for t in now}
        self._holds, self._by_text = numbers(clone, merging), compared_by_text(clone)
        self._roots = {
            (schema, table): _Root(table=root, label=label, columns=frozenset(columns))
            for schema, table, root, label, columns in clone.execute(_ROOTS)
        }
        for called, root in catalog.roots(clone).items():  # where rows go of parts that the clone does not have
            self._roots.setdefault(root, self._roots[called])
        self._generated_then, self._generated_now = catalog.generated(clone), catalog.generated(source)
        self._unique = defaultdict[int, list[frozenset[int]]](list)
        for oid, key in source.execute(_UNIQUE):
            self._unique[oid].append(frozenset(key))
        self._cascading = defaultdict[str, list[_Cascading]](list)
        self._taken_along = defaultdict[str, list[_Cascading]](list)
        for schema, table, child, label, columns in clone.execute(CASCADING):
            parent, (theirs, own) = table if schema == "public" else f"{schema}.{table}", zip(*columns, strict=True)
            key = _Cascading(parent=parent, table=child, theirs=theirs, own=own)
            self._cascading[parent].append(key)
            self._taken_along[label].append(key)
        self._following = defaultdict[str, list[_Following]](list)
        for label, child, table, cascades, theirs, own in clone.execute(_FOLLOWING):
            self._following[label].append(
                _Following(child=child, table=table, cascades=cascades, theirs=tuple(theirs), own=tuple(own))
            )
        self._referring = defaultdict[str, list[_Referring]](list)
        self._referred_by = defaultdict[str, set[tuple[str, ...]]](set)
        self._not_alike = set[str]()
        for child, schema, table, parent, theirs, own, alike in clone.execute(_REFERRING):
            of = self._roots.get((schema, table))
            label = of.label if of else table if schema == "public" else f"{schema}.{table}"
            self._referring[child].append(
                _Referring(parent=label, table=parent, theirs=tuple(theirs), own=tuple(own), alike=alike)
            )
            self._referred_by[label].add(tuple(theirs))
            if not alike:
                self._not_alike.add(label)
        self._type_of = _Types(source)
        self._known: dict[int, tuple[Relation, _Columns]] = {}
        # a backslash in a value is one, and not the beginning of something else
        clone.execute("SET standard_conforming_strings = on")
        self.migrated = False
        """Whether a transaction of the migration was seen: then the columns are those of today, if they are of both."""
        self.rewritten: set[tuple[int, int]] = set()
        """(table, column) that the migration wrote to: what it made of a value counts as the value it was made from."""
        self.refilled: set[tuple[int, int]] = set()
        """(table, column) of tables into which it put rows that were not there."""
        self.redefined: frozenset[tuple[int, int]] = frozenset()
        """(table, column) whose values it changed together with their definition: no row of that is in the log."""
        self._rewritings: dict[tuple[_Place, ...], _Rewriting] = {}
        self._in_parts_of: dict[_Place, tuple[tuple[_Place, ...], ...]] = {}
        self._forgotten: set[tuple[int, int]] = set()

    def said(self, transaction: Transaction) -> Said:
        """Return the transaction in the old schema's words. Raises Misfit when it has none."""
        statements: list[str] = []
        rows: dict[str, int] = {}
        left_out: list[tuple[str, Mapping[str, Value], Mapping[str, Value]]] = []
        changes = self._children_first(self._rows(transaction.changes))
        for row, guards in zip(changes, self._followed(changes), strict=True):
            if isinstance(row, RowChange):
                left_out.append(_of_new_table(row))
                continue
            left_out += self._without_place(row)
            statement = self._statement(row)
            if statement is None:
                continue
            rows[row.then.label] = rows.get(row.then.label, 0) + 1
            statements.append(statement + guards)
        return Said(statements=tuple(statements), rows=tuple(rows.items()), left_out=tuple(left_out))

    def rewritings(self, change: RowChange, *, whole: bool = True) -> Iterator[tuple[int, str, int, Value, Value]]:
        """Yield what a change of the migration's made of values that the old schema knows: table, key, column, what it
        was, what it made of it. whole: else only that there was more of it, FORGOTTEN for the key."""
        if change.old is None or change.new is None or change.relation.oid not in self._then:
            return
        try:
            row = self._row(change)
        except Misfit:  # as the table was for a while only, within the migration: which columns these are is not known
            then = self._then[change.relation.oid]
            yield from self._forget(then, [number for number in then.columns if number not in then.key])
            return
        changed = [number for number in self._changed(row) if number in row.then.columns]
        if not whole:
            yield from self._forget(row.then, changed)
            return
        self._rewritings.clear()
        for number in changed:
            yield row.then.oid, _key_text(row), number, row.old[number], row.new[number]

    def refillings(self, change: RowChange) -> Iterator[tuple[int, str, int, Value]]:
        """Yield what numbers a row has that the migration took out or put in: table, key, column, value. Whoever comes
        to such a row waits, but what became of its numbers tells the unit of all others."""
        if change.relation.oid not in self._then:
            return
        try:
            row = self._row(change)
        except Misfit:  # whatever comes later to the table waits
            return
        self._rewritings.clear()
        for number, value in (row.old or row.new).items():
            if number in row.columns.measuring:
                yield row.then.oid, _key_text(row), number, value

    def _forget(self, then: Table, columns: Sequence[int]) -> Iterator[tuple[int, str, int, Value, Value]]:
        for number in columns:
            if (then.oid, number) not in self._forgotten:
                self._forgotten.add((then.oid, number))
                self._rewritings.clear()
                yield then.oid, FORGOTTEN, number, None, None

    # --- which rows these are ------------------------------------------------------------------------------------

    def _rows(self, changes: Sequence[Change]) -> list[_Row | RowChange]:
        """In their order; a row that was deleted and inserted again was changed, and stands where it was inserted. Of a
        table that the old schema does not have, the change as it is."""
        rows: list[_Row | RowChange | None] = []
        deleted: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
        for change in changes:
            if isinstance(change, Truncation):
                raise Misfit(f"it empties {', '.join(r.name for r in change.relations)}, and no row of that is told")
            if change.relation.oid not in self._then:
                rows.append(change)
                continue
            row = self._row(change)
            before = deleted[self._identity(row)] if not row.old or not row.new else []
            if not row.new:
                before.append(len(rows))
            elif not row.old:
                for place in reversed(before):
                    gone = rows[place]
                    if isinstance(gone, _Row) and (again := self._again(gone, row)) is not None:
                        before.remove(place)
                        rows[place], row = None, again
                        break
            rows.append(row)
        return [row for row in rows if row is not None]

    def _children_first(self, rows: list[_Row | RowChange]) -> list[_Row | RowChange]:
        """Put each deletion behind the last change that it takes along, which the log tells after it; no later, for
        another row may get a value of its then."""
        if all(isinstance(row, RowChange) or row.new or not self._takes_along(row) for row in rows):
            return rows
        last, turns = dict[tuple[_Cascading, tuple[Value, ...]], tuple[int, int]](), list[tuple[int, int]]()
        for place, row in reversed([*enumerate(rows)]):
            turn = place, 0
            if isinstance(row, _Row) and row.old:
                for key in () if row.new else self._takes_along(row):
                    at, after = last.get((key, _named(row.then, row.old, key.theirs)), turn)
                    turn = max(turn, (at, after + 1))
                for key in self._taken_along[self._any_row(row.then.oid)]:
                    of = key, _named(row.then, row.old, key.own)
                    last[of] = max(turn, last.get(of, turn))
            turns.append(turn)
        turns.reverse()
        return [rows[place] for place in sorted(range(len(rows)), key=turns.__getitem__)]

    def _followed(self, rows: list[_Row | RowChange]) -> list[str]:
        """Put in place of each row that follows another's key what it is when its turn comes; return for each row what
        must be so that none follows but these: one that is there as well is another's, whose move waits in quarantine.
        """
        guards = [""] * len(rows)
        for place, row in enumerate(rows):
            if not isinstance(row, _Row) or not row.old or not row.new:
                continue
            for key in self._following.get(self._any_row(row.then.oid), ()):
                was, made = _named(row.then, row.old, key.theirs), _named(row.then, row.whole, key.theirs)
                if was == made or None in was:
                    continue
                follow = 0
                for later in range(place + 1, len(rows)):
                    child = rows[later]
                    if not isinstance(child, _Row) or not child.old or not child.new:
                        continue
                    if self._any_row(child.then.oid) != key.child or _named(child.then, child.old, key.own) != was:
                        continue
                    if not key.cascades or _named(child.then, child.whole, key.own) != made:
                        raise Misfit(
                            f"a key in {row.then.label} changed, and what {key.child} refers by to it became another: "
                            "that is not replayed"
                        )
                    numbers = frozenset(n for n, name in child.then.columns.items() if name in key.own)
                    rows[later] = replace(
                        child,
                        old={**child.old, **{n: child.whole[n] for n in numbers}},
                        following=child.following | numbers,
                    )
                    follow += 1
                found = " AND ".join(f"c.{_name(n)} = {_literal(v)}" for n, v in zip(key.own, was, strict=True))
                guards[place] += f" AND (SELECT count(*) FROM {key.table} c WHERE {found}) = {follow}"
        return guards

    def moves(self, transaction: Transaction) -> Moves:
        """Return what rows of it may be moves from one part of a table to another; those that it tells whole are left
        out."""
        out, into, roots = set[str](), set[str](), set[str]()
        for change in transaction.changes:
            if isinstance(change, Truncation) or (change.old is not None and change.new is not None):
                continue
            then = self._then.get(change.relation.oid)
            root = self._roots.get(then.called) if then else None
            if root is None:
                continue
            any_row = json.dumps([root.table])
            try:
                which = json.dumps(self._identity(self._row(change)), default=str)
            except Misfit:
                which = any_row
            (out if change.new is None else into).add(which)
            if change.old is None:
                roots.add(any_row)
        return Moves(out=frozenset(out - into), into=frozenset((into - out) | roots))

    def keys(self, changes: Iterable[Change], *, whole: bool = True) -> Keys:
        """Return at which keys these write, at which another row stands after them, and to which they refer. whole:
        else of which tables."""
        touched, remade, referred = set[str](), set[str](), set[tuple[str, str, str]]()
        for change in changes:
            if isinstance(change, Truncation):
                remade.update(self._any_row(r.oid) for r in change.relations if r.oid in self._then)
                continue
            if change.relation.oid not in self._then:
                continue
            any_row = self._any_row(change.relation.oid)
            try:
                row = self._row(change)
            except Misfit:
                remade |= self._remade_by_name(change)
                continue
            if row.old and row.new and not any(number in row.then.columns for number in self._changed(row)):
                continue
            was, made = (self._place(row, told) for told in (row.old, row.new))
            touched |= {any_row, *was}
            if row.old or row.then.key:  # a new row without a key is not looked for
                touched |= made
            referred |= set(self._referred(row))
            was |= self._referable(row, row.old)
            made |= self._referable(row, row.whole)
            if was != made:
                remade |= was ^ made if whole else {any_row}
                if made - was and not (whole and any_row not in self._not_alike):
                    remade.add(_some_row(any_row))
        return Keys(touched=frozenset(touched), remade=frozenset(remade), referred=frozenset(referred))

    def _referable(self, row: _Row, told: Mapping[int, Value]) -> set[str]:
        """Where others find it that refer to it."""
        label, places = self._any_row(row.then.oid), set[str]()
        for names in self._referred_by.get(label, ()):
            values = _named(row.then, told, names)
            if None not in values:
                places.add(_at_key(label, zip(names, values, strict=True)))
        return places

    def _referred(self, row: _Row) -> Iterator[tuple[str, str, str]]:
        """To which rows it refers that it did not refer to before."""
        for label in {self._any_row(row.then.oid), row.then.label}:
            for key in self._referring.get(label, ()) if row.new else ():
                values = _named(row.then, row.whole, key.own)
                if None in values or (row.old and values == _named(row.then, row.old, key.own)):
                    continue
                by = [*zip(key.theirs, values, strict=True)]
                some = _some_row(key.parent)
                there = " AND ".join(f"{_name(name)} = {_literal(value)}" for name, value in by)
                yield _at_key(key.parent, by) if key.alike else some, some, f"SELECT FROM {key.table} WHERE {there}"

    def _remade_by_name(self, change: RowChange) -> set[str]:
        """Of a change whose columns are those of no known time: its key is told where its names are the same in all. A
        new row whose key is not told had its place free, and one without a key is not looked for by it."""
        relation, then, now = change.relation, self._then[change.relation.oid], self._now.get(change.relation.oid)
        if not then.key or change.old is None:
            return set()
        keys = list[dict[int, Value]]()
        if now is not None and all(now.columns.get(number) == then.columns[number] for number in then.key):
            for told in filter(None, (change.old, change.new)):
                values = dict(zip(relation.columns, told, strict=True))
                keys.append({number: values.get(then.columns[number]) for number in then.key})
        if not keys or any(value is None for key in keys for value in key.values()):
            return {self._any_row(relation.oid)}
        if len(keys) > 1 and keys[0] == keys[1]:
            return set()
        return {self._place_of(then, key) for key in keys}

    def _any_row(self, oid: int) -> str:
        then = self._then[oid]
        root = self._roots.get((then.schema, then.name))
        return root.label if root else then.label

    def _place(self, row: _Row, told: Mapping[int, Value]) -> set[str]:
        """Where a row stands, nowhere where the migration took its key away: no such row is looked for."""
        if not told or not all(number in told for number in row.then.key):
            return set()
        # a long value that did not change is sent with the row before only
        values = {n: row.old.get(n) if value is Unsent.UNCHANGED else value for n, value in told.items()}
        return {self._place_of(row.then, values)}

    def _place_of(self, then: Table, values: Mapping[int, Value]) -> str:
        """Its table and its key, or all of it where it has none."""
        label = self._any_row(then.oid)
        if then.key:
            return _at_key(label, ((then.columns[number], values[number]) for number in then.key))
        whole = json.dumps([values[number] for number in sorted(values) if number in then.columns])
        return f"{label} {hashlib.sha256(whole.encode()).hexdigest()}"

    @staticmethod
    def _identity(row: _Row) -> tuple[object, ...]:
        """What stays of its key when a row moves to another part of its table."""
        told, root = row.old or row.new, row.columns.root
        parting: frozenset[str] = root.columns if root else frozenset()
        names = {row.then.columns[n]: told.get(n) for n in row.then.key}
        return (root.table if root else row.then.oid, *sorted((n, v) for n, v in names.items() if n not in parting))

    @staticmethod
    def _again(gone: _Row, made: _Row) -> _Row | None:
        """The two as one change; None where it cannot be told whether it is the same row."""
        then, root = gone.then, gone.columns.root
        if not then.key or not all(number in gone.old for number in then.key):
            return None
        moved = made.then.oid != then.oid
        if moved:
            known = {**then.columns, **gone.columns.later}, {**made.then.columns, **made.columns.later}
            number_of = {name: number for number, name in known[0].items()}
            new = {number_of[known[1][n]]: value for n, value in made.new.items() if known[1][n] in number_of}
            same = root is not None and any(then.columns[n] not in root.columns for n in then.key)
        else:
            new = dict(made.new)
            same = all(new.get(number) == gone.old[number] for number in then.key)
        if not same or new.keys() != gone.old.keys():
            return None
        return _Row(columns=gone.columns, old=gone.old, new=new, moved=moved)

    # --- which columns these are ---------------------------------------------------------------------------------

    def _row(self, change: RowChange) -> _Row:
        relation = change.relation
        if change.old is not None and not relation.whole:
            raise Misfit(f"of {relation.name} the server told only the key of a row, not what it was")
        columns = self._columns(relation)
        return _Row(columns=columns, old=columns.told(change.old), new=columns.told(change.new))

    def _columns(self, relation: Relation) -> _Columns:
        """Worked out once for each description of a table that the server sends."""
        known, columns = self._known.get(id(relation), (None, None))
        if known is relation and columns is not None and columns.migrated == self.migrated:
            return columns
        then = self._then[relation.oid]
        numbers = self._numbers(relation, then)
        made = {n for n, name in then.columns.items() if (then.schema, then.name, name) in self._generated_then}
        no_more = made - self._made_now(relation.oid)
        by_place = [(place, -n if n in no_more else n) for place, n in enumerate(numbers) if n not in made - no_more]
        columns = _Columns(
            then=then,
            migrated=self.migrated,
            table=_name(then.schema) + "." + _name(then.name),
            names={number: _name(name) for number, name in then.columns.items()},
            numbers=tuple(by_place),
            types={n: self._type_of(*sent) for n, sent in zip(numbers, relation.types, strict=True) if n not in made},
            made=frozenset(made),
            later={n: relation.columns[place] for place, n in by_place if n not in then.columns},
            counting=_of(then, self._holds.counting),
            measuring=_of(then, self._holds.measuring),
            by_text=_of(then, self._by_text),
            root=self._roots.get((then.schema, then.name)),
        )
        self._known[id(relation)] = (relation, columns)
        return columns

    def _made_now(self, oid: int) -> set[int]:
        """The numbers of the columns that the server makes itself today."""
        now = self._now.get(oid)
        known = now.columns.items() if now else ()
        return {n for n, name in known if now and (now.schema, now.name, name) in self._generated_now}

    def _numbers(self, relation: Relation, then: Table) -> tuple[int, ...]:
        now = self._now.get(relation.oid)
        known = [(then, self._generated_then), *([(now, self._generated_now)] if now else [])]
        types = [self._type_of(*sent) for sent in relation.types]
        found: dict[tuple[int, ...], bool] = {}
        for table, generated in known:
            whole = dict(sorted(table.columns.items()))
            made_by_hand = {n: name for n, name in whole.items() if (table.schema, table.name, name) not in generated}
            for sent in (whole, made_by_hand):  # whether generated columns are sent is the server's version
                if tuple(sent.values()) == relation.columns:
                    found.setdefault(tuple(sent), types == [table.types[number] for number in sent])
        certain = [numbers for numbers, same_types in found.items() if same_types] or list(found)
        if not certain:
            raise Misfit(f"its columns of {relation.name} are neither those of the old schema nor those of today")
        if len(certain) > 1 and not self.migrated:
            raise Misfit(
                f"a column of {relation.name} was dropped and made again: which of the two this is cannot be told"
            )
        return certain[-1]

    # --- statements, as text: so many are made that putting them together by objects took most of the time -----------

    def _statement(self, row: _Row) -> str | None:
        """None for a change that the old schema does not notice."""
        if not row.old:
            return self._insert(row)
        if not row.new:
            others = [n for n in row.old if n in row.then.columns and n not in row.then.key]
            conditions = [self._found(row), *(self._as_found(row, number) for number in others)]
            return f"DELETE FROM ONLY {row.columns.table} WHERE {' AND '.join(conditions)}{self._takes_none_along(row)}"
        changed = [number for number in self._changed(row) if number in row.then.columns] + sorted(row.following)
        if not changed:
            return None
        sets: list[str] = []
        conditions = [self._found(row)]
        for number in changed:
            self._check_unit(row, number)
            self._check_large_object(row, number)
            name, old, new = row.columns.names[number], row.old[number], row.new[number]
            if number not in row.following and self._is_quantity(row, number):
                sets.append(f"{name} = {name} + ({_literal(new)}::numeric - {_literal(old)}::numeric)")
                conditions += [f"{name} IS NOT NULL", *self._counts_from_it(row, number), *self._not_below(row, number)]
            else:
                sets.append(f"{name} = {self._value(row, number, new)}")
                conditions += [self._as_found(row, number), *self._keeps_all(row, number)]
        table = f"ONLY {row.columns.table}"
        if row.moved and row.columns.root:
            table = row.columns.root.table
            conditions.append(f"tableoid = {_literal(row.columns.table)}::regclass")
        return f"UPDATE {table} SET {', '.join(sets)} WHERE {' AND '.join(conditions)}"

    def _takes_none_along(self, row: _Row) -> str:
        """The transaction spoke of every row that its deletion took along; one that is still there is another's, whose
        move to another parent waits in quarantine."""
        return "".join(
            f" AND NOT EXISTS (SELECT FROM {key.table} c WHERE "
            + " AND ".join(
                f"c.{_name(own)} = {_literal(value)}"
                for own, value in zip(key.own, _named(row.then, row.old, key.theirs), strict=True)
            )
            + ")"
            for key in self._takes_along(row)
        )

    def _takes_along(self, row: _Row) -> Sequence[_Cascading]:
        return self._cascading.get(self._any_row(row.then.oid), ())

    def _insert(self, row: _Row) -> str:
        numbers = [number for number in row.new if number in row.then.columns]
        for number in numbers:
            self._check_unit(row, number)
            self._check_large_object(row, number)
        guards = [guard for number in numbers for guard in self._keeps_all(row, number)]
        names = ", ".join(row.columns.names[number] for number in numbers)
        values = ", ".join(self._value(row, number, row.new[number]) for number in numbers)
        where = f" WHERE {' AND '.join(guards)}" if guards else ""
        return f"INSERT INTO {row.columns.table} ({names}) OVERRIDING SYSTEM VALUE SELECT {values}{where}"

    @staticmethod
    def _changed(row: _Row) -> list[int]:
        return [n for n, new in row.new.items() if new is not Unsent.UNCHANGED and new != row.old[n]]

    def _found(self, row: _Row) -> str:
        """The row that the transaction found: by its key, else one that is as it was in everything. Raises Misfit where
        that may be another one."""
        then = row.then
        rewritten = {n for table, n in self.rewritten if self.migrated and table == then.oid and n in row.old}
        if then.key and all(number in row.old for number in then.key):
            if rewritten.intersection(then.key):
                raise Misfit(f"the migration gave rows of {then.label} other keys: which row this was cannot be told")
            if self.migrated and not self._tells_apart(then):
                key = ", ".join(then.columns[number] for number in then.key)
                raise Misfit(f"rows of {then.label} may have the same {key} now: which row this was cannot be told")
            return " AND ".join(self._is(row, number, row.old[number]) for number in then.key)
        if lost := [n for n in then.columns if n not in row.old and n not in row.columns.made]:
            # Even the only one that looks like it may be another: what made two of them may wait in quarantine.
            gone = ", ".join(then.columns[n] for n in lost)
            raise Misfit(f"{then.label} has no key by which the row is known, nor {gone}: which it was cannot be told")
        if rewritten:
            changed = ", ".join(then.columns[n] for n in sorted(rewritten))
            raise Misfit(
                f"{then.label} has no key by which the row is known, and the migration rewrote {changed}: "
                "which it was cannot be told"
            )
        as_it_was = " AND ".join(self._is(row, n, value) for n, value in row.old.items() if n in then.columns)
        return f"ctid = (SELECT ctid FROM ONLY {row.columns.table} WHERE {as_it_was or 'true'} LIMIT 1)"

    def _tells_apart(self, then: Table) -> bool:
        """Whether the key of the old schema still does; of a table that is gone, as long as it was there."""
        return then.oid not in self._now or any(unique.issubset(then.key) for unique in self._unique[then.oid])

    def _as_found(self, row: _Row, number: int) -> str:
        """The value is what the transaction found; or what it was before the migration made that of it."""
        same = self._is(row, number, row.old[number])
        if (row.then.oid, number) not in self.rewritten:
            return same
        name, remembered = row.columns.names[number], self._remembered(row, number)
        if self._is_quantity(row, number) and self._rewriting(((row.then.oid, number),)) is _Rewriting.KEPT:
            by = f"coalesce((SELECT r.made::numeric - r.was::numeric {remembered}), 0)"
            same = f"{name} + {by} = {_literal(row.old[number])}::numeric"
        return (
            f"({same} OR EXISTS (SELECT {remembered} AND r.was IS NOT DISTINCT FROM {name}::text "
            f"AND r.made IS NOT DISTINCT FROM {_literal(row.old[number])}))"
        )

    def _counts_from_it(self, row: _Row, number: int) -> Iterator[str]:
        """That the difference is of the value as it was: the migration did not make another one of it."""
        if not self.migrated or self._rewriting(((row.then.oid, number),)) is _Rewriting.KEPT:
            return
        if (row.then.oid, number) in self._forgotten:
            yield self._is(row, number, row.old[number])
        yield f"NOT EXISTS (SELECT {self._remembered(row, number)})"

    @staticmethod
    def _not_below(row: _Row, number: int) -> Iterator[str]:
        """That no number becomes less than nothing of which the transaction saw something left: that was counted from
        another write, which waits. Whatever else is counted beside one that waits is right for quantities."""
        old, new = str(row.old[number]), str(row.new[number])
        if not old.startswith("-") and not new.startswith("-") and Decimal(new) < Decimal(old):
            yield f"{row.columns.names[number]} + ({_literal(new)}::numeric - {_literal(old)}::numeric) >= 0"

    @staticmethod
    def _remembered(row: _Row, number: int) -> str:
        return (
            f"FROM lastgood.rewritten r WHERE (r.relation, r.key, r.number) = "
            f"({row.then.oid}, {_literal(_key_text(row))}, {number})"
        )

    def _check_large_object(self, row: _Row, number: int) -> None:
        if catalog.lacks_large_object(self._source, self._clone, row.then.types[number], row.new[number]):
            name = f"{row.then.label}.{row.then.columns[number]}"
            raise Misfit(f"{name} names large object {row.new[number]}, which was made since and is not in the log")

    def _check_unit(self, row: _Row, number: int) -> None:
        """Raise Misfit where a number may count in another unit than the old schema's."""
        if number not in row.columns.measuring or row.new[number] is None:
            return
        parts, *each = self._in_parts(row, number)
        # A migration that wrote no row is not in the log: what was before it cannot be told from what came after.
        if not self.migrated and self.redefined.isdisjoint(parts):
            return
        # One part may tell what others that are rewritten otherwise hide, and all together what each has too few for.
        if any(self._rewriting(places) is _Rewriting.SCALED for places in (parts, *each)):
            label = row.columns.root.label if row.columns.root else row.then.label
            raise Misfit(
                f"the migration rewrote every {row.then.columns[number]} in {label}, maybe into another unit: "
                "what a number of today was before cannot be told, and a requeue writes it as it is"
            )

    def _in_parts(self, row: _Row, number: int) -> tuple[tuple[_Place, ...], ...]:
        """The column in all parts of the partitioned table together, those made since included, and in each alone: a
        unit is one for all, also in a part in which there was nothing to rewrite."""
        then, root = row.then, row.columns.root
        if (then.oid, number) not in self._in_parts_of:
            tables = [then]
            if root:
                tables = [
                    t for t in self._then.values() if (of := self._roots.get(t.called)) and of.table == root.table
                ]
            name = then.columns[number]
            parts = tuple((t.oid, n) for t in tables for n, column in t.columns.items() if column == name)
            each = tuple((part,) for part in parts) if len(parts) > 1 else ()
            self._in_parts_of[then.oid, number] = parts, *each
        return self._in_parts_of[then.oid, number]

    def _rewriting(self, places: tuple[_Place, ...]) -> _Rewriting:
        """Told by all that the migration made of these columns together; looked up once."""
        if self.rewritten.isdisjoint(places) and self.refilled.isdisjoint(places):
            return _Rewriting.KEPT if self.redefined.isdisjoint(places) else _Rewriting.SCALED
        if places not in self._rewritings:
            self._rewritings[places] = self._judged(places)
        return self._rewritings[places]

    def _judged(self, places: tuple[_Place, ...]) -> _Rewriting:
        tables, numbers = (list(of) for of in zip(*places, strict=True))
        where = {"tables": tables, "numbers": numbers}
        forgotten = set(self._clone.execute(_FORGOTTEN, {**where, "key": FORGOTTEN}))
        self._forgotten |= forgotten
        found = self._clone.execute(_REWRITING, {**where, "digits": _DIGITS}).fetchone()
        pairs, was, made, moved, scaled, emptied = found or (0, 0, 0, None, None, False)
        if was > 1 and moved:
            return _Rewriting.SINGLE if forgotten else _Rewriting.KEPT
        if emptied:  # in another unit something is still something: this is damage, and the unit is what it was
            return _Rewriting.SINGLE
        if was > 1:
            return _Rewriting.SCALED if scaled and made > 1 else _Rewriting.SINGLE
        if not pairs:
            return _Rewriting.SCALED if forgotten or self._is_refilled(places) else _Rewriting.KEPT
        # One value alone tells no rule. A change of the unit leaves no row as it was but where there is nothing.
        return _Rewriting.SINGLE if not forgotten and self._counted(places) > pairs else _Rewriting.SCALED

    def _is_refilled(self, places: tuple[_Place, ...]) -> bool:
        """Whether the migration left no row there as it was, and put in others: into which unit cannot be told."""
        tables, numbers = (list(of) for of in zip(*places, strict=True))
        where = {"tables": tables, "numbers": numbers, "digits": _DIGITS, "put_in": PUT_IN}
        (taken_out,) = self._clone.execute(_REFILLED, where).fetchone() or (0,)
        return bool(taken_out) and self._counted(places) <= int(taken_out)

    def _counted(self, places: tuple[_Place, ...]) -> int:
        """How many rows have something there."""
        counted = 0
        for oid, number in places:
            then = self._then[oid]
            row = self._clone.execute(
                sql.SQL("SELECT count(*) FROM ONLY {} WHERE {} <> 0").format(
                    then.identifier, sql.Identifier(then.columns[number])
                )
            ).fetchone()
            counted += int(row[0]) if row else 0
        return counted

    def _is(self, row: _Row, number: int, value: Value) -> str:
        name = row.columns.names[number]
        if value is None:
            return f"{name} IS NULL"
        if number in row.columns.by_text:
            return f"{name}::text = {_literal(value)}"
        return f"{name} = {self._value(row, number, value)}"

    def _value(self, row: _Row, number: int, value: Value) -> str:
        """As the server wrote it; by way of the type that it had where that was another number or time. Raises Misfit
        where that depends on a time zone."""
        if value is None:
            return _literal(value)
        was, now = row.then.types[number], row.columns.types[number]
        if crosses_zones(was, now):
            raise Misfit(zone_unknown(f"{row.then.label}.{row.then.columns[number]}", was, now))
        if not self._narrows(row, number):
            return _literal(value)
        return f"{_literal(value)}::{row.columns.types[number]}::{row.then.types[number]}"

    def _keeps_all(self, row: _Row, number: int) -> Iterator[str]:
        """That a value of a wider type has a place in the old one, and is not rounded."""
        value = row.new[number]
        if value is not None and self._narrows(row, number):
            wide = row.columns.types[number]
            yield f"{_literal(value)}::{wide} = {self._value(row, number, value)}::{wide}"

    def _narrows(self, row: _Row, number: int) -> bool:
        was, now = row.then.types[number], row.columns.types[number]
        return was != now and (
            (was.startswith(NUMBERS) and now.startswith(NUMBERS)) or (was.startswith(_TIMES) and now.startswith(_TIMES))
        )

    def _is_quantity(self, row: _Row, number: int) -> bool:
        told = (row.old[number], row.new.get(number, row.old[number]))
        return (
            number in row.columns.counting
            and row.columns.types[number] == row.then.types[number]
            and all(isinstance(value, str) and value not in NO_NUMBER for value in told)
        )

    @staticmethod
    def _without_place(row: _Row) -> Iterator[tuple[str, Mapping[str, Value], Mapping[str, Value]]]:
        values = {
            name: row.new[n]
            for n, name in row.columns.later.items()
            if isinstance(row.new.get(n), str) and row.new[n] != row.old.get(n)
        }
        if values:
            yield row.then.label, key_of(row.then, row.new), values


def _of_new_table(change: RowChange) -> tuple[str, Mapping[str, Value], Mapping[str, Value]]:
    names, old, new = change.relation.columns, change.old, change.new
    return (
        change.relation.name,
        dict(zip(names, old, strict=True)) if old is not None else {},
        dict(zip(names, new, strict=True)) if new is not None else {},
    )


def key_of(then: Table, values: Mapping[int, Value]) -> dict[str, Value]:
    """Return the key of a row by the names of the old schema."""
    return {then.columns[number]: values.get(number) for number in then.key}


def _at_key(label: str, key: Iterable[tuple[str, Value]]) -> str:
    """A place in a table. By name, which is the same in all parts of it."""
    text = json.dumps(dict(sorted(key)))
    return f"{label} {text if len(text) <= _LONGEST else hashlib.sha256(text.encode()).hexdigest()}"


def _some_row(label: str) -> str:
    """In place of a key at which a row was put, where it is not told or may be written otherwise."""
    return f"{label}, some row"


def _key_text(row: _Row) -> str:
    """The row's key as it was, or is where it is new; of one without a key, what stands for all of it."""
    told = row.old or row.new
    if row.then.key and all(number in told for number in row.then.key):
        return json.dumps([told[number] for number in row.then.key], default=str)
    return hashlib.sha256(json.dumps(list(told.items()), default=str).encode()).hexdigest()


def _named(then: Table, told: Mapping[int, Value], names: Sequence[str]) -> tuple[Value, ...]:
    """What a row has in these columns of the old schema; None for what is not told."""
    number_of = {name: number for number, name in then.columns.items()}
    return tuple(told.get(number_of[name]) if name in number_of else None for name in names)


def _of(table: Table, columns: Collection[tuple[str, str, str]]) -> frozenset[int]:
    """The numbers of those that are of this table."""
    return frozenset(n for n, name in table.columns.items() if (table.schema, table.name, name) in columns)


def written(words: str) -> sql.SQL:
    """Take words that the server wrote for a statement, quoted by itself: of regclass, for one."""
    return sql.SQL(words)  # pyright: ignore[reportArgumentType] # not literal, and quoted by the server


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: Value) -> str:
    """Needs standard_conforming_strings."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else "NULL"


class _Types:
    """The names of types, as format_type writes them; each is asked for once."""

    def __init__(self, source: Connection) -> None:
        self._source = source
        self._known: dict[tuple[int, int], str] = {}

    def __call__(self, oid: int, modifier: int) -> str:
        if (oid, modifier) not in self._known:
            row = self._source.execute("SELECT format_type(%s, %s)", [oid, modifier]).fetchone()
            self._known[oid, modifier] = str(row[0]) if row else ""
        return self._known[oid, modifier]
