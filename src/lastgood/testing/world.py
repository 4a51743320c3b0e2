"""A small world in memory that a plan can be carried out on, with a crash at any chosen moment.

What arrives is counted apart from what changes something, so that a step which is sent twice shows although it is safe
to repeat. `observe` is truthful. Crashes are raised around every journal write and every effect, where a real process
could be killed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from threading import Lock

from lastgood.core.errors import LastgoodError, Refused
from lastgood.core.facts import (
    ContainerFacts,
    DatabaseFacts,
    Facts,
    FrontendDeployment,
    FrontendFacts,
    Health,
    InstanceFacts,
)
from lastgood.core.plan import (
    CatchUp,
    ClearCandidates,
    EndCapture,
    ExportWrites,
    Fence,
    HoldRequests,
    LiftFence,
    Migrate,
    MigrateDown,
    PassGate,
    PassRequests,
    RehearseDown,
    ReplayWrites,
    RestoreClone,
    Retire,
    ReturnFrontend,
    Role,
    SaveDump,
    Seen,
    Serve,
    Settle,
    Step,
    SwapDatabase,
    Switch,
    TakeRestorePoint,
    seen,
)
from lastgood.core.ports import Lease, Right
from lastgood.core.record import Event, Record

START = datetime(2026, 1, 1, tzinfo=UTC)


class Crash(BaseException):
    """The process died here."""


class Crashes:
    """Counts the moments at which the process could die, and dies at the chosen ones. None chosen: only counts."""

    def __init__(self, *at: int) -> None:
        self.at = frozenset(at)
        self.count = 0

    def moment(self) -> None:
        """One moment passes. Raises Crash when it is a chosen one."""
        self.count += 1
        if self.count in self.at:
            raise Crash


class SteppedClock:
    """A clock that only moves when somebody sleeps. What was agreed for a later time happens while somebody sleeps over
    it, as if another process did it then. Its users may have threads."""

    def __init__(self) -> None:
        self._now = START
        self._agreed: list[tuple[datetime, Callable[[], object]]] = []
        self._moving = Lock()

    def now(self) -> datetime:
        return self._now

    def sleep(self, seconds: float) -> None:
        until = self._now + timedelta(seconds=max(seconds, 0.001))
        while (happens := self._next(until)) is not None:
            happens()

    def _next(self, until: datetime) -> Callable[[], object] | None:
        """Move to what is agreed next and return it; None when that is later: then it is `until`."""
        with self._moving:
            at, happens = min(self._agreed, key=itemgetter(0), default=(until, None))
            if happens is None or at > until:
                self._now = max(self._now, until)
                return None
            self._agreed.remove((at, happens))
            self._now = max(self._now, at)
            return happens

    def after(self, seconds: float, act: Callable[[], object]) -> None:
        """Have `act` happen that many seconds from now. It may sleep itself: then more time passes than was asked
        for."""
        self._agreed.append((self._now + timedelta(seconds=seconds), act))

    @contextmanager
    def if_slow(self, after_s: float, say: Callable[[], None]) -> Generator[None]:
        """Call `say` after a block that lasted longer than `after_s` by this clock."""
        began = self._now
        try:
            yield
        finally:
            if (self._now - began).total_seconds() > after_s:
                say()


class MemoryJournal:
    """A journal that outlives the crashes of its writers, in memory. Each append may crash before or after it is
    kept. damage: what it finds wrong with itself. meanwhile: what another process does just before the right to run is
    claimed next."""

    def __init__(self, clock: SteppedClock) -> None:
        self.kept: list[Record] = []
        self.crashes = Crashes()
        self.damage: tuple[str, ...] = ()
        self._clock = clock
        self.meanwhile: list[Callable[[], object]] = []
        self._held: dict[Right, Lease] = {}

    def append(self, event: Event) -> Record:
        self.crashes.moment()
        seq = len(self.kept) + 1
        record = Record(seq=seq, at=self._clock.now(), event=event, hash=f"{seq:064x}")
        self.kept.append(record)
        self.crashes.moment()
        return record

    def records(self, *, after: int = 0) -> Sequence[Record]:
        return self.kept[after:]

    @contextmanager
    def claim(self, owner: str, right: Right = Right.RUN) -> Generator[Lease]:
        if right is Right.RUN and self.meanwhile:
            self.meanwhile.pop()()
        if right in self._held:
            raise Refused(f"{right.value} is held by {self._held[right].owner}")
        self._held[right] = Lease(owner=owner, fencing=1)
        try:
            yield self._held[right]
        finally:
            del self._held[right]

    def holder(self, right: Right = Right.RUN) -> str | None:
        return self._held[right].owner if right in self._held else None

    def verify(self) -> tuple[str, ...]:
        return self.damage


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How the next `apply` of a step fails. after: it has its effect all the same, and only the answer is lost."""

    error: LastgoodError
    after: bool = False


class World:
    """What the three hands act on.

    asked: each `apply` that arrived, by the name of its step. effects: each of them that changed something. faults: of
    the next attempts of a step, by its name, oldest first. away: parts that do not answer, and what they say.
    captures: whether the next restore point keeps every transaction since.
    """

    def __init__(
        self,
        *,
        serving: dict[str, str],
        held: frozenset[str],
        database: str = "app",
        migrations: tuple[str, ...] = (),
    ) -> None:
        self.asked: Counter[str] = Counter()
        self.effects: Counter[str] = Counter()
        self.faults: dict[str, list[Fault]] = {}
        self.away: dict[Role, LastgoodError] = {}
        self.crashes = Crashes()
        self.captures = False
        self.containers: ContainerFacts = ContainerFacts(
            observed_at=START,
            serving=tuple(instance_of(service, artifact) for service, artifact in serving.items()),
            held=held,
        )
        self.database: DatabaseFacts = DatabaseFacts(
            observed_at=START,
            database=database,
            exists=True,
            fingerprint=fingerprint_of(migrations),
            size_bytes=1000,
            migrations=migrations,
            databases=frozenset({database}),
            slot_limit_bytes=4 << 30,
        )
        self.frontend: FrontendFacts = FrontendFacts(
            observed_at=START,
            production="dpl_bad",
            auto_assign=True,
            deployments=tuple(frontend_deployment(name, commit="") for name in ("dpl_old", "dpl_bad")),
        )
        self._schemas: dict[str, tuple[str, ...]] = {}

    def hand(self, role: Role) -> Hand:
        """Return the target for a role."""
        return Hand(self, role)

    def facts(self, role: Role) -> Facts:
        """Show the truth."""
        found: dict[Role, Facts] = {
            Role.CONTAINERS: self.containers,
            Role.DATABASE: self.database,
            Role.FRONTEND: self.frontend,
        }
        return found[role]

    def apply(self, step: Step) -> None:
        """Have the step's effect, unless it is there already or a fault says otherwise."""
        self.crashes.moment()
        self.asked[step.name] += 1
        fault = faults.pop(0) if (faults := self.faults.get(step.name)) else None
        if fault and not fault.after:
            raise fault.error
        if seen(step, self.facts(step.role)) is not Seen.DONE:
            self.take(step)
            self.effects[step.name] += 1
        if fault:
            raise fault.error
        self.crashes.moment()

    def take(self, step: Step) -> None:
        """Change what the step changes. Raises Refused when something that it names is not there."""
        match step.role:
            case Role.CONTAINERS:
                self._take_containers(step)
            case Role.DATABASE:
                self._take_database(step)
            case Role.FRONTEND:
                self._take_frontend(step)

    def _take_containers(self, step: Step) -> None:
        containers = self.containers
        match step.action:
            case PassGate(release=release, artifacts=artifacts):
                self._check(dict(artifacts).values(), containers.held)
                started = tuple(instance_of(s, a, release=release) for s, a in artifacts)
                standby = (
                    i for i in containers.candidates if i.service in containers.switchable and i.release != release
                )
                self.containers = replace(containers, candidates=(*standby, *started))
            case Serve(service=service, artifact=artifact):
                self._check((artifact,), containers.held)
                others = tuple(i for i in containers.serving if i.service != service)
                self.containers = replace(containers, serving=(*others, instance_of(service, artifact)))
            case Switch(release=release, artifacts=artifacts):
                self._switch(release, dict(artifacts))
            case Retire(service=service):
                self.containers = replace(
                    containers,
                    serving=tuple(i for i in containers.serving if i.service != service),
                    candidates=tuple(i for i in containers.candidates if i.service != service),
                )
            case ClearCandidates(standby=standby) | Settle(standby=standby):
                stays = standby if containers.standby_runs else ""
                kept = tuple(i for i in containers.candidates if stays and i.release == stays)
                self.containers = replace(containers, candidates=kept)
            case HoldRequests():
                self.containers = replace(containers, holding=True)
            case PassRequests():
                self.containers = replace(containers, holding=False)
            case _:
                pass

    def _take_database(self, step: Step) -> None:
        database = self.database
        match step.action:
            case TakeRestorePoint(restore_point=point):
                self.keep_clone(point, database.migrations)
                captures = frozenset({point}) if self.captures else frozenset[str]()
                self.database = replace(self.database, captures=captures)
            case Migrate(migrations=migrations):
                finished = (*database.migrations, *migrations)
                self.database = replace(database, migrations=finished, fingerprint=fingerprint_of(finished))
            case SaveDump(name=name):
                self.database = replace(database, dumps=database.dumps | {name})
            case RehearseDown(rehearsal=rehearsal, dump=dump):
                self._check((dump,), database.dumps)
                self.database = replace(database, rehearsals=database.rehearsals | {rehearsal})
            case MigrateDown(migrations=migrations):
                self._check(migrations, database.migrations)
                left = tuple(each for each in database.migrations if each not in migrations)
                self.database = replace(database, migrations=left, fingerprint=fingerprint_of(left))
            case Fence(kept_as=kept_as):
                names = database.databases - {database.database} | {kept_as}
                self.database = replace(database, exists=False, databases=names, paused=database.pools)
            case LiftFence(kept_as=kept_as):
                if not database.exists:
                    self._check((kept_as,), database.databases)
                names = database.databases - {kept_as} | {database.database}
                self.database = replace(database, exists=True, databases=names, paused=False)
            case ExportWrites(export=export, kept_as=kept_as):
                self._check((kept_as,), database.databases)
                self.database = replace(database, exports=database.exports | {export})
            case CatchUp(replay=replay, restore_point=point):
                self._check((point,), database.captures)
                filled = database.filled | {point}
                self.database = replace(database, caught_up=database.caught_up | {replay}, filled=filled)
            case ReplayWrites(replay=replay, restore_point=point, kept_as=kept_as):
                self._check((kept_as,), database.databases)
                filled = database.filled | {point}
                self.database = replace(database, replays=database.replays | {replay}, filled=filled)
            case RestoreClone(restore_point=point, clone=clone):
                self._check((point,), database.restore_points)
                databases = database.databases | {clone}
                self.database = replace(database, databases=databases, filled=database.filled - {point})
            case EndCapture():
                self.database = replace(database, captures=frozenset(), capture_bytes=0, capture_left=False)
            case SwapDatabase(swap=swap, clone=clone, kept_as=kept_as):
                self._check((clone, kept_as), database.databases)
                finished = self._schemas.get(clone, ())
                self.database = replace(
                    database,
                    exists=True,
                    migrations=finished,
                    fingerprint=fingerprint_of(finished),
                    databases=database.databases - {clone} | {database.database},
                    swaps=database.swaps | {swap},
                    paused=False,
                )
            case _:
                pass

    def keep_clone(self, restore_point: str, migrations: tuple[str, ...]) -> None:
        """Leave a database of these migrations beside the live one, as what a restore point is proved by."""
        database, clone = self.database, clone_of(restore_point)
        self._schemas[clone] = migrations
        others = (kept for kept in database.manifests if kept[0] != restore_point)
        self.database = replace(
            database,
            restore_points=database.restore_points | {restore_point},
            manifests=(*others, (restore_point, manifest_of(restore_point))),
            databases=database.databases | {clone},
        )

    def _take_frontend(self, step: Step) -> None:
        match step.action:
            case ReturnFrontend(deployment=deployment):
                self._check((deployment,), {d.id for d in self.frontend.deployments})
                self.frontend = replace(
                    self.frontend,
                    production=deployment,
                    auto_assign=False,
                    domains=tuple((domain, deployment) for domain, _ in self.frontend.domains),
                )
            case _:
                pass

    def _switch(self, release: str, artifacts: Mapping[str, str]) -> None:
        """Move the traffic of all these services at once; what served stays beside."""
        containers = self.containers
        ready = [i for i in containers.candidates if i.release == release and i.artifact == artifacts.get(i.service)]
        self._check(artifacts, {i.service for i in ready if i.serves})
        left = tuple(i for i in containers.serving if i.service in artifacts)
        self.containers = replace(
            containers,
            serving=(*(i for i in containers.serving if i not in left), *ready),
            candidates=(*(i for i in containers.candidates if i not in ready), *left),
        )

    def _check(self, named: Iterable[str], there: Collection[str]) -> None:
        for name in named:
            if name not in there:
                raise Refused(f"{name} is not there", hint="lastgood doctor")


class Hand:
    """One target of the world."""

    def __init__(self, world: World, role: Role) -> None:
        self._world = world
        self.role = role

    def observe(self) -> Facts:
        self._answer()
        return self._world.facts(self.role)

    def apply(self, step: Step) -> None:
        if step.role is not self.role:
            raise Refused(
                f"{step.name} is a step for {step.role.value}, not for {self.role.value}", hint="lastgood plan"
            )
        self._answer()
        self._world.apply(step)

    def _answer(self) -> None:
        if error := self._world.away.get(self.role):
            raise error


def clone_of(restore_point: str) -> str:
    """Name the database that a restore point keeps."""
    return f"clone_{restore_point}"


def manifest_of(restore_point: str) -> str:
    """The hash of what is kept of a restore point."""
    return f"manifest of {restore_point}"


def fingerprint_of(migrations: Sequence[str]) -> str:
    """The fingerprint of a schema that these migrations made."""
    return f"f{len(migrations)}"


def frontend_deployment(name: str, *, commit: str) -> FrontendDeployment:
    """A deployment that is ready at the frontend host."""
    return FrontendDeployment(id=name, commit=commit, state="READY", created_at=START)


def instance_of(service: str, artifact: str, *, release: str = "") -> InstanceFacts:
    """An instance that is well."""
    return InstanceFacts(
        service=service,
        instance=f"{service}-{artifact}",
        artifact=artifact,
        running=True,
        health=Health.HEALTHY,
        release=release,
    )
