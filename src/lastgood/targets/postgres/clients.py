"""Who uses the database: noted before the fence throws them out, looked for again when another one has the name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from pydantic import TypeAdapter

from lastgood.core.report import Check
from lastgood.targets.postgres.connect import APPLICATION, Connection

NAMED: Final = 5


class Client(NamedTuple):
    """Sessions of one role that call themselves alike. addresses: from how many they come, 0 where that cannot be seen,
    as through a socket: containers have one each."""

    role: str
    name: str
    sessions: int
    addresses: int = 0

    def __str__(self) -> str:
        return " ".join(filter(None, (self.role, self.name, f"x{self.sessions}")))


Clients = tuple[Client, ...]
CLIENTS: Final = TypeAdapter(Clients)


def of(maintenance: Connection, database: str) -> Clients:
    """Return who is connected to a database, but for lastgood, sorted."""
    return tuple(
        Client(role=str(role), name=str(name), sessions=int(sessions), addresses=int(addresses))
        for role, name, sessions, addresses in maintenance.execute(
            "SELECT coalesce(usename, '-'), coalesce(application_name, ''), count(*), count(DISTINCT client_addr) "
            # of other roles' sessions, most is hidden from a role that may not read it
            "FROM pg_stat_activity WHERE datname = %s AND coalesce(backend_type, 'client backend') = 'client backend' "
            "AND NOT starts_with(coalesce(application_name, ''), %s) GROUP BY 1, 2 ORDER BY 1, 2",
            [database, APPLICATION],
        )
    )


def check(before: Clients, now: Clients, beside: Clients, *, replaced: str) -> Check:
    """Whether those who used the database before the fence use the one that has the name now, and nobody the replaced
    one. Of whom that is not proved, it is said: one that connects only when it has something to do may come later, and
    another release may call itself otherwise."""
    name = "database clients"
    if beside:
        return Check(name=name, passed=False, detail=f"{_said(beside)} in {replaced}, which is no longer live")
    roles = {one.role for one in now}
    if before and not any(one.role in roles for one in before):
        return Check(name=name, passed=False, detail=f"{_said(before)} before, and nobody of them is back")
    told = f"{_said(now)} connected" if now else "nobody was connected before"
    return Check(name=name, passed=True, detail=told, unproved="; ".join(_unproved(before, now)))


def _unproved(before: Clients, now: Clients) -> Iterator[str]:
    """Yield of whom it cannot be told that they are back."""
    was, here = {(one.role, one.name) for one in before}, {(one.role, one.name): one for one in now}
    if missing := [one for one in before if (one.role, one.name) not in here]:
        roles = {one.role for one in missing}
        others = [one for one in now if (one.role, one.name) not in was and one.role in roles]
        yield f"not back by that name: {_said(missing)}" + (f"; {_said(others)} may be of them" if others else "")
    for one in before:
        again = here.get((one.role, one.name))
        if again is None:
            continue
        if again.addresses < one.addresses:
            yield f"{again} comes from {again.addresses} of {one.addresses} addresses"
        elif not one.name and one.addresses <= 1 < one.sessions:
            yield f"{again} give themselves no application_name: services are not told apart"


def _said(clients: Sequence[Client]) -> str:
    more = f" and {len(clients) - NAMED} more" if len(clients) > NAMED else ""
    return ", ".join(map(str, clients[:NAMED])) + more
