"""The sessions of a database: who they are, which of them lastgood may end, and what lets it end the rest.

Of a session of another role most is hidden from who may not read it (PostgreSQL docs, 28.2.3), its kind as well: what
has a role and no kind to be seen is a client. A worker of the server's own has no role.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

from psycopg import sql

from lastgood.core.errors import Refused
from lastgood.targets.postgres.connect import Connection

NAMED: Final = 10
# As pg_terminate_backend asks (PostgreSQL docs, 9.28.2); `r` is the role of the session, none where it was dropped.
MAY_END: Final[LiteralString] = (
    "((SELECT rolsuper FROM pg_roles WHERE rolname = current_user) OR NOT coalesce(r.rolsuper, false) "
    "AND (coalesce(pg_has_role(r.oid, 'USAGE'), false) OR pg_has_role('pg_signal_backend', 'USAGE')))"
)
# A worker that vacuums is none of ours to end, and makes way by itself.
_OF: Final[LiteralString] = (
    "FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid = a.usesysid WHERE a.datname = %s "
    "AND a.pid <> pg_backend_pid() AND a.usesysid IS NOT NULL "
    "AND coalesce(a.backend_type, 'client backend') IN ('client backend', 'walsender')"
)
_TOLD: Final[LiteralString] = (
    "a.pid, coalesce(nullif(a.application_name, ''), a.backend_type, '-'), coalesce(a.usename, '-'), "
    "coalesce(a.state, '-')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """A role whose sessions are not ours to end. superuser: nobody but a superuser may end them."""

    role: str
    superuser: bool


def told(connection: Connection, database: str) -> str:
    """Say who is connected: `4711 web (shop, active)`, at most ten; the server's own workers as well."""
    rows = connection.execute(
        "SELECT " + _TOLD + " FROM pg_stat_activity a WHERE datname = %s ORDER BY pid LIMIT %s",  # noqa: S608 # ours
        [database, NAMED],
    )
    return _said(rows.fetchall())


def end(connection: Connection, database: str) -> None:
    """End every session of a client that may be ended, but this one."""
    connection.execute("SELECT pg_terminate_backend(a.pid) " + _OF + " AND " + MAY_END, [database])


def check_that_all_may_be_ended(connection: Connection, database: str) -> None:
    """Raise Refused, naming them and what a person types, where a session is not ours to end."""
    rows = connection.execute(
        "SELECT " + _TOLD + ", coalesce(r.rolsuper, false) " + _OF + " AND NOT " + MAY_END + " ORDER BY 1 LIMIT %s",
        [database, NAMED],
    ).fetchall()
    if rows:
        others = {Other(role=row[2], superuser=row[4]) for row in rows}
        raise Refused(
            f"{user_of(connection)} may not end sessions of {database}, so it cannot be fenced: {_said(rows)}",
            hint=remedy(connection, others),
        )


def remedy(connection: Connection, others: Collection[Other]) -> str:
    """Return the SQL, for a superuser to type, after which the sessions of these roles are ours to end."""
    me = sql.Identifier(user_of(connection))
    lines = [
        sql.SQL("ALTER ROLE {} NOSUPERUSER").format(sql.Identifier(other.role))
        for other in sorted(others, key=lambda other: other.role)
        if other.superuser
    ]
    if not all(other.superuser for other in others):
        lines.append(sql.SQL("GRANT pg_signal_backend TO {}").format(me))
    text = "; ".join(line.as_string(connection) for line in lines)
    ends = any(other.superuser for other in others)
    return f"{text} (or end its sessions: only a superuser ends those of a superuser)" if ends else text


def user_of(connection: Connection) -> str:
    """Return the role that a connection is."""
    return connection.info.user


def _said(rows: Sequence[tuple[object, ...]]) -> str:
    return ", ".join(f"{pid} {application} ({user}, {state})" for pid, application, user, state, *_ in rows)
