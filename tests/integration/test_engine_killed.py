"""The engine is killed in the middle of every step of every rung, and started again as its service manager does: the
rollback is finished, by the same command. Started again later, it brings no bad release back.

Each stack stands on an engine of its own: killing one takes everybody's containers with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import pytest

from tests.contract.rigs.gateway import Dies, EngineGateway, gateway
from tests.contract.rigs.own_engine import ADDRESS, OwnEngine, own_engine, own_engine_gap
from tests.integration.edge_shop import (
    GOOD,
    HELD,
    RECREATED,
    STANDBY,
    START_FIRST,
    WARM,
    EdgeShop,
    Rung,
    edge_shop,
)
from tests.integration.edge_world import traffic

pytestmark = [pytest.mark.needs_docker, pytest.mark.full, pytest.mark.timeout(300)]

AWAY_S: Final = 2.0
"""From its death until it is started: systemd's RestartSec of docker.service."""
BACK_S: Final = 60.0

UPDATE = r"POST /containers/[^/]+/update"
START = r"POST /containers/[^/]+/start"
STOP = r"POST /containers/[^/]+/stop"
RENAME = r"POST /containers/[^/]+/rename"
REMOVE = r"DELETE /containers/[0-9a-f]+"
CREATE = r"POST /containers/create"

SWITCH_AND_SETTLE: Final = {
    "the next to serve gets its restart policy": Dies(at=UPDATE),
    "the worker is stopped": Dies(at=STOP),
    "the worker that takes its place is renamed": Dies(at=RENAME),
    "the bad one is stopped": Dies(at=STOP, later=1),
}
MOMENTS: Final[dict[str, dict[str, Dies]]] = {
    WARM.name: SWITCH_AND_SETTLE,
    STANDBY.name: {"the standby is started": Dies(at=START), **SWITCH_AND_SETTLE},
    START_FIRST.name: {
        "the mold is made": Dies(at=CREATE),
        "the candidate is made": Dies(at=CREATE, later=1),
        "the mold is removed": Dies(at=REMOVE),
        "the candidate is started": Dies(at=START),
        **SWITCH_AND_SETTLE,
    },
    HELD.name: {  # its requests wait in the last three
        "the candidate is started": Dies(at=START),
        "what served is stopped": Dies(at=STOP),
        "what served is removed": Dies(at=REMOVE, later=1),
        "the replacement is renamed": Dies(at=RENAME),
    },
    RECREATED.name: {  # by Compose: its container, its requests
        "the candidate is started": Dies(at=START),
        "what served is stopped": Dies(at=STOP),
        "what takes its place is renamed": Dies(at=RENAME),
    },
}


@dataclass(frozen=True, slots=True)
class Stack:
    shop: EdgeShop
    engine: OwnEngine
    gate: EngineGateway


@pytest.fixture(scope="class")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if gap := own_engine_gap():
        if os.environ.get("LASTGOOD_REQUIRE_ENGINE"):
            pytest.fail(f"needs a Docker engine of its own: {gap}", pytrace=False)
        pytest.skip(f"needs a Docker engine of its own: {gap}")
    cls: type[StartedAgain] | None = request.cls
    assert cls is not None
    folder = tmp_path_factory.mktemp(cls.rung.name)
    with (
        own_engine(live_restore=cls.live_restore) as engine,
        gateway(engine.folder / "g.sock", engine.socket) as gate,
        edge_shop(folder, cls.rung, address=ADDRESS, restart="always") as shop,
    ):
        gate.gone, gate.back = engine.kill, engine.start
        yield Stack(shop, engine, gate)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "moment" in metafunc.fixturenames:
        cls: type[StartedAgain] | None = metafunc.cls
        assert cls is not None
        moments = MOMENTS[cls.rung.name]
        # with live-restore the containers are the same ones afterwards, whether or not the effect was had
        done = (True,) if cls.live_restore else (False, True)
        metafunc.parametrize(
            "moment,done",
            [pytest.param(m, d, id=f"{m}-{'done' if d else 'asked'}") for m in moments for d in done],
        )


def wait_until(what: Callable[[], bool]) -> None:
    until = time.monotonic() + BACK_S
    while time.monotonic() < until:
        try:
            if what():
                return
        except OSError:
            pass
        time.sleep(0.1)
    assert what()


class StartedAgain:
    """One stack on an engine of its own, on which incident follows incident."""

    rung: ClassVar[Rung]
    live_restore: ClassVar[bool] = False

    @pytest.mark.parametrize("ends", ["killed", "stopped"])
    def test_an_engine_that_starts_again_after_a_rollback_brings_no_bad_release_back(
        self, stack: Stack, ends: str
    ) -> None:
        shop = stack.shop
        shop.bad_release()
        shop.roll_back()
        shop.check_it_went_back_whole()
        if ends == "killed":
            stack.engine.kill()
        else:
            stack.engine.stop()
        stack.engine.start()
        wait_until(lambda: shop.world.answer() == f"{GOOD}-{GOOD}")
        wait_until(lambda: shop.containers() == shop.expected())
        shop.check_it_went_back_whole()


class KilledEngine(StartedAgain):
    def test_a_rollback_goes_on_when_the_engine_is_back(
        self, stack: Stack, moment: str, record_property: Callable[[str, object], None], *, done: bool
    ) -> None:
        shop, gate = stack.shop, stack.gate
        shop.bad_release()
        told, struck = shop.told_of_success, gate.struck
        gate.fault = replace(MOMENTS[self.rung.name][moment], done=done, back_after_s=AWAY_S)
        shop.host = gate.url
        try:
            with traffic(shop.world, pause_s=0.1) as answers:
                shop.roll_back()
        finally:
            shop.host = ""
        record_property("answers", dict(answers))
        assert gate.struck - struck == 1, "the moment never came"
        shop.check_it_went_back_whole()
        assert shop.told_of_success - told == 1


class TestEngineKilledOnL0(KilledEngine):
    rung = WARM


class TestEngineKilledOnL1(KilledEngine):
    rung = STANDBY


class TestEngineKilledOnL2(KilledEngine):
    rung = START_FIRST


class TestEngineKilledOnL3(KilledEngine):
    rung = HELD


class TestEngineKilledOnL4(KilledEngine):
    rung = RECREATED


class TestEngineKilledOnL0WithLiveRestore(KilledEngine):
    rung = WARM
    live_restore = True


class TestEngineKilledOnL2WithLiveRestore(KilledEngine):
    rung = START_FIRST
    live_restore = True


class TestEngineKilledOnL3WithLiveRestore(KilledEngine):
    rung = HELD
    live_restore = True
