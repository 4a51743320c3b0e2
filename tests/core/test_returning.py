"""The way back: the order of its steps, what waits for a person, and what may never be in a plan.

The tables are data: tests/cases/plan, on the ground of tests/cases/ground.yaml.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lastgood.cli.rendering import plan_lines
from lastgood.core.deploying import changed_services
from lastgood.core.errors import Refused
from lastgood.core.facts import ContainerFacts, Health, InstanceFacts
from lastgood.core.migration import MOST_CHANGES, Blame, Fit, Rung, SchemaChange, WritesSince, judge_migration
from lastgood.core.plan import (
    CatchUp,
    ClearCandidates,
    ExportWrites,
    Fence,
    HoldRequests,
    LiftFence,
    MigrateDown,
    PassGate,
    PassRequests,
    Plan,
    RehearseDown,
    ReplayWrites,
    RestoreClone,
    Retire,
    Role,
    SaveDump,
    Serve,
    Settle,
    SwapDatabase,
    runs,
    world_agrees,
)
from lastgood.core.release import RestorePoint, Untouched
from lastgood.core.returning import World, make_clear_plan, make_lift_plan, make_pass_plan, make_plan, own_dump_for
from lastgood.testing.world import START
from tests.core.examples import (
    DEADLINES,
    EVIDENCE,
    OWN_DUMP,
    RESTORE_POINT,
    database_facts,
    facts,
    less_plan,
    release,
    rollback_plan,
    without,
    world,
)
from tests.core.plan_case import case, names, planned, refusal
from tests.core.planned_worlds import OLD, ONLY, changed, plan_or_refusal, plans, worlds

PLANNED = names(refused=False)


def begin(said: tuple[str, ...], expected: tuple[str, ...]) -> bool:
    """Whether each line begins as expected, and there is no other."""
    return len(said) == len(expected) and all(map(str.startswith, said, expected))


@pytest.mark.parametrize("name", PLANNED)
def test_the_steps_are_these_in_this_order(name: str) -> None:
    assert tuple(step.name for step in planned(name).steps) == case(name).expected.steps


@pytest.mark.parametrize("name", PLANNED)
def test_these_steps_wait_for_a_person_and_no_other(name: str) -> None:
    assert tuple(step.name for step in planned(name).steps if step.needs_approval) == case(name).expected.waits


@pytest.mark.parametrize("name", PLANNED)
def test_the_database_goes_back_as_far_as_this(name: str) -> None:
    decision = planned(name).database
    assert (decision.rung.name if decision else None) == case(name).expected.database


@pytest.mark.parametrize("name", PLANNED)
def test_what_is_left_out_is_said(name: str) -> None:
    skipped = planned(name).skipped
    assert begin(skipped, case(name).expected.skipped), skipped


@pytest.mark.parametrize("name", PLANNED)
def test_what_a_person_should_know_first_is_said(name: str) -> None:
    warnings = planned(name).warnings
    assert begin(warnings, case(name).expected.warnings), warnings


@pytest.mark.parametrize("name", PLANNED)
def test_invalid_rows_that_stay_are_named(name: str) -> None:
    rows = planned(name).invalid_rows
    assert begin(rows, case(name).expected.invalid_rows), rows


@pytest.mark.parametrize("name", names(refused=True))
def test_what_would_make_things_worse_is_refused(name: str) -> None:
    assert refusal(name).startswith(case(name).refused), refusal(name) or "not refused"


def test_every_answer_about_the_old_release_meets_every_blame_in_some_case() -> None:
    given_by_cases = [case(name).given.world.evidence for refused in (True, False) for name in names(refused=refused)]
    met = {(e.old_release.fit, judge_migration(e).blame) for e in given_by_cases if e and e.changes}
    assert met == set(product(Fit, Blame)) - {(fit, Blame.NOBODY) for fit in Fit}


def test_the_plan_says_which_restore_point_and_what_would_be_replayed() -> None:
    decision, point = (
        planned("old-does-not-fit-migration-to-blame").database,
        case("old-does-not-fit-migration-to-blame").given.world.restore_point,
    )
    assert decision is not None
    assert point is not None
    assert (decision.restore_point, decision.restore_point_taken_at) == (point.id, point.taken_at)
    assert decision.carries == WritesSince(tables=(("missions", 12), ("users", 3)), rate_per_s=2.0)


def test_only_what_does_not_fit_leaves_the_live_data() -> None:
    plan = planned("old-does-not-fit-migration-to-blame")
    assert {step.name for step in plan.steps if step.loses} == {"replay-writes"}


def test_what_is_replayed_while_the_database_serves_may_not_fit_either() -> None:
    plan = planned("captured-old-does-not-fit")
    assert {step.name for step in plan.steps if step.loses} == {"catch-up", "replay-writes"}


def test_a_plan_that_cannot_replay_transactions_says_why() -> None:
    decision = planned("old-does-not-fit-migration-to-blame").database
    assert decision is not None
    assert decision.lossy_because == ("what was written since rp-d2 can no longer be replayed one by one",)


def test_a_capture_that_is_gone_before_the_plan_starts_stops_it() -> None:
    plan = planned("captured-old-does-not-fit")
    facts = {Role.DATABASE: database_facts(captured=False)}
    assert world_agrees(plan, facts) == ("what was written since rp-d2 is no longer captured",)


def test_rows_that_could_not_be_counted_are_not_called_none() -> None:
    assert "the rows written since" in rollback_plan(replace(EVIDENCE, writes=None)).step("replay-writes").explain


def test_what_leaves_with_an_own_dump_is_named_by_time_and_not_by_rows() -> None:
    plan = planned("own-dump-clone-gone-old-does-not-fit")
    decision, since = plan.database, "2026-01-01 00:20:00 UTC"
    assert decision is not None
    assert (decision.restore_point, f"{decision.leaves_since:%Y-%m-%d %H:%M:%S} UTC") == ("own-backup", since)
    assert (decision.carries, decision.loses, decision.lossy_because) == (None, None, ())
    assert plan.step("swap-database").loses == f"everything written since {since}; it stays in app_bad_r1"


def test_a_plan_is_bound_to_what_is_kept_of_the_dump() -> None:
    swap = planned("own-dump-clone-gone-old-does-not-fit").step("swap-database").action
    assert isinstance(swap, SwapDatabase)
    assert (swap.manifest, swap.clone, swap.replay) == ("m9", "app_lg_own-backup", "")


def test_what_is_rehearsed_is_what_is_run_and_what_was_shipped() -> None:
    plan, evidence = (
        planned("down-migration-old-does-not-fit"),
        case("down-migration-old-does-not-fit").given.world.evidence,
    )
    rehearse, down = plan.step("rehearse-down").action, plan.step("migrate-down").action
    assert isinstance(rehearse, RehearseDown)
    assert isinstance(down, MigrateDown)
    assert evidence is not None
    assert evidence.way_down is not None
    assert rehearse.downs == down.downs == evidence.way_down.downs
    assert rehearse.dump == "app-r1"


def test_a_down_migration_says_what_it_takes_away_and_that_no_row_is_lost() -> None:
    plan = planned("down-migration-old-does-not-fit")
    assert {step.name: step.loses for step in plan.steps if step.loses} == {"migrate-down": "missions.mood (7)"}
    assert plan.database is not None
    assert plan.database.aside == (("missions.mood", 7),)
    assert plan.database.reasons[-1] == "every row stays where it is, and nothing that was written is lost"


@pytest.mark.parametrize(
    "name,why",
    [
        ("down-migration-does-not-hold", "the schema is not that of rp-d2 afterwards: missions.title is gone"),
        ("down-migration-would-leave-broken-rows", "the migration itself broke rows, which none would mend"),
    ],
)
def test_a_down_migration_that_is_not_chosen_is_told_with_the_reason(name: str, why: str) -> None:
    assert f"no down migration: {why}" in planned(name).reasons


OLDER, NEWER = (
    replace(OWN_DUMP, id=name, taken_at=START + timedelta(hours=hours)) for name, hours in (("own-1", 1), ("own-2", 2))
)
THERE = replace(
    database_facts(),
    databases=frozenset({"app", OWN_DUMP.clone, RESTORE_POINT.clone}),
    manifests=(("own-1", "m9"), ("own-2", "m9"), (RESTORE_POINT.id, RESTORE_POINT.manifest)),
)


@pytest.mark.parametrize(
    "known,fingerprint,before,chosen",
    [
        pytest.param((OLDER, NEWER), "f1", None, "own-2", id="the-newest"),
        pytest.param((NEWER, OLDER), "f1", START, "own-2", id="whenever-it-was-taken-if-its-schema-is-the-one"),
        pytest.param((OLDER, replace(NEWER, fingerprint="f2")), "f1", None, "own-1", id="with-that-schema"),
        pytest.param((OLDER, NEWER), "", START + timedelta(minutes=90), "own-1", id="older-than-the-deployment"),
        pytest.param((OLDER, NEWER), "", None, "own-2", id="of-a-deployment-that-nobody-knows"),
        pytest.param((OLDER, replace(NEWER, manifest="m8")), "f1", None, "own-1", id="as-the-journal-has-it"),
        pytest.param((OLDER, replace(NEWER, clone="gone")), "f1", None, "own-1", id="with-its-clone"),
        pytest.param((OLDER, replace(NEWER, proved_at=None)), "f1", None, "own-1", id="proved"),
        pytest.param((RESTORE_POINT,), "f1", None, None, id="never-one-that-lastgood-took"),
        pytest.param((), "f1", None, None, id="none"),
    ],
)
def test_of_a_persons_own_dumps_the_newest_that_fits_is_chosen(
    known: tuple[RestorePoint, ...], fingerprint: str, before: datetime | None, chosen: str | None
) -> None:
    found = own_dump_for(fingerprint, known, THERE, before=before)
    assert (found.id if found else None) == chosen


@pytest.mark.parametrize(
    "recoverable,hint",
    [("rp-d2", "lastgood restore-points recover --to rp-d2"), ("", "lastgood restore-points add FILE")],
)
def test_where_no_restore_point_is_left_the_refusal_names_the_way_that_is(recoverable: str, hint: str) -> None:
    given = case("clone-gone-old-does-not-fit").given
    with pytest.raises(Refused) as refused:
        replace(
            case("clone-gone-old-does-not-fit"),
            given=replace(given, world=replace(given.world, recoverable=recoverable)),
        ).plan()
    assert refused.value.hint == hint


def test_the_database_that_is_replaced_keeps_one_name_through_fence_export_and_swap() -> None:
    actions = [step.action for step in planned("old-does-not-fit-migration-to-blame").steps]
    kept_as = {a.kept_as for a in actions if isinstance(a, Fence | ExportWrites | ReplayWrites | SwapDatabase)}
    assert kept_as == {"app_bad_r1"}


def test_the_reasons_of_the_database_step_are_those_of_the_evidence() -> None:
    plan = planned("old-does-not-fit-migration-to-blame")
    assert plan.reasons == (
        'SQLSTATE 42703, 31 times, names title: column "title" does not exist',
        "old cannot run on today's schema: 42703 title",
    )


def test_what_is_behind_a_fence_gets_its_name_back_without_asking_anybody() -> None:
    plan = rollback_plan(EVIDENCE)
    lift = make_lift_plan(plan, plan_id="r2", now=START, deadlines=DEADLINES)
    assert lift is not None
    assert [step.action for step in lift.steps] == [LiftFence(kept_as="app_bad_r1")]
    assert not lift.needs_approval


def test_lifting_a_fence_leaves_the_release_that_serves() -> None:
    lift = make_lift_plan(rollback_plan(EVIDENCE), plan_id="r2", now=START, deadlines=DEADLINES)
    assert lift is not None
    assert (lift.from_release, lift.to_release) == ("bad", "bad")


def test_a_plan_without_a_fence_has_none_to_lift() -> None:
    assert make_lift_plan(rollback_plan(None), plan_id="r2", now=START, deadlines=DEADLINES) is None


def test_what_a_gate_started_is_removed_without_asking_anybody() -> None:
    clear = make_clear_plan(rollback_plan(EVIDENCE), plan_id="r2", now=START, deadlines=DEADLINES)
    assert [step.action for step in clear.steps] == [ClearCandidates()]
    assert not clear.needs_approval


def test_clearing_a_gate_leaves_the_release_that_serves() -> None:
    clear = make_clear_plan(rollback_plan(EVIDENCE), plan_id="r2", now=START, deadlines=DEADLINES)
    assert (clear.from_release, clear.to_release) == ("bad", "bad")


def test_behind_an_edge_the_standby_stays_for_the_next_try() -> None:
    clear = make_clear_plan(rollback_plan(None, edge=True), plan_id="r2", now=START, deadlines=DEADLINES)
    assert [step.action for step in clear.steps] == [ClearCandidates(standby="old")]


def test_behind_an_edge_the_bad_release_leaves_the_traffic_at_once_and_nothing_of_it_stays_up() -> None:
    plan = rollback_plan(None, edge=True)
    assert [s.name for s in plan.steps] == ["pass-gate", "switch-traffic", "serve-agent", "settle", "return-frontend"]
    assert plan.step("settle").action == Settle(standby="")


def test_whoever_waits_when_a_plan_stops_is_passed_on_without_asking_anybody() -> None:
    plan = make_pass_plan(rollback_plan(EVIDENCE, edge=True), plan_id="r2", now=START, deadlines=DEADLINES)
    assert [step.action for step in plan.steps] == [PassRequests()]
    assert not plan.needs_approval
    assert (plan.from_release, plan.to_release) == ("bad", "bad")


# --- what may never be, whatever the world looks like ----------------------------------------------------------------


@given(plan=plans())
@settings(max_examples=30)
def test_no_plan_touches_a_service_that_is_not_in_the_release(plan: Plan) -> None:
    touched = {s.action.service for s in plan.steps if isinstance(s.action, Serve)}
    touched |= {service for s in plan.steps if isinstance(s.action, PassGate) for service, _ in s.action.artifacts}
    assert touched <= {service.name for service in OLD.services}


@given(world=worlds, only=ONLY)
@settings(max_examples=30)
def test_what_the_release_does_not_have_stops_and_nothing_that_it_has_or_that_is_stateful(
    world: World, only: frozenset[Role]
) -> None:
    plan = plan_or_refusal(world, only)
    if isinstance(plan, Refused):
        return
    retired = {s.action.service for s in plan.steps if isinstance(s.action, Retire)}
    stays = {s.name for s in OLD.services} | {i.service for i in world.containers.stateful}
    serve = {i.service for i in world.containers.serving}
    assert retired == (serve - stays if Role.CONTAINERS in only else set())


def test_what_stood_beside_the_release_when_it_was_recorded_goes_on() -> None:
    beside = Untouched(name="agent", reference="agent", stateful=False, why="containers.services does not name it")
    target = replace(without(release("old"), "agent"), untouched=(beside,))
    plan = make_plan(target, world(None, frontend=False), plan_id="r1", now=START, serving="bad", deadlines=DEADLINES)
    assert [s.name for s in plan.steps] == ["pass-gate", "serve-core", "serve-orchestrator", "clear-candidates"]


@pytest.mark.parametrize(
    "service,edge,steps",
    [
        pytest.param(
            "agent",
            False,
            ["pass-gate", "serve-core", "serve-orchestrator", "retire-agent", "clear-candidates"],
            id="who-knows-it-is-gone-first",
        ),
        pytest.param(
            "agent", True, ["pass-gate", "switch-traffic", "retire-agent", "settle"], id="one-that-no-edge-switches"
        ),
        pytest.param(
            "orchestrator",
            True,
            ["pass-gate", "switch-traffic", "serve-agent", "retire-orchestrator", "settle"],
            id="one-that-the-edge-switches",
        ),
    ],
)
def test_a_service_that_the_bad_release_added_stops(service: str, edge: bool, steps: list[str]) -> None:
    assert [s.name for s in less_plan(service, edge=edge).steps] == steps


def test_a_service_that_was_renamed_gives_its_port_to_the_one_that_comes_back() -> None:
    bad = world(None, frontend=False)
    renamed = tuple(replace(i, service="front") if i.service == "core" else i for i in bad.containers.serving)
    plan = make_plan(
        release("old"),
        replace(bad, containers=replace(bad.containers, serving=renamed)),
        plan_id="r1",
        now=START,
        serving="bad",
        deadlines=DEADLINES,
    )
    assert [s.name for s in plan.steps][:3] == ["pass-gate", "retire-front", "serve-core"]


def test_a_file_of_the_edge_that_says_something_else_is_put_right_where_nothing_goes_back() -> None:
    there = world(None, frontend=False)
    there = replace(there, containers=replace(facts("old"), unwritten=frozenset({"core"})))
    plan = make_plan(release("old"), there, plan_id="r1", now=START, serving="bad", deadlines=DEADLINES)
    assert [s.name for s in plan.steps] == ["clear-candidates"]


def test_a_service_that_is_all_that_was_added_stops_alone() -> None:
    bad = world(None, frontend=False)
    plan = make_plan(without(release("bad"), "agent"), bad, plan_id="r1", now=START, serving="bad", deadlines=DEADLINES)
    assert [s.name for s in plan.steps] == ["retire-agent", "clear-candidates"]
    assert ("agent", "agent-bad") in plan.found


@given(plan=plans())
@settings(max_examples=30)
def test_every_database_step_behind_the_safety_dump_waits_for_a_person(plan: Plan) -> None:
    database = [step for step in plan.steps if step.role is Role.DATABASE]
    assert not database or isinstance(database[0].action, SaveDump)
    # a rehearsal changes nothing that is live, and whoever is asked should know how it went
    changes_nothing = RehearseDown | RestoreClone
    assert all(step.needs_approval for step in database[1:] if not isinstance(step.action, changes_nothing))


@given(plan=plans())
@settings(max_examples=30)
def test_nothing_is_swapped_before_it_was_dumped_fenced_and_replayed(plan: Plan) -> None:
    kinds = [type(step.action) for step in plan.steps if step.role is Role.DATABASE]
    assert RestoreClone not in kinds or kinds.index(RestoreClone) == 1
    order = [kind for kind in kinds if kind is not RestoreClone]
    by_transactions = [SaveDump, CatchUp, Fence, ReplayWrites, SwapDatabase]
    by_rows = [SaveDump, Fence, ExportWrites, ReplayWrites, SwapDatabase]
    rung = plan.database.rung if plan.database else Rung.D0
    to_an_own_dump = [SaveDump, Fence, SwapDatabase]
    down = [SaveDump, RehearseDown, MigrateDown]
    expected = {Rung.D2: down, Rung.D3: by_transactions, Rung.D3B: by_rows, Rung.D4: to_an_own_dump}
    assert order == expected.get(rung, [])


@given(world=st.one_of(changed(Fit.NO), changed(Fit.YES)), only=ONLY)
@settings(max_examples=100)
def test_nothing_is_replayed_into_a_clone_that_is_not_as_it_was_or_as_it_is_known(
    world: World, only: frozenset[Role]
) -> None:
    plan = plan_or_refusal(world, only)
    kinds = [] if isinstance(plan, Refused) else [type(step.action) for step in plan.steps]
    facts = world.database
    if ReplayWrites not in kinds or facts is None:
        return
    there, filled = RESTORE_POINT.clone in facts.databases, RESTORE_POINT.id in facts.filled
    whole = there and not filled  # as it was proved
    goes_on = there and filled and CatchUp in kinds  # behind what was replayed, the server tells the rest
    assert (RestoreClone in kinds) == (not whole and not goes_on)
    assert CatchUp not in kinds or RESTORE_POINT.id in facts.captures
    assert not (CatchUp in kinds and RestoreClone in kinds and filled), "what the server told once it tells no more"


def test_a_clone_that_is_restored_first_is_told_with_the_reason_and_its_rows_are_not_counted() -> None:
    plan = planned("filled-capture-over")
    assert plan.database is not None
    why = "clone_rp-d2 holds a part of what was written since, and the rest can no longer be replayed one by one"
    assert plan.database.reasons[-1] == f"{why}: its dump is restored beside first"
    assert plan.database.carries is None
    assert plan.step("restore-clone").action == RestoreClone(restore_point="rp-d2", clone="clone_rp-d2", manifest="m1")


def test_a_clone_that_is_to_be_restored_is_not_missed_as_long_as_its_dump_is_there() -> None:
    plan = planned("clone-gone-dump-there")
    gone = replace(database_facts(), databases=frozenset({"app"}))
    assert world_agrees(plan, {Role.DATABASE: replace(gone, restore_points=frozenset({"rp-d2"}))}) == ()
    (line,) = world_agrees(plan, {Role.DATABASE: gone})
    assert line == "database clone_rp-d2, the clone of restore point rp-d2, is gone"


@given(world=st.one_of(worlds, changed(Fit.NO), changed(Fit.YES)), only=ONLY)
@settings(max_examples=30)
def test_requests_wait_from_before_the_fence_until_what_serves_fits_the_schema(
    world: World, only: frozenset[Role]
) -> None:
    plan = plan_or_refusal(world, only)
    kinds = [] if isinstance(plan, Refused) else [type(step.action) for step in plan.steps]
    begins = Fence if Fence in kinds else MigrateDown
    can = begins in kinds and world.containers.can_hold and Role.CONTAINERS in only
    assert kinds.count(HoldRequests) == kinds.count(PassRequests) == can
    if can:
        assert kinds.index(begins) - kinds.index(HoldRequests) == 1
        before_serving = kinds.index(Serve) > kinds.index(HoldRequests) if Serve in kinds else False
        ends = (SwapDatabase, MigrateDown)
        last = max(i for i, kind in enumerate(kinds) if kind in ends or (kind is Serve and before_serving))
        assert kinds.index(PassRequests) == last + 1


@given(plan=plans())
@settings(max_examples=30)
def test_names_of_steps_are_unique_in_their_plan(plan: Plan) -> None:
    assert len({step.name for step in plan.steps}) == len(plan.steps)


@given(plan=plans())
@settings(max_examples=30)
def test_a_swap_is_planned_exactly_when_the_plan_says_so(plan: Plan) -> None:
    swaps = any(isinstance(step.action, SwapDatabase) for step in plan.steps)
    rungs = (Rung.D3, Rung.D3B, Rung.D4)
    assert swaps == bool(plan.database and plan.database.rung in rungs)


@given(world=changed(Fit.NO), only=ONLY)
@settings(max_examples=60)
def test_migrations_are_taken_down_wherever_that_held_and_the_migration_itself_broke_nothing(
    world: World, only: frozenset[Role]
) -> None:
    plan = plan_or_refusal(world, only)
    said = world.evidence
    if isinstance(plan, Refused) or said is None or Role.DATABASE not in only:
        return
    broke = any(broken.by_migration for broken in said.broken)
    holds = bool(said.way_down and said.way_down.downs) and world.restore_point is not None and not world.unusable
    assert (plan.database is not None and plan.database.rung is Rung.D2) == (holds and not broke)


@given(world=changed(Fit.NO), only=ONLY)
@settings(max_examples=30)
def test_what_does_not_run_on_a_schema_never_serves_on_it(world: World, only: frozenset[Role]) -> None:
    plan = plan_or_refusal(world, only)
    steps = [] if isinstance(plan, Refused) else [step.name for step in plan.steps]
    serves = [i for i, name in enumerate(steps) if name.startswith("serve-")]
    assert all({"swap-database", "migrate-down"} & set(steps[:i]) for i in serves)


@given(world=st.one_of(worlds, changed(Fit.NO), changed(Fit.YES)), only=ONLY)
@settings(max_examples=30)
def test_an_old_schema_never_comes_back_under_another_release(world: World, only: frozenset[Role]) -> None:
    plan = plan_or_refusal(world, only)
    steps = [] if isinstance(plan, Refused) else [step.name for step in plan.steps]
    if {"swap-database", "migrate-down"} & set(steps):
        changed_ = {f"serve-{service.name}" for service in changed_services(OLD, world.containers)}
        assert changed_ <= set(steps)


@given(world=worlds, only=ONLY)
def test_what_is_slow_to_answer_is_not_recreated_for_a_release_that_never_served(
    world: World, only: frozenset[Role]
) -> None:
    plan = plan_or_refusal(replace(world, untouched=True), only)
    steps = () if isinstance(plan, Refused) else plan.steps
    going_on = {
        service.name
        for service in OLD.services
        if (there := world.containers.of(service.name)) and all(i.running and runs(service, i) for i in there)
    }
    assert not going_on & {name for step in steps for name, _ in step.serves}


@pytest.mark.parametrize("switchable", [frozenset[str](), frozenset(s.name for s in OLD.services)])
@pytest.mark.parametrize("health", Health)
def test_a_stack_that_went_on_meanwhile_is_left_alone_behind_an_edge_too(
    health: Health, switchable: frozenset[str]
) -> None:
    """Behind the edge it may be what compose started, which is bound to no release."""
    there = tuple(
        InstanceFacts(service=s.name, instance=s.name, artifact=s.artifact, running=True, health=health)
        for s in OLD.services
    )
    facts = ContainerFacts(observed_at=START, serving=there, candidates=(), stateful=(), switchable=switchable)
    assert changed_services(OLD, facts, untouched=True) == ()
    down = replace(facts, serving=(replace(there[0], running=False), *there[1:]))
    together = OLD.services if switchable else OLD.services[:1]
    assert changed_services(OLD, down, untouched=True) == together


@given(world=changed(Fit.UNKNOWN), only=ONLY)
@settings(max_examples=30)
def test_where_nobody_can_tell_nothing_serves_before_a_person_agreed(world: World, only: frozenset[Role]) -> None:
    plan = plan_or_refusal(world, only)
    assert isinstance(plan, Plan)
    assert all(step.needs_approval for step in plan.steps if isinstance(step.action, Serve))


@given(world=changed(Fit.YES), only=ONLY.map(lambda roles: roles | {Role.CONTAINERS}))
@settings(max_examples=30)
def test_where_the_old_release_runs_nothing_holds_up_its_containers(world: World, only: frozenset[Role]) -> None:
    plan = plan_or_refusal(world, only)
    assert isinstance(plan, Plan)
    last = max((i for i, step in enumerate(plan.steps) if isinstance(step.action, Serve)), default=0)
    assert not any(step.needs_approval for step in plan.steps[:last])


def test_the_plan_shows_the_foremost_differences_of_the_schema_each_in_one_line_of_bounded_length() -> None:
    known = case("old-does-not-fit-migration-to-blame")
    evidence = known.given.world.evidence
    assert evidence is not None
    definition = f"is new (view\n  SELECT {'x' * 500})"
    changes = tuple(SchemaChange(object=f"c{n:02}", change=definition) for n in range(MOST_CHANGES + 3))
    world = replace(known.given.world, evidence=replace(evidence, changes=changes))
    plan = replace(known, given=replace(known.given, world=world)).plan()
    told = [line for line in plan_lines(plan) if line.startswith("schema")]
    assert len(told) == MOST_CHANGES + 1
    assert told[0].startswith("schema    c00: is new (view SELECT xxx")
    assert all(len(line) < 220 for line in told)
    assert told[-1] == "schema    and 3 more differences"
