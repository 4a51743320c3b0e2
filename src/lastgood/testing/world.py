"""A small world in memory that a plan can be carried out on, with a crash at any chosen moment.

The targets are deliberately not idempotent: each `apply` counts one effect, so a repeated one shows. `observe` is
truthful. Crashes are raised around every journal write and every effect, where a real process could be killed.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from lastgood.core.errors import Bug, Refused
from lastgood.core.facts import ContainerFacts, DatabaseFacts, Facts, FrontendFacts, Health, InstanceFacts
from lastgood.core.plan import (
    ClearCandidates,
    ExportWrites,
    Fence,
    LiftFence,
    Migrate,
    PassGate,
    ReturnFrontend,
    Role,
    SaveDump,
    Serve,
    Step,
    SwapDatabase,
    TakeRestorePoint,
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
    """A clock that only moves when somebody sleeps. Who sleeps past an alarm, or past the time at which something was
    to happen, makes it happen."""

    def __init__(self) -> None:
        self._now = START
        self._due: list[tuple[datetime, Callable[[], None]]] = []
        self._moving = threading.Lock()

    def now(self) -> datetime:
        return self._now

    def sleep(self, seconds: float) -> None:
        with self._moving:
            self._now += timedelta(seconds=max(seconds, 0.001))
            passed = [due for due in self._due if due[0] <= self._now] if self._due else []
            self._due = [due for due in self._due if due not in passed] if passed else self._due
        for _, act in passed:
            act()

    def at(self, seconds: float, act: Callable[[], None]) -> None:
        """Make something happen once the clock is so far from now: a person answers, a release turns bad."""
        with self._moving:
            self._due.append((self._now + timedelta(seconds=seconds), act))
            self._due.sort(key=lambda due: due[0])

    @contextmanager
    def alarm(self, seconds: float, act: Callable[[], None]) -> Generator[None]:
        due = (self._now + timedelta(seconds=seconds), act)
        with self._moving:
            self._due.append(due)
        try:
            yield
        finally:
            with self._moving:
                if due in self._due:
                    self._due.remove(due)


class MemoryJournal:
    """A journal that outlives the crashes of its writers, in memory. Each append may crash before or after it is
    kept."""

    def __init__(self, clock: SteppedClock) -> None:
        self.kept: list[Record] = []
        self.crashes = Crashes()
        self._clock = clock
        self._held: dict[Right, Lease] = {}

    def append(self, event: Event) -> Record:
        self.crashes.moment()
        record = Record(seq=len(self.kept) + 1, at=self._clock.now(), event=event, hash="")
        self.kept.append(record)
        self.crashes.moment()
        return record

    def records(self, *, after: int = 0) -> Sequence[Record]:
        return self.kept[after:]

    @contextmanager
    def claim(self, owner: str, right: Right = Right.RUN) -> Generator[Lease]:
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
        return ()


class World:
    """What the three hands act on. `effects` counts each effect by the name of its step."""

    def __init__(
        self,
        *,
        serving: dict[str, str],
        held: frozenset[str],
        database: str = "app",
        migrations: tuple[str, ...] = (),
    ) -> None:
        self.effects: Counter[str] = Counter()
        self.crashes = Crashes()
        self.containers: ContainerFacts = ContainerFacts(
            observed_at=START,
            serving=tuple(_instance(service, artifact) for service, artifact in serving.items()),
            held=held,
        )
        self.database: DatabaseFacts = DatabaseFacts(
            observed_at=START,
            database=database,
            exists=True,
            fingerprint="f1",
            size_bytes=1000,
            migrations=migrations,
            databases=frozenset({database}),
        )
        self.frontend: FrontendFacts = FrontendFacts(observed_at=START, production="dpl_bad", auto_assign=True)

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
        """Have the step's effect once more, whether or not it was there already."""
        self.crashes.moment()
        self.effects[step.name] += 1
        self._take(step)
        self.crashes.moment()

    def _take(self, step: Step) -> None:
        containers, database = self.containers, self.database
        match step.action:
            case PassGate(artifacts=artifacts):
                self.containers = replace(containers, candidates=tuple(_instance(s, a) for s, a in artifacts))
            case Serve(service=service, artifact=artifact):
                others = tuple(i for i in containers.serving if i.service != service)
                self.containers = replace(containers, serving=(*others, _instance(service, artifact)))
            case ClearCandidates():
                self.containers = replace(containers, candidates=())
            case TakeRestorePoint(restore_point=point):
                self.database = replace(
                    database,
                    restore_points=database.restore_points | {point},
                    databases=database.databases | {f"clone_{point}"},
                )
            case Migrate(migrations=migrations):
                self.database = replace(database, migrations=(*database.migrations, *migrations), fingerprint="f2")
            case SaveDump(name=name):
                self.database = replace(database, dumps=database.dumps | {name})
            case Fence(kept_as=kept_as):
                names = database.databases - {database.database} | {kept_as}
                self.database = replace(database, exists=False, databases=names)
            case LiftFence(kept_as=kept_as):
                names = database.databases - {kept_as} | {database.database}
                self.database = replace(database, exists=True, databases=names)
            case ExportWrites(export=export):
                self.database = replace(database, exports=database.exports | {export})
            case SwapDatabase(swap=swap, clone=clone):
                names = database.databases - {clone} | {database.database}
                self.database = replace(
                    database, exists=True, fingerprint="f1", databases=names, swaps=database.swaps | {swap}
                )
            case ReturnFrontend(deployment=deployment):
                self.frontend = replace(self.frontend, production=deployment)


class Hand:
    """One target of the world."""

    def __init__(self, world: World, role: Role) -> None:
        self._world = world
        self.role = role

    def observe(self) -> Facts:
        return self._world.facts(self.role)

    def apply(self, step: Step) -> None:
        if step.role is not self.role:
            raise Bug(f"{step.name} came to {self.role.value}")
        self._world.apply(step)


def _instance(service: str, artifact: str) -> InstanceFacts:
    return InstanceFacts(
        service=service, instance=f"{service}-{artifact}", artifact=artifact, running=True, health=Health.HEALTHY
    )
