"""Has the server keep every transaction written after a restore point, so that they can be replayed into its clone.

A logical slot, made together with the snapshot that is dumped: the dump and the first transaction of the slot meet
exactly. The tables' replica identity is FULL meanwhile, because a change can only be merged where the row it was made
from is known. Only tables that are there are published: one that the migration makes later would refuse updates as
long as it had no key (55000), and the old schema has no place for its rows anyway.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Timer
from typing import Final

import psycopg
from psycopg import sql

from lastgood.core.errors import Refused, Retryable
from lastgood.targets.postgres import catalog
from lastgood.targets.postgres.connect import Connection, connect
from lastgood.targets.postgres.server import Server

PREFIX: Final = "lastgood_"
"""Of slots and publications that are ours."""
PLUGIN: Final = "pgoutput"
_AGAIN_S: Final = 5.0
_MOST_NAMED: Final = 5
_LOST: Final = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A capture that has begun. snapshot: exported, as long as the block lasts. position: from where the slot reads.

    identities: what each table's replica identity was, as it is written in ALTER TABLE, by the table's oid.
    """

    snapshot: str
    position: str
    identities: Mapping[int, str]


def slot_of(restore_point: str) -> str:
    """Name its slot and its publication: the server allows lower case letters, digits and underscores in a slot's."""
    return PREFIX + re.sub(r"[^a-z0-9_]", "_", restore_point.lower())


def obstacles(server: Server) -> tuple[str, ...]:
    """Return what keeps transactions from being captured here, one line each; empty when nothing does."""
    with server.connect() as live:
        found: list[str] = []
        row = live.execute(
            "SELECT current_setting('wal_level'), r.rolsuper OR r.rolreplication, "
            "current_setting('max_replication_slots')::int - "
            "(SELECT count(*) FROM pg_replication_slots WHERE NOT starts_with(slot_name, %s)), "
            "current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_replication), "
            "EXISTS (SELECT FROM pg_largeobject_metadata) "
            "FROM pg_roles r WHERE r.rolname = current_user",
            [PREFIX],
        ).fetchone()
        level, replicates, slots, senders, large = row or ("", False, 0, 0, False)
        user = server.config.user
        if level != "logical":
            found.append(f"wal_level is {level}: set wal_level = logical and restart the server")
        if not replicates:
            found.append(f"{user} may not replicate: ALTER ROLE {user} REPLICATION")
        if slots < 1 or senders < 1:
            found.append("no replication slot is free: raise max_replication_slots and max_wal_senders")
        if large:
            found.append("there are large objects, whose changes no slot shows")
        for oid, name, persistence, owned in _told(live):
            if persistence == "u":
                found.append(f"table {name} is unlogged: its changes are in no log")
            elif not owned:
                found.append(f"{user} does not own table {name}, and so cannot publish it")
            del oid
        return tuple(found)


def _told(live: Connection) -> list[tuple[int, str, str, bool]]:
    known = {table.oid: table.label for table in catalog.tables(live)}
    rows = live.execute(
        "SELECT oid, relpersistence, pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = ANY(%s) ORDER BY relname",
        [list(known)],
    )
    return [(int(oid), known[int(oid)], persistence, owned) for oid, persistence, owned in rows]


@contextmanager
def opened(server: Server, slot: str, *, deadline_s: float) -> Generator[Opened]:
    """Begin a capture. A block that fails leaves nothing of it.

    Raises Retryable, naming who is in the way, when a table is locked or a transaction that writes stays open: a slot
    begins behind all of them.
    """
    with server.connect(statement_s=deadline_s) as live:
        tables = catalog.tables(live)
        identities = _identities(live, tables)
    try:
        _publish(server, slot, tables, deadline_s=deadline_s)
        with _replicating(server) as replicating:
            snapshot, position = _create_slot(server, replicating, slot, deadline_s=deadline_s)
            yield Opened(snapshot=snapshot, position=position, identities=identities)
    except BaseException:
        with suppress(psycopg.Error, Retryable):  # what went wrong first is what is told; the next one ends it as well
            end(server, {slot: identities})
        raise


@contextmanager
def _replicating(server: Server) -> Generator[Connection]:
    """A connection that speaks the replication protocol as well; only it can export a slot's snapshot."""
    connection = connect(server.config, autocommit=True, replication="database")
    try:
        yield connection
    finally:
        connection.close()


def _create_slot(server: Server, replicating: Connection, slot: str, *, deadline_s: float) -> tuple[str, str]:
    """Return the exported snapshot and the slot's first position.

    CREATE_REPLICATION_SLOT answers in one row: name, position, snapshot, plugin (PostgreSQL docs 55.4). It waits for
    every open transaction of the server that writes, and knows no statement_timeout.
    """
    too_long = Timer(deadline_s, replicating.cancel)
    too_long.start()
    try:
        words = sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL {} EXPORT_SNAPSHOT").format(
            sql.Identifier(slot), sql.SQL(PLUGIN)
        )
        answer = replicating.pgconn.exec_(words.as_bytes(replicating))
    finally:
        too_long.cancel()
    if answer.status != psycopg.pq.ExecStatus.TUPLES_OK:
        said = answer.error_message.decode("utf-8", "replace").strip()
        with server.maintenance() as maintenance:
            blockers = _writing(maintenance)
        raise Retryable(
            f"no capture could begin: {said}" + (f"; still writing: {blockers}" if blockers else ""), delay_s=_AGAIN_S
        )
    position, snapshot = answer.get_value(0, 1), answer.get_value(0, 2)
    if position is None or snapshot is None:
        raise Refused("the server made a slot and exported no snapshot")
    return snapshot.decode(), position.decode()


def _writing(maintenance: Connection) -> str:
    """Say whose transactions are open and have written: `4711 web (shop, idle in transaction)`."""
    rows = maintenance.execute(
        "SELECT pid, coalesce(nullif(application_name, ''), backend_type), coalesce(datname, '-'), "
        "coalesce(state, '-') FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() "
        "ORDER BY xact_start LIMIT %s",
        [_MOST_NAMED],
    )
    return ", ".join(f"{pid} {name} ({database}, {state})" for pid, name, database, state in rows)


def _identities(live: Connection, tables: tuple[catalog.Table, ...]) -> dict[int, str]:
    rows = live.execute(
        "SELECT c.oid, c.relreplident::text, (SELECT quote_ident(i.relname) FROM pg_index x "
        "JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indrelid = c.oid AND x.indisreplident) "
        "FROM pg_class c WHERE c.oid = ANY(%s)",
        [[table.oid for table in tables]],
    )
    words = {"d": "DEFAULT", "n": "NOTHING", "f": "FULL"}
    return {int(oid): words.get(kind, f"USING INDEX {index}") for oid, kind, index in rows}


def _publish(server: Server, slot: str, tables: tuple[catalog.Table, ...], *, deadline_s: float) -> None:
    """One table at a time: a transaction that waited for many locks would hold those that it has."""
    with server.connect(statement_s=deadline_s) as live:
        for table in tables:
            try:
                live.execute(sql.SQL("ALTER TABLE ONLY {} REPLICA IDENTITY FULL").format(table.identifier))
            except psycopg.errors.LockNotAvailable as error:
                raise Retryable(
                    f"table {table.label} is locked: still writing: {_writing(live) or 'nobody'}", delay_s=_AGAIN_S
                ) from error
        named = sql.SQL(", ").join(sql.SQL("ONLY ") + table.identifier for table in tables)
        live.execute(
            sql.SQL("CREATE PUBLICATION {} FOR TABLE {}").format(sql.Identifier(slot), named)
            if tables
            else sql.SQL("CREATE PUBLICATION {}").format(sql.Identifier(slot))
        )


def uncover(
    connection: Connection, slot: str, identities: Mapping[int, str], tables: tuple[catalog.Table, ...]
) -> None:
    """Take what a capture did to the schema back: in the database itself, or in a copy of it.

    identities: by the oid that a table had in `tables`, where it is named as it is called here.
    """
    connection.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(slot)))
    for table in tables:
        if (identity := identities.get(table.oid, "FULL")) != "FULL":
            words = sql.SQL(identity)  # pyright: ignore[reportArgumentType] # the catalog's, quoted by the server
            connection.execute(sql.SQL("ALTER TABLE ONLY {} REPLICA IDENTITY {}").format(table.identifier, words))


def end(server: Server, captures: Mapping[str, Mapping[int, str]]) -> None:
    """End captures, wherever their database is by now. Safe to repeat; a slot that is gone leaves nothing to end.

    captures: identities by slot. Raises psycopg's errors where a table is locked or the slot is being read.
    """
    with server.maintenance() as maintenance:
        rows = maintenance.execute(
            "SELECT slot_name, database FROM pg_replication_slots WHERE slot_name = ANY(%s)", [list(captures)]
        ).fetchall()
        homes: dict[str, str] = dict(rows)
    for slot, identities in captures.items():
        with server.connect(homes.get(slot, server.live)) as home:
            here = home.execute("SELECT FROM pg_publication WHERE pubname = %s", [slot]).fetchone() is not None
            if here:
                uncover(home, slot, identities, catalog.tables(home))
            home.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", [slot]
            )


def alive(maintenance: Connection) -> frozenset[str]:
    """Return our slots from which every transaction can still be had."""
    rows = maintenance.execute(
        "SELECT slot_name FROM pg_replication_slots WHERE starts_with(slot_name, %s) AND wal_status <> %s",
        [PREFIX, _LOST],
    )
    return frozenset(name for (name,) in rows)
