"""Which rows break an invariant now and did not at the restore point, and whether the migration wrote them."""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Final

import psycopg
from psycopg import sql
from psycopg.pq.abc import PGresult

from lastgood.core.errors import Refused
from lastgood.core.migration import BrokenInvariant
from lastgood.targets.postgres.connect import Connection

MOST_ROWS: Final = 10_000
MOST_KEYS: Final = 20
# Also by this name the server's log tells our statements from the application's, see `server_log`.
_CURSOR: Final = sql.Identifier("lastgood_broken")
_CHUNK: Final = 5_000
_INTEGER: Final = re.compile(r"-?[0-9]{1,19}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_BITS: Final = {"int2": 16, "int4": 32, "int8": 64}
NO_ANSWER: Final = ("40", "53", "55", "57", "58", "XX")
"""SQLSTATE classes: what the server lacks, or was stopped at (PostgreSQL docs, appendix A)."""


def broken(
    live: Connection, clone: Connection | None, invariants: Mapping[str, str], migration: tuple[str, ...] | None
) -> Iterator[BrokenInvariant]:
    """Yield the invariants that newly break. Without a clone nobody knows what held before, and nothing is blamed on
    the migration. migration: its transactions, as the numbers that xmin shows; None where nobody can tell them."""
    for name, statement in invariants.items():
        now, new = _newly(live, clone, statement)
        if new:
            by_migration = now.written_by(migration, tuple(new)) if clone and migration is not None else 0
            yield BrokenInvariant(
                invariant=name,
                by_migration=by_migration,
                by_others=len(new) - by_migration if migration is not None else 0,
                by_somebody=len(new) if migration is None else 0,
                keys=_in_order(new)[:MOST_KEYS],
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysAndPlace:
    """Keys of rows that break an invariant, and the schema, table and column that these are values of; None where
    they are computed."""

    keys: tuple[str, ...]
    place: tuple[str, str, str] | None


def newly_broken(live: Connection, clone: Connection, statement: str) -> KeysAndPlace:
    """Return the rows that break an invariant now and did not at the restore point, MOST_ROWS of them."""
    now, before = _Keys(live, statement), set(_Keys(clone, statement))
    with closing(iter(now)) as keys:
        new = dict.fromkeys(islice((key for key in keys if key not in before), MOST_ROWS))
    return KeysAndPlace(keys=_in_order(new), place=now.place())


def broken_keys(connection: Connection, statement: str) -> KeysAndPlace:
    """Return the rows that break an invariant, in no order."""
    keys = _Keys(connection, statement)
    return KeysAndPlace(keys=tuple(keys), place=keys.place())


def _newly(live: Connection, clone: Connection | None, statement: str) -> tuple[_Keys, dict[str, None]]:
    now = _Keys(live, statement)
    new = dict.fromkeys(now.first())
    if clone and new:
        for key in _Keys(clone, statement):
            new.pop(key, None)
    return now, new


def _in_order(keys: Iterable[str]) -> tuple[str, ...]:
    """Shortest first: numbers in their order, whatever order the server found the rows in."""
    return tuple(sorted(keys, key=lambda key: (len(key), key)))


@contextmanager
def breaking_none(connection: Connection, invariants: Mapping[str, str]) -> Generator[None]:
    """Let nothing that is written within break an invariant. Raises Refused, naming it, for the caller's transaction to
    be taken back."""
    before: dict[str, frozenset[str]] = {}
    for name, text in invariants.items():
        with suppress(psycopg.DataError, psycopg.ProgrammingError):  # one that nobody can ask says nothing afterwards
            before[name] = frozenset(keys_that_break(connection, text, strict=True))
    yield
    for name, known in before.items():
        try:
            new = set(keys_that_break(connection, invariants[name], strict=True)) - known
        except (psycopg.DataError, psycopg.ProgrammingError) as error:
            raise Refused(f"the invariant {name} could not be asked any more: {error.diag.message_primary}") from error
        if new:
            raise Refused(f"it breaks the invariant {name}: {', '.join(_in_order(new)[:5])}")


def keys_that_break(
    connection: Connection, invariant: str, *, among: Collection[str] | None = None, strict: bool = False
) -> Iterator[str]:
    """Yield the keys of the rows that break an invariant; nothing where it cannot be asked on this schema, or with
    these rows. strict: then raise psycopg's error.

    among: look at no other keys than these. How long that takes does not grow with the tables, where the server finds
    rows by that key. All are looked at where the key is computed, or neither a number, text nor a UUID.
    """
    return iter(_Keys(connection, invariant, among=among, strict=strict))


class _Keys:
    """The keys of the rows that break an invariant, as the server writes them: the first column of its statement. None
    when it cannot be asked on this schema."""

    def __init__(
        self, connection: Connection, statement: str, *, among: Collection[str] | None = None, strict: bool = False
    ) -> None:
        self._connection, self._statement, self._among, self._strict = connection, statement, among, strict
        self._column = (0, 0)

    def first(self) -> list[str]:
        """Return the first of them."""
        with closing(iter(self)) as keys:
            return list(islice(keys, MOST_ROWS))

    def __iter__(self) -> Generator[str]:
        try:
            with self._connection.transaction(force_rollback=True):
                self._connection.execute("SET TRANSACTION READ ONLY")
                with self._connection.cursor(binary=True) as declaring:  # binary: one command and no more
                    declare = sql.SQL("DECLARE {} NO SCROLL CURSOR FOR ").format(_CURSOR).as_bytes(declaring)
                    declaring.execute(declare + self._asked())
                fetch = sql.SQL("FETCH {} FROM {}").format(sql.Literal(_CHUNK), _CURSOR)
                while keys := self._fetched(self._connection.execute(fetch)):
                    yield from keys
        except psycopg.Error as error:
            # an answer that did not come says nothing of the rows
            if self._strict or self._connection.broken or (error.sqlstate or "").startswith(NO_ANSWER):
                raise

    def _asked(self) -> bytes:
        """The statement, or what asks the same of some keys only."""
        if self._among is None:
            return self._statement.encode()
        inner = self._statement.strip().rstrip(";").encode()
        narrow = b"SELECT * FROM (" + inner + b"\n) AS broken(lastgood_key)"
        try:
            with self._connection.transaction():
                asked = self._connection.execute(narrow + b" LIMIT 0", binary=True)  # binary: one command and no more
                known = self._connection.adapters.types.get(asked.pgresult.ftype(0)) if asked.pgresult else None
                stored = asked.pgresult is not None and self._is_stored(asked.pgresult)
        except psycopg.Error as error:  # no statement that can stand within another
            if self._connection.broken or (error.sqlstate or "").startswith(NO_ANSWER):
                raise
            return self._statement.encode()
        kind = known.name if known and stored else ""
        if kind not in (*_BITS, "uuid", "text", "varchar"):
            return self._statement.encode()
        keys = [key for key in self._among if _can_be(key, kind)]
        only = sql.SQL(" WHERE lastgood_key = ANY({}::{}[])").format(sql.Literal(keys), sql.Identifier(kind))
        return narrow + only.as_bytes(self._connection)

    def _is_stored(self, result: PGresult) -> bool:
        """Whether the first column is one of a table, as it stands in its rows."""
        found = self._connection.execute(
            "SELECT 1 FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE (a.attrelid, a.attnum) = "
            "(%s::oid, %s::int2) AND a.attgenerated = '' AND c.relkind IN ('r', 'p')",
            (result.ftable(0), result.ftablecol(0)),
        )
        return found.fetchone() is not None

    def _fetched(self, cursor: psycopg.Cursor[tuple[object, ...]]) -> list[str]:
        result = cursor.pgresult
        if result is None:
            return []
        self._column = (result.ftable(0), result.ftablecol(0))
        values = (result.get_value(row, 0) for row in range(result.ntuples))
        return [(value if value is not None else b"NULL").decode("utf-8", "replace") for value in values]

    def place(self) -> tuple[str, str, str] | None:
        """The schema, table and column that the keys which were read are values of; None when they are computed."""
        row = self._connection.execute(
            "SELECT n.nspname, c.relname, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
            "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE (a.attrelid, a.attnum) = (%s::oid, %s::int2) "
            "AND c.relkind IN ('r', 'p')",
            self._column,
        ).fetchone()
        return (str(row[0]), str(row[1]), str(row[2])) if row else None

    def written_by(self, migration: tuple[str, ...], keys: tuple[str, ...]) -> int:
        """Count the rows of these keys that these transactions wrote. The server tells of which table's column the key
        is; a key that is computed belongs to nobody, and counts as written by others."""
        live = self._connection
        try:
            with live.transaction(force_rollback=True):
                live.execute("SET TRANSACTION READ ONLY")
                if (place := self.place()) is None:
                    return 0
                schema, table, column = place
                counted = live.execute(
                    sql.SQL("SELECT count(*) FROM {} WHERE {}::text = ANY(%s) AND xmin::text = ANY(%s)").format(
                        sql.Identifier(schema, table), sql.Identifier(column)
                    ),
                    [list(keys), list(migration)],
                ).fetchone()
                return min(int(counted[0]), len(keys)) if counted else 0
        except psycopg.Error:
            if live.broken:
                raise
            return 0


def _can_be(key: str, kind: str) -> bool:
    """Whether the text of a value is one that the type can have."""
    if kind == "uuid":
        return bool(_UUID.fullmatch(key))
    if bits := _BITS.get(kind):
        return bool(_INTEGER.fullmatch(key)) and -(1 << bits - 1) <= int(key) < 1 << bits - 1
    return True
