"""HyperCode on a real engine, the way its README says: base images, build, migrate, up, smoke."""

import os
import subprocess
import sys
import uuid
from collections.abc import Generator, Mapping

import pytest

from tests.examples.hypercode_stack import HYPERCODE, free_ports

pytestmark = [pytest.mark.needs_docker, pytest.mark.timeout(300)]  # cold, the base images alone take 20 s


def _run(environment: Mapping[str, str], *words: str) -> str:
    done = subprocess.run(
        words, cwd=HYPERCODE, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def environment() -> Generator[Mapping[str, str]]:
    """Settings of a compose project of its own; the project, its volume and its images are removed afterwards."""
    project = f"hypercode-{uuid.uuid4().hex[:8]}"
    core, orchestrator, coder_agent = map(str, free_ports(3))
    environment = os.environ | {
        "COMPOSE_PROJECT_NAME": project,
        "HYPER_POSTGRES_NAME": f"{project}-postgres",
        "HYPER_DB_PASSWORD": uuid.uuid4().hex,
        "TOKEN_SECRET": uuid.uuid4().hex,
        "CORE_PORT": core,
        "ORCHESTRATOR_PORT": orchestrator,
        "CODER_AGENT_PORT": coder_agent,
        "CORE_URL": f"http://127.0.0.1:{core}",
        "PYTHON": sys.executable,
    }
    yield environment
    _run(
        environment, "docker", "compose", "--profile", "tools", "down", "--volumes", "--rmi", "local", "--timeout", "5"
    )


@pytest.mark.full  # the stories on Compose bring it up as well
def test_the_stack_comes_up_from_nothing_and_passes_its_smoke_tests(environment: Mapping[str, str]) -> None:
    assert "made" in (made := _run(environment, "images/base-images.sh")) or made.count("is up to date") == 3
    _run(environment, "docker", "compose", "build")
    _run(environment, "docker", "compose", "up", "--detach", "--wait", "hyper-postgres")
    assert "applied 20250901090000_users" in _run(environment, "docker", "compose", "run", "--rm", "migrate")
    assert _run(environment, "docker", "compose", "run", "--rm", "migrate").strip() == "no pending migrations"
    _run(environment, "docker", "compose", "up", "--detach", "--wait")
    _run(environment, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "smoke")

    # The database survives its container: the data directory is made once.
    _run(environment, "docker", "compose", "up", "--detach", "--wait", "--force-recreate", "hyper-postgres")
    counted = ("psql", "-U", "hyper", "-d", "hypercode", "-Atc", "SELECT count(*) FROM missions")
    assert _run(environment, "docker", "compose", "exec", "-T", "hyper-postgres", *counted) == "2\n"
    _run(environment, "docker", "compose", "stop")
    codes = _run(environment, "docker", "compose", "ps", "--all", "--format", "{{.Service}} {{.ExitCode}}")
    assert sorted(codes.splitlines()) == ["coder-agent 0", "hyper-postgres 0", "hypercode-core 0", "orchestrator 0"]
