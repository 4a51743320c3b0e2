"""What becomes of the release that served before, behind a real edge: its requests, its containers, and the file from
which the edge starts again. The engine only shows, and notes what it is told."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lastgood.core.errors import OutcomeUnknown, Retryable
from lastgood.core.plan import ClearCandidates, Retire, Settle
from lastgood.targets.compose.edge import Edge
from lastgood.targets.compose.engine import AT_ONCE, Container, Engine, connect
from lastgood.targets.compose.haproxy import CONFIG_FILE, SLOTS, Runtime
from lastgood.targets.compose.kept import KeptRelease
from lastgood.targets.compose.retire import retire
from lastgood.targets.compose.switch import clear_candidates, settle
from tests.contract.rigs.clock import CLOCK
from tests.targets.engine_double import EngineDouble, engine_double
from tests.targets.running_haproxy import PROJECT, Running, answering, edge_in, naming, talking

pytestmark = [pytest.mark.needs_server, pytest.mark.timeout(60)]
IMAGE = f"sha256:{1:064x}"


def labelled(number: int, name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {
        "Id": f"{number:064x}",
        "Name": f"/{name}",
        "Image": IMAGE,
        "Config": {"Labels": labels},
        "State": {"Status": "running", "Running": True, "ExitCode": 0},
        "NetworkSettings": {"Networks": {"shop_default": {"IPAddress": "127.0.0.1"}}},
    }


def twin(number: int, name: str, release: str) -> dict[str, Any]:
    labels = {"lastgood.candidate": f"shop:{release}", "lastgood.service": "web", "lastgood.release": release}
    return labelled(number, name, labels)


class Died(BaseException):
    """lastgood was killed here."""


@dataclass
class Shop:
    """web behind an edge: `one` is of v1 and serves, `two` is of v2 and stands beside. ended: what was stopped or
    removed, by name."""

    edge: Edge
    running: Running
    double: EngineDouble
    kept: KeptRelease
    host: str
    ended: list[str] = field(default_factory=list[str])

    def starts_with(self) -> tuple[str, ...]:
        """Who would get the requests from an edge that is started again."""
        return self.edge.places()["web"].serving

    def name_of(self, container: str) -> str:
        return next(str(c["Name"]) for c in self.double.containers if c["Id"] == container).removeprefix("/")

    def move_to(self, slot: str, name: str) -> None:
        self.edge.move(PROJECT, {"web": {slot: Container({"Name": f"/{name}"})}})

    def settle(self, standby: str, *, deadline_s: float = 20.0) -> None:
        with connect("shop", {"DOCKER_HOST": self.host}) as engine:
            settle(self.edge.stack, engine, self.edge, Settle(standby=standby), deadline_s=deadline_s)

    def clear(self) -> None:
        with connect("shop", {"DOCKER_HOST": self.host}) as engine:
            clear_candidates(self.edge.stack, engine, self.edge, ClearCandidates())

    def retire(self) -> None:
        action = Retire(release="v0", service="web")
        with connect("shop", {"DOCKER_HOST": self.host}) as engine:
            retire(self.edge.stack, engine, self.edge, self.kept, action, deadline_s=20.0)


def named_at(edge: Edge) -> set[str]:
    return {slot.container for slot in edge.runtime.slots() if slot.container}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    edge = edge_in(tmp_path, drain="1s")
    kept = edge.stack.shelf.keep("v0", PROJECT, ())
    made = {"com.docker.compose.project": "shop", "com.docker.compose.config-hash": "1"}
    with talking() as one, answering("two", []) as two, naming() as names, engine_double(tmp_path / "e.sock") as double:
        double.containers += [
            labelled(9, "shop-lastgood-edge-1", {**made, "com.docker.compose.service": edge.config.service}),
            twin(1, "one", "v1"),
            twin(2, "two", "v2"),
        ]
        running = Running(edge.folder, one, two, [], names=names.getsockname()[1])
        there = Shop(edge, running, double, kept, f"unix://{tmp_path / 'e.sock'}")
        monkeypatch.setattr(Engine, "start_again", lambda *_: None)
        monkeypatch.setattr(Engine, "stop", lambda _, at, **_said: there.ended.append(there.name_of(at)))
        monkeypatch.setattr(Engine, "remove", lambda _, at: there.ended.append(there.name_of(at)))
        try:
            while not all(slot.address for slot in running.runtime.slots() if slot.ready and slot.service == "web"):
                time.sleep(0.05)
            running.runtime.move(to=[("web", "s0")], away=[("web", "s1")])
            edge.lay_out(PROJECT, {"web": ["one"]})
            yield there
        finally:
            running.process.terminate()
            running.process.wait()


# --- the file from which the edge starts again ------------------------------------------------------------------------


def test_a_move_that_died_between_the_file_and_the_edge_leaves_a_file_that_clearing_puts_right(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody would serve after the next start of the host: what the file names is removed."""
    asked = (shop.edge.folder / CONFIG_FILE).read_text()

    def die(*_: object, **__: object) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(Runtime, "move", die)
        with pytest.raises(Died):
            shop.move_to("s1", "two")
    assert shop.edge.serving() == {"web": frozenset({"one"})}
    assert shop.starts_with() == ("two",)
    assert shop.edge.unwritten() == {"web"}
    shop.clear()
    assert (shop.starts_with(), shop.ended, shop.edge.unwritten()) == (("one",), ["two"], frozenset())
    assert named_at(shop.edge) == {"one"}
    assert (shop.edge.folder / CONFIG_FILE).read_text() == asked


def test_the_file_is_right_before_what_it_names_is_ended(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.edge.write(PROJECT, {"web": ["two"]})

    def die(*_: object) -> None:
        raise Died

    monkeypatch.setattr(Engine, "remove", die)
    with pytest.raises(Died):
        shop.clear()
    assert shop.starts_with() == ("one",)


def test_what_a_silent_edge_did_after_all_is_in_its_file_before_the_other_release_ends(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving, move = Edge.serving, Runtime.move
    looks: list[str] = []

    def silent_after(edge: Edge) -> dict[str, frozenset[str]]:
        looks.append("")
        if len(looks) == 2:
            raise Retryable("the edge does not answer", delay_s=1.0)
        return serving(edge)

    def move_and_say_nothing(runtime: Runtime, **said: Any) -> None:  # noqa: ANN401 # whatever it is told
        move(runtime, **said)
        raise OutcomeUnknown("the edge was told and did not answer")

    with monkeypatch.context() as patch:
        patch.setattr(Edge, "serving", silent_after)
        patch.setattr(Runtime, "move", move_and_say_nothing)
        with pytest.raises(OutcomeUnknown):
            shop.move_to("s1", "two")
    shop.edge.write(PROJECT, {"web": ["one"]})  # and somebody was told too early that it did not
    shop.settle("")
    assert (shop.starts_with(), shop.ended) == (("two",), ["one"])


# --- who ends, and how ------------------------------------------------------------------------------------------------


def test_a_service_that_stops_for_good_is_stopped_also_where_it_has_no_requests_any_more(shop: Shop) -> None:
    """As whoever takes up what died in its drain finds it."""
    shop.edge.move(PROJECT, {"web": {}})
    shop.retire()
    assert sorted(shop.ended) == ["one", "two"]
    assert named_at(shop.edge) == set()


UPGRADE = (
    b"GET / HTTP/1.1\r\nhost: web\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def test_a_websocket_of_the_standby_goes_on_while_another_release_ends(shop: Shop) -> None:
    """What is left of one that was not proved ends in the same step."""
    shop.double.containers.append(twin(3, "three", "v3"))
    with socket.create_connection(("127.0.0.1", shop.running.port), timeout=10) as line:
        line.sendall(UPGRADE)
        assert line.recv(4096).startswith(b"HTTP/1.1 101 ")
        shop.move_to("s1", "two")
        shop.settle("v1")
        assert shop.ended == ["three"]
        line.sendall(b"still here")
        assert line.recv(4096) == b"still here"
        shop.settle("")
        assert line.recv(4096) == b""
    assert shop.ended == ["three", "one", "three"]


def test_who_is_stopped_is_asked_of_nobody_by_name_any_more(shop: Shop) -> None:
    """Each second the edge asks for each name that it has, and the engine asks the servers of the host for those that
    it does not know."""
    shop.move_to("s1", "two")
    shop.settle("v1")
    assert named_at(shop.edge) == {"one", "two"}
    shop.settle("")
    assert named_at(shop.edge) == {"two"}


def test_where_no_slot_is_free_it_is_said_what_they_are_in_use_for(shop: Shop) -> None:
    shop.running.runtime.move(to=[("web", f"s{number}") for number in range(SLOTS)], away=[])
    with pytest.raises(Retryable) as full:
        shop.edge.admit({"web": [Container({"Name": "/more"})]}, ends_at=CLOCK.now())
    assert full.value.message.startswith(
        "all 8 slots of web at the edge are in use: 8 for who serves or is to, 0 for last requests"
    )
    assert full.value.hint == "docker restart shop-lastgood-edge-1"


def test_of_the_time_to_settle_each_round_of_stops_has_its_own(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.double.containers += [twin(number, f"over-{number}", "v0") for number in range(10, 10 + AT_ONCE)]
    drained: list[float] = []
    monkeypatch.setattr(
        Edge, "drain", lambda _self, _names, *, ends_at: drained.append((ends_at - CLOCK.now()).total_seconds())
    )
    shop.settle("", deadline_s=2 * shop.edge.stack.config.stop)
    assert drained[0] <= 0.0
    assert len(shop.ended) == AT_ONCE + 1


def test_where_this_host_reaches_no_container_that_is_found_out_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Docker Desktop: each question takes a second there, in which the bad release serves."""
    asked: list[str] = []

    def say_nothing(at: tuple[str, int], **_: object) -> socket.socket:
        asked.append(at[0])
        raise TimeoutError

    shop.double.containers[0]["NetworkSettings"] = {"Networks": {"shop_default": {"IPAddress": "127.0.0.9"}}}
    monkeypatch.setattr(socket, "create_connection", say_nothing)
    with connect("shop", {"DOCKER_HOST": shop.host}) as engine:
        assert all(shop.edge.listens(engine, "web", Container(twin(n, f"web-{n}", "v1"))) for n in range(40))
    assert asked == ["127.0.0.9"]
