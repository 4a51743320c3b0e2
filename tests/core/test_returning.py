"""The way back: the order of its steps, what waits for a person, and what may never be in a plan.

The tables are data: tests/cases/plan, on the ground of tests/cases/ground.yaml.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from lastgood.core.migration import WritesSince
from lastgood.core.plan import ExportWrites, Fence, LiftFence, SwapDatabase
from lastgood.core.returning import make_lift_plan
from lastgood.testing.world import START
from tests.core.examples import DEADLINES, EVIDENCE, rollback_plan
from tests.core.plan_case import case, names, planned, refusal

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


def test_the_plan_says_which_restore_point_and_what_would_leave_the_live_data() -> None:
    decision, point = (
        planned("old-does-not-fit-migration-to-blame").database,
        case("old-does-not-fit-migration-to-blame").given.world.restore_point,
    )
    assert decision is not None
    assert point is not None
    assert (decision.restore_point, decision.restore_point_taken_at) == (point.id, point.taken_at)
    assert decision.loses == WritesSince(tables=(("missions", 12), ("users", 3)), rate_per_s=2.0)


def test_the_fence_and_the_swap_say_what_they_take_away() -> None:
    plan = planned("old-does-not-fit-migration-to-blame")
    assert {step.name for step in plan.steps if step.loses} == {"fence", "swap-database"}
    assert plan.step("fence").loses.startswith("15 rows written since leave the live data")


def test_rows_that_could_not_be_counted_are_not_called_none() -> None:
    assert rollback_plan(replace(EVIDENCE, writes=None)).step("fence").loses.startswith("the rows written since leave")


def test_the_database_that_is_replaced_keeps_one_name_through_fence_export_and_swap() -> None:
    actions = [step.action for step in planned("old-does-not-fit-migration-to-blame").steps]
    kept_as = {a.kept_as for a in actions if isinstance(a, Fence | ExportWrites | SwapDatabase)}
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
