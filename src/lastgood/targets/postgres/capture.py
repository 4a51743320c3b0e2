"""Has the server keep every transaction written after a restore point, so that they can be replayed into its clone.

A logical slot, made together with the snapshot that is dumped: the dump and the first transaction of the slot meet
exactly. The tables' replica identity is FULL meanwhile, because a change can only be merged where the row it was made
from is known. Tables are published by name: one that appears in a publication of all tables refuses updates as long as
it has no key and its identity is not FULL (55000), and it takes a superuser.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Final

import psycopg
from psycopg import sql

from lastgood.core.errors import LastgoodError, Refused, Retryable
from lastgood.targets.postgres import catalog, marks, shelf
from lastgood.targets.postgres.connect import Connection, change_in_use, connect
from lastgood.targets.postgres.server import Server, databases, identity, ledger_or_maintenance, numbers

PREFIX: Final = "lastgood_"
"""Of slots and publications that are ours."""
PLUGIN: Final = "pgoutput"
_AGAIN_S: Final = 5.0
_MOST_NAMED: Final = 5
_LOST: Final = "lost"
_FULL: Final = "FULL"
_GENERATED_PUBLISHED: Final = 18_00_00


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A capture that has begun. snapshot: exported, as long as the block lasts. position: from where the slot reads."""

    snapshot: str
    position: str


@dataclass(frozen=True, slots=True)
class Beginning:
    """A session in the live database that is ready to make the slot of a capture."""

    server: Server
    replicating: Connection
    slot: str

    def begin(self, *, deadline_s: float) -> Opened:
        """Make it. Raises Retryable, naming who is in the way, when a transaction that writes stays open."""
        snapshot, position = _create_slot(self.server, self.replicating, self.slot, deadline_s=deadline_s)
        return Opened(snapshot=snapshot, position=position)


def slot_of(live: Connection, restore_point: str) -> str:
    """Name its slot and its publication: the server allows lower case letters, digits and underscores in a slot's. The
    server has one space of names for the slots of all its databases, so the database's number is in it: a name can be
    as another's in these letters."""
    oid = identity(live).oid
    return f"{PREFIX}{oid}_" + re.sub(r"[^a-z0-9_]", "_", restore_point.lower())


def obstacles(server: Server, *, copied: bool = False) -> tuple[str, ...]:
    """Return what keeps transactions from being captured here, one line each; empty when nothing does. copied: whether
    the clone is a copy of the files, of which the log tells next to nothing."""
    with server.connect() as live:
        found: list[str] = []
        row = live.execute(
            "SELECT current_setting('wal_level'), r.rolsuper OR r.rolreplication, "
            "current_setting('max_replication_slots')::int - "
            "(SELECT count(*) FROM pg_replication_slots "
            "WHERE NOT (starts_with(slot_name, %s) AND database IS NOT DISTINCT FROM current_database())), "
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
        limit, needed = slot_limit(live), restore_log(live)
        if limit is not None and limit < needed and not copied:
            found.append(
                f"a slot may keep {limit >> 20} MiB of log, and a restore beside writes about {needed >> 20} MiB: "
                f"raise max_slot_wal_keep_size"
            )
        tables = {table.oid: table.label for table in catalog.tables(live)}
        for oid, unlogged, owned, virtual in live.execute(
            "SELECT oid::int8, relpersistence = 'u', pg_has_role(relowner, 'USAGE'), "
            "EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated = 'v') "
            "FROM pg_class c WHERE oid = ANY(%s) ORDER BY relname",
            [list(tables)],
        ):
            if unlogged:
                found.append(f"table {tables[oid]} is unlogged: its changes are in no log")
            elif virtual:
                found.append(
                    f"table {tables[oid]} has a virtual column: with its old rows told it could not be updated"
                )
            elif not owned:
                found.append(f"{user} does not own table {tables[oid]}, and so cannot publish it")
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Captures:
    """Those of one live database. folder: there it is written what the replica identity of each table was, before it is
    changed."""

    server: Server
    folder: Path

    @contextmanager
    def opened(self, slot: str, *, deadline_s: float) -> Generator[Opened]:
        """Begin a capture. A block that fails leaves nothing of it.

        Raises Retryable, naming who is in the way, when a table is locked or a transaction that writes stays open: a
        slot begins behind all of them.
        """
        with self.prepared(slot, deadline_s=deadline_s) as beginning:
            yield beginning.begin(deadline_s=deadline_s)

    @contextmanager
    def prepared(self, slot: str, *, deadline_s: float) -> Generator[Beginning]:
        """Do all that a capture needs but its slot, which begins within the block. A block that fails leaves nothing of
        it. Raises Retryable, naming who is in the way, when a table is locked."""
        try:
            with self.server.connect(statement_s=deadline_s) as live:
                self._publish(live, slot, marked=True)
            with _replicating(self.server) as replicating:
                yield Beginning(self.server, replicating, slot)
        except BaseException:
            with suppress(psycopg.Error, LastgoodError):  # what went wrong first is what is told; the next one ends it
                self.end()
            raise

    def extend(self) -> None:
        """Capture what is written to tables that were made since a capture began as well, and have transactions marked
        no more. Asked when the migration is over and nothing of the new release serves yet."""
        with self.server.connect() as live:
            for slot in self._known() & self.alive(live).keys():
                self._publish(live, slot)
            with suppress(psycopg.errors.LockNotAvailable):  # a mark more does no harm, and `end` takes them away
                marks.disarm(live)

    def _publish(self, live: Connection, slot: str, *, marked: bool = False) -> None:
        """One table at a time: a transaction that waited for many locks would hold those that it has."""
        known = self.identities(slot)
        published = {oid for (oid,) in live.execute(
            "SELECT r.prrelid::int8 FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid "
            "WHERE p.pubname = %s", [slot]
        )}  # fmt: skip
        # what came into a table that is captured is carried with it by its last state, see `Replay.carry_partitions`
        now, roots = catalog.tables(live), catalog.roots(live)
        covered = {roots[table.called] for table in now if table.oid in published and table.called in roots}
        fresh = [table for table in now if table.oid not in published and roots.get(table.called) not in covered]
        was = _replica_identities(live, [table.oid for table in fresh])
        shelf.write(shelf.folder(self.folder) / f"{slot}.json", shelf.KEPT_IDENTITIES, {**was, **known})
        name = sql.Identifier(slot)
        if live.execute("SELECT FROM pg_publication WHERE pubname = %s", [slot]).fetchone() is None:
            live.execute(sql.SQL("CREATE PUBLICATION {} {}").format(name, _with_generated(live)))
        if marked:
            marks.prepare(live, slot)
            for other, history in marks.besides(live):
                _change(live, other.as_string(live), partial(marks.arm, live, other, history=history))
        for table in fresh:
            _change(live, table.label, partial(_cover, live, table, name, marked=marked))

    def uncover(
        self,
        connection: Connection,
        slot: str,
        tables: tuple[catalog.Table, ...],
        *,
        identities: Mapping[int, str] | None = None,
    ) -> None:
        """Take what a capture did to the schema back: in the database itself, or in a copy of it. Safe to repeat.

        tables: with the oids of the database, and the names of the connection's. identities: what theirs were, of a
        capture that is over.
        """
        identities = self.identities(slot) if identities is None else identities
        for table in tables:
            if identities.get(table.oid, _FULL) == _FULL:
                continue
            words = sql.SQL(identities[table.oid])  # pyright: ignore[reportArgumentType] # quoted by the server
            statement = sql.SQL("ALTER TABLE ONLY {} REPLICA IDENTITY {}")
            as_it_was, default = (statement.format(table.identifier, how) for how in (words, sql.SQL("DEFAULT")))
            try:
                change_in_use(connection, partial(connection.execute, as_it_was))
            except (psycopg.errors.UndefinedObject, psycopg.errors.WrongObjectType):  # its index is gone since
                change_in_use(connection, partial(connection.execute, default))
        marks.disarm(connection)
        for publication in (marks.publication_of(slot), slot):  # the one that tells that anything is left as the last
            connection.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(publication)))

    def uncovering(self, published: Iterable[tuple[str, int | None, str | None, str | None]]) -> str:
        """Return SQL that does as much in a copy of the whole server, where every table has the number that it has in
        the database itself; empty when there is nothing to do.

        published: (publication of ours, number of a table, its schema, its name) there. Of a capture that is over
        nobody knows any more what the identities were: they are taken to be what a table has by itself.
        """
        lines: list[str] = []
        publications: set[str] = set()
        for slot, oid, schema, name in published:
            publications.add(slot)
            identity = self.identities(slot).get(oid or 0, "DEFAULT")
            if schema and name and identity != _FULL:
                table = sql.Identifier(schema, name).as_string(None)
                lines.append(f"ALTER TABLE ONLY {table} REPLICA IDENTITY {identity};")
        if publications:
            lines.append(f"DROP SCHEMA IF EXISTS {marks.SCHEMA} CASCADE;")  # with it the triggers: nobody is there
        lines += [f"DROP PUBLICATION {sql.Identifier(slot).as_string(None)};" for slot in sorted(publications)]
        return " ".join(lines)

    def end(self) -> None:
        """End them all, wherever the database is by now. Safe to repeat. The slots first: a table that is locked must
        not have the server keep its log.

        Raises psycopg's errors where a table is locked or the slot is being read.
        """
        with ledger_or_maintenance(self.server) as maintenance:
            homes = self._slots(maintenance)
            maintenance.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = ANY(%s)",
                [list(homes)],
            )
            known = databases(maintenance)
        for slot in self._known() | homes.keys():
            for name in dict.fromkeys((homes.get(slot, self.server.live), self.server.live)):
                if not known.get(name, False):
                    continue
                with self.server.connect(name) as home:
                    if home.execute("SELECT FROM pg_publication WHERE pubname = %s", [slot]).fetchone() is not None:
                        self.uncover(home, slot, catalog.tables(home))
            (self.folder / f"{slot}.json").unlink(missing_ok=True)

    def left(self, maintenance: Connection) -> frozenset[str]:
        """Return the captures of which anything is left: a slot, also one that the server gave up, or a note."""
        return self._known() | self._slots(maintenance).keys()

    def alive(self, maintenance: Connection) -> dict[str, int]:
        """Return our slots from which every transaction can still be had, and how many bytes of log each keeps."""
        rows = maintenance.execute(
            "SELECT slot_name, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8 FROM pg_replication_slots "
            "WHERE slot_name = ANY(%s) AND wal_status <> %s",
            [list(self._slots(maintenance)), _LOST],
        )
        return dict(rows.fetchall())

    def _slots(self, ledger: Connection) -> dict[str, str]:
        """Our slots and the databases that they are of, whatever those are called by now.

        Another stack of the server may have one of the same name, as an earlier version gave it: only what is of a
        database of ours is ours, or says itself of which it is. ledger: of `ledger_or_maintenance`; what is not the
        ledger knows the live database alone.
        """
        rows = ledger.execute(
            "SELECT slot_name, database FROM pg_replication_slots WHERE starts_with(slot_name, %(ours)s) "
            "AND (datoid = ANY(%(of)s) "
            "OR slot_name = ANY(%(known)s) AND starts_with(slot_name, %(ours)s || datoid::text || '_'))",
            {"ours": PREFIX, "of": list(numbers(ledger, self.server.live)), "known": list(self._known())},
        )
        return dict(rows.fetchall())

    def _known(self) -> frozenset[str]:
        return shelf.names(self.folder)

    def identities(self, slot: str) -> dict[int, str]:
        """Return the replica identity of each table before a capture, by its oid; nothing of one that is over."""
        path = self.folder / f"{slot}.json"
        return shelf.read(path, shelf.KEPT_IDENTITIES, what=slot, hint="lastgood doctor") if path.exists() else {}


def _change(live: Connection, label: str, change: Callable[[], object]) -> None:
    """Change one table, whole or not at all. Raises Retryable, naming who is in the way, when it is locked."""
    try:
        change_in_use(live, change)
    except psycopg.errors.LockNotAvailable as error:
        told = f"table {label} is locked; still writing: {_writing(live) or 'nobody'}"
        raise Retryable(told, delay_s=_AGAIN_S) from error


def _cover(live: Connection, table: catalog.Table, publication: sql.Identifier, *, marked: bool) -> None:
    live.execute(sql.SQL("ALTER TABLE ONLY {} REPLICA IDENTITY FULL").format(table.identifier))
    if marked:
        marks.arm(live, table.identifier)
    live.execute(sql.SQL("ALTER PUBLICATION {} ADD TABLE ONLY {}").format(publication, table.identifier))


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


def writing_elsewhere(server: Server, older_s: float) -> tuple[str, ...]:
    """Say whose transactions of other databases have written and are open for longer than that: a slot would wait for
    them, and they are none of ours to end."""
    with server.maintenance() as maintenance:
        rows = maintenance.execute(
            "SELECT pid, coalesce(nullif(application_name, ''), backend_type), datname FROM pg_stat_activity "
            "WHERE backend_xid IS NOT NULL AND datname <> %s AND clock_timestamp() - xact_start > make_interval("
            "secs => %s) ORDER BY xact_start LIMIT %s",
            [server.live, older_s, _MOST_NAMED],
        )
        return tuple(f"{pid} {name} of {database} has written and not ended" for pid, name, database in rows)


def _with_generated(live: Connection) -> sql.SQL:
    """From PostgreSQL 18 on a table refuses updates while its old rows are told and a column of them is not published
    ("Replica identity must not contain unpublished generated columns")."""
    known = live.info.server_version >= _GENERATED_PUBLISHED
    return sql.SQL("WITH (publish_generated_columns = stored)" if known else "")


def _replica_identities(live: Connection, oids: list[int]) -> dict[int, str]:
    rows = live.execute(
        "SELECT c.oid, c.relreplident::text, (SELECT quote_ident(i.relname) FROM pg_index x "
        "JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indrelid = c.oid AND x.indisreplident) "
        "FROM pg_class c WHERE c.oid = ANY(%s)",
        [oids],
    )
    words = {"d": "DEFAULT", "n": "NOTHING", "f": _FULL}
    return {int(oid): words.get(kind, f"USING INDEX {index}") for oid, kind, index in rows}


def slot_limit(maintenance: Connection) -> int | None:
    """Return how many bytes of its log the server lets a slot keep; None without a limit, and before PostgreSQL 13."""
    row = maintenance.execute(
        "SELECT setting::int8 << 20 FROM pg_settings WHERE name = 'max_slot_wal_keep_size' AND setting::int8 >= 0"
    ).fetchone()
    return int(row[0]) if row else None


def restore_log(live: Connection) -> int:
    """Return how many bytes of log a restore of this database beside itself will write, all of which a slot keeps.

    Measured on PostgreSQL 15: 0.91 of its size, and 1.82 where whatever first looks at a row logs its page again.
    """
    row = live.execute(
        "SELECT pg_database_size(current_database()) * CASE WHEN 'on' IN "
        "(current_setting('data_checksums'), current_setting('wal_log_hints')) THEN 2 ELSE 1 END"
    ).fetchone()
    return int(row[0]) if row else 0


def kept_since_before(maintenance: Connection, positions: Mapping[str, str]) -> int:
    """Return how many bytes of log slots keep from before a position of each."""
    row = maintenance.execute(
        "SELECT coalesce(sum(greatest(pg_wal_lsn_diff(at, restart_lsn), 0)), 0)::int8 "
        "FROM unnest(%s::text[], %s::pg_lsn[]) AS known(slot, at) JOIN pg_replication_slots ON slot_name = slot "
        "WHERE wal_status <> %s",
        [list(positions), list(positions.values()), _LOST],
    ).fetchone()
    return int(row[0]) if row else 0


def unread(maintenance: Connection, of: Mapping[str, tuple[str, str]]) -> frozenset[str]:
    """Return those whose slot still tells all since a position. of: slot and position by a name."""
    rows = maintenance.execute(
        "SELECT name FROM unnest(%s::text[], %s::text[], %s::pg_lsn[]) AS known(name, slot, position) "
        "JOIN pg_replication_slots ON slot_name = slot AND confirmed_flush_lsn <= position",
        [list(of), [slot for slot, _ in of.values()], [position for _, position in of.values()]],
    )
    return frozenset(name for (name,) in rows.fetchall())
