"""Finds for each invalid row the smallest change that makes it valid, and carries out what a person agreed to.

A change is tried on the live database and taken back: whether it makes the row valid is the invariants' word, not ours.
What is agreed to is put in all together, each row only where it is still invalid and as it was shown. Triggers of the
tables fire, as for any other write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic
from typing import Final

import psycopg
from psycopg import sql

from lastgood.core.errors import Refused
from lastgood.core.repair import ColumnRepair, RepairPlan, RowRepair, by_reason, differing, smallest
from lastgood.targets.postgres import catalog, shelf
from lastgood.targets.postgres.broken import (
    MOST_KEYS,
    NO_ANSWER,
    KeysAndPlace,
    breaking_none,
    keys_that_break,
    newly_broken,
)
from lastgood.targets.postgres.catalog import Table
from lastgood.targets.postgres.connect import Connection
from lastgood.targets.postgres.requeue import checked

MOST_REPAIRED: Final = 1_000
"""Rows of one invariant: a person cannot read more, and what broke so many is not put right row by row."""
LOOK_S: Final = 60.0
LONGEST_VALUE: Final = 10_000
"""Characters. Nobody reads more of a value, and the journal keeps it for good."""
_NO_KEY: Final = "NULL"

Values = Mapping[str, str | None]


def plan(
    live: Connection,
    clone: Connection,
    kept: shelf.KeptPoint,
    *,
    invariants: Mapping[str, str],
    statements: Mapping[str, str],
) -> RepairPlan:
    """Look at every row that breaks an invariant now and did not at the restore point, for a minute at most. Changes
    nothing.

    statements: the team's own, by invariant: an UPDATE that puts the row whose key is $1 right.
    """
    until = monotonic() + LOOK_S
    broken = {name: newly_broken(live, clone, text) for name, text in invariants.items()}
    rows = _Rows(live, clone, kept, invariants, broken)
    found: dict[tuple[int, tuple[tuple[str, str], ...]], RowRepair] = {}
    left: list[tuple[str, str, str]] = []
    for invariant, these in broken.items():
        for number, key in enumerate(these.keys):
            try:
                if number >= MOST_REPAIRED:
                    raise _NoRepair(f"more than {MOST_REPAIRED} rows are not put right one by one")
                if monotonic() > until:
                    raise _NoRepair(f"the look at all of them took longer than {LOOK_S:.0f} s")
                row = rows.found(invariant, key)
                at = (row.table.oid, row.key)
                found[at] = rows.repair(row, invariant, key, statements.get(invariant, ""), found.get(at))
            except _NoRepair as error:
                left.append((invariant, key, str(error)))
            except psycopg.Error as error:
                if live.broken or clone.broken or (error.sqlstate or "").startswith(NO_ANSWER):
                    raise
                left.append((invariant, key, _words(error)))
    return RepairPlan(
        since=kept.point.id,
        taken_at=kept.point.taken_at,
        rows=tuple(found.values()),
        left=by_reason(left, most=MOST_KEYS),
    )


def carry_out(
    live: Connection,
    rows: Sequence[RowRepair],
    *,
    invariants: Mapping[str, str],
    about_to_commit: Callable[[int], None],
) -> None:
    """Put all the rows right, in one transaction.

    about_to_commit: as for a requeue. Raises Refused, nothing changed, when a row is not as it was shown or valid by
    now, the server says no, or a row would be invalid afterwards.
    """
    keys: dict[str, set[str]] = {}
    for row in rows:
        for name, key in row.breaks:
            keys.setdefault(name, set()).add(key)
    with live.transaction():
        with breaking_none(live, invariants):
            for row in rows:
                if checked(live, row.name, _locked(row)) != 1:
                    raise Refused(f"{row.name} is not as it was shown: it was changed since", hint="lastgood repair")
            for name, these in keys.items():
                if valid := these - set(keys_that_break(live, invariants[name], among=these, strict=True)):
                    raise Refused(
                        f"{', '.join(sorted(valid)[:5])} does not break {name} any more", hint="lastgood repair"
                    )
            for row in rows:
                checked(live, row.name, _update(row))
            checked(live, "the rows", sql.SQL("SET CONSTRAINTS ALL IMMEDIATE"))
        for name, these in keys.items():
            if still := these & set(keys_that_break(live, invariants[name], among=these, strict=True)):
                raise Refused(f"rows that were put right still break {name}: {', '.join(sorted(still)[:5])}")
        told = live.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
        about_to_commit(int(told[0]) if told else 0)


class _NoRepair(Exception):
    """Why there is none for a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """An invalid row as it is now, by its primary key. values: of every column that can be written to. holds: the
    invariants of its table that it does not break, each with the key by which it would name the row."""

    table: Table
    key: tuple[tuple[str, str], ...]
    values: Values
    holds: Mapping[str, str]


class _Rows:
    """The same row in the live database and at the restore point, whatever table and columns are called by now."""

    def __init__(
        self,
        live: Connection,
        clone: Connection,
        kept: shelf.KeptPoint,
        invariants: Mapping[str, str],
        broken: Mapping[str, KeysAndPlace],
    ) -> None:
        self._live, self._clone, self._point = live, clone, kept.point.id
        self._invariants, self._broken = invariants, broken
        self._now = {table.oid: table for table in catalog.tables(live)}
        self._then = {table.oid: table for table in kept.tables}
        self._generated = catalog.generated(live)

    def found(self, invariant: str, key: str) -> _Row:
        """Return the row that an invariant names. Raises _NoRepair where that is none, or not one."""
        place = self._broken[invariant].place
        if place is None:
            raise _NoRepair("the first column of the invariant is no column of a table")
        if key == _NO_KEY:
            raise _NoRepair("the invariant gives no key")
        table = self._table_of(place, key)
        if not table.key:
            raise _NoRepair(f"{table.label} has no primary key")
        made = {name for schema, of, name in self._generated if (schema, of) == (table.schema, table.name)}
        columns = tuple(name for name in table.columns.values() if name not in made)
        values = _read(self._live, table, ((place[2], key),), columns)
        if values is None:
            raise _NoRepair("it is not there any more")
        if any(len(value or "") > LONGEST_VALUE for value in values.values()):
            raise _NoRepair(f"it holds a value of more than {LONGEST_VALUE:,} characters")
        return _Row(
            table=table,
            key=tuple((name, str(values[name])) for name in table.named(table.key)),
            values=values,
            holds=self._held_by(table, values),
        )

    def _held_by(self, table: Table, values: Values) -> dict[str, str]:
        held: dict[str, str] = {}
        for name, these in self._broken.items():
            key = values.get(these.place[2]) if these.place and these.place[:2] == (table.schema, table.name) else None
            if key is not None and key not in these.keys:
                # one that breaks since before, or cannot be asked, has no say
                with suppress(psycopg.DataError, psycopg.ProgrammingError):
                    if not self._breaks(name, key):
                        held[name] = key
        return held

    def _breaks(self, invariant: str, key: str) -> bool:
        return key in set(keys_that_break(self._live, self._invariants[invariant], among=(key,), strict=True))

    def _table_of(self, place: tuple[str, str, str], key: str) -> Table:
        """The table that has the row: a partition, where the invariant asks the whole."""
        found = self._live.execute(
            sql.SQL("SELECT tableoid::bigint FROM {} WHERE {} = {} LIMIT 2").format(
                sql.Identifier(*place[:2]), sql.Identifier(place[2]), sql.Literal(key)
            )
        ).fetchall()
        if len(found) != 1:
            raise _NoRepair("its key is not of one row only" if found else "it is not there any more")
        table = self._now.get(int(found[0][0]))
        if table is None:
            raise _NoRepair("its table belongs to an extension")
        return table

    def repair(self, row: _Row, invariant: str, key: str, statement: str, before: RowRepair | None) -> RowRepair:
        """Return what makes the row valid, with what is planned for it already. Raises _NoRepair where nothing does."""
        start = before or RowRepair(
            schema=row.table.schema, table=row.table.name, key=row.key, breaks=(), columns=(), sources=()
        )
        start = replace(start, breaks=(*start.breaks, (invariant, key)))
        if before and self._is_valid(row, start):
            return start

        def with_these(columns: tuple[ColumnRepair, ...], source: str) -> RowRepair:
            put = {one.column: one for one in (*columns, *start.columns)}
            return replace(start, columns=tuple(put.values()), sources=tuple(dict.fromkeys((*start.sources, source))))

        then = self._before(row)
        differ = tuple(one for one in differing(row.values, then or {}) if one.column not in dict(row.key))
        why: list[str] = []
        ways = smallest(differ, lambda columns: self._is_valid(row, with_these(columns, self._point), why))
        if len(ways) == 1:
            return with_these(ways[0], self._point)
        if statement:
            source = f"the statement for {invariant}"
            columns = self._by_statement(row, start, statement, source)
            made = with_these(columns, source)
            if not columns or not self._is_valid(row, made):
                raise _NoRepair(f"{source} makes it valid only by what it does to other rows")
            return made
        if ways:
            either = ", ".join(columns[0].column for columns in ways)
            raise _NoRepair(f"each of {either} alone would make it valid: a statement in `repairs` says which")
        if then is None:
            raise _NoRepair(f"not found at {self._point} by its key: a statement in `repairs` says what it should be")
        raise _NoRepair(why[-1] if why else "as it was then it would not be valid either")

    def _before(self, row: _Row) -> Values | None:
        """The row at the restore point: the columns that are of the same type now, by the names of now. None where it
        was not there."""
        now, then = row.table, self._then.get(row.table.oid)
        if then is None or then.key != now.key or any(then.types[n] != now.types[n] for n in now.key):
            return None
        same = {name: then.columns[n] for n, name in now.columns.items() if then.types.get(n) == now.types[n]}
        key = tuple((same[name], value) for name, value in row.key)
        read = _read(self._clone, then, key, tuple(same.values()))
        return {name: read[was] for name, was in same.items()} if read is not None else None

    def _by_statement(self, row: _Row, start: RowRepair, statement: str, source: str) -> tuple[ColumnRepair, ...]:
        """What the team's statement makes of the row. Raises _NoRepair where it does not make it valid."""
        after: dict[str, str | None] = {}

        def execute() -> bool:
            with psycopg.RawCursor(self._live) as raw:
                hit = raw.execute(statement.encode(), [start.breaks[-1][1]]).rowcount
            after.update(_read(self._live, row.table, row.key, tuple(row.values)) or {})
            return hit == 1 and bool(after)

        why: list[str] = []
        if not self._tried(row, start, execute, why):
            raise _NoRepair(f"{source} does not make it valid" + (f": {why[-1]}" if why else ""))
        return differing(row.values, after)

    def _is_valid(self, row: _Row, with_it: RowRepair, why: list[str] | None = None) -> bool:
        return self._tried(row, with_it, lambda: self._live.execute(_update(with_it)).rowcount == 1, why)

    def _tried(self, row: _Row, repair: RowRepair, execute: Callable[[], bool], why: list[str] | None = None) -> bool:
        """Whether the row breaks nothing after something, which is taken back. why: takes what the server said
        against it."""
        asked = {**row.holds, **dict(repair.breaks)}
        try:
            with self._live.transaction(force_rollback=True):
                done = execute()
                self._live.execute("SET CONSTRAINTS ALL IMMEDIATE")
                return done and not any(self._breaks(name, key) for name, key in asked.items())
        except psycopg.Error as error:
            if self._live.broken or (error.sqlstate or "").startswith(NO_ANSWER):
                raise
            if why is not None:
                why.append(_words(error))
            return False


def _words(error: psycopg.Error) -> str:
    return f"{error.diag.message_primary or error} ({error.sqlstate})"


def _read(
    connection: Connection, table: Table, key: tuple[tuple[str, str], ...], columns: tuple[str, ...]
) -> dict[str, str | None] | None:
    """The one row with these values as the server writes it; None when there is none, or more."""
    found = connection.execute(
        sql.SQL("SELECT {} FROM ONLY {} WHERE {} LIMIT 2").format(
            sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in columns),
            table.identifier,
            _has(key),
        )
    ).fetchall()
    return dict(zip(columns, found[0], strict=True)) if len(found) == 1 else None


def _has(key: tuple[tuple[str, str], ...]) -> sql.Composed:
    return sql.SQL(" AND ").join(sql.SQL("{} = {}").format(sql.Identifier(n), sql.Literal(v)) for n, v in key)


def _locked(row: RowRepair) -> sql.Composed:
    """The row, where each column is as it was shown, held until the transaction ends."""
    as_shown = (
        sql.SQL("{}::text IS NOT DISTINCT FROM {}").format(sql.Identifier(one.column), sql.Literal(one.now))
        for one in row.columns
    )
    return sql.SQL("SELECT FROM ONLY {} WHERE {} FOR UPDATE").format(
        sql.Identifier(row.schema, row.table), sql.SQL(" AND ").join((_has(row.key), *as_shown))
    )


def _update(row: RowRepair) -> sql.Composed:
    sets = (sql.SQL("{} = {}").format(sql.Identifier(one.column), sql.Literal(one.becomes)) for one in row.columns)
    return sql.SQL("UPDATE ONLY {} SET {} WHERE {}").format(
        sql.Identifier(row.schema, row.table), sql.SQL(", ").join(sets), _has(row.key)
    )
