"""Who uses the database: noted before the fence throws them out, looked for again when another one has the name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydantic import TypeAdapter

from lastgood.core.report import Check
from lastgood.targets.postgres.connect import APPLICATION, Connection

NAMED: Final = 5
Clients = tuple[tuple[str, int], ...]
"""(role, and what it calls itself where it does; how many sessions)"""
CLIENTS: Final = TypeAdapter(Clients)


def of(maintenance: Connection, database: str) -> Clients:
    """Return who is connected to a database, but for lastgood, sorted."""
    return tuple(
        (str(who), int(sessions))
        for who, sessions in maintenance.execute(
            "SELECT coalesce(usename, '-') || coalesce(' ' || nullif(application_name, ''), ''), count(*) "
            # of other roles' sessions, most is hidden from a role that may not read it
            "FROM pg_stat_activity WHERE datname = %s AND coalesce(backend_type, 'client backend') = 'client backend' "
            "AND NOT starts_with(coalesce(application_name, ''), %s) GROUP BY 1 ORDER BY 1",
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
    back = [one for one in now if one[0] in dict(before)]
    missing = [one for one in before if one[0] not in dict(now)]
    if before and not back:
        return Check(name=name, passed=False, detail=f"{_said(before)} before, and nobody of them is back")
    told = f"{_said(now)} connected" if now else "nobody was connected before"
    return Check(name=name, passed=True, detail=told + (f"; not back yet: {_said(missing)}" if missing else ""))


def _said(clients: Sequence[tuple[str, int]]) -> str:
    more = f" and {len(clients) - NAMED} more" if len(clients) > NAMED else ""
    return ", ".join(f"{who} x{sessions}" for who, sessions in clients[:NAMED]) + more
