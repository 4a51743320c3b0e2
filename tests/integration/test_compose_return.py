"""Going back on the real engine: what it starts, what it leaves alone, and what it refuses before anything stops."""

from __future__ import annotations

import os
import shutil
import signal
from datetime import timedelta
from pathlib import Path

import pytest

from lastgood.core.errors import OutcomeUnknown, Refused
from lastgood.core.plan import ClearCandidates, PassGate, Serve, Step
from lastgood.core.release import Release
from lastgood.targets.compose import ComposeTarget
from lastgood.targets.compose.edge_setup import edge_file, set_up_edge
from lastgood.targets.compose.engine import Container, connect
from lastgood.targets.compose.project import LABEL_CANDIDATE
from lastgood.targets.postgres.connect import container_address
from tests.contract.rigs.clock import CLOCK
from tests.contract.rigs.compose import ComposeWorld, edge_image

pytestmark = pytest.mark.needs_docker

CRASHES = "echo 'no such table: users' >&2; exit 3"


def deployed(stack: ComposeWorld, target: ComposeTarget, name: str) -> Release:
    """Make new images of the services that may go back, deploy them, and return the release."""
    for service in target._stack.config.services:
        stack.image(service, name)
    release = target.prepare(name, CLOCK.now())
    stack.put(target, release)
    return release


def steps_of(stack: ComposeWorld, target: ComposeTarget, release: Release) -> dict[str, Step]:
    return {step.name: step for step in stack.plan(target, release).steps}


@pytest.mark.full
def test_a_bad_release_goes_back_and_the_database_keeps_its_container(stack: ComposeWorld) -> None:
    target = stack.target()
    database = stack.container("db").id
    good = deployed(stack, target, "v1")
    assert stack.page() == "v1"
    deployed(stack, target, "v2")
    assert stack.page() == "v2"
    stack.put(target, good)
    assert stack.page() == "v1"
    assert stack.container("db").id == database
    assert [c.name for c in target.checks(good) if not c.passed] == []
    assert stack.candidates() == []


@pytest.mark.full
def test_a_service_that_the_bad_release_added_is_stopped_and_nothing_brings_it_back(stack: ComposeWorld) -> None:
    good = deployed(stack, stack.target(), "v1")
    stack.services["billing"] = stack.service("billing", restart="always")
    stack.write()
    more = stack.target(services=["web", "worker", "billing"])
    deployed(stack, more, "v2")
    assert [c.name for c in more.checks(good) if not c.passed][-1] == "services of other releases"
    billing = stack.container("billing")
    plan = stack.plan(more, good)
    assert [s.name for s in plan.steps][-2:] == ["retire-billing", "clear-candidates"]
    stack.put(more, good)
    billing.reload()
    assert (billing.status, billing.attrs["HostConfig"]["RestartPolicy"]["Name"]) == ("exited", "no")
    assert billing.name == f"{stack.project}-billing-1.retired-{str(billing.id)[:12]}"
    assert all(check.passed for check in more.checks(good))
    assert {i.service for i in more.observe().serving} == {"web", "worker"}
    assert stack.plan(more, good).steps == ()
    billing.start()  # a person looks for the cause, and leaves it on
    assert "retire-billing" in [s.name for s in stack.plan(more, good).steps]
    stack.put(more, good)
    billing.reload()
    assert (billing.status, billing.name) == ("exited", f"{stack.project}-billing-1.retired-{str(billing.id)[:12]}")
    again = deployed(stack, more, "v3")
    (billing,) = stack.client.containers.list(all=True, filters={"name": f"{stack.project}-billing"})
    assert (billing.name, billing.status) == (f"{stack.project}-billing-1", "running")
    assert billing.attrs["HostConfig"]["RestartPolicy"]["Name"] == "always"
    assert all(check.passed for check in more.checks(again))


@pytest.mark.full
def test_a_service_that_was_renamed_goes_back_to_its_old_name_and_port(stack: ComposeWorld) -> None:
    stack.services["web"]["container_name"] = f"{stack.project}-the-web"
    stack.write()
    good = deployed(stack, stack.target(), "v1")
    stack.services["front"] = stack.services.pop("web")
    stack.services["front"]["image"] = f"{stack.project}/front:latest"
    stack.write()
    renamed = stack.target(services=["front", "worker"], workers=["worker"])
    assert {i.service for i in renamed.observe().serving} == {"web", "worker"}
    bad = deployed(stack, renamed, "v2")
    assert stack.page() == "v2"
    assert {i.service for i in renamed.observe().serving} == {"front", "worker"}
    assert {i.service for i in renamed.observe().stateful} <= {"db"}
    assert all(check.passed for check in renamed.checks(bad))
    assert renamed.missing(good) == ()
    assert [s.name for s in stack.plan(renamed, good).steps] == [
        "pass-gate",
        "retire-front",
        "serve-web",
        "serve-worker",
        "clear-candidates",
    ]
    stack.put(renamed, good)
    assert stack.page() == "v1"
    assert all(check.passed for check in renamed.checks(good))
    assert stack.candidates() == []


@pytest.mark.full
def test_a_release_goes_back_between_the_setting_up_of_an_edge_and_its_first_start(stack: ComposeWorld) -> None:
    target = stack.target(services=["web"])
    good = deployed(stack, target, "v1")
    deployed(stack, target, "v2")
    config = target._stack.config
    set_up_edge(config, root=stack.root, state=stack.root / ".lastgood", clock=CLOCK)
    files = ["docker-compose.yml", edge_file(config)]
    behind = stack.target(
        services=["web"], compose={"project": stack.project, "files": files}, edge={"routes": {"web": 8080}}
    )
    assert behind.rung("v1").startswith("L4 one service at a time (web)")
    assert behind.missing(good) == ()
    assert "never started" in behind.preflight()[-1]
    stack.put(behind, good)
    assert stack.page() == "v1"
    assert all(check.passed for check in behind.checks(good))


# As nginx does with the name of an upstream, it asks once, when it starts, where web is.
ASKS_ONCE = """
defaults
    mode http
    timeout connect 2s
    timeout client 5s
    timeout server 5s
listen front
    bind :8080
    server web web:8080 init-addr libc
"""


@pytest.mark.full
def test_a_proxy_in_front_that_looked_names_up_once_goes_on_finding_what_is_recreated(stack: ComposeWorld) -> None:
    (stack.root / "proxy.cfg").write_text(ASKS_ONCE)
    stack.services["proxy"] = {
        "image": edge_image(stack.client),
        "command": ["haproxy", "-db", "-f", "/proxy.cfg"],
        "pull_policy": "never",
        "volumes": ["./proxy.cfg:/proxy.cfg:ro"],
        "ports": stack.services["web"].pop("ports"),
        "depends_on": ["web"],
    }
    stack.write()
    stack.compose("up", "--detach", "--wait")
    proxy, target = stack.container("proxy").id, stack.target()
    good = deployed(stack, target, "v1")
    assert stack.page() == "v1"
    deployed(stack, target, "v2")
    assert stack.page() == "v2"
    stack.put(target, good)
    assert stack.page() == "v1"
    assert stack.container("proxy").id == proxy
    assert all(check.passed for check in target.checks(good))


@pytest.mark.full
def test_what_somebody_else_started_is_recorded_and_can_be_gone_back_to(stack: ComposeWorld) -> None:
    stack.services["web"] |= {"depends_on": ["db", "worker"], "environment": {"A": "by hand"}}
    stack.write()
    stack.compose("up", "--detach", "--wait", "--no-deps", "web", "worker")
    target = stack.target()
    by_hand = target.describe_running("r1", CLOCK.now())
    assert stack.plan(target, by_hand).steps == ()
    stack.services["web"]["environment"] = {"A": "deployed"}
    stack.write()
    deployed(stack, target, "v2")
    stack.put(target, by_hand)
    assert stack.page() == "0"
    assert "A=by hand" in stack.container("web").attrs["Config"]["Env"]
    assert all(check.passed for check in target.checks(by_hand))


@pytest.mark.full
def test_a_moved_tag_does_not_change_what_goes_back(stack: ComposeWorld) -> None:
    target = stack.target(services=["web"])
    good = deployed(stack, target, "v1")
    deployed(stack, target, "v2")
    web = good.service("web")
    assert web is not None
    stack.client.images.get(stack.image("web", "v3")).tag(web.held_as)
    stack.put(target, good)
    assert stack.page() == "v1"
    assert stack.client.images.get(web.held_as).id == web.artifact


@pytest.mark.full
def test_an_environment_changed_since_does_not_leak_into_the_release_that_goes_back(
    stack: ComposeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.services["web"]["environment"] = {"GREETING": "${GREETING}"}
    stack.services["web"]["command"] = ["sh", "-c", 'echo "$$GREETING" > /www/index.html; exec /start']
    stack.write(env="GREETING=a $$ then\n")
    target = stack.target(services=["web"])
    good = deployed(stack, target, "v1")
    said = stack.page()
    stack.write(env="GREETING=now\n")
    deployed(stack, target, "v2")
    assert stack.page().strip() == "now"
    monkeypatch.setenv("GREETING", "shell")
    stack.services["web"]["command"] = ["false"]
    stack.write(env="GREETING=later\n")
    stack.put(target, good)
    assert stack.page() == said


@pytest.mark.full
def test_a_change_of_the_environment_alone_is_deployed_and_goes_back(stack: ComposeWorld) -> None:
    stack.services["web"]["environment"] = {"A": "1"}
    stack.write()
    target = stack.target(services=["web"])
    good = target.prepare("v1", CLOCK.now())
    stack.put(target, good)
    stack.services["web"]["environment"] = {"A": "2"}
    stack.write()
    changed = target.prepare("v2", CLOCK.now())
    assert [s.name for s in stack.plan(target, changed).steps] == ["pass-gate", "serve-web", "clear-candidates"]
    stack.put(target, changed)
    assert "A=2" in stack.container("web").attrs["Config"]["Env"]
    stack.put(target, good)
    assert "A=1" in stack.container("web").attrs["Config"]["Env"]


def test_the_gate_refuses_an_image_that_crashes_and_nothing_that_serves_has_changed(stack: ComposeWorld) -> None:
    target = stack.target()
    deployed(stack, target, "v1")
    before = {s: stack.container(s).id for s in ("web", "worker", "db")}
    stack.image("web", "v2", script=CRASHES)
    gate = steps_of(stack, target, target.prepare("v2", CLOCK.now()))["pass-gate"]
    with pytest.raises(Refused, match=r"web of v2 exited with 3 at the gate; it said: no such table: users"):
        target.apply(gate)
    assert stack.candidates() == []
    assert {s: stack.container(s).id for s in ("web", "worker", "db")} == before
    assert stack.page() == "v1"


def test_what_compose_started_from_the_same_image_proves_nothing_of_another_environment(stack: ComposeWorld) -> None:
    """As at everybody's first deploy, and at each one after a start by hand."""
    stack.image("web", "v0", script=f'[ -z "$BREAKS" ] || {{ {CRASHES}; }}; exec httpd -f -p 8080 -h /www')
    stack.compose("up", "--detach", "--wait")
    before = stack.container("web").id
    stack.services["web"]["environment"] = {"BREAKS": "1"}
    stack.write()
    target = stack.target()
    gate = steps_of(stack, target, target.prepare("v1", CLOCK.now()))["pass-gate"]
    with pytest.raises(Refused, match=r"web of v1 exited with 3 at the gate"):
        target.apply(gate)
    assert (stack.container("web").id, stack.page()) == (before, "v0")


def test_a_worker_that_ends_a_moment_after_its_start_has_not_gone_back(stack: ComposeWorld) -> None:
    """No gate, and no health check: that it runs is all that can be seen, and it does so for a second."""
    del stack.services["worker"]["healthcheck"]
    stack.write()
    stack.image("worker", "v1", script="sleep 1; echo 'no queue' >&2; exit 3")
    target = stack.target(services=["worker"], workers=["worker"])
    serve = steps_of(stack, target, target.prepare("v1", CLOCK.now()))["serve-worker"]
    with pytest.raises(OutcomeUnknown, match=r"worker of v1 exited with 3; it said: no queue"):
        target.apply(serve)


@pytest.mark.full
def test_the_gate_refuses_an_image_that_is_never_healthy(stack: ComposeWorld) -> None:
    stack.services["web"]["healthcheck"]["retries"] = 2
    stack.write()
    target = stack.target(services=["web"])
    stack.image("web", "v1", script="exec sleep 600")
    gate = steps_of(stack, target, target.prepare("v1", CLOCK.now()))["pass-gate"]
    with pytest.raises(Refused, match=r"web of v1 is unhealthy at the gate"):
        target.apply(gate)
    assert stack.candidates() == []


@pytest.mark.full
def test_a_candidate_has_nothing_by_which_traffic_or_compose_could_find_it(stack: ComposeWorld) -> None:
    stack.services["web"] |= {
        "container_name": f"{stack.project}-the-web",
        "labels": {"traefik.enable": "true"},
        "restart": "always",
        "networks": {"default": {"aliases": ["shop"]}},
        "volumes": ["uploads:/uploads"],
    }
    stack.extra_volumes["uploads"] = {}
    stack.write()
    target = stack.target(services=["web"])
    deployed(stack, target, "v1")
    stack.image("web", "v2")
    target.apply(steps_of(stack, target, target.prepare("v2", CLOCK.now()))["pass-gate"])
    (candidate,) = stack.candidates()
    attrs = candidate.attrs
    endpoint = attrs["NetworkSettings"]["Networks"][f"{stack.project}_default"]
    assert set(endpoint["Aliases"] or []) <= {str(candidate.id)[:12]}
    assert attrs["HostConfig"]["PortBindings"] in (None, {})
    assert attrs["HostConfig"]["RestartPolicy"]["Name"] in ("", "no")
    assert "the-web" not in str(candidate.name)
    assert {name for name, value in candidate.labels.items() if not name.startswith("lastgood.") and value} == set()
    assert [m["Name"] for m in attrs["Mounts"] if m["Name"] == f"{stack.project}_uploads"] == []
    assert stack.page() == "v1"


@pytest.mark.full
def test_who_asks_a_service_by_its_hostname_gets_no_answer_of_a_candidate(stack: ComposeWorld) -> None:
    """The engine takes a hostname for a name in every network."""
    stack.services["web"]["hostname"] = "shop.internal"
    stack.write()
    target = stack.target(services=["web"])
    deployed(stack, target, "v1")
    stack.image("web", "v2")
    target.apply(steps_of(stack, target, target.prepare("v2", CLOCK.now()))["pass-gate"])
    assert len(stack.candidates()) == 1
    ask = f"for _ in {'. ' * 20}; do wget -q -O - http://shop.internal:8080/; echo; done"
    stack.compose("up", "--detach", "--no-deps", "worker")
    asked = stack.container("worker").exec_run(["sh", "-c", ask]).output
    assert isinstance(asked, bytes)
    assert asked.split() == [b"v1"] * 20


@pytest.mark.full
def test_a_candidate_has_the_first_network_and_the_limits_of_its_service(stack: ComposeWorld) -> None:
    stack.services["web"] |= {
        "networks": {"default": {"priority": 1}, "side": {"priority": 5}},
        "deploy": {"resources": {"limits": {"memory": "64m"}}},
    }
    stack.networks["side"] = {}
    stack.write()
    target = stack.target(services=["web"])
    deployed(stack, target, "v1")
    stack.image("web", "v2")
    target.apply(steps_of(stack, target, target.prepare("v2", CLOCK.now()))["pass-gate"])
    (candidate,) = stack.candidates()
    host = candidate.attrs["HostConfig"]
    assert (host["NetworkMode"], host["Memory"]) == (f"{stack.project}_side", 64 << 20)
    assert set(candidate.attrs["NetworkSettings"]["Networks"]) == {f"{stack.project}_{n}" for n in ("default", "side")}


def test_a_twin_has_the_options_of_each_of_its_networks(stack: ComposeWorld) -> None:
    api, names = stack.client.api, [f"{stack.project}_default", f"{stack.project}_side"]
    api.create_network(names[1], labels={"com.docker.compose.project": stack.project})
    options = {name: {"com.example.which": name} for name in names}
    config = {"EndpointsConfig": {names[0]: api.create_endpoint_config(driver_opt=options[names[0]])}}
    image = stack.service("web")["image"]
    mold = str(api.create_container(image, name=f"{stack.project}-mold", networking_config=config)["Id"])
    api.connect_container_to_network(mold, names[1], driver_opt=options[names[1]])
    with connect(stack.project, os.environ) as engine:
        made = engine.twin(Container(api.inspect_container(mold)), {LABEL_CANDIDATE: f"{stack.project}:v1"})
    shown = api.inspect_container(made)["NetworkSettings"]["Networks"]
    assert {name: at["DriverOpts"] for name, at in shown.items()} == options


@pytest.mark.full
def test_services_with_a_fixed_container_name_go_back(stack: ComposeWorld) -> None:
    stack.services["web"]["container_name"] = f"{stack.project}-the-web"
    stack.write()
    target = stack.target(services=["web"])
    good = deployed(stack, target, "v1")
    deployed(stack, target, "v2")
    stack.put(target, good)
    assert stack.page() == "v1"
    assert stack.container("web").name == f"{stack.project}-the-web"


# Ends where nobody is called so: the gate's candidate as well as what takes its place.
ASKS_BY_A_LINK = "wget -q -O /dev/null http://database:8080/ || exit 1; exec httpd -f -p 8080 -h /www"


@pytest.mark.full
def test_a_service_that_knows_its_database_by_a_link_passes_the_gate_and_goes_back(stack: ComposeWorld) -> None:
    stack.services["web"]["links"] = ["db:database"]
    stack.write()
    target = stack.target(services=["web"])
    stack.image("web", "v1", script=ASKS_BY_A_LINK)
    good = target.prepare("v1", CLOCK.now())
    stack.put(target, good)
    deployed(stack, target, "v2")
    stack.put(target, good)
    assert stack.page() == "v1"


def test_a_pruned_image_is_refused_before_anything_is_stopped(stack: ComposeWorld) -> None:
    target = stack.target(services=["web"])
    good = deployed(stack, target, "v1")
    deployed(stack, target, "v2")
    steps = steps_of(stack, target, good)
    web = good.service("web")
    assert web is not None
    stack.client.images.remove(web.artifact, force=True)
    assert web.artifact not in target.observe().held
    before = stack.container("web").id
    for name in ("pass-gate", "serve-web"):
        with pytest.raises(Refused, match=r"the image of web .* is not on this host, and no registry is known"):
            target.apply(steps[name])
    assert stack.container("web").id == before
    assert stack.page() == "v2"


@pytest.mark.full
def test_a_service_that_ignores_sigterm_is_bounded_by_the_stop_time(stack: ComposeWorld) -> None:
    del stack.services["web"]["stop_signal"]
    stack.write()
    deaf = "trap '' TERM; httpd -p 8080 -h /www; while :; do sleep 600 & wait; done"
    target = stack.target(services=["web"], stop="1s")
    stack.image("web", "deaf", script=deaf)
    bad = target.prepare("v1", CLOCK.now())
    stack.put(target, bad)
    old = stack.container("web").id
    events = stack.client.events(decode=True, filters={"container": old, "event": "die"})
    deployed(stack, target, "v2")
    died = next(iter(events))
    events.close()
    assert died["Actor"]["Attributes"]["exitCode"] == "137"
    assert stack.page() == "v2"


def test_a_foreign_container_that_holds_the_name_is_named_and_left_alone(stack: ComposeWorld) -> None:
    target = stack.target(services=["web"])
    release = target.prepare("v1", CLOCK.now())
    foreign = stack.client.containers.create(f"{stack.project}/worker:latest", name=f"{stack.project}-web-1")
    serve = steps_of(stack, target, release)["serve-web"]
    with pytest.raises(Refused, match=rf"container {stack.project}-web-1 exists and is not a part of project"):
        target.apply(serve)
    foreign.reload()
    assert foreign.status == "created"


def test_a_foreign_container_that_holds_the_port_is_named_and_left_alone(stack: ComposeWorld) -> None:
    target = stack.target(services=["web"])
    release = target.prepare("v1", CLOCK.now())
    foreign = stack.client.containers.run(
        f"{stack.project}/worker:latest",
        name=f"{stack.project}-squatter",
        ports={"8080/tcp": ("127.0.0.1", stack.port)},
        detach=True,
    )
    with pytest.raises(Refused, match=rf"port {stack.port} of web is held by container {stack.project}-squatter"):
        target.apply(steps_of(stack, target, release)["serve-web"])
    foreign.reload()
    assert foreign.status == "running"


@pytest.mark.full
def test_a_foreign_container_on_the_same_port_of_another_address_is_no_obstacle(stack: ComposeWorld) -> None:
    target = stack.target(services=["web"])
    stack.client.containers.run(
        f"{stack.project}/worker:latest",
        name=f"{stack.project}-neighbour",
        ports={"8080/tcp": ("127.0.0.2", stack.port)},
        detach=True,
    )
    stack.put(target, target.prepare("v1", CLOCK.now()))
    assert stack.page() == "0"


@pytest.mark.full
def test_as_many_containers_go_back_as_were_scaled_up_by_hand(stack: ComposeWorld) -> None:
    target = stack.target(services=["worker"])
    good = target.prepare("v1", CLOCK.now())
    stack.put(target, good)
    stack.compose("up", "--detach", "--wait", "--no-deps", "--no-recreate", "--scale", "worker=3", "worker")
    stack.image("worker", "v2")
    stack.put(target, target.prepare("v2", CLOCK.now()))
    assert len(target.observe().of("worker")) == 3
    stack.put(target, good)
    assert len(target.observe().of("worker")) == 3
    assert all(check.passed for check in target.checks(good))


def test_containers_that_compose_1_made_meanwhile_stop_a_rollback_before_anything_is_touched(
    stack: ComposeWorld,
) -> None:
    target = stack.target(services=["web"])
    release = target.prepare("v1", CLOCK.now())
    steps = steps_of(stack, target, release)
    labels = {**stack.container("db").labels, "com.docker.compose.version": "1.29.2"}
    stack.client.containers.create(f"{stack.project}/db:latest", name=f"{stack.project}_db_1", labels=labels)
    for name in ("pass-gate", "serve-web"):
        with pytest.raises(Refused, match=r"_db_1 was made by docker-compose 1\.29\.2"):
            target.apply(steps[name])
    assert stack.candidates() == []


def test_a_kept_secret_that_is_gone_is_named_before_anything_is_stopped(stack: ComposeWorld) -> None:
    (stack.root / "token").write_text("t")
    stack.services["web"]["secrets"] = ["token"]
    stack.secrets["token"] = {"file": "./token"}
    stack.write()
    target = stack.target(services=["web"])
    good = target.prepare("v1", CLOCK.now())
    steps = steps_of(stack, target, good)
    (kept,) = (stack.root / ".lastgood" / "files").iterdir()
    kept.unlink()
    for name in ("pass-gate", "serve-web"):
        with pytest.raises(Refused, match=r"secret token of web is gone: there is no .*/files/"):
            target.apply(steps[name])


def test_what_compose_left_when_it_was_killed_half_way_is_removed_by_its_label(stack: ComposeWorld) -> None:
    target = stack.target(services=["web"])
    deployed(stack, target, "v1")
    serving = stack.container("web")
    replacing = {**serving.labels, "com.docker.compose.replace": str(serving.id)}
    leftover = stack.client.containers.create(
        f"{stack.project}/web:latest", name=f"{str(serving.id)[:12]}_{serving.name}", labels=replacing
    )
    assert [i.instance for i in target.observe().candidates] == [leftover.id]
    clear = Step(name="clear", action=ClearCandidates(), deadline_s=20, explain="")
    target.apply(clear)
    facts = target.observe()
    assert facts.candidates == ()
    assert [i.instance for i in facts.of("web")] == [serving.id]


def test_a_service_that_does_not_come_up_in_its_place_says_why(stack: ComposeWorld) -> None:
    target = stack.target(services=["web"])
    stack.image("web", "v1", script=CRASHES)
    release = target.prepare("v1", CLOCK.now())
    serve = steps_of(stack, target, release)["serve-web"]
    with pytest.raises(OutcomeUnknown, match=r"web of v1 exited with 3; it said: no such table: users"):
        target.apply(serve)


def test_a_compose_that_hangs_is_killed_with_its_children_and_the_outcome_is_unknown(
    stack: ComposeWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = stack.target(services=["web"])
    release = target.prepare("v1", CLOCK.now())
    serve = steps_of(stack, target, release)["serve-web"]
    hanging = tmp_path / "bin" / "docker"
    hanging.parent.mkdir()
    hanging.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {tmp_path}/child\nwait\n")
    hanging.chmod(0o755)
    monkeypatch.setenv("PATH", f"{hanging.parent}:/usr/bin:/bin")
    hasty = Step(name="serve", action=serve.action, deadline_s=1.0, explain="")
    with pytest.raises(OutcomeUnknown, match=r"did not end within 1 s"):
        target.apply(hasty)
    child = int((tmp_path / "child").read_text())
    assert not alive(child)


def test_a_step_waits_for_the_compose_that_a_killed_command_left_running(
    stack: ComposeWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The orphan is a real `docker compose up`, slowed down; its parent is killed as kill -9 would."""
    target = stack.target(services=["web"])
    release = target.prepare("v1", CLOCK.now())
    serve = steps_of(stack, target, release)["serve-web"]
    slow = tmp_path / "bin" / "docker"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\ntouch {tmp_path}/began\nsleep 2\nexec {shutil.which("docker")} "$@"\n')
    slow.chmod(0o755)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{slow.parent}:{path}")
    command = os.fork()
    if command == 0:
        target.apply(serve)
        os._exit(0)
    while not (tmp_path / "began").exists():
        CLOCK.sleep(0.05)
    os.kill(command, signal.SIGKILL)
    os.waitpid(command, 0)
    monkeypatch.setenv("PATH", path)
    target.apply(serve)
    started = [
        c for c in stack.client.containers.list(all=True, ignore_removed=True) if c.name == f"{stack.project}-web-1"
    ]
    assert len(started) == 1
    assert stack.page() == "0"
    creations = stack.client.events(
        since=int(CLOCK.now().timestamp()) - 60,
        until=int(CLOCK.now().timestamp()) + 1,
        decode=True,
        filters={"event": "create", "label": f"com.docker.compose.project={stack.project}", "type": "container"},
    )
    names = [e["Actor"]["Attributes"]["name"] for e in creations]
    assert names.count(f"{stack.project}-web-1") == 1


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.full
def test_a_service_that_is_sick_is_started_anew_even_from_the_same_release(stack: ComposeWorld) -> None:
    stack.services["web"]["healthcheck"]["retries"] = 1
    stack.write()
    target = stack.target(services=["web"])
    release = deployed(stack, target, "v1")
    sick = stack.container("web")
    sick.exec_run(["sh", "-c", "mv /www /gone"])
    serve = Step(
        name="serve",
        action=next(s.action for s in _serve_steps(release)),
        deadline_s=20,
        explain="",
    )
    while target.observe().of("web")[0].serves:
        CLOCK.sleep(0.1)
    target.apply(serve)
    assert stack.container("web").id != sick.id
    assert stack.page() == "v1"


def _serve_steps(release: Release) -> list[Step]:
    web = release.service("web")
    assert web is not None
    action = Serve(release=release.id, service="web", artifact=web.artifact, config_hash=web.config_hash)
    return [Step(name="serve-web", action=action, deadline_s=20, explain="")]


@pytest.mark.full
def test_a_service_without_a_health_check_passes_by_running_and_the_rung_says_so(stack: ComposeWorld) -> None:
    del stack.services["worker"]["healthcheck"]
    stack.write()
    target = stack.target()
    release = deployed(stack, target, "v1")
    assert all(check.passed for check in target.checks(release))
    assert target.rung().startswith(
        "L4 one service at a time (web, worker): no edge in front of it; no health check in worker"
    )


@pytest.mark.full
def test_evidence_is_private_and_shows_no_secret(stack: ComposeWorld, tmp_path: Path) -> None:
    secrets = {"DB_URL": "postgres://app:correct-horse@db/app", "API_KEY": "k-123456", "ODD_SECRET": 'sch"lüssel'}
    stack.services["web"]["environment"] = secrets
    stack.services["web"]["labels"] = {"traefik.basicauth": 'ada:sch"lüssel'}
    stack.write()
    target = stack.target()
    for service in ("web", "worker"):
        stack.image(service, "1", script='echo "$DB_URL $API_KEY"; exec httpd -f -p 8080 -h /www')
    stack.put(target, target.prepare("v1", CLOCK.now()))
    names = target.evidence(tmp_path / "evidence")
    assert sorted(names) == sorted(
        f"{stack.project}-{s}-1.{kind}" for s in ("web", "worker") for kind in ("log", "inspect.json")
    )
    for name in names:
        file = tmp_path / "evidence" / name
        assert file.stat().st_mode & 0o777 == 0o600
        assert "correct-horse" not in file.read_text()
        assert "k-123456" not in file.read_text()
        assert "ssel" not in file.read_text()
    assert (
        "postgres://app:********@db/app ********" in (tmp_path / "evidence" / f"{stack.project}-web-1.log").read_text()
    )


@pytest.mark.full
def test_what_services_say_is_told_since_a_moment_and_without_secrets(stack: ComposeWorld) -> None:
    stack.services["web"]["environment"] = {"API_KEY": "k-123456"}
    stack.write()
    target = stack.target()
    for service in ("web", "worker"):
        stack.image(service, "1", script='echo "SQLSTATE 42703 $API_KEY"; exec httpd -f -p 8080 -h /www')
    before = CLOCK.now()
    stack.put(target, target.prepare("v1", CLOCK.now()))
    logs = target.logs(before)
    assert {log.service: log.lines for log in logs} == {
        "web": ("SQLSTATE 42703 ********",),
        "worker": ("SQLSTATE 42703 ",),
    }
    assert {log.service: log.addresses for log in logs} == {
        service: frozenset({container_address(f"{stack.project}-{service}-1")}) for service in ("web", "worker")
    }
    assert all(log.since and before - timedelta(seconds=1) < log.since for log in logs)
    later = CLOCK.now() + timedelta(seconds=60)
    assert {log.lines for log in target.logs(later)} == {()}


@pytest.mark.full
def test_a_deployment_by_somebody_else_is_seen_as_another_configuration(stack: ComposeWorld) -> None:
    target = stack.target(services=["web"])
    release = deployed(stack, target, "v1")
    stack.compose("up", "--detach", "--no-deps", "--force-recreate", "web")
    assert [c.name for c in target.checks(release) if not c.passed] == ["container web"]
    stack.put(target, release)
    assert all(check.passed for check in target.checks(release))


def test_a_step_whose_release_is_not_kept_is_refused(stack: ComposeWorld) -> None:
    gate = PassGate(release="v9", artifacts=(("web", "sha256:0"),))
    with pytest.raises(Refused, match=r"nothing is kept of release v9"):
        stack.target().apply(Step(name="gate", action=gate, deadline_s=5, explain=""))


def test_a_kept_configuration_that_was_edited_is_refused(stack: ComposeWorld) -> None:
    target = stack.target(services=["web"])
    release = target.prepare("v1", CLOCK.now())
    kept = stack.root / ".lastgood" / release.config_file
    kept.write_text(kept.read_text().replace("wget", "curl"))
    with pytest.raises(Refused, match=r"is not what v1 was recorded with"):
        target.apply(steps_of(stack, target, release)["pass-gate"])
