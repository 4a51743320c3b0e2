"""Which release each service answers from, while a plan is carried out: told from its records, and never too early."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lastgood.core.answering import Answering
from lastgood.core.plan import Seen
from lastgood.core.record import Event, RunEnded
from lastgood.core.report import TerminalState
from tests.core.examples import release as made
from tests.core.examples import rollback_plan
from tests.core.run_records import done, events_about, failed, found, started

PLAN = rollback_plan(None)
BAD = made(PLAN.from_release)
OLD = PLAN.to_release
MOVES = [step.name for step in PLAN.steps if step.serves]


def after(*events: Event) -> Answering:
    answering = Answering()
    for event in events:
        answering.take(PLAN, event, BAD)
    return answering


@pytest.mark.parametrize(
    "events,core",
    [
        pytest.param(done("pass-gate"), None, id="nothing-moved"),
        pytest.param([started("serve-core")], (BAD.id, OLD), id="begun-without-an-answer"),
        pytest.param([started("serve-core"), found("serve-core", Seen.UNKNOWN)], (BAD.id, OLD), id="not-to-be-told"),
        pytest.param([started("serve-core"), found("serve-core", Seen.NOT_DONE)], (BAD.id, OLD), id="not-seen-done"),
        pytest.param(done("serve-core"), (OLD,), id="done"),
        pytest.param([started("serve-core"), failed("serve-core", again=True)], None, id="left-nothing-changed"),
        pytest.param(
            [started("serve-core"), failed("serve-core", again=False, needs_human=True)], (BAD.id, OLD), id="left-it-so"
        ),
        pytest.param(
            [
                *(started("serve-core"), found("serve-core", Seen.UNKNOWN)),
                *(started("serve-core", 2), failed("serve-core", again=False)),
            ],
            (BAD.id, OLD),
            id="the-attempt-before-may-have-changed-it",
        ),
    ],
)
def test_a_service_answers_from_one_release_only_where_that_is_known(
    events: Sequence[Event], core: tuple[str, ...] | None
) -> None:
    assert after(*events).services.get("core") == core


def test_what_no_step_began_to_move_answers_from_the_release_that_served() -> None:
    assert after(*done("serve-core")).services["agent"] == (BAD.id,)


@pytest.mark.parametrize(
    "terminal,serving,whole",
    [
        (TerminalState.ROLLED_BACK_VERIFIED, OLD, True),
        (TerminalState.ROLLED_BACK_DEGRADED, OLD, True),
        (TerminalState.NEEDS_HUMAN, OLD, True),
        (TerminalState.NEEDS_HUMAN, BAD.id, False),
        (TerminalState.ABORTED_BY_HUMAN, BAD.id, False),
    ],
)
def test_a_run_that_stopped_half_way_leaves_it_so(terminal: TerminalState, serving: str, *, whole: bool) -> None:
    answering = after(*done("serve-core"))
    answering.end(PLAN, RunEnded(run="r1", terminal=terminal, serving=serving))
    assert (answering.services == {}) is whole


@given(story=st.lists(st.sampled_from(events_about(PLAN, MOVES)), max_size=12))
@settings(max_examples=200)
def test_a_step_without_an_answer_is_never_taken_for_done_or_for_not_begun(story: list[Event]) -> None:
    for step in MOVES:
        answering = after(*story, started(step))
        (service,) = [name for each in PLAN.steps if each.name == step for name, _ in each.serves]
        assert OLD in answering.services[service]
