"""Faults that come at a bad moment, behind an edge: refused before the requests move, finished, or stopped with exact
commands. Without an edge: test_faults.py."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.edge_shop import GOOD, WARM, EdgeShop, edge_shop
from tests.integration.shop import COULD_NOT, KILLED, NEEDS_HUMAN, REFUSED

pytestmark = [pytest.mark.needs_docker, pytest.mark.full, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeShop]:
    with edge_shop(tmp_path_factory.mktemp("faults"), WARM) as made:
        yield made


def edge_of(shop: EdgeShop) -> Path:
    return shop.world.root / ".lastgood" / "edge"


def hint_in(said: str) -> str:
    """The one thing to do that an error names."""
    return said.split(" hint: ")[1].splitlines()[0]


@pytest.mark.parametrize("point", ["after-plan:rollback", "after-seen:pass-gate"])
def test_a_foreign_deploy_during_the_rollback_is_left_alone(shop: EdgeShop, point: str) -> None:
    bad = shop.bad_release()
    shop.roll_back(code=KILLED, die_at=point)
    shop.build("hotfix")
    files = ("--file", "docker-compose.yml", "--file", "docker-compose.edge.yml")
    shop.world.compose(*files, "up", "--detach", "--wait", "--no-deps", "web")
    put = shop.world.container("web")
    said = shop.roll_back(code=REFUSED)
    assert "runs beside, which was not there when the plan was made" in said
    put.reload()
    assert put.status == "running"
    assert shop.world.answer() == f"{bad}-{bad}"
    shop.roll_back()  # who has read that says it again
    assert shop.world.answer() == f"{GOOD}-{GOOD}"


def test_copies_that_somebody_started_beside_what_serves_are_told_and_nothing_is_called_proved(shop: EdgeShop) -> None:
    shop.bad_release()
    shop.roll_back()
    files = ("--file", "docker-compose.yml", "--file", "docker-compose.edge.yml")
    shop.world.compose(*files, "up", "--detach", "--wait", "--no-deps", "web")
    assert "web of no release: started past lastgood" in shop.lastgood("doctor", code=1)
    said = shop.roll_back(GOOD, code=1)
    command = f"docker stop {shop.world.project}-web-1"
    assert command in said
    subprocess.run(command.split(), check=True, timeout=60, capture_output=True)
    assert "of no release" not in shop.lastgood("doctor", code=1)  # v1 has none before it, and nothing is watched


def test_an_edge_whose_socket_is_gone_is_brought_back_by_the_command_that_is_named(shop: EdgeShop) -> None:
    bad = shop.bad_release()
    (edge_of(shop) / "haproxy.sock").unlink()
    said = shop.roll_back(code=COULD_NOT)
    assert "the edge does not answer on its socket" in said
    assert shop.world.answer() == f"{bad}-{bad}"
    subprocess.run(hint_in(said).split(), check=True, timeout=60, capture_output=True)
    until = time.monotonic() + 20
    while not (edge_of(shop) / "haproxy.sock").exists() and time.monotonic() < until:
        time.sleep(0.1)
    shop.roll_back()
    shop.check_it_went_back_whole()


def test_a_name_that_somebody_took_is_left_to_it_and_the_release_gets_another(shop: EdgeShop) -> None:
    image = shop.world.container("db").image
    assert image is not None
    name = f"{shop.world.project}-web-v99"
    squatter = shop.world.client.containers.create(image, name=name)
    try:
        if shop.history.frozen:
            shop.lastgood("unfreeze", "-m", "the next one")
        shop.build("v99")
        shop.deploy("v99")
        assert shop.world.answer() == "v99-v99"
        assert f"{name}-2" in {c.name for c in shop.world.candidates()}
        shop.roll_back()
        assert shop.world.answer() == f"{GOOD}-{GOOD}"
        squatter.reload()
        assert squatter.name == name
    finally:
        squatter.remove(force=True)


def test_an_edge_whose_file_cannot_be_written_moves_nothing(shop: EdgeShop) -> None:
    bad = shop.bad_release()
    file = edge_of(shop) / "haproxy.cfg"
    aside = file.with_suffix(".aside")
    file.rename(aside)
    file.mkdir()  # as a full disk would: what is written cannot take its place
    (file / "in-the-way").touch()
    try:
        said = shop.roll_back(code=NEEDS_HUMAN)
        assert "haproxy.cfg cannot be written" in said
        assert shop.world.answer() == f"{bad}-{bad}"
    finally:
        shutil.rmtree(file)
        aside.rename(file)
    shop.roll_back()
    shop.check_it_went_back_whole()
