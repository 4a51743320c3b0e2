"""What would keep a restore point from being taken here, or from being used, asked before anything is touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from lastgood.targets import child
from lastgood.targets.postgres.connect import Connection
from lastgood.targets.postgres.server import LONGEST_NAME, Server

ASK_S: Final = 5.0
# The clone is as large as the database, the dump at most about as large, and a fifth is left over.
CLONE_SHARE: Final = 1.2
LONGEST_SUFFIX: Final = len("_lg_rp-d00000")


def obstacles(server: Server, dumps: Path) -> tuple[str, ...]:
    """Return them, one line each, empty when all is well. dumps: the folder of the restore points."""
    found: list[str] = []
    major, said = server.tools.version()
    with server.connect() as live:
        found += _role(live, server)
        served = live.info.server_version // 10_000
        if major < served:
            found.append(f"{said} cannot dump a server of version {served}: database.postgres.bin in lastgood.yaml")
        size = _number(live, "SELECT pg_database_size(current_database())")
        found += _room(live, server, dumps, size)
        prepared = _number(live, "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()")
        if prepared:
            found.append(f"{prepared} prepared transactions are open: the fence could not end them")
        if _number(live, "SELECT count(*) FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid "
                         "WHERE d.datname = current_database()"):  # fmt: skip
            found.append("the database subscribes to a publication: a swap would leave that behind")
    if len(server.live.encode()) + LONGEST_SUFFIX > LONGEST_NAME:
        found.append(f"the name {server.live} is too long for a clone beside it")
    return tuple(found)


def _number(connection: Connection, query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    return int(row[0]) if row and row[0] is not None else 0


def _role(live: Connection, server: Server) -> list[str]:
    row = live.execute(
        "SELECT r.rolsuper, r.rolcreatedb, pg_has_role(d.datdba, 'USAGE') FROM pg_roles r, pg_database d "
        "WHERE r.rolname = current_user AND d.datname = current_database()"
    ).fetchone()
    superuser, creates, owns = row or (False, False, False)
    user = server.config.user
    found: list[str] = []
    if not superuser and not creates:
        found.append(f"{user} may not create databases: ALTER ROLE {user} CREATEDB")
    if not superuser and not owns:
        found.append(f"{user} does not own {server.live}, so it could not rename it")
    return found


def _room(live: Connection, server: Server, dumps: Path, size: int) -> list[str]:
    """Space for the dump here, and for the clone where the server keeps its data, as far as that can be seen."""
    found: list[str] = []
    if shutil.disk_usage(dumps).free < size * CLONE_SHARE:
        found.append(f"{dumps.name}: less than {size * CLONE_SHARE / 1e6:.0f} MB free for a dump")
    row = live.execute(
        "SELECT setting FROM pg_settings WHERE name = 'data_directory'"  # not shown to every role
    ).fetchone()
    if row is None:
        return found
    free = _free_in_container(server.config.container, row[0]) if server.config.container else _free_here(row[0])
    if free is not None and free < size * CLONE_SHARE:
        found.append(
            f"the server's volume has {free / 1e6:.0f} MB free; a clone needs {size * CLONE_SHARE / 1e6:.0f} MB"
        )
    return found


def _free_here(directory: str) -> int | None:
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return None  # the server is on another machine


def _free_in_container(container: str, directory: str) -> int | None:
    """Bytes, in the words of POSIX df; None where the image has no df."""
    words = ["docker", "exec", container, "df", "-P", "-k", directory]
    try:
        ended = child.run(words, deadline_s=ASK_S, env=child.bare_environment(os.environ))
        return int(ended.out.splitlines()[-1].split()[3]) * 1024 if not ended.code else None
    except (child.Overran, FileNotFoundError, IndexError, ValueError):
        return None
