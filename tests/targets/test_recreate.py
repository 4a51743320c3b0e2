"""A service that is recreated behind an edge: when its requests wait, and that they go on. The edge is a real one; the
engine only shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lastgood.core.errors import OutcomeUnknown, Refused
from lastgood.core.plan import Serve
from lastgood.core.release import ServiceRecord
from lastgood.targets.compose.edge import Edge
from lastgood.targets.compose.engine import connect
from lastgood.targets.compose.haproxy import Runtime
from lastgood.targets.compose.kept import KeptRelease
from lastgood.targets.compose.recreate import _wait, recreate_behind
from tests.targets.engine_double import EngineDouble, engine_double
from tests.targets.running_haproxy import PROJECT, Running, answering, edge_in, naming

pytestmark = [pytest.mark.needs_server, pytest.mark.timeout(60)]
IMAGE = f"sha256:{1:064x}"
LABELS = {"com.docker.compose.project": "shop", "com.docker.compose.service": "web"}
ONE = {
    "Id": f"{1:064x}",
    "Name": "/one",
    "Image": IMAGE,
    "Config": {"Labels": {**LABELS, "com.docker.compose.config-hash": "1"}, "Tty": True},
    "State": {"Status": "running", "Running": True, "ExitCode": 0},
    "NetworkSettings": {"Networks": {"shop_default": {"IPAddress": "127.0.0.1"}}},
}


@dataclass
class Held:
    """web, in one container named `one`, behind an edge; v1 is kept."""

    edge: Edge
    running: Running
    engine: EngineDouble
    kept: KeptRelease
    host: str

    def recreate(self) -> None:
        action = Serve(release="v1", service="web", artifact=IMAGE, config_hash="")
        with connect("shop", {"DOCKER_HOST": self.host}) as engine:
            recreate_behind(self.edge.stack, engine, self.edge, self.kept, action, deadline_s=5.0)

    def has_its_image(self) -> None:
        self.engine.images.append({"Id": IMAGE, "RepoTags": ["lastgood/web:v1"], "RepoDigests": [], "Config": {}})


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    edge = edge_in(tmp_path, one_at_a_time=["web"], drain="1s")
    record = ServiceRecord(name="web", artifact=IMAGE, held_as="lastgood/web:v1")
    kept = edge.stack.shelf.keep("v1", PROJECT, (record,))
    asked: list[bytes] = []
    with (
        answering("one", asked) as port,
        naming() as names,
        engine_double(tmp_path / "engine.sock") as engine,
    ):
        engine.containers.append(ONE)
        running = Running(edge.folder, port, port, asked, names=names.getsockname()[1])
        running.runtime.move(to=[("web", "s0")], away=[("web", "s1")])
        try:
            yield Held(edge, running, engine, kept, f"unix://{tmp_path / 'engine.sock'}")
        finally:
            running.process.terminate()
            running.process.wait()


@pytest.mark.parametrize(
    "state,restarts,said",
    [
        ({"Running": False, "ExitCode": 3}, 0, "exited with 3"),
        ({"Running": False, "ExitCode": 137, "OOMKilled": True}, 0, "exited with 137, out of memory"),
        ({"Running": True, "Health": {"Status": "unhealthy"}}, 0, "is unhealthy"),
        (
            {"Running": True, "Health": {"Status": "unhealthy"}, "OOMKilled": True},
            3,
            "is unhealthy, out of memory, restarted 3 times",
        ),
        ({"Running": True, "Restarting": True}, 2, "is not healthy 0 s after its start, restarted 2 times"),
    ],
)
def test_what_a_restart_policy_hides_is_said(state: dict[str, Any], restarts: int, said: str, tmp_path: Path) -> None:
    stack = edge_in(tmp_path).stack
    action = Serve(release="v1", service="web", artifact=IMAGE, config_hash="")
    with (
        engine_double(tmp_path / "engine.sock") as double,
        connect("shop", {"DOCKER_HOST": f"unix://{tmp_path / 'engine.sock'}"}) as engine,
    ):
        double.containers.append({**ONE, "State": {"ExitCode": 0, **state}, "RestartCount": restarts})
        double.says[f"GET containers {ONE['Id']} logs"] = (404, {"message": "gone"})
        with pytest.raises(OutcomeUnknown, match=f"^web of v1 {said}; it said: nothing$"):
            _wait(stack, engine, PROJECT, action, timedelta())


def never(*_: object) -> None:
    pytest.fail("somebody waited")


def test_what_cannot_start_is_refused_before_anybody_waits(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Edge, "hold", never)
    with pytest.raises(Refused, match=r"the image of web .* is not on this host"):
        held.recreate()
    held.has_its_image()
    held.engine.containers.append(
        {"Id": f"{2:064x}", "Name": "/shop-web-1", "Config": {"Labels": {}}, "NetworkSettings": {}}
    )
    with pytest.raises(Refused, match="container shop-web-1 exists and is not a part of project shop"):
        held.recreate()


def test_requests_go_on_where_the_edge_did_not_say_whether_they_wait(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.has_its_image()
    hold = Runtime.hold

    def hold_and_say_nothing(runtime: Runtime, service: str, *, instead_of: list[str]) -> None:
        hold(runtime, service, instead_of=instead_of)
        raise OutcomeUnknown("the edge was told and did not answer")

    monkeypatch.setattr(Runtime, "hold", hold_and_say_nothing)
    with pytest.raises(OutcomeUnknown, match="was told and did not answer"):
        held.recreate()
    assert held.running.ready() == ["s0"]
    assert held.running.answer() == "one"


def test_a_request_waits_as_long_as_it_takes_to_drain_to_stop_and_to_boot(tmp_path: Path) -> None:
    edge = edge_in(tmp_path, one_at_a_time=["web"])
    (route,) = edge.routes(PROJECT)
    config = edge.stack.config
    assert route.patience_s > edge.config.drain + config.stop + config.boot
