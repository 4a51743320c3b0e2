"""How many instances of a service make a release whole, as its own files say; the engine only shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lastgood.core.config import ContainersConfig
from lastgood.core.release import Release, ServiceRecord
from lastgood.targets.compose import ComposeTarget
from lastgood.targets.compose.kept import Shelf
from lastgood.targets.compose.project import Project
from tests.contract.rigs.clock import CLOCK
from tests.targets.engine_double import EngineDouble, engine_double

IMAGE = f"sha256:{1:064x}"
RECORD = ServiceRecord(name="web", artifact=IMAGE, held_as="lastgood/shop/web:v1")
CONFIG = ContainersConfig.model_validate({"compose": {"project": "shop"}, "services": ["web"]})


def web(number: int) -> dict[str, Any]:
    labels = {
        "com.docker.compose.project": "shop",
        "com.docker.compose.service": "web",
        "com.docker.compose.config-hash": "1",
    }
    return {
        "Id": f"{number:064x}",
        "Name": f"/shop-web-{number}",
        "Image": IMAGE,
        "Config": {"Labels": labels},
        "State": {"Status": "running", "Running": True, "ExitCode": 0},
        "NetworkSettings": {"Networks": {}},
    }


@dataclass
class Shop:
    """web runs in one container."""

    target: ComposeTarget
    shelf: Shelf
    engine: EngineDouble

    def keep(self, release: str, **web: object) -> Release:
        project = Project({"name": "shop", "services": {"web": {"image": "web", **web}}})
        self.shelf.keep(release, project, (RECORD,))
        return Release(id=release, recorded_at=datetime.now(UTC), engine="compose", services=(RECORD,))

    def is_whole(self, release: Release, found: tuple[tuple[str, int], ...] = ()) -> tuple[bool, str]:
        check = next(c for c in self.target.checks(release, found=found) if c.name == "container web")
        return check.passed, check.detail


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'engine.sock'}")
    with engine_double(tmp_path / "engine.sock") as engine:
        engine.containers.append(web(1))
        target = ComposeTarget(CONFIG, root=tmp_path, state=tmp_path / "state", clock=CLOCK)
        yield Shop(target, Shelf(tmp_path / "state"), engine)


def test_each_release_asks_for_as_many_as_its_own_files_said(shop: Shop) -> None:
    shop.keep("v1", deploy={"replicas": 3})
    shop.keep("v2", scale=2)
    shop.keep("v3")
    for _ in range(2):  # the second time from memory
        facts = shop.target.observe()
        assert [facts.at_least(release, "web") for release in ("v1", "v2", "v3", "v4")] == [3, 2, 1, 1]


def test_a_release_of_which_fewer_serve_is_not_verified(shop: Shop) -> None:
    release = shop.keep("v1", deploy={"replicas": 2})
    passed, detail = shop.is_whole(release)
    assert not passed
    assert detail.startswith("1 of 2: ")
    shop.engine.containers.append(web(2))
    assert shop.is_whole(release)[0]


def test_no_more_are_asked_for_than_there_were_of_what_was_left_alone(shop: Shop) -> None:
    release = shop.keep("v1", deploy={"replicas": 3})
    assert shop.is_whole(release, found=(("web", 1),))[0]
    assert not shop.is_whole(release, found=(("web", 2),))[0]
    shop.engine.containers.clear()
    assert not shop.is_whole(release, found=(("web", 0),))[0]


def test_what_a_person_scaled_by_hand_is_as_many_as_there_are(shop: Shop) -> None:
    release = shop.keep("v1")
    shop.engine.containers.append(web(2))
    assert shop.is_whole(release)[0]


def test_a_release_whose_files_cannot_be_read_is_in_nobodys_way(shop: Shop) -> None:
    shop.keep("v1", deploy={"replicas": 3})
    (shop.shelf.folder("v1") / "compose.json").unlink()
    assert shop.target.observe().asked == frozenset()
