"""Takes migrations down again by the SQL that their releases shipped: tried on an empty copy of today's schema,
rehearsed on a copy with every row, then carried out in the live database, each time by the same code.

All of it is one transaction. It ends with the schema of the restore point and with every row that was there, or it is
taken back; the history is changed in it, so the history tells whether it happened. What the old schema has no place
for is written to files first, while nobody can change it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Final

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from pydantic import TypeAdapter

from lastgood.core.errors import Refused, Retryable
from lastgood.core.migration import WayDown
from lastgood.core.plan import HELD_AT_MOST_S, MigrateDown, RehearseDown
from lastgood.core.release import Down, Release
from lastgood.core.report import Loss, Rehearsed
from lastgood.targets.postgres import catalog, histories, shelf
from lastgood.targets.postgres.broken import keys_that_break
from lastgood.targets.postgres.catalog import PRISMA, Table
from lastgood.targets.postgres.connect import Connection
from lastgood.targets.postgres.fitting import STATEMENT_S, copied, unique
from lastgood.targets.postgres.preflight import room
from lastgood.targets.postgres.server import Server, hold, holders
from lastgood.targets.postgres.server_log import OURS
from lastgood.targets.postgres.writes import stem

FAILED: Final = "failed"
"""Folder beside the rehearsals that went well."""
_HINT: Final = "lastgood plan"
_AGAIN_S: Final = 2.0
_CHUNK: Final = 5_000
_DOWNS: Final = TypeAdapter(tuple[Down, ...])
# What Alembic prints round its SQL (`--sql`, Alembic docs, "Generating SQL Scripts"): the transaction is ours here.
_BEGIN: Final = re.compile(r"\A(?:\s|--[^\n]*\n)*BEGIN\s*;", re.IGNORECASE)
_COMMIT: Final = re.compile(r"\bCOMMIT\s*;\s*\Z", re.IGNORECASE)
# What the server would not say again in a quiet hour (PostgreSQL docs, appendix A): rolled back by itself, out of
# something, a lock that was not to be had, cancelled, shutting down, the system below. All else is about the script.
_NOT_NOW: Final = ("40", "53", "55P03", "57014", "57P", "58")
_EVERY_ROW: Final = "SET LOCAL row_security = off"
"""What a policy hides is an error then; it would be neither set aside nor looked at."""
# By these a script could hold up, fool or escape what is looked at after it.
_SETTINGS: Final = (
    "lock_timeout",
    "statement_timeout",
    "session_replication_role",
    "role",
    "track_counts",
    "row_security",
)
Pair = tuple[Table, Table | None]
"""A table now, and what it was at the restore point; None where it came since."""
Place = tuple[int, int]
"""A column, whatever it is called: oid of its table, and its number there."""


class Unsound(Refused):
    """Down migrations would not give back what was, whenever they are run. Nothing changed."""


def tried(
    server: Server,
    live: Connection,
    clone: Connection | None,
    kept: shelf.KeptPoint,
    target: Release,
    downs: Sequence[Down],
    today: Path,
    *,
    rewritten: Mapping[int, tuple[int, ...]],
    rehearsals: Path,
) -> WayDown:
    """Try them on an empty copy. downs: of every release since the target, oldest first. today: a dump of the schema as
    it is. rewritten, rehearsals: as `evidence.collect` has them."""
    try:
        return _tried(server, live, clone, kept, target, downs, today, rewritten=rewritten, rehearsals=rehearsals)
    except Refused as refused:
        return WayDown(downs=(), reason=refused.message)
    except psycopg.Error as error:
        if live.broken or (clone is not None and clone.broken):
            raise
        return WayDown(downs=(), reason=f"they could not be tried: {_said(error)}")


def _tried(
    server: Server,
    live: Connection,
    clone: Connection | None,
    kept: shelf.KeptPoint,
    target: Release,
    downs: Sequence[Down],
    today: Path,
    *,
    rewritten: Mapping[int, tuple[int, ...]],
    rehearsals: Path,
) -> WayDown:
    finished, unfinished = histories.known(live)
    # the clone knows better: the target may run on a migration that it does not ship
    before = histories.known(clone)[0] if clone else target.migrations
    migrations = tuple(name for name in finished if name not in before)
    downs = _of_these(downs, migrations)
    pairs = _pairs(live, kept)
    why_not = (
        _incomplete(migrations, unfinished, downs)
        or ("an own dump does not tell which columns came since" if kept.point.own else "")
        or _gone_for_good(pairs, clone, kept, rewritten)
        or _failed(rehearsals, downs, kept.point.id, catalog.fingerprint(catalog.objects(live)))
    )
    if why_not:
        return WayDown(downs=(), reason=why_not)
    try:
        with (
            copied(server, today, schema_only=True) as name,
            server.connect(name, statement_s=STATEMENT_S) as copy,
            copy.transaction(force_rollback=True),
        ):
            _take_down(copy, pairs, kept, downs, migrations)
    except psycopg.errors.QueryCanceled:
        slow = f"on a copy without rows it took longer than {STATEMENT_S:.0f} s"
        return WayDown(downs=(), reason=slow)
    reason = f"{', '.join(migrations)}: tried on a copy, the schema is then that of {kept.point.id}"
    aside = tuple((label, values) for label, values in _held(live, pairs) if values)
    return WayDown(downs=tuple(downs), reason=reason, migrations=migrations, aside=aside)


def rehearse(
    server: Server,
    action: RehearseDown,
    kept: shelf.KeptPoint,
    *,
    dump: Path,
    scratch: Path,
    clone: Connection | None,
    invariants: Mapping[str, str],
    deadline_s: float,
) -> Rehearsed:
    """Take them down in a copy of the live database as it was dumped. clone: of the restore point, where it is there.
    Raises Refused with what would not be as it was."""
    with server.connect() as live:
        pairs = _pairs(live, kept)
        row = live.execute("SELECT pg_database_size(current_database())").fetchone()
        if small := room(live, server, dump.parent, int(row[0]) if row else 0):
            raise Refused(f"there is no room for a copy: {'; '.join(small)}", hint=_HINT)
    into = shelf.folder(scratch) / unique(server)
    with (
        copied(server, dump, schema_only=False, deadline_s=deadline_s) as name,
        server.connect(name, statement_s=deadline_s) as copy,
        # taken back, since a script may alter what all databases of the server share
        copy.transaction(force_rollback=True),
    ):
        copy.execute(_EVERY_ROW)
        before = {each: _breaking(copy, text) for each, text in invariants.items()}
        rows = _counted(copy, (now for now, then in pairs if then))
        began = monotonic()
        try:
            _carry_out(copy, action, pairs, kept, into)
            took_s = monotonic() - began
        finally:
            shutil.rmtree(into, ignore_errors=True)
        stay = [then for _, then in pairs if then]
        for then, was, left in zip(stay, rows, _counted(copy, stay), strict=True):
            if was != left:
                raise Unsound(f"{then.label} has {was} rows, and would have {left} afterwards", hint=_HINT)
        if kept.point.captured and clone is not None and took_s > HELD_AT_MOST_S:
            told = f"nobody could write for {took_s:.0f} s, longer than requests wait"
            raise Unsound(f"{told}: a swap to {kept.point.id} is shorter", hint=_HINT)
        for each, text in invariants.items():
            known = before[each]
            if known is None and clone is not None:  # it asks for columns of the old schema
                known = _breaking(clone, text)
            if known is not None and (new := (_breaking(copy, text) or frozenset()) - known):
                keys = ", ".join(sorted(new)[:5])
                raise Unsound(f"rows would break the invariant {each} afterwards: {keys}", hint=_HINT)
    return Rehearsed(took_s=took_s, rows=sum(rows))


def carry_out(server: Server, action: MigrateDown, kept: shelf.KeptPoint, folder: Path, *, deadline_s: float) -> None:
    """Take them down in the live database. folder: of what is set aside.

    Raises Refused with what would not be as it was, or Retryable, naming who holds a table: then nothing changed.
    """
    into, manifest = shelf.folder(folder) / shelf.checked(action.aside), folder / f"{action.aside}.json"
    with server.connect(statement_s=deadline_s) as live:
        hold(live, f"{server.live} way down")  # a session of a killed command may still be at it
        if not set(action.migrations) & set(histories.known(live)[0]):
            return
        try:
            with live.transaction():
                ours = _own_folder(live, into)
                aside = _carry_out(live, action, _pairs(live, kept), kept, ours)
                shelf.write(manifest, shelf.KEPT_ASIDE, (*_still_there(manifest), *aside))
        except psycopg.errors.LockNotAvailable as error:
            by = holders(server, at_all=True)
            raise Retryable(f"database {server.live}: a table is not to be had{by}", delay_s=_AGAIN_S) from error


def _own_folder(live: Connection, into: Path) -> Path:
    """The folder of this transaction. Those of transactions that were taken back go; any other holds what is in no
    table any more: a bad release that came up after a commit may have migrated forward again."""
    row = live.execute("SELECT pg_current_xact_id()::text").fetchone()
    ours = str(row[0]) if row else ""
    for left in (path for path in into.glob("*") if path.is_dir()):
        # the server tells of no transaction that is yet to come, and after a crash it may give out a number again
        status = "SELECT CASE WHEN %s::xid8 < pg_current_xact_id() THEN pg_xact_status(%s::xid8) END"
        if left.name == ours or live.execute(status, [left.name, left.name]).fetchone() == ("aborted",):
            shutil.rmtree(left)
    return shelf.folder(into) / ours


def _still_there(manifest: Path) -> tuple[Loss, ...]:
    """What earlier transactions set aside, as far as it was kept."""
    if not manifest.exists():
        return ()
    losses = shelf.read(manifest, shelf.KEPT_ASIDE, what=f"what {manifest.stem} set aside", hint="lastgood explain")
    return tuple(loss for loss in losses if Path(loss.file).exists())


@contextmanager
def failure_kept(rehearsals: Path, action: RehearseDown | MigrateDown) -> Generator[None]:
    """Note what is wrong with these down migrations for this schema, so that no plan chooses them again. A trouble that
    passes is not."""
    try:
        yield
    except Unsound as refused:
        name = _key(action.downs, action.restore_point, action.made_for)
        shelf.write(
            shelf.folder(shelf.folder(rehearsals) / FAILED) / f"{name}.json", shelf.FAILED_DOWN, refused.message
        )
        raise


def _key(downs: Sequence[Down], restore_point: str, made_for: str) -> str:
    told = f"{restore_point}\n{made_for}\n".encode() + _DOWNS.dump_json(tuple(downs))
    return sha256(told).hexdigest()[:32]


def _failed(rehearsals: Path, downs: Sequence[Down], restore_point: str, made_for: str) -> str:
    path = rehearsals / FAILED / f"{_key(downs, restore_point, made_for)}.json"
    if not path.exists():
        return ""
    return f"they were refused before: {shelf.read(path, shelf.FAILED_DOWN, what=path.stem, hint=_HINT)}"


def _of_these(downs: Sequence[Down], migrations: Sequence[str]) -> tuple[Down, ...]:
    """Without the newest, as far as they are of migrations that were never applied. Alembic's history names only its
    head, so those before it count."""
    left = list(downs)
    while left and not set(left[-1].migrations) & set(migrations):
        left.pop()
    return tuple(left)


def _incomplete(migrations: Sequence[str], unfinished: Sequence[str], downs: Sequence[Down]) -> str:
    """Why these are not all that has to be taken down; empty where they are."""
    if unfinished:
        return f"{', '.join(unfinished)} began and did not finish"
    if not migrations:
        return "the history names no migration that came since"
    without = set(migrations) - {name for down in downs for name in down.migrations}
    return f"{', '.join(sorted(without))} ships no way down" if without else ""


def _pairs(live: Connection, kept: shelf.KeptPoint) -> tuple[Pair, ...]:
    then = {table.oid: table for table in kept.tables}
    return tuple((table, then.get(table.oid)) for table in catalog.tables(live))


def _gone_for_good(
    pairs: Iterable[Pair], clone: Connection | None, kept: shelf.KeptPoint, rewritten: Mapping[int, tuple[int, ...]]
) -> str:
    """What of the restore point no SQL can bring back from today's rows: a column or table that the migration removed
    with values in it, or values that it changed. Empty for nothing."""
    now, rows = {then.oid: table for table, then in pairs if then}, dict(kept.point.rows)
    for then in kept.tables:
        table = now.get(then.oid)
        gone = [name for number, name in then.columns.items() if table is None or number not in table.columns]
        if gone and rows.get(then.label) != 0 and (held := _first_held(clone, then, gone)):
            return f"the migration removed {then.label}.{held}, and what it held is only at {kept.point.id}"
        if gone and kept.point.captured:  # it may have been filled between the two, which only the capture knows
            return f"the migration removed {then.label}.{gone[0]}, and what was written to it before is only captured"
        if changed := [then.columns[number] for number in rewritten.get(then.oid, ()) if number in then.columns]:
            return f"the migration gave {then.label}.{changed[0]} other values, which are only at {kept.point.id}"
    return ""


def _first_held(clone: Connection | None, table: Table, columns: Sequence[str]) -> str:
    """The first of these columns that holds a value; where the clone is gone, it may be any."""
    if clone is None:
        return columns[0]
    for name in columns:
        query = sql.SQL("SELECT EXISTS (SELECT FROM ONLY {} WHERE {} IS NOT NULL)")
        if clone.execute(query.format(table.identifier, sql.Identifier(name))).fetchone() == (True,):
            return name
    return ""


def _carry_out(
    connection: Connection,
    action: RehearseDown | MigrateDown,
    pairs: Sequence[Pair],
    kept: shelf.KeptPoint,
    into: Path,
) -> tuple[Loss, ...]:
    """Keep writers out, set aside, take down, compare: in the transaction of the caller. Returns what was set aside."""
    connection.execute(_EVERY_ROW)
    # readers may go on until a statement alters what they read; the order is the same for everybody
    names = sql.SQL(", ").join(
        sql.SQL("ONLY {}").format(table.identifier) for table in catalog.tables(connection, history=True)
    )
    connection.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(names))
    if action.made_for and catalog.fingerprint(catalog.objects(connection)) != action.made_for:
        raise Refused("the schema is not the one for which the down migrations were tried", hint=_HINT)
    aside = _save(connection, pairs, action.migrations, into)
    _take_down(connection, pairs, kept, action.downs, action.migrations)
    return aside


def _take_down(
    connection: Connection,
    pairs: Iterable[Pair],
    kept: shelf.KeptPoint,
    downs: Sequence[Down],
    migrations: Sequence[str],
) -> None:
    """Run them, newest first. Raises Unsound when anything is not as it was."""
    if ("track_counts", "on") not in _settings(connection):
        raise Refused("track_counts is off: nothing tells whether a down migration writes to rows", hint=_HINT)
    stay = [(now, then) for now, then in pairs if then is not None]
    held, numbers = [then for now, then in stay if _holds_rows(connection, now)], _given_out(connection)
    places = _places(connection, stay)
    for down in reversed(downs):
        _run(connection, down)
    histories.forget(connection, migrations)
    with _refused("the rows afterwards", connection):
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    if left := set(migrations) & set(histories.known(connection)[0]):
        raise Unsound(f"after its down migration the history still names {', '.join(sorted(left))}", hint=_HINT)
    change = next(iter(catalog.difference(kept.schema, catalog.objects(connection))), None)
    if change is not None:
        other = f"the schema is not that of {kept.point.id} afterwards: {change.object} {change.change}"
        raise Unsound(other, hint=_HINT)
    _check_places(connection, places)
    _check_rows(connection, [then for _, then in stay], held)
    for name, last in _given_out(connection).items():
        earlier = numbers.get(name)
        if earlier is not None and (last is None or last < earlier):
            raise Unsound(f"the sequence {name} would give out numbers again that it gave out before", hint=_HINT)


def _places(connection: Connection, stay: Iterable[tuple[Table, Table]]) -> dict[tuple[str, str, str], Place]:
    """Where the values of every column that stays are, by (schema, table, column) of the restore point. A copy numbers
    its tables and columns anew, so their names of today lead to them."""
    here = {(table.schema, table.name): table for table in catalog.tables(connection)}
    found: dict[tuple[str, str, str], Place] = {}
    for now, then in stay:
        table = here.get((now.schema, now.name))
        numbers = {name: number for number, name in table.columns.items()} if table else {}
        for number in now.columns.keys() & then.columns.keys():
            if table is None or now.columns[number] not in numbers:
                raise Refused(f"{now.label}.{now.columns[number]} is gone meanwhile", hint=_HINT)
            found[then.schema, then.name, then.columns[number]] = (table.oid, numbers[now.columns[number]])
    return found


def _check_places(connection: Connection, before: Mapping[tuple[str, str, str], Place]) -> None:
    """Raise Unsound where a column has its old name again and is another one: the values went with the one that had
    them, as they do where a rename is written as DROP and ADD."""
    after = {
        (table.schema, table.name, name): (table.oid, number)
        for table in catalog.tables(connection)
        for number, name in table.columns.items()
    }
    for (schema, table, name), place in before.items():
        if after.get((schema, table, name)) != place:
            label = f"{table}.{name}" if schema == "public" else f"{schema}.{table}.{name}"
            raise Unsound(f"{label} would be another column afterwards, without the values of today's", hint=_HINT)


def _check_rows(connection: Connection, stay: Iterable[Table], held: Iterable[Table]) -> None:
    """Raise Unsound where rows came or went, or were written to: going back changes no value that stays. held: those
    with rows before.

    Nobody can write meanwhile, so none are counted here: the server counts every row that is written, but for a table
    that is rewritten, which leaves them all, and TRUNCATE, which leaves none.
    """
    for then in held:
        if not _holds_rows(connection, then):
            raise Unsound(f"{then.label} has rows, and would have none afterwards", hint=_HINT)
    written = _written(connection)
    for then in stay:
        if touched := written.get((then.schema, then.name)):
            raise Unsound(f"the down migration itself writes to {touched} rows of {then.label}", hint=_HINT)


def _written(connection: Connection) -> dict[tuple[str, str], int]:
    """How many rows this transaction wrote to, by table: asked of the server's own count, which costs nothing, whatever
    the size of the tables. A table that is rewritten as a whole is not counted (PostgreSQL docs, 28.2.2)."""
    rows = connection.execute(
        "SELECT schemaname, relname, n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_xact_user_tables "
        "WHERE n_tup_ins + n_tup_upd + n_tup_del > 0"
    )
    return {(schema, name): int(count) for schema, name, count in rows}


def _given_out(connection: Connection) -> dict[str, int | None]:
    """How far each sequence got, counted in its direction; None before its first number."""
    return {
        f"{each.schema}.{each.name}": each.last if each.last is None else each.last * (1 if each.step > 0 else -1)
        for each in catalog.sequences(connection)
    }


def _holds_rows(connection: Connection, table: Table) -> bool:
    query = sql.SQL("SELECT EXISTS (SELECT FROM ONLY {})").format(table.identifier)
    return connection.execute(query).fetchone() == (True,)


def _counted(connection: Connection, tables: Iterable[Table]) -> list[int]:
    return [rows for _, rows in catalog.count_rows(connection, tuple(tables))]


def _run(connection: Connection, down: Down) -> None:
    """Execute one script as it is. The server reads it: what cannot be in a transaction, or ends ours, is refused."""
    text, what = without_its_own_transaction(down.sql), f"the down migration of {', '.join(down.migrations)}"
    ours, settings = connection.execute("SELECT pg_current_xact_id()").fetchone(), _settings(connection)
    # without parameters psycopg uses the simple protocol: many statements at once
    with _refused(what, connection):
        connection.execute(OURS + text.encode())
    if (
        connection.info.transaction_status is not TransactionStatus.INTRANS
        or connection.execute("SELECT pg_current_xact_id()").fetchone() != ours
    ):
        raise Unsound(f"{what} ends the transaction that it runs in", hint=_HINT)
    if changed := sorted(dict(_settings(connection) - settings)):
        raise Unsound(f"{what} sets {', '.join(changed)}", hint=_HINT)
    connection.execute("RESET search_path")  # pg_dump's way of setting it, and it would outlive the script


def _settings(connection: Connection) -> set[tuple[str, str]]:
    rows = connection.execute("SELECT name, current_setting(name) FROM unnest(%s::text[]) name", [list(_SETTINGS)])
    return {(name, value) for name, value in rows}


def without_its_own_transaction(text: str) -> str:
    """Return a script without the BEGIN and COMMIT around all of it, for a transaction that is the caller's."""
    if not (_BEGIN.search(text) and _COMMIT.search(text)):
        return text
    return _COMMIT.sub("", _BEGIN.sub("", text))


@contextmanager
def _refused(what: str, connection: Connection) -> Generator[None]:
    """Turn the server's no to a script into ours. One that it would not say again in a quiet hour stays what it is."""
    try:
        yield
    except psycopg.Error as error:
        if connection.broken or (error.sqlstate or "").startswith(_NOT_NOW):
            raise
        raise Unsound(f"{what}: {_said(error)}", hint=_HINT) from error


def _said(error: psycopg.Error) -> str:
    return f"{error.diag.message_primary or error} ({error.sqlstate})"


def _breaking(connection: Connection, invariant: str) -> frozenset[str] | None:
    """The keys that break an invariant; None where it cannot be asked on this schema."""
    with suppress(psycopg.DataError, psycopg.ProgrammingError):
        return frozenset(keys_that_break(connection, invariant, strict=True))
    return None


def _came_since(now: Table, then: Table | None) -> tuple[str, ...]:
    """Columns whose values the old schema has no place for, or may not hold as they are."""
    if then is None:
        return tuple(now.columns.values())
    return tuple(name for number, name in now.columns.items() if then.types.get(number) != now.types[number])


def _held(connection: Connection, pairs: Iterable[Pair]) -> Iterator[tuple[str, int]]:
    """Yield (column or table that came since, values in it)."""
    for now, then in pairs:
        if then is None:
            yield now.label, _counted(connection, (now,))[0]
        elif names := _came_since(now, then):
            counts = sql.SQL(", ").join(sql.SQL("count({})").format(sql.Identifier(name)) for name in names)
            row = connection.execute(sql.SQL("SELECT {} FROM ONLY {}").format(counts, now.identifier)).fetchone()
            yield from ((f"{now.label}.{name}", int(count)) for name, count in zip(names, row or (), strict=True))


def _save(connection: Connection, pairs: Sequence[Pair], migrations: Sequence[str], into: Path) -> tuple[Loss, ...]:
    """Write what is taken away, a file for each table, a line for each row, by its primary key; and the rows of the
    history. Returns what they hold."""
    shelf.folder(into)
    losses: list[Loss] = []
    for now, then in pairs:
        names = _came_since(now, then)
        held = [(label, values) for label, values in _held(connection, ((now, then),)) if values]
        if not held:
            continue
        file = into / f"{stem(now)}.jsonl"
        query = _rows(now, names, every=then is None)
        shelf.write_json_lines(
            file, (f'{{"key": {key}, "values": {values}}}' for key, values in _read(connection, query))
        )
        losses += [Loss(table=label, rows=values, file=str(file)) for label, values in held]
    return (*losses, *_save_history(connection, migrations, into))


def _save_history(connection: Connection, migrations: Sequence[str], into: Path) -> tuple[Loss, ...]:
    """The rows that leave Prisma's history, whole. Alembic's holds nothing but the name."""
    history = next((t for t in catalog.tables(connection, history=True) if t.name == PRISMA), None)
    if history is None:
        return ()
    query = sql.SQL("SELECT row_to_json(t)::text FROM {} t WHERE migration_name = ANY({})").format(
        history.identifier, sql.Literal(list(migrations))
    )
    rows = [row for (row,) in connection.execute(query)]
    file = into / f"{PRISMA}.jsonl"
    shelf.write_json_lines(file, rows)
    return (Loss(table=PRISMA, rows=len(rows), file=str(file)),)


def _rows(table: Table, names: Sequence[str], *, every: bool) -> sql.Composed:
    """Key and values of the rows that hold any. Without a primary key the other columns have to tell which it is."""
    key = table.named(table.key) or tuple(name for name in table.columns.values() if name not in names)

    def told(columns: Sequence[str]) -> sql.Composable:
        if not columns:
            return sql.SQL("'{}'")
        listed = sql.SQL(", ").join(sql.Identifier("t", name) for name in columns)
        return sql.SQL("(SELECT row_to_json(told)::text FROM (SELECT {}) told)").format(listed)

    held = sql.SQL(" OR ").join(sql.SQL("{} IS NOT NULL").format(sql.Identifier("t", name)) for name in names)
    return sql.SQL("SELECT {}, {} FROM ONLY {} t WHERE {}").format(
        told(key), told(names), table.identifier, sql.SQL("true") if every else held
    )


def _read(connection: Connection, query: sql.Composed) -> Iterator[tuple[str, str]]:
    with connection.cursor(name="lastgood_aside") as cursor:
        cursor.itersize = _CHUNK
        yield from cursor.execute(query)
