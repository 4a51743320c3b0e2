"""What the facts say of a step, what a plan needs from the world, and what an approval is bound to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from pydantic import TypeAdapter

from lastgood.core.deploying import beside
from lastgood.core.facts import ContainerFacts, DatabaseFacts, Facts, FrontendFacts, Health, InstanceFacts
from lastgood.core.migration import SchemaChange
from lastgood.core.plan import (
    Action,
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
    Plan,
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
    started_beside,
    world_agrees,
)
from lastgood.core.returning import make_plan
from lastgood.testing.world import START
from tests.core.examples import (
    DEADLINES,
    DOWN,
    EVIDENCE,
    GOES_DOWN,
    HELD,
    RESTORE_POINT,
    SHAPES,
    database_facts,
    deploy_plan,
    facts,
    release,
    rollback_plan,
    world,
)
from tests.core.planned_worlds import plans

PLAN: TypeAdapter[Plan] = TypeAdapter(Plan)


def instance(
    service: str, artifact: str, *, running: bool = True, health: Health = Health.HEALTHY, config_hash: str = ""
) -> InstanceFacts:
    return InstanceFacts(
        service=service,
        instance=f"{service}-1",
        artifact=artifact,
        running=running,
        health=health,
        config_hash=config_hash,
    )


def containers(
    *serving: InstanceFacts, candidates: tuple[InstanceFacts, ...] = (), switchable: frozenset[str] = frozenset()
) -> ContainerFacts:
    return ContainerFacts(observed_at=START, serving=serving, candidates=candidates, switchable=switchable)


def of(release: str, *instances: InstanceFacts) -> tuple[InstanceFacts, ...]:
    return tuple(replace(i, release=release) for i in instances)


def database(**shown: object) -> DatabaseFacts:
    return replace(database_facts(), databases=frozenset({"app"}), **shown)  # type: ignore[arg-type]  # a table names what it shows


def frontend(production: str, *, busy: bool = False, shown: tuple[str, ...] = ()) -> FrontendFacts:
    domains = tuple((f"{number}.example", what) for number, what in enumerate(shown))
    return FrontendFacts(observed_at=START, production=production, auto_assign=True, busy=busy, domains=domains)


GATE = PassGate(release="old", artifacts=(("core", "core-old"), ("agent", "agent-old")))
SERVE = Serve(release="old", service="core", artifact="core-old", config_hash="c1")
WEB = frozenset({"web"})
CLEAR = ClearCandidates()
SWITCH = Switch(release="old", artifacts=GATE.artifacts)
SETTLE = Settle(standby="old")
TAKE = TakeRestorePoint(restore_point="rp-d2")
MIGRATE = Migrate(release="bad", migrations=("m2", "m3"))
DUMP = SaveDump(name="app-r1")
REHEARSE = RehearseDown(
    rehearsal="down-r1", dump="app-r1", downs=(DOWN,), migrations=("m2", "m3"), made_for="f3", restore_point="rp-d2"
)
MIGRATE_DOWN = MigrateDown(
    aside="down-r1", downs=(DOWN,), migrations=("m2", "m3"), made_for="f3", restore_point="rp-d2", manifest="m1"
)
FENCE = Fence(kept_as="app_bad_r1")
LIFT = LiftFence(kept_as="app_bad_r1")
EXPORT = ExportWrites(export="export-r1", restore_point="rp-d2", kept_as="app_bad_r1")
CATCH_UP = CatchUp(replay="replay-r1", restore_point="rp-d2")
RESTORE = RestoreClone(restore_point="rp-d2", clone="clone_rp-d2")
CLONE = frozenset({"clone_rp-d2"})
REPLAY = ReplayWrites(replay="replay-r1", restore_point="rp-d2", kept_as="app_bad_r1", by_rows=False)
SWAP = SwapDatabase(swap="swap-r1", restore_point="rp-d2", clone="clone_rp-d2", kept_as="app_bad_r1")
RETURN = ReturnFrontend(deployment="dpl_old")

CORE, AGENT = instance("core", "core-old"), instance("agent", "agent-old")
BAD = instance("core", "core-bad")
KEPT = frozenset({"app_bad_r1"})
BOTH = frozenset({"core", "agent"})

LOOKS: dict[str, tuple[Action, Facts, Seen]] = {
    "gate: candidates are healthy": (GATE, containers(BAD, candidates=of("old", CORE, AGENT)), Seen.DONE),
    "gate: one serves already": (GATE, containers(*of("old", AGENT), candidates=of("old", CORE)), Seen.DONE),
    "gate: one serves that somebody else started": (
        GATE,
        containers(AGENT, candidates=of("old", CORE)),
        Seen.NOT_DONE,
    ),
    "gate: one candidate is missing": (GATE, containers(BAD, candidates=of("old", CORE)), Seen.NOT_DONE),
    "gate: a candidate of another release": (GATE, containers(AGENT, candidates=(BAD,)), Seen.NOT_DONE),
    "gate: a candidate still starts": (
        GATE,
        containers(AGENT, candidates=(instance("core", "core-old", health=Health.STARTING),)),
        Seen.NOT_DONE,
    ),
    "serve: it serves": (SERVE, containers(CORE), Seen.DONE),
    "serve: with the wanted configuration": (
        SERVE,
        containers(instance("core", "core-old", config_hash="c1")),
        Seen.DONE,
    ),
    "serve: it has no health check of its own": (
        SERVE,
        containers(instance("core", "core-old", health=Health.NONE)),
        Seen.DONE,
    ),
    "serve: nothing serves": (SERVE, containers(AGENT), Seen.NOT_DONE),
    "serve: another artifact": (SERVE, containers(BAD), Seen.NOT_DONE),
    "serve: one replica of two": (SERVE, containers(CORE, BAD), Seen.NOT_DONE),
    "serve: another configuration": (
        SERVE,
        containers(instance("core", "core-old", config_hash="c2")),
        Seen.NOT_DONE,
    ),
    "serve: it is sick": (SERVE, containers(instance("core", "core-old", health=Health.UNHEALTHY)), Seen.NOT_DONE),
    "serve: it was stopped": (SERVE, containers(instance("core", "core-old", running=False)), Seen.NOT_DONE),
    "serve: only a candidate": (SERVE, containers(candidates=(CORE,)), Seen.NOT_DONE),
    "clear: nothing is left": (CLEAR, containers(CORE), Seen.DONE),
    "clear: the edge's file says something else": (CLEAR, replace(containers(CORE), unwritten=WEB), Seen.NOT_DONE),
    "clear: a stopped one is left": (
        CLEAR,
        containers(candidates=(instance("core", "core-old", running=False),)),
        Seen.NOT_DONE,
    ),
    "gate: behind an edge only the release's own counts": (
        GATE,
        containers(*of("older", CORE, AGENT), switchable=BOTH),
        Seen.NOT_DONE,
    ),
    "gate: behind an edge the standby counts": (
        GATE,
        containers(BAD, candidates=of("old", CORE, AGENT), switchable=BOTH),
        Seen.DONE,
    ),
    "switch: it serves": (SWITCH, containers(*of("old", CORE, AGENT), switchable=BOTH), Seen.DONE),
    "switch: half of it": (SWITCH, containers(*of("old", CORE), *of("bad", AGENT), switchable=BOTH), Seen.NOT_DONE),
    "switch: the same image of another release": (
        SWITCH,
        containers(*of("older", CORE, AGENT), switchable=BOTH),
        Seen.NOT_DONE,
    ),
    "switch: one of two instances": (
        SWITCH,
        containers(*of("old", CORE, AGENT), *of("bad", BAD), switchable=BOTH),
        Seen.NOT_DONE,
    ),
    "switch: it is sick": (
        SWITCH,
        containers(*of("old", CORE, replace(AGENT, health=Health.UNHEALTHY)), switchable=BOTH),
        Seen.NOT_DONE,
    ),
    "switch: only beside": (SWITCH, containers(candidates=of("old", CORE, AGENT), switchable=BOTH), Seen.NOT_DONE),
    "settle: nothing is beside": (SETTLE, containers(CORE), Seen.DONE),
    "settle: the edge's file says something else": (SETTLE, replace(containers(CORE), unwritten=WEB), Seen.NOT_DONE),
    "settle: the standby is beside": (SETTLE, containers(BAD, candidates=of("old", CORE, AGENT)), Seen.DONE),
    "settle: the standby runs and should not": (
        SETTLE,
        replace(containers(BAD, candidates=of("old", CORE, AGENT)), standby_runs=False),
        Seen.NOT_DONE,
    ),
    "settle: the standby is stopped": (SETTLE, replace(containers(BAD), standby_runs=False), Seen.DONE),
    "settle: what served runs still": (SETTLE, containers(CORE, candidates=of("bad", BAD)), Seen.NOT_DONE),
    "settle: one that is bound to no release": (SETTLE, containers(CORE, candidates=(BAD,)), Seen.NOT_DONE),
    "settle: no standby is wanted": (
        Settle(standby=""),
        containers(CORE, candidates=of("old", AGENT)),
        Seen.NOT_DONE,
    ),
    "retire: nothing of it serves": (Retire(release="old", service="agent"), containers(CORE), Seen.DONE),
    "retire: it serves": (Retire(release="old", service="agent"), containers(CORE, AGENT), Seen.NOT_DONE),
    "retire: it is down, and may come back": (
        Retire(release="old", service="agent"),
        containers(CORE, instance("agent", "agent-old", running=False)),
        Seen.NOT_DONE,
    ),
    "retire: it gets no requests and runs still": (
        Retire(release="old", service="agent"),
        containers(CORE, candidates=(AGENT,)),
        Seen.NOT_DONE,
    ),
    "retire: it is stopped beside": (
        Retire(release="old", service="agent"),
        containers(CORE, candidates=(instance("agent", "agent-old", running=False),)),
        Seen.DONE,
    ),
    "hold: requests wait": (HoldRequests(), replace(containers(CORE), holding=True), Seen.DONE),
    "hold: they are passed on": (HoldRequests(), containers(CORE), Seen.NOT_DONE),
    "pass: nothing waits": (PassRequests(), containers(CORE), Seen.DONE),
    "pass: requests wait": (PassRequests(), replace(containers(CORE), holding=True), Seen.NOT_DONE),
    "hold: only who came before it ran out waits": (
        HoldRequests(),
        replace(containers(CORE), left_waiting=True),
        Seen.NOT_DONE,
    ),
    "pass: who came before it ran out waits": (
        PassRequests(),
        replace(containers(CORE), left_waiting=True),
        Seen.NOT_DONE,
    ),
    "restore point: proved": (TAKE, database(restore_points=frozenset({"rp-d2"})), Seen.DONE),
    "restore point: of another deployment": (TAKE, database(restore_points=frozenset({"rp-d1"})), Seen.NOT_DONE),
    "migrate: all are finished": (MIGRATE, database(migrations=("m1", "m2", "m3")), Seen.DONE),
    "migrate: one is missing": (MIGRATE, database(migrations=("m1", "m2")), Seen.NOT_DONE),
    "migrate: one failed half-way": (
        MIGRATE,
        database(migrations=("m1", "m2", "m3"), failed_migrations=("m4",)),
        Seen.UNKNOWN,
    ),
    "dump: finished": (DUMP, database(dumps=frozenset({"app-r1"})), Seen.DONE),
    "dump: of another run": (DUMP, database(dumps=frozenset({"app-r2"})), Seen.NOT_DONE),
    "rehearsal: it went well": (REHEARSE, database(rehearsals=frozenset({"down-r1"})), Seen.DONE),
    "rehearsal: of another run": (REHEARSE, database(rehearsals=frozenset({"down-r2"})), Seen.NOT_DONE),
    "migrate down: the history names none of them": (MIGRATE_DOWN, database(migrations=("m1",)), Seen.DONE),
    "migrate down: the history names one still": (MIGRATE_DOWN, database(migrations=("m1", "m2")), Seen.NOT_DONE),
    "migrate down: the database is not there": (MIGRATE_DOWN, database(exists=False), Seen.NOT_DONE),
    "fence: renamed": (FENCE, replace(database(exists=False), databases=KEPT), Seen.DONE),
    "fence: after the swap": (FENCE, replace(database(), databases=KEPT | {"app"}), Seen.DONE),
    "fence: not yet": (FENCE, database(), Seen.NOT_DONE),
    "lift: it has its name back": (LIFT, database(), Seen.DONE),
    "lift: not yet": (LIFT, replace(database(exists=False), databases=KEPT), Seen.NOT_DONE),
    "lift: another took its name": (LIFT, replace(database(), databases=KEPT | {"app"}), Seen.NOT_DONE),
    "export: finished": (EXPORT, database(exports=frozenset({"export-r1"})), Seen.DONE),
    "export: of another run": (EXPORT, database(exports=frozenset({"export-r2"})), Seen.NOT_DONE),
    "restored: the clone is there": (RESTORE, replace(database(), databases=CLONE), Seen.DONE),
    "restored: the clone is gone": (RESTORE, database(), Seen.NOT_DONE),
    "restored: something is in it": (
        RESTORE,
        replace(database(), databases=CLONE, filled=frozenset({"rp-d2"})),
        Seen.NOT_DONE,
    ),
    "catch up: once": (CATCH_UP, database(caught_up=frozenset({"replay-r1"})), Seen.DONE),
    "catch up: of another run": (CATCH_UP, database(caught_up=frozenset({"replay-r2"})), Seen.NOT_DONE),
    "replay: finished": (REPLAY, database(replays=frozenset({"replay-r1"})), Seen.DONE),
    "replay: only caught up": (REPLAY, database(caught_up=frozenset({"replay-r1"})), Seen.NOT_DONE),
    "end of the capture: none is left": (EndCapture(), database(), Seen.DONE),
    "end of the capture: one is": (EndCapture(), database(captures=frozenset({"rp-d2"})), Seen.NOT_DONE),
    "swap: the ledger has it": (SWAP, database(swaps=frozenset({"swap-r1"})), Seen.DONE),
    "swap: the ledger has another": (SWAP, database(swaps=frozenset({"swap-r2"})), Seen.NOT_DONE),
    "swap: the ledger has it and the name is free": (
        SWAP,
        database(exists=False, swaps=frozenset({"swap-r1"})),
        Seen.NOT_DONE,
    ),
    "frontend: the host says so": (RETURN, frontend("dpl_old"), Seen.DONE),
    "frontend: the domains show it": (RETURN, frontend("dpl_old", shown=("dpl_old", "")), Seen.DONE),
    "frontend: a domain shows another": (RETURN, frontend("dpl_old", shown=("dpl_old", "dpl_bad")), Seen.NOT_DONE),
    "frontend: another is production": (RETURN, frontend("dpl_bad"), Seen.NOT_DONE),
    "frontend: the host is at it": (RETURN, frontend("dpl_bad", busy=True), Seen.UNKNOWN),
}
KINDS = {kind for union in get_args(Action) for kind in (get_args(union) or (union,))}
ANY_OF = {type(action): action for action, _, _ in LOOKS.values()}
OF_ROLE: dict[Role, Facts] = {
    Role.CONTAINERS: containers(),
    Role.DATABASE: database(),
    Role.FRONTEND: frontend("dpl_bad"),
}


def step(action: Action) -> Step:
    return Step(name="step", action=action, deadline_s=10.0, explain="")


@pytest.mark.parametrize("look", LOOKS)
def test_the_facts_show_whether_a_step_is_done(look: str) -> None:
    action, shown, expected = LOOKS[look]
    assert seen(step(action), shown) is expected


@pytest.mark.parametrize("answer", [Seen.DONE, Seen.NOT_DONE])
def test_every_kind_of_step_can_be_seen_done_and_not_done(answer: Seen) -> None:
    assert {type(action) for action, _, expected in LOOKS.values() if expected is answer} == KINDS


@pytest.mark.parametrize("action", ANY_OF.values(), ids=lambda action: action.kind)
def test_facts_of_another_target_cannot_tell(action: Action) -> None:
    others = [shown for role, shown in OF_ROLE.items() if role is not step(action).role]
    assert {seen(step(action), shown) for shown in others} == {Seen.UNKNOWN}


def test_users_can_notice_these_kinds_of_steps_and_no_other() -> None:
    noticed = {kind for kind, action in ANY_OF.items() if step(action).changes_what_serves}
    assert noticed == {Serve, Switch, Retire, Migrate, MigrateDown, Fence, SwapDatabase, ReturnFrontend}


# --- what a plan needs from the world --------------------------------------------------------------------------------


def agrees(plan: Plan, *shown: Facts) -> tuple[str, ...]:
    roles = {ContainerFacts: Role.CONTAINERS, DatabaseFacts: Role.DATABASE, FrontendFacts: Role.FRONTEND}
    return world_agrees(plan, {roles[type(f)]: f for f in shown})


def test_a_plan_whose_artifacts_and_clone_are_there_can_start() -> None:
    assert agrees(rollback_plan(EVIDENCE), facts("bad"), database_facts()) == ()


def test_an_artifact_that_was_removed_since_is_named() -> None:
    gone = replace(facts("bad"), held=HELD - {"agent-old"})
    assert agrees(rollback_plan(None), gone) == ("agent: agent-old of old is not on this host",)


def test_an_artifact_that_serves_already_need_not_be_held() -> None:
    assert agrees(rollback_plan(None), replace(facts("old"), held=frozenset())) == ()


def test_an_artifact_that_serves_but_is_sick_must_be_held() -> None:
    sick = replace(facts("old"), serving=(instance("core", "core-old", health=Health.UNHEALTHY),), held=frozenset())
    assert any(line.startswith("core: ") for line in agrees(rollback_plan(None), sick))


def test_a_clone_that_was_dropped_since_is_named() -> None:
    (line,) = agrees(rollback_plan(EVIDENCE), facts("bad"), database())
    assert line == "database clone_rp-d2, the clone of restore point rp-d2, is gone"


def test_a_clone_that_was_swapped_in_is_not_missed() -> None:
    swapped = database(swaps=frozenset({"swap-r1"}), manifests=())
    assert agrees(rollback_plan(EVIDENCE), facts("bad"), swapped) == ()


def test_down_migrations_are_run_on_the_schema_that_they_were_tried_on_and_on_no_other() -> None:
    plan, other_schema = rollback_plan(GOES_DOWN), replace(database_facts(), migrations=("m1", "m2"), fingerprint="f9")
    assert agrees(plan, facts("bad"), replace(other_schema, fingerprint="f2")) == ()
    said = "the schema is not the one for which the down migrations were tried"
    assert agrees(plan, facts("bad"), other_schema) == (said,)


def test_down_migrations_that_are_done_are_not_missed() -> None:
    down = replace(database_facts(), migrations=("m1",), fingerprint="f1", manifests=())
    assert agrees(rollback_plan(GOES_DOWN), facts("bad"), down) == ()


@pytest.mark.parametrize(
    "manifests,said",
    [
        ((), "what is kept of restore point rp-d2 is gone or damaged: expected manifest m1"),
        ((("rp-d1", "m1"), ("rp-d2", "m2")), "restore point rp-d2 is not the one that was proved: its manifest is m2"),
    ],
)
def test_what_lies_in_the_place_of_the_restore_point_is_named(
    manifests: tuple[tuple[str, str], ...], said: str
) -> None:
    (line,) = agrees(rollback_plan(EVIDENCE), facts("bad"), replace(database_facts(), manifests=manifests))
    assert line.startswith(said)


def test_a_restore_point_of_a_journal_that_is_older_than_its_hash_may_be_any() -> None:
    known = world(EVIDENCE)
    old = replace(known, restore_point=replace(RESTORE_POINT, manifest=""))
    plan = make_plan(release("old"), old, plan_id="r1", now=START, serving="bad", deadlines=DEADLINES)
    assert agrees(plan, facts("bad"), replace(database_facts(), manifests=())) == ()


@pytest.mark.parametrize("plan", [rollback_plan(None), deploy_plan()], ids=["rollback", "deploy"])
def test_what_somebody_else_put_there_since_is_named(plan: Plan) -> None:
    now = facts(plan.from_release)
    hotfix = replace(now, serving=(instance("core", "core-hotfix"), *now.serving[1:]))
    assert agrees(plan, hotfix) == ("core: core-hotfix serves, which was not there when the plan was made",)


STANDBY = replace(facts("bad"), switchable=frozenset({"core"}), candidates=of("old", instance("core", "core-old")))
BESIDE = replace(facts("bad"), switchable=frozenset({"core"}), candidates=(instance("core", "core-hotfix"),))


def test_what_somebody_else_started_beside_an_edge_since_is_named() -> None:
    said = ("core: core-hotfix runs beside, which was not there when the plan was made",)
    assert started_beside(rollback_plan(None), BESIDE) == said


@pytest.mark.parametrize("running", [True, False])
def test_what_stood_beside_when_the_plan_was_made_is_nobodys_surprise(running: bool) -> None:
    then = replace(BESIDE, candidates=(replace(BESIDE.candidates[0], running=running),))
    plan = replace(rollback_plan(None), beside=beside(then))
    assert started_beside(plan, BESIDE) == ()


def test_a_standby_is_no_stray() -> None:
    standby = replace(BESIDE, candidates=(replace(BESIDE.candidates[0], release="old"),))
    assert started_beside(rollback_plan(None), standby) == ()


def test_what_somebody_else_started_beside_is_not_what_the_gate_has_to_clear() -> None:
    clear = Step(name="clear-candidates", action=ClearCandidates(), deadline_s=5.0, explain="clear")
    assert seen(clear, BESIDE) is Seen.DONE
    assert seen(clear, replace(BESIDE, switchable=frozenset())) is Seen.NOT_DONE


@pytest.mark.parametrize(
    "there, shown",
    [
        pytest.param(STANDBY, Seen.DONE, id="it stands ready"),
        pytest.param(replace(STANDBY, standby_runs=False), Seen.NOT_DONE, id="it has no room to"),
        pytest.param(replace(STANDBY, switchable=frozenset()), Seen.NOT_DONE, id="the gate's, of what has no standby"),
        pytest.param(
            replace(STANDBY, candidates=of("bad", *STANDBY.candidates)), Seen.NOT_DONE, id="another release's"
        ),
        pytest.param(
            replace(STANDBY, candidates=(replace(STANDBY.candidates[0], running=False),)),
            Seen.NOT_DONE,
            id="one that was never started",
        ),
    ],
)
def test_a_standby_that_stood_ready_before_the_gate_is_not_the_gates_to_clear(
    there: ContainerFacts, shown: Seen
) -> None:
    action = ClearCandidates(standby="old")
    assert seen(Step(name="clear-candidates", action=action, deadline_s=5.0, explain="clear"), there) is shown


def test_what_the_plan_itself_put_there_is_no_surprise() -> None:
    half = replace(facts("bad"), serving=(*facts("old").serving[:1], *facts("bad").serving[1:]))
    assert agrees(rollback_plan(None), half) == ()


def test_a_service_that_is_not_of_the_release_is_nobodys_surprise() -> None:
    beside = replace(facts("bad"), serving=(*facts("bad").serving, instance("billing", "billing-7")))
    assert agrees(rollback_plan(None), beside) == ()


def test_a_service_that_was_down_when_the_plan_was_made_may_have_come_back() -> None:
    down = replace(world(None), containers=replace(facts("bad"), serving=facts("bad").serving[1:]))
    plan = make_plan(release("old"), down, plan_id="r1", now=START, serving="bad", deadlines=DEADLINES)
    assert agrees(plan, facts("bad")) == ()


def test_a_part_that_was_not_looked_at_is_not_missed() -> None:
    assert agrees(rollback_plan(EVIDENCE)) == ()


# --- what an approval is bound to ------------------------------------------------------------------------------------


def other(value: object) -> object:
    """A value of the same kind that is not the same."""
    match value:
        case bool():
            return not value
        case Enum():
            return next(member for member in type(value) if member is not value)
        case datetime():
            return value + timedelta(microseconds=1)
        case int() | float():
            return value + 1
        case str():
            return f"{value}x"
        case tuple():
            return value[1:] if value else ("x",)
        case _:
            raise TypeError(type(value))


def variants(value: object, place: str = "plan") -> Iterator[tuple[str, Any]]:
    """Every value that differs from `value` in one field, however deep, with the field's place."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            if field.name != "kind":
                for where, varied in variants(getattr(value, field.name), f"{place}.{field.name}"):
                    yield where, replace(value, **{field.name: varied})
    elif value == () and place.endswith(".changes"):
        yield place, (SchemaChange(object="missions", change="is new"),)
    elif isinstance(value, tuple):
        for at, item in enumerate(value):
            for where, varied in variants(item, f"{place}[{at}]"):
                yield where, (*value[:at], varied, *value[at + 1 :])
        if len(value) != 2 or is_dataclass(value[0]):  # a pair has no other length
            yield place, other(value)
            yield f"{place} reversed", value[::-1]
    elif value is not None:
        yield place, other(value)


@pytest.mark.parametrize(
    "shape", sorted(SHAPES.keys() - {"watch-over", "swap-back"})
)  # which found nothing, so there is no pair to vary
def test_the_hash_changes_with_every_field_of_the_plan(shape: str) -> None:
    plan = replace(SHAPES[shape](), beside=(("core", "core-hotfix"),), stateful=(("db", "d1"),))
    same = [where for where, varied in variants(plan) if varied != plan and varied.hash == plan.hash]
    assert not same


@given(plan=plans())
@settings(max_examples=40)
def test_a_plan_that_was_written_and_read_is_the_same_plan(plan: Plan) -> None:
    assert PLAN.validate_json(PLAN.dump_json(plan)) == plan


@given(plan=plans())
@settings(max_examples=40)
def test_a_plan_that_was_written_and_read_has_the_same_hash(plan: Plan) -> None:
    assert PLAN.validate_json(PLAN.dump_json(plan)).hash == plan.hash


def test_a_step_is_found_by_its_name() -> None:
    plan = rollback_plan(None)
    assert all(plan.step(s.name) is s for s in plan.steps)


def test_a_plan_that_has_no_such_step_says_so() -> None:
    with pytest.raises(KeyError):
        rollback_plan(None).step("fence")
