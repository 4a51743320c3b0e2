"""What would keep a restore point from being taken here, or from being used, and what a rollback would cost: asked
before anything is touched."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lastgood.core.config import Merging, MigrationsConfig
from lastgood.core.plan import CLONE_SHARE
from lastgood.targets import child
from lastgood.targets.postgres import capture, catalog, sessions
from lastgood.targets.postgres.connect import LOCK_S, MAINTENANCE, NO_POOLER, Connection
from lastgood.targets.postgres.histories import gaps
from lastgood.targets.postgres.merge import misnamed
from lastgood.targets.postgres.server import LEDGER, LONGEST_NAME, Server, own_name

ASK_S: Final = 5.0
NAMED: Final = 5
OLD_S: Final = LOCK_S
"""What has written for longer than a restore point waits for anything, seconds."""
# The longest names of databases that are made or renamed beside the live one.
LONGEST_SUFFIX: Final = max(map(len, ("_lg_rp-d00000", "_lg_try_4194304_0000", "_bad_r00000")))


def obstacles(
    server: Server, dumps: Path, migrations: MigrationsConfig | None, merging: Mapping[str, Merging]
) -> tuple[str, ...]:
    """Return them, one line each, empty when all is well. dumps: the folder of the restore points. merging: how columns
    are merged, by table.column."""
    found: list[str] = []
    major, said = server.tools.version()
    with server.connect() as live:
        there = sessions.pids(live, server.live)
        if live.execute(
            "SELECT current_setting('lock_timeout')::interval = make_interval(secs => %s)", [LOCK_S]
        ).fetchone() != (True,):
            found.append(f"what answers hands no settings on, as a pooler may do: {NO_POOLER}")
        found += _role(live, server)
        served = live.info.server_version // 10_000
        if major < served:
            found.append(f"{said} cannot dump a server of version {served}: database.postgres.bin in lastgood.yaml")
        found += gaps(live, migrations) if migrations else ()
        found += misnamed(live, merging)
        size = _number(live, "SELECT pg_database_size(current_database())")
        log = 0 if capture.obstacles(server) else capture.restore_log(live)
        found += room(live, server, dumps, size, log=log)
        found += [told for told, _ in sessions.left_behind(live, server.live, but=capture.PREFIX)]
        found += _extensions(live, server)
        found += _not_ours_to_end(live, server, there)
    if len(server.live.encode()) + LONGEST_SUFFIX > LONGEST_NAME:
        found.append(f"the name {server.live} is too long for a clone beside it")
    return tuple(found)


def cautions(server: Server, dumps: Path, *, recovers: bool) -> tuple[str, ...]:
    """Return what a rollback here would cost or not bring back, one line each; nothing of it is a reason to refuse.

    dumps: the folder of the restore points. recovers: whether pgBackRest brings back what dumps do not.
    """
    found: list[str] = []
    with server.connect() as live:
        found += sessions.writing_since(live, OLD_S)
        if sessions.are_hidden(live):
            found.append(
                "what sessions of other roles do is hidden, so none that holds up the capture would be named: "
                f"GRANT pg_read_all_stats TO {server.config.user}"
            )
        if keyless := [table.label for table in catalog.tables(live) if not table.key]:
            found.append(
                f"without a primary key: {_listed(keyless)}. A row there is found by all that it holds, which reads "
                "the whole table; where only rows are compared, whether it is new or was changed cannot always be "
                f"told, and it goes to the quarantine: ALTER TABLE {keyless[0]} ADD PRIMARY KEY (...)"
            )
        if beside := _beside(live, server, dumps):
            found.append(beside)
        if recovers:
            found += _other_databases(live, server)
    return tuple(found)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _beside(live: Connection, server: Server, dumps: Path) -> str:
    """Say where dumps lie on the volume of the data, as far as that can be seen."""
    data, here = _data(live, server), space(None, str(dumps))
    if data is None or here is None or data.fsid != here.fsid:
        return ""
    return (
        f"{dumps.name} is on the volume of the server's data: what loses the one loses the other. "
        "database.restore_points.path in lastgood.yaml: a folder on another disk"
    )


def _other_databases(live: Connection, server: Server) -> list[str]:
    rows = live.execute(
        "SELECT datname, pg_database_size(oid) FROM pg_database WHERE NOT datistemplate AND datallowconn "
        "AND datname NOT IN (%s, %s, %s) AND NOT starts_with(datname, %s) AND has_database_privilege(oid, 'CONNECT') "
        "ORDER BY 1",
        [server.live, MAINTENANCE, LEDGER, own_name(server.live, "")],
    ).fetchall()
    if not rows:
        return []
    size = sum(size for _, size in rows) / 1e6
    told = (
        f"other databases of the server: {_listed([name for name, _ in rows])} ({size:.0f} MB). A recovery by "
        f"pgBackRest copies them too, and needs room for them; it brings back {server.live} alone"
    )
    return [told]


def _extensions(live: Connection, server: Server) -> list[str]:
    """Return the extensions that a clone cannot have as they are here: a dump names an extension, and no version."""
    found: list[str] = []
    for name, here, there, ours, owner in live.execute(
        "SELECT e.extname, e.extversion, a.default_version, "
        "(SELECT rolsuper FROM pg_roles WHERE rolname = current_user) OR pg_has_role(e.extowner, 'USAGE') "
        "OR coalesce((SELECT NOT v.superuser OR (to_jsonb(v)->>'trusted')::bool "  # `trusted` came in PostgreSQL 13
        "FROM pg_available_extension_versions v WHERE (v.name, v.version) = (e.extname, a.default_version)), false), "
        "pg_get_userbyid(e.extowner) "
        "FROM pg_extension e LEFT JOIN pg_available_extensions a ON a.name = e.extname "
        "WHERE e.extname <> 'plpgsql' ORDER BY 1"
    ):
        if there is None:
            found.append(f"extension {name} is no longer installed on the server: a clone could not have it")
        elif there != here:
            update = f'ALTER EXTENSION "{name}" UPDATE'
            found.append(f"extension {name} is {here} here and would be {there} in a clone: {update}")
        elif not ours:
            found.append(
                f"extension {name} was made by {owner} and is not trusted: {server.config.user} may not make it in a "
                "clone; database.postgres.user in lastgood.yaml: a role that may"
            )
    return found


def _not_ours_to_end(live: Connection, server: Server, there: Sequence[int]) -> list[str]:
    user, others = server.config.user, sessions.not_ours(live, there)
    found = [
        f"{other.role} is a superuser and uses {server.live}: {user}, which is none, may not end its sessions, so it "
        f"could not be fenced: {sessions.remedy(live, [other])}"
        for other in others
        if other.superuser
    ]
    if plain := [other for other in others if not other.superuser]:
        found.append(
            f"{user} may not end sessions of {_listed([other.role for other in plain])}, so {server.live} could not be "
            f"fenced: {sessions.remedy(live, plain)}"
        )
    return found


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


def too_small(size: int, dumps: Space, data: Space | None, *, folder: str, log: int = 0) -> list[str]:
    """Say what does not hold a dump (dumps) or a clone (data) of `size` bytes; where both go to one filesystem, both.
    data: None where it cannot be seen. log: bytes that the restore of the clone has the server keep beside it."""
    dump, clone = size * CLONE_SHARE, size * CLONE_SHARE + log
    if data is not None and data.fsid == dumps.fsid:
        both = f"{dumps.free / 1e6:.0f} MB free for a dump and a clone, which need {(dump + clone) / 1e6:.0f} MB"
        return [f"{folder} and the server's data share {both}"] if dumps.free < dump + clone else []
    found: list[str] = []
    if dumps.free < dump:
        found.append(f"{folder} has {dumps.free / 1e6:.0f} MB free; a dump may need {dump / 1e6:.0f} MB")
    if data is not None and data.free < clone:
        found.append(f"the server's volume has {data.free / 1e6:.0f} MB free; a clone needs {clone / 1e6:.0f} MB")
    return found


def room(live: Connection, server: Server, dumps: Path, size: int, *, log: int = 0) -> list[str]:
    """Return what does not hold a dump here, or a copy where the server keeps its data, one line each, as far as that
    can be seen. size: of the database; log: as for `too_small`."""
    here, data = _spaces(live, server, dumps)
    return too_small(size, here, data, folder=dumps.name, log=log) if here else []


def room_for_clone(live: Connection, server: Server) -> list[str]:
    """Return what does not hold a copy of the live database where the server keeps its data, as far as that can be
    seen."""
    needed = _number(live, "SELECT pg_database_size(current_database())") * CLONE_SHARE
    data = _data(live, server)
    if data is None or data.free >= needed:
        return []
    return [f"the server's volume has {data.free / 1e6:.0f} MB free; a clone needs {needed / 1e6:.0f} MB"]


def free(live: Connection, server: Server, dumps: Path) -> tuple[tuple[str, int], ...]:
    """Return (where, free bytes) of both, the same filesystem once, as far as that can be seen."""
    here, data = _spaces(live, server, dumps)
    if here and data and here.fsid == data.fsid:
        return ((f"{dumps.name} and the server's data", here.free),)
    places = ((dumps.name, here), ("the server's volume", data))
    return tuple((where, space.free) for where, space in places if space)


def _spaces(live: Connection, server: Server, dumps: Path) -> tuple[Space | None, Space | None]:
    return space(None, str(dumps)), _data(live, server)


def _data(live: Connection, server: Server) -> Space | None:
    """Look at the filesystem of the server's data."""
    row = live.execute(
        "SELECT setting FROM pg_settings WHERE name = 'data_directory'"  # not shown to every role
    ).fetchone()
    return space(server.config.container, row[0]) if row else None


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
