"""What the stacks of tests/cases/stacks show on an engine that only shows, once on the real one: what compose notes on
its containers, and a way back that is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lastgood.targets.compose import survey
from tests.contract.rigs.clock import CLOCK
from tests.contract.rigs.compose import ComposeWorld, world

pytestmark = pytest.mark.needs_docker


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[ComposeWorld]:
    """A folder with spaces and an emoji, an environment file, a profile, a fixed name, an overlay, and a second file
    that production does not load."""
    with world(tmp_path / "my shop 🚀") as made:
        web = {"container_name": f"{made.project}-fixed", "env_file": ["settings of today.env"]}
        made.services["web"] |= {**web, "volumes": ["./data dir 📦:/data"]}
        made.services["worker"] |= {"profiles": ["jobs"]}
        made.write(env="")
        (made.root / "data dir 📦").mkdir()
        (made.root / "settings of today.env").write_text("MODE=the usual\nPRICE=5$\n")
        (made.root / "docker-compose.prod.yml").write_text("services: {web: {labels: {tier: front}}}\n")
        (made.root / "docker-compose.override.yml").write_text("services: {web: {labels: {tier: development}}}\n")
        made.compose(*FILES, "--profile", "jobs", "up", "--detach")
        yield made


FILES = ("--file", "docker-compose.yml", "--file", "docker-compose.prod.yml")


def test_init_takes_files_profiles_and_project_from_what_runs(stack: ComposeWorld) -> None:
    found = survey(stack.root)
    assert (found.project, found.profiles, found.env_file) == (stack.project, ("jobs",), None)
    assert found.files == ("docker-compose.yml", "docker-compose.prod.yml")
    assert [s.name for s in found.services if not s.why_not] == ["web", "worker"]
    assert {s.name: s.ports for s in found.services}["web"] == (stack.port,)


@pytest.mark.full
def test_such_a_stack_is_recorded_as_it_runs_and_goes_back(stack: ComposeWorld) -> None:
    files = ["docker-compose.yml", "docker-compose.prod.yml"]
    target = stack.target(compose={"project": stack.project, "files": files, "profiles": ["jobs"]})
    assert target.preflight() == ()
    before = target.describe_running("v1", CLOCK.now())
    for service in ("web", "worker"):
        stack.image(service, "2")
    stack.put(target, target.prepare("v2", CLOCK.now()))
    assert stack.page() == "2"
    stack.put(target, before)
    assert stack.page() == "0"
    assert all(check.passed for check in target.checks(before))
    environment = stack.container("web").attrs["Config"]["Env"]
    assert {"MODE=the usual", "PRICE=5$"} <= set(environment)
