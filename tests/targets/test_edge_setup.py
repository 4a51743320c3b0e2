"""What `lastgood init --edge` makes of a lastgood.yaml that a person wrote, and of their stack."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from lastgood.assembly import EdgePlan
from lastgood.cli.first_config import with_edge
from lastgood.core.config import ComposeConfig, ContainersConfig, EdgeConfig, parse_config
from lastgood.core.errors import Refused
from lastgood.targets.compose.edge import Edge
from lastgood.targets.compose.edge_setup import (
    COMPOSE_FILE,
    own_edge_file,
    plan_edge,
    rewrite_edge,
    unknown_at_the_edge,
    write_edge,
)
from lastgood.targets.compose.engine import connect
from lastgood.targets.compose.kept import Shelf
from lastgood.targets.compose.project import Project
from lastgood.targets.compose.stack import Stack
from tests.contract.rigs.clock import CLOCK
from tests.targets.engine_double import engine_double

MINE = """\
# ours
version: 1
stack: shop
containers:
  compose: {project: shop}      # one host
  services: [web, uploads, worker]
"""
PLAN = EdgePlan(
    routes={"web": 8000, "uploads": 9000},
    one_at_a_time={"uploads": "it writes to the volume files"},
    left_out={"worker": "worker: it runs celery"},
)


def test_the_section_is_added_and_all_else_is_as_it_was() -> None:
    written = with_edge(MINE, PLAN, "docker-compose.edge.yml")
    assert written.startswith("# ours\n")
    assert "# one host" in written
    config = parse_config(written, file="lastgood.yaml", env={}, read_file=lambda _name: "").containers
    assert config is not None
    assert config.edge is not None
    assert config.compose.files == ("docker-compose.yml", "docker-compose.edge.yml")
    assert dict(config.edge.routes) == {"web": 8000, "uploads": 9000}
    assert config.edge.one_at_a_time == ("uploads",)


@pytest.mark.parametrize(
    "replicas,published", [(1, ["21270-21272"]), (2, ["21270", "21271"]), (3, ["21270", "21271", "21272"])]
)
def test_the_edge_has_as_many_ports_of_a_range_as_its_service_had(
    replicas: int, published: list[str], tmp_path: Path
) -> None:
    web = {"image": "web", "deploy": {"replicas": replicas}, "ports": [{"target": 80, "published": "21270-21272"}]}
    project = Project({"name": "shop", "services": {"web": web}})
    config = ContainersConfig.model_validate({"compose": {"project": "shop"}, "services": ["web"]})
    stack = Stack(config=config, root=tmp_path, state=tmp_path, shelf=Shelf(tmp_path), clock=CLOCK)
    plan = EdgePlan(routes={"web": 80}, one_at_a_time={}, left_out={})
    write_edge(stack, project, plan, into=tmp_path / "edge.yml")
    written = (tmp_path / "edge.yml").read_text().replace("!reset ", "")
    ports = YAML(typ="safe").load(written)["services"]["lastgood-edge"]["ports"]
    assert [port["published"] for port in ports] == published


# --- the stack -------------------------------------------------------------------------------------------------------

NETWORKS = {
    "front": {"name": "shop_front"},
    "back": {"name": "shop_back", "internal": True},
    "proxy": {"name": "proxy", "external": True},
}


def a_project(**services: dict[str, Any]) -> Project:
    """The resolved model of a stack; a service without networks is in `front`."""
    given = {
        name: said if "network_mode" in said else {"networks": {"front": None}, **said}
        for name, said in services.items()
    }
    return Project(
        {"name": "shop", "services": {n: {"image": f"acme/{n}", **s} for n, s in given.items()}, "networks": NETWORKS}
    )


def planned(folder: Path, project: Project, services: Sequence[str] = (), *, at: str = "") -> EdgePlan:
    """What an edge would take of a stack. at: the address of the container of each service, empty where none runs."""
    with engine_double(folder / "engine.sock") as engine:
        if at:
            names = services or project.services
            engine.containers += [a_container(name, number, at) for number, name in enumerate(names, 1)]
        with connect("shop", {"DOCKER_HOST": f"unix://{folder}/engine.sock"}) as asked:
            return plan_edge(project, services or project.services, engine=asked)


def a_container(service: str, number: int, address: str) -> dict[str, Any]:
    labels = {"com.docker.compose.project": "shop", "com.docker.compose.service": service}
    return {
        "Id": f"{number:064x}",
        "Name": f"/shop-{service}-1",
        "Config": {"Labels": {**labels, "com.docker.compose.config-hash": "1"}},
        "State": {"Status": "running", "Running": True, "ExitCode": 0},
        "NetworkSettings": {"Networks": {"shop_front": {"IPAddress": address}}},
    }


def a_stack(folder: Path, services: Sequence[str]) -> Stack:
    config = ContainersConfig.model_validate({"compose": {"project": "shop"}, "services": list(services)})
    return Stack(config=config, root=folder, state=folder / ".lastgood", shelf=Shelf(folder / ".lastgood"), clock=CLOCK)


def written(folder: Path, project: Project) -> Mapping[str, Any]:
    """The service of the edge in the compose file that is written."""
    write_edge(a_stack(folder, project.services), project, planned(folder, project), into=folder / COMPOSE_FILE)
    return the_edge_in(folder / COMPOSE_FILE)


def the_edge_in(file: Path) -> Mapping[str, Any]:
    lines = file.read_text().splitlines()
    own = takewhile(lambda line: line.startswith("    "), lines[lines.index("  lastgood-edge:") + 1 :])
    return {key: json.loads(value) for key, value in (line.strip().split(": ", 1) for line in own)}


def test_in_each_network_the_edge_answers_to_who_is_in_it(tmp_path: Path) -> None:
    project = a_project(
        web={"expose": ["80"], "networks": {"front": {"aliases": ["shop.example"]}, "proxy": None}},
        api={"expose": ["8000"], "networks": {"back": None}, "container_name": "the-api"},
        both={"expose": ["9000"], "networks": {"front": {"aliases": ["here"]}, "back": {"aliases": ["there"]}}},
    )
    known = {network: at["aliases"] for network, at in written(tmp_path, project)["networks"].items()}
    assert known == {
        "front": ["web", "shop.example", "both", "here"],
        "back": ["api", "the-api", "both", "there"],
        "proxy": ["web"],
    }


@pytest.mark.parametrize("mode", ["bridge", "none", "host"])
def test_what_the_edge_would_not_find_gets_no_route(tmp_path: Path, mode: str) -> None:
    project = a_project(web={"expose": ["80"]}, alone={"expose": ["90"], "network_mode": mode})
    plan = planned(tmp_path, project)
    assert list(plan.routes) == ["web"]
    assert plan.left_out["alone"].startswith(f"it has network_mode {mode}, and the edge finds only")


def test_an_edge_that_is_set_up_anew_keeps_who_serves_and_from_where(tmp_path: Path) -> None:
    """One is taken out of its routes, another is new. Between this and `up` the edge may be started again as it is."""
    project = a_project(**{name: {"expose": [str(port)], "ports": [published(port)]} for name, port in PORTS.items()})
    stack, into = a_stack(tmp_path, project.services), tmp_path / COMPOSE_FILE
    write_edge(stack, project, EdgePlan(routes={"web": 8000, "api": 8001}, one_at_a_time={}, left_out={}), into=into)
    first = Edge(EdgeConfig(routes={"web": 8000, "api": 8001}), stack)
    first.write(project, {"web": ["shop-web-v2"], "api": ["shop-api-v2"]})
    assert {name: place.inside for name, place in first.places().items()} == {"web": 20000, "api": 20001}
    rewrite_edge(Edge(EdgeConfig(routes={"chat": 8002, "api": 8001}), stack), project, into=into, there={"chat", "api"})
    now = {name: (place.inside, place.serving) for name, place in first.places().items()}
    assert now == {"chat": (20002, ("shop-chat-1",)), "api": (20001, ("shop-api-v2",))}
    assert the_edge_in(into)["ports"] == [
        {"target": 20002, "published": "8002", "protocol": "tcp"},
        {"target": 20001, "published": "8001", "protocol": "tcp"},
    ]
    assert '"web":' not in into.read_text()


def test_the_edge_file_of_another_stack_in_the_folder_is_left_to_it(tmp_path: Path) -> None:
    """It binds the other one's folder: the other edge would be started from these names at the next `up`."""
    project = a_project(web={"expose": ["8000"]})
    written(tmp_path, project)
    config = a_stack(tmp_path, ["web"]).config
    other = config.model_copy(update={"compose": ComposeConfig(project="stg")})
    assert own_edge_file(config, root=tmp_path, state=tmp_path / ".lastgood") == COMPOSE_FILE
    assert own_edge_file(other, root=tmp_path, state=tmp_path / ".lastgood-stg") == "docker-compose.edge-stg.yml"
    copied = other.compose.model_copy(update={"files": ("docker-compose.yml", COMPOSE_FILE)})
    with pytest.raises(Refused, match=r"docker-compose.edge.yml starts the edge of another stack"):
        own_edge_file(other.model_copy(update={"compose": copied}), root=tmp_path, state=tmp_path / ".lastgood-stg")


def test_the_edge_file_of_a_checkout_that_was_moved_is_its_own(tmp_path: Path) -> None:
    written(tmp_path, a_project(web={"expose": ["8000"]}))
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    assert own_edge_file(a_stack(moved, ["web"]).config, root=moved, state=moved / ".lastgood") == COMPOSE_FILE


def test_a_service_that_was_renamed_is_served_by_who_serves_until_a_deploy(tmp_path: Path) -> None:
    """The new one was never started, so nothing was seen of it that would let requests go there."""
    before = a_project(web={"expose": ["8000"], "ports": [published(8000)]}, api={"expose": ["8001"]})
    stack, into = a_stack(tmp_path, ["web", "api", "front"]), tmp_path / COMPOSE_FILE
    write_edge(stack, before, EdgePlan(routes={"web": 8000, "api": 8001}, one_at_a_time={}, left_out={}), into=into)
    first = Edge(EdgeConfig(routes={"web": 8000, "api": 8001}), stack)
    first.write(before, {"web": ["shop-web-v2"], "api": ["shop-api-v2"]})
    after = a_project(front={"expose": ["8000"], "ports": [published(8000)]}, api={"expose": ["8001"]})
    renamed = Edge(EdgeConfig(routes={"front": 8000, "api": 8001}), stack)
    rewrite_edge(renamed, after, into=into, there={"web", "api"})
    assert {name: place.serving for name, place in first.places().items()} == {
        "front": ("shop-web-v2",),
        "api": ("shop-api-v2",),
    }


PORTS = {"web": 8000, "api": 8001, "chat": 8002}


def published(port: int) -> dict[str, object]:
    return {"target": port, "published": str(port), "protocol": "tcp", "mode": "ingress"}


def test_lastgood_yaml_stays_as_it_is_where_it_has_an_edge() -> None:
    mine = with_edge(MINE, PLAN, COMPOSE_FILE)
    assert with_edge(mine, replace(PLAN, anew=("lastgood-edge",)), COMPOSE_FILE) == mine


def test_setting_an_edge_up_that_died_before_lastgood_yaml_named_it_is_done_again(tmp_path: Path) -> None:
    project, into = a_project(web={"expose": ["8000"]}), tmp_path / COMPOSE_FILE
    stack = a_stack(tmp_path, project.services)
    first, plan = (EdgePlan(routes={"web": port}, one_at_a_time={}, left_out={}) for port in (8000, 8001))
    write_edge(stack, project, first, into=into, there={"web"})
    assert write_edge(stack, project, plan, into=into, there={"web"}).places()["web"].port == 8001
    before = into.read_text()
    with pytest.raises(Refused, match=r"an edge was started from .*: put containers.edge back"):
        write_edge(stack, project, plan, into=into, there={"web", "lastgood-edge"})
    assert into.read_text() == before
    into.write_text("services: {}")
    with pytest.raises(Refused, match="is there already, and not ours"):
        write_edge(stack, project, plan, into=into)
    assert into.read_text() == "services: {}"


def test_services_that_share_a_port_at_the_edge_are_named() -> None:
    plan = EdgePlan(
        routes={"web": 8000, "api": 8000, "files": 8000, "chat": 9000}, one_at_a_time={"files": ""}, left_out={}
    )
    assert plan.shared == {8000: ("web", "api")}


@pytest.mark.parametrize(
    "said, why",
    [
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", ""),
        (b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\x40\0", "it answers something else than HTTP"),  # gRPC's first words
        (b"SSH-2.0-OpenSSH_9.2\r\n", "it answers something else than HTTP"),
        (b"\x15\x03\x01\0\x02\x02\x46", "it answers something else than HTTP"),  # TLS
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n<h1>The plain HTTP request was sent to HTTPS port</h1>",
            "it asks for HTTPS",
        ),
        (b"", "it ends a request without an answer"),
        (None, ""),
    ],
)
def test_what_answers_a_request_by_something_else_than_http_gets_no_route(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes | None, why: str
) -> None:
    """None: nobody says anything for as long as it is waited for, and that says nothing."""
    monkeypatch.setattr("lastgood.targets.compose.edge_setup.ANSWERS_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=answer_once, args=(server, said), daemon=True).start()
        plan = planned(tmp_path, a_project(web={"expose": [str(port)]}), at="127.0.0.1")
    assert (dict(plan.routes), plan.left_out) == (
        ({}, {"web": f"on port {port} {why}"}) if why else ({"web": port}, {})
    )


def answer_once(server: socket.socket, said: bytes | None) -> None:
    with server.accept()[0] as client:
        client.recv(4096)
        if said is None:
            client.recv(4096)
        else:
            client.sendall(said)


@pytest.mark.parametrize(
    "service, why",
    [
        ({"ports": [{"target": 50051}]}, "on port 50051 it speaks no plain HTTP: 50051 is a port of something else"),
        (
            {"ports": [{"target": 9000, "app_protocol": "grpc"}]},
            "on port 9000 it speaks no plain HTTP: app_protocol says grpc",
        ),
        (
            {"expose": ["8000", "9000"]},
            "it is asked by its name on port 9000 as well, and the edge would take only 8000",
        ),
        ({"command": ["gunicorn"]}, "it is not known on which port it answers HTTP"),
        ({"ports": [{"target": 50051, "app_protocol": "http"}]}, ""),
    ],
)
def test_what_the_model_says_of_a_port_is_said(tmp_path: Path, service: dict[str, Any], why: str) -> None:
    plan = planned(tmp_path, a_project(web=service))
    assert plan.left_out == ({"web": why} if why else {})


def test_a_name_that_a_service_got_after_its_edge_is_said_before_nobody_answers_to_it(tmp_path: Path) -> None:
    web: dict[str, Any] = {"ports": [{"target": 80}], "networks": {"front": {"aliases": ["shop"]}, "back": None}}
    front = written(tmp_path, a_project(web=web))
    section = {"compose": {"project": "shop"}, "services": ["web"], "edge": {"routes": {"web": 80}}}
    once = {**section, "edge": {"routes": {"web": 80}, "one_at_a_time": ["web"]}}

    def said(config: Mapping[str, Any], **more: object) -> list[str]:
        stack = replace(a_stack(tmp_path, ["web"]), config=ContainersConfig.model_validate(config))
        return list(unknown_at_the_edge(stack, a_project(web={**web, **more}, **{"lastgood-edge": dict(front)})))

    assert said(section) == []
    assert said(section, hostname="shop") == [
        "the edge does not answer to shop in shop_back, as web does: lastgood init --edge"
    ]
    assert said(once, hostname="shop") == []


def test_a_network_that_a_service_got_after_its_edge_is_said_before_nobody_answers_there(tmp_path: Path) -> None:
    """A worker may ask it there, which has no other network."""
    web: dict[str, Any] = {"ports": [{"target": 80}], "networks": {"front": None, "back": {"aliases": ["shop"]}}}
    front = written(tmp_path, a_project(web={**web, "networks": {"front": None}}))
    section = {"compose": {"project": "shop"}, "services": ["web"], "edge": {"routes": {"web": 80}}}

    def said(config: Mapping[str, Any], front: Mapping[str, Any], asker: str = "worker") -> list[str]:
        stack = replace(a_stack(tmp_path, ["web"]), config=ContainersConfig.model_validate(config))
        beside = {"image": asker, "networks": {"back": None}}
        there = {"web": web, "beside": beside, "lastgood-edge": dict(front)}
        return list(unknown_at_the_edge(stack, a_project(**there)))

    assert said(section, front, "postgres:15") == []
    assert said(section, front) == [
        "the edge does not answer to web, shop in shop_back, as web does: lastgood init --edge"
    ]
    assert said({**section, "edge": {"routes": {"web": 80}, "one_at_a_time": ["web"]}}, front) == []
    (tmp_path / "anew").mkdir()
    assert said(section, written(tmp_path / "anew", a_project(web=web))) == []
