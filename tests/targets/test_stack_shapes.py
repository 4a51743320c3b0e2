"""Stacks of all shapes: what `init` writes or refuses, what `doctor` says and what `plan` would do, for each folder of
tests/cases/stacks. Adding one needs no code: compose files, and an expected.yaml.

The docker client is the real one and so is every command; the engine only shows what compose would have started.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from lastgood.cli import app as commands
from lastgood.cli import first_config
from lastgood.core.errors import Refused
from lastgood.targets.compose import survey
from lastgood.targets.compose.survey import Survey
from tests.targets.engine_double import EngineDouble, engine_double

CASES = Path(__file__).parent.parent / "cases" / "stacks"
NAMES = sorted(folder.name for folder in CASES.iterdir() if folder.is_dir())
EXPECTED: dict[str, dict[str, Any]] = {n: YAML(typ="safe").load(CASES / n / "expected.yaml") for n in NAMES}
DOES = [name for name in NAMES if "refuses" not in EXPECTED[name]["init"]]
# What CI records and plans; `make system` does it with every stack.
SHORT = frozenset({"external", "secrets-and-configs", "spaces"})
IDLE = [name for name in DOES if "idle" in EXPECTED[name]["init"]]

pytestmark = pytest.mark.needs_docker


@dataclass(frozen=True)
class Case:
    """One stack in a folder of its own. expected: what its expected.yaml says. asked: ports that `init` asked for a
    health check, where nobody answers."""

    root: Path
    engine: EngineDouble
    expected: dict[str, Any]
    asked: list[int]

    def docker(self, *words: str) -> str:
        """What `docker compose` prints, called as the case says that the stack was started."""
        runs = self.expected.get("runs", {})
        said = [word for file in runs.get("files", ()) for word in ("--file", file)]
        said += [word for profile in runs.get("profiles", ()) for word in ("--profile", profile)]
        said += ["--env-file", runs["env_file"]] if "env_file" in runs else []
        said += ["--project-name", runs["project"]] if "project" in runs else []
        command = ["docker", "compose", *said, *words]
        return subprocess.run(command, cwd=self.root, check=True, capture_output=True, text=True, timeout=60).stdout

    def up(self, build: int) -> None:
        """The stack as it is after somebody deployed one build of every image by hand."""
        runs = self.expected.get("runs", {})
        model = json.loads(self.docker("config", "--format", "json"))
        # what `up` notes on a container is the hash of the resolved model, not that of the files (environment files)
        resolved = self.root.parent / "resolved.json"
        resolved.write_text(json.dumps(model, ensure_ascii=False))
        words = ["docker", "compose", "--file", str(resolved), "--profile", "*", "config", "--hash", "*"]
        printed = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout
        hashes = dict(line.split() for line in printed.splitlines())
        ended = [n for n, shape in self.expected["services"].items() if shape["kind"] == "one-shot"]
        self.engine.up(
            model,
            hashes,
            folder=self.root,
            files=[self.root / file for file in runs.get("files", ()) or self.default_files()],
            env_file=self.root / runs["env_file"] if "env_file" in runs else None,
            build=build,
            ended=ended,
            exposes=self.expected.get("exposes", {}),
        )

    def default_files(self) -> Sequence[str]:
        """What compose takes by itself here."""
        names = ("compose.yaml", "compose.yml", "docker-compose.yml")
        return [name for name in names if (self.root / name).is_file()][:1]

    def lastgood(self, *words: str) -> Result:
        """Run a command as in the stack's folder."""
        return CliRunner().invoke(commands.app, [*words, "--config", str(self.root / "lastgood.yaml")])

    def config(self) -> dict[str, Any]:
        """What stands in lastgood.yaml."""
        loaded: dict[str, Any] = YAML(typ="safe").load(self.root / "lastgood.yaml")
        return loaded

    def without_database(self) -> None:
        """Leave the database's section out of lastgood.yaml: there is no server behind these containers."""
        config = self.config()
        config.pop("database", None)
        self.say(config)

    def say(self, config: dict[str, Any]) -> None:
        """Write lastgood.yaml."""
        with (self.root / "lastgood.yaml").open("w") as file:
            YAML(typ="safe").dump(config, file)


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    name = str(request.param)
    # compose makes the project's name out of the folder's
    folder = tmp_path / f"lg-{name}"
    shutil.copytree(CASES / name, folder)
    expected = EXPECTED[name]
    for variable in [v for v in os.environ if v.startswith("COMPOSE_")]:
        monkeypatch.delenv(variable)
    asked: list[int] = []
    monkeypatch.setattr(first_config, "health_address", asked.append)
    monkeypatch.setattr(first_config, "metrics_address", lambda _port: None)
    with engine_double(tmp_path / "engine.sock") as engine:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'engine.sock'}")
        yield Case(folder / expected.get("folder", ""), engine, expected, asked)


def said(result: Result) -> str:
    """Everything that a command printed and complained of."""
    return f"{result.output}{result.exception or ''}"


def hint(result: Result) -> str:
    """What a command that was refused says to type."""
    assert isinstance(result.exception, Refused), said(result)
    return result.exception.hint


def left_alone(case: Case) -> dict[str, str]:
    """What the doctor says of services that no deploy touches: what is so, and what to type."""
    case.without_database()
    findings = json.loads(case.lastgood("doctor", "--json").stdout)
    assert {f["answer"] for f in findings if f["check"] == "left as it is"} <= {"ok"}
    return {f["evidence"]: f["hint"] for f in findings if f["check"] == "left as it is"}


def seen_as(found: Survey, expected: dict[str, Any]) -> dict[str, Any]:
    """The survey in the words of expected.yaml: of what keeps a service alone, the words that are expected."""
    seen: dict[str, Any] = {}
    for service in found.services:
        wanted = expected.get(service.name, {}).get("alone", [])
        matched = [next((w for w in wanted if str(w) in line), line) for line in service.shape.alone]
        seen[service.name] = {"kind": service.shape.kind.value}
        seen[service.name] |= {"port": service.shape.port} if service.shape.port else {}
        seen[service.name] |= {"alone": matched} if matched else {}
    return seen


@pytest.mark.parametrize("case", DOES, indirect=True)
def test_every_service_is_taken_for_what_it_is(case: Case) -> None:
    case.up(build=1)
    assert seen_as(survey(case.root), case.expected["services"]) == case.expected["services"]


@pytest.mark.parametrize("case", NAMES, indirect=True)
def test_init_writes_what_may_go_back_or_refuses_with_the_place(case: Case) -> None:
    expected = case.expected["init"]
    if "refuses" not in expected or case.expected.get("runs"):
        case.up(build=1)
    done = case.lastgood("init")
    for line in (*expected.get("says", ()), *expected.get("refuses", ())):
        assert line in said(done)
    if "refuses" in expected:
        assert (done.exit_code, (case.root / "lastgood.yaml").exists()) == (1, False)
        return
    assert done.exit_code == 0, said(done)
    containers = case.config()["containers"]
    assert containers["services"] == expected["services"]
    compose = {key: value for key, value in containers["compose"].items() if key != "project"}
    assert compose == {"files": case.default_files(), **expected.get("compose", {})}
    assert (containers.get("boot"), containers.get("stop")) == (expected.get("boot"), expected.get("stop"))
    assert sorted(case.asked) == expected.get("asks", sorted(case.asked))
    assert case.config().get("database", {}).get("postgres", {}).get("container") == expected.get("postgres")


@pytest.mark.parametrize("case", ["overlays"], indirect=True)
def test_a_file_that_the_stack_was_started_from_and_that_is_gone_is_told(case: Case) -> None:
    case.up(build=1)
    (case.root / "docker-compose.prod.yml").unlink()
    done = case.lastgood("init")
    assert f"was started from {case.root}/docker-compose.prod.yml, which is gone" in said(done)
    assert "docker-compose.yml, docker-compose.override.yml was read" in said(done)


@pytest.mark.parametrize("case", ["caddy-in-front"], indirect=True)
def test_a_stack_that_was_started_by_another_path_of_its_folder_is_found_and_recorded(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where `current` is a link to the newest checkout: compose notes the path that the shell was in."""
    link = case.root.parent / "current"
    link.symlink_to(case.root)
    with monkeypatch.context() as shell:
        shell.setenv("PWD", str(link))
        replace(case, root=link).up(build=1)
    assert case.lastgood("init").exit_code == 0
    compose = case.config()["containers"]["compose"]
    assert compose == {"files": ["compose.yml"], "project": "current"}
    case.without_database()
    recorded = case.lastgood("record", "--release", "v1", "--good")
    assert recorded.exit_code == 0, said(recorded)


@pytest.mark.parametrize("case", ["env-file-named"], indirect=True)
def test_two_projects_out_of_one_folder_are_not_guessed_between(case: Case) -> None:
    case.up(build=1)
    other = json.loads(json.dumps(case.engine.containers[0]).replace("lgstacks-named", "lgstacks-staging"))
    case.engine.containers.append({**other, "Id": "other"})
    done = case.lastgood("init")
    assert f"lgstacks-named and lgstacks-staging run out of {case.root}" in said(done)
    assert "`state: .lastgood-NAME`" in said(done)
    assert not (case.root / "lastgood.yaml").exists()


@pytest.mark.parametrize("case", ["env-file-named"], indirect=True)
def test_a_second_stack_of_the_folder_gets_a_state_of_its_own(case: Case) -> None:
    case.up(build=1)
    (case.root / ".lastgood" / "edge").mkdir(parents=True)
    (case.root / ".lastgood" / "edge" / "haproxy.cfg").touch()
    (case.root / ".lastgood" / "stack").write_text("compose project lgstacks-staging\n")
    done = case.lastgood("init")
    assert case.config()["state"] == ".lastgood-lgstacks-named", said(done)
    assert case.lastgood("record", "--release", "v1").exit_code == 0


@pytest.mark.parametrize("case", ["code-mounted"], indirect=True)
def test_a_service_that_makes_no_release_is_named_by_the_doctor(case: Case) -> None:
    case.up(build=1)
    case.lastgood("init")
    text = (case.root / "lastgood.yaml").read_text()
    (case.root / "lastgood.yaml").write_text(text.replace("  - api\n", "  - api\n  - mysql\n"))
    findings = {f["check"]: f for f in json.loads(case.lastgood("doctor", "--json").stdout)}
    assert findings["files"]["answer"] == "failed"
    assert "mysql is stateful (its image is mysql)" in findings["files"]["evidence"]


@pytest.mark.parametrize("case", ["slow-starter"], indirect=True)
def test_a_service_that_would_be_killed_before_its_time_is_named_by_the_doctor(case: Case) -> None:
    """Unless a person has said how long it gets."""
    case.up(build=1)
    case.lastgood("init")
    written = (case.root / "lastgood.yaml").read_text()
    answers = {}
    for said_so in ("", "  stop: 20s\n"):
        (case.root / "lastgood.yaml").write_text(written.replace("  stop: 90s\n", said_so))
        (found,) = [f for f in json.loads(case.lastgood("doctor", "--json").stdout) if f["check"] == "files"]
        answers[said_so] = (found["answer"], found["evidence"])
    assert answers[""][0] == "failed"
    assert "indexer may take 90 s to end (stop_grace_period), and would be killed after 10 s" in answers[""][1]
    assert answers["  stop: 20s\n"][0] == "ok"


@pytest.mark.parametrize("case", ["traefik-in-front", "workers-of-one-image"], indirect=True)
def test_an_edge_takes_what_is_called_by_name_and_answers(case: Case) -> None:
    case.up(build=1)
    case.lastgood("init")
    done = case.lastgood("init", "--edge")
    routes = case.config()["containers"].get("edge", {}).get("routes", {})
    assert routes == case.expected["init"].get("routes", {})
    for line in case.expected["init"].get("left_out", ()):
        assert line in said(done)


@pytest.mark.parametrize("case", ["env-file-named"], indirect=True)
def test_what_is_to_be_typed_keeps_to_the_project_and_what_it_was_started_with(case: Case) -> None:
    """Without its name, compose would start a second project there, with empty volumes."""
    case.up(build=1)
    case.lastgood("init")
    compose = "docker compose --project-name lgstacks-named --file docker-compose.yml"
    named = f"next: {compose} --file docker-compose.edge.yml --env-file prod.env up --detach "
    assert named in said(case.lastgood("init", "--edge"))


@pytest.mark.parametrize("case", ["workers-of-one-image"], indirect=True)
def test_what_is_to_be_recorded_behind_the_edge_gets_a_name_that_is_free(case: Case) -> None:
    case.up(build=1)
    case.lastgood("init", "--release", "v1", "--yes")
    assert "then: lastgood record --good --release v1-2, and " in said(case.lastgood("init", "--edge"))


@pytest.mark.parametrize("case", ["external"], indirect=True)
def test_what_is_said_to_be_typed_after_a_deploy_by_hand_can_be_typed(case: Case) -> None:
    case.up(build=1)
    case.lastgood("init")
    assert case.lastgood("record", "--release", "v1", "--good").exit_code == 0
    case.up(build=2)
    assert hint(case.lastgood("record")) == "lastgood record --release ANOTHER-NAME"
    assert hint(case.lastgood("record", "--good")) == "lastgood record --good --release v1-2"
    (found,) = [f for f in json.loads(case.lastgood("doctor", "--json").stdout) if f["check"] == "what serves"]
    assert found["hint"].startswith("lastgood record --good --release v1-2 ")
    typed = case.lastgood("record", "--good", "--release", "v1-2")
    assert typed.exit_code == 0, said(typed)
    checks = [f["check"] for f in json.loads(case.lastgood("doctor", "--json").stdout)]
    assert "what serves" not in checks


@pytest.mark.parametrize("case", ["external"], indirect=True)
def test_an_earlier_release_that_nobody_vouched_for_becomes_a_target_by_what_is_said_to_be_typed(case: Case) -> None:
    case.up(build=1)
    case.lastgood("init")
    case.lastgood("record", "--release", "v1")
    case.up(build=2)
    case.lastgood("record", "--release", "v2", "--good")
    assert hint(case.lastgood("plan", "v1")) == "lastgood record --good --release v1   (if you vouch for it)"
    typed = case.lastgood("record", "--good", "--release", "v1")
    assert said(typed).endswith("; what serves is something else, and was not recorded\n")
    planned = json.loads(case.lastgood("plan", "v1", "--json").stdout)
    assert (planned["from_release"], planned["to_release"]) == ("v2", "v1")


@pytest.mark.parametrize("case", ["one-shots"], indirect=True)
def test_migrations_are_applied_by_the_project_that_runs(case: Case) -> None:
    case.up(build=1)
    case.lastgood("init")
    compose = ["docker", "compose", "--project-name", "lg-one-shots", "--file", "compose.yaml"]
    run = ["run", "--rm", "--no-deps", "-T", "migrate"]
    assert case.config()["database"]["migrations"]["command"] == [*compose, *run]


@pytest.mark.parametrize("case", ["one-shots"], indirect=True)
def test_who_has_to_run_what_the_services_wait_for_is_said_before_the_first_deploy(case: Case) -> None:
    case.up(build=1)
    buckets = "buckets is not run by lastgood, and others wait for its end; before a deploy that needs it: "
    buckets += "docker compose --project-name lg-one-shots --file compose.yaml run --rm --no-deps buckets"
    init = said(case.lastgood("init"))
    assert buckets in init
    assert "migrate is not run" not in init
    case.without_database()
    (found,) = [f for f in json.loads(case.lastgood("doctor", "--json").stdout) if f["check"] == "left to you"]
    assert found["answer"] == "ok"
    assert buckets in found["evidence"]
    assert buckets.replace("buckets", "migrate") in found["evidence"]


@pytest.mark.parametrize("case", ["traefik-in-front"], indirect=True)
def test_what_no_deploy_starts_or_recreates_is_told_with_what_to_type(case: Case) -> None:
    """Not what ends by itself, what belongs to a profile that is off, and what the file wants none of."""
    case.up(build=1)
    case.lastgood("init")
    config = case.config()
    config["containers"]["services"].remove("web")
    case.say(config)
    assert left_alone(case) == {}
    file = case.root / "docker-compose.yml"
    text = file.read_text().replace("image: nginx:1.27-alpine", "image: nginx:1.29-alpine")
    text = text.replace('cache: {image: "valkey/valkey:8"}', 'cache: {image: "valkey/valkey:9"}')
    text = text.replace(
        "    image: acme/api:5\n",
        "    image: acme/api:5\n    depends_on: {seed: {condition: service_completed_successfully}}\n",
    )
    file.write_text(f"""{text}
  mailer: {{image: "acme/mailer:1", restart: always}}
  digest: {{build: ., restart: always}}
  queue: {{image: "redis:7"}}
  seed: {{image: "acme/seed:1"}}
  later: {{image: "acme/later:1", restart: always, deploy: {{replicas: 0}}}}
  debug: {{image: "acme/debug:1", restart: always, profiles: [debug]}}
""")
    up = "docker compose --project-name lg-traefik-in-front --file docker-compose.yml up --detach --no-deps"
    assert left_alone(case) == {
        "web is not as the compose files have it by now, and no deploy recreates it": f"{up} web",
        "mailer has no container, and no deploy makes one": f"{up} mailer",
        "digest has no container, and no deploy makes one": f"{up} --build digest",
        "cache is not as the compose files have it by now, and lastgood never touches it (its image is valkey)": "",
        "queue has no container, and lastgood never touches it (its image is redis)": "",
    }


@pytest.mark.parametrize("case", ["traefik-in-front"], indirect=True)
def test_what_ran_to_its_end_is_not_among_what_no_deploy_recreates(case: Case) -> None:
    """Of one without a sign of its kind only that it ended well says so, as of what applies migrations."""
    file = case.root / "docker-compose.yml"
    text = file.read_text()
    file.write_text(f'{text}\n  upgrade: {{image: "acme/api:5"}}\n')
    case.up(build=1)
    (ran,) = (c for c in case.engine.containers if c["Config"]["Labels"]["com.docker.compose.service"] == "upgrade")
    file.write_text(f'{text}\n  upgrade: {{image: "acme/api:6"}}\n')
    case.lastgood("init")
    config = case.config()
    for listed in ("services", "workers"):
        config["containers"][listed].remove("upgrade")
    case.say(config)
    told = {}
    for code in (0, 1):
        ran["State"] = {"Status": "exited", "Running": False, "ExitCode": code}
        told[code] = len(left_alone(case))
    assert told == {0: 0, 1: 1}


@pytest.mark.parametrize("case", ["workers-of-one-image"], indirect=True)
def test_an_edge_that_is_not_there_yet_is_not_among_what_no_deploy_starts(case: Case) -> None:
    case.up(build=1)
    case.lastgood("init")
    case.lastgood("init", "--edge")
    assert not any("lastgood-edge" in what for what in left_alone(case))


@pytest.mark.parametrize("case", ["workers-of-one-image"], indirect=True)
def test_an_edge_is_set_up_anew_as_lastgood_yaml_says_by_now(case: Case) -> None:
    case.up(build=1)
    case.lastgood("init")
    case.lastgood("init", "--edge")
    config = case.config()
    files, routes = config["containers"]["compose"]["files"], config["containers"]["edge"]["routes"]
    del routes["puma"]
    case.say(config)
    done = case.lastgood("init", "--edge")
    assert done.exit_code == 0, said(done)
    assert "not behind it       puma (containers.edge.routes does not have it)" in said(done)
    assert "up --detach --no-deps lastgood-edge puma" in said(done)
    assert case.config() == config
    model = json.loads(case.docker(*(w for file in files for w in ("--file", file)), "config", "--format", "json"))
    assert [port["published"] for port in model["services"]["puma"]["ports"]] == ["21190"]
    assert "ports" not in model["services"]["lastgood-edge"]
    routes["nobody"] = 8000
    config["containers"]["services"].append("nobody")
    case.say(config)
    refused = case.lastgood("init", "--edge")
    assert "nobody cannot stand behind the edge (the compose file does not have it)" in said(refused)


@pytest.mark.parametrize("case", IDLE, indirect=True)
def test_where_nothing_runs_init_takes_what_compose_would_and_only_what_is_sure(case: Case) -> None:
    done = case.lastgood("init")
    assert done.exit_code == 0, said(done)
    containers, expected = case.config()["containers"], case.expected["init"]["idle"]
    assert containers["services"] == expected["services"]
    assert containers["compose"]["files"] == expected.get("files", case.default_files())
    for line in expected.get("says", ()):
        assert line in said(done)


@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=() if name in SHORT else pytest.mark.full) for name in DOES],
    indirect=True,
)
def test_what_runs_can_be_recorded_and_the_plan_names_the_way_back(case: Case) -> None:
    case.up(build=1)
    case.lastgood("init")
    case.without_database()
    for release in (1, 2):
        case.up(build=release)
        recorded = case.lastgood("record", "--release", f"v{release}", "--good")
        assert recorded.exit_code == 0, said(recorded)
    findings = {f["check"]: f for f in json.loads(case.lastgood("doctor", "--json").stdout)}
    assert findings["rung"]["evidence"].startswith("L4")
    assert "left as it is" not in findings, findings["left as it is"]
    assert findings["files"]["answer"] == "ok", findings["files"]
    assert findings["containers"]["answer"] == "ok", findings["containers"]
    planned = json.loads(case.lastgood("plan", "--json").stdout)
    back = [step["action"]["service"] for step in planned["steps"] if step["action"]["kind"] == "serve"]
    assert sorted(back) == sorted(case.expected["init"]["services"])
