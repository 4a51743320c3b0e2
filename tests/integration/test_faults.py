"""What the world does to a rollback on a real engine: it is refused before traffic is touched, or it finishes, or it
stops with exact commands. None is ever reported that did not happen."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.contract.rigs.compose import ComposeWorld, free_port
from tests.contract.rigs.gateway import ENGINE, Dies, EngineGateway, SaysNo, gateway
from tests.contract.rigs.registry import Registry, registry
from tests.integration.shop import COULD_NOT, KILLED, NEEDS_HUMAN, REFUSED, Shop

pytestmark = [pytest.mark.needs_docker, pytest.mark.timeout(300)]


# --- the registry ---------------------------------------------------------------------------------------------------


class Published:
    """A shop whose images come out of a registry: v1 and v2 are there, v1 is good, v2 serves."""

    def __init__(self, shop: Shop, hub: Registry) -> None:
        self.shop, self.hub = shop, hub
        for service in ("web", "worker"):
            described = shop.stack.services[service]
            described["image"] = f"{hub.host}/{self.name(service)}:${{IMAGE_TAG}}"
            del described["pull_policy"]
        self.release("v1", "--first")
        shop.lastgood("record", "--good", "-m", "known good")
        self.release("v2")

    def name(self, service: str) -> str:
        return f"{self.shop.stack.project}/{service}"

    def publish(self, release: str, *, tag: str = "") -> None:
        """Build a release somewhere else: this host has nothing of it but what it pulls."""
        self.shop.build(release)
        client = self.shop.stack.client
        for service in ("web", "worker"):
            image = client.images.get(f"{self.name(service)}:latest").id
            assert image is not None
            self.hub.push(client, image, f"{self.name(service)}:{tag or release}")
            client.images.remove(image, force=True)

    def release(self, release: str, *words: str) -> None:
        self.publish(release)
        self.shop.stack.write(env=f"IMAGE_TAG={release}\n")
        self.shop.deploy(release, *words)

    def forget(self, release: str) -> None:
        """Remove the images of a release from this host, as `docker image prune --all` does."""
        for service in self.shop.release(release).services:
            self.shop.stack.client.images.remove(service.artifact, force=True)

    def name_here(self, release: str) -> None:
        """Have the tags of a release stand for its images on this host, whatever they are at the registry."""
        for service in self.shop.release(release).services:
            repository = f"{self.hub.host}/{self.name(service.name)}"
            self.shop.stack.client.images.get(service.artifact).tag(repository, release)

    def lose_tags(self, release: str) -> None:
        for service in ("web", "worker"):
            self.hub.lose(f"{self.name(service)}:{release}")


@pytest.fixture
def published(shop: Shop, tmp_path: Path) -> Iterator[Published]:
    with registry(tmp_path / "registry", free_port()) as hub:
        yield Published(shop, hub)


@pytest.mark.full
def test_a_registry_that_is_down_is_not_asked_for_what_is_here(published: Published) -> None:
    before = published.shop.seen()
    published.hub.stop()
    published.shop.roll_back()
    published.shop.check_it_went_back("v1", before)


@pytest.mark.full
def test_a_tag_that_the_registry_lost_is_not_needed(published: Published) -> None:
    before = published.shop.seen()
    published.lose_tags("v1")
    published.shop.roll_back()
    published.shop.check_it_went_back("v1", before)


@pytest.mark.full
def test_an_image_that_is_gone_here_comes_back_by_its_digest_although_its_tag_moved(published: Published) -> None:
    before = published.shop.seen()
    published.forget("v1")
    published.publish("v3", tag="v1")
    published.shop.roll_back()
    published.shop.check_it_went_back("v1", before)


@pytest.mark.full
def test_an_image_that_is_gone_here_while_the_registry_is_down_refuses_the_rollback(published: Published) -> None:
    before = published.shop.seen()
    published.forget("v1")
    published.hub.stop()
    said = published.shop.roll_back(code=REFUSED)
    assert re.search(rf"the image of web .* is not on this host.*, and {published.hub.host}/.* cannot be pulled", said)
    published.shop.check_nothing_was_touched(before)
    published.hub.start()
    published.shop.roll_back()
    published.shop.check_it_went_back("v1", before)


@pytest.mark.full
def test_a_release_whose_tag_the_registry_lost_is_not_deployed(published: Published) -> None:
    before = published.shop.seen()
    published.publish("v3")
    published.lose_tags("v3")
    published.shop.stack.write(env="IMAGE_TAG=v3\n")
    said = published.shop.deploy("v3", code=REFUSED)
    assert "docker compose pull of web, worker failed" in said
    published.shop.check_nothing_was_touched(before)


@pytest.mark.full
def test_a_tag_that_moved_at_the_registry_is_deployed_as_it_is_there(published: Published) -> None:
    """What is here under that name is what serves: taken for the new release, it would be kept as healthy."""
    published.publish("v3", tag="v2")
    published.name_here("v2")
    published.hub.stop()
    before = published.shop.seen()
    said = published.shop.deploy("v3", code=REFUSED)
    assert "with the images on this host v3 is what serves already, and docker compose pull of web failed" in said
    published.shop.check_nothing_was_touched(before)
    published.hub.start()
    published.shop.deploy("v3")
    assert published.shop.seen().release == "v3"


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_tag_that_moved_here_does_not_change_what_goes_back(shop: Shop) -> None:
    shop.good("v1")
    shop.bad("v2")
    before = shop.seen()
    shop.build("v3")
    for service in shop.release("v1").services:
        shop.stack.client.images.get(f"{shop.stack.project}/{service.name}:latest").tag(service.held_as)
    shop.roll_back()
    shop.check_it_went_back("v1", before)


@pytest.mark.full
def test_an_image_for_another_architecture_stops_at_the_gate(shop: Shop) -> None:
    """By the bytes of its program: what an image says of itself may be wrong, as after a build on a laptop."""
    shop.good("v1")
    before = shop.seen()
    for service in ("web", "worker"):
        shop.stack.image(service, "v2", program=FOREIGN_PROGRAM)
    said = shop.deploy("v2", code=1)
    assert re.search(r"web of v2 exited with \d+ at the gate; it said: .*exec format error", said), said
    assert shop.seen() == before
    assert shop.stack.candidates() == []
    assert shop.serving == "v1"


# An ELF header of a 64-bit program for IBM Z, which no machine runs that runs these tests.
FOREIGN_PROGRAM: Final = b"\x7fELF\x02\x02\x01" + bytes(9) + b"\x00\x02\x00\x16\x00\x00\x00\x01" + bytes(40)


# --- what lies in the way -------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("service", ["web", "worker"])
def test_a_leftover_that_has_the_name_of_a_service_is_found_before_the_first_is_touched(
    shop: Shop, service: str
) -> None:
    """v2 gave the container another name; somebody has taken the old one since."""
    stack = shop.stack
    name = f"{stack.project}-the-{service}"
    stack.services[service]["container_name"] = name
    stack.write()
    shop.good("v1")
    del stack.services[service]["container_name"]
    stack.write()
    shop.bad("v2")
    before = shop.seen()
    leftover = stack.client.containers.create(f"{stack.project}/db:latest", name=name)
    assert f"container {name} exists" in shop.lastgood("doctor", code=1)
    said = shop.roll_back(code=REFUSED)
    assert f"container {name} exists and is not a part of project {stack.project}" in said
    shop.check_nothing_was_touched(before)
    leftover.remove()
    shop.roll_back()
    shop.check_it_went_back("v1", before)


@pytest.mark.full
@pytest.mark.parametrize("who", ["a container", "a process of this host"])
def test_a_port_that_somebody_took_is_found_before_the_first_service_is_touched(shop: Shop, who: str) -> None:
    """v2 publishes no port for the worker any more, and v1 did."""
    stack = shop.stack
    port = free_port()
    stack.services["worker"]["ports"] = [f"127.0.0.1:{port}:8080"]
    stack.write()
    shop.good("v1")
    del stack.services["worker"]["ports"]
    stack.write()
    shop.bad("v2")
    before = shop.seen()
    with closing(socket.socket()) as taken:
        if who == "a container":
            stack.client.containers.run(
                f"{stack.project}/db:latest",
                name=f"{stack.project}-squatter",
                ports={"8080/tcp": ("127.0.0.1", port)},
                detach=True,
            )
        else:
            taken.bind(("127.0.0.1", port))
            taken.listen()
        said = shop.roll_back(code=REFUSED)
    named = f"container {stack.project}-squatter" if who == "a container" else who
    assert f"port {port} of worker is held by {named}" in said
    shop.check_nothing_was_touched(before)


@pytest.mark.full
def test_compose_1_over_the_project_stops_the_rollback_before_anything_is_touched(shop: Shop) -> None:
    """As docker-compose 1.29 leaves it: its own container of a service, beside that of compose 2 that it replaced."""
    shop.good("v1")
    shop.bad("v2")
    before = shop.seen()
    stack = shop.stack
    labels = {**stack.container("db").labels, "com.docker.compose.version": "1.29.2"}
    stack.client.containers.create(f"{stack.project}/db:latest", name=f"{stack.project}_db_1", labels=labels)
    assert "was made by docker-compose 1.29.2" in shop.lastgood("doctor", code=1)
    said = shop.roll_back(code=REFUSED)
    assert f"{stack.project}_db_1 was made by docker-compose 1.29.2" in said
    assert f"docker compose --project-name {stack.project} --file docker-compose.yml up --detach" in said
    shop.check_nothing_was_touched(before)
    assert "was made by docker-compose 1.29.2" in shop.deploy("v3", code=REFUSED)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_env_files_a_secret_and_the_compose_file_that_are_gone_are_not_needed(shop: Shop) -> None:
    stack = shop.stack
    (stack.root / "web.env").write_text("GREETING=good morning\n")
    (stack.root / "token").write_text("t")
    stack.services["web"] |= {"env_file": "web.env", "environment": {"A": "${A}"}, "secrets": ["token"]}
    stack.secrets["token"] = {"file": "./token"}
    stack.write(env="A=of v1\n")
    shop.good("v1")
    stack.services["web"]["environment"] = {"A": "of v2"}
    stack.write()
    shop.bad("v2")
    before = shop.seen()
    for name in ("web.env", "token", ".env", "docker-compose.yml"):
        (stack.root / name).unlink()
    shop.roll_back()
    shop.check_it_went_back("v1", before)
    web = stack.container("web")
    assert {"GREETING=good morning", "A=of v1"} <= set(web.attrs["Config"]["Env"])
    assert web.exec_run(["cat", "/run/secrets/token"]).output == b"t"


@pytest.mark.full
def test_a_deploy_whose_env_file_is_gone_is_refused(shop: Shop) -> None:
    stack = shop.stack
    (stack.root / "web.env").write_text("GREETING=good morning\n")
    stack.services["web"]["env_file"] = "web.env"
    stack.write()
    shop.good("v1")
    before = shop.seen()
    (stack.root / "web.env").unlink()
    shop.build("v2")
    assert "web.env" in shop.deploy("v2", code=REFUSED)
    shop.check_nothing_was_touched(before)


@pytest.fixture
def small_disk(shop: Shop) -> Iterator[Path]:
    """The state folder on a disk of its own, of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    state = shop.stack.root / ".lastgood"
    state.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(state)], check=True)
    try:
        yield state
    finally:
        subprocess.run(["umount", "--lazy", str(state)], check=True)


def fill(disk: Path) -> Path:
    """Write until there is no room, not for one byte."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return filler


@pytest.mark.full
def test_a_full_disk_stops_a_rollback_before_anything_is_touched(shop: Shop, small_disk: Path) -> None:
    shop.good("v1")
    shop.bad("v2")
    before = shop.seen()
    filler = fill(small_disk)
    said = shop.roll_back(code=NEEDS_HUMAN)
    assert "Traceback" not in said
    # SQLite says it so, or that the disk is full
    assert re.search("the journal cannot be used: .*disk", said), said
    assert " hint: df" in said
    shop.check_nothing_was_touched(before)
    filler.unlink()
    assert "the chain holds" in shop.lastgood("audit", "verify")
    shop.roll_back()
    shop.check_it_went_back("v1", before)


@pytest.fixture
def read_only() -> Callable[[Path], AbstractContextManager[None]]:
    """Turns a folder read-only for the length of a block, as a disk does that reports errors."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a folder read-only")

    @contextmanager
    def turned(folder: Path) -> Iterator[None]:
        subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)

    return turned


@pytest.mark.full
def test_a_release_folder_that_cannot_be_written_stops_a_rollback_before_anything_is_touched(
    shop: Shop, read_only: Callable[[Path], AbstractContextManager[None]]
) -> None:
    """The journal still has room, and what the next step needs has not."""
    shop.good("v1")
    shop.bad("v2")
    before = shop.seen()
    with read_only(shop.stack.root / ".lastgood" / "releases" / "v1"):
        said = shop.roll_back(code=REFUSED)
    assert "Traceback" not in said
    assert "cannot be written: Read-only file system" in said
    assert "df " in said
    shop.check_nothing_was_touched(before)
    shop.roll_back()
    shop.check_it_went_back("v1", before)


@pytest.mark.full
def test_an_engine_without_room_stops_a_rollback_before_anything_is_touched(shop: Shop, engine: EngineGateway) -> None:
    shop.good("v1")
    shop.bad("v2")
    before = shop.seen()
    engine.fault = SaysNo(at="POST /containers/create", message="mkdir /var/lib/docker: no space left on device")
    shop.host = engine.url
    said = shop.roll_back(code=REFUSED)
    assert "no space left on device" in said
    assert engine.struck
    shop.check_nothing_was_touched(before)
    engine.fault = None
    shop.roll_back()
    shop.check_it_went_back("v1", before)


# --- the engine -----------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EngineGateway]:
    """The engine, as lastgood reaches it."""
    with gateway(tmp_path / "e.sock", ENGINE) as made:
        yield made


# A daemon that is killed and started again answers after 1.8 s; it is slow here.
BACK_AFTER_S: Final = 4.0
MOMENTS: Final = {
    "the candidate is made": Dies(at=r"POST /containers/create\?name=[^ ]*-gate-"),
    "the candidate is started": Dies(at=r"POST /containers/[^/]+/start"),
    "the replacement is made": Dies(at=r"POST /containers/create\?name=[0-9a-f]{12}_"),
    "what served is stopped": Dies(at=r"POST /containers/[^/]+/stop"),
    "what served is removed": Dies(at=r"DELETE /containers/[0-9a-f]+ "),
    "the replacement is renamed": Dies(at=r"POST /containers/[^/]+/rename"),
    # behind those of the two candidates
    "the replacement is started": Dies(at=r"POST /containers/[^/]+/start", later=2),
}


@pytest.mark.full
@pytest.mark.parametrize("done", [False, True], ids=["asked", "done"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_engine_that_was_killed_and_comes_back_is_waited_for(
    shop: Shop, engine: EngineGateway, moment: str, *, done: bool
) -> None:
    shop.good("v1")
    shop.bad("v2")
    before = shop.seen()
    engine.fault = replace(MOMENTS[moment], done=done, back_after_s=BACK_AFTER_S)
    shop.host = engine.url
    shop.roll_back()
    assert engine.struck == 1, "the moment never came"
    shop.check_it_went_back("v1", before)
    check_nothing_is_left(shop.stack)


def check_nothing_is_left(stack: ComposeWorld) -> None:
    """One container for each service, and nothing of the gate's own project."""
    named = [
        str(c.name) for c in stack.client.containers.list(all=True, ignore_removed=True) if stack.project in str(c.name)
    ]
    assert sorted(named) == sorted(f"{stack.project}-{s}-1" for s in ("db", "web", "worker"))
    networks = [n.name for n in stack.client.networks.list() if stack.project in str(n.name)]
    assert networks == [f"{stack.project}_default"]


@pytest.mark.full
def test_an_engine_that_does_not_come_back_stops_the_rollback_with_exact_commands(
    shop: Shop, engine: EngineGateway
) -> None:
    shop.good("v1")
    shop.bad("v2")
    before = shop.seen()
    engine.fault = replace(MOMENTS["what served is stopped"], done=True)
    shop.host = engine.url
    said = shop.roll_back(code=NEEDS_HUMAN)
    assert "Traceback" not in said
    assert shop.completed("v1") not in " ".join(shop.told)
    assert any("stopped at serve-web" in text and "needs ada" in text for text in shop.told)
    assert "lastgood rollback v1" in said
    engine.listen()
    shop.roll_back("v1")
    shop.check_it_went_back("v1", before)
    check_nothing_is_left(shop.stack)


@pytest.mark.full
def test_an_engine_that_is_away_when_the_rollback_is_asked_for_changes_nothing(
    shop: Shop, engine: EngineGateway
) -> None:
    shop.good("v1")
    shop.bad("v2")
    before = shop.seen()
    engine.die()
    shop.host = engine.url
    assert "no docker engine answers" in shop.roll_back(code=COULD_NOT)
    shop.check_nothing_was_touched(before)


# --- somebody else --------------------------------------------------------------------------------------------------


def foreign_deploy(shop: Shop, release: str) -> None:
    """What a colleague types at the same moment."""
    shop.build(release)
    shop.stack.compose("up", "--detach", "--wait", "--no-deps", "web", "worker")


@pytest.mark.full
def test_a_foreign_deploy_before_the_first_service_went_back_is_left_alone(shop: Shop) -> None:
    shop.good("v1")
    shop.bad("v2")
    shop.roll_back(code=KILLED, die_at="after-seen:pass-gate")
    foreign_deploy(shop, "v3")
    before = shop.seen()
    assert before.release == "v3"
    said = shop.roll_back(code=REFUSED)
    assert "serves, which was not there when the plan was made" in said
    shop.check_nothing_was_touched(before)


@pytest.mark.full
def test_a_foreign_deploy_in_the_middle_of_a_rollback_stops_it_with_exact_commands(shop: Shop) -> None:
    shop.good("v1")
    shop.bad("v2")
    shop.roll_back(code=KILLED, die_at="after-seen:serve-web")
    foreign_deploy(shop, "v3")
    before = shop.seen()
    said = shop.roll_back(code=NEEDS_HUMAN)
    assert "serves, which was not there when the plan was made" in said
    shop.check_nothing_was_touched(before)
    assert any("needs ada" in text and "lastgood rollback v1" in text for text in shop.told)
    shop.roll_back("v1")
    shop.check_it_went_back("v1", before)


@pytest.mark.full
def test_a_deploy_is_refused_while_a_rollback_is_under_way(shop: Shop) -> None:
    shop.good("v1")
    shop.bad("v2")
    shop.roll_back(code=KILLED, die_at="after-seen:serve-web")
    before = shop.seen()
    shop.build("v3")
    assert "deploys are frozen" in shop.deploy("v3", code=REFUSED)
    assert shop.seen() == before
    shop.roll_back()
    shop.check_it_went_back("v1", before)
