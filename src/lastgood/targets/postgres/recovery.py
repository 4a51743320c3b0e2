"""Point-in-time recovery: pgBackRest brings the whole server up to a moment of its log, in a cluster of its own beside;
the one database is dumped from that, and comes in as an operator's own dump does. The server that serves goes on.

The side cluster is for its owner only, archives nothing, and is gone afterwards; what a killed command left of one is
recognised by its mark. All of it is done by commands of its owner's, since it may lie inside a container.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Final

import psycopg

from lastgood.core.config import PgBackRestConfig
from lastgood.core.errors import LastgoodError, Refused, Retryable
from lastgood.core.facts import BackupFacts
from lastgood.core.plan import CLONE_SHARE
from lastgood.core.ports import Clock
from lastgood.core.release import LogPoint, RestorePoint
from lastgood.targets.postgres import own_dump, preflight, shelf
from lastgood.targets.postgres import restore_point as points
from lastgood.targets.postgres.capture import PREFIX, Captures
from lastgood.targets.postgres.connect import APPLICATION, MAINTENANCE, Connection, listens, one
from lastgood.targets.postgres.pgbackrest import Backup, PgBackRest, Stanza, backup_for, shown, target
from lastgood.targets.postgres.server import Server, databases, identity
from lastgood.targets.postgres.tools import Tools

SESSION: Final = f"{APPLICATION} recovery"
RECOVERED: Final = ".recovered"
"""The dump's name until it was copied to be kept."""
ARCHIVED_S: Final = 60.0
"""pgBackRest's own patience with an archive (option archive-timeout)."""
_LOOKS: Final = 3
_AGAIN_S: Final = 0.2
_QUICK_S: Final = 30.0
_REMOVE_S: Final = 300.0
_REMOVALS: Final = 3
"""A restore that a killed command left puts files there until it meets the first that is gone."""
_MARK: Final = "lastgood.conf"
_ACCESS: Final = "hba.conf"
_PORT: Final = 5432
"""Of the socket's name only."""
_SOCKET: Final = f".s.PGSQL.{_PORT}"
_OWN: Final = ("data", "tablespaces", "log", _ACCESS, _SOCKET, f"{_SOCKET}.lock")
_LOG_LINES: Final = 8
_BRANCHED: Final = (
    "where the server that serves was itself brought back since, an older backup may lead there: restored elsewhere by "
    "a person (pgbackrest --set=LABEL restore), dumped, and given to lastgood restore-points add"
)
_FROM_LIVE: Final = ("max_prepared_transactions", "max_locks_per_transaction")
"""What a recovery may need as much of as there was (PostgreSQL 15 docs, 27.4.3)."""
_SETTINGS: Final = {
    # reachable by its owner alone
    "listen_addresses": "",
    "port": f"{_PORT}",
    "ssl": "off",
    # whom it lets in knows that the recovery is over
    "hot_standby": "off",
    # it must not do what the live server does for others: archive, fetch from a publisher, run a scheduler's jobs, say
    # which process it is
    "archive_mode": "off",
    "max_logical_replication_workers": "0",
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "synchronous_standby_names": "",
    "primary_conninfo": "",
    "primary_slot_name": "",
    "archive_cleanup_command": "",
    "recovery_end_command": "",
    "recovery_min_apply_delay": "0",
    "external_pid_file": "",
    "autovacuum": "off",
    # it lives beside a server that serves, and not for long
    "shared_buffers": "128MB",
    "huge_pages": "off",
    "fsync": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
}
"""On the command line they win over what ALTER SYSTEM left in the backup (PostgreSQL 15 docs, 20.1.4)."""


def mark(server: Server, restore_point: str, name: str) -> LogPoint | None:
    """Name this moment in the server's log, and have the log up to it archived. name: one that is nowhere in it yet: a
    recovery stops at the first of a name (PostgreSQL 15 docs, 9.27.3).

    None where the role may not, or the log does not hold enough: `look` says so.
    """
    with server.connect() as live:
        try:
            row = live.execute(
                "SELECT pg_create_restore_point(%s)::text, clock_timestamp()", [f"lastgood_{restore_point[:40]}_{name}"]
            ).fetchone()
            live.execute("SELECT pg_switch_wal()")
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState):
            return None
    return LogPoint(at=row[1], name=f"lastgood_{restore_point[:40]}_{name}", lsn=row[0]) if row else None


def look(server: Server, config: PgBackRestConfig, *, owner: str) -> BackupFacts:
    """Ask pgBackRest and the server what a recovery would find. owner: as `recover` has it. Changes nothing."""
    tool = PgBackRest(config=config, container=server.config.container)
    left = _left(_side(server, tool, programs="", owner=owner))
    with server.maintenance() as connection:
        sent = _sent(connection)  # first: what is sent meanwhile is there, and was not sent elsewhere
        try:
            stanza = tool.info()
        except Refused as error:  # of both, where nothing could be run
            return BackupFacts(wrong=tuple(dict.fromkeys((f"{error.message}: {error.hint}", *left))))
        wrong = (*_another_server(connection, stanza), *_archiving(sent, stanza), *_rights(connection, server), *left)
    if not stanza.backups:
        return BackupFacts(wrong=(f"stanza {stanza.name} has no backup: {_type(stanza, 'backup')}", *wrong))
    return BackupFacts(oldest_at=stanza.backups[0].ended_at, newest_at=stanza.backups[-1].ended_at, wrong=wrong)


def _left(side: _Side) -> list[str]:
    try:
        there = side.refuse_others()
    except Refused as error:
        return [f"{error.message}: {error.hint}"]
    clear = "which the next one clears: lastgood restore-points recover --at TIME"
    return [f"{side.tool.config.path} holds a copy of the whole server that a recovery left, {clear}"] if there else []


def _type(stanza: Stanza, command: str) -> str:
    return f"pgbackrest --stanza={stanza.name} {command}"


def _another_server(connection: Connection, stanza: Stanza) -> list[str]:
    if (serves := identity(connection).system) == stanza.system:
        return []
    other = f"stanza {stanza.name} is of the server {stanza.system}, and {serves} serves"
    return [f"{other}: database.pgbackrest.stanza in lastgood.yaml"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """What the server says of its archiving: whether it does, and the newest segment that it sent, or could not send,
    whichever came later; the other is empty."""

    archives: bool
    sent: str
    failed: str


def _sent(connection: Connection) -> _Sent:
    mode, sent, failed, fails = connection.execute(
        "SELECT current_setting('archive_mode'), coalesce(last_archived_wal, ''), coalesce(last_failed_wal, ''), "
        "last_failed_time > coalesce(last_archived_time, '-infinity') FROM pg_stat_archiver"
    ).fetchone() or ("off", "", "", False)
    return _Sent(archives=mode != "off", sent="" if fails else sent, failed=failed if fails else "")


def _archiving(seen: _Sent, stanza: Stanza) -> list[str]:
    """What is wrong with the archive: that nothing is sent to it, that sending fails, or that what is sent does not
    come to this stanza."""
    if not seen.archives:
        return ["the server does not archive its log: archive_mode and archive_command in postgresql.conf"]
    if seen.failed:
        return [f"the server fails to archive {seen.failed}: {_type(stanza, 'check')}"]
    if _segment(seen.sent) > _segment(stanza.archived):
        ends = f"the archive of {stanza.name} ends at {stanza.archived or 'nothing'}"
        return [f"{ends}, and the server has sent {seen.sent} somewhere: archive_command in postgresql.conf"]
    return []


def _segment(name: str) -> str:
    """What of a segment's name tells its place in the log: before it stands the timeline, behind it what it is."""
    return name[8:24]


def _rights(connection: Connection, server: Server) -> list[str]:
    return [
        f"{server.config.user} may not call {function}: GRANT EXECUTE ON FUNCTION {function} TO {server.config.user}"
        for function, may in connection.execute(
            "SELECT f, has_function_privilege(f, 'EXECUTE') "
            "FROM unnest(ARRAY['pg_create_restore_point(text)', 'pg_switch_wal()']) f"
        ).fetchall()
        if not may
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Live:
    """What the server that serves says. now: by its clock. programs: the folder of its own. settings: of
    `_FROM_LIVE`."""

    now: datetime
    system: str
    programs: str
    settings: Mapping[str, str]


def recover(
    server: Server,
    config: PgBackRestConfig,
    folder: Path,
    to: LogPoint,
    *,
    owner: str,
    expected: Mapping[str, str],
    known: Collection[RestorePoint],
    deadline_s: float,
    clock: Clock,
    progress: Callable[[str], None],
) -> RestorePoint:
    """Recover beside up to a place in the log, and keep the database as it was there as a restore point.

    owner: whose side cluster it is, since others may have been given the same folder. expected, known: as
    `own_dump.register` takes them. Raises Refused before anything is begun where it cannot be.
    """
    until = clock.now() + timedelta(seconds=deadline_s)

    def left_s() -> float:
        return max((until - clock.now()).total_seconds(), 1.0)

    tool = PgBackRest(config=config, container=server.config.container)
    live = _live(server, tool, to, clock=clock)
    side = _side(server, tool, programs=live.programs, owner=owner)
    side.clear()  # first: what a killed command left may fill the disk, and must not outlive what is refused now
    if to.at > live.now:
        raise Refused(f"{shown(to)} is yet to come: expected a moment that is over", hint="date --utc")
    if (same := _recovered_before(server, folder, to, known, deadline_s=left_s())) is not None:
        return same
    backup = _backup(server, tool, to)
    _refuse_without_room(server, config.path, backup, folder)
    _wait_for_archive(server, tool, to, clock=clock)
    try:
        where = f"into {config.path} ({backup.size_bytes / 1e6:,.0f} MB)"
        progress(f"restoring backup {backup.label} {where}")
        side.restore(backup, to, left_s=left_s, clock=clock)
        progress(f"recovering it up to {shown(to)}")
        side.start(live.settings, to, left_s=left_s, clock=clock)
        reached = Tools(server.config.model_copy(update={"host": config.path, "port": _PORT, "password": None}))
        _check(server, reached, live)
        _uncover(server, reached, folder)
        progress(f"dumping {server.live} from it")
        with shelf.passing(shelf.folder(folder) / RECOVERED) as dump:
            reached.dump(server.live, dump, session=SESSION, deadline_s=left_s())
            side.clear()
            progress(f"restoring {server.live} beside, and proving it")
            return own_dump.register(
                server,
                folder,
                dump,
                name=_free_name(folder, to, known),
                taken_at=None,
                expected=expected,
                known=known,
                deadline_s=left_s(),
                clock=clock,
                log=to,
            )
    except BaseException:
        with suppress(LastgoodError):  # what went wrong first is what is told; the next attempt does it as well
            side.clear()
        raise


def _live(server: Server, tool: PgBackRest, to: LogPoint, *, clock: Clock) -> _Live:
    """Look at the server that serves. Raises Refused, with what a person types, where none is there; Retryable where it
    lets nobody in."""
    with _connected(server, tool, to, clock=clock) as connection:
        if server.live not in databases(connection):
            raise Refused(
                f"there is no database {server.live}, beside which it could be recovered: expected an empty one",
                hint=f"createdb {server.live}",
            )
        return _Live(
            now=datetime.fromisoformat(one(connection, "SELECT clock_timestamp()::text")),
            system=identity(connection).system,
            programs=_programs(server, connection),
            settings={name: one(connection, "SELECT current_setting(%s)", name) for name in _FROM_LIVE},
        )


def _connected(server: Server, tool: PgBackRest, to: LogPoint, *, clock: Clock) -> Connection:
    """Connect; as often as a rollback tries, for what serves may be too busy, or starting."""
    for _ in range(_LOOKS - 1):
        try:
            return server.maintenance()
        except Retryable as error:
            clock.sleep(error.delay_s)
    try:
        return server.maintenance()
    except Retryable as error:
        if listens(server.config):
            raise
        raise Refused(
            f"{error.message}: beside a server that is not there nothing can be recovered. Where it is lost, a "
            f"person brings all of it back, with every one of its databases, and what was written after {shown(to)} is "
            "gone from them: stop it, copy its data directory, type what follows, start it",
            hint=by_hand(server, tool, to),
        ) from error


def _programs(server: Server, connection: Connection) -> str:
    """Not on PATH where Debian lays them out."""
    try:
        return one(connection, "SELECT setting FROM pg_config WHERE name = 'BINDIR'")
    except psycopg.errors.InsufficientPrivilege:
        return server.config.bin or ""


def by_hand(server: Server, tool: PgBackRest, to: LogPoint) -> str:
    """What brings the whole server back, for a person to type. pgBackRest answers on this host while the server is
    away; what it has is then known. Else it must find the backup by itself, which it does of a moment only."""
    place = target(LogPoint(at=to.at))
    if not tool.container:
        with suppress(LastgoodError):
            place = [f"--set={backup_for(tool.info(), to).label}", *target(to)]
    words = tool.words("--delta", *place, "restore")
    if container := server.config.container:
        image = f"$(docker inspect --format '{{{{.Config.Image}}}}' {shlex.quote(container)})"
        begins = ["docker", "run", "--rm", "--volumes-from", container, "--user", tool.config.user]
        return f"{shlex.join(begins)} {image} {shlex.join(words)}"
    return f"sudo -u {shlex.join([tool.config.user, *words])}"


def _recovered_before(
    server: Server, folder: Path, to: LogPoint, known: Collection[RestorePoint], *, deadline_s: float
) -> RestorePoint | None:
    """What was recovered to the same place and is still what was proved; the journal may not know of it yet, where the
    command was killed."""
    journaled = {point.id: point for point in known}
    kept = (journaled.get(kept.point.id, kept.point) for kept in points.every(folder) if kept.point.own)
    for point in kept:
        same = point.log == to and point.database == server.live
        if same and own_dump.is_there(server, folder, point, deadline_s=deadline_s):
            return points.first_read(folder, point.id)
    return None


def _backup(server: Server, tool: PgBackRest, to: LogPoint) -> Backup:
    stanza = tool.info()
    with server.maintenance() as connection:
        if other := _another_server(connection, stanza):
            raise Refused(other[0], hint=_type(stanza, "info"))
    return backup_for(stanza, to)


def _refuse_without_room(server: Server, path: str, backup: Backup, folder: Path) -> None:
    """A whole server beside, and then, for each, a dump, its copy and a clone. All that can be seen may be one disk."""
    with server.maintenance() as connection:
        of_one = int(one(connection, "SELECT pg_database_size(%s)", server.live))
    needed = (backup.size_bytes + 3 * of_one) * CLONE_SHARE
    places = [path, *(str(parent) for parent in PurePosixPath(path).parents)]
    free = next((s.free for place in places if (s := preflight.space(server.config.container, place))), None)
    here = preflight.space(None, str(folder))
    for where, left, wanted in (
        (path, free, needed),
        (str(folder), here.free if here else None, 2 * of_one * CLONE_SHARE),
    ):
        if left is not None and left < wanted:
            raise Refused(f"{where} has {left / 1e6:,.0f} MB free: expected {wanted / 1e6:,.0f} MB", hint="df -h")


def _wait_for_archive(server: Server, tool: PgBackRest, to: LogPoint, *, clock: Clock) -> None:
    """Have all of the log in the archive that the recovery reads, and for a moment something behind it: a recovery that
    meets nothing later does not know that it is there (PostgreSQL 15 docs, 20.5.5)."""
    with server.maintenance() as connection:
        if to.lsn:
            needed = one(connection, "SELECT pg_walfile_name(%s)", to.lsn)
        else:
            try:
                connection.execute("SELECT pg_current_xact_id()")  # its commit bears a time
                needed = one(connection, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
                connection.execute("SELECT pg_switch_wal()")
            except psycopg.errors.InsufficientPrivilege:
                raise Refused("; ".join(_rights(connection, server)), hint="lastgood doctor") from None
        until = clock.now() + timedelta(seconds=ARCHIVED_S)
        while _segment((stanza := tool.info()).archived) < _segment(needed):
            if clock.now() > until:
                ends = f"the archive of {stanza.name} ends at {stanza.archived or 'nothing'}: expected {needed}"
                raise Refused("; ".join((ends, *_archiving(_sent(connection), stanza))), hint=_type(stanza, "check"))
            clock.sleep(_AGAIN_S)


def _check(server: Server, reached: Tools, live: _Live) -> None:
    """Compare what was recovered with the server that serves. Raises Refused."""
    said = reached.ask(
        "SELECT json_build_object('system', (SELECT system_identifier::text FROM pg_control_system()), "
        "'databases', (SELECT json_agg(datname) FROM pg_database))",
        MAINTENANCE,
        session=SESSION,
        deadline_s=_QUICK_S,
    )
    found = json.loads(said)
    if found["system"] != live.system:
        raise Refused(
            f"what was recovered is of the server {found['system']}: expected {live.system}",
            hint="database.pgbackrest.stanza in lastgood.yaml",
        )
    if server.live not in found["databases"]:
        there = ", ".join(sorted(found["databases"]))
        raise Refused(f"the server had no database {server.live} at that moment, but {there}", hint="an earlier --at")


def _uncover(server: Server, reached: Tools, folder: Path) -> None:
    """At that moment a capture may have run, which shows in the schema."""

    def ask(query: str) -> str:
        return reached.ask(query, server.live, session=SESSION, deadline_s=_QUICK_S)

    published = ask(
        "SELECT coalesce(json_agg(json_build_array(pubname, c.oid::int8, "  # noqa: S608 # the prefix is our own word
        "nspname, relname)), '[]') "
        "FROM pg_publication p LEFT JOIN pg_publication_rel r ON prpubid = p.oid "
        "LEFT JOIN pg_class c ON c.oid = prrelid LEFT JOIN pg_namespace n ON n.oid = relnamespace "
        f"WHERE starts_with(pubname, '{PREFIX}')"
    )
    if sql := Captures(server, folder / points.CAPTURES).uncovering(json.loads(published)):
        ask(sql)


def _free_name(folder: Path, to: LogPoint, known: Collection[RestorePoint]) -> str:
    taken = {point.id for point in known} | shelf.names(folder)
    name = f"at-{to.at:%Y%m%d-%H%M%S}"
    return next(n for n in (name, *(f"{name}-{i}" for i in range(2, len(taken) + 3))) if n not in taken)


def _side(server: Server, tool: PgBackRest, *, programs: str, owner: str) -> _Side:
    return _Side(tool=tool, programs=programs, mark=f"# lastgood: side cluster of {server.live}, {owner}\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """The side cluster in its folder. programs: where pg_ctl is, empty for PATH. mark: what is written into the folder
    before anything else, and removed as the last."""

    tool: PgBackRest
    programs: str
    mark: str

    @property
    def _path(self) -> PurePosixPath:
        return PurePosixPath(self.tool.config.path)

    @property
    def _data(self) -> str:
        return f"{self._path}/data"

    def refuse_others(self) -> bool:
        """Return whether something of ours is there. Raises Refused when something else is: nothing is touched then."""
        there = set(self.tool.ended(["ls", "-A", str(self._path)], deadline_s=_QUICK_S).out.split())
        ours = self.tool.ended(["cat", str(self._path / _MARK)], deadline_s=_QUICK_S).out == self.mark
        if there and not ours:
            some = ", ".join(sorted(there)[:3])
            raise Refused(
                f"{self._path} holds what lastgood did not make here ({some}): expected an empty folder",
                hint="database.pgbackrest.path in lastgood.yaml",
            )
        return ours

    def clear(self) -> None:
        """Stop the side cluster, and remove it with all that is ours, the mark as the last."""
        if not self.refuse_others():
            return
        self._stop()
        all_of_it = ["rm", "-rf", *(str(self._path / name) for name in _OWN)]
        for _ in range(_REMOVALS):
            if not self.tool.ended(all_of_it, deadline_s=_REMOVE_S).code:
                break
        else:
            self._run(*all_of_it)
        self._run("rm", "-f", str(self._path / _MARK))

    def _stop(self) -> None:
        if self._runs():
            self._run_own("pg_ctl", "-D", self._data, "-m", "immediate", "-t", f"{_QUICK_S:.0f}", "stop")

    def _runs(self) -> bool:
        """A pid that was left behind may be anybody's by now, the live server's too: a server stands in its data."""
        first = self.tool.ended(["head", "-n", "1", f"{self._data}/postmaster.pid"], deadline_s=_QUICK_S).out.strip()
        if not first.isdecimal():
            return False
        stands = self.tool.ended(["readlink", f"/proc/{first}/cwd"], deadline_s=_QUICK_S).out
        return stands == self.tool.ended(["readlink", "-f", self._data], deadline_s=_QUICK_S).out

    def restore(self, backup: Backup, to: LogPoint, *, left_s: Callable[[], float], clock: Clock) -> None:
        """Restore into the emptied folder. One that a killed command left ends when its files are gone."""
        while True:
            self.clear()
            self._run("mkdir", "-p", str(self._path))
            self._run("chmod", "700", str(self._path))  # who gets in needs no password
            self._put(_MARK, self.mark)
            self._put(_ACCESS, "local all all trust\n")
            if self.tool.restore(backup, to, str(self._path), deadline_s=left_s()):
                return
            if left_s() <= 1.0:
                raise Retryable(
                    f"another restore of stanza {self.tool.config.stanza} is under way",
                    delay_s=_AGAIN_S,
                    hint="lastgood restore-points recover --help",
                )
            clock.sleep(_AGAIN_S)

    def start(self, settings: Mapping[str, str], to: LogPoint, *, left_s: Callable[[], float], clock: Clock) -> None:
        """Start it, and wait until its recovery is over. Raises Refused with its last words when it ends instead."""
        own = {
            "config_file": str(self._path / _MARK),  # its own may lie elsewhere, and name other folders
            "hba_file": str(self._path / _ACCESS),
            "unix_socket_directories": str(self._path),
            **settings,
            **_SETTINGS,
        }
        options = " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in own.items())
        log = f"{self._path}/log"
        patience = ["-w", "-t", f"{left_s():.0f}"]  # until it lets in, or is as whole as a standby, which may be sooner
        self._run_own("pg_ctl", "-D", self._data, "-s", *patience, "-l", log, "-o", options, "start", takes_s=left_s())
        while not self._run_own("pg_isready", "--quiet", f"--host={self._path}", f"--port={_PORT}"):
            if not self._runs() or left_s() <= 1.0:
                said = self.tool.ended(["tail", "-n", f"{_LOG_LINES}", log], deadline_s=_QUICK_S).out
                raise Refused(
                    f"the server did not come up to {shown(to)}: {' '.join(said.split())}; {_BRANCHED}",
                    hint=f"pgbackrest --stanza={self.tool.config.stanza} info",
                )
            clock.sleep(_AGAIN_S)

    def _run_own(self, program: str, *words: str, takes_s: float = _QUICK_S) -> bool:
        """Run one of the server's own programs; whether it says that it did what it does."""
        path = str(PurePosixPath(self.programs) / program) if self.programs else program
        return not self.tool.ended([path, *words], deadline_s=takes_s + _QUICK_S).code

    def _put(self, name: str, text: str) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(text.encode())
            file.seek(0)
            self.tool.run(["tee", str(self._path / name)], deadline_s=_QUICK_S, stdin=file)

    def _run(self, *words: str) -> None:
        self.tool.run(words, deadline_s=_REMOVE_S)
