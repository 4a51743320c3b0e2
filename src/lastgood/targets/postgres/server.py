"""The databases of the one server: the live one, its clones, the one that was replaced, and the ledger of swaps.

Nothing here drops anything but databases that lastgood itself made: their names begin with `<live>_lg_`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, LiteralString

import psycopg
from psycopg import sql

from lastgood.core.config import PostgresConfig
from lastgood.core.errors import Bug, LastgoodError, Refused, Retryable
from lastgood.core.facts import KeptDatabase
from lastgood.targets.postgres import sessions
from lastgood.targets.postgres.connect import APPLICATION, MAINTENANCE, STATEMENT_S, Connection, connect
from lastgood.targets.postgres.properties import create_like
from lastgood.targets.postgres.tools import Tools

LEDGER: Final = "lastgood"
"""Database of its own: what happened to the live one must not be written in it."""
LONGEST_NAME: Final = 63  # bytes of an identifier, NAMEDATALEN - 1
_AGAIN_S: Final = 1.0

_LEDGER_TABLES: Final[Mapping[str, LiteralString]] = {
    "swaps": """
    CREATE TABLE IF NOT EXISTS swaps (
        database text NOT NULL, swap text NOT NULL, restore_point text NOT NULL, kept_as text NOT NULL,
        at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (database, swap)
    )""",
    "replayed": "CREATE TABLE IF NOT EXISTS replayed (clone text PRIMARY KEY, commit bigint NOT NULL)",
    "restored": "CREATE TABLE IF NOT EXISTS restored (clone text PRIMARY KEY, snapshot text NOT NULL)",
    "holds": """
    CREATE TABLE IF NOT EXISTS holds (clone text PRIMARY KEY, by_rows boolean NOT NULL, migrated boolean NOT NULL)""",
    # what the next replay must know of one that was taken out of its clone, see `replay.clear`
    "remembered": "CREATE TABLE IF NOT EXISTS remembered (clone text NOT NULL, name text NOT NULL, row text NOT NULL)",
    # what a fence put aside, until a lift or a person takes it away
    "kept": """
    CREATE TABLE IF NOT EXISTS kept (
        database text NOT NULL, name text NOT NULL, oid oid NOT NULL, at timestamptz NOT NULL DEFAULT now(),
        replaced boolean NOT NULL DEFAULT false, PRIMARY KEY (database, name)
    )""",
}
_HOLDS_A_NAME: Final = "lastgood: empty, admits nobody; it has the name of a database while that one is fenced"
"""The comment by which such a database is known, whatever it is called: it goes with its oid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which database of which server something is of. system: the cluster's own number; oid: outlives a renaming, 0 for
    any."""

    system: str
    major: int
    oid: int


@dataclass(frozen=True, slots=True)
class Server:
    """The server of one configured database."""

    config: PostgresConfig
    tools: Tools = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tools", Tools(self.config))

    @property
    def live(self) -> str:
        """Name of the database that the releases use."""
        return self.config.name

    def clone_name(self, restore_point: str) -> str:
        """Name of the database that a trial restore leaves."""
        return own_name(self.live, restore_point)

    def connect(self, database: str | None = None, *, statement_s: float = STATEMENT_S) -> Connection:
        """Open an autocommit connection, by default to the live database."""
        return connect(self.config, database=database, autocommit=True, statement_s=statement_s)

    def maintenance(self, *, statement_s: float = STATEMENT_S) -> Connection:
        """Open a connection from which databases are created, renamed and dropped."""
        return self.connect(MAINTENANCE, statement_s=statement_s)


def own_name(live: str, purpose: str) -> str:
    """Name of a database that lastgood makes beside the live one, and may drop."""
    return f"{live}_lg_{purpose}"


def identity(connection: Connection) -> Identity:
    """Return that of the database that is connected to."""
    row = connection.execute(
        "SELECT system_identifier::text, oid::int8 FROM pg_control_system(), pg_database "
        "WHERE datname = current_database()"
    ).fetchone()
    if row is None:
        raise Bug("the database that is connected to is not there")
    return Identity(system=row[0], major=connection.info.server_version // 10_000, oid=row[1])


def databases(connection: Connection) -> dict[str, bool]:
    """Return every database, and whether it lets anybody connect. Those that only hold a name are none."""
    rows = connection.execute(
        "SELECT datname, datallowconn FROM pg_database WHERE NOT datistemplate "
        "AND NOT (shobj_description(oid, 'pg_database') IS NOT DISTINCT FROM %s AND NOT datallowconn)",
        [_HOLDS_A_NAME],
    )
    return dict(rows.fetchall())


def empty_name(live: str) -> str:
    """Name of the database that takes the live name while the live one is fenced."""
    return own_name(live, "_fence")  # no restore point's name begins like that


def provide_empty(connection: Connection, server: Server) -> None:
    """Have the empty database ready, which is made the first time: behind the fence nobody waits for that."""
    name = empty_name(server.live)
    if _is_empty_one(connection, name):
        return
    drop_own(connection, server, name)  # a command that died had not said yet what it is
    connection.execute(
        sql.SQL("CREATE DATABASE {} TEMPLATE template0 ALLOW_CONNECTIONS false").format(sql.Identifier(name))
    )
    connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), sql.Literal(_HOLDS_A_NAME)))


def give_way(connection: Connection, live: str) -> None:
    """Take the live name from the empty database, where that one has it."""
    if _is_empty_one(connection, live):
        rename(connection, live, empty_name(live))


def _is_empty_one(connection: Connection, database: str) -> bool:
    found = connection.execute(
        "SELECT FROM pg_database WHERE datname = %s AND NOT datallowconn "
        "AND shobj_description(oid, 'pg_database') = %s",
        [database, _HOLDS_A_NAME],
    )
    return found.fetchone() is not None


def admit(connection: Connection, database: str) -> None:
    """Let everybody connect."""
    connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(database)))


@contextmanager
def shut(connection: Connection, database: str) -> Generator[None]:
    """Let nobody connect, a superuser neither, and end the sessions that are there, for a block that renames it.

    A block that fails leaves it as it was, and everybody in again. Raises Refused, with nobody shut out, where sessions
    are not ours to end; Retryable, naming them, when sessions stay.
    """
    sessions.check_that_all_may_be_ended(connection, database)
    connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(database)))
    try:
        sessions.check_that_all_may_be_ended(connection, database)  # who came in between as well
        sessions.end(connection, database)
        yield
    except psycopg.errors.ObjectInUse as error:
        told = sessions.told(connection, database) or str(error.diag.message_detail or error)
        admit(connection, database)
        raise Retryable(f"sessions of {database} do not end: {told}", delay_s=_AGAIN_S) from error
    except BaseException:
        with suppress(psycopg.Error):  # what went wrong first is what is told
            admit(connection, database)
        raise


def hold(connection: Connection, what: str) -> None:
    """Have every other command of ours wait until this session is over, before it looks at what it is going to change.

    A command that was killed may have left a session whose last statement is still under way. Raises psycopg's errors
    when it does not end within the limit for locks.
    """
    connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [f"{APPLICATION} {what}"])


def holders(server: Server, *, at_all: bool = False) -> str:
    """Say who holds a table so that nobody can read it: `; held by 4711 migrate (idle in transaction)`, at most five;
    empty when nobody does, or that cannot be seen. at_all: who holds one in any way, so that nobody can alter it."""
    try:
        with server.maintenance() as maintenance:
            rows = maintenance.execute(
                "SELECT DISTINCT a.pid, coalesce(nullif(a.application_name, ''), a.backend_type), "
                "coalesce(a.state, '-') FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
                "WHERE l.granted AND l.locktype = 'relation' AND (l.mode = 'AccessExclusiveLock' OR %s) "
                "AND l.relation >= 16384 AND a.datname = %s ORDER BY 1 LIMIT 5",  # 16384: FirstNormalObjectId
                [at_all, server.live],
            ).fetchall()
    except (psycopg.Error, LastgoodError):
        return ""
    told = ", ".join(f"{pid} {name} ({state})" for pid, name, state in rows)
    return f"; held by {told}" if told else ""


def end_tool(connection: Connection, name: str, of: tuple[str, ...]) -> None:
    """End the sessions of a tool that a killed command left behind, in these databases. name: as it calls itself."""
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s AND datname = ANY(%s)",
        [name, list(of)],
    )


def rename(connection: Connection, database: str, to: str) -> None:
    """Rename a database that is shut. The server waits 5 s for sessions to end."""
    connection.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(database), sql.Identifier(to)))


def drop_own(connection: Connection, server: Server, database: str) -> None:
    """Drop a database that lastgood made, sessions included. Raises Refused for any other."""
    if not database.startswith(own_name(server.live, "")):
        raise Refused(f"{database} is not one of lastgood's own databases")
    connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database)))


def create_beside(connection: Connection, server: Server, database: str) -> None:
    """Create an empty database that is like the live one in everything."""
    create_like(connection, server.live, database)


def open_ledger(server: Server) -> Connection:
    """Connect to the ledger, which is made the first time."""
    ledger = ledger_or_maintenance(server)
    if ledger.info.dbname != LEDGER:
        # Another stack of this server may make it at this moment. template1 may be in use; template0 never is.
        with ledger as maintenance, suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
            maintenance.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(LEDGER)))
        ledger = server.connect(LEDGER)
    there = _tables(ledger)
    for name, definition in _LEDGER_TABLES.items():
        if name not in there:
            with suppress(psycopg.errors.DuplicateTable, psycopg.errors.UniqueViolation):
                ledger.execute(definition)
    return ledger


def ledger_or_maintenance(server: Server) -> Connection:
    """Connect to the ledger where there is one, else from where it is made. What a server tells of all its databases it
    tells in both; it is one connection less, for which requests may be waiting."""
    try:
        return server.connect(LEDGER)
    except Refused:
        maintenance = server.maintenance()
    if LEDGER not in databases(maintenance):
        return maintenance
    maintenance.close()
    return server.connect(LEDGER)  # made since, or refused for another reason


def _tables(ledger: Connection) -> set[str]:
    return {name for (name,) in ledger.execute("SELECT relname FROM pg_class WHERE relkind = 'r'")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a clone holds that nothing of a replay is left in. commit: every transaction up to it, 0 for none. by_rows:
    rows in their last state, behind which no transaction fits. migrated: whether the migration came before that commit;
    None where nothing of it was kept, and so nobody knows what it rewrote."""

    commit: int = 0
    by_rows: bool = False
    migrated: bool | None = None


def held(ledger: Connection, clone: str) -> Held:
    """Return what a clone holds, as it was noted."""
    row = ledger.execute(
        "SELECT coalesce(r.commit, 0), coalesce(h.by_rows, false), h.migrated FROM (SELECT %s AS clone) c "
        "LEFT JOIN replayed r USING (clone) LEFT JOIN holds h USING (clone)",
        [clone],
    ).fetchone()
    return Held(commit=int(row[0]), by_rows=row[1], migrated=row[2]) if row else Held()


def note_by_rows(ledger: Connection, clone: str) -> None:
    """Note that rows are about to be put into a clone in their last state."""
    with ledger.transaction():
        note_replayed(ledger, clone, 0)
        ledger.execute(
            "INSERT INTO holds VALUES (%s, true, false) ON CONFLICT (clone) DO UPDATE SET by_rows = true", [clone]
        )


def note_migrated(ledger: Connection, clone: str, migrated: bool) -> None:
    """Note of a clone that holds transactions whether the migration came before the last."""
    ledger.execute(
        "INSERT INTO holds VALUES (%s, false, %s) ON CONFLICT (clone) DO UPDATE SET migrated = excluded.migrated",
        [clone, migrated],
    )


def note_replayed(ledger: Connection, clone: str, commit: int) -> None:
    """Note that a clone holds every transaction up to that commit: nobody else knows once nothing of the replay is left
    in it, for a server that crashes may put its slot back to an earlier place. 0: it is about to get the first."""
    ledger.execute(
        "INSERT INTO replayed VALUES (%s, %s) "
        "ON CONFLICT (clone) DO UPDATE SET commit = greatest(replayed.commit, excluded.commit)",
        [clone, commit],
    )


def forget_clone(ledger: Connection, clone: str) -> None:
    """Forget what a clone of that name held and when it was restored, since another one is made."""
    for table in ("replayed", "restored", "holds", "remembered"):
        ledger.execute(sql.SQL("DELETE FROM {} WHERE clone = %s").format(sql.Identifier(table)), [clone])


def note_restored(ledger: Connection, clone: str, snapshot: str) -> None:
    """Note when a clone was proved that was restored once more. In the transaction that gives it its name."""
    forget_clone(ledger, clone)
    ledger.execute("INSERT INTO restored VALUES (%s, %s)", [clone, snapshot])


def restored_at(ledger: Connection, clone: str) -> str:
    """Return the snapshot of when a clone was restored once more, empty when it never was."""
    row = ledger.execute("SELECT snapshot FROM restored WHERE clone = %s", [clone]).fetchone()
    return str(row[0]) if row else ""


def note_kept(ledger: Connection, live: str, name: str) -> None:
    """Note which database a fence puts aside, and as what. In the transaction that renames it, before that."""
    ledger.execute(
        "INSERT INTO kept (database, name, oid) SELECT datname, %s, oid FROM pg_database WHERE datname = %s "
        "ON CONFLICT (database, name) DO UPDATE SET oid = excluded.oid, at = now(), replaced = false",
        [name, live],
    )


def note_replaced(ledger: Connection, live: str, name: str) -> None:
    """Note that another database took the place of what a fence put aside. In the transaction in which it does."""
    ledger.execute("UPDATE kept SET replaced = true WHERE (database, name) = (%s, %s)", [live, name])


def kept(ledger: Connection, live: str) -> tuple[KeptDatabase, ...]:
    """Return the databases that another one took the place of, oldest first, as far as they are there: by their oid, or
    by the name alone where the swap is older than what notes it. Nothing where none has the live name."""
    known = databases(ledger)
    rows = ledger.execute(
        "SELECT d.datname, k.at, pg_database_size(d.oid) FROM kept k JOIN pg_database d "
        "ON (d.oid, d.datname) = (k.oid, k.name) WHERE k.database = %(live)s AND k.replaced "
        "UNION SELECT d.datname, max(s.at), pg_database_size(d.oid) FROM swaps s JOIN pg_database d "
        "ON d.datname = s.kept_as WHERE s.database = %(live)s "
        "AND NOT EXISTS (SELECT FROM kept k WHERE (k.database, k.name) = (s.database, s.kept_as)) "
        "GROUP BY 1, d.oid ORDER BY 2",
        {"live": live},
    )
    return tuple(
        KeptDatabase(name=name, since=since, size_bytes=int(size))
        for name, since, size in rows
        if live in known and name != live
    )


def numbers(ledger: Connection, live: str) -> frozenset[int]:
    """Return the oids of the live database and of all that a fence put aside, whatever they are called by now. ledger:
    of `ledger_or_maintenance`; where it is not there, nothing was put aside."""
    aside = (
        "UNION SELECT oid::int8 FROM kept WHERE database = %(live)s "
        "UNION SELECT d.oid::int8 FROM swaps s JOIN pg_database d ON d.datname = s.kept_as WHERE s.database = %(live)s"
    )
    there = ledger.info.dbname == LEDGER and {"kept", "swaps"} <= _tables(ledger)
    rows = ledger.execute(
        f"SELECT oid::int8 FROM pg_database WHERE datname = %(live)s {aside if there else ''}",  # noqa: S608 # of the words above
        {"live": live},
    )
    return frozenset(oid for (oid,) in rows)


def forget_kept(ledger: Connection, live: str, name: str) -> None:
    """Forget what a fence put aside, since it is no longer there under that name."""
    ledger.execute("DELETE FROM kept WHERE (database, name) = (%s, %s)", [live, name])


def was_replaced(ledger: Connection, live: str, kept_as: str) -> bool:
    """Whether a swap put something in the place of what is kept as that."""
    found = ledger.execute("SELECT FROM swaps WHERE (database, kept_as) = (%s, %s)", [live, kept_as])
    return found.fetchone() is not None


def has_swapped(ledger: Connection, database: str, swap: str) -> bool:
    """Whether that swap of a live database happened."""
    found = ledger.execute("SELECT FROM swaps WHERE database = %s AND swap = %s", [database, swap])
    return found.fetchone() is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the ledger says of a live database. swaps: those that happened. filled: restore points into whose clone
    something was put; spent: those of them after which no transaction fits, or with which one went that nobody knows
    what the migration rewrote."""

    swaps: frozenset[str] = frozenset()
    filled: frozenset[str] = frozenset()
    spent: frozenset[str] = frozenset()


def ledger_says(server: Server, ledger: Connection) -> Told:
    """Ask the ledger. ledger: of `ledger_or_maintenance`, nothing is known where it is not there."""
    there = _tables(ledger) if ledger.info.dbname == LEDGER else set[str]()
    if not {"swaps", "replayed"} <= there:
        return Told()
    swaps = ledger.execute("SELECT swap FROM swaps WHERE database = %s", [server.live])
    ours = own_name(server.live, "")
    # an earlier version kept nothing of what its replay knew
    holds = "holds" if "holds" in there else "(SELECT NULL::text AS clone, NULL::boolean AS by_rows) AS holds"
    filled = ledger.execute(
        f"SELECT substr(clone, length(%s) + 1), coalesce(by_rows, commit > 0) "  # noqa: S608 # of the two above
        f"FROM replayed LEFT JOIN {holds} USING (clone) WHERE starts_with(clone, %s)",
        [ours, ours],
    ).fetchall()
    return Told(
        swaps=frozenset(swap for (swap,) in swaps.fetchall()),
        filled=frozenset(name for name, _ in filled),
        spent=frozenset(name for name, spent in filled if spent),
    )
