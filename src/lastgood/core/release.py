"""What was put into production: a Release, the act of putting it there, and the place the database can return to.

A Release is immutable and named once. What is learnt after the deployment (the schema it left, its frontend
deployment) is a `ReleaseCompleted` record beside it, folded together in `core.history`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from operator import not_
from typing import Annotated, Final

from pydantic import Field

LATER: Final = Field(exclude_if=not_)
"""Of a field that plans did not always have: where it is empty it stays out of the hash, so that an upgrade in the
middle of a run does not ask again."""
NAME_GRAMMAR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""Names of releases, services, restore points and runs: no leading dash, nothing a shell or a path would read."""


class Standing(StrEnum):
    """What is known of a release. Only GOOD ones are targets; a BARRED one was rolled back."""

    RECORDED = "recorded"
    GOOD = "good"
    BARRED = "barred"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCode:
    """Code that a service has from a folder or file of the checkout, of which the release keeps a copy.

    source: relative to the checkout. inside: where the service sees it. tree: hash over the files, `tree:...`.
    """

    source: str
    inside: str
    tree: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRecord:
    """One service of a release, as it must be found again on the day of a rollback.

    artifact: what runs: the image ID (`sha256:...`), or on the process engine the tree hash of the code.
    held_as: what keeps the artifact from cleaning up: a tag `lastgood/<project>/<service>:<release>`, or a folder.
    config_hash: of the resolved configuration without secret values; env_hash: keyed hash of the environment values.
    probe: what says that an instance is healthy, without its arguments, which may hold secrets; empty: nothing does.
    ports: published on this host, `127.0.0.1:8000->8080/tcp`.
    """

    name: str
    artifact: str
    held_as: str
    reference: str = ""
    digest: str | None = None
    config_hash: str = ""
    env_hash: str = ""
    code: tuple[KeptCode, ...] = ()
    probe: str = ""
    ports: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Untouched:
    """A service of the stack that belongs to no release and is never recreated. why: what speaks against it. stateful:
    whether that is its data."""

    name: str
    reference: str
    stateful: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """The compose project that a release was resolved from. files and env_file as lastgood.yaml names them; version: of
    docker compose."""

    project: str
    files: tuple[str, ...]
    version: str
    profiles: tuple[str, ...] = ()
    env_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Down:
    """SQL that takes migrations down again, as their release shipped it. migrations: those of them, oldest first."""

    migrations: tuple[str, ...]
    sql: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """An immutable set of what serves together.

    id: the name given at deploy time. commit: full git id of the checkout, None where there is no git.
    config_file: the resolved configuration, kept 0600 in the state directory, relative to it.
    migrations: names of the schema migrations that this release ships, oldest first. downs: what takes those of them
    down again that it brought, oldest first.
    statements: what the release says to the database, kept to be tried on a later schema.
    unresolved: submodules whose commit is not in this checkout, and why, one line each: the artifacts are held all the
    same, but nobody can build them again from the commit.
    composed: None where the engine is not compose. untouched: the services beside those that may go back.
    """

    id: str
    recorded_at: datetime
    engine: str
    services: tuple[ServiceRecord, ...]
    commit: str | None = None
    dirty: bool = False
    config_file: str = ""
    config_hash: str = ""
    migrations: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()
    unresolved: tuple[str, ...] = ()
    composed: Composed | None = None
    untouched: tuple[Untouched, ...] = ()
    downs: tuple[Down, ...] = ()

    def service(self, name: str) -> ServiceRecord | None:
        """Return the service of that name, None when the release does not have it."""
        return next((s for s in self.services if s.name == name), None)

    def is_of_another(self, project: str) -> bool:
        """Whether it was resolved from another compose project: its containers and settings are those of another stack.
        project: empty where none is known, and then nobody can tell."""
        return self.composed is not None and project not in ("", self.composed.project)

    @property
    def content(self) -> frozenset[tuple[str, str, str]]:
        """What tells two releases apart: (service, artifact, config_hash). How a service is described grows with the
        versions of this program; what it starts does not."""
        return frozenset((s.name, s.artifact, s.config_hash) for s in self.services)


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Something that a release needs to serve again and that is not there any more.

    what: one line, with the service. fix: one thing to type. lost: nothing can bring it back, so the release is no way
    back any more; else it is at hand but not safe, or can be fetched. by_config: lost only as long as lastgood.yaml is
    as it is now.
    """

    what: str
    fix: str
    lost: bool = False
    by_config: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """What the files of a release say about the database. migrations: names, oldest first; statements: SQL, one
    each; downs: as in Release."""

    migrations: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()
    downs: tuple[Down, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One act of putting a release into the environment. `previous`: the release that served before, None for the
    first."""

    id: str
    release: str
    previous: str | None
    started_at: datetime


class DumpFormat(StrEnum):
    """In which of pg_dump's formats an operator's own dump is: one file for pg_restore, a folder for it, or SQL."""

    CUSTOM = "custom"
    DIRECTORY = "directory"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPoint:
    """A place in the server's write-ahead log, up to which pgBackRest can bring a server back. at: by the server's
    clock. name, lsn: as Postgres has them there; empty where only a time was asked for."""

    at: datetime
    name: str = ""
    lsn: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePoint:
    """A named place that the database can return to; it counts only when proved by a trial restore.

    path: the dump, relative to the configured directory. sha256: of the dump. taken_at: when its snapshot was taken.
    snapshot: Postgres' `pg_current_snapshot()` text of that moment, the boundary of "written since".
    clone: the database kept from the trial restore, which a swap puts in place. rows: per table, in that snapshot.
    captured: whether the server kept every transaction since; lossy_because: what kept it from that, one line each.
    manifest: SHA-256 of the file in which all of this lies beside the dump. Set in the journal, where it cannot change
    unseen, and empty in that file itself and in journals that are older than it.
    own: an operator's own dump, in that format; None for what lastgood took. It has no snapshot that anybody knows, so
    taken_at is what the dump or a person says, and what was written since cannot be told from what was there.
    log: where it stands in the server's log, None where pgBackRest is not configured; of an own one: up to where
    pgBackRest recovered what was dumped, None where a person made the dump.
    paused_s: for how long its users were kept out of the database so that it could be copied, 0 where nobody was.
    not_copied: why that copy was given up, and the database dumped.
    """

    id: str
    database: str
    taken_at: datetime
    path: str
    sha256: str
    size_bytes: int
    fingerprint: str
    snapshot: str
    clone: str
    rows: tuple[tuple[str, int], ...] = ()
    proved_at: datetime | None = None
    captured: bool = False
    lossy_because: tuple[str, ...] = ()
    manifest: str = ""
    own: DumpFormat | None = None
    log: LogPoint | None = None
    paused_s: Annotated[float, LATER] = 0.0
    not_copied: Annotated[str, LATER] = ""

    @property
    def copied(self) -> bool:
        """Whether the clone is a copy of the files: then the dump was read from it, and restored by nobody."""
        return self.paused_s > 0 and not self.not_copied
