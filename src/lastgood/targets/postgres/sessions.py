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


# Who owns something in the database that is connected to, or was granted something there, or has one of these sessions.
# What an extension brought is whose its maker is, and says nothing of who works with it.
_OTHERS: Final[LiteralString] = (
    "WITH used AS ("  # noqa: S608 # put together of constants
    "SELECT d.refobjid AS role FROM pg_shdepend d JOIN pg_database b ON b.datname = current_database() "
    "WHERE d.refclassid = 'pg_authid'::regclass "
    "AND (d.dbid = b.oid OR (d.classid, d.objid) = ('pg_database'::regclass, b.oid)) "
    "UNION SELECT c.relowner FROM pg_class c WHERE c.oid >= 16384 AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') "
    "AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid "
    "AND e.deptype = 'e') "
    "UNION SELECT a.usesysid FROM pg_stat_activity a WHERE a.datname = current_database() AND a.pid = ANY(%s)) "
    "SELECT r.rolname, r.rolsuper FROM pg_roles r WHERE r.rolcanlogin "
    "AND has_database_privilege(r.oid, current_database(), 'CONNECT') AND NOT " + MAY_END + " "
    "AND (r.oid IN (SELECT role FROM used) OR NOT r.rolsuper "
    "AND EXISTS (SELECT FROM used WHERE used.role <> 0 AND pg_has_role(r.oid, used.role, 'MEMBER'))) ORDER BY 1"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """A role whose sessions are not ours to end. superuser: nobody but a superuser may end them."""

    role: str
    superuser: bool


def told(connection: Connection, database: str) -> str:
    """Say who is connected: `4711 web (shop, active)`, at most ten; the server's own workers as well."""
    rows = connection.execute(
        "SELECT " + _TOLD + " FROM pg_stat_activity a WHERE datname = %s ORDER BY pid LIMIT %s",  # noqa: S608 # put together of constants
        [database, NAMED],
    )
    return _said(rows.fetchall())


def end(connection: Connection, database: str, *, but: Collection[int] = ()) -> None:
    """End every session of a client that may be ended, but this one. but: pids of others that stay."""
    connection.execute(
        "SELECT pg_terminate_backend(a.pid) " + _OF + " AND NOT a.pid = ANY(%s) AND " + MAY_END, [database, list(but)]
    )


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


def left_behind(connection: Connection, database: str, *, but: str) -> list[tuple[str, str]]:
    """Say what of a database no fence ends or no swap takes along, and what a person types in it to be rid of that.
    but: how the names of our own slots begin."""

    def name(of: str) -> str:
        return sql.Identifier(of).as_string(connection)

    def text(of: str) -> str:
        return sql.Literal(of).as_string(connection).strip()

    prepared = connection.execute("SELECT gid FROM pg_prepared_xacts WHERE database = %s ORDER BY 1", [database])
    found = [
        (
            f"transaction {gid} is prepared: the fence could not end it",
            f"COMMIT PREPARED {text(gid)} (or ROLLBACK PREPARED {text(gid)})",
        )
        for (gid,) in prepared
    ]
    subscriptions = connection.execute(
        "SELECT s.subname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = %s "
        "ORDER BY 1",
        [database],
    )
    found += [
        (
            f"subscription {subscription} writes to {database}: a swap would leave that behind",
            f"DROP SUBSCRIPTION {name(subscription)}",
        )
        for (subscription,) in subscriptions
    ]
    slots = connection.execute(
        "SELECT slot_name, plugin FROM pg_replication_slots WHERE database = %s AND NOT starts_with(slot_name, %s) "
        "ORDER BY 1",
        [database, but],
    )
    found += [
        (
            f"slot {slot} reads the changes of {database} for {plugin}: a swap would leave its reader behind",
            f"SELECT pg_drop_replication_slot({text(slot)})",
        )
        for slot, plugin in slots
    ]
    return found


def pids(connection: Connection, database: str) -> list[int]:
    """Return the sessions of clients of a database, but for this one."""
    return [pid for (pid,) in connection.execute("SELECT a.pid " + _OF, [database])]


def not_ours(connection: Connection, seen_before: Sequence[int]) -> tuple[Other, ...]:
    """Return the roles that use the database that is connected to, and whose sessions are not ours to end.

    seen_before: sessions of a moment ago: of those that are there still, the role counts whatever it owns.
    """
    rows = connection.execute(_OTHERS, [list(seen_before)])
    return tuple(Other(role=role, superuser=superuser) for role, superuser in rows)


def writing_since(connection: Connection, older_s: float) -> tuple[str, ...]:
    """Say which transactions of the whole server have written, and are open for longer than that: a replication slot
    is made only when they have ended. Of other roles' it is seen only by who may read all statistics."""
    rows = connection.execute(
        "SELECT DISTINCT "  # noqa: S608 # put together of constants
        + _TOLD
        + ", extract(epoch FROM clock_timestamp() - a.xact_start)::int "
        "FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'transactionid' AND l.granted "
        "AND l.mode = 'ExclusiveLock' AND a.pid <> pg_backend_pid() "
        "AND clock_timestamp() - a.xact_start > make_interval(secs => %s) ORDER BY 1 LIMIT %s",
        [older_s, NAMED],
    )
    return tuple(
        f"{_said([row])} has written and not ended for {row[-1]} s, and nothing is captured before it has: "
        f"SELECT pg_terminate_backend({row[0]})"
        for row in rows
    )


def are_hidden(connection: Connection) -> bool:
    """Whether what other roles' sessions do in the database that is connected to is hidden from this one."""
    found = connection.execute(
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND usesysid IS NOT NULL "
        "AND backend_type IS NULL LIMIT 1"
    )
    return found.fetchone() is not None


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
