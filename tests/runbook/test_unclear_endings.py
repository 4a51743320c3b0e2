"""Runs whose last step did not go as it should: what is said of them must be true."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from lastgood.core.errors import LastgoodError, NeedsHuman, Refused
from lastgood.core.facts import Facts
from lastgood.core.plan import Plan, Role, Step
from lastgood.core.ports import Containers, Database, Frontend
from lastgood.core.record import RunStarted
from lastgood.core.report import TerminalState
from lastgood.core.returning import make_plan
from lastgood.core.run import Stop
from lastgood.runbook.carry_out import carry_out
from lastgood.runbook.rooms import Memory, Rooms
from lastgood.testing.world import START, MemoryJournal, SteppedClock, World
from tests.core.examples import DEADLINES, HELD, release, serving, world
from tests.runbook.test_crash_points import config

Act = Callable[[Step], None]


class Hand:
    """A frontend that does what a test says. looks: how often it can still be looked at, None for ever."""

    role = Role.FRONTEND

    def __init__(self, truth: World, act: Act, looks: int | None) -> None:
        self._truth, self._act, self._looks = truth, act, looks

    def observe(self) -> Facts:
        if self._looks == 0:
            raise Refused("the token is not accepted", hint="renew it")
        if self._looks is not None:
            self._looks -= 1
        return self._truth.facts(self.role)

    def apply(self, step: Step) -> None:
        self._act(step)


def frontend_plan() -> Plan:
    """A rollback that touches the frontend alone."""
    return make_plan(
        release("old"),
        world(None),
        plan_id="r1",
        now=START,
        serving="bad",
        deadlines=DEADLINES,
        only=frozenset({Role.FRONTEND}),
    )


def ending(act: Act, *, looks: int | None = None) -> Stop:
    """Carry the plan out on a hand that acts so."""
    clock, truth, plan = SteppedClock(), World(serving=serving("bad"), held=HELD), frontend_plan()
    journal = MemoryJournal(clock)
    journal.append(RunStarted(run="r1", plan=plan, trigger="person", sentence="", by="t"))
    rooms = Rooms(
        config=config(),
        memory=Memory(journal),
        clock=clock,
        containers=cast("Containers", truth.hand(Role.CONTAINERS)),
        database=cast("Database", truth.hand(Role.DATABASE)),
        frontend=cast("Frontend", Hand(truth, act, looks)),
        sources=(),
        checkers=(),
        notifiers=(),
        root=Path(),
        state=Path(),
        who="t",
        story=lambda _line: None,
    )
    found = carry_out(rooms, "r1")
    assert isinstance(found, Stop)
    return found


def saying(error: LastgoodError) -> Act:
    def act(_step: Step) -> None:
        raise error

    return act


def test_a_step_that_says_no_at_once_left_nothing_behind() -> None:
    assert ending(saying(Refused("no", hint="type this"))).terminal is TerminalState.REFUSED


def test_a_step_that_was_carried_out_and_is_not_seen_done_is_never_called_untouched() -> None:
    assert ending(lambda _step: None).terminal is TerminalState.NEEDS_HUMAN


def test_a_step_that_asks_for_a_person_gets_one() -> None:
    stop = ending(saying(NeedsHuman("half of the domains moved", hint="type this")))
    assert stop.terminal is TerminalState.NEEDS_HUMAN
    assert (stop.reason, stop.hint) == ("return-frontend: half of the domains moved", "type this")


@pytest.mark.parametrize("looks", [2, 3])
def test_a_target_that_refuses_to_be_looked_at_after_the_act_ends_with_a_person_and_not_in_a_crash(looks: int) -> None:
    """The token expired in the middle: the run must not fall over with an effect under way."""
    stop = ending(lambda _step: None, looks=looks)
    assert stop.terminal is TerminalState.NEEDS_HUMAN
    assert "the token is not accepted" in stop.reason


def test_a_target_that_refuses_to_be_looked_at_beforehand_is_refused() -> None:
    stop = ending(lambda _step: None, looks=0)
    assert stop.terminal is TerminalState.REFUSED
    assert "the token is not accepted" in stop.reason
