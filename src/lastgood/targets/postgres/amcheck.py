"""Whether the indexes are sound, as amcheck says: evidence about the storage, beside the checksums of pages.

Checksums find what the disk changed; this finds an index that does not agree with its own order, as after another
library sorts texts in another way. Read-only: where the extension is not installed it is only lent for the length of a
transaction that is taken back. No lock is taken that a writer would wait for (PostgreSQL docs, "amcheck").
"""

from __future__ import annotations

from time import monotonic
from typing import Final

import psycopg
from psycopg import sql

from lastgood.targets.postgres.connect import Connection, one

LOOK_S: Final = 3.0
"""A rollback waits for it. A primary key of 10 million rows takes 0.45 s."""
MOST_INDEXES: Final = 200
_INDEXES: Final = """
SELECT c.oid::int8, c.oid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am a ON a.oid = c.relam JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE a.amname = 'btree' AND i.indisready AND i.indisvalid AND c.relkind = 'i' AND c.relpersistence <> 't'
AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
ORDER BY pg_relation_size(c.oid), 2
"""
# Data corrupted, index corrupted.
_CORRUPTED: Final = ("XX001", "XX002")


def look(live: Connection) -> tuple[tuple[str, ...], str]:
    """Return the faults, one line each, and how much was looked at, or why nothing was. The smallest indexes first, as
    many as there is time for."""
    try:
        with live.transaction(force_rollback=True):
            if why_not := _lend(live):
                return (), f"indexes not checked: {why_not}"
            return _look(live)
    except psycopg.Error as error:
        if live.broken:
            raise
        return (), f"indexes not checked: {error.diag.message_primary or error}"


def _lend(live: Connection) -> str:
    """Have the extension in this transaction; return why it cannot be had."""
    row = live.execute(
        "SELECT installed_version IS NOT NULL FROM pg_available_extensions WHERE name = 'amcheck'"
    ).fetchone()
    if row is None:
        return "the server has no amcheck"
    if row[0]:
        return ""
    try:
        with live.transaction():
            live.execute("/* lastgood */ CREATE EXTENSION amcheck")
    except psycopg.errors.InsufficientPrivilege:
        return f"amcheck is not installed, and {live.info.user} may not install it"
    return ""


def _look(live: Connection) -> tuple[tuple[str, ...], str]:
    schema = one(
        live,
        "SELECT nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE extname = 'amcheck'",
    )
    # the mark: the server's log has what fails here, and the next look reads it, see `server_log`
    check = sql.SQL("/* lastgood */ SELECT {}(%s::int8::oid::regclass)").format(
        sql.Identifier(schema, "bt_index_check")
    )
    indexes = live.execute(_INDEXES).fetchall()
    faults: list[str] = []
    looked, until = 0, monotonic() + LOOK_S
    for oid, name in indexes[:MOST_INDEXES]:
        left_s = until - monotonic()
        if left_s <= 0:
            break
        try:
            with live.transaction():
                live.execute("SELECT set_config('statement_timeout', %s, true)", [f"{max(left_s * 1000, 1):.0f}"])
                live.execute(check, [oid])
        except psycopg.errors.QueryCanceled:
            break
        except psycopg.Error as error:
            if live.broken or error.sqlstate not in _CORRUPTED:
                raise
            faults.append(f"index {name} is corrupted (SQLSTATE {error.sqlstate}): {error.diag.message_primary}")
        looked += 1
    sound = "each is sound" if not faults else f"{len(faults)} are not sound"
    return tuple(faults), f"{looked} of {len(indexes)} indexes checked by amcheck, {sound}"
