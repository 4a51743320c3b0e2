"""Finds for each invalid row the smallest change that makes it valid, and carries out what a person agreed to.

A change is tried on the live database and taken back: whether it makes the row valid is the invariant's word, not ours.
What is agreed to is put in all together, each row only where it still is as it was shown. Triggers of the tables fire,
as for any other write.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import psycopg
from psycopg import sql

from lastgood.core.errors import Refused
from lastgood.core.repair import ColumnRepair, RepairPlan, RowRepair, by_reason, candidates
from lastgood.targets.postgres import catalog, shelf
from lastgood.targets.postgres.broken import MOST_KEYS, NO_ANSWER, breaking_none, keys_that_break, newly_broken
from lastgood.targets.postgres.catalog import Table
from lastgood.targets.postgres.connect import Connection
from lastgood.targets.postgres.requeue import checked

MOST_REPAIRED: Final = 1_000
"""Rows of one invariant: a person cannot read more, and what broke so many is not put right row by row."""

Values = Mapping[str, str | None]


def plan(
    live: Connection,
    clone: Connection,
    kept: shelf.KeptPoint,
    *,
    invariants: Mapping[str, str],
    by_hand: Mapping[str, str],
) -> RepairPlan:
    """Look at every row that breaks an invariant now and did not at the restore point. Changes nothing.

    by_hand: the team's statement by invariant: an UPDATE that puts the row whose key is $1 right.
    """
    found: dict[tuple[str, str, str, str], RowRepair] = {}
    left: list[tuple[str, str, str]] = []
    rows = _Rows(live, clone, kept)
    for invariant, text in invariants.items():
        broken = newly_broken(live, clone, text)
        for number, key in enumerate(broken.keys):
            repaired: RowRepair | str
            if number >= MOST_REPAIRED:
                repaired = f"more than {MOST_REPAIRED} rows are not put right one by one"
            elif broken.place is None:
                repaired = "the first column of the invariant is no column of a table"
            else:
                before = found.get((*broken.place, key))
                wanted = _Wanted(invariant=invariant, text=text, by_hand=by_hand.get(invariant, ""), before=before)
                repaired = rows.repair(wanted, broken.place, key)
            if isinstance(repaired, str):
                left.append((invariant, key, repaired))
            else:
                found[repaired.schema, repaired.table, *repaired.key] = repaired
    return RepairPlan(since=kept.point.id, rows=tuple(found.values()), left=by_reason(left, most=MOST_KEYS))


def carry_out(
    live: Connection,
    rows: Sequence[RowRepair],
    *,
    invariants: Mapping[str, str],
    about_to_commit: Callable[[int], None],
) -> None:
    """Put all the rows right, in one transaction.

    about_to_commit: as for a requeue. Raises Refused, nothing changed, when a row is not as it was shown, the server
    says no, or a row would be invalid afterwards.
    """
    with live.transaction():
        with breaking_none(live, invariants):
            for row in rows:
                if checked(live, row.name, _update(row)) != 1:
                    raise Refused(f"{row.name} is not as it was shown: it was changed since", hint="lastgood repair")
            checked(live, "the rows", sql.SQL("SET CONSTRAINTS ALL IMMEDIATE"))
        for name in dict.fromkeys(name for row in rows for name in row.invariants):
            keys = {row.key[1] for row in rows if name in row.invariants}
            if still := keys & set(keys_that_break(live, invariants[name], among=keys)):
                raise Refused(f"rows that were put right still break {name}: {', '.join(sorted(still)[:5])}")
        told = live.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
        about_to_commit(int(told[0]) if told else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What a row is to be made valid for. before: what is planned for it already, for another invariant."""

    invariant: str
    text: str
    by_hand: str
    before: RowRepair | None


class _Rows:
    """The same row in the live database and at the restore point, whatever table and columns are called by now."""

    def __init__(self, live: Connection, clone: Connection, kept: shelf.KeptPoint) -> None:
        self._live, self._clone, self._point = live, clone, kept.point.id
        self._now = {table.oid: table for table in catalog.tables(live)}
        self._then = {table.oid: table for table in kept.tables}
        self._generated = catalog.generated(live)

    def repair(self, wanted: _Wanted, place: tuple[str, str, str], key: str) -> RowRepair | str:
        """Return what makes the row valid, or why nothing does."""
        schema, name, column = place
        table = self._table_of(place, key)
        if isinstance(table, str):
            return table
        before, text = wanted.before, wanted.text
        row = RowRepair(
            schema=schema,
            table=name,
            key=(column, key),
            invariants=(*(before.invariants if before else ()), wanted.invariant),
            columns=before.columns if before else (),
            source=before.source if before else self._point,
        )
        if before and self._is_valid(row, text):
            return row
        now, then = self._values(table, column, key)
        if then is not None:
            for tried in candidates(now, then):
                with_it = replace(row, columns=_merged(row.columns, tried))
                if self._is_valid(with_it, text):
                    return with_it
        if wanted.by_hand and not before:
            return self._by_hand(row, wanted, table, now)
        if then is None:
            return f"written since {self._point}, so there is no older state of it"
        return "putting it back as it was does not make it valid"

    def _table_of(self, place: tuple[str, str, str], key: str) -> Table | str:
        """The table that has the row: a partition, where the invariant asks the whole."""
        found = self._live.execute(
            sql.SQL("SELECT tableoid::bigint FROM {} WHERE {} = {} LIMIT 2").format(
                sql.Identifier(*place[:2]), sql.Identifier(place[2]), sql.Literal(key)
            )
        ).fetchall()
        if len(found) != 1:
            return "its key is not of one row only" if found else "it is not there any more"
        return self._now.get(int(found[0][0])) or "its table belongs to an extension"

    def _values(self, table: Table, column: str, key: str) -> tuple[dict[str, str | None], Values | None]:
        """The row now, and at the restore point: the columns that are the same in both, by the names of now. None where
        it was not there."""
        made = {name for schema, of, name in self._generated if (schema, of) == (table.schema, table.name)}
        names = {number: name for number, name in table.columns.items() if name not in made}
        now = _read(self._live, table, column, key, {name: name for name in names.values()}) or {}
        then, number = self._then.get(table.oid), next((n for n, name in table.columns.items() if name == column), 0)
        if then is None or number not in then.columns:
            return now, None
        same = {n: name for n, name in names.items() if then.types.get(n) == table.types[n]}
        was = _read(self._clone, then, then.columns[number], key, {name: then.columns[n] for n, name in same.items()})
        return now, was

    def _is_valid(self, row: RowRepair, text: str) -> bool:
        return self._tried(row, text, lambda: self._live.execute(_update(row)).rowcount == 1)

    def _by_hand(self, row: RowRepair, wanted: _Wanted, table: Table, now: Values) -> RowRepair | str:
        """What the team's statement makes of the row."""
        column, key = row.key
        after: dict[str, str | None] = {}

        def execute() -> bool:
            with psycopg.RawCursor(self._live) as raw:
                hit = raw.execute(wanted.by_hand.encode(), [key]).rowcount
            after.update(_read(self._live, table, column, key, {name: name for name in now}) or {})
            return hit == 1 and bool(after)

        source = f"the statement for {wanted.invariant}"
        if not self._tried(row, wanted.text, execute):
            return f"{source} does not make it valid"
        columns = tuple(
            ColumnRepair(column=name, now=value, becomes=after[name])
            for name, value in now.items()
            if after[name] != value
        )
        return replace(row, columns=columns, source=source) if columns else f"{source} changes other rows"

    def _tried(self, row: RowRepair, text: str, execute: Callable[[], bool]) -> bool:
        """Whether the row is valid after something, which is taken back."""
        try:
            with self._live.transaction(force_rollback=True):
                done = execute()
                self._live.execute("SET CONSTRAINTS ALL IMMEDIATE")
                return done and row.key[1] not in set(keys_that_break(self._live, text, among=(row.key[1],)))
        except psycopg.Error as error:
            if self._live.broken or (error.sqlstate or "").startswith(NO_ANSWER):
                raise
            return False


def _merged(planned: Collection[ColumnRepair], more: Collection[ColumnRepair]) -> tuple[ColumnRepair, ...]:
    return tuple({one.column: one for one in (*more, *planned)}.values())


def _read(
    connection: Connection, table: Table, key_column: str, key: str, columns: Mapping[str, str]
) -> dict[str, str | None] | None:
    """The one row of that key as the server writes it; None when there is none, or more. columns: how to call what is
    read, and what it is called."""
    found = connection.execute(
        sql.SQL("SELECT {} FROM ONLY {} WHERE {} = {} LIMIT 2").format(
            sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in columns.values()),
            table.identifier,
            sql.Identifier(key_column),
            sql.Literal(key),
        )
    ).fetchall()
    return dict(zip(columns, found[0], strict=True)) if len(found) == 1 else None


def _update(row: RowRepair) -> sql.Composed:
    """Each column from the value that was shown, and from no other."""
    sets = (sql.SQL("{} = {}").format(sql.Identifier(one.column), sql.Literal(one.becomes)) for one in row.columns)
    as_shown = (
        sql.SQL("{}::text IS NOT DISTINCT FROM {}").format(sql.Identifier(one.column), sql.Literal(one.now))
        for one in row.columns
    )
    return sql.SQL("UPDATE {} SET {} WHERE {} = {} AND {}").format(
        sql.Identifier(row.schema, row.table),
        sql.SQL(", ").join(sets),
        sql.Identifier(row.key[0]),
        sql.Literal(row.key[1]),
        sql.SQL(" AND ").join(as_shown),
    )
