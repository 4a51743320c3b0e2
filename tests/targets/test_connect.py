"""Whether a server that does not answer is there at all."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from lastgood.core.config import PostgresConfig
from lastgood.core.errors import Retryable
from lastgood.targets import docker_engine
from lastgood.targets.postgres.connect import container_address, listens
from tests.targets.engine_double import engine_double


def test_who_takes_connections_listens_however_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = PostgresConfig(name="app", user="app", port=silent.getsockname()[1])
        assert listens(config)
    assert not listens(config)


def test_a_socket_that_nobody_listens_at_any_more_is_nobodys(tmp_path: Path) -> None:
    config = PostgresConfig(name="app", user="app", host=str(tmp_path))
    assert not listens(config)
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / ".s.PGSQL.5432"))
    assert not listens(config)


DATABASE = PostgresConfig(name="app", user="app", container="hyper-postgres")


@pytest.mark.parametrize("networks", [{}, {"a": {"IPAddress": ""}}, None])
def test_in_a_container_that_does_not_run_nothing_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, networks: dict[str, Any] | None
) -> None:
    """None: there is no such container."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/engine.sock")
    with engine_double(tmp_path / "engine.sock") as engine:
        if networks is not None:
            engine.containers.append(
                {"Id": "1" * 64, "Name": "/hyper-postgres", "NetworkSettings": {"Networks": networks}}
            )
        assert not listens(DATABASE)
        with pytest.raises(Retryable) as down:
            container_address("hyper-postgres")
    assert down.value.hint == "docker start hyper-postgres"


def test_a_container_is_asked_at_the_address_that_it_has_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/engine.sock")
    with engine_double(tmp_path / "engine.sock") as engine:
        for address in ("172.18.0.2", "172.18.0.3"):
            shown = {"Id": "1" * 64, "Name": "/hyper-postgres"}
            engine.containers = [{**shown, "NetworkSettings": {"Networks": {"a": {"IPAddress": address}}}}]
            assert container_address("hyper-postgres") == address


def test_what_a_silent_engine_has_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/engine.sock")
    monkeypatch.setattr(docker_engine, "REQUEST_S", 1.0)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/engine.sock")
        silent.listen()
        with pytest.raises(Retryable) as unknown:
            listens(DATABASE)
    assert unknown.value.hint == "docker version"
