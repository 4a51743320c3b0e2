"""Puts one entry of the quarantine into the live database, in one transaction, by the rules of the replay.

Each change must hit one row, and only what it changed is written, over the value that it found: what the application
wrote since then stays. A number of a transaction is changed by as much as the transaction did; of a row that was told
by its last state only, that would count what the migration made of it, so there it is the value or nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql

from lastgood.core.config import Merging
from lastgood.core.errors import Refused
from lastgood.core.quarantine import EntryChange, QuarantineEntry, numbered
from lastgood.targets.postgres import catalog, shelf
from lastgood.targets.postgres.broken import breaking_none
from lastgood.targets.postgres.catalog import Table
from lastgood.targets.postgres.connect import Connection
from lastgood.targets.postgres.merge import NO_NUMBER, compared_by_text, numbers, written
from lastgood.targets.postgres.replay import QUARANTINE

_UNCHANGED: Final = "(unchanged)"
"""What the replay writes for a long value that the server did not send."""
_ENABLE: Final = {"A": sql.SQL("ENABLE ALWAYS"), "R": sql.SQL("ENABLE REPLICA")}

Row = Mapping[str, Any]


def entries(replays: Path) -> Iterator[QuarantineEntry]:
    """Yield what is in quarantine, of every finished replay. Raises Refused for a file that cannot be read: an entry
    that is passed over would be forgotten."""
    for replay in sorted(shelf.names(replays)):
        path = replays / replay / QUARANTINE
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            told = [json.loads(line, parse_float=Decimal) for line in lines]
            for name, entry in zip(numbered(entry["id"] for entry in told), told, strict=True):
                changes = tuple(EntryChange(**change) for change in entry.pop("changes"))
                yield QuarantineEntry(**(entry | {"id": name}), replay=replay, changes=changes)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise Refused(f"{path} cannot be read: {error}", hint=f"less {path}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What tables and columns were called. then: at the restore point; now: in the replaced database, empty when it is
    not there any more."""

    then: tuple[Table, ...] = ()
    now: tuple[Table, ...] = ()

    def came_since(self, table: str) -> bool:
        """Whether it is a table of the migration's, for whose rows the old schema has no place."""
        return any(t.label == table and all(t.oid != then.oid for then in self.then) for t in self.now)

    def old(self, change: EntryChange, *, by_row: bool) -> tuple[str, Mapping[str, str]]:
        """Return what the change's table was called, and its columns by the names that it uses. Raises Refused where
        its names mean one thing before the migration and another after it."""
        used = {*(change.old or {}), *(change.new or {}), *(change.key or {})}
        same = {name: name for name in used}
        if by_row:
            return change.table, same
        was = next((t for t in self.then if t.label == change.table and used <= set(t.columns.values())), None)
        is_now = next((t for t in self.now if t.label == change.table and used <= set(t.columns.values())), None)
        origin = next((t for t in self.then if is_now and t.oid == is_now.oid), None)
        if is_now is None or origin is None:
            return change.table, same
        renamed = {name: origin.columns.get(number, name) for number, name in is_now.columns.items() if name in used}
        if was is not None and (was.oid != origin.oid or renamed != same):
            raise Refused(
                f"the names of {change.table} were given to something else: whether this was before cannot be told"
            )
        return origin.label, renamed


def requeue(
    live: Connection,
    entry: QuarantineEntry,
    names: Names,
    *,
    invariants: Mapping[str, str],
    merging: Mapping[str, Merging],
    about_to_commit: Callable[[int], None],
) -> tuple[str, ...]:
    """Apply the entry whole; return what the live schema has no place for, one line each. merging: as Merge has it.

    about_to_commit: is given the transaction's id when all of it fits, just before it is committed, and must note it:
    an answer that is lost then is asked for with `is_committed`. Raises Refused, nothing changed, naming what does not
    fit.
    """
    by_row = entry.xid is None
    with live.transaction():
        target = _Live(live, merging)
        left_out: list[str] = []
        changes = [
            target.change(number, change, names, by_row=by_row) for number, change in enumerate(entry.changes, 1)
        ]
        if all(change.statement is None for change in changes):
            raise Refused("the live database has no place for any of it")
        tables = {change.table.oid for change in changes if change.table}
        with breaking_none(live, invariants), _as_they_come(live, tables):
            for change in changes:
                _apply(live, change)
                left_out += change.left_out
            checked(live, "its rows", sql.SQL("SET CONSTRAINTS ALL IMMEDIATE"))
        row = live.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
        about_to_commit(int(row[0]) if row else 0)
    return tuple(left_out)


def is_committed(live: Connection, xid: int) -> bool | None:
    """Whether a transaction of the server is in its data; None when the server does not remember any more, or it is
    still under way (PostgreSQL docs, 9.27.7: pg_xact_status)."""
    row = live.execute("SELECT pg_xact_status(%s::text::xid8)", [str(xid)]).fetchone()
    return {"committed": True, "aborted": False}.get(str(row[0])) if row else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    number: int
    table: Table | None
    statement: sql.Composed | None
    left_out: tuple[str, ...]

    @property
    def place(self) -> str:
        return f"change {self.number} ({self.table.label if self.table else ''})"


class _Live:
    """What the live database's catalogs say, for building statements."""

    def __init__(self, live: Connection, merging: Mapping[str, Merging]) -> None:
        self._tables = {table.label: table for table in catalog.tables(live)}
        self._generated = catalog.generated(live)
        self._counting, self._by_text = numbers(live, merging).counting, compared_by_text(live)

    def change(self, number: int, change: EntryChange, names: Names, *, by_row: bool) -> _Change:
        label, columns = names.old(change, by_row=by_row)
        table = self._tables.get(label) or self._tables.get(change.table)
        if table is None and names.came_since(change.table) and not by_row:
            return _Change(number=number, table=None, statement=None, left_out=(f"{change.table}: no such table",))
        if table is None:
            raise Refused(f"change {number}: the live database has no table {label}")
        if change.kind == "emptied":
            raise Refused(f"change {number}: it empties {label}, and no row of that is told")
        has = {n for n in table.columns.values() if (table.schema, table.name, n) not in self._generated}
        place = {name: (old if old in has else name) for name, old in columns.items()}

        def placed(row: Row | None) -> dict[str, Any]:
            return {place[n]: v for n, v in (row or {}).items() if place[n] in has and v != _UNCHANGED}

        known = set(table.columns.values())
        left_out = {n: v for n, v in (change.new or {}).items() if place[n] not in known and v is not None}
        told = _Told(
            table=table,
            old=placed(change.old) if change.old is not None else None,
            new=placed(change.new) if change.new is not None else None,
            key=placed(change.key),
            by_row=by_row,
            columns=frozenset(has),
            counting=frozenset(c for s, t, c in self._counting if (s, t) == (table.schema, table.name)),
            by_text=frozenset(c for s, t, c in self._by_text if (s, t) == (table.schema, table.name)),
        )
        if left_out and not by_row and not names.now:
            raise Refused(
                f"change {number}: {label} has no {', '.join(sorted(left_out))}, and the replaced database is gone: "
                "whether that was renamed cannot be told"
            )
        said = (f"{label}: no place for {', '.join(sorted(left_out))}",) if left_out else ()
        return _Change(number=number, table=table, statement=told.statement(), left_out=said)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """A change in the names of the live database. columns: all of its table that the server does
    not make itself. counting: those that are changed by as much as the transaction did. by_text: those that are
    compared by it."""

    table: Table
    old: Row | None
    new: Row | None
    key: Row
    by_row: bool
    columns: frozenset[str]
    counting: frozenset[str]
    by_text: frozenset[str]

    def statement(self) -> sql.Composed | None:
        """None where nothing is left that the live schema knows."""
        table = self.table.identifier
        if self.new is None:
            whole = (self._is(name, value) for name, value in (self.old or {}).items())
            unchanged = sql.SQL(" AND ").join([self._found(), *whole])
            return sql.SQL("DELETE FROM ONLY {} WHERE {}").format(table, unchanged)
        if self.old is None:
            return sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({})").format(
                table,
                sql.SQL(", ").join(map(sql.Identifier, self.new)),
                sql.SQL(", ").join(self._value(name, value) for name, value in self.new.items()),
            )
        changed = {name: value for name, value in self.new.items() if value != self.old.get(name)}
        if not changed:
            return None
        sets: list[sql.Composable] = []
        conditions = [self._found()]
        for name, value in changed.items():
            column = sql.Identifier(name)
            if self._is_quantity(name):
                by = sql.SQL("({}::numeric - {}::numeric)").format(sql.Literal(value), sql.Literal(self.old[name]))
                sets.append(sql.SQL("{} = {} + {}").format(column, column, by))
                conditions.append(sql.SQL("{} IS NOT NULL").format(column))
            else:
                sets.append(sql.SQL("{} = {}").format(column, self._value(name, value)))
                conditions.append(self._is(name, self.old.get(name)))
        return sql.SQL("UPDATE ONLY {} SET {} WHERE {}").format(
            table, sql.SQL(", ").join(sets), sql.SQL(" AND ").join(conditions)
        )

    def _found(self) -> sql.Composable:
        """By the key, else one row that is as it was in everything."""
        old = self.old or {}
        key = {n: self.key[n] if n in self.key else old.get(n) for n in self.table.named(self.table.key)}
        if key and None not in key.values():
            return sql.SQL(" AND ").join(self._is(name, value) for name, value in key.items())
        if lost := sorted(self.columns - old.keys()):
            raise Refused(
                f"{self.table.label}: neither the key of a row is told nor its {', '.join(lost)}: "
                "which it is cannot be told"
            )
        as_it_was = sql.SQL(" AND ").join(self._is(name, value) for name, value in old.items())
        return sql.SQL("ctid = (SELECT ctid FROM ONLY {} WHERE {} LIMIT 1)").format(
            self.table.identifier, as_it_was if old else sql.SQL("false")
        )

    def _is(self, name: str, value: object) -> sql.Composable:
        column = sql.Identifier(name)
        if value is None:
            return sql.SQL("{} IS NULL").format(column)
        if name in self.by_text:
            return sql.SQL("{}::text = ({})::text").format(column, self._value(name, value))
        return sql.SQL("{} = {}").format(column, self._value(name, value))

    def _value(self, name: str, value: object) -> sql.Composable:
        """A transaction's values are as the server writes them, a row's as it writes them in JSON."""
        if value is None or not self.by_row:
            return sql.Literal(value)
        told = shelf.json_text({name: value})
        record = sql.SQL("json_populate_record(NULL::{}, {}::json)").format(self.table.identifier, sql.Literal(told))
        return sql.SQL("({}).{}").format(record, sql.Identifier(name))

    def _is_quantity(self, name: str) -> bool:
        values = ((self.old or {}).get(name), (self.new or {}).get(name))
        return (
            not self.by_row
            and name in self.counting
            and all(isinstance(value, str) and value not in NO_NUMBER for value in values)
        )


def _apply(live: Connection, change: _Change) -> None:
    if change.statement is None:
        return
    hit = checked(live, change.place, change.statement)
    if hit != 1:
        raise Refused(
            f"{change.place}: its row is not as it was found: it was changed since, or waits in quarantine itself",
            hint="lastgood quarantine list",
        )


def checked(live: Connection, place: str, statement: sql.SQL | sql.Composed) -> int:
    """Execute a statement; return how many rows it hit. Raises Refused, naming the place, when the server says no to
    what it would write."""
    try:
        return live.execute(statement).rowcount
    except (psycopg.IntegrityError, psycopg.DataError, psycopg.ProgrammingError) as error:
        said = error.diag.message_primary or str(error)
        raise Refused(f"{place}: {said} ({error.sqlstate})") from error


@contextmanager
def _as_they_come(live: Connection, tables: set[int]) -> Generator[None]:
    """Rows come with what triggers and rules made of them: these would do it twice. The lock that this takes is
    held until the transaction ends, and is not waited for longer than any other."""
    found = live.execute(
        "SELECT tgrelid::regclass::text, 'TRIGGER', tgname, tgenabled::text FROM pg_trigger "
        "WHERE NOT tgisinternal AND tgenabled <> 'D' AND tgrelid = ANY(%(tables)s::bigint[]::oid[]) "
        "UNION ALL SELECT ev_class::regclass::text, 'RULE', rulename, ev_enabled::text FROM pg_rewrite "
        "WHERE ev_enabled <> 'D' AND ev_class = ANY(%(tables)s::bigint[]::oid[])",
        {"tables": sorted(tables)},
    ).fetchall()
    how = sql.SQL("ALTER TABLE {} {} {} {}")
    for table, kind, name, _ in found:
        live.execute(how.format(written(table), sql.SQL("DISABLE"), written(kind), sql.Identifier(name)))
    yield
    for table, kind, name, enabled in found:
        was = _ENABLE.get(enabled, sql.SQL("ENABLE"))
        live.execute(how.format(written(table), was, written(kind), sql.Identifier(name)))
