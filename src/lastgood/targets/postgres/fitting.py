"""Whether a release runs on today's schema: tried, not guessed.

Its recorded statements are executed on an empty copy of the schema and rolled back: PREPARE would not see a new NOT
NULL or CHECK. What fails is tried on an empty copy of the schema from before the deploy as well: an empty copy has no
row that a foreign key could point to, and only what is new between the two speaks against the release.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import psycopg

from lastgood.core.errors import Refused
from lastgood.core.migration import Fit, FitsSchema
from lastgood.core.release import Release
from lastgood.core.secret import MASK
from lastgood.targets.postgres import catalog, histories
from lastgood.targets.postgres.connect import APPLICATION, Connection
from lastgood.targets.postgres.server import Server, create_beside, databases, drop_own, own_name
from lastgood.targets.postgres.server_log import OURS

TRIAL_S: Final = 60.0
STATEMENT_S: Final = 5.0
SESSION: Final = f"{APPLICATION} trial"
# Class 42: syntax error or access rule violation; 23502 and 23514: what a new NOT NULL or CHECK says.
_UNFIT: Final = ("42", "23502", "23514")
# What is checked last, after every column, type and constraint of the row itself: no row to point to.
_NO_PARENT: Final = "23503"
_LITERAL: Final = re.compile(r"'(?:[^']|'')*'")


Start = Callable[[str], str]
"""Runs what a release runs when it starts on the database of that name; returns how it failed, empty when it did not.
Raises Refused when it did not end in time."""


def fits(server: Server, target: Release, *, before: Path, today: Path) -> FitsSchema:
    """Try the statements of `target`. before: the dump of the restore point. today: of the schema as it is."""
    if not target.statements:
        return no_statements(target)
    failed = _failures_in(server, target.statements, today)
    failed_before = _failures_before(server, tuple(failed), before) if failed else {}
    return judged(target, failed, failed_before, on="today's schema")


def starts(
    server: Server,
    target: Release,
    start: Start,
    *,
    before: Path,
    today: Path,
    then: Connection | None,
    now: Connection,
) -> FitsSchema:
    """Try what `target` runs by itself when it starts. before, today: as for `fits`; then, now: connections to the
    clone and to the live database, whose history a tool may refuse."""

    def tried(dump: Path, history: Connection) -> FitsSchema:
        with copied(server, dump, schema_only=True) as name, server.connect(name, statement_s=STATEMENT_S) as copy:
            histories.carry(history, copy)
            return started(copy, target, start)

    found = tried(today, now)
    if found.fit is not Fit.NO:
        return found
    if then is None or not before.is_file() or tried(before, then).fit is not Fit.YES:
        return replace(found, fit=Fit.UNKNOWN)
    return found


def started(copy: Connection, target: Release, start: Start) -> FitsSchema:
    """Whether what `target` runs when it starts ends well on an empty copy, and leaves the schema as it is."""
    what, before = f"what {target.id} runs when it starts", catalog.objects(copy)
    try:
        failed = start(copy.info.dbname)
    except Refused as refused:
        return FitsSchema(fit=Fit.UNKNOWN, tried=0, reason=f"{what}: {refused.message}")
    if failed:
        return FitsSchema(fit=Fit.NO, tried=1, reason=f"{what} {failed}")
    changes = catalog.difference(before, catalog.objects(copy))
    if changes:
        told = f"{what} changes the schema: {changes[0].object} {changes[0].change[:100]}"
        return FitsSchema(fit=Fit.UNKNOWN, tried=1, reason=told)
    return FitsSchema(fit=Fit.YES, tried=1, reason=f"{what} ends well")


def both(statements: FitsSchema, start: FitsSchema) -> FitsSchema:
    """Weigh the two together: a release has to start, and to be understood afterwards."""
    for fit in (Fit.NO, Fit.UNKNOWN):
        for found in (statements, start):
            if found.fit is fit:
                return found
    return replace(statements, reason=f"{statements.reason}, and {start.reason}")


def no_statements(target: Release) -> FitsSchema:
    """Nothing can be tried of a release that recorded nothing."""
    return FitsSchema(fit=Fit.UNKNOWN, tried=0, reason=f"{target.id} recorded no statements")


def judged(
    target: Release,
    failed: Mapping[str, psycopg.Error],
    failed_before: Mapping[str, psycopg.Error] | None,
    *,
    on: str,
) -> FitsSchema:
    """Weigh which statements of `target` fail on a schema, and which failed on the one from before; None where nobody
    knows. on: how the schema is called."""
    tried = len(target.statements)
    undecided = ""
    for statement, error in failed.items():
        told = f"SQLSTATE {error.sqlstate} {error.diag.message_primary} in `{_shown(statement)}`"
        was = failed_before.get(statement) if failed_before is not None else error
        same = was is not None and was.sqlstate == error.sqlstate
        if not same and (error.sqlstate or "").startswith(_UNFIT):
            return FitsSchema(fit=Fit.NO, tried=tried, reason=told)
        if failed_before is None or not same or error.sqlstate != _NO_PARENT:
            undecided = undecided or told
    if undecided:
        return FitsSchema(fit=Fit.UNKNOWN, tried=tried, reason=undecided)
    return FitsSchema(fit=Fit.YES, tried=tried, reason=f"{tried} statements of {target.id} run on {on}")


def _shown(statement: str) -> str:
    """As much of it as tells which one it is, without the values in it."""
    return _LITERAL.sub(f"'{MASK}'", " ".join(statement.split()))[:60]


def _failures_before(server: Server, statements: tuple[str, ...], dump: Path) -> dict[str, psycopg.Error] | None:
    """The same on the schema from before the deploy; None where the dump is gone, and nothing tells what is new."""
    return _failures_in(server, statements, dump) if dump.is_file() else None


def _failures_in(server: Server, statements: tuple[str, ...], dump: Path) -> dict[str, psycopg.Error]:
    with copied(server, dump, schema_only=True) as name, server.connect(name, statement_s=STATEMENT_S) as copy:
        return failures(copy, statements)


def failures(copy: Connection, statements: Iterable[str]) -> dict[str, psycopg.Error]:
    """Execute each statement on an empty copy, and roll it back; return the errors of those that fail."""
    tried = {statement: _error(copy, statement) for statement in statements}
    return {statement: error for statement, error in tried.items() if error is not None}


def _error(connection: Connection, statement: str) -> psycopg.Error | None:
    """Execute and roll back; return the error, None when there was none."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(OURS + statement.encode())
    except psycopg.Error as error:
        if connection.broken:
            raise
        return error
    return None


@contextmanager
def copied(server: Server, dump: Path, *, schema_only: bool, deadline_s: float = TRIAL_S) -> Generator[str]:
    """Lend a database that a dump was restored into, gone afterwards. Those of commands that were killed go too."""
    name = unique(server)
    with server.maintenance(statement_s=deadline_s) as maintenance:
        for left in databases(maintenance):
            if _abandoned(server, left):
                drop_own(maintenance, server, left)
        try:
            create_beside(maintenance, server, name)
            server.tools.restore(dump, name, session=SESSION, deadline_s=deadline_s, schema_only=schema_only)
            yield name
        finally:
            drop_own(maintenance, server, name)


def unique(server: Server) -> str:
    """A name for what is gone with this process."""
    return own_name(server.live, f"try_{os.getpid()}_{secrets.token_hex(2)}")


def _abandoned(server: Server, database: str) -> bool:
    prefix = own_name(server.live, "try_")
    pid = database.removeprefix(prefix).split("_")[0]
    return database.startswith(prefix) and not (pid.isdigit() and Path(f"/proc/{pid}").exists())
