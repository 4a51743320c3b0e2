"""Invariants in SQL: each a SELECT of the rows that break it, key first; and foreign keys that Postgres does not check.

Everything runs in one read-only transaction that is rolled back. Each statement goes through a cursor in the extended
protocol, which takes one statement and no more, so that a file cannot end the transaction and go on outside of it.
An invariant that fails, for example because its table is not there, is unchecked; the others still run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any, Final

import psycopg
from psycopg import sql

from lastgood.core.errors import LastgoodError
from lastgood.core.reading import Reading, SourceDown, Violation, Violations, Window
from lastgood.wire.deadline import Deadline
from lastgood.wire.foreign_text import one_line

CAP: Final = 1_000
"""Rows kept per invariant; the rest is counted."""
CHUNK: Final = 50
"""Rows fetched at a time: a row may be wide, and only its key is kept."""
LONGEST_S: Final = 4.5
CURSOR: Final = sql.Identifier("lastgood_invariant")

UNCHECKED_FOREIGN_KEYS: Final = """
SELECT c.conname, child_schema.nspname, child.relname, parent_schema.nspname, parent.relname,
       ARRAY(SELECT a.attname::text FROM unnest(c.conkey) WITH ORDINALITY k(n, i)
             JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.n ORDER BY k.i),
       ARRAY(SELECT a.attname::text FROM unnest(c.confkey) WITH ORDINALITY k(n, i)
             JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.n ORDER BY k.i),
       ARRAY(SELECT a.attname::text FROM pg_index x, unnest(x.indkey::int2[]) WITH ORDINALITY k(n, i)
             JOIN pg_attribute a ON a.attnum = k.n
             WHERE x.indrelid = c.conrelid AND x.indisprimary AND a.attrelid = c.conrelid ORDER BY k.i)
FROM pg_constraint c
JOIN pg_class child ON child.oid = c.conrelid
JOIN pg_namespace child_schema ON child_schema.oid = child.relnamespace
JOIN pg_class parent ON parent.oid = c.confrelid
JOIN pg_namespace parent_schema ON parent_schema.oid = parent.relnamespace
WHERE c.contype = 'f'
  AND (NOT c.convalidated
       OR EXISTS (SELECT FROM pg_trigger t WHERE t.tgconstraint = c.oid AND t.tgenabled IN ('D', 'R')))
ORDER BY 1
"""
"""Constraints added NOT VALID or not enforced, and those whose triggers were switched off."""


class Invariants:
    """core.ports.SignalSource over SQL statements, keyed by their file's stem.

    connect: opens a connection of its own. timeout_s: for all statements together, cut at 4.5.
    """

    def __init__(
        self,
        name: str,
        statements: Mapping[str, str],
        connect: Callable[[], psycopg.Connection[Any]],
        timeout_s: float,
    ) -> None:
        self._name = name
        self._statements = {stem: sql.SQL(text) for stem, text in statements.items()}  # pyright: ignore[reportArgumentType] # the team's own SQL
        self._connect = connect
        self._timeout_s = min(timeout_s, LONGEST_S)

    @property
    def name(self) -> str:
        return self._name

    def read(self, window: Window) -> Reading:
        del window  # what is invalid now
        with Deadline(self._timeout_s) as deadline:
            try:
                with closing(self._connect()) as connection:
                    deadline.guard(connection.fileno())
                    return self._violations(connection)
            except (psycopg.Error, OSError, LastgoodError) as error:
                late = f"no answer within {self._timeout_s:g} s"
                return SourceDown(reason=late if deadline.over else one_line(f"database: {error}"))

    def _violations(self, connection: psycopg.Connection[Any]) -> Violations:
        """Run everything. Raises psycopg.OperationalError when the connection is lost."""
        found: set[Violation] = set()
        unchecked: list[tuple[str, str]] = []
        total = 0
        connection.read_only = True
        with connection.transaction(force_rollback=True):
            # names are found where the release finds them, and the server's own functions before any of theirs
            foreign_keys = dict(_foreign_keys(connection))
            for invariant, statement in {**self._statements, **foreign_keys}.items():
                try:
                    with connection.transaction():
                        keys, count = _rows(connection, statement, self._timeout_s)
                except psycopg.Error as error:
                    if connection.broken:
                        raise
                    unchecked.append((invariant, one_line(str(error))))
                    continue
                found.update(Violation(invariant=invariant, key=key) for key in keys)
                total += count
        return Violations(found=frozenset(found), total=total, unchecked=tuple(unchecked))


def _rows(connection: psycopg.Connection[Any], statement: sql.Composable, budget_s: float) -> tuple[list[str], int]:
    """Return the keys of at most CAP rows, and how many rows there are."""
    # What is left of the budget since the transaction began, by the server's own clock.
    left_ms = sql.SQL(
        "SELECT set_config('statement_timeout',"
        " greatest(1, {} - (extract(epoch FROM clock_timestamp() - now()) * 1000)::int)::text, true)"
    )
    connection.execute(left_ms.format(sql.Literal(int(budget_s * 900))))
    with connection.cursor(binary=True) as declaring:  # binary: the extended protocol
        declaring.execute(sql.SQL("DECLARE {} NO SCROLL CURSOR FOR {}").format(CURSOR, statement))
    keys: list[str] = []
    with connection.cursor() as fetching:
        while len(keys) < CAP:
            fetching.execute(sql.SQL("FETCH {} FROM {}").format(sql.Literal(min(CHUNK, CAP - len(keys))), CURSOR))
            keys += _first_column(fetching)
            if fetching.rowcount < CHUNK:
                break
        beyond = fetching.execute(sql.SQL("MOVE FORWARD ALL IN {}").format(CURSOR)).rowcount
        fetching.execute(sql.SQL("CLOSE {}").format(CURSOR))
    return keys, len(keys) + max(0, beyond)


def _first_column(cursor: psycopg.Cursor[Any]) -> Iterator[str]:
    """The keys as the server wrote them: a value that Python has no word for, like a date of infinity, is a key too."""
    if cursor.pgresult is not None and cursor.pgresult.nfields:
        for row in range(cursor.pgresult.ntuples):
            yield one_line((cursor.pgresult.get_value(row, 0) or b"NULL").decode("utf-8", "replace"))


def _foreign_keys(connection: psycopg.Connection[Any]) -> Iterator[tuple[str, sql.Composable]]:
    """A statement for each foreign key that Postgres does not check by itself: its rows without a parent."""
    for name, schema, table, parent_schema, parent, columns, references, key in connection.execute(
        UNCHECKED_FOREIGN_KEYS
    ):
        pairs = list(zip(columns, references, strict=True))
        yield (
            f"fk:{name}",
            sql.SQL("SELECT concat_ws(', ', {}) FROM {} c WHERE {} AND NOT EXISTS (SELECT FROM {} p WHERE {})").format(
                sql.SQL(", ").join(sql.Identifier("c", column) for column in key or columns),
                sql.Identifier(schema, table),
                sql.SQL(" AND ").join(sql.SQL("{} IS NOT NULL").format(sql.Identifier("c", c)) for c, _ in pairs),
                sql.Identifier(parent_schema, parent),
                sql.SQL(" AND ").join(
                    sql.SQL("{} = {}").format(sql.Identifier("c", c), sql.Identifier("p", r)) for c, r in pairs
                ),
            ),
        )
