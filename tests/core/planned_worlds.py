"""Any world that a rollback may be planned from: every combination of what the targets may show."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from lastgood.core.errors import Refused
from lastgood.core.facts import ContainerFacts, DatabaseFacts, FrontendFacts, Health, InstanceFacts
from lastgood.core.migration import BrokenInvariant, DatabaseEvidence, Fit, FitsSchema, SchemaChange, SqlError, WayDown
from lastgood.core.plan import Plan, Role
from lastgood.core.release import RestorePoint
from lastgood.core.returning import World, make_plan
from lastgood.testing.world import START
from tests.core.examples import DEADLINES, GOES_DOWN, OWN_DUMP, RESTORE_POINT, SERVICES, release

OLD = release("old")
CHANGES = (SchemaChange(object="missions.title", change="is gone (text)"),)
ONLY = st.frozensets(st.sampled_from(Role), min_size=1)

instances = st.builds(
    InstanceFacts,
    service=st.sampled_from((*SERVICES, "billing", "postgres")),
    instance=st.integers(1, 99).map(str),
    artifact=st.sampled_from([*(s.artifact for s in OLD.services), "core-bad", "billing-bad"]),
    running=st.booleans(),
    health=st.sampled_from(Health),
)
containers = st.builds(
    ContainerFacts,
    observed_at=st.just(START),
    serving=st.lists(instances, max_size=4).map(tuple),
    candidates=st.lists(instances, max_size=2).map(tuple),
    stateful=st.lists(instances, max_size=1).map(tuple),
    can_hold=st.booleans(),
)
databases = st.builds(
    DatabaseFacts,
    observed_at=st.just(START),
    database=st.just("app"),
    exists=st.just(value=True),
    fingerprint=st.sampled_from(["", "f1", "f2"]),
    size_bytes=st.just(1000),
    databases=st.sampled_from([frozenset({"app"}), frozenset({"app", RESTORE_POINT.clone})]),
    captures=st.sampled_from([frozenset(), frozenset({RESTORE_POINT.id})]),
    restore_points=st.sampled_from([frozenset(), frozenset({RESTORE_POINT.id})]),
    filled=st.sampled_from([frozenset(), frozenset({RESTORE_POINT.id})]),
    pools=st.booleans(),
)
evidence = st.builds(
    DatabaseEvidence,
    database=st.just("app"),
    changes=st.sampled_from([(), CHANGES]),
    errors=st.sampled_from([(), (SqlError(sqlstate="42703", names=("title",), message="no such column", count=3),)]),
    broken=st.lists(
        st.builds(
            BrokenInvariant,
            invariant=st.sampled_from(["credits", "owner"]),
            by_migration=st.integers(0, 1),
            by_others=st.integers(0, 1),
            keys=st.just(("7",)),
        ),
        max_size=2,
    ).map(tuple),
    old_release=st.builds(FitsSchema, fit=st.sampled_from(Fit), tried=st.just(3), reason=st.just("tried")),
    writes=st.none(),
    storage_faults=st.sampled_from([(), ("3 checksum failures",)]),
    way_down=st.sampled_from([None, WayDown(downs=(), reason="m2 ships no way down"), GOES_DOWN.way_down]),
)
restore_points = st.builds(
    RestorePoint,
    id=st.just("rp-d2"),
    database=st.just("app"),
    taken_at=st.just(START),
    path=st.just("rp-d2/dump"),
    sha256=st.just("00"),
    size_bytes=st.just(1000),
    fingerprint=st.just("f1"),
    snapshot=st.just("1:1:"),
    clone=st.just(RESTORE_POINT.clone),
    proved_at=st.sampled_from([START, None]),
)
worlds = st.builds(
    World,
    containers=containers,
    rung=st.just("L2"),
    database=st.none() | databases,
    evidence=st.none() | evidence,
    restore_point=st.none() | restore_points,
    own_dump=st.none() | st.just(OWN_DUMP),
    unusable=st.sampled_from(["", "", "it was damaged"]),
    fingerprint=st.sampled_from(["", "f1", "f2"]),
    frontend=st.none()
    | st.builds(
        FrontendFacts,
        observed_at=st.just(START),
        production=st.sampled_from(["", "dpl_old", "dpl_bad"]),
        auto_assign=st.booleans(),
    ),
    frontend_target=st.sampled_from(["", "dpl_old"]),
    frontend_unseen=st.sampled_from(["", "no answer"]),
    database_unseen=st.sampled_from(["", "", "no answer"]),
    migrated=st.booleans(),
)


def changed(fit: Fit) -> st.SearchStrategy[World]:
    """Worlds whose schema changed, with this answer to whether the old release runs on it."""
    told = evidence.map(lambda e: replace(e, changes=CHANGES, old_release=replace(e.old_release, fit=fit)))
    return st.builds(
        lambda world, facts, said: replace(world, database=facts, evidence=said, database_unseen=""),
        worlds,
        databases,
        told,
    )


def plan_or_refusal(world: World, only: frozenset[Role]) -> Plan | Refused:
    """Plan the way back to `old`. Anything but a plan or a refusal is raised."""
    try:
        return make_plan(OLD, world, plan_id="r1", now=START, serving="bad", deadlines=DEADLINES, only=only)
    except Refused as refused:
        return refused


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any plan of a rollback."""
    found = plan_or_refusal(draw(worlds), draw(ONLY))
    if isinstance(found, Refused):
        return draw(plans())
    return found
