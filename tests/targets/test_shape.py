"""What kind of thing a service is, sign by sign. Whole stacks: test_stack_shapes.py."""

from __future__ import annotations

from typing import Any

import pytest

from lastgood.targets.compose.project import Project
from lastgood.targets.compose.shape import (
    Kind,
    Shape,
    awaited,
    database_server,
    exposed_by,
    found_past_names,
    not_http,
    others_asked,
    shape_of,
    what_is_lost,
)

NAMED = {"type": "volume", "source": "data", "target": "/data"}
PATH = {"type": "bind", "source": "/srv/x", "target": "/data"}


def shape(*, exposed: tuple[int, ...] = (), others: dict[str, Any] | None = None, **service: object) -> Shape:
    model = {"name": "shop", "services": {"it": {"image": "acme/it:1", **service}, **(others or {})}}
    return shape_of(Project(model), "it", exposed=exposed)


@pytest.mark.parametrize(
    "service, kind",
    [
        # a server's own workers are none
        ({"command": ["gunicorn", "-k", "uvicorn.workers.UvicornWorker", "--workers", "4", "app:app"]}, Kind.SERVING),
        ({"command": ["java", "-server", "-jar", "queue-worker.jar"]}, Kind.WORKER),
        ({"command": ["npm", "run", "start:worker"]}, Kind.WORKER),
        ({"command": ["celery", "-A", "app", "worker"], "ports": [{"target": 9100}]}, Kind.WORKER),
        ({"command": ["celery", "flower"]}, Kind.SERVING),
        # what ends is known by its last act, and by nobody starting it again
        ({"command": ["sh", "-c", "alembic upgrade head && python -m app"]}, Kind.WORKER),
        ({"command": ["sh", "-c", "sleep 5; alembic upgrade head"]}, Kind.ONE_SHOT),
        ({"command": ["alembic", "upgrade", "head"], "restart": "always"}, Kind.WORKER),
        ({"command": ["flyway", "migrate"], "restart": "on-failure:5"}, Kind.ONE_SHOT),
        ({"image": "migrate/migrate:v4"}, Kind.ONE_SHOT),
        ({"restart": "no"}, Kind.ONE_SHOT),
        ({}, Kind.WORKER),
        # an image's port is a sign only where its own command runs
        ({"exposed": (8000,)}, Kind.SERVING),
        ({"exposed": (8000,), "command": ["python", "-m", "bot"]}, Kind.WORKER),
        ({"exposed": (5432,)}, Kind.STATEFUL),
        ({"exposed": (5432,), "image": "edoburu/pgbouncer"}, Kind.SERVING),
        # a check of its own database's server is one of a database, a check of somebody else's is not
        ({"healthcheck": {"test": ["CMD-SHELL", "pg_isready -U shop"]}}, Kind.STATEFUL),
        ({"healthcheck": {"test": ["CMD-SHELL", "pg_isready -h 127.0.0.1"]}}, Kind.STATEFUL),
        ({"healthcheck": {"test": ["CMD-SHELL", "pg_isready -h db"]}}, Kind.WORKER),
        ({"healthcheck": {"test": ["CMD", "curl", "http://localhost/up"], "disable": True}}, Kind.WORKER),
        ({"healthcheck": {"test": ["CMD", "curl", "http://localhost/up"]}}, Kind.SERVING),
    ],
)
def test_the_surest_sign_decides(service: dict[str, Any], kind: Kind) -> None:
    assert shape(**service).kind is kind


def test_a_service_that_somebody_waits_for_ends() -> None:
    waits = {"image": "a", "depends_on": {"it": {"condition": "service_completed_successfully"}}}
    assert shape(command=["python", "-m", "it"], others={"api": waits}).kind is Kind.ONE_SHOT


def test_what_ends_before_a_service_starts_is_known_in_the_order_in_which_it_runs() -> None:
    def after(*names: str, condition: str = "service_completed_successfully") -> dict[str, Any]:
        return {"image": "acme/app", "depends_on": {name: {"condition": condition} for name in names}}

    services = {
        "api": after("seed", "web"),
        "web": after("db", condition="service_healthy"),
        "worker": after("migrate"),
        "seed": after("migrate"),
        "migrate": after("db", condition="service_healthy"),
        "db": {"image": "postgres"},
        "cleaning": after("tables"),
        "tables": {"image": "acme/app"},
    }
    assert awaited(Project({"name": "shop", "services": services}), ["api", "web", "worker"]) == ("migrate", "seed")


def test_a_service_that_the_file_no_longer_has_waits_for_nobody() -> None:
    """`containers.services` may name it yet."""
    waits = {"image": "a", "depends_on": {"migrate": {"condition": "service_completed_successfully"}}}
    project = Project({"name": "shop", "services": {"api": waits, "migrate": {"image": "a"}}})
    assert awaited(project, ["web", "api"]) == ("migrate",)


def test_each_service_is_asked_once_for_what_ends_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty that each wait for all before them kept a deploy's plan waiting for seconds."""
    condition = {"condition": "service_completed_successfully"}
    names = [f"job-{n}" for n in range(16)]
    services = {name: {"depends_on": dict.fromkeys(names[:n], condition)} for n, name in enumerate(names)}
    asked: list[str] = []

    def once(project: Project, name: str) -> dict[str, Any]:
        asked.append(name)
        return dict(project.model["services"][name])

    monkeypatch.setattr(Project, "service", once)
    assert awaited(Project({"name": "shop", "services": services}), [names[-1]]) == tuple(names[:-1])
    assert sorted(asked) == sorted(names)


@pytest.mark.parametrize(
    "service, port",
    [
        ({"ports": [{"target": 9100}, {"target": 80}]}, 9100),
        ({"ports": [{"target": 22}, {"target": 3000}]}, 3000),
        ({"ports": [{"target": 53, "protocol": "udp"}]}, None),
        ({"ports": [{"target": 443}]}, None),
        ({"expose": ["6000-6002/tcp"]}, 6000),
        ({"healthcheck": {"test": ["CMD", "curl", "http://localhost/up"]}}, 80),
        ({"healthcheck": {"test": ["CMD-SHELL", "nc -z 127.0.0.1 7070"]}}, 7070),
        ({"command": ["uvicorn", "app:app", "--port", "8123"]}, 8123),
        ({"command": ["uvicorn", "app:app"], "environment": {"PORT": "8124"}}, 8124),
        ({"command": ["uvicorn", "app:app"]}, None),
        ({"exposed": (8125,)}, 8125),
        ({"exposed": (8125, 8126)}, None),
        ({"image": "php:8.3-fpm", "exposed": (9000,)}, None),
    ],
)
def test_the_port_is_known_or_it_is_not(service: dict[str, Any], port: int | None) -> None:
    made = shape(**service)
    assert (made.kind, made.port) == (Kind.SERVING, port)


def test_a_sibling_tells_the_port_by_whatever_name_it_calls() -> None:
    asker = {"image": "a", "environment": {"UPSTREAM": "http://shop-it:8127/"}}
    assert shape(container_name="shop-it", others={"asker": asker}).port == 8127
    assert shape(hostname="shop-it", others={"asker": asker}).port == 8127
    near = {"image": "a", "environment": {"UPSTREAM": "http://not-shop-it:8127/"}}
    assert shape(container_name="shop-it", others={"asker": near}).kind is Kind.WORKER


@pytest.mark.parametrize(
    "service, alone",
    [
        ({"volumes": [NAMED]}, "the volume data"),
        ({"volumes": [PATH]}, "the path /srv/x"),
        ({"volumes": [{**NAMED, "read_only": True}]}, ""),
        ({"volumes": [{"type": "volume", "target": "/cache"}]}, ""),
        ({"volumes": [{**PATH, "source": "/var/run/docker.sock"}]}, ""),
        ({"volumes": [{**PATH, "target": "/etc/app/app.yaml"}]}, ""),
        ({"volumes": [{"type": "tmpfs", "target": "/tmp"}]}, ""),  # noqa: S108 # a path inside a container
        ({"environment": {"DATABASE_URL": "sqlite:////data/x.db"}, "volumes": [NAMED]}, "the volume data"),
        ({"environment": {"DATABASE_URL": "file:./dev.db"}, "working_dir": "/app"}, "SQLite file ./dev.db"),
        ({"environment": {"DATABASE_URL": "sqlite:///:memory:"}}, ""),
        ({"deploy": {"replicas": 3}, "scale": 3}, ""),
        ({"network_mode": "container:abc"}, "network_mode container:abc"),
        ({"networks": {"lan": {"ipv6_address": "fd00::2"}}}, "fixed address fd00::2"),
        ({"gpus": [{"count": -1}]}, "a device of the host"),
        ({"volumes_from": ["db"]}, "the volumes of db"),
        ({"volumes_from": ["db:ro"]}, ""),
        ({"labels": {"ofelia.enabled": "true", "ofelia.job-exec.mail.schedule": "@hourly"}}, "by its labels ofelia"),
        ({"labels": {"chadburn.job-exec.mail.command": "send"}}, "by its labels chadburn"),
        ({"labels": {"deck-chores.dump.interval": "daily"}}, "by its labels deck-chores"),
        ({"labels": {"ofelia.enabled": "false", "com.example.job-exec": "x"}}, ""),
        ({"post_start": [{"command": ["./warm.sh"]}]}, "it has post_start, which only compose runs"),
        ({"pre_stop": [{"command": ["./leave.sh"]}]}, "it has pre_stop, which only compose runs"),
    ],
)
def test_what_keeps_a_second_copy_away_is_said(service: dict[str, Any], alone: str) -> None:
    made = shape(ports=[{"target": 80}], **service).alone
    assert bool(made) is bool(alone)
    assert alone in " ".join(made)


def test_a_database_without_a_named_place_for_its_data_loses_it() -> None:
    def loses(**service: object) -> str:
        return what_is_lost(Project({"name": "shop", "services": {"it": service}}), "it")

    assert loses(image="postgres:16").startswith("keeps its data in an anonymous volume")
    assert loses(image="postgres:16", volumes=[{"type": "volume", "target": "/var/lib/postgresql/data"}])
    assert loses(image="rabbitmq:3").startswith("has no volume")
    assert not loses(image="postgres:16", volumes=[{**NAMED, "target": "/var/lib/postgresql/data"}])
    assert not loses(image="postgres:16", tmpfs=["/var/lib/postgresql/data"])
    assert not loses(image="memcached:1")
    assert not loses(image="acme/web")


@pytest.mark.parametrize(
    "service, server",
    [
        ({"image": "timescale/timescaledb:2"}, "postgres"),
        ({"image": "acme/store", "healthcheck": {"test": ["CMD", "pg_isready"]}}, "postgres"),
        ({"image": "mariadb:11", "volumes": [{**NAMED, "target": "/var/lib/mysql"}]}, "mariadb"),
        ({"image": "redis:7"}, ""),
        ({"image": "acme/postgres-backup"}, ""),
    ],
)
def test_a_database_is_known_by_what_it_is(service: dict[str, Any], server: str) -> None:
    assert database_server(Project({"name": "shop", "services": {"mysql": service}}), "mysql") == server


@pytest.mark.parametrize(
    "service, by",
    [
        ({"labels": {"traefik.http.routers.it.rule": "Host(`x`)"}}, "traefik"),
        ({"labels": {"traefik.enable": "true"}}, "traefik"),
        ({"labels": {"traefik.enable": "false", "traefik.http.routers.it.rule": "Host(`x`)"}}, ""),
        ({"labels": {"caddy": "x.example", "caddy.reverse_proxy": "{{upstreams 80}}"}}, "caddy"),
        ({"environment": {"VIRTUAL_HOST": "x.example"}}, "nginx-proxy"),
        ({"labels": {"org.example.traefik": "no"}}, ""),
    ],
)
def test_a_proxy_that_asks_the_engine_goes_past_every_name(service: dict[str, Any], by: str) -> None:
    assert found_past_names(Project({"name": "shop", "services": {"it": service}}), "it") == by


def test_an_image_declares_its_tcp_ports() -> None:
    assert exposed_by({"Config": {"ExposedPorts": {"443/tcp": {}, "80/tcp": {}, "443/udp": {}}}}) == (80, 443)
    assert exposed_by({"Config": {"ExposedPorts": None}}) == ()
    assert exposed_by(None) == ()


@pytest.mark.parametrize(
    "service, others, why",
    [
        ({"image": "eclipse-mosquitto:2"}, {}, "its image is eclipse-mosquitto"),
        (
            {"healthcheck": {"test": ["CMD", "/bin/grpc_health_probe", "-addr=:7000"]}},
            {},
            "its health check asks it by gRPC",
        ),
        (
            {"healthcheck": {"test": ["CMD-SHELL", "curl -fk https://localhost:7000/up"]}},
            {},
            "its health check asks it by https",
        ),
        ({"environment": {"GRPC_LISTEN": "0.0.0.0:7000"}}, {}, "its GRPC_LISTEN is that port"),
        ({}, {"environment": {"MODEL": "grpc://it:7000"}}, "web calls it by grpc"),
        ({}, {"environment": {"MODEL": "dns:///it:7000"}}, "web calls it by dns"),
        ({}, {"command": ["run", "--bus", "mqtt://u:p@it:7000"]}, "web calls it by mqtt"),
        ({}, {"environment": {"MODEL_GRPC_ADDR": "it:7000"}}, "web calls it by MODEL_GRPC_ADDR"),
        ({}, {"environment": {"MODEL": "http://it:7000", "WAIT": "tcp://it:7000", "BUS": "mqtt://it:1883"}}, ""),
        ({"environment": {"GRPC_LISTEN": ":7001"}}, {}, ""),
    ],
)
def test_what_says_that_a_port_is_not_one_of_http(service: dict[str, Any], others: dict[str, Any], why: str) -> None:
    it = {"image": "acme/it:1", "ports": [{"target": 7000}], **service}
    project = Project({"name": "shop", "services": {"it": it, "web": {"image": "acme/web", **others}}})
    assert not_http(project, "it", 7000) == why
    assert shape_of(project, "it").port == (None if why else 7000)


def test_further_ports_by_which_a_service_is_asked_are_known() -> None:
    it = {"image": "acme/it:1", "expose": ["7000", "9100"], "ports": [{"target": 7000}, {"target": 7002}]}
    web = {"image": "acme/web", "environment": {"A": "http://it:7000", "B": "http://it:7001", "C": "http://it:7002"}}
    assert others_asked(Project({"name": "shop", "services": {"it": it, "web": web}}), "it", 7000) == (7001, 9100)
