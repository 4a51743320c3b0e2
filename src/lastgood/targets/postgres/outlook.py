"""What a deploy's migrations would do, seen before any of them is applied: they are run on an empty copy of today's
schema, and what the last good release says to the database is tried after them.

Prisma's files are run in one transaction that is taken back, so that nothing of them stays, not even a role. The
release's own command is run only where the configuration says that it may be. What takes values for good is told by the
identity of tables and columns, not by their names: a renaming takes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from lastgood.core.errors import LastgoodError, Refused
from lastgood.core.migration import Fit, FitsSchema, Outlook, foremost
from lastgood.core.release import Release
from lastgood.targets.postgres import catalog, histories, shelf
from lastgood.targets.postgres.catalog import HISTORIES, Table
from lastgood.targets.postgres.connect import Connection
from lastgood.targets.postgres.fitting import (
    SESSION,
    Start,
    both,
    copied,
    failures,
    judged,
    no_statements,
    started,
    unique,
)
from lastgood.targets.postgres.server import Server
from lastgood.targets.postgres.server_log import OURS
from lastgood.targets.postgres.way_down import without_its_own_transaction

LOOK_S: Final = 30.0
"""For all of it; a deploy waits for it. A schema of 300 tables takes about a second."""
STATEMENT_S: Final = 10.0
_HINT: Final = "lastgood doctor"
# On a copy without rows the words differ in nothing but that they may stand in a transaction.
_CONCURRENTLY: Final = re.compile(r"\b(INDEX)\s+CONCURRENTLY\b", re.IGNORECASE)
_COMMITS: Final = re.compile(r"\b(?:COMMIT|ROLLBACK)\b\s*(?:WORK|TRANSACTION)?\s*;", re.IGNORECASE)
# Fires also where there are no rows, before each statement; of whoever owns the copy, whatever role a script takes on.
_WATCH: Final = """
CREATE SCHEMA lastgood_watch;
CREATE TABLE lastgood_watch.seen (relation oid, what text);
CREATE FUNCTION lastgood_watch.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS
    'BEGIN INSERT INTO lastgood_watch.seen VALUES (TG_RELID, TG_OP); RETURN NULL; END';
GRANT USAGE ON SCHEMA lastgood_watch TO PUBLIC;
"""
_WATCHED: Final = (
    "SELECT c.oid, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'lastgood_watch') "
    "AND c.relname <> ALL(%s)"
)
_SAID: Final = {
    "DELETE": "rows of {} are deleted",
    "TRUNCATE": "all rows of {} are removed",
    "UPDATE": "values in rows of {} may be overwritten",
}
_INTEGERS: Final = ("smallint", "integer", "bigint", "numeric")
_TEXTS: Final = ("text", "character varying")
_WIDER: Final = (("real", "double precision"), ("date", "timestamp without time zone"))
_LIMITED: Final = re.compile(r"(character varying|numeric)\((\d+)(?:,(\d+))?\)")

Labels = Mapping[int, tuple[str, str]]
"""Labels of enums by their identity: the type's name, and the label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """A schema with the identity of what holds values in it."""

    objects: Mapping[str, str]
    tables: Mapping[int, Table]
    labels: Labels


def tried(
    server: Server,
    migrate: Callable[[Connection, Callable[[], float]], None],
    *,
    taken_back: bool,
    last_good: Release | None,
    start: Start | None,
    scratch: Path,
) -> Outlook:
    """Run `migrate` on an empty copy, which is gone afterwards. It is given a connection to the copy, and how many
    seconds are left. taken_back: whether all of it is one transaction, which is taken back.
    start: runs what `last_good` runs by itself when it starts, None where that migrates nothing.

    Whatever goes wrong, the answer is that nothing is known, and why.
    """
    until = monotonic() + LOOK_S

    def left_s() -> float:
        left = until - monotonic()
        if left <= 0:
            raise Refused(f"it was not tried within {LOOK_S:.0f} s")
        return left

    try:
        with (
            shelf.passing(shelf.folder(scratch) / f"{unique(server)}.dump") as today,
            _copy_of_today(server, today, left_s) as copy,
            copy.transaction(force_rollback=True) if taken_back else nullcontext(),
        ):
            return _tried(copy, lambda: migrate(copy, left_s), last_good, start)
    except LastgoodError as error:
        return unseen(error.message, last_good)
    except psycopg.Error as error:
        return unseen(" ".join(str(error.diag.message_primary or error).split()), last_good)


def unseen(why: str, last_good: Release | None) -> Outlook:
    """Nobody can tell what the migrations would do."""
    return Outlook(
        old_release=FitsSchema(fit=Fit.UNKNOWN, tried=0, reason=why),
        last_good=last_good.id if last_good else "",
        unseen=why,
    )


def run_scripts(copy: Connection, scripts: Sequence[tuple[str, str]]) -> None:
    """Run (migration, SQL), oldest first, in the transaction that is open. Raises Refused with what one of them said,
    or where it would end the transaction."""
    for name, text in scripts:
        script = without_its_own_transaction(_CONCURRENTLY.sub(r"\1", text))
        if _COMMITS.search(script):
            raise Refused(f"{name} ends its transaction by itself, so it cannot be tried and taken back", hint=_HINT)
        try:
            copy.execute(OURS + script.encode())  # without parameters: many statements at once
        except psycopg.Error as error:
            told = f"SQLSTATE {error.sqlstate} {error.diag.message_primary}"
            raise Refused(f"{name} fails on a copy without rows: {told}", hint=_HINT) from error
        copy.execute("RESET ALL")  # a script in pg_dump's manner sets a search_path, which would outlive it
        copy.execute("RESET ROLE")
        _check_in_transaction(copy, name)


def _check_in_transaction(copy: Connection, what: str) -> None:
    if copy.info.transaction_status is not TransactionStatus.INTRANS:
        raise Refused(f"{what} ends its transaction by itself, so nothing after it can be taken back", hint=_HINT)


@contextmanager
def _copy_of_today(server: Server, today: Path, left_s: Callable[[], float]) -> Generator[Connection]:
    """A connection to an empty copy of the live schema, with the rows of the migrations' history."""
    server.tools.dump(server.live, today, session=SESSION, deadline_s=left_s(), schema_only=True)
    with (
        copied(server, today, schema_only=True, deadline_s=left_s()) as name,
        server.connect(name, statement_s=min(STATEMENT_S, left_s())) as copy,
    ):
        with server.connect() as live:
            histories.carry(live, copy)
        yield copy


def _tried(copy: Connection, migrate: Callable[[], None], last_good: Release | None, start: Start | None) -> Outlook:
    statements = last_good.statements if last_good else ()
    in_transaction = copy.info.transaction_status is TransactionStatus.INTRANS
    before, failed_before = _seen(copy), failures(copy, statements)
    if in_transaction:
        _check_in_transaction(copy, "a recorded statement")
    # in the middle of a transaction nobody else sees what the migrations did
    starts = start if last_good and not in_transaction else None
    starting = started(copy, last_good, starts) if last_good and starts else None
    names = _watch(copy)
    migrate()
    told = _told(copy, names)
    after, failed = _seen(copy), failures(copy, statements)
    if last_good is None:
        fit = FitsSchema(fit=Fit.UNKNOWN, tried=0, reason="there is no good release to go back to")
    elif not statements:
        fit = no_statements(last_good)
    else:
        fit = judged(last_good, failed, failed_before, on="the schema that they leave")
    if last_good and starts and starting and starting.fit is Fit.YES:
        fit = both(fit, started(copy, last_good, starts))
    elif last_good and start and fit.fit is Fit.YES:
        why = starting.reason if starting else f"what {last_good.id} runs when it starts was not tried without on_copy"
        fit = FitsSchema(fit=Fit.UNKNOWN, tried=fit.tried, reason=f"{fit.reason}, but {why}")
    changes, more = foremost(catalog.difference(before.objects, after.objects))
    return Outlook(
        old_release=fit,
        last_good=last_good.id if last_good else "",
        doors=(*_doors(before, after), *told),
        changes=changes,
        more=more,
    )


def _seen(copy: Connection) -> _Seen:
    labels = copy.execute(
        "SELECT e.oid::int8, CASE n.nspname WHEN 'public' THEN '' ELSE n.nspname || '.' END || t.typname, e.enumlabel "
        "FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid JOIN pg_namespace n ON n.oid = t.typnamespace"
    )
    return _Seen(
        objects=catalog.objects(copy),
        tables={table.oid: table for table in catalog.tables(copy)},
        labels={oid: (name, label) for oid, name, label in labels},
    )


def _watch(copy: Connection) -> dict[int, str]:
    """Note from now on which tables are written to, and return what these are called now."""
    copy.execute(_WATCH.encode())
    names: dict[int, str] = {}
    for oid, schema, table in copy.execute(_WATCHED, [list(HISTORIES)]).fetchall():
        names[int(oid)] = table if schema == "public" else f"{schema}.{table}"
        copy.execute(
            sql.SQL(
                "CREATE TRIGGER lastgood_watch BEFORE UPDATE OR DELETE OR TRUNCATE ON {} "
                "FOR EACH STATEMENT EXECUTE FUNCTION lastgood_watch.note()"
            ).format(sql.Identifier(schema, table))
        )
    return names


def _told(copy: Connection, names: Mapping[int, str]) -> tuple[str, ...]:
    """What was noted, in words; nothing of it stays in the schema."""
    noted = copy.execute("SELECT DISTINCT relation::int8, what FROM lastgood_watch.seen ORDER BY 1, 2").fetchall()
    copy.execute("DROP SCHEMA lastgood_watch CASCADE")
    return tuple(_SAID[what].format(names[oid]) for oid, what in noted if oid in names and what in _SAID)


def _doors(before: _Seen, after: _Seen) -> tuple[str, ...]:
    """What holds values before and not afterwards, and where not every value fits any more."""
    found: list[str] = []
    labels = {table.label for table in after.tables.values()}
    for oid, was in before.tables.items():
        now = after.tables.get(oid)
        if now is None:
            found.append(f"table {was.label} is dropped" + (" and made anew" if was.label in labels else ""))
            continue
        for number, name in was.columns.items():
            column = f"column {was.label}.{name}"
            if number not in now.columns:
                found.append(f"{column} is dropped" + (" and made anew" if name in now.columns.values() else ""))
            elif not _keeps(was.types[number], now.types[number]):
                found.append(f"{column} becomes {now.types[number]} from {was.types[number]}, which not every value is")
    kept: dict[str, set[str]] = {}
    for name, label in after.labels.values():
        kept.setdefault(name, set()).add(label)
    for oid, (name, label) in before.labels.items():
        if oid not in after.labels and name in kept and label not in kept[name]:
            found.append(f"type {name} no longer has '{label}'")
    return tuple(found)


def _keeps(was: str, now: str) -> bool:
    """Whether every value of the one type is one of the other. What is not known to be is not."""
    if was.endswith("[]") and now.endswith("[]"):
        return _keeps(was[:-2], now[:-2])
    if was == now or now in _TEXTS or (was, now) in _WIDER:
        return True
    if was in _INTEGERS and now in _INTEGERS:
        return _INTEGERS.index(was) <= _INTEGERS.index(now)
    if not (limited := _LIMITED.fullmatch(was)):
        return False
    if now == "numeric":
        return limited[1] == "numeric"
    wider = _LIMITED.fullmatch(now)
    if wider is None or wider[1] != limited[1]:
        return False
    digits, behind = int(limited[2]), int(limited[3] or 0)
    room, room_behind = int(wider[2]), int(wider[3] or 0)
    return room_behind >= behind and room - room_behind >= digits - behind
