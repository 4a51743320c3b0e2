"""Which engine is asked: the one that the docker client asks."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from lastgood.core.errors import Refused
from lastgood.targets import child
from lastgood.targets.docker_host import docker_host


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """The client's folder, with two contexts made by the client itself."""
    for name, host in (("rootless", "unix:///run/user/1000/docker.sock"), ("far", "ssh://root@far")):
        made = ["docker", "--config", str(tmp_path), "context", "create", name, "--docker", f"host={host}"]
        subprocess.run(made, check=True, capture_output=True, timeout=20)
    return tmp_path


def use(settings: Path, context: str) -> None:
    """What `docker context use` writes."""
    (settings / "config.json").write_text(json.dumps({"currentContext": context}))


@pytest.mark.needs_docker
def test_the_context_in_use_names_the_engine_for_everything(settings: Path) -> None:
    use(settings, "rootless")
    env = {"DOCKER_CONFIG": str(settings), "PATH": "/bin"}
    rootless = "unix:///run/user/1000/docker.sock"
    assert docker_host(env) == rootless
    assert child.bare_environment(env)["DOCKER_HOST"] == rootless
    assert child.interpolation_environment(env)["DOCKER_HOST"] == rootless
    assert docker_host({**env, "DOCKER_CONTEXT": "default"}) == ""
    assert docker_host({**env, "DOCKER_HOST": "unix:///d.sock"}) == "unix:///d.sock"
    use(settings, "default")
    assert docker_host({**env, "DOCKER_CONTEXT": "rootless"}) == rootless


@pytest.mark.needs_docker
@pytest.mark.parametrize(
    "context,said", [("gone", "there is no docker context gone"), ("far", "leads to ssh://root@f")]
)
def test_a_context_that_leads_nowhere_or_far_away_is_said_and_no_other_engine_is_asked(
    settings: Path, context: str, said: str
) -> None:
    env = {"DOCKER_CONFIG": str(settings), "DOCKER_CONTEXT": context}
    with pytest.raises(Refused, match=said):
        docker_host(env)
    assert child.bare_environment(env)["DOCKER_CONTEXT"] == context


@pytest.mark.parametrize("written", [None, "", "no json", "[]", "{}"])
def test_without_a_context_the_client_s_own_default_counts(tmp_path: Path, written: str | None) -> None:
    if written is not None:
        (tmp_path / "config.json").write_text(written)
    env = {"DOCKER_CONFIG": str(tmp_path), "PATH": "/bin"}
    assert docker_host(env) == docker_host({}) == ""
    assert "DOCKER_HOST" not in child.bare_environment(env)
