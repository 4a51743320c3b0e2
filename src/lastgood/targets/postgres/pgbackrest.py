"""pgBackRest as the configuration reaches it: which backups of the server it has, and a restore of one.

Its answers are read as JSON and its exit codes; what it says in words is only told on (pgBackRest 2.45,
pgbackrest.org/command.html and /configuration.html, read 2026-11). It runs as the owner of the server's data, inside
the database's container where there is one.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Annotated, Final

from pydantic import Field, TypeAdapter, ValidationError

from lastgood.core.config import PgBackRestConfig
from lastgood.core.errors import OutcomeUnknown, Refused
from lastgood.core.release import LogPoint
from lastgood.targets import child

LOOK_S: Final = 30.0
NO_SUCH_STANZA: Final = (1, 3)
"""Of a stanza's status: missing stanza path, missing stanza data (command info, "Stanza Status")."""
ANOTHER_RUNS: Final = 50
"""Exit code LockAcquireError (pgBackRest source, src/build/error/error.yaml): two restores of a stanza never meet."""
_LAST_CHARACTERS: Final = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lsn:
    start: str
    stop: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segments:
    stop: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfServer:
    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Backup:
    label: str
    database: _OfServer
    info: _Size
    timestamp: _Ended
    archive: _Segments = _Segments()
    lsn: _Lsn | None = None  # nothing is known of backups of very old versions
    error: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Archive:
    database: _OfServer
    max: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    id: int
    system: Annotated[int, Field(validation_alias="system-id")]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Status:
    code: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Repository:
    status: _Status


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stanza:
    name: str
    status: _Status
    repo: tuple[_Repository, ...] = ()
    backup: tuple[_Backup, ...] = ()
    archive: tuple[_Archive, ...] = ()
    db: tuple[_Server, ...] = ()


_INFO: Final = TypeAdapter(tuple[_Stanza, ...])


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """One backup that can be restored. begins: where it begins in the log; lsn: where it ended, from when on it is a
    whole; timeline: on which. size_bytes: of the whole server, restored."""

    label: str
    ended_at: datetime
    timeline: int
    begins: int
    lsn: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stanza:
    """What pgBackRest has of one server. system: the cluster's own number. backups: oldest first. archived: the newest
    segment of the log that it has, empty without any."""

    name: str
    system: str
    backups: tuple[Backup, ...]
    archived: str


def read_info(said: str, name: str) -> Stanza:
    """Read what `pgbackrest info --output=json` says of a stanza. What it has of the server before an upgrade is left
    out. Raises Refused when it does not know the stanza, or talks of something else."""
    try:
        found = next((one for one in _INFO.validate_json(said) if one.name == name), None)
    except ValidationError as error:
        raise Refused(
            f"pgbackrest info: {str(error).splitlines()[0]}: expected what version 2.45 says", hint="pgbackrest version"
        ) from None
    if found is None or found.status.code in NO_SUCH_STANZA:
        told = found.status.message if found else "it is not named"
        raise Refused(f"pgBackRest knows no stanza {name} ({told})", hint=f"pgbackrest --stanza={name} stanza-create")
    if not found.db:
        told = "; ".join(one.status.message for one in found.repo) or found.status.message
        raise Refused(f"pgBackRest cannot read stanza {name}: {told}", hint=f"pgbackrest --stanza={name} info")
    server = found.db[-1]
    backups = [
        Backup(
            label=one.label,
            ended_at=datetime.fromtimestamp(one.timestamp.stop, tz=UTC),
            timeline=int(one.archive.stop[:8], 16),  # a segment's name begins with it
            begins=position(one.lsn.start),
            lsn=position(one.lsn.stop),
            size_bytes=one.info.size,
        )
        for one in found.backup
        if one.database.id == server.id and not one.error and one.lsn and one.archive.stop
    ]
    return Stanza(
        name=name,
        system=str(server.system),
        backups=tuple(sorted(backups, key=lambda backup: backup.ended_at)),
        archived=max((one.max for one in found.archive if one.database.id == server.id and one.max), default=""),
    )


def position(lsn: str) -> int:
    """A place in the log as a number: Postgres writes its upper and its lower half in hexadecimal (PostgreSQL docs,
    pg_lsn)."""
    upper, lower = lsn.split("/")
    return int(upper, 16) << 32 | int(lower, 16)


def backup_for(stanza: Stanza, to: LogPoint) -> Backup:
    """Return the newest backup that was whole before a place in the log: of a name, pgBackRest by itself would take the
    newest of all. Its ends are known to the second. Raises Refused when there is none."""
    backups = _on_this_branch(stanza.backups)
    found = [
        backup
        for backup in backups
        if (backup.lsn <= position(to.lsn) if to.lsn else backup.ended_at < to.at.replace(microsecond=0))
    ]
    if found:
        return found[-1]
    if not backups:
        raise Refused(f"stanza {stanza.name} has no backup", hint=f"pgbackrest --stanza={stanza.name} backup")
    first = backups[0].ended_at + timedelta(seconds=1)
    raise Refused(
        f"the first backup of stanza {stanza.name} ended after {shown(to)}: expected {first.isoformat()} or later",
        hint=f"lastgood restore-points recover --at {first:%Y-%m-%dT%H:%M:%SZ}",
    )


def _on_this_branch(backups: tuple[Backup, ...]) -> list[Backup]:
    """Leave out those that ended on a branch that was left. A server that was brought back goes on from an earlier
    place on a new timeline, and a recovery follows the newest one alone (PostgreSQL 15 docs, 26.3.5)."""
    return [
        one for one in backups if not any(one.timeline < later.timeline and later.begins < one.lsn for later in backups)
    ]


def shown(to: LogPoint) -> str:
    """A place in the log as it is told to a person."""
    at = f"{to.at:%Y-%m-%d %H:%M:%S} UTC"
    return f"{to.name} ({at})" if to.name else at


def target(to: LogPoint) -> list[str]:
    """The words that name a place in the log to `pgbackrest restore`."""
    if to.name:
        return ["--type=name", f"--target={to.name}", "--target-action=promote"]
    return ["--type=time", f"--target={to.at.isoformat(sep=' ')}", "--target-action=promote"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PgBackRest:
    """pgBackRest, and the programs beside it that must run as the owner of the server's data. container: None for this
    host."""

    config: PgBackRestConfig
    container: str | None

    def words(self, *arguments: str) -> list[str]:
        """A command of pgBackRest's. Its log of the restore is what it says; its file may be closed to us."""
        own = [f"--config={self.config.config}"] if self.config.config else []
        return ["pgbackrest", *own, f"--stanza={self.config.stanza}", "--log-level-file=off", *arguments]

    def info(self) -> Stanza:
        """Ask for the stanza. Raises as `read_info` and `run` do."""
        return read_info(self.run(self.words("info", "--output=json"), deadline_s=LOOK_S), self.config.stanza)

    def restore(self, backup: Backup, to: LogPoint, into: str, *, deadline_s: float) -> bool:
        """Restore a backup into a new folder, to be brought up to that place by the server that is started there.

        Whole: which databases a backup would have to be cut down to is told by their names of that day, and a swap
        changes names. Tablespaces go beside, or they would meet those of the server that serves. Return False when
        another restore of the stanza is under way. Raises as `run` does.
        """
        words = self.words(
            f"--pg1-path={into}/data",
            f"--tablespace-map-all={into}/tablespaces",
            f"--set={backup.label}",
            *target(to),
            "--archive-mode=off",
            "restore",
        )
        ended = self.ended(words, deadline_s=deadline_s)
        if ended.code == ANOTHER_RUNS:
            return False
        _check(words, ended)
        return True

    def run(self, words: Sequence[str], *, deadline_s: float, stdin: IO[bytes] | None = None) -> str:
        """Run a command, and return what it says. Raises Refused with what it says when it fails, OutcomeUnknown at the
        deadline: inside a container it may go on."""
        ended = self.ended(words, deadline_s=deadline_s, stdin=stdin)
        _check(words, ended)
        return ended.out

    def ended(self, words: Sequence[str], *, deadline_s: float, stdin: IO[bytes] | None = None) -> child.Ended:
        """Run a command that may fail."""
        as_owner = self.as_owner(words)
        try:
            env = child.bare_environment(os.environ)
            # a folder that its owner may not enter is none that pg_ctl finds its way back to
            return child.run(as_owner, deadline_s=deadline_s, env=env, cwd=Path("/"), stdin=stdin)
        except FileNotFoundError:
            raise Refused(f"{as_owner[0]} is not installed", hint="database.pgbackrest in lastgood.yaml") from None
        except child.Overran as error:
            raise OutcomeUnknown(str(error)) from None

    def as_owner(self, words: Sequence[str]) -> list[str]:
        """A server does not run as root, and what it cannot read it cannot recover from. Who is not root here runs
        everything as who he is."""
        if self.container:
            return ["docker", "exec", "--interactive", "--user", self.config.user, self.container, *words]
        if os.geteuid() != 0:
            return list(words)
        try:
            owner = pwd.getpwnam(self.config.user)
        except KeyError:
            raise Refused(
                f"this host has no user {self.config.user}: expected who owns the server's data",
                hint="database.pgbackrest.user in lastgood.yaml",
            ) from None
        who = [f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--init-groups"]
        return ["setpriv", *who, "--", *words]


def _check(words: Sequence[str], ended: child.Ended) -> None:
    if ended.code:
        said = " ".join((ended.err or ended.out).split())[-_LAST_CHARACTERS:]
        raise Refused(f"{words[0]} ended {ended.code}: {said}", hint="lastgood doctor")
