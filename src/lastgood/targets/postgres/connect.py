"""Opens connections to the one configured server: over TCP, a unix socket, or to a container's own address.

The address of a container is looked up at each connection, since a restarted container may have another one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any, Final, LiteralString, cast

import docker.errors
import psycopg

from lastgood.core.config import PostgresConfig
from lastgood.core.errors import Bug, LastgoodError, Refused, Retryable
from lastgood.targets.docker_engine import asking, opened

Connection = psycopg.Connection[tuple[Any, ...]]

MAINTENANCE: Final = "postgres"
"""The database that is there when the live one is renamed (PostgreSQL docs, `initdb`)."""
APPLICATION: Final = "lastgood"
CONNECT_S: Final = 2
STATEMENT_S: Final = 30.0
LOCK_S: Final = 5.0
_MOMENT_S: Final = 0.2
"""Who waits longer for a lock holds up everybody who comes behind (a migration behind a long read, for one)."""
_NOT_NOW_S: Final = 1.0
NO_POOLER: Final = "database.postgres.host and .port in lastgood.yaml: the server's own, not those of a pooler"
# libpq tells why a connection failed in words only; these come from the server and another try does not help.
_REFUSALS: Final = {
    "password authentication failed": "database.postgres.user and .password in lastgood.yaml",
    "no password supplied": "database.postgres.password in lastgood.yaml",
    # PgBouncer's words: it hands no settings on, and knows neither replication nor a session's own state
    "unsupported startup parameter": NO_POOLER,
    "no pg_hba.conf entry": "let this host in: pg_hba.conf of the server",
    "role ": "database.postgres.user in lastgood.yaml",
    "database ": "database.postgres.name in lastgood.yaml",
}


def connect(
    config: PostgresConfig,
    *,
    database: str | None = None,
    autocommit: bool = False,
    statement_s: float = STATEMENT_S,
    replication: str = "false",
) -> Connection:
    """Connect to `database`, by default the configured one. statement_s: limit for each statement, seconds; no lock
    is waited for longer than 5 s. replication: `database` for a session that also takes replication commands.

    Raises Refused when the server says no for good, Retryable when it does not answer within 2 s. Nothing changed.
    """
    host = container_address(config.container) if config.container else config.host
    try:
        return psycopg.connect(
            host=host,
            port=config.port,
            user=config.user,
            password=config.password.reveal() if config.password else None,
            dbname=database or config.name,
            replication=replication,
            application_name=APPLICATION,
            connect_timeout=CONNECT_S,
            tcp_user_timeout=10_000,
            # values read the same whatever the database or the role has set
            options=f"-c statement_timeout={statement_s * 1000:.0f} -c lock_timeout={LOCK_S * 1000:.0f} "
            # and what is committed is on disk: a slot tells no transaction before it is
            "-c DateStyle=ISO -c TimeZone=UTC -c extra_float_digits=1 -c synchronous_commit=on "
            # and what is read behind a lock is what its last holder left, not what was there before it was waited for
            r"-c default_transaction_isolation=read\ committed",
            autocommit=autocommit,
        )
    except psycopg.OperationalError as error:
        raise _not_connected(config, database or config.name, error) from error


def limit_statements(connection: Connection, statement_s: float) -> None:
    """Give every statement from now on so long."""
    connection.execute("SELECT set_config('statement_timeout', %s, false)", [f"{statement_s * 1000:.0f}"])


def one(connection: Connection, query: LiteralString, *parameters: str) -> str:
    """Return the one value of the one row that a query always gives, as text."""
    row = connection.execute(query, parameters).fetchone()
    if row is None:
        raise Bug("a query that always gives a row gave none")
    return str(row[0])


def listens(config: PostgresConfig) -> bool:
    """Whether anything listens where the server does, True also where that cannot be seen. What listens and does not
    let in is busy, starting or ending. Raises Retryable when the engine of its container is silent."""
    host = config.host
    if config.container and not (host := _address_of(config.container)):
        return False
    try:
        if host.startswith("/"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(CONNECT_S)
                probe.connect(f"{host}/.s.PGSQL.{config.port}")
        else:
            socket.create_connection((host, config.port), timeout=CONNECT_S).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except OSError:
        return True
    return True


def _not_connected(config: PostgresConfig, database: str, error: psycopg.OperationalError) -> LastgoodError:
    said = " ".join(str(error).split())
    place = config.container or f"{config.host}:{config.port}"
    for words, hint in _REFUSALS.items():
        final = words in said and (not words.endswith(" ") or "does not exist" in said)
        if final and "not currently accepting" not in said:
            return Refused(f"database {database} at {place} refuses {config.user}: {said}", hint=hint)
    return Retryable(
        f"database {database} at {place} does not answer: {said}",
        delay_s=_NOT_NOW_S,
        hint=f"docker logs {config.container}" if config.container else "is Postgres running?",
    )


def container_address(container: str) -> str:
    """Return the address of a running container. Raises Retryable when there is none or the engine is silent."""
    if address := _address_of(container):
        return address
    raise Retryable(
        f"container {container} is not running, or has no address",
        delay_s=_NOT_NOW_S,
        hint=f"docker start {container}",
    )


def _address_of(container: str) -> str:
    """Empty where it is not there, or has none. Asked through the SDK: a process of the docker client would take longer
    than the connection, and requests may be waiting."""
    with opened(os.environ) as engine, asking():
        try:
            shown = cast("dict[str, Any]", cast("Any", engine).inspect_container(container))
        except docker.errors.NotFound:
            return ""
    networks = cast("dict[str, dict[str, str]]", shown["NetworkSettings"]["Networks"] or {})
    return next((n["IPAddress"] for n in networks.values() if n.get("IPAddress")), "")


def change_in_use(connection: Connection, change: Callable[[], object]) -> None:
    """Change a table that others use, whole or not at all. Who comes after a change that waits for its lock waits with
    it, readers too: so it waits for moments, lets them pass as long, and gives up after LOCK_S.

    Raises LockNotAvailable: nothing changed.
    """
    ends_at = monotonic() + LOCK_S
    while True:
        try:
            with connection.transaction():
                connection.execute("SELECT set_config('lock_timeout', %s, true)", [f"{_MOMENT_S * 1000:.0f}"])
                change()
        except psycopg.errors.LockNotAvailable:
            if monotonic() >= ends_at:
                raise
            sleep(_MOMENT_S)
        else:
            return
