"""The lastgood.yaml that `init` writes: what was found is filled in, what was not is left out and said.

Nothing secret is written into it: a password goes into a file of its own, 0600, in the state directory.
"""

from __future__ import annotations

import io
import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol, cast

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from lastgood.assembly import (
    STATE,
    EdgePlan,
    Survey,
    SurveyedPostgres,
    compose_by_hand,
    health_address,
    metrics_address,
    own_state,
    private_folder,
)
from lastgood.core.config import ComposeConfig
from lastgood.core.deploying import not_run
from lastgood.core.release import NAME_GRAMMAR

USUAL_BOOT_S: Final = 60.0
USUAL_STOP_S: Final = 10.0
PASSWORD_FILE: Final = "postgres-password"  # noqa: S105 # a file's name
# Where `alembic init alembic` and Flask-Migrate lay their scripts, and what applies them.
ALEMBIC: Final = {
    "alembic/versions": ("alembic", "upgrade", "head"),
    "migrations/versions": ("flask", "db", "upgrade"),
}
_HEADER: Final = "lastgood.yaml, written by `lastgood init`. Every key: lastgood.example.yaml in lastgood's repository."


def first_config(survey: Survey, root: Path) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return the file's text, one line for each thing that was not found, and one for each that stays a person's to
    do."""
    able = [service for service in survey.services if not service.why_not]
    ports = [port for service in able for port in service.ports]
    metrics = [address for port in ports if (address := metrics_address(port))]
    health = [address for port in ports if (address := health_address(port))]
    tree = CommentedMap(version=1)
    tree["stack"] = survey.project if NAME_GRAMMAR.fullmatch(survey.project) else "stack"
    tree["mode"] = "observe"
    state = own_state(root, survey.project)
    if shared := state != STATE:
        tree["state"] = state
    tree["watch"] = _watch(metrics)
    compose: dict[str, Any] = {"files": list(survey.files), "project": survey.project}
    if survey.profiles:
        compose["profiles"] = list(survey.profiles)
    if survey.env_file:
        compose["env_file"] = survey.env_file
    containers = CommentedMap(
        compose=compose,
        services=[service.name for service in able],
    )
    if workers := [service.name for service in able if service.works_by_itself]:
        containers["workers"] = workers
    if survey.start_period_s >= USUAL_BOOT_S:
        containers["boot"] = f"{math.ceil(survey.start_period_s + USUAL_BOOT_S)}s"
    if survey.stop_grace_s > USUAL_STOP_S:
        containers["stop"] = f"{math.ceil(survey.stop_grace_s)}s"
    tree["containers"] = containers
    not_found = [] if metrics else ["request metrics: 5xx and p95 are not watched"]
    if survey.postgres:
        tree["database"] = database = _database(survey, survey.postgres, root, state)
        if shared:
            database["restore_points"] = {"path": f"restore-points-{survey.project}"}
        if "migrations" not in database:
            places = ", ".join(("prisma/migrations", *ALEMBIC))
            not_found.append(f"{places}: migrations are not lastgood's to apply")
    if health:
        tree["verify"] = {"health": health}
    else:
        not_found.append("health addresses: a rollback is verified by containers only")
    _comments(tree).yaml_set_start_comment(_HEADER)
    modes = "only say; propose: ask first; automatic: containers and frontend at once"
    _comments(tree).yaml_add_eol_comment(modes, "mode")
    if shared:
        _comments(tree).yaml_add_eol_comment(f"{STATE} is another stack's", "state")
    _comments(containers).yaml_add_eol_comment("what a rollback may touch, and nothing else", "services")
    return _text(tree), tuple(not_found), _left(survey, tree)


def with_edge(text: str, plan: EdgePlan, file: str) -> str:
    """Return a lastgood.yaml with the section of the edge and its compose file, and all else as it was; as it is where
    it has them."""
    if plan.anew:
        return text
    yaml = cast("_Writer", YAML())
    yaml.preserve_quotes = True
    yaml.width = 120
    tree = yaml.load(text)
    containers = cast("dict[str, Any]", tree["containers"])
    containers["compose"].setdefault("files", ["docker-compose.yml"]).append(file)
    edge = CommentedMap(routes=dict(plan.routes))
    if plan.one_at_a_time:
        edge["one_at_a_time"] = list(plan.one_at_a_time)
    containers["edge"] = edge
    written = io.StringIO()
    yaml.dump(tree, written)
    return written.getvalue()


def keep_password(survey: Survey, root: Path) -> None:
    """Write the database's password where the configuration says it is."""
    if survey.postgres is None or survey.postgres.password is None:
        return
    folder = private_folder(root / own_state(root, survey.project))
    with os.fdopen(os.open(folder / PASSWORD_FILE, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as file:
        file.write(survey.postgres.password.reveal())


def _watch(metrics: list[str]) -> Mapping[str, Any]:
    triggers: dict[str, Any] = {"containers": {"kind": "containers", "restarts": 3}}
    if not metrics:
        return {"window": "1h", "triggers": triggers}
    triggers = {
        "error-rate": {"kind": "error_rate", "limit": "1%"},
        "latency": {"kind": "latency", "quantile": "p95", "limit": "500ms"},
        **triggers,
    }
    return {"window": "1h", "traffic": {"metrics": metrics[0]}, "triggers": triggers}


def _database(survey: Survey, found: SurveyedPostgres, root: Path, state: str) -> dict[str, Any]:
    postgres = {"container": found.container, "user": found.user, "name": found.database}
    if found.password:
        postgres["password"] = f"file:{state}/{PASSWORD_FILE}"
    database: dict[str, Any] = {"postgres": postgres}
    migrate, once = survey.migrate, _by_hand(survey, "run", "--rm", "--no-deps", "-T", survey.migrate)
    if (root / "prisma" / "migrations").is_dir():
        command = once if migrate else ["npx", "prisma", "migrate", "deploy"]
        database["migrations"] = {"prisma": "prisma/migrations", "command": command}
    elif scripts := next((place for place in ALEMBIC if (root / place).is_dir()), ""):
        database["migrations"] = {"alembic": scripts, "command": once if migrate else list(ALEMBIC[scripts])}
    return database


def _by_hand(survey: Survey, *words: str) -> list[str]:
    said = ComposeConfig(files=survey.files, project=survey.project, profiles=survey.profiles, env_file=survey.env_file)
    return compose_by_hand(said, *words)


def _left(survey: Survey, tree: Mapping[str, Any]) -> tuple[str, ...]:
    migrations = tree.get("database", {}).get("migrations", {})
    return not_run(
        [(name, shlex.join(_by_hand(survey, *words))) for name, words in survey.awaited], migrations.get("command", ())
    )


class _Comments(Protocol):
    """What is used of ruamel's CommentedMap, with the types that it leaves open."""

    def yaml_set_start_comment(self, comment: str) -> None: ...
    def yaml_add_eol_comment(self, comment: str, key: str) -> None: ...


def _comments(tree: CommentedMap) -> _Comments:
    return cast("_Comments", tree)


class _Writer(Protocol):
    """What is used of ruamel.yaml.YAML, likewise."""

    default_flow_style: bool
    preserve_quotes: bool
    width: int

    def load(self, stream: str) -> CommentedMap: ...
    def dump(self, data: CommentedMap, stream: io.StringIO) -> None: ...


def _text(tree: CommentedMap) -> str:
    yaml = cast("_Writer", YAML())
    yaml.default_flow_style = False
    yaml.width = 120
    written = io.StringIO()
    yaml.dump(tree, written)
    return written.getvalue()
