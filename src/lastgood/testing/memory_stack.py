"""A small stack in memory on which whole runbooks run: containers, database, frontend, signals, checks, a channel.

They act on one `World` and hold nothing of their own but what a test makes them say. What is wrong with one is an
attribute that a test sets; time passes only by the `SteppedClock`. An artifact is `service-content`, and what a source
shows follows from the content that serves: a release is bad because it serves, not because a test says "now".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from lastgood.core.errors import LastgoodError, OutcomeUnknown, Refused
from lastgood.core.facts import ContainerFacts, DatabaseFacts, FrontendFacts
from lastgood.core.migration import BrokenInvariant, DatabaseEvidence, Fit, FitsSchema, SchemaChange, WritesSince
from lastgood.core.plan import Role, Step
from lastgood.core.reading import Reading, Window
from lastgood.core.release import Release, RestorePoint, ServiceRecord, Shipped
from lastgood.core.report import Check, Loss
from lastgood.testing.world import SteppedClock, World

FITS = FitsSchema(fit=Fit.YES, tried=3, reason="all statements ran")
DOES_NOT_FIT = FitsSchema(fit=Fit.NO, tried=3, reason="42703 column title")
NOBODY_KNOWS = FitsSchema(fit=Fit.UNKNOWN, tried=0, reason="no statements are kept")


@dataclass(slots=True, kw_only=True)
class Trouble:
    """What is wrong with a hand. away: it cannot be looked at. failing: what applying a step says instead of doing it,
    one an attempt, by the step's name. lost: steps that are done and whose answer is lost."""

    away: LastgoodError | None = None
    failing: dict[str, list[LastgoodError]] = field(default_factory=dict[str, list[LastgoodError]])
    lost: set[str] = field(default_factory=set[str])

    def look(self) -> None:
        """Raise when it is away."""
        if self.away:
            raise self.away

    def act(self, world: World, step: Step) -> None:
        """Do the step, or what is wrong with it."""
        if self.failing.get(step.name):
            raise self.failing[step.name].pop(0)
        world.apply(step)
        if step.name in self.lost:
            raise OutcomeUnknown(f"{step.name}: the answer was lost")


def content_that_serves(world: World) -> str:
    """Return what the first serving instance was made from; empty when nothing serves."""
    return next((i.artifact.partition("-")[2] for i in world.containers.serving), "")


class MemoryContainers:
    """Services whose artifacts are named after their content.

    content: of a release, where it is not its own name. commits: of a release. no_logs: evidence cannot be had.
    """

    role = Role.CONTAINERS

    def __init__(self, world: World, services: Collection[str]) -> None:
        self.world, self.services, self.trouble = world, tuple(services), Trouble()
        self.content: dict[str, str] = {}
        self.commits: dict[str, str] = {}
        self.no_logs: LastgoodError | None = None

    def observe(self) -> ContainerFacts:
        self.trouble.look()
        return self.world.containers

    def apply(self, step: Step) -> None:
        self.trouble.act(self.world, step)

    def prepare(self, name: str, recorded_at: datetime) -> Release:
        return self._described(name, self.content.get(name, name), recorded_at)

    def describe_running(self, name: str, recorded_at: datetime) -> Release:
        return self._described(name, content_that_serves(self.world), recorded_at)

    def _described(self, name: str, content: str, recorded_at: datetime) -> Release:
        artifacts = {service: f"{service}-{content}" for service in self.services}
        facts = self.world.containers
        self.world.containers = replace(facts, held=facts.held | set(artifacts.values()))
        return Release(
            id=name,
            recorded_at=recorded_at,
            engine="memory",
            services=tuple(
                ServiceRecord(name=service, artifact=artifact, held_as=f"held/{artifact}")
                for service, artifact in artifacts.items()
            ),
            commit=self.commits.get(name),
        )

    def rung(self) -> str:
        return "L2 start-first"

    def evidence(self, into: Path) -> tuple[str, ...]:
        if self.no_logs:
            raise self.no_logs
        (into / "logs.txt").write_text("the last lines\n")
        return ("logs.txt",)

    def checks(self, release: Release) -> tuple[Check, ...]:
        self.trouble.look()
        running = {i.service: i.artifact for i in self.world.containers.serving if i.serves}
        return tuple(
            Check(name=f"{s.name} runs {release.id}", passed=running.get(s.name) == s.artifact)
            for s in release.services
        )


class MemoryDatabase:
    """One database that knows two schemas: `f1`, and `f2` after a migration.

    brings: a release's migrations. fit: how the last good release does on f2. broken: invariants that broke. leaves:
    what an export holds. uncounted: why it cannot be read. missing: what keeps a restore point from being taken.
    """

    role = Role.DATABASE

    def __init__(self, world: World, clock: SteppedClock) -> None:
        self.world, self.trouble = world, Trouble()
        self.brings: dict[str, tuple[str, ...]] = {}
        self.fit = FITS
        self.broken: tuple[BrokenInvariant, ...] = ()
        self.leaves: tuple[Loss, ...] = ()
        self.uncounted: LastgoodError | None = None
        self.missing: tuple[str, ...] = ()
        self._clock = clock

    def observe(self) -> DatabaseFacts:
        self.trouble.look()
        return self.world.database

    def apply(self, step: Step) -> None:
        self.trouble.act(self.world, step)

    def preflight(self) -> tuple[str, ...]:
        return self.missing

    def ships(self, release: str) -> Shipped:
        return Shipped(migrations=self.brings.get(release, ()))

    def restore_point(self, restore_point: str) -> RestorePoint:
        if restore_point not in self.world.database.restore_points:
            raise Refused(f"there is no restore point {restore_point}")
        return RestorePoint(
            id=restore_point,
            database=self.world.database.database,
            taken_at=self._clock.now(),
            path=f"{restore_point}/dump",
            sha256="00",
            size_bytes=1000,
            fingerprint="f1",
            snapshot="1:1:",
            clone=f"clone_{restore_point}",
            proved_at=self._clock.now(),
        )

    def inspect(self, *, since: RestorePoint, target: Release) -> DatabaseEvidence:
        del target  # one release is tried here like the other: `fit` says how it does
        self.trouble.look()
        changed = self.world.database.fingerprint != since.fingerprint
        return DatabaseEvidence(
            database=self.world.database.database,
            changes=(SchemaChange(object="missions.title", change="renamed to name"),) if changed else (),
            errors=(),
            broken=self.broken,
            old_release=self.fit if changed else FITS,
            writes=WritesSince(tables=(("missions", 12),), rate_per_s=2.0),
        )

    def losses(self, export: str) -> tuple[Loss, ...]:
        if self.uncounted:
            raise self.uncounted
        if export not in self.world.database.exports:
            raise Refused(f"there is no export {export}")
        return self.leaves

    def checks(self, fingerprint: str) -> tuple[Check, ...]:
        self.trouble.look()
        facts = self.world.database
        return (Check(name="schema", passed=facts.exists and fingerprint in ("", facts.fingerprint)),)


class MemoryFrontend:
    """A frontend host with one project."""

    role = Role.FRONTEND

    def __init__(self, world: World) -> None:
        self.world, self.trouble = world, Trouble()

    def observe(self) -> FrontendFacts:
        self.trouble.look()
        return self.world.frontend

    def apply(self, step: Step) -> None:
        self.trouble.act(self.world, step)

    def checks(self, deployment: str) -> tuple[Check, ...]:
        self.trouble.look()
        return (Check(name=f"domain shows {deployment}", passed=self.world.frontend.production == deployment),)

    def resume_auto_assign(self) -> None:
        self.trouble.look()
        self.world.frontend = replace(self.world.frontend, auto_assign=True)


class MemorySource:
    """A signal source that shows what belongs to the content that serves, else `well`. instead: whatever serves."""

    def __init__(self, name: str, world: World, well: Reading, sick: Mapping[str, Reading] | None = None) -> None:
        self.name, self.well = name, well
        self.sick = dict(sick or {})
        self.instead: Reading | None = None
        self._world = world

    def read(self, window: Window) -> Reading:
        del window  # each interval is like the other
        return self.instead or self.sick.get(content_that_serves(self._world), self.well)


class MemoryChecker:
    """A health address that names the content that serves. failing: it does not pass, whatever serves."""

    def __init__(self, world: World) -> None:
        self.failing = False
        self._world = world

    def run(self, names: Collection[str]) -> tuple[Check, ...]:
        said = content_that_serves(self._world)
        return (Check(name="health", passed=not self.failing and said in names, detail=f"says {said}"),)

    def named(self) -> tuple[str, ...]:
        return (content_that_serves(self._world),)


class MemoryNotifier:
    """A channel. said: what arrived, oldest first. away: nothing arrives, and it says why."""

    channel = "memory #dev-ops"

    def __init__(self) -> None:
        self.said: list[str] = []
        self.away: LastgoodError | None = None

    def send(self, text: str, *, event_id: str) -> None:
        del event_id  # that an event is sent once is the runbook's business here
        if self.away:
            raise self.away
        self.said.append(text)
