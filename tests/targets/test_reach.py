"""Which services of the compose target may be touched, and whom nobody would reach."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lastgood.core.config import ContainersConfig
from lastgood.core.release import ServiceRecord
from lastgood.targets.compose.edge import Edge
from lastgood.targets.compose.haproxy import CONFIG_FILE, INSIDE
from lastgood.targets.compose.kept import Shelf
from lastgood.targets.compose.missing import unreachable
from lastgood.targets.compose.project import Project
from lastgood.targets.compose.reach import may_touch
from lastgood.targets.compose.stack import Stack
from tests.contract.rigs.clock import CLOCK

EDGE: Mapping[str, Any] = {
    "image": "haproxy",
    "entrypoint": ["haproxy", "-db", "-f", f"{INSIDE}/{CONFIG_FILE}"],
    "networks": {"default": {"aliases": ["web", "api"]}},
    "ports": [{"target": 20000, "published": "8000"}],
}


def stack(root: Path, *services: str, **settings: object) -> Stack:
    """A stack whose lastgood.yaml names these services."""
    section = {"compose": {"project": "shop"}, "services": services, **settings}
    shelf, state = Shelf(root / ".lastgood"), root / ".lastgood"
    return Stack(config=ContainersConfig.model_validate(section), root=root, state=state, shelf=shelf, clock=CLOCK)


def kept(shelf: Shelf, release: str, *own: str, beside: tuple[str, ...] = (), at: int = 0) -> Project:
    """Keep a release. beside: services of its stack that it does not have. at: when, in the order of the test."""
    project = Project({"name": "shop", "services": {name: {"image": name} for name in (*own, *beside)}})
    shelf.keep(release, project, tuple(ServiceRecord(name=s, artifact="sha256:1", held_as=s) for s in own))
    os.utime(shelf.folder(release) / "release.json", (at, at))
    return project


def on_disk(root: Path, *services: str) -> None:
    model = {"services": {name: {"image": name} for name in services}}
    (root / "docker-compose.yml").write_text(json.dumps(model))


def test_what_the_configuration_names_may_be_touched_and_what_no_release_had_may_not(tmp_path: Path) -> None:
    assert may_touch(stack(tmp_path, "web"), {"web", "db"}) == {"web"}


def test_what_only_an_earlier_release_has_may_be_touched(tmp_path: Path) -> None:
    shop = stack(tmp_path, "front")
    kept(shop.shelf, "a-newer", "front", beside=("db",), at=2)
    kept(shop.shelf, "b-older", "web", beside=("db",), at=1)
    assert may_touch(shop, {"web", "front", "db"}) == {"web", "front"}


def test_what_the_newest_stack_has_beside_its_release_is_left_alone(tmp_path: Path) -> None:
    """It may have got data, and was taken out of containers.services for that."""
    shop = stack(tmp_path, "web")
    kept(shop.shelf, "a-older", "web", "queue", at=1)
    kept(shop.shelf, "b-newer", "web", beside=("queue",), at=2)
    assert may_touch(shop, {"web", "queue"}) == {"web"}


@pytest.mark.needs_docker
@pytest.mark.parametrize(
    "today,expected",
    [
        pytest.param(("front", "web"), {"front"}, id="it-is-in-the-stack-still"),
        pytest.param(("front",), {"front", "web"}, id="it-is-gone-from-the-stack"),
        pytest.param((), {"front"}, id="the-files-cannot-be-read"),
    ],
)
def test_what_the_configuration_named_until_just_now_is_looked_for_in_the_files(
    tmp_path: Path, today: tuple[str, ...], expected: set[str]
) -> None:
    shop = stack(tmp_path, "front")
    kept(shop.shelf, "v1", "web")
    if today:
        on_disk(tmp_path, *today)
    assert may_touch(shop, {"front", "web"}) == expected


def said(shop: Stack, services: Mapping[str, Any], *asked: str) -> list[str]:
    edge = Edge(shop.config.edge, shop) if shop.config.edge else None
    project = Project({"name": "shop", "services": dict(services)})
    return [missing.what for missing in unreachable(shop, edge, project, "v1", asked)]


WEB: Mapping[str, Any] = {"web": {"image": "web"}, "api": {"image": "api"}}


def test_a_release_from_before_there_was_an_edge_has_its_own_ports(tmp_path: Path) -> None:
    assert said(stack(tmp_path, "web"), WEB, "web") == []


def test_a_release_that_had_its_ports_from_an_edge_reaches_nobody_without_one(tmp_path: Path) -> None:
    (line,) = said(stack(tmp_path, "web"), {**WEB, "lastgood-edge": EDGE}, "web")
    assert line == (
        "v1 was recorded behind an edge, which had the port 8000: there is none now, and nobody would be reached"
    )


def test_a_release_behind_an_edge_that_published_nothing_needs_none(tmp_path: Path) -> None:
    assert said(stack(tmp_path, "web"), {**WEB, "lastgood-edge": {**EDGE, "ports": []}}, "web") == []


@pytest.mark.parametrize("routes,lost", [({"web": 80, "api": 80}, []), ({"front": 80, "api": 80}, ["web"])])
def test_a_service_that_was_renamed_behind_an_edge_has_no_way_to_it(
    tmp_path: Path, routes: dict[str, int], lost: list[str]
) -> None:
    shop = stack(tmp_path, *routes, edge={"routes": routes})
    lines = said(shop, {**WEB, "lastgood-edge": EDGE}, "web", "api")
    assert [line.split(" ", 1)[0] for line in lines] == lost
