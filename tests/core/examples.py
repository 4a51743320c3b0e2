"""Plans and releases that several tests speak of: three services, one database, one frontend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from lastgood.core.deploying import make_deploy_plan
from lastgood.core.facts import ContainerFacts, DatabaseFacts, Health, InstanceFacts
from lastgood.core.migration import (
    BrokenInvariant,
    DatabaseEvidence,
    Fit,
    FitsSchema,
    SchemaChange,
    WayDown,
    WritesSince,
)
from lastgood.core.plan import Plan
from lastgood.core.release import Down, DumpFormat, Release, RestorePoint, ServiceRecord
from lastgood.core.returning import Deadlines, World, make_plan, make_stand_down_plan, make_swap_back_plan
from lastgood.testing import world as simulated
from lastgood.testing.world import START

SERVICES = ("core", "orchestrator", "agent")
SWITCHED = frozenset({"core", "orchestrator"})
DEADLINES = Deadlines(boot_s=10, frontend_s=10, database_s=60, fence_s=10)


def release(name: str, *, migrations: tuple[str, ...] = ()) -> Release:
    """A release whose artifacts are named after it."""
    services = tuple(ServiceRecord(name=s, artifact=f"{s}-{name}", held_as=f"held/{s}:{name}") for s in SERVICES)
    return Release(id=name, recorded_at=START, engine="process", services=services, migrations=migrations)


def without(made: Release, *services: str) -> Release:
    """The same release that never had these services."""
    return replace(made, services=tuple(s for s in made.services if s.name not in services))


def serving(name: str) -> dict[str, str]:
    """Service to artifact, as a world that serves a release wholly."""
    return {s: f"{s}-{name}" for s in SERVICES}


HELD = frozenset(a for name in ("old", "bad") for a in serving(name).values())

RESTORE_POINT = RestorePoint(
    id="rp-d2",
    database="app",
    taken_at=START,
    path="rp-d2/dump",
    sha256="00",
    size_bytes=1000,
    fingerprint="f1",
    snapshot="1:1:",
    clone="clone_rp-d2",
    proved_at=START,
    manifest="m1",
)

OWN_DUMP = replace(
    RESTORE_POINT,
    id="own-backup",
    path="own-backup.sql",
    snapshot="",
    clone="clone_own-backup",
    manifest="m9",
    own=DumpFormat.PLAIN,
)

EVIDENCE = DatabaseEvidence(
    database="app",
    changes=(SchemaChange(object="missions.title", change="renamed to name"),),
    errors=(),
    broken=(BrokenInvariant(invariant="credits", by_migration=7, by_others=0, keys=("1",)),),
    old_release=FitsSchema(fit=Fit.NO, tried=3, reason="42703 column title"),
    writes=WritesSince(tables=(("missions", 12),), rate_per_s=2.0),
)
FITS = replace(EVIDENCE, old_release=FitsSchema(fit=Fit.YES, tried=3, reason="all statements ran"))
DOWN = Down(migrations=("m2",), sql="ALTER TABLE missions RENAME COLUMN name TO title")
GOES_DOWN = replace(
    EVIDENCE,
    broken=(),
    way_down=WayDown(downs=(DOWN,), reason="m2: tried", migrations=("m2",), aside=(("missions.mood", 7), ("moods", 0))),
)
UNCHANGED = replace(EVIDENCE, changes=(), broken=(), old_release=FitsSchema(fit=Fit.YES, tried=0, reason="same schema"))


def facts(name: str) -> ContainerFacts:
    """A world that serves a release wholly, everything held."""
    return ContainerFacts(
        observed_at=START,
        serving=tuple(
            InstanceFacts(service=s, instance=s, artifact=a, running=True, health=Health.HEALTHY)
            for s, a in serving(name).items()
        ),
        held=HELD,
    )


def behind_an_edge(containers: ContainerFacts, release: str) -> ContainerFacts:
    """The same world with an edge before two of its services, whose instances are bound to a release and whose requests
    can wait."""
    serving = tuple(replace(i, release=release) if i.service in SWITCHED else i for i in containers.serving)
    return replace(containers, serving=serving, switchable=SWITCHED, can_hold=True)


def database_facts(*, captured: bool = False) -> DatabaseFacts:
    """The live database with the bad release's schema."""
    return DatabaseFacts(
        observed_at=START,
        database="app",
        exists=True,
        fingerprint="f2",
        size_bytes=1000,
        databases=frozenset({"app", RESTORE_POINT.clone}),
        manifests=((RESTORE_POINT.id, RESTORE_POINT.manifest),),
        captures=frozenset({RESTORE_POINT.id}) if captured else frozenset(),
    )


def world(
    evidence: DatabaseEvidence | None, *, frontend: bool = True, edge: bool = False, captured: bool = False
) -> World:
    """What a rollback from `bad` is planned from."""
    simulation = simulated.World(serving=serving("bad"), held=HELD)
    return World(
        containers=behind_an_edge(facts("bad"), "bad") if edge else facts("bad"),
        rung="L2",
        database=database_facts(captured=captured) if evidence else None,
        evidence=evidence,
        restore_point=RESTORE_POINT if evidence else None,
        frontend=simulation.frontend if frontend else None,
        frontend_target="dpl_old" if frontend else "",
    )


def restored_plan() -> Plan:
    """The way back from `bad` to `old` where an earlier one filled the clone in part, and the capture is over."""
    there = replace(
        database_facts(), restore_points=frozenset({RESTORE_POINT.id}), filled=frozenset({RESTORE_POINT.id})
    )
    return make_plan(
        release("old"),
        replace(world(EVIDENCE), database=there),
        plan_id="r1",
        now=START,
        serving="bad",
        deadlines=DEADLINES,
    )


def rollback_plan(
    evidence: DatabaseEvidence | None,
    *,
    frontend: bool = True,
    edge: bool = False,
    captured: bool = False,
    plan_id: str = "r1",
) -> Plan:
    """The way back from `bad` to `old`."""
    return make_plan(
        release("old"),
        world(evidence, frontend=frontend, edge=edge, captured=captured),
        plan_id=plan_id,
        now=START,
        serving="bad",
        deadlines=DEADLINES,
    )


def less_plan(service: str, *, edge: bool = False) -> Plan:
    """The way back from `bad` to `old`, which did not have one of its services."""
    return make_plan(
        without(release("old"), service),
        world(None, frontend=False, edge=edge),
        plan_id="r1",
        now=START,
        serving="bad",
        deadlines=DEADLINES,
    )


def deploy_plan(*, edge: bool = False) -> Plan:
    """The way from `old` to `bad`, with a migration."""
    return make_deploy_plan(
        release("bad", migrations=("m1", "m2")),
        plan_id="r1",
        now=START,
        serving="old",
        containers=behind_an_edge(facts("old"), "old") if edge else facts("old"),
        database=replace(database_facts(), fingerprint="f1", migrations=("m1",)),
        restore_point="rp-d2",
        rung="L2",
        boot_s=10,
        restore_s=60,
        migrate_s=60,
    )


def own_dump_plan() -> Plan:
    """The way back from `bad` to `old` where there is nothing but an operator's own dump."""
    there = replace(
        database_facts(),
        databases=frozenset({"app", OWN_DUMP.clone}),
        manifests=((OWN_DUMP.id, OWN_DUMP.manifest),),
    )
    evidence = replace(EVIDENCE, broken=(), writes=None)
    return make_plan(
        release("old"),
        replace(world(evidence), database=there, restore_point=None, own_dump=OWN_DUMP, fingerprint="f1"),
        plan_id="r1",
        now=START,
        serving="bad",
        deadlines=DEADLINES,
    )


def swap_back_plan() -> Plan:
    """What the swap of `rollback_plan` replaced gets its name again."""
    return make_swap_back_plan(
        rollback_plan(EVIDENCE, plan_id="r0"),
        world(EVIDENCE, edge=True),
        at=START,
        name="app",
        serving="old",
        plan_id="r1",
        now=START,
        deadlines=DEADLINES,
    )


SHAPES: Mapping[str, Callable[[], Plan]] = {
    "deploy": deploy_plan,
    "deploy-behind-an-edge": lambda: deploy_plan(edge=True),
    "containers": lambda: rollback_plan(None, frontend=False),
    "containers-behind-an-edge": lambda: rollback_plan(None, edge=True),
    "a-service-less": lambda: less_plan("agent"),
    "a-service-less-behind-an-edge": lambda: less_plan("orchestrator", edge=True),
    "containers-frontend": lambda: rollback_plan(UNCHANGED),
    "database-first": lambda: rollback_plan(EVIDENCE),
    "database-first-captured": lambda: rollback_plan(EVIDENCE, captured=True),
    "database-first-behind-an-edge": lambda: rollback_plan(EVIDENCE, edge=True, captured=True),
    "database-first-own-dump": own_dump_plan,
    "database-first-clone-restored": restored_plan,
    "migrations-down": lambda: rollback_plan(GOES_DOWN),
    "migrations-down-behind-an-edge": lambda: rollback_plan(GOES_DOWN, edge=True),
    "watch-over": lambda: make_stand_down_plan(
        "old", plan_id="r1", now=START, deadlines=DEADLINES, rung="L2", standby=0, captures=True
    ),
    "swap-back": swap_back_plan,
    "database-after": lambda: rollback_plan(FITS),
    "database-after-behind-an-edge": lambda: rollback_plan(FITS, edge=True),
}
"""Every shape of plan that the core makes."""
