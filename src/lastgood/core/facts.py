"""What a target showed when it was observed. Facts age: nothing acts on a memory of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Health(StrEnum):
    """What a running instance says of itself. NONE: it declares no health check, so running is all that is known."""

    HEALTHY = "healthy"
    STARTING = "starting"
    UNHEALTHY = "unhealthy"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceFacts:
    """One container or process. artifact: image ID or tree hash. instance: container ID, or pid and start time.

    release: the release it was started for, empty when somebody else started it, or when it is not bound to the
    instances of that release. exit_code: None while it runs.
    config_hash: as in ServiceRecord, empty when it cannot be told.
    """

    service: str
    instance: str
    artifact: str
    running: bool
    health: Health
    release: str = ""
    config_hash: str = ""
    restarts: int = 0
    oom_killed: bool = False
    exit_code: int | None = None

    @property
    def serves(self) -> bool:
        """Running, and either healthy or without a health check of its own."""
        return self.running and self.health in (Health.HEALTHY, Health.NONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerFacts:
    """serving: the instances that get traffic. candidates: what runs beside them without any. stateful: never touched.

    held: artifacts that can be started right now without asking a registry. switchable: services whose traffic an edge
    moves from one release to another, all at once; of those an instance counts only for its own release. ungated: those
    of which no second instance may run, since it would do its work twice. can_hold: whether something in front of the
    services can let requests wait; holding: whether it does. left_waiting: whether some may wait still from before that
    ran out, though new ones do not. unwritten: services whose requests an edge that is started again would send
    elsewhere than now. standby_runs: whether a release that may stay ready beside goes on running there; else it is
    stopped, or removed. asked: (release, service, instances) of what the files of a release ask several instances for.
    """

    observed_at: datetime
    serving: tuple[InstanceFacts, ...]
    candidates: tuple[InstanceFacts, ...] = ()
    stateful: tuple[InstanceFacts, ...] = ()
    held: frozenset[str] = frozenset()
    switchable: frozenset[str] = frozenset()
    ungated: frozenset[str] = frozenset()
    can_hold: bool = False
    holding: bool = False
    left_waiting: bool = False
    unwritten: frozenset[str] = frozenset()
    standby_runs: bool = True
    asked: frozenset[tuple[str, str, int]] = frozenset()

    def at_least(self, release: str, service: str, *, found: Collection[tuple[str, int]] = ()) -> int:
        """Return how many instances of a service make the release whole. Where no file says it, a person may have said
        by hand: then it is what is found, and one at least. found: (service, number) of what is to stay as it was: no
        more are needed of it."""
        asked = next((count for of, name, count in self.asked if (of, name) == (release, service)), 1)
        return min([asked, *(max(number, 1) for name, number in found if name == service)])

    def of(self, service: str) -> tuple[InstanceFacts, ...]:
        """Return the serving instances of a service, empty when there is none."""
        return tuple(i for i in self.serving if i.service == service)

    @property
    def strays(self) -> tuple[InstanceFacts, ...]:
        """What stands beside, of a service that switches, and is bound to no release: started by somebody else, or
        before there was an edge."""
        return tuple(i for i in self.candidates if not i.release and i.service in self.switchable)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptDatabase:
    """A database that another one took the place of, and that is kept until a person releases it. since: when it was
    put aside, aware UTC."""

    name: str
    since: datetime
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLog:
    """What an instance wrote, its newest lines, oldest first, without secrets. release: as in InstanceFacts.
    addresses: that nobody else has had since `since`; none where it shares them with others."""

    service: str
    release: str
    lines: tuple[str, ...]
    addresses: frozenset[str] = frozenset()
    since: datetime | None = None

    @property
    def told(self) -> str:
        """The service, and its release where it is known."""
        return f"{self.service} of {self.release}" if self.release else self.service


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseFacts:
    """What the server shows. `database`: the live name; `exists` False between the fence and the swap.

    fingerprint: of the live schema. migrations: finished ones, oldest first; failed_migrations: started, not finished.
    restore_points: ids whose dump is present and whose trial restore was proved; manifests: the SHA-256 of what lies
    there of each of them, by id; foreign: those of another database than the one that has the name now.
    databases: every database of the server. exports: ids of finished exports of rows written since a
    restore point. swaps: ids in the outside ledger. dumps: names of finished safety dumps.
    captures: restore points since which every transaction is in the clone or still kept by the server, so that a replay
    is whole; also those of another database whose log is still kept. capture_bytes: of the log, for that;
    capture_own_bytes: of these what was written before the restore point was ready, its own restore above all;
    restore_log_bytes: what another restore would write; capture_left: whether anything of a capture is left, usable or
    not; slot_limit_bytes: how much of it the server lets a slot keep, whatever becomes of us, None without a limit.
    caught_up, replays: names of replays that have caught up, and of those that are finished. filled: restore points
    into whose clone something was put since, as far as it is known; the clone itself may be gone. rehearsals: names of
    down migrations that went well on a copy. pools: whether its clients come through a pooler that can make them wait;
    paused: whether it does because of us, None when that cannot be told.
    """

    observed_at: datetime
    database: str
    exists: bool
    fingerprint: str
    size_bytes: int
    migrations: tuple[str, ...] = ()
    failed_migrations: tuple[str, ...] = ()
    restore_points: frozenset[str] = frozenset()
    manifests: tuple[tuple[str, str], ...] = ()
    foreign: frozenset[str] = frozenset()
    databases: frozenset[str] = frozenset()
    exports: frozenset[str] = frozenset()
    dumps: frozenset[str] = frozenset()
    swaps: frozenset[str] = frozenset()
    captures: frozenset[str] = frozenset()
    capture_bytes: int = 0
    capture_own_bytes: int = 0
    restore_log_bytes: int = 0
    capture_left: bool = False
    slot_limit_bytes: int | None = None
    caught_up: frozenset[str] = frozenset()
    replays: frozenset[str] = frozenset()
    filled: frozenset[str] = frozenset()
    pools: bool = False
    paused: bool | None = False
    rehearsals: frozenset[str] = frozenset()

    @property
    def captured_since_bytes(self) -> int:
        """What is kept of the log because somebody wrote since the restore point: it is this that has a limit."""
        return self.capture_bytes - self.capture_own_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupFacts:
    """What pgBackRest has of the server. oldest_at, newest_at: when its first and its last backup ended, None without
    one. wrong: what would keep the server from being recovered from them, one line each, with what to do."""

    oldest_at: datetime | None = None
    newest_at: datetime | None = None
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendDeployment:
    """One deployment at the frontend host. state: READY, BUILDING, ERROR, ... in the host's own words."""

    id: str
    commit: str
    state: str
    created_at: datetime
    can_return: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendFacts:
    """production: deployment that the project serves, empty for none. domains: (domain, what is seen there): the
    deployment's id, or the mark that the page bears where no known deployment has it; empty if it could not be told.

    auto_assign: whether the next push goes live by itself (a rollback at Vercel turns this off).
    busy: a promotion or rollback is under way there.
    """

    observed_at: datetime
    production: str
    auto_assign: bool
    busy: bool = False
    domains: tuple[tuple[str, str], ...] = ()
    deployments: tuple[FrontendDeployment, ...] = ()


Facts = ContainerFacts | DatabaseFacts | FrontendFacts
