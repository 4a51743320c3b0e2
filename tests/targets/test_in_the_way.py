"""How often the engine is asked who holds the names and ports of a stack: the host is full of others' containers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lastgood.core.config import ContainersConfig
from lastgood.core.plan import PassGate
from lastgood.core.release import Composed, Release, ServiceRecord
from lastgood.targets.compose.engine import Engine, connect
from lastgood.targets.compose.gate import pass_gate
from lastgood.targets.compose.kept import KeptRelease, Shelf
from lastgood.targets.compose.missing import missing
from lastgood.targets.compose.project import Project
from lastgood.targets.compose.stack import Stack
from tests.contract.rigs.clock import CLOCK
from tests.targets.engine_double import EngineDouble, engine_double

IMAGE = f"sha256:{1:064x}"
SERVICES = [f"s{n}" for n in range(12)]
RECORDS = tuple(ServiceRecord(name=name, artifact=IMAGE, held_as="lastgood/shop:v1") for name in SERVICES)


@dataclass
class Host:
    """A stack of twelve services beside containers of others. asked: how often for each container."""

    stack: Stack
    kept: KeptRelease
    engine: Engine
    asked: Counter[str] = field(default_factory=Counter[str])


def container(number: int, name: str, labels: Mapping[str, str]) -> dict[str, object]:
    return {
        "Id": f"{number:064x}",
        "Name": f"/{name}",
        "Image": IMAGE,
        "Config": {"Tty": False, "Labels": dict(labels)},
        "HostConfig": {},
        "State": {"Status": "running", "Running": True},
        "NetworkSettings": {},
    }


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    config = ContainersConfig.model_validate({"compose": {"project": "shop"}, "services": SERVICES})
    stack = Stack(config=config, root=tmp_path, state=tmp_path, shelf=Shelf(tmp_path), clock=CLOCK)
    ports = [{"target": 80, "protocol": "tcp"}]
    project = Project({"name": "shop", "services": {name: {"ports": ports} for name in SERVICES}})
    own = {"com.docker.compose.project": "shop", "com.docker.compose.config-hash": "1"}
    with (
        engine_double(tmp_path / "engine.sock") as double,
        connect("shop", {"DOCKER_HOST": f"unix://{tmp_path / 'engine.sock'}"}) as engine,
    ):
        double.images.append({"Id": IMAGE, "RepoTags": ["lastgood/shop:v1"], "RepoDigests": [], "Config": {}})
        for number, name in enumerate(SERVICES):
            double.containers.append(container(number, name, {**own, "com.docker.compose.service": name}))
        double.containers += [container(100 + number, f"other-{number}", {}) for number in range(5)]
        made = Host(stack, stack.shelf.keep("v1", project, RECORDS), engine)
        answer = double.answer

        def noted(method: str, path: str, query: Mapping[str, str]) -> tuple[int, object]:
            if (parts := path.split("/"))[-3:-2] == ["containers"]:
                made.asked[parts[-2]] += 1
            return answer(method, path, query)

        monkeypatch.setattr(EngineDouble, "answer", lambda _, *given: noted(*given))
        yield made


def test_the_gate_asks_once_for_each_container_of_others(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("candidates", "settle"):
        monkeypatch.setattr(f"lastgood.targets.compose.gate._Gate.{method}", lambda *_, **__: [])
    artifacts = tuple((name, IMAGE) for name in SERVICES)
    pass_gate(host.stack, host.engine, None, host.kept, PassGate(release="v1", artifacts=artifacts), deadline_s=5.0)
    assert host.asked[f"{100:064x}"] == 1
    assert host.asked[f"{1:064x}"] <= 3


def test_the_look_at_a_way_back_asks_once_for_each_container_of_others(host: Host) -> None:
    release = Release(id="v1", engine="compose", recorded_at=datetime(2026, 1, 5, tzinfo=UTC), services=RECORDS)
    assert not list(missing(host.stack, host.engine, None, release))
    assert host.asked[f"{100:064x}"] == 1
    assert host.asked[f"{1:064x}"] <= 3


def test_a_release_of_another_project_is_no_way_back(host: Host) -> None:
    composed = Composed(project="shop-stg", files=("docker-compose.yml",), version="2.26.1")
    release = Release(
        id="v1", engine="compose", recorded_at=datetime(2026, 1, 5, tzinfo=UTC), services=RECORDS, composed=composed
    )
    (found,) = missing(host.stack, host.engine, None, release)
    assert found.what == "v1 is of compose project shop-stg, and this is shop"


def test_the_names_of_all_containers_are_one_question(host: Host) -> None:
    assert host.engine.names() == {*SERVICES, *(f"other-{number}" for number in range(5))}
    assert not host.asked
