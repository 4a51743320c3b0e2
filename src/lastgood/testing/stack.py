"""A whole stack in memory: releases that behave, users, a database, a frontend host, a channel; and all of it fails on
demand.

What the eyes read follows from what serves: a bad release fails requests while it serves, and no longer after a
rollback. Time is the clock's, so an hour's watch takes milliseconds. The hands have one effect a step
(`testing.world`); the stand-ins here add what else the ports promise, and pass the same contract suites as the real
ones.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from lastgood.core.deploying import nobody_else
from lastgood.core.errors import LastgoodError, OutcomeUnknown, Refused
from lastgood.core.facts import (
    BackupFacts,
    ContainerFacts,
    DatabaseFacts,
    Facts,
    FrontendFacts,
    Health,
    KeptDatabase,
    ServiceLog,
)
from lastgood.core.migration import (
    BrokenInvariant,
    DatabaseEvidence,
    Fit,
    FitsSchema,
    Outlook,
    SchemaChange,
    SqlError,
    WayDown,
    WritesSince,
)
from lastgood.core.plan import (
    HELD_AT_MOST_S,
    CatchUp,
    HoldRequests,
    Migrate,
    PassGate,
    RehearseDown,
    ReplayWrites,
    ReturnFrontend,
    Role,
    Serve,
    Step,
    SwapDatabase,
    Switch,
    TakeRestorePoint,
    other_manifest,
)
from lastgood.core.quarantine import QuarantineEntry
from lastgood.core.reading import (
    Instances,
    InstanceState,
    NoData,
    Probed,
    Reading,
    SourceDown,
    Traffic,
    Violation,
    Violations,
    Window,
)
from lastgood.core.release import (
    Down,
    DumpFormat,
    LogPoint,
    Missing,
    Release,
    RestorePoint,
    ServiceRecord,
    Shipped,
)
from lastgood.core.repair import ColumnRepair, RepairPlan, RowRepair
from lastgood.core.report import Check, DryRun, Loss, Progress, Rehearsed, Replayed, RowProgress
from lastgood.testing.world import (
    Hand,
    SteppedClock,
    World,
    clone_of,
    fingerprint_of,
    frontend_deployment,
    instance_of,
    manifest_of,
)

SERVICES: Final = ("core", "orchestrator", "agent")
DATABASE: Final = "app"
DOMAIN: Final = "app.example"
INVARIANT: Final = "credits"
TABLE: Final = "missions"
PROBE: Final = "chat"
LONGEST_TEXT: Final = 10_000
NO_ANSWER: Final = SourceDown(reason="no answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How a release behaves. errors, slow: share of its requests, 0..1. after_s: how long it serves well first.

    answers: its feature does its work. breaks_rows: its requests leave one more invalid row at each look. boots: its
    services become healthy. passes_smoke: the team's own tests pass on it. migrations: what it ships.
    migration_breaks: how many rows its migrations break. goes_down: it ships a way down for each of them.
    """

    errors: float = 0.0
    slow: float = 0.0
    after_s: float = 0.0
    answers: bool = True
    breaks_rows: bool = False
    boots: bool = True
    passes_smoke: bool = True
    migrations: tuple[str, ...] = ()
    migration_breaks: int = 0
    goes_down: bool = False


WELL: Final = Behaviour()


def artifact_of(service: str, release: str) -> str:
    """Name what a service of a release runs."""
    return f"{service}-{release}"


class Stack(World):
    """One team's production. rate_per_s: requests. blind: sources that see nothing, and what they say instead.
    on_disk: what the checkout holds where it is not what the deploy is called. registry: artifacts that can be fetched.

    takes_s: how long a step takes, by its name. fits: whether the last good release runs on today's schema. obstacles:
    to a restore point; cautions: what a rollback would cost. unusable: why the files on disk make no release.
    awaited: services that end before others start, and how a person runs them. left_alone: what is not as the files
    have it and no deploy touches, and what a person types. written: rows since the newest restore point, by table.
    unfit: those of them that the old schema has no place for. broken: invalid rows, and whether the migration wrote
    them. points, broken_at, replayed: what each restore point holds, and what became of the rows in each replay.
    lossy_because: what keeps the server from keeping every transaction since a restore point. uncopied: what keeps its
    database from being copied; copy_s: for how long everybody waits for a copy. progress: how far a replay is. logged:
    SQL errors in the log of a service.
    own_dumps: what an operator's own dump holds, by the name of its file: when it was taken, and its migrations.
    backups: what pgBackRest has, None where there is none.
    quarantine: its entries; committed: what a person put into the data, by transaction; loses_answers: of
    those. aside: what the old schema has no place for, by column. loses_rows: what the copy shows when the migrations
    are taken down in it, empty when all is well.
    """

    def __init__(self, clock: SteppedClock, *, rate_per_s: float = 20.0) -> None:
        super().__init__(serving={}, held=frozenset(), database=DATABASE, migrations=("m1",))
        self.clock = clock
        self._held_until = clock.now()
        self.rate_per_s = rate_per_s
        self.behaves: dict[str, Behaviour] = {}
        self.blind: dict[str, Reading] = {}
        self.on_disk: str | None = None
        self.registry: frozenset[str] = frozenset()
        self.takes_s: dict[str, float] = {}
        self.fits = FitsSchema(fit=Fit.YES, tried=3, reason="all statements ran")
        self.obstacles: tuple[str, ...] = ()
        self.cautions: tuple[str, ...] = ()
        self.unusable: tuple[str, ...] = ()
        self.awaited: tuple[tuple[str, str], ...] = ()
        self.left_alone: tuple[tuple[str, str], ...] = ()
        self.written: Counter[str] = Counter()
        self.broken: dict[str, bool] = {}
        self.points: dict[str, RestorePoint] = {}
        self.unfit: Counter[str] = Counter()
        self.never_back = False
        self.replayed: dict[str, Replayed] = {}
        self.dry_run = DryRun(
            replayed=Replayed(units="transactions", total=0, quarantined=0, skipped=0), whole=True, pause_s=0.6
        )
        self.progress: Progress | RowProgress | None = None
        self.lossy_because: tuple[str, ...] = ()
        self.uncopied: tuple[str, ...] = ()
        self.copy_s = 0.4
        self.logged: dict[str, tuple[str, ...]] = {}
        self.own_dumps: dict[str, tuple[datetime, tuple[str, ...]]] = {}
        self.backups: BackupFacts | None = None
        self.quarantine: list[QuarantineEntry] = []
        self.committed: dict[int, str] = {}
        self.loses_answers = False
        self.broken_at: dict[str, dict[str, bool]] = {}
        self.aside: Counter[str] = Counter()
        self.loses_rows = ""
        self.failed_downs: dict[tuple[Down, ...], str] = {}
        self._served_since: dict[str, datetime] = {}
        self.frontend: FrontendFacts = replace(self.frontend, production="", deployments=(), domains=((DOMAIN, ""),))

    # --- what happens round the tool ---------------------------------------------------------------------------

    def push(self, release: str) -> None:
        """The team pushes a release: the frontend host builds it, and it goes live where pushes do."""
        made = frontend_deployment(f"dpl_{release}", commit=commit_of(release))
        self.frontend = replace(self.frontend, deployments=(made, *self.frontend.deployments))
        if self.frontend.auto_assign:
            self.frontend = replace(self.frontend, production=made.id, domains=((DOMAIN, made.id),))

    def put(self, service: str, artifact: str) -> None:
        """Somebody puts something in the place of a service, round the tool."""
        others = tuple(i for i in self.containers.serving if i.service != service)
        self.containers = replace(
            self.containers, serving=(*others, instance_of(service, artifact)), held=self.containers.held | {artifact}
        )

    def forget(self, release: str) -> None:
        """Somebody cleans the images of a release away."""
        gone = {artifact_of(service, release) for service in SERVICES}
        self.containers = replace(self.containers, held=self.containers.held - gone)

    def blindfold(self, *sources: str, says: Reading = NO_ANSWER) -> None:
        """These sources see nothing from now on."""
        self.blind |= dict.fromkeys(sources, says)

    def sicken(self, service: str) -> None:
        """A service runs, and is not well."""
        self.containers = replace(
            self.containers,
            serving=tuple(
                replace(i, health=Health.UNHEALTHY) if i.service == service else i for i in self.containers.serving
            ),
        )

    # --- the truth ---------------------------------------------------------------------------------------------

    @property
    def serving(self) -> str:
        """The release that serves, by the artifact at the front; empty when nothing does."""
        return next((i.artifact.removeprefix(f"{SERVICES[0]}-") for i in self.containers.of(SERVICES[0])), "")

    @property
    def serves_wholly(self) -> bool:
        """Every service is of the release at the front."""
        return {(i.service, i.artifact) for i in self.containers.serving} == {
            (service, artifact_of(service, self.serving)) for service in SERVICES
        }

    @property
    def behaviour(self) -> Behaviour:
        """How what serves behaves now."""
        behaviour = self.behaves.get(self.serving, WELL)
        since = self._served_since.get(self.serving)
        turned = since is None or (self.clock.now() - since).total_seconds() >= behaviour.after_s
        return behaviour if turned else WELL

    def facts(self, role: Role) -> Facts:
        facts = replace(super().facts(role), observed_at=self.clock.now())
        if isinstance(facts, ContainerFacts) and facts.holding and self.clock.now() >= self._held_until:
            return replace(facts, holding=False, left_waiting=True)  # as an edge does, whoever died meanwhile
        return facts

    def take(self, step: Step) -> None:
        if duration_s := self.takes_s.get(step.name):
            self.clock.sleep(duration_s)
        match step.action:
            case PassGate(release=release) if not self.behaves.get(release, WELL).boots:
                raise Refused(f"{SERVICES[0]} of {release} exited with 1 at the gate", hint="less gate.log")
            case ReturnFrontend(deployment=deployment) if self.frontend.busy:
                raise Refused(f"{deployment} waits behind another promotion", hint="lastgood rollback")
            case RehearseDown(downs=downs) if self.loses_rows:
                self.failed_downs[downs] = self.loses_rows
                raise Refused(self.loses_rows, hint="lastgood plan")
            case _:
                super().take(step)
        match step.action:
            case HoldRequests():
                self._held_until = self.clock.now() + timedelta(seconds=HELD_AT_MOST_S)
            case Serve(release=release) | Switch(release=release):
                self._served_since[release] = self.clock.now()
            case TakeRestorePoint(restore_point=restore_point, pause_s=pause_s):
                self.written.clear()
                self._keep(restore_point)
                self._pause(restore_point, pause_s)
            case ReplayWrites(replay=replay):
                self.replayed[replay] = self._replay(replay)
            case SwapDatabase(restore_point=restore_point):
                self.broken = dict(self.broken_at[restore_point])
                self.written.clear()
            case Migrate(release=release):
                self.broken |= {f"migrated-{n}": True for n in range(self.behaves.get(release, WELL).migration_breaks)}
            case _:
                pass

    def _replay(self, replay: str) -> Replayed:
        carried = self.written - self.unfit
        return Replayed(
            units="transactions",
            total=self.written.total(),
            quarantined=self.unfit.total(),
            skipped=1,
            carried=tuple(carried.items()),
            losses=tuple(
                Loss(table=t, rows=n, file=f"replays/{replay}/quarantine.jsonl") for t, n in self.unfit.items()
            ),
        )

    def _keep(self, restore_point: str) -> None:
        self.broken_at[restore_point] = dict(self.broken)
        log = LogPoint(at=self.clock.now(), name=f"log-{restore_point}", lsn="0/1") if self.backups else None
        if log:
            self.own_dumps[log.name] = (log.at, self.database.migrations)
        self.points[restore_point] = RestorePoint(
            id=restore_point,
            database=DATABASE,
            taken_at=self.clock.now(),
            path=f"{restore_point}/dump",
            sha256="0" * 64,
            size_bytes=self.database.size_bytes,
            fingerprint=self.database.fingerprint,
            snapshot="1:1:",
            clone=clone_of(restore_point),
            proved_at=self.clock.now(),
            captured=restore_point in self.database.captures,
            lossy_because=self.lossy_because,
            manifest=manifest_of(restore_point),
            log=log,
        )

    def _pause(self, restore_point: str, most_s: float) -> None:
        late = f"it did not end within {most_s:g} s" if self.copy_s > most_s else ""
        self.points[restore_point] = replace(
            self.points[restore_point], paused_s=min(self.copy_s, most_s), not_copied=late if most_s else ""
        )

    def keep_own(self, file: str, name: str | None) -> RestorePoint:
        """Restore an own dump beside, and keep it as a restore point."""
        taken_at, migrations = self.own_dumps[file]
        restore_point = name or f"own-{taken_at:%Y%m%d-%H%M%S}"
        self._keep(restore_point)
        self.broken_at[restore_point] = {}
        self.keep_clone(restore_point, migrations)
        point = replace(
            self.points[restore_point],
            taken_at=taken_at,
            snapshot="",
            fingerprint=fingerprint_of(migrations),
            own=DumpFormat.PLAIN,
            log=None,
        )
        self.points[restore_point] = point
        return point


def commit_of(release: str) -> str:
    """Name the commit of a release."""
    return f"c0ffee-{release}"


class MemoryContainers(Hand):
    """core.ports.Containers on a Stack. lost: what keeps the logs from being saved. saved: the newest ones.

    commits: of a release, where it is not that of its content. unresolved: submodules of what is prepared. kept_names:
    releases of which something is kept. in_use: those that cannot be removed now. unheld: those whose images are here
    and would not survive the next cleaning. named: the release that others would start: the one made last; nameless:
    why that cannot be put right.
    """

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack, Role.CONTAINERS)
        self._stack = stack
        self.lost: LastgoodError | None = None
        self.commits: dict[str, str] = {}
        self.saved: list[str] = []
        self.unresolved: tuple[str, ...] = ()
        self.kept_names: set[str] = set()
        self.in_use: set[str] = set()
        self.unheld: set[str] = set()
        self.named = ""
        self.nameless: LastgoodError | None = None

    def observe(self) -> ContainerFacts:
        facts = super().observe()
        assert isinstance(facts, ContainerFacts)  # noqa: S101 # the world shows a role its own facts
        return facts

    def prepare(self, name: str, recorded_at: datetime) -> Release:
        self._answer()
        made = self._release(name, content=self._stack.on_disk or name, recorded_at=recorded_at)
        held = self._stack.containers.held | {s.artifact for s in made.services}
        self._stack.containers = replace(self._stack.containers, held=held)
        self.named = name
        return made

    def preflight(self) -> tuple[str, ...]:
        return self._stack.unusable

    def awaited(self) -> tuple[tuple[str, str], ...]:
        return self._stack.awaited

    def left_alone(self) -> tuple[tuple[str, str], ...]:
        return self._stack.left_alone

    def describe_running(self, name: str, recorded_at: datetime) -> Release:
        if not self.observe().serving:
            raise Refused("nothing serves, so there is nothing to record", hint="lastgood deploy --first")
        return self._release(name, content=self._stack.serving, recorded_at=recorded_at)

    def missing(self, release: Release) -> tuple[Missing, ...]:
        held = self.observe().held
        gone = [
            Missing(what=f"{s.name} is gone", fix=f"docker pull {s.name}", lost=True)
            for s in release.services
            if s.artifact not in held
        ]
        unheld = [Missing(what=f"{release.id} lost its tags", fix="docker tag")] if release.id in self.unheld else []
        return (*gone, *unheld)

    def hold(self, release: Release) -> None:
        self._answer()
        self.unheld.discard(release.id)

    def name_again(self, release: Release) -> tuple[str, ...]:
        self._answer()
        if self.nameless:
            raise self.nameless
        moved, self.named = self.named not in ("", release.id), release.id
        return (f"the names are of {release.id} again",) if moved else ()

    def kept(self) -> frozenset[str]:
        self._answer()
        return frozenset(self.kept_names)

    def let_go(self, release: Release) -> None:
        self._answer()
        if release.id in self.in_use:
            raise Refused(f"{release.id} is in use", hint="docker ps --all")
        self.kept_names.discard(release.id)
        serving = {i.artifact for i in self._stack.containers.serving}
        gone = {s.artifact for s in release.services} - serving
        self._stack.containers = replace(self._stack.containers, held=self._stack.containers.held - gone)

    def _release(self, name: str, *, content: str, recorded_at: datetime) -> Release:
        self.kept_names.add(name)
        return Release(
            id=name,
            recorded_at=recorded_at,
            engine="memory",
            commit=self.commits.get(name, commit_of(content)),
            unresolved=self.unresolved,
            services=tuple(
                ServiceRecord(name=s, artifact=artifact_of(s, content), held_as=f"held/{s}:{content}") for s in SERVICES
            ),
        )

    def fetch(self, release: Release) -> None:
        self._answer()
        artifacts = frozenset(service.artifact for service in release.services)
        shown = self._stack.containers
        here = shown.held | {instance.artifact for instance in shown.serving}
        if gone := artifacts - here - self._stack.registry:
            raise Refused(f"{', '.join(sorted(gone))} is not on this host", hint="lastgood doctor")
        self._stack.containers = replace(shown, held=shown.held | (artifacts - here))

    def rung(self, release: str = "") -> str:  # noqa: ARG002 # every release starts the same way here
        return "L2 start-first: in memory there is no standby"

    def evidence(self, into: Path) -> tuple[str, ...]:
        if self.lost:
            raise self.lost
        self.saved = [f"{i.service}.log" for i in self.observe().serving]
        for name in self.saved:
            (into / name).write_text("in memory\n", encoding="utf-8")
        return tuple(self.saved)

    def logs(self, since: datetime) -> tuple[ServiceLog, ...]:  # noqa: ARG002 # a stack in memory keeps no older ones
        self._answer()
        return tuple(
            ServiceLog(service=service, release=self._stack.serving, lines=lines)
            for service, lines in self._stack.logged.items()
        )

    def checks(self, release: Release, *, found: Collection[tuple[str, int]] = ()) -> tuple[Check, ...]:
        facts = self.observe()
        services = (
            Check(
                name=f"container {service.name}",
                passed=len(own := facts.of(service.name)) >= facts.at_least(release.id, service.name, found=found)
                and all(i.serves and i.artifact == service.artifact for i in own),
                detail=", ".join(i.artifact for i in facts.of(service.name)) or "does not run",
            )
            for service in release.services
        )
        return (*services, nobody_else(release, facts))


class MemoryDatabase(Hand):
    """core.ports.Database on a Stack."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack, Role.DATABASE)
        self._stack = stack

    def observe(self) -> DatabaseFacts:
        facts = super().observe()
        assert isinstance(facts, DatabaseFacts)  # noqa: S101 # the world shows a role its own facts
        return facts

    def preflight(self) -> tuple[str, ...]:
        self._answer()
        return self._stack.obstacles

    def ships(self, release: str) -> Shipped:
        content = self._stack.on_disk or release
        behaves = self._stack.behaves.get(content, WELL)
        new = behaves.migrations if behaves.goes_down else ()
        return Shipped(
            migrations=("m1", *behaves.migrations),
            statements=("SELECT 1",),
            downs=tuple(Down(migrations=(name,), sql=f"down {name}") for name in new),
        )

    def foresee(self, release: Release, migrations: Sequence[str], *, last_good: Release | None) -> Outlook:  # noqa: ARG002 # it is as `inspect` finds it later
        self._answer()
        return Outlook(
            old_release=self._stack.fits,
            last_good=last_good.id if last_good else "",
            doors=tuple(f"column {place} is dropped" for place in self._stack.aside),
            changes=(SchemaChange(object=f"{TABLE}.title", change="renamed to name"),),
        )

    def restore_point(self, restore_point: str) -> RestorePoint:
        if restore_point not in self._stack.points:
            raise Refused(f"restore point {restore_point} is not there", hint="lastgood restore-points list")
        return self._stack.points[restore_point]

    def prove(self, restore_point: RestorePoint, *, deadline_s: float) -> None:  # noqa: ARG002 # nothing takes long here
        self._check(restore_point)

    def register(
        self,
        dump: Path,
        *,
        name: str | None,
        taken_at: datetime | None,  # noqa: ARG002 # the stack knows
        expected: Mapping[str, str],
        known: Collection[RestorePoint],
        deadline_s: float,  # noqa: ARG002 # nothing takes long here
    ) -> RestorePoint:
        self._answer()
        if dump.name not in self._stack.own_dumps:
            raise Refused(f"{dump}: no such file: expected a dump", hint="lastgood restore-points add --help")
        moment, migrations = self._stack.own_dumps[dump.name]
        if (same := next((p for p in known if p.own and p.taken_at == moment), None)) is not None:
            return same
        if expected and fingerprint_of(migrations) not in expected.values():
            raise Refused(
                f"{dump}: its schema is not the one that {' or '.join(expected)} left", hint="lastgood releases"
            )
        return self._stack.keep_own(dump.name, name)

    def backups(self) -> BackupFacts | None:
        self._answer()
        return self._stack.backups

    def recover(
        self,
        to: LogPoint,
        *,
        expected: Mapping[str, str],
        known: Collection[RestorePoint],
        deadline_s: float,
        progress: Callable[[str], None],
    ) -> RestorePoint:
        """What is brought back is what the restore point of that place holds."""
        if self._stack.backups is None:
            raise Refused("pgBackRest is not configured", hint="database.pgbackrest in lastgood.yaml")
        progress("restoring a backup")
        point = self.register(
            Path(to.name), name=f"at-{to.name}", taken_at=to.at, expected=expected, known=known, deadline_s=deadline_s
        )
        self._stack.points[point.id] = replace(point, log=to)
        return self._stack.points[point.id]

    def _check(self, restore_point: RestorePoint) -> None:
        if other := other_manifest(restore_point.id, restore_point.manifest, self.observe()):
            raise Refused(other, hint="lastgood restore-points list")

    def inspect(
        self,
        *,
        since: RestorePoint,
        target: Release,
        downs: Sequence[Down] = (),
        logs: Sequence[ServiceLog] = (),
    ) -> DatabaseEvidence:
        self._check(since)
        facts, broken = self.observe(), self._stack.broken
        changed = facts.fingerprint != since.fingerprint
        new = {key: by for key, by in broken.items() if key not in self._stack.broken_at.get(since.id, {})}
        found = BrokenInvariant(
            invariant=INVARIANT,
            by_migration=0 if since.own else sum(new.values()),
            by_others=0 if since.own else len(new) - sum(new.values()),
            by_somebody=len(new) if since.own else 0,
            keys=tuple(sorted(new))[:20],
        )
        same = FitsSchema(fit=Fit.YES, tried=len(target.statements), reason="the schema did not change")
        return DatabaseEvidence(
            database=DATABASE,
            changes=(SchemaChange(object=f"{TABLE}.title", change="renamed to name"),) if changed else (),
            errors=tuple(
                SqlError(sqlstate="42703", names=("title",), message=line, count=1, said_by=log.service)
                for log in logs
                for line in log.lines
            ),
            broken=(found,) if new else (),
            old_release=self._stack.fits if changed else same,
            writes=None if since.own else WritesSince(tables=tuple(self._stack.written.most_common()), rate_per_s=2.0),
            size_bytes=facts.size_bytes,
            way_down=self._way_down(target, tuple(downs)) if changed and self._stack.fits.fit is Fit.NO else None,
        )

    def _way_down(self, target: Release, downs: tuple[Down, ...]) -> WayDown | None:
        new = tuple(name for name in self.observe().migrations if name not in target.migrations)
        if not downs:
            return None
        if failed := self._stack.failed_downs.get(downs):
            return WayDown(downs=(), reason=f"they were tried before: {failed}")
        if missing := set(new) - {name for down in downs for name in down.migrations}:
            return WayDown(downs=(), reason=f"{', '.join(sorted(missing))} ships no way down")
        return WayDown(downs=downs, reason="tried", migrations=new, aside=tuple(self._stack.aside.items()))

    def lossy_because(self, *, copied: bool = False) -> tuple[str, ...]:  # noqa: ARG002 # what it has does not depend on it
        self._answer()
        return self._stack.lossy_because

    def not_copied_because(self) -> tuple[str, ...]:
        self._answer()
        return self._stack.uncopied

    def try_replay(self, of: CatchUp | ReplayWrites | SwapDatabase) -> DryRun:
        self._answer()
        if isinstance(of, CatchUp) and of.restore_point not in self._stack.database.captures:
            raise Refused(f"what was written since {of.restore_point} is not captured", hint="lastgood doctor")
        return self._stack.dry_run

    def progress(self) -> Progress | RowProgress | None:
        return self._stack.progress

    def replayed(self, replay: str) -> Replayed:
        self._answer()
        if replay not in self._stack.replayed:
            raise Refused(f"replay {replay} is not there", hint="lastgood explain")
        return self._stack.replayed[replay]

    def rehearsed(self, rehearsal: str) -> Rehearsed:
        self._answer()
        if rehearsal not in self._stack.database.rehearsals:
            raise Refused(f"rehearsal {rehearsal} is not there", hint="lastgood plan")
        return Rehearsed(took_s=0.4, rows=self._stack.written.total())

    def set_aside(self, aside: str) -> tuple[Loss, ...]:
        self._answer()
        held = self._stack.aside.items()
        return tuple(Loss(table=place, rows=n, file=f"aside/{aside}/{TABLE}.jsonl") for place, n in held)

    def quarantine(self) -> tuple[QuarantineEntry, ...]:
        return tuple(self._stack.quarantine)

    def requeue(
        self,
        entry: QuarantineEntry,
        *,
        replay: ReplayWrites,  # noqa: ARG002 # nothing is renamed here
        about_to_commit: Callable[[int], None],
    ) -> tuple[str, ...]:
        self._answer()
        if set(entry.tables) & self._stack.unfit.keys():
            raise Refused(f"change 1 ({entry.tables[0]}): it does not fit")
        xid = len(self._stack.committed) + 1
        about_to_commit(xid)
        self._stack.committed[xid] = entry.name
        if self._stack.loses_answers:
            raise OutcomeUnknown("database: the connection was lost")
        return ()

    def repairs(self, *, since: RestorePoint) -> RepairPlan:
        self._answer()
        self._check(since)
        new = sorted(self._stack.broken.keys() - self._stack.broken_at.get(since.id, {}).keys())
        change = ColumnRepair(column="credits", now="0", becomes="100")
        rows = tuple(
            RowRepair(
                schema="public",
                table=TABLE,
                key=(("id", key),),
                breaks=((INVARIANT, key),),
                columns=(change,),
                sources=(since.id,),
            )
            for key in new
        )
        return RepairPlan(since=since.id, taken_at=since.taken_at, rows=rows, left=())

    def repair(self, rows: Sequence[RowRepair], *, about_to_commit: Callable[[int], None]) -> None:
        self._answer()
        if gone := [row.name for row in rows if row.key[0][1] not in self._stack.broken]:
            raise Refused(f"{gone[0]} is not as it was shown: it was changed since", hint="lastgood repair")
        xid = len(self._stack.committed) + 1
        about_to_commit(xid)
        for row in rows:
            del self._stack.broken[row.key[0][1]]
        self._stack.committed[xid] = ", ".join(row.name for row in rows)
        if self._stack.loses_answers:
            raise OutcomeUnknown("database: the connection was lost")

    def kept(self) -> tuple[KeptDatabase, ...]:
        facts = self.observe()
        beside = sorted(name for name in facts.databases if "_bad_" in name or "_aside_" in name)
        since = self._stack.clock.now()
        return tuple(
            KeptDatabase(name=name, since=since, size_bytes=facts.size_bytes) for name in beside if facts.exists
        )

    def release(self, name: str, *, deadline_s: float) -> None:  # noqa: ARG002 # the port's
        if name not in {one.name for one in self.kept()}:
            raise Refused(f"{name} is not kept", hint="lastgood kept list")
        database = self._stack.database
        self._stack.database = replace(database, databases=database.databases - {name})

    def is_committed(self, xid: int) -> bool | None:
        self._answer()
        return xid in self._stack.committed

    def checks(self, fingerprint: str) -> tuple[Check, ...]:
        facts = self.observe()
        answers = Check(name="database answers", passed=facts.exists)
        same = Check(name="database schema", passed=facts.fingerprint == fingerprint, detail=facts.fingerprint)
        return (answers, same) if fingerprint else (answers,)

    def cautions(self) -> tuple[str, ...]:
        self._answer()
        return self._stack.cautions

    def room(self) -> tuple[tuple[str, int], ...]:
        self._answer()
        return (("the server's volume", 1 << 40),)

    def thrown_out_because(self) -> tuple[str, ...]:
        return ()

    def clients(self, replaced: str) -> Check:
        back = replaced in self._stack.database.databases and not self._stack.never_back
        return Check(name="database clients", passed=back)


class MemoryFrontend(Hand):
    """core.ports.Frontend on a Stack. lets_go: while it is not set, no look comes back."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack, Role.FRONTEND)
        self._stack = stack
        self.lets_go = threading.Event()
        self.lets_go.set()

    def observe(self) -> FrontendFacts:
        self.lets_go.wait()
        facts = super().observe()
        assert isinstance(facts, FrontendFacts)  # noqa: S101 # the world shows a role its own facts
        return facts

    def checks(self, deployment: str) -> tuple[Check, ...]:
        facts = self.observe()
        return tuple(Check(name=f"domain {d}", passed=shown == deployment, detail=shown) for d, shown in facts.domains)

    def resume_auto_assign(self) -> None:
        self._answer()
        self._stack.frontend = replace(self._stack.frontend, auto_assign=True)


class MemorySource:
    """core.ports.SignalSource: one eye on a Stack, which sees what its function says."""

    def __init__(self, name: str, stack: Stack, see: Callable[[Stack, Window], Reading]) -> None:
        self._name, self._stack, self._see = name, stack, see

    @property
    def name(self) -> str:
        return self._name

    def read(self, window: Window) -> Reading:
        return self._stack.blind.get(self._name) or self._see(self._stack, window)


def see_traffic(stack: Stack, window: Window) -> Reading:
    """Count the requests of the window, which write their rows."""
    if not window.length_s:
        return NoData(reason="the first look")
    requests, behaviour = round(stack.rate_per_s * window.length_s), stack.behaviour
    stack.written[TABLE] += requests // 10
    if behaviour.breaks_rows:
        stack.broken[f"row-{len(stack.broken)}"] = False
    return Traffic(requests=requests, errors=round(requests * behaviour.errors), slow=round(requests * behaviour.slow))


def see_feature(stack: Stack, _window: Window) -> Reading:
    """Ask the feature once."""
    failed = not stack.behaviour.answers
    return Probed(asked=1, failed=int(failed), detail="no answer within 4 s" if failed else "")


def see_data(stack: Stack, _window: Window) -> Reading:
    """Read the invariant."""
    found = frozenset(Violation(invariant=INVARIANT, key=key) for key in stack.broken)
    return Violations(found=found, total=len(found))


def see_instances(stack: Stack, _window: Window) -> Reading:
    """Look at what serves."""
    return Instances(
        instances=tuple(
            InstanceState(
                service=i.service,
                running=i.running,
                unhealthy=i.health is Health.UNHEALTHY,
                restarts=i.restarts,
                oom_killed=i.oom_killed,
            )
            for i in stack.containers.serving
        )
    )


class MemoryChecker:
    """core.ports.Checker: the health address and the team's smoke tests of a Stack. broken: fails each, and why."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.broken = ""

    def run(self, names: Collection[str]) -> tuple[Check, ...]:
        serving, well = self._stack.serving, not self.broken
        smoke = well and bool(serving) and self._stack.behaviour.passes_smoke
        return (
            Check(name="health", passed=well and serving in names, detail=self.broken or serving or "nothing answers"),
            *(
                Check(name=name, passed=smoke, detail="" if smoke else self.broken or f"failed on {serving}")
                for name in ("login", "create mission", "chat with agent")
            ),
        )

    def named(self) -> tuple[str, ...]:
        return (self._stack.serving,) if self._stack.serving and not self.broken else ()


class MemoryNotifier:
    """core.ports.Notifier: a channel in memory. messages: (event, text) as it took them in. errors: of the next
    messages, oldest first. takes_s: how long a message takes."""

    def __init__(self, clock: SteppedClock, channel: str = "#dev-ops") -> None:
        self._clock, self._channel = clock, channel
        self.messages: list[tuple[str, str]] = []
        self.errors: list[LastgoodError] = []
        self.takes_s = 0.0

    @property
    def channel(self) -> str:
        return self._channel

    @property
    def texts(self) -> Sequence[str]:
        """What its readers read."""
        return [text for _, text in self.messages]

    def send(self, text: str, *, event_id: str) -> None:
        if self.takes_s:
            self._clock.sleep(self.takes_s)
        if self.errors:
            raise self.errors.pop(0)
        shown = "".join(c if c.isprintable() or c == "\n" else "�" for c in text[:LONGEST_TEXT])
        self.messages.append((event_id, shown))
