"""What a release is made of, and that it stays whole on the real engine until it is let go of: whatever is cleaned away
around it, whatever becomes of the checkout."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from lastgood.core.errors import Refused
from lastgood.core.release import Composed, Release, Untouched
from lastgood.targets.compose import ComposeTarget
from tests.contract.rigs.clock import CLOCK
from tests.contract.rigs.compose import ComposeWorld
from tests.contract.rigs.compose import world as compose_world

pytestmark = pytest.mark.needs_docker

PLANTED = "correct-horse-battery"


def deployed(stack: ComposeWorld, target: ComposeTarget, name: str) -> Release:
    """Make new images of the services that may go back, deploy them, and return the release."""
    for service in target._stack.config.services:
        stack.image(service, name)
    return put(stack, target, name)


def put(stack: ComposeWorld, target: ComposeTarget, name: str) -> Release:
    release = target.prepare(name, CLOCK.now())
    stack.put(target, release)
    return release


def tag_of(release: Release, service: str) -> str:
    found = release.service(service)
    assert found is not None
    return found.held_as


# --- the record ----------------------------------------------------------------------------------------------------


def test_the_record_says_what_it_was_resolved_from_and_what_is_never_touched(stack: ComposeWorld) -> None:
    stack.services["admin"] = {**stack.service("db"), "profiles": ["tools"], "image": f"{stack.project}/worker:latest"}
    stack.write()
    (stack.root / "more.env").write_text("A=1\n")
    compose = {"project": stack.project, "profiles": ["tools"], "env_file": "more.env"}
    release = stack.target(compose=compose).prepare("v1", CLOCK.now())
    assert release.composed is not None
    assert release.composed.version.startswith("2.")
    assert replace(release.composed, version="") == Composed(
        project=stack.project,
        files=("docker-compose.yml",),
        profiles=("tools",),
        env_file="more.env",
        version="",
    )
    assert {u.name: u for u in release.untouched} == {
        "db": Untouched(
            name="db",
            reference=f"{stack.project}/db:latest",
            stateful=True,
            why="it keeps data in /var/lib/postgresql/data",
        ),
        "admin": Untouched(
            name="admin",
            reference=f"{stack.project}/worker:latest",
            stateful=False,
            why="containers.services does not name it",
        ),
    }
    web = release.service("web")
    assert web is not None
    assert web.probe == "wget (compose file), every 1s"
    assert web.ports == (f"127.0.0.1:{stack.port}->8080/tcp",)


def configure(stack: ComposeWorld, **more: object) -> None:
    """Write lastgood.yaml. more: beside what every stack has."""
    containers = {"compose": {"project": stack.project}, "services": ["web", "worker"], "stop": "1s"}
    config = {"version": 1, "stack": "shop", "containers": containers, **more}
    (stack.root / "lastgood.yaml").write_text(json.dumps(config))


def typed(stack: ComposeWorld, *words: str) -> subprocess.CompletedProcess[str]:
    """Type a command of lastgood."""
    return subprocess.run(
        [sys.executable, "-m", "lastgood", *words],
        cwd=stack.root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )


def plant(stack: ComposeWorld) -> None:
    """One secret in every place of a service that people put one."""
    (stack.root / "token").write_text(PLANTED)
    stack.secrets = {"token": {"file": "token"}}
    stack.services["web"] |= {
        "environment": {"API_KEY": PLANTED, "URL": f"postgres://u:{PLANTED}@db/x"},
        "command": ["sh", "-c", f": {PLANTED}; exec httpd -f -p 8080 -h /www"],
        "labels": {"proxy.auth": PLANTED},
        "secrets": ["token"],
    }
    check = f"wget -q -O /dev/null http://127.0.0.1:8080/ && : {PLANTED}"
    stack.services["web"]["healthcheck"] = {"test": ["CMD-SHELL", check], "interval": "300ms"}
    stack.write(env=f"DB_PASSWORD={PLANTED}\n")


def test_a_secret_is_in_one_private_file_of_the_release_and_in_no_record(stack: ComposeWorld) -> None:
    plant(stack)
    target = stack.target()
    release = put(stack, target, "v1")
    assert PLANTED not in TypeAdapter(Release).dump_json(release).decode()
    assert PLANTED not in repr(release)
    kept = stack.root / ".lastgood"
    having = [p for p in kept.rglob("*") if p.is_file() and PLANTED.encode() in p.read_bytes()]
    # the copy of the secret's own file has the rights of that one, in a folder that nobody else may enter
    (copy,) = [p for p in having if p.is_relative_to(kept / "files")]
    assert stat.S_IMODE(copy.stat().st_mode) == stat.S_IMODE((stack.root / "token").stat().st_mode)
    assert stat.S_IMODE((kept / "files").stat().st_mode) == 0o700
    having.remove(copy)
    # compose.json, and what is made of it for one start of a service
    assert {p.name for p in having} == {"compose.json", "start-web.json", "gate-web.json"}
    assert {stat.S_IMODE(p.stat().st_mode) for p in having} == {0o600}


def test_releases_as_json_shows_the_whole_record_and_no_secret(stack: ComposeWorld) -> None:
    plant(stack)
    stack.compose("up", "--detach", "--wait")
    configure(stack)
    assert typed(stack, "record", "--release", "v1").returncode == 0
    shown = typed(stack, "releases", "--json").stdout
    assert PLANTED not in shown
    (known,) = json.loads(shown)
    release: dict[str, Any] = known["release"]
    assert release["composed"]["project"] == stack.project
    assert [u["name"] for u in release["untouched"]] == ["db"]
    (web,) = [s for s in release["services"] if s["name"] == "web"]
    assert web["probe"] == "wget (compose file), every 300ms"
    assert len(web["env_hash"]) == 64


# --- what is cleaned away ------------------------------------------------------------------------------------------


def clean_up(stack: ComposeWorld, *words: str) -> None:
    """What a cleaning job of this project does, every hour. Containers have the labels of their images."""
    ours = f"label=lastgood.test={stack.project}"
    stack.run("docker", "container", "prune", "--force", "--filter", ours)
    stack.run("docker", "image", "prune", "--force", *words, "--filter", ours)


@pytest.mark.full
def test_a_release_survives_the_hourly_cleaning_of_containers_and_images(stack: ComposeWorld) -> None:
    target = stack.target()
    good = deployed(stack, target, "v1")
    unheld = stack.image("web", "in between")
    deployed(stack, target, "v2")
    clean_up(stack)
    # the cleaning works: what nobody held is gone
    assert unheld not in target.observe().held
    assert target.missing(good) == ()
    stack.put(target, good)
    assert stack.page() == "v1"


@pytest.mark.full
def test_a_release_goes_back_with_its_registry_gone(stack: ComposeWorld) -> None:
    registry = "127.0.0.1:9"  # nobody listens there
    for service in ("web", "worker"):
        stack.services[service]["image"] = f"{registry}/{stack.project}/{service}:stable"
        stack.services[service]["pull_policy"] = "missing"
    stack.write()
    target = stack.target()
    releases: dict[str, Release] = {}
    for name in ("v1", "v2"):
        for service in ("web", "worker"):
            image = stack.client.images.get(stack.image(service, name))
            image.tag(f"{registry}/{stack.project}/{service}", "stable")
        releases[name] = put(stack, target, name)
    clean_up(stack)
    stack.put(target, releases["v1"])
    assert stack.page() == "v1"
    assert all(check.passed for check in target.checks(releases["v1"]))
    for service in ("web", "worker"):
        stack.client.images.remove(f"{registry}/{stack.project}/{service}:stable")


@pytest.mark.full
def test_a_cleaning_that_takes_every_unused_image_is_seen_with_release_and_service(stack: ComposeWorld) -> None:
    """`image prune --all` asks no tag: whatever no container is made from is gone."""
    target = stack.target(services=["web"])
    good = deployed(stack, target, "v1")
    now = deployed(stack, target, "v2")
    clean_up(stack, "--all")
    (gone,) = target.missing(good)
    assert gone.lost
    assert "the image of web" in gone.what
    assert [m for m in target.missing(now) if m.lost] == []


@pytest.mark.full
def test_what_a_cleaning_of_everything_left_in_use_is_held_again_and_outlives_the_next_one(stack: ComposeWorld) -> None:
    """It takes the names off an image that is in use as well, all but one."""
    target = stack.target(services=["web"])
    good = deployed(stack, target, "v1")
    stack.client.images.remove(tag_of(good, "web"))
    (unsafe,) = target.missing(good)
    assert not unsafe.lost
    target.hold(good)
    assert target.missing(good) == ()
    deployed(stack, target, "v2")
    clean_up(stack)
    stack.put(target, good)
    assert stack.page() == "v1"


def lose_the_tag(stack: ComposeWorld, release: Release) -> None:
    stack.client.images.get(stack.image("worker", "other")).tag(tag_of(release, "web"))


def lose_the_configuration(stack: ComposeWorld, release: Release) -> None:
    (stack.root / ".lastgood" / release.config_file).unlink()


def lose_the_secret(stack: ComposeWorld, _release: Release) -> None:
    (copy,) = (stack.root / ".lastgood" / "files").iterdir()
    copy.unlink()


def lose_everything(stack: ComposeWorld, release: Release) -> None:
    (stack.root / ".lastgood" / release.config_file).with_name("release.json").unlink()


@pytest.mark.parametrize(
    "lose,what,fix,lost",
    [
        (lose_the_tag, "the image of web has lost its tag lastgood/", "docker tag sha256:", False),
        (lose_the_configuration, "the configuration of v1 is gone", "lastgood deploy", True),
        (lose_the_secret, "secret token of web is gone", "lastgood deploy", True),
        (lose_everything, "nothing is kept of v1", "lastgood deploy", True),
    ],
)
def test_what_a_release_lacks_is_named_with_what_to_do(
    stack: ComposeWorld, lose: Callable[[ComposeWorld, Release], None], what: str, fix: str, lost: bool
) -> None:
    plant(stack)
    target = stack.target(services=["web"])
    release = target.prepare("v1", CLOCK.now())
    # the stack's own file is not what a release starts with
    (stack.root / "token").unlink()
    assert target.missing(release) == ()
    lose(stack, release)
    (found,) = target.missing(release)
    assert what in found.what
    assert found.fix.startswith(fix)
    assert found.lost is lost


# --- letting go ----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_letting_go_takes_tags_images_and_files_and_leaves_what_serves_alone(stack: ComposeWorld) -> None:
    target = stack.target()
    old = deployed(stack, target, "v1")
    now = deployed(stack, target, "v2")
    serving = {s: stack.container(s).id for s in ("web", "worker", "db")}
    target.let_go(old)
    target.let_go(old)
    assert target.kept() == {"v2"}
    assert {s.artifact for s in old.services} & target.observe().held == set()
    assert {s: stack.container(s).id for s in ("web", "worker", "db")} == serving
    assert target.missing(now) == ()
    assert [m.lost for m in target.missing(old)] == [True, True, True]


@pytest.mark.full
def test_letting_go_leaves_an_image_that_a_later_release_has_too(stack: ComposeWorld) -> None:
    """The worker did not change: its container was started for the release that is let go of, and serves the next."""
    target = stack.target()
    old = deployed(stack, target, "v1")
    stack.image("web", "v2")
    now = put(stack, target, "v2")
    worker = stack.container("worker")
    assert worker.labels["lastgood.release"] == "v1"
    target.let_go(old)
    assert target.missing(now) == ()
    assert all(check.passed for check in target.checks(now))
    again = target.describe_running("seen", CLOCK.now())
    assert again.content == now.content


def test_two_stacks_of_one_host_do_not_hold_by_one_tag(stack: ComposeWorld, tmp_path: Path) -> None:
    """Both deploy a release of one name from images of their own, and one lets go of its own."""
    with compose_world(tmp_path / "another") as another:
        ours, theirs = (world.target(services=["web"]).prepare("v1", CLOCK.now()) for world in (stack, another))
        assert tag_of(ours, "web") != tag_of(theirs, "web")
        stack.target(services=["web"]).let_go(ours)
        assert another.target(services=["web"]).missing(theirs) == ()


@pytest.mark.full
def test_an_image_that_a_stopped_container_is_made_from_stays_and_is_named(stack: ComposeWorld) -> None:
    target = stack.target(services=["web"])
    old = deployed(stack, target, "v1")
    deployed(stack, target, "v2")
    mine = stack.client.containers.create(tag_of(old, "web"), name=f"{stack.project}-forensics")
    with pytest.raises(Refused, match=r"removing lastgood/.*web:v1"):
        target.let_go(old)
    assert "v1" in target.kept()
    mine.remove()
    target.let_go(old)
    assert target.kept() == {"v2"}


@pytest.mark.full
def test_a_deploy_lets_go_of_what_is_too_old_and_a_rollback_to_it_is_refused(stack: ComposeWorld) -> None:
    configure(stack, retain=1)
    story: list[str] = []
    for number, name in enumerate(("v1", "v2", "v3")):
        for service in ("web", "worker"):
            stack.image(service, name)
        first = () if number else ("--first",)
        story.append(typed(stack, "deploy", "--release", name, "--no-watch", "--yes", *first).stderr)
        assert typed(stack, "record", "--good", "--message", "seen").returncode == 0
    assert "v1 is not kept any more: not among the newest 1" in story[-1]
    marks = {line.split()[0]: "not kept any more" in line for line in typed(stack, "releases").stdout.splitlines()}
    assert marks == {"v1": True, "v2": False, "v3": False}
    assert sorted(p.name for p in (stack.root / ".lastgood" / "releases").iterdir()) == ["v2", "v3"]
    held = [tag for image in stack.client.images.list() for tag in image.tags if f"{stack.project}/" in tag]
    assert not any(tag.endswith(":v1") for tag in held)
    refused = typed(stack, "rollback", "v1", "--yes")
    assert (refused.returncode, stack.page()) == (3, "v3")
    assert "v1 is not kept any more: not among the newest 1" in refused.stderr
    assert "way back  v2: everything it needs is held" in typed(stack, "doctor").stdout
    back = typed(stack, "rollback", "--yes", "--message", "rehearsal")
    assert (back.returncode, stack.page()) == (0, "v2"), back.stderr


# --- code from the checkout ----------------------------------------------------------------------------------------


@pytest.fixture
def bound(stack: ComposeWorld) -> ComposeWorld:
    """Web serves what lies in `app` of the checkout."""
    stack.services["web"]["volumes"] = ["./app:/app:ro", "/app/node_modules"]
    (stack.root / "app" / "node_modules").mkdir(parents=True)
    stack.write()
    write_code(stack, "v1")
    stack.image("web", "image", script="exec httpd -f -p 8080 -h /app")
    return stack


def write_code(stack: ComposeWorld, text: str) -> None:
    (stack.root / "app" / "index.html").write_text(text)
    (stack.root / "app" / "main.py").write_text(text)


@pytest.mark.full
def test_code_of_the_checkout_goes_back_with_its_release(bound: ComposeWorld) -> None:
    target = bound.target(services=["web"])
    good = put(bound, target, "v1")
    web = good.service("web")
    assert web is not None
    (code,) = web.code
    assert (code.source, code.inside) == ("app", "/app")
    write_code(bound, "v2")
    # the checkout is not what runs
    assert bound.page() == "v1"
    bad = put(bound, target, "v2")
    assert bad.services[0].artifact == web.artifact
    assert bound.page() == "v2"
    bound.put(target, good)
    assert bound.page() == "v1"
    assert all(check.passed for check in target.checks(good))


@pytest.mark.full
def test_code_that_did_not_change_is_no_reason_to_start_a_service_anew(bound: ComposeWorld) -> None:
    target = bound.target()
    put(bound, target, "v1")
    before = bound.container("web").id
    bound.image("worker", "v2")
    second = put(bound, target, "v2")
    assert bound.container("web").id == before
    first_code = bound.root / ".lastgood" / "code"
    target.let_go(second)
    assert len(list(first_code.iterdir())) == 1


@pytest.mark.full
def test_what_runs_from_the_checkout_is_recorded_with_its_code(bound: ComposeWorld) -> None:
    bound.compose("up", "--detach", "--wait")
    target = bound.target(services=["web"])
    by_hand = target.describe_running("r1", CLOCK.now())
    assert bound.plan(target, by_hand).steps == ()
    write_code(bound, "v2")
    put(bound, target, "v2")
    assert bound.page() == "v2"
    bound.put(target, by_hand)
    assert bound.page() == "v1"
    again = target.describe_running("r2", CLOCK.now())
    assert again.services[0].code == by_hand.services[0].code


@pytest.mark.full
def test_code_that_was_changed_in_the_state_folder_is_seen_and_does_not_start(bound: ComposeWorld) -> None:
    target = bound.target(services=["web"])
    good = put(bound, target, "v1")
    write_code(bound, "v2")
    put(bound, target, "v2")
    (kept,) = [p for p in Path(bound.root / ".lastgood" / "code").rglob("main.py") if p.read_text() == "v1"]
    kept.write_text("meddled with")
    (found,) = target.missing(good)
    assert found.lost
    assert "the code of web (app) is not what v1 was recorded with" in found.what
    with pytest.raises(Refused, match="the code of web"):
        target.apply(bound.plan(target, good).steps[0])
    assert bound.page() == "v2"


@pytest.mark.full
def test_the_state_folder_and_dumps_are_in_no_copy_of_a_checkout_that_is_mounted_whole(bound: ComposeWorld) -> None:
    (bound.root / "restore-points").mkdir()
    (bound.root / "restore-points" / "dump").write_text("rows")
    bound.services["web"]["volumes"] = [".:/whole:ro", "./app:/app:ro"]
    bound.write()
    target = bound.target(services=["web"])
    target._stack = replace(target._stack, private=(bound.root / "restore-points",))
    release = target.prepare("v1", CLOCK.now())
    assert {code.inside for code in release.services[0].code} == {"/whole", "/app"}
    copies = {p.name for p in (bound.root / ".lastgood" / "code").rglob("*")}
    assert {"docker-compose.yml", "main.py"} <= copies
    assert copies & {".lastgood", "dump", "env.key"} == set()
    assert target.prepare("v1", CLOCK.now()).content == release.content


def test_other_code_in_the_same_image_must_pass_the_gate(bound: ComposeWorld) -> None:
    check = {"test": ["CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8080/main.py"], "interval": "300ms"}
    bound.services["web"]["healthcheck"] = {**check, "retries": 2}
    bound.write()
    target = bound.target(services=["web"])
    put(bound, target, "v1")
    before = bound.container("web").id
    (bound.root / "app" / "main.py").rename(bound.root / "app" / "moved.py")
    bad = target.prepare("v2", CLOCK.now())
    with pytest.raises(Refused, match="web of v2 is unhealthy at the gate"):
        target.apply(bound.plan(target, bad).steps[0])
    assert bound.container("web").id == before
    assert bound.page() == "v1"
