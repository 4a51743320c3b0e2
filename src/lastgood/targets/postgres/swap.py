"""Fence, lift, swap: renames of databases, each one transaction in the ledger's database with the row that tells of it.

The rename is the fence: an application that connects as superuser passes CONNECTION LIMIT, but not a database that
admits nobody. Between fence and swap an empty one has the live name, so that nobody can make another of that name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psycopg
from psycopg import sql

from lastgood.core.errors import Refused, Retryable
from lastgood.core.plan import Fence, LiftFence, SwapDatabase
from lastgood.targets.postgres import capture, catalog, replay, restore_point, sessions, shelf
from lastgood.targets.postgres.connect import Connection, limit_statements
from lastgood.targets.postgres.noted import Migrations
from lastgood.targets.postgres.properties import make_alike
from lastgood.targets.postgres.server import (
    Server,
    admit,
    databases,
    empty_name,
    forget_kept,
    give_way,
    has_swapped,
    hold,
    kept,
    note_kept,
    note_replaced,
    open_ledger,
    provide_empty,
    rename,
    shut,
    was_replaced,
)


def prepare(server: Server) -> None:
    """Have ready what the fence needs, while everybody still works. Safe to repeat.

    Raises Refused, naming them and what to type, where sessions of the live database are not ours to end, or it has
    what no fence ends and no swap takes along: that may have come since the deploy, which looked as well.
    """
    with open_ledger(server) as ledger:
        if server.live in databases(ledger):
            if behind := sessions.left_behind(ledger, server.live, but=capture.PREFIX):
                typed = "; ".join(remedy for _, remedy in behind)
                raise Refused("; ".join(told for told, _ in behind), hint=f"psql -d {server.live}: {typed}")
            provide_empty(ledger, server)
            sessions.check_that_all_may_be_ended(ledger, server.live)


def fence(server: Server, action: Fence) -> None:
    """Rename the live database, and give its name to an empty one that admits nobody, at once: who creates a database
    that he does not find would take a name that is free. Raises Refused, nobody shut out, when it is not there or
    sessions are not ours to end; Retryable when a session stays."""
    with open_ledger(server) as ledger:
        hold(ledger, server.live)
        known = databases(ledger)
        if action.kept_as not in known:
            if server.live not in known:
                raise Refused(f"neither {server.live} nor {action.kept_as} is there")
            provide_empty(ledger, server)
            with shut(ledger, server.live), ledger.transaction():
                note_kept(ledger, server.live, action.kept_as)
                rename(ledger, server.live, action.kept_as)
                rename(ledger, empty_name(server.live), server.live)
        admit(ledger, action.kept_as)


def lift(server: Server, action: LiftFence) -> None:
    """Give the live database its name back. Raises Refused when there is nothing to give back, or another database has
    the name."""
    with open_ledger(server) as ledger:
        hold(ledger, server.live)
        known = databases(ledger)
        if server.live not in known:
            if action.kept_as not in known:
                raise Refused(f"neither {server.live} nor {action.kept_as} is there")
            if action.go_on_from:
                admit(ledger, action.kept_as)  # an attempt that died may have shut it
                with server.connect(action.go_on_from) as left, server.connect(action.kept_as) as back:
                    _carry_sequences_on(left, back, catalog.sequences(left))
            with shut(ledger, action.kept_as), ledger.transaction():
                give_way(ledger, server.live)
                rename(ledger, action.kept_as, server.live)
                forget_kept(ledger, server.live, action.kept_as)
                note_replaced(ledger, server.live, action.go_on_from)
        elif action.kept_as in known:
            if was_replaced(ledger, server.live, action.kept_as):
                raise Refused(f"both {server.live} and {action.kept_as} are there: the swap happened")
            raise _taken(server, action.kept_as)
        admit(ledger, server.live)


def release(server: Server, name: str, *, deadline_s: float) -> None:
    """Drop a database that another one took the place of. Raises Refused for any other, Retryable while somebody is
    connected to it."""
    with open_ledger(server) as ledger:
        hold(ledger, server.live)
        there = [one.name for one in kept(ledger, server.live)]
        if name not in there:
            raise Refused(
                f"{name} is no database that a swap of {server.live} keeps; kept: {', '.join(there) or 'none'}",
                hint="lastgood kept list",
            )
        limit_statements(ledger, deadline_s)
        try:
            ledger.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))
        except psycopg.errors.ObjectInUse as error:
            used = sessions.told(ledger, name) or str(error.diag.message_detail or error)
            raise Retryable(f"{name} is in use: {used}", delay_s=1.0, hint="lastgood kept list") from error
        forget_kept(ledger, server.live, name)


def _taken(server: Server, kept_as: str) -> Refused:
    """The name has gone to a database that is neither the fenced one nor a clone that was swapped in."""
    live, aside = server.live, f"{server.live}_made_meanwhile"
    return Refused(
        f"{live} is a database that somebody made while {kept_as}, the one of that name, was fenced; it is left alone",
        hint=f'psql -d postgres: ALTER DATABASE "{live}" ALLOW_CONNECTIONS false; SELECT pg_terminate_backend(pid) '  # noqa: S608 # for a person to type
        f"FROM pg_stat_activity WHERE datname = '{live}'; "
        f'ALTER DATABASE "{live}" RENAME TO "{aside}"; ALTER DATABASE "{aside}" ALLOW_CONNECTIONS true; '
        "then lastgood rollback",
    )


def swap(
    server: Server, action: SwapDatabase, point: shelf.KeptPoint, *, migrations: Migrations, deadline_s: float
) -> None:
    """Verify the clone, let its sequences go on where those of the replaced database stopped, let in whom that one let
    in, and rename it.

    Raises Refused, with nothing changed but the clone, when the fence is not up or the clone is not what was proved.
    """
    with open_ledger(server) as ledger:
        hold(ledger, server.live)
        if has_swapped(ledger, server.live, action.swap):
            return
        known = databases(ledger)
        if action.clone in known:
            admit(ledger, action.clone)  # an attempt that died may have shut it
        if server.live in known:
            if action.kept_as in known:
                raise _taken(server, action.kept_as)
            raise Refused(f"{server.live} is in its place: the fence is not up")
        if action.kept_as not in known:
            raise Refused(f"{action.kept_as}, the database to be replaced, is not there")
        if action.clone != point.point.clone:
            raise Refused(f"{action.clone} is not the clone of {action.restore_point}")
        if not action.replay:
            restore_point.clone_as_proved(server, point, deadline_s=deadline_s)
        with server.connect(action.kept_as) as replaced, server.connect(action.clone) as clone:
            hold(clone, action.clone)
            if action.replay:
                replay.clear(clone, ledger)
                restore_point.schema_as_proved(clone, point)
            _carry_sequences_on(replaced, clone, point.sequences, point.tables)
            # of an own dump nobody knows it, and so what the migration set stays as well
            migration = migrations.since(replaced, point).xids if point.point.snapshot else ()
        make_alike(ledger, action.kept_as, action.clone, but_not_by=migration)
        with shut(ledger, action.clone), ledger.transaction():
            ledger.execute(
                "INSERT INTO swaps (database, swap, restore_point, kept_as) VALUES (%s, %s, %s, %s)",
                [server.live, action.swap, action.restore_point, action.kept_as],
            )
            note_replaced(ledger, server.live, action.kept_as)
            give_way(ledger, server.live)
            rename(ledger, action.clone, server.live)
            admit(ledger, server.live)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counted:
    """The column that a sequence belongs to. quick: whether an index tells its furthest number."""

    table: int
    number: int
    place: tuple[str, str, str]
    quick: bool


def _carry_sequences_on(
    replaced: Connection, clone: Connection, known: Iterable[catalog.Sequence], tables: Iterable[catalog.Table] = ()
) -> None:
    """Set each sequence to the furthest of the two and of the numbers that are in its column, so that none is given out
    twice.

    known, tables: those of `replaced` by the names that they have in the clone: a migration may have renamed one, and
    its oid tells which one it was; or made it anew, as `serial` becomes an identity, and its column tells.
    """
    oids = {(sequence.schema, sequence.name): sequence.oid for sequence in known}
    theirs = {sequence.oid: sequence for sequence in catalog.sequences(replaced)}
    named = {(sequence.schema, sequence.name): sequence for sequence in theirs.values()}
    columns = {(t.schema, t.name, name): (t.oid, number) for t in tables for number, name in t.columns.items()}
    owned = {oid: column for oid, column in _counted(replaced).items() if oid in theirs}
    by_number = {(column.table, column.number): theirs[oid] for oid, column in owned.items()}
    by_place = {column.place: theirs[oid] for oid, column in owned.items()}
    mine = _counted(clone)
    for here in catalog.sequences(clone):
        name, column = (here.schema, here.name), mine.get(here.oid)
        there = theirs.get(oids.get(name, 0))
        if there is None and column is not None:
            there = by_number.get(columns.get(column.place, (0, 0))) or by_place.get(column.place)
        there = there or named.get(name)
        found = [here.last, there.last if there else None]
        if column is not None and (column.quick or there is None):
            found.append(_furthest(clone, here, column))
        numbers = [number for number in found if number is not None]
        furthest = max(numbers, default=None) if here.step > 0 else min(numbers, default=None)
        if furthest is not None and furthest != here.last:
            clone.execute(
                "SELECT setval(seqrelid::regclass, least(greatest(%s::int8, seqmin), seqmax), true) "
                "FROM pg_sequence WHERE seqrelid = %s",
                [furthest, here.oid],
            )


def _counted(connection: Connection) -> dict[int, _Counted]:
    """Return the columns of whole numbers to which a sequence belongs, by its oid."""
    rows = connection.execute(
        "SELECT d.objid::int8, c.oid::int8, a.attnum, n.nspname, c.relname, a.attname, "
        "EXISTS (SELECT FROM pg_index x WHERE x.indrelid = c.oid AND x.indkey[0] = a.attnum AND x.indisvalid "
        "AND x.indpred IS NULL) FROM pg_depend d JOIN pg_sequence s ON s.seqrelid = d.objid "
        "JOIN pg_class c ON c.oid = d.refobjid JOIN pg_namespace n ON n.oid = c.relnamespace "
        "JOIN pg_attribute a ON (a.attrelid, a.attnum) = (c.oid, d.refobjsubid) "
        "WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') "
        "AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)"
    )
    return {
        oid: _Counted(table=table, number=number, place=(schema, name, column), quick=quick)
        for oid, table, number, schema, name, column, quick in rows
    }


def _furthest(clone: Connection, sequence: catalog.Sequence, column: _Counted) -> int | None:
    """The furthest number of a column that its sequence may still come to; None where there is none."""
    schema, table, name = column.place
    query = sql.SQL(
        "SELECT {furthest}(t.{column})::int8 FROM {table} t, pg_sequence s "
        "WHERE s.seqrelid = {sequence} AND t.{column} BETWEEN s.seqmin AND s.seqmax"
    ).format(
        furthest=sql.SQL("max" if sequence.step > 0 else "min"),
        column=sql.Identifier(name),
        table=sql.Identifier(schema, table),
        sequence=sql.Literal(sequence.oid),
    )
    row = clone.execute(query).fetchone()
    return int(row[0]) if row and row[0] is not None else None
