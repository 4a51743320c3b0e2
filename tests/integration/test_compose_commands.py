"""The words of every command, one by one."""

from __future__ import annotations

from pathlib import Path

from lastgood.core.config import ComposeConfig
from lastgood.targets import checkout, child
from lastgood.targets.compose import commands

ROOT = Path("/srv/shop")
PLAIN = ComposeConfig(project="shop")
FULL = ComposeConfig(
    files=("deploy/compose.yml", "deploy/compose.prod.yml"), project="shop", profiles=("prod",), env_file="prod.env"
)
COMPOSE = ["docker", "compose", "--ansi", "never", "--progress", "plain", "--project-name", "shop"]
ON_DISK = [*COMPOSE, "--project-directory", "/srv/shop", "--file", "/srv/shop/docker-compose.yml"]
RECORDED = [*COMPOSE, "--project-directory", "/srv/shop", "--file", "/state/start.json", "--env-file", "/dev/null"]


def test_resolving_reads_the_files_profiles_and_environment_file_that_are_configured() -> None:
    assert commands.resolve(PLAIN, ROOT) == [*ON_DISK, "config", "--format", "json"]
    assert commands.resolve(FULL, ROOT) == [
        *[*COMPOSE, "--project-directory", "/srv/shop/deploy"],
        *["--file", "/srv/shop/deploy/compose.yml", "--file", "/srv/shop/deploy/compose.prod.yml"],
        *["--profile", "prod", "--env-file", "/srv/shop/prod.env", "config", "--format", "json"],
    ]


def test_hashes_are_compose_s_own_of_a_recorded_file() -> None:
    hashes = ["--profile", "*", "config", "--hash", "*"]
    assert commands.hashes("shop", ROOT, Path("/state/start.json")) == [*RECORDED, *hashes]
    assert commands.version() == ["docker", "compose", "version", "--short"]


def test_a_survey_reads_every_profile_and_what_the_stack_was_started_with() -> None:
    plain = ["docker", "compose", "--ansi", "never", "--progress", "plain", "--project-directory", "/srv/shop"]
    ends = ["config", "--format", "json"]
    assert commands.survey(ROOT, ["a.yml", "b.yml"]) == [
        *[*plain, "--profile", "*", "--file", "/srv/shop/a.yml", "--file", "/srv/shop/b.yml", *ends]
    ]
    assert commands.survey(ROOT, ["a.yml"], project="shop", env_file="prod.env") == [
        *[*plain, "--profile", "*", "--project-name", "shop", "--file", "/srv/shop/a.yml"],
        *["--env-file", "/srv/shop/prod.env", *ends],
    ]
    assert commands.without_values(["docker", *ends]) == ["docker", *ends, "--no-interpolate"]


def test_building_and_pulling_name_the_services_and_no_other() -> None:
    assert commands.build(PLAIN, ROOT, ["web", "worker"]) == [*ON_DISK, "build", "--", "web", "worker"]
    assert commands.pull(PLAIN, ROOT, ["web"]) == [*ON_DISK, "pull", "--quiet", "--", "web"]


def test_starting_touches_one_service_builds_nothing_and_pulls_nothing() -> None:
    up = ["up", "--detach", "--no-deps", "--no-build", "--pull", "never", "--timeout"]
    file = Path("/state/start.json")
    plain = commands.start(PLAIN, ROOT, file, "web", stop_s=1.2, anew=False, instances=None)
    assert plain == [*RECORDED, *up, "2", "--", "web"]
    assert commands.start(PLAIN, ROOT, file, "web", stop_s=10, anew=True, instances=3) == [
        *[*RECORDED, *up, "10", "--force-recreate", "--scale", "web=3", "--", "web"]
    ]


def test_a_candidate_is_created_in_a_project_of_its_own_and_not_started() -> None:
    assert commands.create("shop-lastgood-gate", ROOT, Path("/state/gate.json"), "web") == [
        *["docker", "compose", "--ansi", "never", "--progress", "plain", "--project-name", "shop-lastgood-gate"],
        *["--project-directory", "/srv/shop", "--file", "/state/gate.json", "--env-file", "/dev/null"],
        *["up", "--no-start", "--no-deps", "--no-build", "--pull", "never", "--", "web"],
    ]


def test_a_person_types_what_keeps_to_the_project_and_to_what_it_was_started_with() -> None:
    up = ["up", "--detach"]
    assert commands.compose_by_hand(PLAIN, *up) == [
        *["docker", "compose", "--project-name", "shop", "--file", "docker-compose.yml", *up]
    ]
    assert commands.compose_by_hand(FULL, *up) == [
        *["docker", "compose", "--project-name", "shop", "--file", "deploy/compose.yml"],
        *["--file", "deploy/compose.prod.yml", "--profile", "prod", "--env-file", "prod.env", *up],
    ]


def test_git_is_asked_for_the_commit_its_changes_and_its_submodules() -> None:
    git = ["git", "-C", "/srv/shop"]
    assert checkout.commit(ROOT) == [*git, "rev-parse", "--verify", "--quiet", "HEAD"]
    assert checkout.changes(ROOT, besides=".lastgood") == [
        *[*git, "status", "--porcelain", "--", ".", ":(exclude).lastgood"]
    ]
    assert checkout.changes(ROOT, besides="") == [*git, "status", "--porcelain", "--", "."]
    assert checkout.submodules(ROOT) == [*git, "submodule", "status", "--recursive"]


def test_no_variable_of_today_reaches_the_start_of_a_release() -> None:
    today = {"PATH": "/bin", "IMAGE_TAG": "bad", "COMPOSE_FILE": "x.yml", "DOCKER_HOST": "unix:///d.sock"}
    assert child.bare_environment(today) == {"PATH": "/bin", "DOCKER_HOST": "unix:///d.sock", "LANG": "C.UTF-8"}


def test_compose_fills_variables_from_the_environment_but_takes_no_orders_from_it() -> None:
    today = {"IMAGE_TAG": "v2", "COMPOSE_FILE": "x.yml", "COMPOSE_PROFILES": "all"}
    assert child.interpolation_environment(today) == {"IMAGE_TAG": "v2", "LANG": "C.UTF-8"}
