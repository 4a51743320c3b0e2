"""The edge on the real engine: releases side by side, traffic that moves without a failed request, and what is told."""

from __future__ import annotations

import secrets
import shlex
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from docker.models.containers import Container

from lastgood.core.config import ContainersConfig
from lastgood.core.deploying import changed_services, clear_step, gate_step, serve_steps
from lastgood.core.errors import Refused, Retryable
from lastgood.core.plan import HoldRequests, PassGate, PassRequests, Seen, Step, Switch, seen
from lastgood.core.release import Release
from lastgood.runbook.looking import patiently
from lastgood.targets.compose import ComposeTarget, edge_file, set_up_edge
from tests.contract.rigs.clock import CLOCK
from tests.contract.rigs.compose import edge_image
from tests.integration.edge_world import FRONT, EdgeWorld, traffic

pytestmark = [pytest.mark.needs_docker, pytest.mark.timeout(240)]
ASK_20_TIMES = f"for _ in {'. ' * 20}; do wget -q -O - http://backend:8080/; echo; done"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EdgeWorld]:
    made = EdgeWorld(tmp_path)
    monkeypatch.setenv("LASTGOOD_EDGE_IMAGE", edge_image(made.client))
    try:
        yield made
    finally:
        made.clear()


@pytest.fixture
def target(world: EdgeWorld) -> ComposeTarget:
    """The stack behind its edge, r0 recorded and serving as a release of its own."""
    world.up("docker-compose.yml")
    plain = world.settings()
    plan = set_up_edge(plain, root=world.root, state=world.root / ".lastgood", clock=CLOCK)
    assert dict(plan.routes) == {"api": 8080, "web": 8080}
    world.up("docker-compose.yml", edge_file(plain))
    return world.behind(world.settings(routes=dict(plan.routes), drain="5s"))


def steps_to(target: ComposeTarget, release: Release, *, standby: str = "") -> list[Step]:
    facts = target.observe()
    changed = changed_services(release, facts)
    return [
        *gate_step(release, changed, facts, boot_s=20.0, attempts=1, standby=standby),
        *serve_steps(release, changed, facts, boot_s=20.0, standby=standby),
    ]


def carry(target: ComposeTarget, release: Release, *, standby: str = "") -> list[str]:
    steps = steps_to(target, release, standby=standby)
    for step in steps:
        target.apply(step)
        assert seen(step, target.observe()) is Seen.DONE, step.name
    return [step.name for step in steps]


def recorded(target: ComposeTarget, name: str) -> Release:
    return target.describe_running(name, datetime.now(UTC))


def prepared(world: EdgeWorld, target: ComposeTarget, version: str) -> Release:
    world.version(version)
    return target.prepare(f"r{version}", datetime.now(UTC))


def releases_of(target: ComposeTarget) -> set[str]:
    """What serves behind the edge."""
    return {i.release for i in target.observe().serving if i.service != "worker"}


def test_releases_stand_side_by_side_and_no_request_fails_or_crosses(world: EdgeWorld, target: ComposeTarget) -> None:
    database = world.container("db").id
    r0 = recorded(target, "r0")
    assert target.rung().startswith("L2 start first (api, web): what serves now was started by compose")
    with traffic(world) as answers:
        assert carry(target, r0) == ["pass-gate", "switch-traffic", "settle"]
        assert {i.service for i in target.observe().stateful} == {"db", "lastgood-edge"}
        assert "L0" in target.rung()
        r1 = prepared(world, target, "1")
        assert carry(target, r1, standby="r0") == ["pass-gate", "switch-traffic", "serve-worker", "settle"]
        assert target.rung("r0").startswith("L0 warm (api, web): r0 runs beside")
        carry(target, r0)
        assert target.rung("r1").startswith("L1 start the standby (api, web)")
        carry(target, r1, standby="r0")
    assert set(answers) == {"0-0", "1-1"}, answers
    assert world.answer() == "1-1"
    assert world.container("db").id == database
    assert all(check.passed for check in target.checks(r1))


@pytest.mark.full
@pytest.mark.full
def test_a_link_to_what_is_never_touched_leads_there_behind_the_edge_too(world: EdgeWorld) -> None:
    world.services["web"]["links"] = ["db:database", "api:backend"]
    world.write()
    world.up("docker-compose.yml")
    plain = world.settings()
    plan = set_up_edge(plain, root=world.root, state=world.root / ".lastgood", clock=CLOCK)
    world.up("docker-compose.yml", edge_file(plain))
    target = world.behind(world.settings(routes=dict(plan.routes)))
    (said,) = target.preflight()
    assert said.startswith("web knows api as backend by a link, which leads past the edge: give api the alias backend")
    world.services["web"]["links"] = ["db:database"]
    world.write()
    world.version("1")
    world.image("web", "1", script=f"wget -q -O /dev/null http://database:8080/ || exit 1\n{FRONT}")
    carry(target, target.prepare("r1", datetime.now(UTC)))
    assert world.answer() == "VERSION-1"


def test_whoever_waits_is_answered_by_the_release_that_serves_then(world: EdgeWorld, target: ComposeTarget) -> None:
    """As while a database is exchanged: in between nobody is answered, and nobody fails."""
    carry(target, recorded(target, "r0"))
    r1 = prepared(world, target, "1")
    hold, on = (
        Step(name=action.kind, action=action, deadline_s=20.0, explain=action.kind)
        for action in (HoldRequests(), PassRequests())
    )
    assert target.observe().can_hold
    with traffic(world) as answers:
        while not answers["0-0"]:
            time.sleep(0.05)
        target.apply(hold)
        assert seen(hold, target.observe()) is Seen.DONE
        before = answers.copy()
        carry(target, r1, standby="r0")
        assert answers == before
        target.apply(on)
        assert seen(on, target.observe()) is Seen.DONE
        while not answers["1-1"]:
            time.sleep(0.05)
    assert set(answers) == {"0-0", "1-1"}, answers


@pytest.mark.parametrize("most, rung", [("1KiB", "L1 start the standby (api, web)"), ("4GiB", "L0 warm (api, web)")])
@pytest.mark.full
def test_a_standby_runs_as_long_as_its_memory_allows(
    world: EdgeWorld, target: ComposeTarget, most: str, rung: str
) -> None:
    carry(target, recorded(target, "r0"))
    r1 = prepared(world, target, "1")
    target = world.behind(world.settings(routes={"api": 8080, "web": 8080}, drain="5s", standby_memory=most))
    carry(target, r1, standby="r0")
    assert target.rung("r0").startswith(rung)


@pytest.mark.full
def test_a_standby_that_is_gone_is_started_from_the_held_image(world: EdgeWorld, target: ComposeTarget) -> None:
    r0 = recorded(target, "r0")
    carry(target, r0)
    r1 = prepared(world, target, "1")
    carry(target, r1, standby="r0")
    for twin in world.candidates():
        if twin.labels["lastgood.release"] == "r0":
            twin.remove(force=True)
    assert target.rung("r0").startswith("L2 start first (api, web)")
    carry(target, r0)
    assert world.answer() == "0-0"


@pytest.mark.parametrize(
    "standby, there, rung",
    [
        ("stopped", {"exited"}, "L1 start the standby (api, web)"),
        ("none", set[str](), "L2 start first (api, web)"),
    ],
)
@pytest.mark.full
def test_a_standby_that_should_not_run_does_not(
    world: EdgeWorld, target: ComposeTarget, standby: str, there: set[str], rung: str
) -> None:
    carry(target, recorded(target, "r0"))
    r1 = prepared(world, target, "1")
    target = world.behind(world.settings(routes={"api": 8080, "web": 8080}, drain="5s", standby=standby))
    carry(target, r1, standby="r0")
    assert {c.status for c in world.candidates() if c.labels["lastgood.release"] == "r0"} == there
    assert target.rung("r0").startswith(rung)


@pytest.mark.parametrize(
    "standby, there, rung",
    [
        ("running", {"running"}, "L0 warm (api, web)"),
        ("stopped", {"exited"}, "L1 start the standby (api, web)"),
        ("none", set[str](), "L2 start first (api, web)"),
    ],
)
@pytest.mark.full
def test_a_rollback_that_went_no_further_than_the_gate_leaves_the_standby_as_it_should_be(
    world: EdgeWorld, target: ComposeTarget, standby: str, there: set[str], rung: str
) -> None:
    r0 = recorded(target, "r0")
    carry(target, r0)
    r1 = prepared(world, target, "1")
    target = world.behind(world.settings(routes={"api": 8080, "web": 8080}, drain="5s", standby=standby))
    carry(target, r1, standby="r0")
    target.apply(steps_to(target, r0)[0])
    clear = clear_step(boot_s=60.0, standby="r0")
    target.apply(clear)
    assert seen(clear, target.observe()) is Seen.DONE
    assert {c.status for c in world.candidates() if c.labels["lastgood.release"] == "r0"} == there
    assert target.rung("r0").startswith(rung)
    assert world.answer() == "1-1"


@pytest.mark.full
def test_services_with_fixed_names_are_found_by_the_edge_and_by_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder whose name compose would take for a variable."""
    world = EdgeWorld(tmp_path / "a $HOME b")
    monkeypatch.setenv("LASTGOOD_EDGE_IMAGE", edge_image(world.client))
    fixed = {name: f"{world.project}.{name}" for name in ("api", "web")}
    for name, container in fixed.items():
        world.services[name]["container_name"] = container
    world.write()
    front = FRONT.replace("http://api:", f"http://{fixed['api']}:")
    try:
        world.image("web", "0", script=front.replace("VERSION", "0"))
        world.up("docker-compose.yml")
        set_up_edge(world.settings(), root=world.root, state=world.root / ".lastgood", clock=CLOCK)
        target = world.behind(world.settings(routes={"api": 8080, "web": 8080}, drain="5s"))
        with pytest.raises(Refused, match="the edge was set up and never started") as nothing:
            target.prepare("r0", datetime.now(UTC))
        world.run(*shlex.split(nothing.value.hint))
        world.up("docker-compose.yml", edge_file(world.settings()))
        assert {world.answer() for _ in range(10)} == {"0-0"}
        carry(target, recorded(target, "r0"))
        world.image("web", "1", script=front.replace("VERSION", "1"))
        world.image("api", "1")
        carry(target, target.prepare("r1", datetime.now(UTC)), standby="r0")
        assert {world.answer() for _ in range(10)} == {"1-1"}
        db = str(world.container("db").id)
        ask = ["docker", "exec", db, "wget", "-q", "-O", "-", f"http://{fixed['web']}:8080/cgi-bin/ask"]
        asked = [subprocess.run(ask, check=True, capture_output=True, timeout=20) for _ in range(10)]
        assert {answer.stdout.strip() for answer in asked} == {b"1-1"}
    finally:
        world.clear()


@pytest.mark.full
def test_who_asks_by_a_hostname_reaches_the_release_that_serves_and_siblings_their_own(world: EdgeWorld) -> None:
    """The engine takes a hostname for a name in every network, of all the releases that stand there."""
    world.services["api"]["hostname"] = "backend"
    world.write()
    front = FRONT.replace("http://api:", "http://backend:")
    world.image("web", "0", script=front.replace("VERSION", "0"))
    world.up("docker-compose.yml")
    set_up_edge(world.settings(), root=world.root, state=world.root / ".lastgood", clock=CLOCK)
    world.up("docker-compose.yml", edge_file(world.settings()))
    target = world.behind(world.settings(routes={"api": 8080, "web": 8080}, drain="5s"))
    carry(target, recorded(target, "r0"))
    for number in ("1", "2"):
        world.version(number)
        world.image("web", number, script=front.replace("VERSION", number))
        release = target.prepare(f"r{number}", datetime.now(UTC))
        with traffic(world) as answers:
            carry(target, release, standby=f"r{int(number) - 1}")
        assert set(answers) == {f"{n}-{n}" for n in (str(int(number) - 1), number)}, answers
    for asking, answered in (("worker", b"2"), ("web-r1", b"1"), ("web-r2", b"2")):
        container = (
            world.container("worker")
            if asking == "worker"
            else world.client.containers.get(f"{world.project}-{asking}")
        )
        asked = container.exec_run(["sh", "-c", ASK_20_TIMES]).output
        assert isinstance(asked, bytes)
        assert asked.split() == [answered] * 20, (asking, asked)


@pytest.mark.full
def test_the_last_good_release_stays_ready_through_a_deploy_over_one_that_is_not(
    world: EdgeWorld, target: ComposeTarget
) -> None:
    r0 = recorded(target, "r0")
    carry(target, r0)
    carry(target, prepared(world, target, "1"), standby="r0")
    carry(target, prepared(world, target, "2"), standby="r0")
    up = {c.labels["lastgood.release"] for c in world.candidates() if c.status == "running"}
    assert up == {"r0", "r2"}
    assert target.rung("r0").startswith("L0 warm (api, web): r0 runs beside")
    carry(target, r0)
    assert world.answer() == "0-0"


@pytest.mark.full
def test_a_service_that_the_release_does_not_have_gets_no_more_requests_and_stops(
    world: EdgeWorld, target: ComposeTarget
) -> None:
    r0 = recorded(target, "r0")
    carry(target, r0)
    api = world.services.pop("api")
    world.write()
    plain = world.settings().model_copy(update={"services": ("web",)})
    small = world.behind(plain).prepare("small", datetime.now(UTC))
    world.services["api"] = api
    world.write()
    assert carry(target, small) == ["pass-gate", "switch-traffic", "retire-api", "settle"]
    assert [c.name for c in target.checks(small) if not c.passed] == []
    (stopped,) = [c for c in world.candidates() if c.labels["lastgood.service"] == "api"]
    assert (stopped.status, stopped.attrs["HostConfig"]["RestartPolicy"]["Name"]) == ("exited", "no")
    assert {i.service for i in target.observe().serving} == {"web", "worker"}
    assert carry(target, r0) == ["pass-gate", "switch-traffic", "settle"]
    assert world.answer() == "0-0"
    assert [c.name for c in target.checks(r0) if not c.passed] == []


@pytest.mark.full
def test_a_strange_container_of_the_name_that_a_release_would_have_is_in_nobodys_way(
    world: EdgeWorld, target: ComposeTarget
) -> None:
    name = f"{world.project}-web-r1"
    world.run("docker", "create", "--name", name, f"{world.project}/worker:latest")
    try:
        release = prepared(world, target, "1")
        carry(target, release)
        assert world.answer() == "1-1"
        assert [check.name for check in target.checks(release) if not check.passed] == []
    finally:
        world.run("docker", "rm", name)


@pytest.mark.full
def test_a_release_that_nobody_would_reach_stops_nothing(world: EdgeWorld, target: ComposeTarget) -> None:
    """The service web was renamed, its route with it, and what compose started of the old one runs on."""
    old = recorded(target, "r0")
    renamed = world.services.pop("web")
    world.services["front"] = {**renamed, "image": f"{world.project}/front:latest"}
    world.write()
    world.image("front", "1", script=FRONT.replace("VERSION", "1"))
    section = world.section(routes={"api": 8080, "front": 8080}, drain="5s") | {
        "services": ["api", "front", "worker"],
    }
    config = ContainersConfig.model_validate(section)
    set_up_edge(config, root=world.root, state=world.root / ".lastgood", clock=CLOCK)
    world.compose(*(f"--file={file}" for file in config.compose.files), "up", "--detach", "--no-deps", "lastgood-edge")
    until = time.monotonic() + 10  # it looks for addresses when it starts
    while world.answer() != "0-0" and time.monotonic() < until:
        time.sleep(0.1)
    assert world.answer() == "0-0", "who served serves on until there is one of the new name"
    now = world.behind(config)
    new = now.prepare("r1", datetime.now(UTC))
    carry(now, new)
    assert world.answer() == "1-0"
    (lost,) = now.missing(old)
    assert lost.lost
    assert lost.what.startswith("web of r0 was reached through the edge, and containers.edge.routes does not name it")
    step = next(s for s in steps_to(now, old) if s.name == "retire-front")
    with pytest.raises(Refused, match="web of r0 was reached through the edge"):
        now.apply(step)
    assert world.answer() == "1-0"


def sicken(container: Container) -> None:
    """Wait until Docker says so of it."""
    container.exec_run(["mv", "/www/index.html", "/www/gone"])
    deadline = time.monotonic() + 20
    while container.attrs["State"]["Health"]["Status"] != "unhealthy":
        assert time.monotonic() < deadline
        container.reload()
        time.sleep(0.1)


@pytest.mark.full
def test_a_standby_that_went_bad_is_made_anew(world: EdgeWorld, target: ComposeTarget) -> None:
    r0 = recorded(target, "r0")
    carry(target, r0)
    r1 = prepared(world, target, "1")
    carry(target, r1, standby="r0")
    (sick,) = (c for c in world.candidates() if c.name == f"{world.project}-api-r0")
    sicken(sick)
    carry(target, r0)
    assert world.answer() == "0-0"


@pytest.mark.full
@pytest.mark.parametrize("instances", [1, 2])
def test_what_serves_and_is_sick_serves_on_until_a_successor_of_its_release_is_well(
    world: EdgeWorld, target: ComposeTarget, instances: int
) -> None:
    """A slow database makes both sick, and nobody would be left to serve."""
    asks = " && ".join(f"wget -q -O /dev/null http://{name}:8080/" for name in ("db", "127.0.0.1"))
    world.services["web"] |= {"deploy": {"replicas": instances}}
    world.services["web"]["healthcheck"] |= {"test": ["CMD-SHELL", asks]}
    world.write()
    r0 = target.prepare("r0", datetime.now(UTC))
    carry(target, r0)
    serving = {c.id: c for c in world.candidates() if str(c.name).startswith(f"{world.project}-web-r0")}
    sick = next(iter(serving.values()))
    sicken(sick)
    world.container("db").exec_run(["mv", "/www/index.html", "/www/gone"])
    with traffic(world) as answers, pytest.raises(Refused, match="web of r0 is unhealthy at the gate"):
        target.apply(steps_to(target, r0)[0])
    assert set(answers) == {"0-0"}, answers
    assert {c.id for c in world.candidates() if str(c.name).startswith(f"{world.project}-web-r0")} == set(serving)
    world.container("db").exec_run(["mv", "/www/gone", "/www/index.html"])
    with traffic(world) as answers:
        carry(target, r0)
    assert set(answers) == {"0-0"}, answers
    there = [c for c in world.candidates() if str(c.name).startswith(f"{world.project}-web-r0")]
    assert sick.id not in {c.id for c in there if c.status == "running"}
    assert sum(c.status == "running" for c in there) == instances


@pytest.mark.full
def test_a_standby_that_cannot_be_started_any_more_is_made_anew(world: EdgeWorld) -> None:
    """One that ran once asks for its networks by their IDs (engine 20.10), and one of them is another by now."""
    world.services["api"]["networks"] = {"default": {}, "side": {}}
    world.networks["side"] = {}
    world.write()
    world.up("docker-compose.yml")
    set_up_edge(world.settings(), root=world.root, state=world.root / ".lastgood", clock=CLOCK)
    world.up("docker-compose.yml", edge_file(world.settings()))
    target = world.behind(world.settings(routes={"api": 8080, "web": 8080}, drain="5s"))
    r0 = recorded(target, "r0")
    carry(target, r0)
    carry(target, prepared(world, target, "1"))
    side = world.client.networks.get(f"{world.project}_side")
    for container in side.containers:
        side.disconnect(container, force=True)
    side.remove()
    made = {"com.docker.compose.project": world.project, "com.docker.compose.network": "side"}
    world.client.networks.create(f"{world.project}_side", labels=made)
    carry(target, r0)
    assert world.answer() == "0-0"


@pytest.mark.full
@pytest.mark.parametrize("instances", [1, 2])
def test_a_standby_that_died_unseen_is_made_anew_before_anything_moves(
    world: EdgeWorld, target: ComposeTarget, instances: int
) -> None:
    """Docker's last word on it is that it is healthy."""
    world.services["api"]["deploy"] = {"replicas": instances}
    world.services["api"]["healthcheck"] |= {"interval": "2s", "retries": 100}
    world.write()
    world.image("api", "0", script="httpd -f -p 8080 -h /www & echo $! >/pid; while :; do sleep 1; done")
    r0 = target.prepare("r0", datetime.now(UTC))
    carry(target, r0)
    r1 = prepared(world, target, "1")
    carry(target, r1, standby="r0")
    dead = max((c for c in world.candidates() if f"{world.project}-api-r0" in str(c.name)), key=lambda c: str(c.name))
    dead.exec_run(["sh", "-c", "kill -9 $(cat /pid)"])
    assert target.rung("r0").startswith("L0 warm (api, web)")
    with traffic(world) as answers:
        carry(target, r0)
    assert set(answers) <= {"1-1", "0-0"}, answers
    assert world.answer() == "0-0"
    there = {c.id for c in world.candidates() if f"{world.project}-api-r0" in str(c.name)}
    assert dead.id not in there
    assert len(there) == instances


@pytest.mark.full
def test_a_standby_of_which_a_part_ended_gets_the_requests_when_it_is_whole_again(
    world: EdgeWorld, target: ComposeTarget
) -> None:
    world.services["api"]["deploy"] = {"replicas": 2}
    world.write()
    r0 = target.prepare("r0", datetime.now(UTC))
    carry(target, r0)
    r1 = prepared(world, target, "1")
    carry(target, r1, standby="r0")
    ended, *_ = (c for c in world.candidates() if f"{world.project}-api-r0" in str(c.name))
    ended.stop(timeout=1)
    carry(target, r0)
    serving = [i for i in target.observe().serving if i.service == "api"]
    assert [(i.release, i.serves) for i in serving] == [("r0", True)] * 2
    ended.stop(timeout=1)
    ended.remove()
    (check,) = (c for c in target.checks(r0) if c.name == "container api")
    assert not check.passed
    assert check.detail.startswith("1 of 2: ")
    carry(target, r0)
    assert all(c.passed for c in target.checks(r0))


@pytest.mark.full
def test_a_service_without_a_health_check_gets_requests_when_it_takes_them(
    world: EdgeWorld, target: ComposeTarget
) -> None:
    r0 = recorded(target, "r0")
    carry(target, r0)
    del world.services["api"]["healthcheck"]
    world.write()
    world.version("1")
    world.image("api", "1", script="sleep 8; exec httpd -f -p 8080 -h /www")
    r1 = target.prepare("r1", datetime.now(UTC))
    with traffic(world) as answers:
        carry(target, r1, standby="r0")
    assert set(answers) == {"0-0", "1-1"}, answers


@pytest.mark.full
def test_a_service_that_ends_while_its_sibling_boots_is_started_again(world: EdgeWorld, target: ComposeTarget) -> None:
    carry(target, recorded(target, "r0"))
    world.services["web"]["depends_on"] = {"api": {"condition": "service_healthy"}}
    world.services["api"]["healthcheck"]["retries"] = 50
    world.write()
    world.version("1")
    world.image("api", "1", script="sleep 4; exec httpd -f -p 8080 -h /www")
    world.image("web", "1", script="wget -q -O - http://api:8080/ || exit 3\n" + FRONT.replace("VERSION", "1"))
    r1 = target.prepare("r1", datetime.now(UTC))
    carry(target, r1, standby="r0")
    assert world.answer() == "1-1"


def test_more_instances_than_the_edge_has_room_for_are_refused_before_anything_starts(world: EdgeWorld) -> None:
    world.services["api"]["deploy"] = {"replicas": 5}
    world.write()
    plan = set_up_edge(world.settings(), root=world.root, state=world.root / ".lastgood", clock=CLOCK)
    assert dict(plan.routes) == {"web": 8080}
    assert plan.left_out["api"] == "it asks for 5 instances, and the edge has room for 4 of each release"
    target = world.behind(world.settings(routes={"api": 8080, "web": 8080}))
    said = "api asks for 5 instances, and the edge has room for 4 of each release: ask for fewer, or take api out of"
    assert [line for line in target.preflight() if line.startswith(said)] != []


@pytest.mark.full
def test_what_was_switched_away_from_stays_stopped_when_the_engine_would_start_it(
    world: EdgeWorld, target: ComposeTarget
) -> None:
    world.services["web"]["restart"] = "always"
    world.write()
    r0 = prepared(world, target, "0")
    carry(target, r0)
    r1 = prepared(world, target, "1")
    carry(target, r1, standby="r0")
    carry(target, r0)
    policies = {c.name: c.attrs["HostConfig"]["RestartPolicy"]["Name"] for c in world.candidates()}
    running = {c.name: c.status for c in world.candidates()}
    assert policies[f"{world.project}-web-r1"] == "no"
    assert running[f"{world.project}-web-r1"] == "exited"
    assert running[f"{world.project}-web-r0"] == "running"


@pytest.mark.full
def test_an_edge_that_is_started_again_sends_requests_where_it_did(world: EdgeWorld, target: ComposeTarget) -> None:
    r0 = recorded(target, "r0")
    carry(target, r0)
    r1 = prepared(world, target, "1")
    carry(target, r1, standby="r0")
    world.run("docker", "restart", "--time", "1", f"{world.project}-lastgood-edge-1")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if world.answer() == "1-1":
                break
        except OSError:
            time.sleep(0.1)
    assert world.answer() == "1-1"
    assert {i.release for i in target.observe().serving if i.service != "worker"} == {"r1"}


@pytest.mark.full
def test_a_gate_that_fails_leaves_the_standby_and_the_traffic_alone(world: EdgeWorld, target: ComposeTarget) -> None:
    r0 = recorded(target, "r0")
    carry(target, r0)
    r1 = prepared(world, target, "1")
    carry(target, r1, standby="r0")
    world.image("api", "2", script="exit 3")
    r2 = target.prepare("r2", datetime.now(UTC))
    (gate, *_) = steps_to(target, r2, standby="r1")
    with pytest.raises(Refused, match="api of r2 exited with 3"):
        target.apply(gate)
    assert world.answer() == "1-1"
    assert {i.release for i in target.observe().candidates} == {"r0"}


@pytest.mark.full
def test_a_switch_with_nobody_to_switch_to_is_refused_before_anything_moves(
    world: EdgeWorld, target: ComposeTarget
) -> None:
    r0 = recorded(target, "r0")
    artifacts = tuple((s.name, s.artifact) for s in r0.services if s.name != "worker")
    step = Step(
        name="switch-traffic", action=Switch(release="r0", artifacts=artifacts), deadline_s=5.0, explain="the switch"
    )
    with pytest.raises(Refused, match="no healthy api of r0 stands beside"):
        target.apply(step)
    assert world.answer() == "0-0"


@pytest.mark.full
def test_what_passed_the_gate_and_was_stopped_by_a_restart_of_the_engine_is_started_before_the_switch(
    world: EdgeWorld, target: ComposeTarget
) -> None:
    r0 = recorded(target, "r0")
    carry(target, r0)
    r1 = prepared(world, target, "1")
    gate, switch, *_ = steps_to(target, r1, standby="r0")
    target.apply(gate)
    passed = [c for c in world.candidates() if c.labels["lastgood.release"] == "r1"]
    for candidate in passed:
        candidate.kill()
    target.apply(switch)
    assert seen(switch, target.observe()) is Seen.DONE
    assert world.answer() == "1-1"
    assert {c.id for c in passed} <= {c.id for c in world.candidates()}


@pytest.mark.full
def test_an_edge_without_its_socket_is_said_and_nothing_is_touched(world: EdgeWorld, target: ComposeTarget) -> None:
    r0 = recorded(target, "r0")
    carry(target, r0)
    gate = steps_to(target, r0)
    assert gate == []
    (world.root / ".lastgood" / "edge" / "haproxy.sock").unlink()
    with pytest.raises(Retryable, match=r"the edge does not answer on its socket .*haproxy\.sock") as said:
        target.observe()
    assert world.answer() == "0-0"
    world.run(*said.value.hint.split())
    assert patiently(CLOCK, lambda: releases_of(target)) == {"r0"}
    assert world.answer() == "0-0"


@pytest.mark.full
def test_a_second_copy_is_never_started_of_a_worker(world: EdgeWorld, target: ComposeTarget) -> None:
    r0 = recorded(target, "r0")
    carry(target, r0)
    r1 = prepared(world, target, "1")
    gate = steps_to(target, r1, standby="r0")[0]
    assert isinstance(gate.action, PassGate)
    assert [service for service, _ in gate.action.artifacts] == ["api", "web"]


@pytest.mark.full
def test_requests_wait_while_a_service_that_cannot_stand_twice_is_recreated(world: EdgeWorld) -> None:
    world.services["web"]["volumes"] = ["uploads:/uploads"]
    world.extra_volumes["uploads"] = {}
    world.write()
    world.up("docker-compose.yml")
    plain = world.settings()
    plan = set_up_edge(plain, root=world.root, state=world.root / ".lastgood", clock=CLOCK)
    assert list(plan.one_at_a_time) == ["web"]
    world.up("docker-compose.yml", edge_file(plain))
    target = world.behind(world.settings(routes=dict(plan.routes), one_at_a_time=["web"], drain="5s"))
    r0 = recorded(target, "r0")
    carry(target, r0)
    r1 = prepared(world, target, "1")
    assert "L3 requests wait (web): no second copy of it may run" in target.rung("r0")
    with traffic(world) as answers:
        carry(target, r1, standby="r0")
        carry(target, r0)
    assert [answer for answer in answers if not answer.endswith(("-0", "-1"))] == []
    assert world.answer() == "0-0"


@pytest.mark.full
def test_an_edge_is_set_up_anew_without_a_service_and_the_others_serve_on(
    world: EdgeWorld, target: ComposeTarget
) -> None:
    carry(target, recorded(target, "r0"))
    config = world.settings(routes={"web": 8080}, drain="5s")
    fewer = world.behind(config)
    with pytest.raises(Refused, match=r"containers\.edge says: api is not in routes") as refused:
        fewer.observe()
    assert refused.value.hint == "lastgood init --edge"
    plan = set_up_edge(config, root=world.root, state=world.root / ".lastgood", clock=CLOCK)
    assert plan.anew == ("lastgood-edge", "api")
    assert world.answer() == "0-0"
    files = (word for file in config.compose.files for word in ("--file", file))
    world.compose(*files, "up", "--detach", "--wait", "--no-deps", *plan.anew)
    assert world.answer() == "0-0"
    assert {i.service: i.release for i in fewer.observe().serving} == {"web": "r0", "api": "", "worker": ""}
    r1 = prepared(world, fewer, "1")
    carry(fewer, r1, standby="r0")
    assert world.answer() == "1-1"
    assert all(check.passed for check in fewer.checks(r1))
    assert {c.name for c in world.candidates()} == {f"{world.project}-web-r0", f"{world.project}-web-r1"}


@pytest.mark.full
def test_in_a_network_with_ipv6_releases_pass_the_gate_and_the_edge_is_asked_at_both_addresses(
    world: EdgeWorld, request: pytest.FixtureRequest
) -> None:
    subnet = f"fd00:{secrets.token_hex(2)}:{secrets.token_hex(2)}::/64"
    world.networks["default"] = {"enable_ipv6": True, "ipam": {"config": [{"subnet": subnet}]}}
    world.write()
    target: ComposeTarget = request.getfixturevalue("target")
    carry(target, recorded(target, "r0"))
    carry(target, prepared(world, target, "1"), standby="r0")
    assert world.answer() == "1-1"
    at = world.container("lastgood-edge").attrs["NetworkSettings"]["Networks"][f"{world.project}_default"]
    for address in (at["IPAddress"], f"[{at['GlobalIPv6Address']}]"):
        assert asked_inside(world, f"http://{address}:8080/", "Host: api") == (0, "1"), address


def asked_inside(world: EdgeWorld, url: str, *header: str) -> tuple[int, str]:
    """What another service of the stack gets, that is of no release: exit code, and everything that was said."""
    words = ["docker", "exec", str(world.container("db").id), "wget", "-q", "-O", "-", url]
    for line in header:
        words += ["--header", line]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=20)
    return done.returncode, (done.stdout + done.stderr).strip()


@pytest.mark.full
def test_who_asks_by_a_name_that_is_none_of_a_shared_port_gets_no_other_services_answer(
    world: EdgeWorld, target: ComposeTarget
) -> None:
    carry(target, recorded(target, "r0"))
    assert asked_inside(world, "http://api:8080/") == (0, "0")
    code, said = asked_inside(world, "http://api:8080/", "Host: shop.example")
    assert (code, "421" in said) == (1, True), said


@pytest.mark.full
def test_the_files_of_the_edge_are_a_stack_that_compose_takes_and_can_be_taken_away(
    world: EdgeWorld, target: ComposeTarget
) -> None:
    behind = recorded(target, "r0")
    carry(target, behind)
    world.compose("-f", "docker-compose.yml", "-f", "docker-compose.edge.yml", "config")
    db = world.container("db").image
    assert db is not None
    staging = f"{world.project}-staging"
    theirs = world.client.containers.create(
        db, name=f"{staging}-web-v1", labels={"lastgood.candidate": f"{staging}:v1"}
    )
    try:
        world.compose("-f", "docker-compose.yml", "up", "-d", "--wait", "--remove-orphans")
        guide = Path("docs/guide/edge.md").read_text(encoding="utf-8").splitlines()
        (line,) = (line for line in guide if line.startswith("docker rm --force "))
        subprocess.run(["sh", "-c", line.replace("PROJECT", world.project)], check=True, timeout=60)
        theirs.reload()  # of another project, whose name begins as this one's does
    finally:
        theirs.remove(force=True)
    assert world.candidates() == []
    assert world.page() == "0"
    plain = world.behind(world.settings())
    before = recorded(plain, "r1")
    world.version("1")
    carry(plain, plain.prepare("r2", datetime.now(UTC)))
    assert [m.lost for m in plain.missing(behind) if "recorded behind an edge" in m.what] == [True]
    with pytest.raises(Refused, match="nobody would be reached"):
        carry(plain, behind)
    assert world.page() == "1"
    carry(plain, before)
    assert world.page() == "0"
    assert [c.name for c in plain.checks(before) if not c.passed] == []
