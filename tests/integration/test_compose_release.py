"""What a release is made of, and what is refused because it could not go back."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from lastgood.core.errors import Refused
from tests.contract.rigs.clock import CLOCK
from tests.contract.rigs.compose import ComposeWorld

pytestmark = pytest.mark.needs_docker


def test_a_release_holds_its_images_by_tag_and_keeps_its_configuration_for_its_owner_only(stack: ComposeWorld) -> None:
    image = stack.image("web", "1")
    release = stack.target().prepare("v1", CLOCK.now())
    web = release.service("web")
    assert web is not None
    assert (web.artifact, web.held_as) == (image, f"lastgood/{stack.project}/web:v1")
    assert stack.client.images.get(web.held_as).id == image
    kept = stack.root / ".lastgood" / release.config_file
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700


def test_preparing_starts_nothing_and_preparing_again_gives_the_same(stack: ComposeWorld) -> None:
    before = [
        c.id
        for c in stack.client.containers.list(all=True, ignore_removed=True)
        if (c.name or "").startswith(stack.project)
    ]
    target = stack.target()
    first = target.prepare("v1", CLOCK.now())
    assert replace(target.prepare("v1", CLOCK.now()), recorded_at=first.recorded_at) == first
    after = [
        c.id
        for c in stack.client.containers.list(all=True, ignore_removed=True)
        if (c.name or "").startswith(stack.project)
    ]
    assert before == after


def test_a_name_that_stands_for_other_images_is_refused(stack: ComposeWorld) -> None:
    target = stack.target()
    target.prepare("v1", CLOCK.now())
    stack.image("web", "other")
    with pytest.raises(Refused, match=r"release v1 exists with other images of web") as refused:
        target.prepare("v1", CLOCK.now())
    assert "--release" in refused.value.hint


def test_a_changed_environment_makes_another_configuration_and_the_record_does_not_show_the_value(
    stack: ComposeWorld,
) -> None:
    stack.services["web"]["environment"] = {"PASSWORD": "${PASSWORD}"}
    target = stack.target()
    stack.write(env="PASSWORD=correct-horse\n")
    first = target.prepare("v1", CLOCK.now())
    stack.write(env="PASSWORD=battery-staple\n")
    second = target.prepare("v2", CLOCK.now())
    assert first.services[0].artifact == second.services[0].artifact
    assert first.services[0].env_hash != second.services[0].env_hash
    assert first.services[0].config_hash != second.services[0].config_hash
    assert "correct-horse" not in repr(first)


def test_a_service_that_the_file_does_not_have_is_refused_and_the_known_ones_are_named(stack: ComposeWorld) -> None:
    with pytest.raises(Refused, match=r"names api, which the compose file does not have; it has: db, web, worker"):
        stack.target(services=["web", "api"]).prepare("v1", CLOCK.now())


def test_a_stateful_service_is_refused_with_the_reason(stack: ComposeWorld) -> None:
    with pytest.raises(Refused, match=r"db is stateful .it keeps data in /var/lib/postgresql/data"):
        stack.target(services=["web", "db"]).prepare("v1", CLOCK.now())


def test_code_in_a_bind_mount_is_refused_and_a_folder_of_settings_is_not(stack: ComposeWorld) -> None:
    for folder, file in (("settings", "app.yaml"), ("code", "app.py")):
        (stack.root / folder).mkdir()
        (stack.root / folder / file).write_text("x")
    stack.services["web"]["volumes"] = ["./settings:/etc/app:ro"]
    stack.write()
    stack.target().prepare("v1", CLOCK.now())
    stack.services["web"]["volumes"] = ["./code:/app"]
    stack.write()
    with pytest.raises(Refused, match=r"web runs code from a bind mount .*app.py"):
        stack.target().prepare("v2", CLOCK.now())


def test_a_project_made_by_compose_1_is_refused(stack: ComposeWorld) -> None:
    labels = {
        "com.docker.compose.project": stack.project,
        "com.docker.compose.service": "web",
        "com.docker.compose.config-hash": "x",
        "com.docker.compose.version": "1.29.2",
    }
    stack.client.containers.create(f"{stack.project}/web:latest", name=f"{stack.project}_web_1", labels=labels)
    with pytest.raises(Refused, match=r"_web_1 was made by docker-compose 1\.29\.2"):
        stack.target().prepare("v1", CLOCK.now())


def test_a_fault_in_the_compose_file_is_passed_on_without_the_secrets_in_it(stack: ComposeWorld) -> None:
    stack.services["web"]["ports"] = ["${DB_PASSWORD}:8080"]
    stack.write(env="DB_PASSWORD=correct-horse\n")
    with pytest.raises(Refused, match=r"the compose file cannot be used") as refused:
        stack.target().prepare("v1", CLOCK.now())
    assert "correct-horse" not in refused.value.message
    assert "********" in refused.value.message


def test_variables_that_are_not_set_are_named(stack: ComposeWorld) -> None:
    stack.services["web"]["environment"] = {"A": "${NOT_SET_A}", "B": "${NOT_SET_B:-fine}"}
    stack.write()
    with pytest.raises(Refused, match=r"not set; unknown, needs .env: NOT_SET_A \(web environment\.A\)$"):
        stack.target().prepare("v1", CLOCK.now())
    stack.services["web"]["environment"] = {"A": "${NOT_SET_A:?say who you are}"}
    stack.write()
    with pytest.raises(Refused, match=r"say who you are; unknown, needs .env: NOT_SET_A \(web environment\.A\)$"):
        stack.target().prepare("v1", CLOCK.now())


def test_a_wait_shorter_than_a_service_may_take_to_start_is_refused(stack: ComposeWorld) -> None:
    stack.services["web"]["healthcheck"]["start_period"] = "1m30s"
    stack.write()
    with pytest.raises(Refused, match=r"web may take 90 s to start .* containers.boot is 20 s"):
        stack.target().prepare("v1", CLOCK.now())


def test_images_that_are_built_are_built_and_their_services_only(stack: ComposeWorld) -> None:
    (stack.root / "Dockerfile").write_text(f"FROM {stack.project}/worker:latest\nLABEL made=here\n")
    del stack.services["web"]["image"]
    stack.services["web"]["build"] = "."
    stack.write()
    release = stack.target().prepare("v1", CLOCK.now())
    web = release.service("web")
    assert web is not None
    assert web.reference == f"{stack.project}-web"
    image = stack.client.images.get(web.artifact)
    stack.remember(web.artifact)
    assert image.labels["made"] == "here"
    target = stack.target()
    target.apply(stack.plan(target, release).steps[0])
    (candidate,) = [c for c in stack.candidates() if c.labels["lastgood.service"] == "web"]
    assert candidate.labels["com.docker.compose.project"] == ""


def test_the_commit_is_recorded_and_a_changed_checkout_is_called_dirty(stack: ComposeWorld) -> None:
    def git(*words: str) -> None:
        author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        stack.run("git", *author, *words)

    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "first")
    clean = stack.target().prepare("v1", CLOCK.now())
    assert clean.commit is not None
    assert (len(clean.commit), clean.dirty) == (40, False)
    (stack.root / "new.txt").write_text("x")
    assert stack.target().prepare("v2", CLOCK.now()).dirty


def test_what_runs_is_recorded_with_the_environment_that_it_runs_with(stack: ComposeWorld) -> None:
    stack.services["web"]["environment"] = {"GREETING": "${GREETING}"}
    stack.write(env="GREETING=then$$\n")
    stack.compose("up", "--detach", "--wait")
    running = {s: stack.container(s).attrs["Image"] for s in ("web", "worker")}
    stack.write(env="GREETING=now\n")
    stack.image("web", "newer")
    target = stack.target()
    release = target.describe_running("r1", CLOCK.now())
    assert {s.name: s.artifact for s in release.services} == running
    kept = json.loads((stack.root / ".lastgood" / release.config_file).read_text())
    assert kept["services"]["web"]["environment"] == {"GREETING": "then$$"}
    assert all(check.passed for check in target.checks(release))
    assert stack.plan(target, release).steps == ()


@pytest.mark.full
def test_what_runs_is_not_recorded_when_the_files_would_start_something_else(stack: ComposeWorld) -> None:
    stack.compose("up", "--detach", "--wait")
    stack.services["web"]["command"] = ["httpd", "-f", "-p", "8080", "-h", "/"]
    stack.write()
    with pytest.raises(Refused, match=r"the compose file on disk is not what web was started from"):
        stack.target().describe_running("r1", CLOCK.now())
    assert not (stack.root / ".lastgood" / "releases" / "r1").exists()


@pytest.mark.full
def test_what_this_program_started_is_recorded_from_its_release_whatever_the_files_say_now(stack: ComposeWorld) -> None:
    target = stack.target()
    first = target.prepare("v1", CLOCK.now())
    stack.put(target, first)
    stack.services["web"]["environment"] = {"A": "changed since"}
    stack.write()
    again = target.describe_running("seen", CLOCK.now())
    assert [(s.artifact, s.config_hash, s.env_hash) for s in again.services] == [
        (s.artifact, s.config_hash, s.env_hash) for s in first.services
    ]


def test_services_that_do_not_run_cannot_be_recorded(stack: ComposeWorld) -> None:
    with pytest.raises(Refused, match=r"web does not run, so there is nothing to record"):
        stack.target().describe_running("r1", CLOCK.now())


def test_no_engine_is_an_error_before_anything_is_asked_of_compose(
    stack: ComposeWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(Exception, match=r"no docker engine answers at unix://.*nobody\.sock"):
        stack.target().prepare("v1", CLOCK.now())
    assert not os.path.lexists(stack.root / ".lastgood" / "releases" / "v1")


def test_a_build_that_fails_is_refused_with_the_end_of_its_output(stack: ComposeWorld) -> None:
    (stack.root / "Dockerfile").write_text(
        f"FROM {stack.project}/worker:latest\nRUN echo no such package >&2; exit 7\n"
    )
    del stack.services["web"]["image"]
    stack.services["web"]["build"] = "."
    stack.write()
    with pytest.raises(Refused, match=r"docker compose build of web failed: .*no such package"):
        stack.target().prepare("v1", CLOCK.now())
    assert not (stack.root / ".lastgood" / "releases" / "v1").exists()
