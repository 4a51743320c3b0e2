"""The way forward: restore point, gate, migrations, one service after the other; what runs already is left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lastgood.core.deploying import make_deploy_plan
from lastgood.core.facts import ContainerFacts, DatabaseFacts, Health, InstanceFacts
from lastgood.core.plan import Migrate, PassGate, Plan, Purpose, Retire, Role, Serve, Settle, Switch, TakeRestorePoint
from lastgood.core.release import Release
from lastgood.testing.world import START
from tests.core import planned_worlds
from tests.core.examples import SERVICES, behind_an_edge, database_facts, facts, release, without

EMPTY = ContainerFacts(observed_at=START, serving=())
BAD = release("bad", migrations=("m1", "m2"))


BOOT_S = 10.0


def planned(
    containers: ContainerFacts,
    database: DatabaseFacts | None,
    *,
    wanted: Release = BAD,
    serving: str = "old",
    last_good: str = "",
    lossy_because: tuple[str, ...] = (),
    drain_s: float = 0.0,
) -> Plan:
    return make_deploy_plan(
        wanted,
        plan_id="r1",
        now=START,
        serving=serving,
        last_good=last_good,
        containers=containers,
        database=database,
        restore_point="rp-d2",
        lossy_because=lossy_because,
        rung="L2",
        boot_s=BOOT_S,
        drain_s=drain_s,
        restore_s=60,
        migrate_s=30,
    )


def names(plan: Plan) -> list[str]:
    return [step.name for step in plan.steps]


def with_migrations(*finished: str) -> DatabaseFacts:
    return replace(database_facts(), migrations=finished)


SERVE = ["serve-core", "serve-orchestrator", "serve-agent", "clear-candidates"]


@pytest.mark.parametrize(
    "containers,database,steps",
    [
        pytest.param(
            facts("old"),
            with_migrations("m1"),
            ["take-restore-point", "pass-gate", "migrate", *SERVE],
            id="everything-changed",
        ),
        pytest.param(facts("old"), None, ["pass-gate", *SERVE], id="no-database"),
        pytest.param(
            facts("old"),
            with_migrations("m1", "m2"),
            ["take-restore-point", "pass-gate", *SERVE],
            id="no-migration-pending",
        ),
        pytest.param(EMPTY, None, ["pass-gate", *SERVE], id="first-deploy"),
        pytest.param(
            facts("bad"), with_migrations("m1"), ["take-restore-point", "migrate"], id="only-a-migration-is-new"
        ),
        pytest.param(facts("bad"), None, [], id="nothing-is-new"),
        pytest.param(
            replace(facts("bad"), serving=(*facts("old").serving[:1], *facts("bad").serving[1:])),
            None,
            ["pass-gate", "serve-core", "clear-candidates"],
            id="one-service-changed",
        ),
        pytest.param(
            replace(
                facts("bad"),
                serving=(replace(facts("bad").serving[0], health=Health.UNHEALTHY), *facts("bad").serving[1:]),
            ),
            None,
            ["pass-gate", "serve-core", "clear-candidates"],
            id="one-service-is-sick",
        ),
    ],
)
def test_the_steps_are_these_in_this_order(
    containers: ContainerFacts, database: DatabaseFacts | None, steps: list[str]
) -> None:
    assert names(planned(containers, database)) == steps


@pytest.mark.parametrize(
    "containers,database,skipped",
    [
        (facts("old"), None, ("database: none configured",)),
        (facts("old"), with_migrations("m2", "m1"), ("migrations: none pending",)),
        (facts("bad"), with_migrations("m1"), ("containers: every service already runs bad",)),
    ],
)
def test_what_is_left_out_is_said(
    containers: ContainerFacts, database: DatabaseFacts | None, skipped: tuple[str, ...]
) -> None:
    assert planned(containers, database).skipped == skipped


def test_what_a_rollback_would_lose_is_said_beforehand_with_the_time_and_the_reason() -> None:
    (warning,) = planned(facts("old"), with_migrations("m1"), lossy_because=("wal_level is replica",)).warnings
    assert warning.startswith("a rollback of the database would lose writes since 2026-01-01 00:00 UTC")
    assert warning.endswith("all but the last state of each row: wal_level is replica")


# --- behind an edge --------------------------------------------------------------------------------------------------

SWITCH = ["pass-gate", "switch-traffic", "serve-agent", "settle"]
EDGE = behind_an_edge(facts("old"), "old")
SAME = behind_an_edge(facts("bad"), "bad")


@pytest.mark.parametrize(
    "containers,steps",
    [
        pytest.param(EDGE, SWITCH, id="everything-changed"),
        pytest.param(SAME, [], id="nothing-is-new"),
        pytest.param(
            replace(SAME, serving=(*EDGE.serving[:1], *SAME.serving[1:])),
            ["pass-gate", "switch-traffic", "settle"],
            id="one-of-those-that-are-switched-takes-the-others-along",
        ),
        pytest.param(
            replace(SAME, serving=(*SAME.serving[:2], *EDGE.serving[2:])),
            ["pass-gate", "serve-agent", "clear-candidates"],
            id="one-that-is-not-switched-goes-alone",
        ),
        pytest.param(
            behind_an_edge(facts("bad"), "other"),
            ["pass-gate", "switch-traffic", "settle"],
            id="the-same-images-under-another-name",
        ),
        pytest.param(
            replace(EDGE, ungated=frozenset({"agent"})),
            SWITCH,
            id="a-worker",
        ),
    ],
)
def test_behind_an_edge_a_release_is_switched_as_a_whole(containers: ContainerFacts, steps: list[str]) -> None:
    assert names(planned(containers, None)) == steps


def test_a_service_that_the_new_release_dropped_stops_when_nobody_is_left_who_knows_it() -> None:
    plan = planned(facts("old"), None, wanted=without(BAD, "agent"))
    assert names(plan) == ["pass-gate", "serve-core", "serve-orchestrator", "retire-agent", "clear-candidates"]
    assert plan.step("retire-agent").explain == "agent stops and is kept: bad does not have it"


def test_all_that_is_switched_moves_in_one_step() -> None:
    action = planned(EDGE, None).step("switch-traffic").action
    assert action == Switch(release="bad", artifacts=(("core", "core-bad"), ("orchestrator", "orchestrator-bad")))


def test_what_served_before_stays_ready_beside() -> None:
    assert planned(EDGE, None).step("settle").action == Settle(standby="old")


@pytest.mark.parametrize(
    "containers,said",
    [
        pytest.param(
            EDGE,
            "old stays ready beside, as the rung says; what else does not serve finishes and stops",
            id="it-was-started-as-a-release",
        ),
        pytest.param(
            behind_an_edge(facts("old"), ""), "what does not serve finishes and stops", id="compose-started-it"
        ),
        pytest.param(
            replace(EDGE, standby_runs=False), "what does not serve finishes and stops", id="no-standby-is-wanted"
        ),
        pytest.param(
            replace(EDGE, serving=(*EDGE.serving[:1], *behind_an_edge(facts("old"), "").serving[1:])),
            "core of old stays ready beside, as the rung says; what else does not serve finishes and stops",
            id="one-of-them-was-started-as-a-release",
        ),
    ],
)
def test_the_plan_says_that_a_release_stays_beside_only_where_it_will(containers: ContainerFacts, said: str) -> None:
    step = planned(containers, None).step("settle")
    assert (step.action, step.explain) == (Settle(standby="old"), said)


@pytest.mark.parametrize("runs", [True, False])
def test_what_stays_ready_is_the_release_to_which_it_would_be_rolled_back(runs: bool) -> None:
    """Not the one that serves, where nobody knows yet whether that is good."""
    good = tuple(replace(i, instance=f"{i.service}-good", release="good", running=runs) for i in EDGE.serving[:2])
    plan = planned(replace(EDGE, candidates=good), None, last_good="good")
    gate, settle = plan.step("pass-gate"), plan.step("settle")
    assert isinstance(gate.action, PassGate)
    assert (gate.action.standby, settle.action) == ("good", Settle(standby="good"))
    assert settle.explain.startswith("good stays ready beside") is runs


def test_no_second_instance_of_a_worker_is_ever_started() -> None:
    gate = planned(replace(EDGE, ungated=frozenset({"agent"})), None).step("pass-gate").action
    assert isinstance(gate, PassGate)
    assert "agent" not in dict(gate.artifacts)


def test_only_the_migrations_that_are_not_finished_are_asked_for() -> None:
    wanted = release("bad", migrations=("m1", "m2", "m3"))
    plan = planned(facts("old"), with_migrations("m1"), wanted=wanted)
    assert plan.step("migrate").action == Migrate(release="bad", migrations=("m2", "m3"))


def test_a_migration_is_attempted_once() -> None:
    assert planned(facts("old"), with_migrations("m1")).step("migrate").attempts == 1


def test_the_gate_has_the_time_of_every_service_that_it_starts() -> None:
    assert planned(facts("old"), None).step("pass-gate").deadline_s == 10 * len(SERVICES)


def test_a_service_must_run_with_the_configuration_that_was_recorded() -> None:
    recorded = replace(BAD, services=tuple(replace(s, config_hash="c9") for s in BAD.services))
    served = [s.action for s in planned(facts("old"), None, wanted=recorded).steps if isinstance(s.action, Serve)]
    assert {action.config_hash for action in served} == {"c9"}


def test_a_first_deploy_comes_from_no_release() -> None:
    plan = planned(EMPTY, None, serving="")
    assert (plan.purpose, plan.from_release, plan.to_release) == (Purpose.DEPLOY, "", "bad")


# --- what may never be, whatever serves ------------------------------------------------------------------------------

databases = st.none() | planned_worlds.databases.map(lambda d: replace(d, migrations=("m1",)))
plans = st.builds(planned, planned_worlds.containers, databases)


@given(plan=plans)
@settings(max_examples=30)
def test_nothing_that_serves_is_touched_before_the_gate(plan: Plan) -> None:
    kinds = [type(step.action) for step in plan.steps]
    assert Serve not in kinds or PassGate in kinds[: kinds.index(Serve)]


@given(plan=plans)
@settings(max_examples=30)
def test_a_database_is_never_touched_before_its_restore_point(plan: Plan) -> None:
    database = [type(step.action) for step in plan.steps if step.role is Role.DATABASE]
    assert database in ([], [TakeRestorePoint], [TakeRestorePoint, Migrate])


@given(plan=plans)
@settings(max_examples=30)
def test_every_service_that_is_switched_passed_the_gate_with_that_artifact(plan: Plan) -> None:
    gate = {pair for step in plan.steps if isinstance(step.action, PassGate) for pair in step.action.artifacts}
    assert gate == {(s.action.service, s.action.artifact) for s in plan.steps if isinstance(s.action, Serve)}


@given(plan=plans)
@settings(max_examples=30)
def test_no_step_of_a_deploy_waits_for_a_person(plan: Plan) -> None:
    assert not plan.needs_approval


@given(beside=st.lists(planned_worlds.instances, max_size=3))
@settings(max_examples=30)
def test_what_is_not_of_the_release_stops_and_changes_nothing_else(beside: list[InstanceFacts]) -> None:
    others = tuple(i for i in beside if BAD.service(i.service) is None)
    more = replace(facts("old"), serving=(*facts("old").serving, *others))
    steps = planned(more, None).steps
    assert {s.action.service for s in steps if isinstance(s.action, Retire)} == {i.service for i in others}
    assert tuple(s for s in steps if not isinstance(s.action, Retire)) == planned(facts("old"), None).steps


@pytest.mark.parametrize("instances", [1, 4])
def test_what_no_longer_serves_has_time_to_finish_and_to_stop_however_many_they_are(instances: int) -> None:
    more = tuple(replace(i, instance=f"{i.instance}-{n}") for i in EDGE.serving[:2] for n in range(1, instances))
    containers = replace(EDGE, serving=(*EDGE.serving, *more), candidates=EDGE.serving[:1])
    ending = 2 * instances + 1
    assert planned(containers, None, drain_s=30.0).step("settle").deadline_s == 30.0 + BOOT_S * ending


def test_a_service_whose_requests_wait_has_time_to_answer_its_last_ones_before_it_is_recreated() -> None:
    assert planned(EDGE, None, drain_s=30.0).step("serve-agent").deadline_s == BOOT_S + 30.0
