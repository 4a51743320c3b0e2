"""What docs/operate/incident.md tells a person to type where lastgood itself cannot act puts the good release back, on
a real engine: without an edge, and behind one."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

import pytest

from tests.integration.edge_shop import GOOD, RECREATED, START_FIRST, WARM, EdgeShop, Rung, edge_shop
from tests.integration.edge_world import EdgeWorld

pytestmark = [pytest.mark.needs_docker, pytest.mark.full, pytest.mark.timeout(300)]

SECONDS = 10.0
PAGE = Path(__file__).parents[2] / "docs" / "operate" / "incident.md"


def commands(about: str, world: EdgeWorld, *, service: str, bad: str) -> str:
    """The block of the page that speaks of this, for a service of the world's project."""
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    found = next(block for block in blocks if about in block)
    found = re.sub(r"(docker tag \S+) \S+", rf"\1 {world.project}/{service}:latest", found)
    for theirs, ours in {
        "hypercode-core": service,
        "hypercode": world.project,
        r"v2\.0\.6": bad,
        "v2.0.6": bad,
        "v2.0.3": GOOD,
    }.items():
        found = found.replace(theirs, ours)
    return found


def put_back(shop: EdgeShop, about: str, *, services: tuple[str, ...], bad: str) -> None:
    for service in services:
        shop.world.run("sh", "-ec", commands(about, shop.world, service=service, bad=bad))


def check_it_serves(world: EdgeWorld) -> None:
    """Users see the good release, once an edge that was just started knows where its containers are."""
    ends_at, said = time.monotonic() + SECONDS, ""
    while said != f"{GOOD}-{GOOD}":
        assert time.monotonic() < ends_at, said
        time.sleep(0.1)
        with contextlib.suppress(OSError):
            said = world.answer()


COMPOSE, EDGE = "docker compose", "docker restart"


@pytest.mark.parametrize("rung", [RECREATED, WARM], ids=["without-an-edge", "behind-an-edge"])
def test_the_good_release_is_put_back_by_hand(rung: Rung, tmp_path: Path) -> None:
    with edge_shop(tmp_path, rung) as shop:
        bad = shop.bad_release()
        switched = tuple(s for s in ("api", "web") if s not in rung.composed)
        put_back(shop, COMPOSE, services=rung.composed, bad=bad)
        put_back(shop, EDGE, services=switched, bad=bad)
        check_it_serves(shop.world)
        shop.lastgood("record", "--release", "v1-by-hand")
        assert shop.serving == "v1-by-hand"


def test_where_the_containers_of_the_good_release_are_gone_those_of_compose_take_their_place(tmp_path: Path) -> None:
    with edge_shop(tmp_path, START_FIRST) as shop:
        bad, world = shop.bad_release(), shop.world
        put_back(shop, COMPOSE, services=("api", "web", "worker"), bad=bad)
        for service in ("api", "web"):
            told = commands(EDGE, world, service=service, bad=bad).splitlines()
            own, composed = f"{world.project}-{service}-{GOOD}", f"{world.project}-{service}-1"
            kept = [line.replace(own, composed) for line in told if not line.startswith("docker start")]
            world.run("sh", "-ec", "\n".join(kept))
        check_it_serves(world)
        shop.lastgood("record", "--release", "v1-by-hand")
        assert shop.serving == "v1-by-hand"
