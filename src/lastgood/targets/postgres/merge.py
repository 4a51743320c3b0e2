"""Says a transaction again in the words of the old schema: its statements against the clone, each of which must hit one
row.

A three-way merge. The row that the transaction found is the base, so only what it changed is written: a number by as
much as it changed, anything else only over the value that the transaction found. Replaying last values instead would
bring back, through rows that many write to, what was kept out (measured: 1,560 of 2,000 rows silently wrong).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, LiteralString

from psycopg import sql

from lastgood.targets.postgres import catalog
from lastgood.targets.postgres.catalog import Table
from lastgood.targets.postgres.connect import Connection
from lastgood.targets.postgres.pgoutput import Relation, RowChange, Transaction, Truncation, Unsent, Value

NUMBERS: Final = ("smallint", "integer", "bigint", "numeric", "real", "double precision")
_TIMES: Final = ("date", "timestamp", "time")
QUANTITIES: Final = ("smallint", "integer", "bigint", "numeric")
"""Exact numbers: the difference of two floating ones is not what was added."""
NO_NUMBER: Final = frozenset({"NaN", "Infinity", "-Infinity"})
WITHOUT_EQUALITY: Final = frozenset({"json", "xml", "point", "polygon"})
"""Types that cannot be compared, and are by their text."""

# ruff: noqa: S608 # every name and value in a statement is quoted by `_name` and `_literal`
# What tells rows apart or ties them together is no quantity, though it be a number.
TELLING: Final[LiteralString] = """
SELECT n.nspname, r.relname, a.attname FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace
JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0
WHERE EXISTS (SELECT FROM pg_index x WHERE x.indrelid = r.oid AND x.indisunique AND a.attnum = ANY(x.indkey::int2[]))
OR EXISTS (SELECT FROM pg_constraint c WHERE c.conrelid = r.oid AND c.contype = 'f' AND a.attnum = ANY(c.conkey))
OR EXISTS (SELECT FROM pg_constraint c WHERE c.confrelid = r.oid AND c.contype = 'f' AND a.attnum = ANY(c.confkey))
"""
# A deletion here takes rows of other tables along, which the transaction speaks of itself.
CASCADING: Final[LiteralString] = """
SELECT n.nspname, r.relname, quote_ident(m.nspname) || '.' || quote_ident(s.relname),
    ARRAY(SELECT ARRAY[p.attname::text, quote_ident(k.attname)] FROM unnest(c.conkey, c.confkey) key (ours, theirs)
          JOIN pg_attribute k ON (k.attrelid, k.attnum) = (c.conrelid, key.ours)
          JOIN pg_attribute p ON (p.attrelid, p.attnum) = (c.confrelid, key.theirs))
FROM pg_constraint c JOIN pg_class r ON r.oid = c.confrelid JOIN pg_namespace n ON n.oid = r.relnamespace
JOIN pg_class s ON s.oid = c.conrelid JOIN pg_namespace m ON m.oid = s.relnamespace
WHERE c.contype = 'f' AND c.confdeltype IN ('c', 'n', 'd') AND c.conparentid = 0
"""


class Misfit(Exception):
    """The old schema has no words for a change. str(): why, one line."""


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
    schema does not have, by number."""

    then: Table
    migrated: bool
    table: str
    names: Mapping[int, str]
    numbers: tuple[tuple[int, int], ...]
    types: Mapping[int, str]
    later: Mapping[int, str]

    def told(self, values: tuple[Value, ...] | None) -> dict[int, Value]:
        """By number."""
        return {number: values[place] for place, number in self.numbers} if values is not None else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A change, by the numbers of the columns."""

    columns: _Columns
    old: Mapping[int, Value]
    new: Mapping[int, Value]

    @property
    def then(self) -> Table:
        return self.columns.then


class Merge:
    """source, clone: connections, for what the catalogs say. then: the tables of the restore point.

    Everything is told by a table's oid and a column's number in the source, which outlive a renaming; the clone has the
    names of the restore point.
    """

    def __init__(
        self, source: Connection, clone: Connection, *, then: tuple[Table, ...], now: tuple[Table, ...]
    ) -> None:
        self._then, self._now = {t.oid: t for t in then}, {t.oid: t for t in now}
        self._telling = set(clone.execute(TELLING).fetchall())
        self._generated_then, self._generated_now = catalog.generated(clone), catalog.generated(source)
        self._cascading = dict[tuple[str, str], list[tuple[str, list[list[str]]]]]()
        for schema, table, child, columns in clone.execute(CASCADING):
            self._cascading.setdefault((schema, table), []).append((child, columns))
        self._type_of = _Types(source)
        self._known: dict[int, tuple[Relation, _Columns]] = {}
        # a backslash in a value is one, and not the beginning of something else
        clone.execute("SET standard_conforming_strings = on")
        self.migrated = False
        """Whether a transaction of the migration was seen: then the columns are those of today, if they are of both."""
        self.rewritten: set[tuple[int, int]] = set()
        """(table, column) that the migration wrote to: what it made of a value counts as the value it was made from."""

    def said(self, transaction: Transaction) -> Said:
        """Return the transaction in the old schema's words. Raises Misfit when it has none."""
        statements: list[str] = []
        last: list[str] = []
        rows: dict[str, int] = {}
        left_out: list[tuple[str, Mapping[str, Value], Mapping[str, Value]]] = []
        for change in transaction.changes:
            if isinstance(change, Truncation):
                raise Misfit(f"it empties {', '.join(r.name for r in change.relations)}, and no row of that is told")
            if change.relation.oid not in self._then:
                left_out.append(_of_new_table(change))
                continue
            row = self._row(change)
            left_out += self._without_place(row)
            statement = self._statement(row)
            if statement is None:
                continue
            rows[row.then.label] = rows.get(row.then.label, 0) + 1
            takes_along = not row.new and (row.then.schema, row.then.name) in self._cascading
            (last if takes_along else statements).append(statement)
        return Said(statements=(*statements, *reversed(last)), rows=tuple(rows.items()), left_out=tuple(left_out))

    def rewritings(self, change: RowChange) -> Iterator[tuple[int, str, int, Value, Value]]:
        """Yield what a change of the migration's made of values that the old schema knows: table, key, column, what it
        was, what it made of it."""
        if change.old is None or change.new is None or change.relation.oid not in self._then:
            return
        try:
            row = self._row(change)
        except Misfit:
            return
        for number in self._changed(row):
            if number in row.then.columns:
                yield row.then.oid, _key_text(row), number, row.old[number], row.new[number]

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
        columns = _Columns(
            then=then,
            migrated=self.migrated,
            table=_name(then.schema) + "." + _name(then.name),
            names={number: _name(name) for number, name in then.columns.items()},
            numbers=tuple((place, number) for place, number in enumerate(numbers) if number not in made),
            types={n: self._type_of(*sent) for n, sent in zip(numbers, relation.types, strict=True) if n not in made},
            later={n: name for n, name in zip(numbers, relation.columns, strict=True) if n not in then.columns},
        )
        self._known[id(relation)] = (relation, columns)
        return columns

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
            return f"DELETE FROM ONLY {row.columns.table} WHERE {self._found(row)}{self._takes_none_along(row)}"
        changed = [number for number in self._changed(row) if number in row.then.columns]
        if not changed:
            return None
        sets: list[str] = []
        conditions = [self._found(row)]
        for number in changed:
            name, old, new = row.columns.names[number], row.old[number], row.new[number]
            if self._is_quantity(row, number):
                sets.append(f"{name} = {name} + ({_literal(new)}::numeric - {_literal(old)}::numeric)")
                conditions.append(f"{name} IS NOT NULL")
            else:
                sets.append(f"{name} = {self._value(row, number, new)}")
                conditions += [self._as_found(row, number), *self._keeps_all(row, number)]
        return f"UPDATE ONLY {row.columns.table} SET {', '.join(sets)} WHERE {' AND '.join(conditions)}"

    def _takes_none_along(self, row: _Row) -> str:
        """The transaction spoke of every row that its deletion took along; one that is still there is another's, whose
        move to another parent waits in quarantine."""
        old = {row.then.columns[number]: value for number, value in row.old.items() if number in row.then.columns}
        return "".join(
            f" AND NOT EXISTS (SELECT FROM {child} c WHERE "
            + " AND ".join(f"c.{own} = {_literal(old.get(theirs))}" for theirs, own in columns)
            + ")"
            for child, columns in self._cascading.get((row.then.schema, row.then.name), ())
        )

    def _insert(self, row: _Row) -> str:
        numbers = [number for number in row.new if number in row.then.columns]
        guards = [guard for number in numbers for guard in self._keeps_all(row, number)]
        names = ", ".join(row.columns.names[number] for number in numbers)
        values = ", ".join(self._value(row, number, row.new[number]) for number in numbers)
        where = f" WHERE {' AND '.join(guards)}" if guards else ""
        return f"INSERT INTO {row.columns.table} ({names}) OVERRIDING SYSTEM VALUE SELECT {values}{where}"

    @staticmethod
    def _changed(row: _Row) -> list[int]:
        return [n for n, new in row.new.items() if new is not Unsent.UNCHANGED and new != row.old[n]]

    def _found(self, row: _Row) -> str:
        """The row that the transaction found: by its key, else one that is as it was."""
        if row.then.key and all(number in row.old for number in row.then.key):
            return " AND ".join(self._is(row, number, row.old[number]) for number in row.then.key)
        shared = [number for number in row.old if number in row.then.columns]
        as_it_was = " AND ".join(self._is(row, number, row.old[number]) for number in shared) or "true"
        return f"ctid = (SELECT ctid FROM ONLY {row.columns.table} WHERE {as_it_was} LIMIT 1)"

    def _as_found(self, row: _Row, number: int) -> str:
        """The value is what the transaction found; or what it was before the migration made that of it."""
        same = self._is(row, number, row.old[number])
        if (row.then.oid, number) not in self.rewritten:
            return same
        return (
            f"({same} OR EXISTS (SELECT FROM lastgood.rewritten r WHERE (r.relation, r.key, r.number) = "
            f"({row.then.oid}, {_literal(_key_text(row))}, {number}) "
            f"AND r.was IS NOT DISTINCT FROM {row.columns.names[number]}::text "
            f"AND r.made IS NOT DISTINCT FROM {_literal(row.old[number])}))"
        )

    def _is(self, row: _Row, number: int, value: Value) -> str:
        name = row.columns.names[number]
        if value is None:
            return f"{name} IS NULL"
        if row.then.types[number] in WITHOUT_EQUALITY:
            return f"{name}::text = {_literal(value)}"
        return f"{name} = {self._value(row, number, value)}"

    def _value(self, row: _Row, number: int, value: Value) -> str:
        """As the server wrote it; by way of the type that it had where that was another number or time."""
        if value is None or not self._narrows(row, number):
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
        then, old, new = row.then, row.old[number], row.new[number]
        return (
            then.types[number].startswith(QUANTITIES)
            and row.columns.types[number] == then.types[number]
            and not then.types[number].endswith("]")
            and (then.schema, then.name, then.columns[number]) not in self._telling
            and isinstance(old, str)
            and isinstance(new, str)
            and not {old, new} & NO_NUMBER
        )

    @staticmethod
    def _without_place(row: _Row) -> Iterator[tuple[str, Mapping[str, Value], Mapping[str, Value]]]:
        values = {
            name: row.new[n]
            for n, name in row.columns.later.items()
            if row.new.get(n) is not None and row.new[n] != row.old.get(n)
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


def _key_text(row: _Row) -> str:
    return json.dumps([row.old.get(number) for number in row.then.key], default=str)


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
