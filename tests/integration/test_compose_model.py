"""What is read out of a resolved configuration, without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests.exceptions

from lastgood.core.errors import LastgoodError, OutcomeUnknown, Refused, Retryable
from lastgood.targets.compose.describe import _digest
from lastgood.targets.compose.gate import _without
from lastgood.targets.compose.kept import Shelf, held_as
from lastgood.targets.compose.obstacles import obstacles
from lastgood.targets.compose.project import Project
from lastgood.targets.compose.shape import why_stateful
from lastgood.targets.compose.stack import masker_of
from lastgood.targets.docker_engine import asking
from lastgood.targets.masking import Masker, dotenv_values

KEY = b"k" * 32


def project(**service: object) -> Project:
    return Project({"name": "shop", "services": {"web": service}, "volumes": {"data": {"name": "shop_data"}}})


@pytest.mark.parametrize(
    "service, reason",
    [
        ({"image": "postgres:15"}, "its image is postgres"),
        ({"image": "registry.example:5000/library/redis"}, "its image is redis"),
        ({"image": "mariadb@sha256:aa"}, "its image is mariadb"),
        ({"image": "acme/db", "command": ["/usr/bin/mysqld", "--x"]}, "it runs mysqld"),
        (
            {
                "image": "acme/db",
                "volumes": [{"type": "bind", "source": "/srv/pg", "target": "/var/lib/postgresql/data"}],
            },
            "it keeps data in /var/lib/postgresql/data",
        ),
        (
            {
                "image": "acme/db",
                "ports": [{"target": 5432}],
                "volumes": [{"type": "volume", "source": "data", "target": "/data"}],
            },
            "it listens on 5432 and keeps a volume at /data",
        ),
        ({"image": "acme/postgres-client"}, ""),
        ({"image": "acme/web", "volumes": [{"type": "volume", "source": "data", "target": "/uploads"}]}, ""),
        ({"image": "acme/web", "ports": [{"target": 5432}]}, ""),
    ],
)
def test_a_service_is_stateful_by_what_it_is_not_by_its_name(service: dict[str, Any], reason: str) -> None:
    assert why_stateful(project(**service), "web") == reason


@pytest.mark.parametrize(
    "service, said",
    [
        ({"network_mode": "host"}, "web has network_mode host"),
        ({"network_mode": "service:db"}, "web has network_mode service:db"),
        ({"volumes_from": ["db"]}, "web has volumes_from"),
        ({"scale": 0}, "web is asked for in no container"),
        ({"deploy": {"replicas": 0}}, "web is asked for in no container"),
        ({"ipc": "service:db"}, "web has ipc service:db"),
        ({"pid": "container:db"}, "web has pid container:db"),
        ({"healthcheck": {"test": ["CMD", "x"], "start_period": "1h2m3.5s"}}, "web may take 3724 s to start"),
    ],
)
def test_what_cannot_go_back_is_said(service: dict[str, Any], said: str, tmp_path: Path) -> None:
    (line,) = obstacles(project(image="acme/web", **service), "web", root=tmp_path, boot_s=60)
    assert line.startswith(said)


def test_a_secret_that_no_release_could_keep_is_said(tmp_path: Path) -> None:
    service = {"image": "acme/web", "secrets": [{"source": "token"}, {"source": "filed"}]}
    (tmp_path / "filed").touch()
    secrets = {"token": {"environment": "TOKEN"}, "filed": {"file": str(tmp_path / "filed")}}
    model = Project({"name": "shop", "services": {"web": service}, "secrets": secrets})
    (line,) = obstacles(model, "web", root=tmp_path, boot_s=60)
    assert line.startswith("web takes its secret token from its environment, which no release keeps")


def test_a_secret_whose_file_is_gone_is_said(tmp_path: Path) -> None:
    service = {"image": "acme/web", "configs": [{"source": "nginx"}]}
    model = Project(
        {"name": "shop", "services": {"web": service}, "configs": {"nginx": {"file": f"{tmp_path}/x.conf"}}}
    )
    assert list(obstacles(model, "web", root=tmp_path, boot_s=60)) == [
        f"config nginx of web is gone: there is no {tmp_path}/x.conf"
    ]


@pytest.mark.parametrize(
    "mounted,refused", [("web/src", True), (".", True), ("deploy/conf", False), ("../notes", False)]
)
def test_code_that_is_mounted_from_anywhere_in_the_repository_is_refused(
    mounted: str, refused: bool, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    for folder in (".git", "web/src", "deploy/conf", "../notes"):
        (repository / folder).mkdir(parents=True, exist_ok=True)
    for file in ("web/src/app.vue", "deploy/conf/app.yaml", "../notes/script.py"):
        (repository / file).write_text("x")
    mount = {"type": "bind", "source": str((repository / mounted).resolve()), "target": "/app"}
    lines = list(obstacles(project(image="a", volumes=[mount]), "web", root=repository / "deploy", boot_s=60))
    assert bool(lines) is refused
    assert all(line.startswith("web runs code from a bind mount") for line in lines)


@pytest.mark.parametrize(
    "service,asked",
    [({}, None), ({"scale": 3}, 3), ({"deploy": {"replicas": 2}}, 2), ({"deploy": {"resources": {}}}, None)],
)
def test_how_many_containers_a_file_asks_for(service: dict[str, Any], asked: int | None) -> None:
    assert project(image="a", **service).instances("web") == asked


@pytest.mark.parametrize(
    "reference",
    ["nginx", "nginx:1", "docker.io/library/nginx:1", "docker.io/nginx", "library/nginx", "nginx@sha256:bb"],
)
def test_an_image_of_the_engine_s_own_hub_is_known_by_its_digest(reference: str) -> None:
    image = {"RepoDigests": ["localhost:5000/nginx@sha256:aa", "nginx@sha256:bb"]}
    assert _digest(image, reference) == "nginx@sha256:bb"
    assert _digest(image, "localhost:5000/nginx:2") == "localhost:5000/nginx@sha256:aa"
    assert _digest(image, "acme/nginx") is None


@pytest.mark.parametrize(
    "below,error",
    [
        (ConnectionRefusedError(111, "refused"), Retryable),
        (FileNotFoundError(2, "no socket"), Retryable),
        (ConnectionResetError(104, "reset"), OutcomeUnknown),
        (EOFError("closed"), OutcomeUnknown),
    ],
)
def test_a_change_whose_answer_was_lost_is_unknown_and_one_that_nobody_heard_is_not(
    below: Exception, error: type[LastgoodError]
) -> None:
    wrapped = requests.exceptions.ConnectionError(Exception("Connection aborted.", below))
    with pytest.raises(error), asking(changing="starting web"):
        raise wrapped
    with pytest.raises(Retryable), asking():
        raise wrapped


def test_the_configuration_s_hash_sees_values_and_volumes_and_not_where_the_image_comes_from() -> None:
    plain = project(image="a", environment={"A": "1"}).config_hash("web", KEY)
    assert project(image="b", build={"context": "."}, environment={"A": "1"}).config_hash("web", KEY) == plain
    assert project(image="a", environment={"A": "2"}).config_hash("web", KEY) != plain
    assert project(image="a", environment={"A": "1"}).config_hash("web", b"other") != plain


def test_a_volume_that_exists_is_external_so_that_no_compose_recreates_it() -> None:
    mount = {"type": "volume", "source": "data", "target": "/uploads"}
    model = project(image="a", build={"context": "."}, volumes=[mount], depends_on={"db": {}})
    started = model.to_start("web", image="i", labels={"l": "1"}, networks=(), volumes=["shop_data"])
    assert started["volumes"] == {"data": {"name": "shop_data", "external": True}}
    assert started["services"]["web"] == {
        "image": "i",
        "pull_policy": "never",
        "labels": {"l": "1"},
        "volumes": [mount],
    }


LINKED = {
    "image": "a",
    "links": ["db:database", "cache"],
    "external_links": ["elsewhere:mail"],
    "depends_on": {"db": {}, "cache": {}},
    "networks": {"default": None},
}


def linked(**service: object) -> Project:
    services = {"web": {**LINKED, **service}, "db": {"image": "postgres"}, "cache": {"image": "redis"}}
    return Project({"name": "shop", "services": services, "networks": {"default": {"name": "shop_default"}}})


def test_a_service_is_started_alone_with_the_links_that_lead_where_no_network_does() -> None:
    """A link to a service that is not in the model makes compose refuse all of it."""
    links = ["elsewhere:mail", "shop-db-1:database"]
    model = linked()
    there = ["shop_default"]
    for made in (
        model.to_start("web", image="i", labels={}, networks=there, volumes=()),
        model.to_create_beside("web", image="i", labels={}, networks=there),
        model.to_stand_beside("web", image="i", labels={}, networks=there),
    ):
        web = made["services"]["web"]
        assert (web.get("links"), web["external_links"]) == (None, links)


def test_on_the_engine_s_own_network_every_link_counts() -> None:
    plain = linked(network_mode="bridge", networks=None)
    started = plain.to_start("web", image="i", labels={}, networks=(), volumes=())["services"]["web"]
    assert started["external_links"] == ["elsewhere:mail", "shop-db-1:database", "shop-cache-1:cache"]


def test_a_candidate_is_not_found_by_a_proxy_that_asks_the_engine() -> None:
    """nginx-proxy sends requests to every container that says so, and the gate is not over yet."""
    web = project(image="a", environment={"VIRTUAL_HOST": "shop.example", "VIRTUAL_PORT": "80", "A": "1"})
    beside = web.to_create_beside("web", image="i", labels={}, networks=())["services"]["web"]
    assert beside["environment"] == {"VIRTUAL_PORT": "80", "A": "1"}
    started = web.to_start("web", image="i", labels={}, networks=(), volumes=())["services"]["web"]
    assert started["environment"]["VIRTUAL_HOST"] == "shop.example"


def test_a_hostname_is_a_name_that_nothing_beside_a_service_has() -> None:
    """The engine takes it for a name in every network."""
    web = project(image="a", hostname="shop", domainname="example.com", networks={"default": {"aliases": ["front"]}})
    assert web.names("web") == ("web", "shop", "front")
    for made in (
        web.to_create_beside("web", image="i", labels={}, networks=()),
        web.to_stand_beside("web", image="i", labels={}, networks=()),
    ):
        assert "hostname" not in made["services"]["web"]
    started = web.to_start("web", image="i", labels={}, networks=(), volumes=())["services"]["web"]
    assert started["hostname"] == "shop"


def test_what_stands_beside_a_service_has_its_limits_and_its_devices() -> None:
    """Without its limit a release passes the gate that is out of memory in its place."""
    resources = {
        "limits": {"memory": "62914560"},
        "reservations": {"devices": [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]},
    }
    web = project(image="a", deploy={"resources": resources, "replicas": 2, "restart_policy": {"condition": "any"}})
    for made in (
        web.to_create_beside("web", image="i", labels={}, networks=()),
        web.to_stand_beside("web", image="i", labels={}, networks=()),
    ):
        assert made["services"]["web"]["deploy"] == {"resources": resources}


def test_what_stands_beside_a_service_is_in_its_networks_as_it_is_but_for_names_and_addresses() -> None:
    kept = {"priority": 5, "driver_opts": {"a": "b"}}
    one = {"aliases": ["x"], "ipv4_address": "10.0.0.2", "ipv6_address": "fd00::2", "mac_address": "02:42:ac:11:00:02"}
    back = {**kept, **one, "link_local_ips": ["169.254.1.1"]}
    web = project(image="a", networks={"back": back, "front": {}, "other": None})
    for made in (
        web.to_create_beside("web", image="i", labels={}, networks=("back", "front", "other")),
        web.to_stand_beside("web", image="i", labels={}, networks=()),
    ):
        assert made["services"]["web"]["networks"] == {"back": kept, "front": None, "other": None}


def test_secrets_are_masked_by_name_and_by_place_and_ordinary_values_are_not() -> None:
    masker = Masker([{"DB_PASSWORD": "correct-horse", "URL": "redis://:p%40ss@cache/0", "MODE": "production"}])
    assert masker.clean("correct-horse p@ss p%40ss production") == "******** ******** ******** production"
    assert masker.clean("postgres://someone:else@db/x") == "postgres://someone:********@db/x"
    assert masker.clean("red \x1b[31mtext\x07 \u202eback") == "red [31mtext back"
    assert masker.tail("a\n\n b \nc\n", lines=2) == "b | c"


def test_a_failed_build_shows_no_secret_that_it_was_given() -> None:
    built = project(build={"context": ".", "args": {"NPM_TOKEN": "tok$$en-of-ours", "MODE": "production"}})
    assert masker_of(built).clean("RUN npm ci --token tok$en-of-ours production") == (
        "RUN npm ci --token ******** production"
    )


@pytest.mark.parametrize(
    "mounts,said",
    [
        ([], ""),
        ([{"type": "bind", "read_only": True}, {"type": "tmpfs"}], ""),
        ([{"type": "volume"}], " (its writable volumes were empty; what cannot start so goes into containers.workers"),
        ([{"type": "bind"}], " (its writable folders read-only; what cannot start so goes into containers.workers"),
    ],
)
def test_what_a_candidate_did_not_have_is_said_with_the_way_round(mounts: list[dict[str, Any]], said: str) -> None:
    shown = _without(project(volumes=mounts), "web")
    assert shown.startswith(said)
    assert bool(shown) is bool(said)


def test_an_environment_file_is_read_well_enough_to_mask_it() -> None:
    assert dotenv_values("# x=1\nexport A='b c'\nD=\"e=f\"\nnot a line\n") == {"A": "b c", "D": "e=f"}


def test_an_image_is_held_by_project_service_and_release() -> None:
    assert held_as("coder-agent", "v1", project="shop") == "lastgood/shop/coder-agent:v1"


def test_services_that_differ_in_case_are_held_by_different_tags() -> None:
    assert held_as("Web", "v1", project="shop") != held_as("web", "v1", project="shop")


def test_a_project_whose_name_is_no_repository_is_held_all_the_same() -> None:
    """Compose takes `shop_`; a repository does not end so."""
    assert held_as("web", "v1", project="shop_").startswith("lastgood/shop-")


@pytest.mark.parametrize("name", ["../x", "-f", "a/b", "", "a" * 64])
def test_a_path_is_made_of_release_names_only(name: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="is not a release name"):
        Shelf(tmp_path).find(name)
