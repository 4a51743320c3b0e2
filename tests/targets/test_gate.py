"""What the gate calls what it starts, in which order it waits for that, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lastgood.core.errors import Refused
from lastgood.core.plan import PassGate, Switch
from lastgood.core.release import ServiceRecord
from lastgood.targets.compose.edge import Edge
from lastgood.targets.compose.engine import Container, Engine, Ties, connect
from lastgood.targets.compose.gate import depths, pass_gate, twin_name
from lastgood.targets.compose.kept import KeptRelease
from lastgood.targets.compose.look import Look
from lastgood.targets.compose.project import Project
from lastgood.targets.compose.switch import switch
from tests.targets.engine_double import EngineDouble, engine_double
from tests.targets.running_haproxy import PROJECT, edge_in

GATE = "lastgood.targets.compose.gate._Gate"
IMAGE = f"sha256:{1:064x}"
SHA = "5d41402abc4b2a76b9719d911017c592aa11bb22"


def test_a_container_is_called_after_its_project_service_and_release() -> None:
    assert twin_name("hypercode", "hypercode-core", "v2.0.6") == "hypercode-hypercode-core-v2.0.6"


@pytest.mark.parametrize("release", [SHA, f"{SHA[:-1]}3", "v1." + "9" * 60, "a" * 35 + "." + "b" * 27])
def test_a_name_that_no_name_server_takes_is_cut_and_stays_one_of_its_own(release: str) -> None:
    name = twin_name("hypercode", "hypercode-core", release)
    assert len(f"{name}-4") <= 63
    assert name.startswith("hypercode-hypercode-core-")
    assert name != twin_name("hypercode", "hypercode-core", f"{release[:-1]}0")
    assert all(part and not part.startswith("-") and not part.endswith("-") for part in name.split("."))


def test_each_service_is_asked_once_for_what_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty that name all before them kept the gate busy for an hour, when each was asked again for each way to it."""
    names = [f"s{n}" for n in range(16)]
    services = {name: {"depends_on": dict.fromkeys([*names[:n], "db"])} for n, name in enumerate(names)}
    asked: list[str] = []
    dependencies = Project.dependencies

    def once(project: Project, name: str) -> tuple[str, ...]:
        asked.append(name)
        return dependencies(project, name)

    monkeypatch.setattr(Project, "dependencies", once)
    project = Project({"name": "shop", "services": {**services, "db": {}, "alone": {}}})
    assert depths(project, [*names, "alone"]) == {**{name: n for n, name in enumerate(names)}, "alone": 0}
    assert len(asked) == len(names) + 1


def test_why_the_gate_failed_is_told_by_an_engine_that_goes_away_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = edge_in(tmp_path).stack
    kept = stack.shelf.keep("v2", PROJECT, (ServiceRecord(name="web", artifact=IMAGE, held_as="lastgood/web:v2"),))
    with (
        engine_double(tmp_path / "engine.sock") as double,
        connect("shop", {"DOCKER_HOST": f"unix://{tmp_path / 'engine.sock'}"}) as engine,
    ):
        double.images.append({"Id": IMAGE, "RepoTags": ["lastgood/web:v2"], "RepoDigests": [], "Config": {}})

        def settle(*_: object, **__: object) -> None:
            double.says["GET containers json"] = (500, {"message": "it went away"})
            raise Refused("web of v2 exited with 1 at the gate")

        monkeypatch.setattr(f"{GATE}.candidates", lambda *_, **__: ["1"])
        monkeypatch.setattr(f"{GATE}.settle", settle)
        with pytest.raises(Refused, match="web of v2 exited with 1"):
            pass_gate(stack, engine, None, kept, PassGate(release="v2", artifacts=(("web", IMAGE),)), deadline_s=5.0)


def test_a_name_that_the_engine_gave_away_to_a_killed_command_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lists what it makes only once that is made, and refuses the name from the first moment."""
    edge, asked = edge_in(tmp_path), list[str]()
    kept = edge.stack.shelf.keep("v2", PROJECT, (ServiceRecord(name="web", artifact=IMAGE, held_as="lastgood/web:v2"),))

    def twin(_engine: Engine, _mold: Container, _labels: Mapping[str, str], *, ties: Ties) -> str:
        asked.append(ties.name)
        if len(asked) < 2:
            raise Refused("the docker engine refused creating a candidate: the name is already in use")
        return "made"

    monkeypatch.setattr(Engine, "twin", twin)
    for method in ("remove", "start"):
        monkeypatch.setattr(Engine, method, lambda *_, **__: None)
    monkeypatch.setattr(f"{GATE}._mold", lambda *_, **__: Container({"Id": "mold", "Config": {}}))
    for method in ("settle", "name_at_the_edge"):
        monkeypatch.setattr(f"{GATE}.{method}", lambda *_, **__: None)
    seen = Look(serving=(), beside=(), stateful=())
    monkeypatch.setattr("lastgood.targets.compose.gate.look", lambda *_, **__: seen)
    with (
        engine_double(tmp_path / "engine.sock") as double,
        connect("shop", {"DOCKER_HOST": f"unix://{tmp_path / 'engine.sock'}"}) as engine,
    ):
        double.images.append({"Id": IMAGE, "RepoTags": ["lastgood/web:v2"], "RepoDigests": [], "Config": {}})
        action = PassGate(release="v2", artifacts=(("web", IMAGE),))
        pass_gate(edge.stack, engine, edge, kept, action, deadline_s=5.0)
    assert asked == ["shop-web-v2", "shop-web-v2-2"]


# --- a release that serves, and of which an instance is sick ----------------------------------------------------------


@dataclass
class Shop:
    """web of v1 serves behind an edge. health: of what stands there, by name. boots: how the next ones that are made
    will be. ended: what was removed or stopped. known: who has a slot. to: who gets the requests by now."""

    edge: Edge
    kept: KeptRelease
    double: EngineDouble
    host: str
    serving: set[str] = field(default_factory=set[str])
    boots: list[str] = field(default_factory=list[str])
    ended: list[str] = field(default_factory=list[str])
    known: set[str] = field(default_factory=set[str])
    to: set[str] = field(default_factory=set[str])

    def stands(self, name: str, health: str, *, serves: bool = False) -> None:
        labels = {"lastgood.candidate": "shop:v1", "lastgood.service": "web", "lastgood.release": "v1"}
        state = {"Status": "running", "Running": True, "ExitCode": 0, "StartedAt": "2020-01-01T00:00:00.000000000Z"}
        shown: dict[str, Any] = {
            "Id": name,
            "Name": f"/{name}",
            "Image": IMAGE,
            "Config": {"Labels": labels},
            "State": {**state, "Health": {"Status": health}},
            "NetworkSettings": {"Networks": {}},
        }
        self.double.containers.insert(0, shown)  # the newest comes first
        self.serving |= {name} if serves else set()

    def make(self) -> str:
        name = f"new-{len(self.boots)}"
        self.stands(name, self.boots.pop())
        return name

    def end(self, name: str) -> None:
        self.ended.append(name)
        self.double.containers[:] = [c for c in self.double.containers if c["Id"] != name]

    def look(self) -> Look:
        there = [Container(c) for c in self.double.containers]
        serving = tuple(c for c in there if c.name in self.serving)
        return Look(serving=serving, beside=tuple(c for c in there if c not in serving), stateful=())

    def pass_gate(self) -> None:
        action = PassGate(release="v1", artifacts=(("web", IMAGE),))
        with connect("shop", {"DOCKER_HOST": self.host}) as engine:
            pass_gate(self.edge.stack, engine, self.edge, self.kept, action, deadline_s=5.0)

    def switch(self) -> None:
        action = Switch(release="v1", artifacts=(("web", IMAGE),))
        with connect("shop", {"DOCKER_HOST": self.host}) as engine:
            switch(self.edge.stack, engine, self.edge, self.kept, action, deadline_s=5.0)


@pytest.fixture(params=[1, 2])
def shop(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """With one instance, which is sick, and with another one that is well."""
    edge = edge_in(tmp_path)
    project = Project({"name": "shop", "services": {"web": {"scale": request.param}}})
    kept = edge.stack.shelf.keep("v1", project, (ServiceRecord(name="web", artifact=IMAGE, held_as="lastgood/web:v1"),))
    with engine_double(tmp_path / "engine.sock") as double:
        double.images.append({"Id": IMAGE, "RepoTags": ["lastgood/web:v1"], "RepoDigests": [], "Config": {}})
        there = Shop(edge, kept, double, f"unix://{tmp_path / 'engine.sock'}")

        def make(gate: Any, _record: object, **_: object) -> str:  # noqa: ANN401 # a private class
            gate.made.append(name := there.make())
            return name

        def admit(_edge: Edge, to: Mapping[str, list[Container]], **_: object) -> Mapping[str, dict[str, Container]]:
            there.known |= {c.name for own in to.values() for c in own}
            return {service: {c.name: c for c in own} for service, own in to.items()}

        def move(_edge: Edge, _project: Project, to: Mapping[str, Mapping[str, Container]]) -> None:
            there.to |= set(to["web"])

        monkeypatch.setattr(f"{GATE}._make", make)
        for room in ("gate", "switch"):
            monkeypatch.setattr(f"lastgood.targets.compose.{room}.look", lambda *_, **__: there.look())
        monkeypatch.setattr(Engine, "remove", lambda _, name: there.end(name))
        monkeypatch.setattr(Engine, "stop", lambda _, name, **__: there.end(name))
        monkeypatch.setattr(Engine, "start_again", lambda *_: None)
        monkeypatch.setattr(Engine, "logs", lambda *_, **__: "")
        monkeypatch.setattr(Edge, "admit", admit)
        monkeypatch.setattr(Edge, "move", move)
        there.stands("sick", "unhealthy", serves=True)
        if request.param == 2:
            there.stands("well", "healthy", serves=True)
        yield there


def test_what_serves_and_is_sick_serves_on_where_its_successor_is_sick_as_well(shop: Shop) -> None:
    """A slow database makes both so, and nobody would be left to serve."""
    shop.boots.append("unhealthy")
    with pytest.raises(Refused, match="web of v1 is unhealthy at the gate"):
        shop.pass_gate()
    assert shop.ended == ["new-1"]


def test_what_serves_and_is_sick_is_left_when_its_successor_is_well(shop: Shop) -> None:
    shop.boots.append("healthy")
    shop.pass_gate()
    assert shop.ended == []
    assert "new-1" in shop.known
    assert "sick" not in shop.known
    shop.switch()
    assert shop.to == {"new-1", *(shop.serving - {"sick"})}


def test_a_successor_that_a_killed_gate_made_is_the_one(shop: Shop) -> None:
    shop.stands("of-before", "healthy")
    shop.pass_gate()
    assert shop.ended == []
    shop.switch()
    assert shop.to == {"of-before", *(shop.serving - {"sick"})}


def test_a_successor_that_a_killed_gate_made_does_not_stay_where_it_is_sick(shop: Shop) -> None:
    shop.stands("of-before", "unhealthy")
    shop.boots.append("unhealthy")
    with pytest.raises(Refused, match="web of v1 is unhealthy at the gate"):
        shop.pass_gate()
    assert sorted(shop.ended) == ["new-1", "of-before"]


def test_a_successor_that_a_killed_gate_made_does_not_stay_where_another_part_of_the_release_is_sick(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.stands("of-before", "healthy")

    def refuse(*_: object, **__: object) -> None:
        raise Refused("api of v1 is unhealthy at the gate")

    monkeypatch.setattr(f"{GATE}.name_at_the_edge", refuse)
    with pytest.raises(Refused):
        shop.pass_gate()
    assert shop.ended == ["of-before"]


def test_no_more_get_requests_than_the_release_asks_for_where_who_was_sick_is_well_again(shop: Shop) -> None:
    shop.boots.append("healthy")
    shop.pass_gate()
    shop.double.containers[-1]["State"]["Health"]["Status"] = "healthy"
    shop.switch()
    assert "new-1" in shop.to
    assert len(shop.to) == len(shop.serving)


def test_what_serves_is_never_one_too_many(shop: Shop) -> None:
    """What a killed gate made is newer, and the engine names the newest first."""
    for name in ("of-before", "of-before-2"):
        shop.stands(name, "healthy")
    shop.pass_gate()
    assert not {"sick", "well"} & set(shop.ended)
