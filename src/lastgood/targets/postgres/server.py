"""The databases of the one server: the live one, its clones, the one that was replaced, and the ledger of swaps.

Nothing here drops anything but databases that lastgood itself made: their names begin with `<live>_lg_`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import psycopg
from psycopg import sql

from lastgood.core.config import PostgresConfig
from lastgood.core.errors import Refused, Retryable
from lastgood.targets.postgres.connect import MAINTENANCE, STATEMENT_S, Connection, connect
from lastgood.targets.postgres.tools import Tools

LEDGER: Final = "lastgood"
"""Database of its own: what happened to the live one must not be written in it."""
LONGEST_NAME: Final = 63  # bytes of an identifier, NAMEDATALEN - 1
_AGAIN_S: Final = 1.0

_LEDGER_TABLE: Final = """
CREATE TABLE IF NOT EXISTS swaps (
    database text NOT NULL, swap text NOT NULL, restore_point text NOT NULL, kept_as text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (database, swap)
)"""


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
        return f"{self.live}_lg_{restore_point}"

    def connect(self, database: str | None = None, *, statement_s: float = STATEMENT_S) -> Connection:
        """Open an autocommit connection, by default to the live database."""
        return connect(self.config, database=database, autocommit=True, statement_s=statement_s)

    def maintenance(self, *, statement_s: float = STATEMENT_S) -> Connection:
        """Open a connection from which databases are created, renamed and dropped."""
        return self.connect(MAINTENANCE, statement_s=statement_s)


def databases(connection: Connection) -> dict[str, bool]:
    """Return every database, and whether it lets anybody connect."""
    return dict(connection.execute("SELECT datname, datallowconn FROM pg_database WHERE NOT datistemplate").fetchall())


def admit(connection: Connection, database: str) -> None:
    """Let everybody connect."""
    connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(database)))


def shut(connection: Connection, database: str) -> None:
    """Let nobody connect, a superuser neither, and end the sessions that are there."""
    connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(database)))
    connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
        [database],
    )


def rename(connection: Connection, database: str, to: str) -> None:
    """Rename a database that nobody is connected to. Raises Retryable when somebody still is."""
    try:
        connection.execute(
            sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(database), sql.Identifier(to))
        )
    except psycopg.errors.ObjectInUse as error:
        raise Retryable(f"sessions of {database} did not end yet: {error}", delay_s=_AGAIN_S) from error


def drop_own(connection: Connection, server: Server, database: str) -> None:
    """Drop a database that lastgood made, sessions included. Raises Refused for any other."""
    if not database.startswith(f"{server.live}_lg_"):
        raise Refused(f"{database} is not one of lastgood's own databases")
    connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database)))


def create_beside(connection: Connection, server: Server, database: str) -> None:
    """Create an empty database like the live one: owner, encoding, locale, settings and rights."""
    row = connection.execute(
        "SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding), to_jsonb(d) FROM pg_database d "
        "WHERE datname = %s",
        [server.live],
    ).fetchone()
    if row is None:
        raise Refused(f"database {server.live} is not there", hint="database.postgres.name in lastgood.yaml")
    owner, encoding, live = row
    options = [
        sql.SQL("OWNER {}").format(sql.Identifier(owner)),
        sql.SQL("ENCODING {}").format(sql.Literal(encoding)),
        sql.SQL("LC_COLLATE {} LC_CTYPE {}").format(sql.Literal(live["datcollate"]), sql.Literal(live["datctype"])),
        *_locale(live),
    ]
    connection.execute(
        sql.SQL("CREATE DATABASE {} TEMPLATE template0 {}").format(sql.Identifier(database), sql.SQL(" ").join(options))
    )
    _copy_settings(connection, server.live, database)
    _copy_rights(connection, server.live, database)


def _locale(live: Mapping[str, object]) -> list[sql.Composable]:
    """The locale provider, whose column was renamed in PostgreSQL 17."""
    name = live.get("datlocale") or live.get("daticulocale")
    match live.get("datlocprovider"):
        case "i":
            return [sql.SQL("LOCALE_PROVIDER icu ICU_LOCALE {}").format(sql.Literal(name))]
        case "b":
            return [sql.SQL("LOCALE_PROVIDER builtin BUILTIN_LOCALE {}").format(sql.Literal(name))]
        case _:
            return []


def _copy_settings(connection: Connection, live: str, database: str) -> None:
    """ALTER DATABASE ... SET, for everybody and for single roles: pg_dump leaves these out."""
    rows = connection.execute(
        "SELECT nullif(s.setrole, 0)::regrole::text, split_part(c, '=', 1), substr(c, strpos(c, '=') + 1) "
        "FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) c "
        "WHERE d.datname = %s",
        [live],
    ).fetchall()
    for role, name, value in rows:
        whose = (
            sql.SQL("ALTER ROLE {} IN DATABASE {}").format(sql.SQL(role), sql.Identifier(database))
            if role
            else (sql.SQL("ALTER DATABASE {}").format(sql.Identifier(database)))
        )
        # search_path and its like are lists already quoted by the server
        listed = name in ("search_path", "temp_tablespaces", "session_preload_libraries")
        text = sql.SQL(value) if listed and value else sql.Literal(value)
        connection.execute(sql.SQL("{} SET {} TO {}").format(whose, sql.Identifier(*name.split(".")), text))


def _copy_rights(connection: Connection, live: str, database: str) -> None:
    """GRANT ... ON DATABASE, likewise."""
    rows = connection.execute(
        "SELECT coalesce(nullif(a.grantee, 0)::regrole::text, 'PUBLIC'), a.privilege_type, a.is_grantable "
        "FROM pg_database d, aclexplode(d.datacl) a WHERE d.datname = %s",
        [live],
    ).fetchall()
    if rows:
        connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(database)))
    for grantee, right, grantable in rows:
        connection.execute(
            sql.SQL("GRANT {} ON DATABASE {} TO {} {}").format(
                sql.SQL(right),
                sql.Identifier(database),
                sql.SQL(grantee),
                sql.SQL("WITH GRANT OPTION" if grantable else ""),
            )
        )


def open_ledger(server: Server) -> Connection:
    """Connect to the ledger, which is made the first time."""
    with server.maintenance() as connection:
        if LEDGER not in databases(connection):
            with suppress(psycopg.errors.DuplicateDatabase):  # another stack of this server made it just now
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(LEDGER)))
    ledger = server.connect(LEDGER)
    ledger.execute(_LEDGER_TABLE)
    return ledger


def swaps(server: Server, known: Mapping[str, bool]) -> frozenset[str]:
    """Return the swaps of the live database that happened. known: the server's databases."""
    if LEDGER not in known:
        return frozenset()
    with server.connect(LEDGER) as ledger:
        if ledger.execute("SELECT to_regclass('swaps')").fetchone() == (None,):
            return frozenset()
        rows = ledger.execute("SELECT swap FROM swaps WHERE database = %s", [server.live]).fetchall()
    return frozenset(swap for (swap,) in rows)
