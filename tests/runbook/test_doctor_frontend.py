"""What the doctor says of a frontend whose pages do not tell which deployment they are."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from lastgood.core.history import History
from lastgood.core.plan import Role
from lastgood.core.ports import Frontend
from lastgood.runbook import doctor
from tests.core.examples import rollback_plan
from tests.runbook.test_crash_points import Simulation


@pytest.mark.parametrize(
    "shown,answer",
    [(("dpl_bad", "dpl_bad"), None), (("dpl_bad", ""), doctor.Answer.COULD_NOT_LOOK), ((), None)],
)
def test_a_silent_domain_is_neither_ok_nor_failed_and_is_named(
    shown: tuple[str, ...], answer: doctor.Answer | None
) -> None:
    simulation = Simulation(rollback_plan(None))
    domains = tuple((f"{number}.example", what) for number, what in enumerate(shown))
    simulation.world.frontend = replace(simulation.world.frontend, domains=domains)
    rooms = replace(simulation.rooms(), frontend=cast("Frontend", simulation.world.hand(Role.FRONTEND)))
    found = {finding.check: finding for finding in doctor._frontend(rooms, History())}
    assert found["frontend"].answer is doctor.Answer.OK
    told = found.get("frontend domains")
    assert (told.answer if told else None) is answer
    assert told is None or ("1.example" in told.evidence and told.hint)
