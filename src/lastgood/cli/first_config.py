"""The lastgood.yaml that `init` writes: what was found is filled in, what was not is left out and said.

Nothing secret is written into it: a password goes into a file of its own, 0600, in the state directory.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from lastgood.assembly import Survey, health_address, metrics_address
from lastgood.core.release import NAME_GRAMMAR

STATE: Final = ".lastgood"
PASSWORD_FILE: Final = "postgres-password"  # noqa: S105 # a file's name
_HEADER: Final = "lastgood.yaml, written by `lastgood init`. Every key: lastgood.example.yaml in lastgood's repository."


def first_config(survey: Survey, root: Path) -> tuple[str, tuple[str, ...]]:
    """Return the file's text, and one line for each thing that was not found."""
    able = [service for service in survey.services if not service.why_not]
    ports = [port for service in able for port in service.ports]
    metrics = [address for port in ports if (address := metrics_address(port))]
    health = [address for port in ports if (address := health_address(port))]
    tree = CommentedMap(version=1)
    tree["stack"] = survey.project if NAME_GRAMMAR.fullmatch(survey.project) else "stack"
    tree["mode"] = "observe"
    tree["watch"] = _watch(metrics)
    tree["containers"] = {
        "compose": {"files": list(survey.files), "project": survey.project},
        "services": [service.name for service in able],
    }
    not_found = [] if metrics else ["request metrics: 5xx and p95 are not watched"]
    if survey.postgres:
        tree["database"] = _database(survey, root)
        if "migrations" not in tree["database"]:
            not_found.append("prisma/migrations: migrations are not lastgood's to apply")
    if health:
        tree["verify"] = {"health": health}
    else:
        not_found.append("health addresses: a rollback is verified by containers only")
    tree.yaml_set_start_comment(_HEADER)
    tree.yaml_add_eol_comment("only say; propose: ask first; automatic: containers and frontend at once", "mode")
    tree["containers"] = _with_comment(tree["containers"], "services", "what a rollback may touch, and nothing else")
    return _text(tree), tuple(not_found)


def keep_password(survey: Survey, root: Path) -> None:
    """Write the database's password where the configuration says it is."""
    if survey.postgres is None or survey.postgres.password is None:
        return
    folder = root / STATE
    folder.mkdir(mode=0o700, exist_ok=True)
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


def _database(survey: Survey, root: Path) -> dict[str, Any]:
    found = survey.postgres
    if found is None:
        return {}
    postgres = {"container": found.container, "user": found.user, "name": found.database}
    if found.password:
        postgres["password"] = f"file:{STATE}/{PASSWORD_FILE}"
    database: dict[str, Any] = {"postgres": postgres}
    if (root / "prisma" / "migrations").is_dir():
        once = ["docker", "compose", "run", "--rm", "--no-deps", "-T", survey.migrate]
        command = once if survey.migrate else ["npx", "prisma", "migrate", "deploy"]
        database["migrations"] = {"prisma": "prisma/migrations", "command": command}
    return database


def _with_comment(values: Mapping[str, Any], key: str, comment: str) -> CommentedMap:
    commented = CommentedMap(values)
    commented.yaml_add_eol_comment(comment, key)
    return commented


def _text(tree: CommentedMap) -> str:
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 120
    written = io.StringIO()
    yaml.dump(tree, written)
    return written.getvalue()
