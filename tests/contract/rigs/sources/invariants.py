"""Rows on a real Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

from lastgood.signals.invariants import Invariants
from tests.contract.rigs.sources import Act, Rigs, SourceRig
from tests.signals.database import database


@dataclass(slots=True)
class _Reach:
    """How the rig's source gets to its database."""

    address: str
    opened: list[psycopg.Connection] = field(default_factory=list[psycopg.Connection])

    def connect(self) -> psycopg.Connection:
        connection = psycopg.connect(self.address, connect_timeout=2)
        self.opened.append(connection)
        return connection


@contextmanager
def invariants_rig() -> Iterator[SourceRig]:
    with database("CREATE TABLE missions (id int, credits int)", "INSERT INTO missions VALUES (1, 5)") as address:
        reach = _Reach(address)

        def run(statement: str) -> Act:
            def act() -> None:
                with psycopg.connect(address, autocommit=True) as connection:
                    connection.execute(statement.encode())

            return act

        def rows() -> object:
            assert all(connection.closed for connection in reach.opened), "a reading leaves no session behind"
            with psycopg.connect(address) as connection:
                return connection.execute("SELECT xmin::text, m.* FROM missions m").fetchall()

        yield SourceRig(
            source=Invariants(
                "the source", {"credits": "SELECT id FROM missions WHERE credits <= 0"}, reach.connect, 1.0
            ),
            troubles={
                "away": lambda: setattr(reach, "address", address.replace("signals_", "nowhere_")),
                "slow": run(
                    "ALTER TABLE missions RENAME TO kept; CREATE VIEW missions AS"
                    " SELECT id, credits - (SELECT count(*) FROM pg_sleep(600)) AS credits FROM kept"
                ),
                "another-schema": run("ALTER TABLE missions RENAME credits TO points"),
            },
            footprint=rows,
        )


RIGS: Rigs = {"invariants": invariants_rig}
