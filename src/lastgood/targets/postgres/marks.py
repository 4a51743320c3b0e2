"""Has each transaction say in the log which session it is of, from the restore point until the migration is over.

A statement trigger on every captured table, on partitioned ones and on the history of the migrations writes a message
into the log. It lies in the transaction itself, whichever subtransaction wrote it, and is gone with it; it takes no
superuser, and outlives a crash. It fires as well where session_replication_role says that triggers do not.

Rows carry the number of a subtransaction, the log tells that of its transaction. While a migration runs, and only then
because it is dear, a mark says as well which numbers its transaction has: each of them holds a lock on itself. Which
were said already stands in a setting of the transaction, which is taken back with a subtransaction as its messages are.

A publication without tables lets the messages be read alone, however many rows a migration rewrites. It is there before
the slot: a slot reads by the catalogs of the moment that it reads about.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, LiteralString

from psycopg import sql

from lastgood.targets.postgres.catalog import HISTORIES
from lastgood.targets.postgres.connect import APPLICATION, Connection, change_in_use
from lastgood.targets.postgres.merge import written
from lastgood.targets.postgres.pgoutput import messages

SCHEMA: Final = "lastgood_marks"
"""`catalog` leaves it, and the triggers of that name, out of what it calls the schema."""
READ_S: Final = 60.0
"""For reading them all, which the end of a migration waits for."""
_FETCHED: Final = 2_000
_MADE: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION lastgood_marks.mark() RETURNS trigger LANGUAGE plpgsql AS $mark$
DECLARE
    said text := pg_catalog.current_setting('lastgood.said', true);
    xids text[];
BEGIN
    {numbers}
    PERFORM pg_catalog.pg_logical_emit_message(true, 'lastgood', pg_catalog.json_build_object(
        'pid', pg_catalog.pg_backend_pid(),
        'began', (SELECT EXTRACT(epoch FROM s.backend_start)
                  FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()) s),
        'name', pg_catalog.current_setting('application_name'),
        'history', TG_NARGS OPERATOR(pg_catalog.>) 0,
        'xids', xids)::text);
    RETURN NULL;
END $mark$
"""
# newest first; by age, because the numbers begin again
_NUMBERS: Final[LiteralString] = """
    xids := ARRAY(
        SELECT l.transactionid::text FROM pg_catalog.pg_locks l
        WHERE l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()
        AND l.locktype OPERATOR(pg_catalog.=) 'transactionid'
        AND l.mode OPERATOR(pg_catalog.=) 'ExclusiveLock' AND l.granted
        AND CASE WHEN pg_catalog.length(said) OPERATOR(pg_catalog.>) 0
            THEN pg_catalog.age(l.transactionid) OPERATOR(pg_catalog.<) pg_catalog.age(said::pg_catalog.xid)
            ELSE true END
        ORDER BY pg_catalog.age(l.transactionid));
    IF xids[1] IS NOT NULL THEN
        PERFORM pg_catalog.set_config('lastgood.said', xids[1], true);
    END IF;
"""
# the numbers of the tables that `arm` marks besides those of the capture
_BESIDES: Final[LiteralString] = """
SELECT c.oid::int8, c.oid::regclass::text, c.relkind = 'r' FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE (c.relkind = 'p' OR c.relkind = 'r' AND c.relname = ANY(%s)) AND pg_has_role(c.relowner, 'USAGE')
AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND c.relpersistence <> 't' ORDER BY 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One statement that wrote to a table. xid: of its transaction, 32 bits, as xmin shows it; xids: of that and of its
    subtransactions, as far as no mark before has said them, None where no migration ran. began: when the session did,
    seconds since 1970; None where it had taken a role that may not see that. history: the table was that of the
    migrations."""

    xid: int
    xids: tuple[int, ...] | None
    pid: int
    began: float | None
    name: str
    history: bool


def publication_of(slot: str) -> str:
    """Name the publication without tables. No slot has a dot in its name."""
    return f"{slot}.marks"


def prepare(live: Connection, slot: str) -> None:
    """Make the function and the publication. Safe to repeat."""
    live.execute("CREATE SCHEMA IF NOT EXISTS lastgood_marks")
    _make(live)
    name = publication_of(slot)
    if live.execute("SELECT FROM pg_publication WHERE pubname = %s", [name]).fetchone() is None:
        live.execute(sql.SQL("CREATE PUBLICATION {}").format(sql.Identifier(name)))


def say_numbers(live: Connection, *, said: bool) -> None:
    """Have marks say the numbers of subtransactions, or no more. Safe to repeat; nothing where nothing is marked."""
    if live.execute("SELECT to_regnamespace(%s)", [SCHEMA]).fetchone() != (None,):
        _make(live, _NUMBERS if said else "")


def _make(live: Connection, numbers: LiteralString = "") -> None:
    live.execute(sql.SQL(_MADE).format(numbers=sql.SQL(numbers)))


def besides(live: Connection) -> list[tuple[sql.SQL, bool]]:
    """Return what is marked and not captured, as it is written in SQL: partitioned tables, which a statement may name
    in place of theirs, and the history (True)."""
    rows = live.execute(_BESIDES, [list(HISTORIES)]).fetchall()
    return [(written(table), history) for _, table, history in rows]


def arm(live: Connection, table: sql.Composable, *, history: bool = False) -> None:
    """Have every transaction that writes to a table marked. Safe to repeat."""
    live.execute(sql.SQL("DROP TRIGGER IF EXISTS lastgood_marks ON {}").format(table))
    live.execute(
        sql.SQL(
            "CREATE TRIGGER lastgood_marks AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {} "
            "FOR EACH STATEMENT EXECUTE FUNCTION lastgood_marks.mark({})"
        ).format(table, sql.SQL("'history'" if history else ""))
    )
    live.execute(sql.SQL("ALTER TABLE {} ENABLE ALWAYS TRIGGER lastgood_marks").format(table))


def disarm(connection: Connection) -> None:
    """Take the triggers away, one table after the other, and then their function: in the database itself, or in a copy
    of it. Safe to repeat. Raises psycopg's errors where a table is locked: then its trigger and the function stay."""
    for (table,) in connection.execute(
        "SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = %s AND NOT tgisinternal", [SCHEMA]
    ).fetchall():
        drop = sql.SQL("DROP TRIGGER IF EXISTS lastgood_marks ON {}").format(written(table))
        change_in_use(connection, partial(connection.execute, drop))
    connection.execute("DROP SCHEMA IF EXISTS lastgood_marks CASCADE")


def gaps(live: Connection, tables: Iterable[int]) -> tuple[str, ...]:
    """Return those of the tables, and of the histories, that have no trigger which always fires: what a migration wrote
    to them after it took that away bears no mark. tables: by number."""
    rows = live.execute(
        "SELECT c.oid::regclass::text FROM pg_class c WHERE (c.oid = ANY(%s) OR c.relname = ANY(%s)) "
        "AND c.relkind = 'r' AND NOT EXISTS (SELECT FROM pg_trigger t "
        "WHERE t.tgrelid = c.oid AND t.tgname = %s AND t.tgenabled = 'A') ORDER BY 1",
        [list(tables), list(HISTORIES), SCHEMA],
    )
    return tuple(table for (table,) in rows)


def read(live: Connection, slot: str) -> Iterator[Mark]:
    """Yield the marks of what is committed by now, in the order of the commits. Nothing is consumed.

    Raises psycopg's errors: where it takes longer than READ_S, and of a server before PostgreSQL 14, whose
    pgoutput tells no messages.
    """
    # a commit of our own has the server write to its disk all that was committed before, which is what a slot reads
    live.execute("SELECT pg_logical_emit_message(true, %s, '')", [APPLICATION])
    with live.transaction(), live.cursor("lastgood_marks") as found:
        live.execute("SELECT set_config('statement_timeout', %s, true)", [f"{READ_S * 1000:.0f}"])
        found.itersize = _FETCHED
        found.execute(
            "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, pg_current_wal_lsn(), NULL, "
            "'proto_version', '1', 'publication_names', %s, 'messages', 'true')",
            [slot, f'"{publication_of(slot)}"'],
        )
        for xid, said in messages((bytes(data) for (data,) in found), prefix=APPLICATION):
            if said:
                told = json.loads(said)
                xids = told.get("xids")
                yield Mark(
                    xid=xid,
                    xids=None if xids is None else tuple(map(int, xids)),
                    pid=told["pid"],
                    began=told["began"],
                    name=told["name"],
                    history=told["history"],
                )
