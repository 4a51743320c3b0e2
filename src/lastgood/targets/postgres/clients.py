"""Who uses the database: noted before the fence throws them out, looked for again when another one has the name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydantic import TypeAdapter

from lastgood.core.report import Check
from lastgood.targets.postgres.connect import APPLICATION, Connection

NAMED: Final = 5
Clients = tuple[tuple[str, str, int], ...]
"""(role, what it calls itself, how many sessions). Another release may call itself otherwise: the role is who it is."""
CLIENTS: Final = TypeAdapter(Clients)


def of(maintenance: Connection, database: str) -> Clients:
    """Return who is connected to a database, but for lastgood, sorted."""
    return tuple(
        (str(role), str(name), int(sessions))
        for role, name, sessions in maintenance.execute(
            "SELECT coalesce(usename, '-'), coalesce(application_name, ''), count(*) "
            # of other roles' sessions, most is hidden from a role that may not read it
            "FROM pg_stat_activity WHERE datname = %s AND coalesce(backend_type, 'client backend') = 'client backend' "
            "AND NOT starts_with(coalesce(application_name, ''), %s) GROUP BY 1, 2 ORDER BY 1, 2",
            [database, APPLICATION],
        )
    )


def check(before: Clients, now: Clients, beside: Clients, *, replaced: str) -> Check:
    """Whether those who used the database before the fence use the one that has the name now, and nobody the replaced
    one. A client that connects only when it has something to do may come later: it is named, and fails nothing as long
    as another one is there."""
    name = "database clients"
    if beside:
        return Check(name=name, passed=False, detail=f"{_said(beside)} in {replaced}, which is no longer live")
    roles = {role for role, _, _ in now}
    missing = [one for one in before if one[0] not in roles]
    if before and len(missing) == len(before):
        return Check(name=name, passed=False, detail=f"{_said(before)} before, and nobody of them is back")
    told = f"{_said(now)} connected" if now else "nobody was connected before"
    return Check(name=name, passed=True, detail=told + (f"; not back yet: {_said(missing)}" if missing else ""))


def _said(clients: Sequence[tuple[str, str, int]]) -> str:
    more = f" and {len(clients) - NAMED} more" if len(clients) > NAMED else ""
    named = (" ".join(filter(None, (role, name, f"x{sessions}"))) for role, name, sessions in clients[:NAMED])
    return ", ".join(named) + more
