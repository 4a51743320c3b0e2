"""A frontend host that is away keeps nothing else from going back."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from lastgood.core.errors import LastgoodError, Refused, Retryable
from lastgood.core.facts import Facts
from lastgood.core.history import ReleaseHistory
from lastgood.core.plan import Plan, Purpose, ReturnFrontend, Role, Serve, Step
from lastgood.core.ports import Containers, Frontend
from lastgood.core.report import TerminalState
from lastgood.core.run import Stop
from lastgood.runbook.carry_out import carry_out
from lastgood.runbook.rollback import plan_rollback
from lastgood.runbook.rooms import Rooms
from lastgood.testing.world import Hand
from tests.core.examples import release, rollback_plan
from tests.runbook.test_crash_points import Simulation

AWAY = [Retryable("vercel: no answer", delay_s=1), Refused("vercel does not accept the token", hint="renew it")]


class Away:
    """A frontend that cannot be looked at and takes nothing."""

    role = Role.FRONTEND

    def __init__(self, error: LastgoodError) -> None:
        self._error = error

    def observe(self) -> Facts:
        raise self._error

    def apply(self, _step: Step) -> None:
        raise self._error


class RungHand(Hand):
    """The world's containers, with what a plan asks of them."""

    def rung(self, release: str = "") -> str:  # noqa: ARG002 # the same whatever is asked
        return "L4"


def rooms_without_a_frontend_host(simulation: Simulation, error: LastgoodError) -> Rooms:
    """The simulation's rooms, its frontend away."""
    containers = cast("Containers", RungHand(simulation.world, Role.CONTAINERS))
    frontend = cast("Frontend", Away(error))
    return replace(simulation.rooms(), containers=containers, database=None, frontend=frontend)


@pytest.mark.parametrize("error", AWAY, ids=["away", "refuses"])
def test_the_way_back_is_planned_all_the_same_and_says_what_could_not_be_seen(error: LastgoodError) -> None:
    rooms = rooms_without_a_frontend_host(Simulation(rollback_plan(None)), error)
    target = ReleaseHistory(release=release("old"), frontend="dpl_old")
    plan: Plan = plan_rollback(rooms, target, plan_id="r2")
    assert plan.purpose is Purpose.ROLLBACK
    kinds = [type(step.action) for step in plan.steps]
    assert Serve in kinds
    assert kinds[-1] is ReturnFrontend
    assert any(error.message in warning for warning in plan.warnings)


@pytest.mark.parametrize("error", AWAY, ids=["away", "refuses"])
def test_what_can_go_back_goes_back_and_then_a_person_is_needed(error: LastgoodError) -> None:
    simulation = Simulation(rollback_plan(None))
    ending = carry_out(rooms_without_a_frontend_host(simulation, error), "r1")
    assert isinstance(ending, Stop)
    assert ending.terminal is TerminalState.NEEDS_HUMAN
    assert error.message in ending.reason
    served = {i.artifact for i in simulation.world.containers.serving}
    assert served == {service.artifact for service in release("old").services}
