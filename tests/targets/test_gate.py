"""What the gate calls what it starts, and in which order it waits for that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from lastgood.core.errors import Refused
from lastgood.core.plan import PassGate
from lastgood.core.release import ServiceRecord
from lastgood.targets.compose.engine import Container, Engine, Ties, connect
from lastgood.targets.compose.gate import depths, pass_gate, twin_name
from lastgood.targets.compose.look import Look
from lastgood.targets.compose.project import Project
from tests.targets.engine_double import engine_double
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
