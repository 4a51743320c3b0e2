"""What a release's record says of a service, read from the resolved configuration, without a word that may be
secret."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lastgood.core.config import ContainersConfig
from lastgood.core.errors import Refused
from lastgood.core.release import ServiceRecord
from lastgood.targets.compose.describe import _keep
from lastgood.targets.compose.engine import connect
from lastgood.targets.compose.kept import Shelf
from lastgood.targets.compose.project import Project
from lastgood.targets.compose.resolving import resolve
from lastgood.targets.compose.stack import Stack
from tests.contract.rigs.clock import CLOCK
from tests.targets.engine_double import engine_double

SECRET = "correct-horse"


def project(**service: object) -> Project:
    return Project({"name": "shop", "services": {"web": service}})


@pytest.mark.parametrize(
    "check,of_image,shown",
    [
        ({}, {}, ""),
        ({"test": ["CMD", "/usr/bin/curl", "-H", f"X: {SECRET}"]}, {}, "curl (compose file), every 30s"),
        (
            {"test": ["CMD-SHELL", f"wget -q http://u:{SECRET}@x"], "interval": "5s"},
            {},
            "wget (compose file), every 5s",
        ),
        ({"test": ["CMD-SHELL", f"TOKEN={SECRET} check"]}, {}, "a command (compose file), every 30s"),
        ({"test": f"pg_isready -U {SECRET}"}, {}, "pg_isready (compose file), every 30s"),
        ({"test": ["NONE"]}, {"Test": ["CMD", "curl"]}, ""),
        ({"disable": True}, {"Test": ["CMD", "curl"]}, ""),
        ({}, {"Test": ["CMD-SHELL", f"curl http://u:{SECRET}@x || exit 1"]}, "curl (image)"),
        ({"interval": "5s"}, {"Test": ["CMD", "/bin/check"]}, "check (image)"),
        ({}, {"Test": ["NONE"]}, ""),
    ],
)
def test_what_checks_the_health_is_named_without_its_arguments(
    check: dict[str, Any], of_image: dict[str, Any], shown: str
) -> None:
    assert project(healthcheck=check).probe("web", of_image) == shown


@pytest.mark.parametrize(
    "port,shown",
    [
        ({"target": 80, "published": "8000", "protocol": "tcp"}, "*:8000->80/tcp"),
        ({"target": 80, "published": "8000", "host_ip": "127.0.0.1"}, "127.0.0.1:8000->80/tcp"),
        ({"target": 53, "published": "53", "protocol": "udp"}, "*:53->53/udp"),
        ({"target": 80}, "*:any->80/tcp"),
    ],
)
def test_published_ports_are_shown_as_people_write_them(port: dict[str, Any], shown: str) -> None:
    assert project(ports=[port]).published("web") == (shown,)


@pytest.mark.parametrize(
    "said,policy",
    [
        ({}, "no"),
        ({"restart": "on-failure:3"}, "on-failure:3"),
        ({"deploy": {"restart_policy": {"condition": "any"}}}, "always"),
        ({"restart": "always", "deploy": {"restart_policy": {"condition": "none"}}}, "no"),
        ({"deploy": {"restart_policy": {"condition": "on-failure", "max_attempts": 5}}}, "on-failure:5"),
        ({"deploy": {"restart_policy": {"condition": "any", "max_attempts": 5}}}, "always"),
        ({"restart": "always", "deploy": {"resources": {}}}, "always"),
        ({"restart": "always", "deploy": {"restart_policy": {}}}, "no"),
    ],
)
def test_a_service_is_started_again_as_compose_would_have_it(said: dict[str, Any], policy: str) -> None:
    assert project(**said).restart_policy("web") == policy


def test_what_compose_printed_instead_of_a_model_is_seen_again_with_the_very_words(tmp_path: Path) -> None:
    words = ["echo", "--file", "a b.yml", "config"]
    with pytest.raises(Refused, match="printed no configuration") as refused:
        resolve(words, env={}, env_file=tmp_path / ".env")
    assert refused.value.hint == "echo --file 'a b.yml' config"


def test_a_release_whose_images_cannot_be_held_is_not_there(tmp_path: Path) -> None:
    config = ContainersConfig.model_validate({"compose": {"project": "shop"}, "services": ["web"]})
    stack = Stack(config=config, root=tmp_path, state=tmp_path, shelf=Shelf(tmp_path), clock=CLOCK)
    record = ServiceRecord(name="web", artifact=f"sha256:{1:064x}", held_as="lastgood/shop/web:v1")
    with (
        engine_double(tmp_path / "engine.sock"),
        connect("shop", {"DOCKER_HOST": f"unix://{tmp_path / 'engine.sock'}"}) as engine,
        pytest.raises(Refused, match="is not on this host"),
    ):
        _keep(stack, engine, "v1", recorded_at=datetime.now(UTC), project=project(image="web"), records=[record])
    assert stack.shelf.names() == frozenset()


def test_a_compose_file_that_was_renamed_is_named_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").touch()
    config = ContainersConfig.model_validate({"compose": {"project": "shop"}, "services": ["web"]})
    stack = Stack(config=config, root=tmp_path, state=tmp_path, shelf=Shelf(tmp_path), clock=CLOCK)
    with pytest.raises(
        Refused, match=r"docker-compose.yml, which containers.compose.files names, is not there"
    ) as refused:
        stack.resolve()
    assert refused.value.hint == "containers.compose.files in lastgood.yaml"
