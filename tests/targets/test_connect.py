"""Whether a server that does not answer is there at all."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from lastgood.core.config import PostgresConfig
from lastgood.core.errors import Retryable
from lastgood.targets.postgres import connect
from lastgood.targets.postgres.connect import listens


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


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker client whose answer is what is written there."""
    client = tmp_path / "docker"
    client.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return client


@pytest.mark.parametrize("says", ["echo '{}'", 'echo \'{"a": {"IPAddress": ""}}\'', "exit 1"])
def test_in_a_container_that_does_not_run_nothing_listens(docker: Path, says: str) -> None:
    docker.write_text(f"#!/bin/sh\n{says}\n")
    assert not listens(PostgresConfig(name="app", user="app", container="hyper-postgres"))


def test_what_a_silent_engine_has_is_not_known(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "INSPECT_S", 0.1)
    docker.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(Retryable) as silent:
        listens(PostgresConfig(name="app", user="app", container="hyper-postgres"))
    assert silent.value.hint == "docker info"
