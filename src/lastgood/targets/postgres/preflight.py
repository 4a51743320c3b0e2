"""What would keep a restore point from being taken here, or from being used, asked before anything is touched."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lastgood.core.config import MigrationsConfig
from lastgood.core.plan import CLONE_SHARE
from lastgood.targets import child
from lastgood.targets.postgres.capture import PREFIX
from lastgood.targets.postgres.connect import LOCK_S, NO_POOLER, Connection
from lastgood.targets.postgres.histories import gaps
from lastgood.targets.postgres.server import LONGEST_NAME, Server

ASK_S: Final = 5.0
# The longest names of databases that are made or renamed beside the live one.
LONGEST_SUFFIX: Final = max(map(len, ("_lg_rp-d00000", "_lg_try_4194304_0000", "_bad_r00000")))


def obstacles(server: Server, dumps: Path, migrations: MigrationsConfig | None) -> tuple[str, ...]:
    """Return them, one line each, empty when all is well. dumps: the folder of the restore points."""
    found: list[str] = []
    major, said = server.tools.version()
    with server.connect() as live:
        if live.execute(
            "SELECT current_setting('lock_timeout')::interval = make_interval(secs => %s)", [LOCK_S]
        ).fetchone() != (True,):
            found.append(f"what answers hands no settings on, as a pooler may do: {NO_POOLER}")
        found += _role(live, server)
        served = live.info.server_version // 10_000
        if major < served:
            found.append(f"{said} cannot dump a server of version {served}: database.postgres.bin in lastgood.yaml")
        found += gaps(live, migrations) if migrations else ()
        size = _number(live, "SELECT pg_database_size(current_database())")
        found += room(live, server, dumps, size)
        prepared = _number(live, "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()")
        if prepared:
            found.append(f"{prepared} prepared transactions are open: the fence could not end them")
        if _number(live, "SELECT count(*) FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid "
                         "WHERE d.datname = current_database()"):  # fmt: skip
            found.append("the database subscribes to a publication: a swap would leave that behind")
        found += [
            f"slot {name} reads the changes of {server.live} for {plugin}: a swap would leave its reader behind"
            for name, plugin in live.execute(
                "SELECT slot_name, plugin FROM pg_replication_slots WHERE database = current_database() "
                "AND NOT starts_with(slot_name, %s) ORDER BY 1",
                [PREFIX],
            )
        ]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """A filesystem, and the bytes that are free in it. fsid: as `stat -f` shows it."""

    fsid: str
    free: int


def too_small(size: int, dumps: Space, data: Space | None, *, folder: str) -> list[str]:
    """Say what does not hold a dump (dumps) or a clone (data) of `size` bytes; where both go to one filesystem, both.
    data: None where it cannot be seen."""
    needed = size * CLONE_SHARE
    if data is not None and data.fsid == dumps.fsid:
        both = f"{dumps.free / 1e6:.0f} MB free for a dump and a clone, which need {2 * needed / 1e6:.0f} MB"
        return [f"{folder} and the server's data share {both}"] if dumps.free < 2 * needed else []
    found: list[str] = []
    if dumps.free < needed:
        found.append(f"{folder} has {dumps.free / 1e6:.0f} MB free; a dump may need {needed / 1e6:.0f} MB")
    if data is not None and data.free < needed:
        found.append(f"the server's volume has {data.free / 1e6:.0f} MB free; a clone needs {needed / 1e6:.0f} MB")
    return found


def room(live: Connection, server: Server, dumps: Path, size: int) -> list[str]:
    """Return what does not hold a dump here, or a copy where the server keeps its data, one line each, as far as that
    can be seen. size: of the database."""
    here, data = _spaces(live, server, dumps)
    return too_small(size, here, data, folder=dumps.name) if here else []


def free(live: Connection, server: Server, dumps: Path) -> tuple[tuple[str, int], ...]:
    """Return (where, free bytes) of both, the same filesystem once, as far as that can be seen."""
    here, data = _spaces(live, server, dumps)
    if here and data and here.fsid == data.fsid:
        return ((f"{dumps.name} and the server's data", here.free),)
    places = ((dumps.name, here), ("the server's volume", data))
    return tuple((where, space.free) for where, space in places if space)


def _spaces(live: Connection, server: Server, dumps: Path) -> tuple[Space | None, Space | None]:
    row = live.execute(
        "SELECT setting FROM pg_settings WHERE name = 'data_directory'"  # not shown to every role
    ).fetchone()
    container = server.config.container
    return space(None, str(dumps)), space(container, row[0]) if row else None


def space(container: str | None, directory: str) -> Space | None:
    """Look at the filesystem of a folder, of this host without a container. None where it cannot be seen."""
    if container:
        return _space_in_container(container, directory)
    try:
        seen = os.statvfs(directory)
    except OSError:
        return None  # the server is on another machine, or its folder is closed to us
    # `stat -f` shows the two words of the id the other way round
    return Space(
        fsid=f"{seen.f_fsid & 0xFFFFFFFF:x}{seen.f_fsid >> 32:08x}",
        free=seen.f_bavail * (seen.f_frsize or seen.f_bsize),
    )


def _space_in_container(container: str, directory: str) -> Space | None:
    """None where the image has no `stat`."""
    words = ["docker", "exec", container, "stat", "-f", "-c", "%i %a %S", directory]
    try:
        ended = child.run(words, deadline_s=ASK_S, env=child.bare_environment(os.environ))
        fsid, blocks, block_size = ended.out.split()
        return Space(fsid=fsid, free=int(blocks) * int(block_size)) if not ended.code else None
    except (child.Overran, FileNotFoundError, ValueError):
        return None
