"""Killed at every step of every rung: the command, then the engine. The next command goes on, the release before serves
once, nothing is left over, and behind an edge no user notices that a command died."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.contract.rigs.gateway import ENGINE, Kills, gateway
from tests.integration.edge_shop import (
    GOOD,
    HELD,
    RECREATED,
    STANDBY,
    START_FIRST,
    WARM,
    EdgeShop,
    Rung,
    counted,
    edge_shop,
    possible,
)
from tests.integration.edge_world import traffic
from tests.integration.shop import KILLED

pytestmark = [pytest.mark.needs_docker, pytest.mark.full, pytest.mark.timeout(300)]

MOMENTS = ("before-intent", "after-intent", "after-act", "after-seen")
# What happens to a container once, whoever dies meanwhile.
ONCE = ("create", "start", "stop", "destroy", "rename")
PAUSE_S = 0.1


# In the middle of a step, where no kill point is: at this request to the engine.
IN_THE_MIDDLE = {
    "L0": {
        "what will serve gets its restart policy": Kills(at=r"POST /containers/[^/]+/update"),
        "the bad one is stopped": Kills(at=r"POST /containers/[^/]+/stop", later=1),
    },
    "L1": {"the standby is started": Kills(at=r"POST /containers/[^/]+/start")},
    "L2": {
        "the mold is made": Kills(at=r"POST /containers/create"),
        "the candidate is made": Kills(at=r"POST /containers/create", later=1),
        "the candidate is started": Kills(at=r"POST /containers/[^/]+/start"),
    },
    "L3": {
        "what served is stopped": Kills(at=r"POST /containers/[^/]+/stop"),
        "what served is removed": Kills(at=r"DELETE /containers/", later=1),
        "the replacement is started": Kills(at=r"POST /containers/[^/]+/start", later=1),
    },
    "L4": {"what served is removed": Kills(at=r"DELETE /containers/", later=2)},
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every moment of every step of the class's rung."""
    cls: type[KilledCommand | KilledDeploy] | None = metafunc.cls
    if cls is not None and "moment" in metafunc.fixturenames:
        metafunc.parametrize("moment", IN_THE_MIDDLE[cls.rung.name])
    if cls is not None and "point" in metafunc.fixturenames:
        named = [f"{moment}:{step}" for step in cls.rung.steps for moment in MOMENTS]
        others = ("after-plan:rollback", "before-end:rollback") if issubclass(cls, KilledCommand) else ()
        metafunc.parametrize("point", [*named, *others])


@pytest.fixture(scope="class")
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeShop]:
    cls: type[KilledCommand | KilledDeploy] | None = request.cls
    assert cls is not None
    with edge_shop(tmp_path_factory.mktemp(cls.rung.name), cls.rung) as made:
        yield made


class KilledCommand:
    """One stack on one rung, on which incident follows incident."""

    rung: ClassVar[Rung]

    def test_a_rollback_that_dies_goes_on(self, shop: EdgeShop, point: str) -> None:
        bad = shop.bad_release()
        told = shop.told_of_success
        with traffic(shop.world, pause_s=PAUSE_S) as answers, counted(shop.world) as happened:
            shop.roll_back(code=KILLED, die_at=point)
            assert shop.history.open_run is not None
            shop.roll_back()
        shop.check_it_went_back_whole()
        assert shop.told_of_success - told == 1
        assert {what: times for what, times in happened.items() if what[0] in ONCE and times > 1} == {}
        if self.rung is not RECREATED:
            assert set(answers) <= possible(self.rung, bad), answers

    def test_a_rollback_that_dies_in_the_middle_of_a_step_goes_on(
        self, shop: EdgeShop, moment: str, tmp_path: Path
    ) -> None:
        bad = shop.bad_release()
        told = shop.told_of_success
        with traffic(shop.world, pause_s=PAUSE_S) as answers, gateway(tmp_path / "e.sock", ENGINE) as gate:
            gate.fault = IN_THE_MIDDLE[self.rung.name][moment]
            gate.gone = shop.kill_the_command
            shop.host = gate.url
            try:
                shop.roll_back(code=KILLED)
                shop.roll_back()
            finally:
                shop.host = ""
        shop.check_it_went_back_whole()
        assert shop.told_of_success - told == 1
        if self.rung is not RECREATED:
            assert set(answers) <= possible(self.rung, bad), answers


class KilledDeploy:
    """One stack on one rung, on which deploy after deploy dies."""

    rung: ClassVar[Rung]

    def test_a_deploy_that_dies_is_undone_by_rollback(self, shop: EdgeShop, point: str) -> None:
        told = shop.told_of_success
        with traffic(shop.world, pause_s=PAUSE_S) as answers:
            bad = shop.bad_release_that_dies(point)
            shop.roll_back()
        shop.check_nothing_runs_of_a_deploy()
        assert shop.told_of_success - told == 1
        if self.rung is not RECREATED:
            forwards = {f"{GOOD}-{bad}"} if self.rung.alone else set[str]()
            assert set(answers) <= possible(self.rung, bad) | forwards, answers


class TestKilledOnL0(KilledCommand):
    rung = WARM


class TestKilledOnL1(KilledCommand):
    rung = STANDBY


class TestKilledOnL2(KilledCommand):
    rung = START_FIRST


class TestKilledOnL3(KilledCommand):
    rung = HELD


class TestKilledOnL4(KilledCommand):
    rung = RECREATED


class TestDeployKilledOnL0(KilledDeploy):
    rung = WARM


class TestDeployKilledOnL1(KilledDeploy):
    rung = STANDBY


class TestDeployKilledOnL2(KilledDeploy):
    rung = START_FIRST


class TestDeployKilledOnL3(KilledDeploy):
    rung = HELD


class TestDeployKilledOnL4(KilledDeploy):
    rung = RECREATED
