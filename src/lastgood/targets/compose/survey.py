"""What a compose project looks like to somebody who wants to roll it back: for `lastgood init`, before there is any
lastgood.yaml. Looks at the resolved files and at what runs; changes nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lastgood.core.errors import Refused, Retryable
from lastgood.core.facts import Health
from lastgood.core.secret import Secret
from lastgood.targets import child
from lastgood.targets.compose import commands
from lastgood.targets.compose.engine import Engine, connect
from lastgood.targets.compose.obstacles import obstacles
from lastgood.targets.compose.project import Project
from lastgood.targets.compose.shape import why_stateful
from lastgood.targets.compose.stack import RESOLVE_S
from lastgood.targets.masking import Masker, dotenv_values

# The names that compose itself looks for, in its order (compose-spec, "Compose file").
COMPOSE_FILES: Final = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
OVERRIDES: Final = ("compose.override.yaml", "compose.override.yml", "docker-compose.override.yml")
USUAL_BOOT_S: Final = 60.0
_POSTGRES: Final = frozenset({"postgres", "postgresql", "postgis", "timescaledb", "pgvector"})
_ONE_SHOT: Final = frozenset({"no", "none", ""})


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """One service. why_not: why it cannot go back, empty when it can. ports: published on this host.

    running: None when no container of it is there. healthy: what its own check says, None without one.
    """

    name: str
    why_not: str
    stateful: bool
    ports: tuple[int, ...]
    running: bool | None
    healthy: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyedPostgres:
    """A Postgres of the project, as its container was given it."""

    container: str
    database: str
    user: str
    password: Secret | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The project. migrate: the service that applies migrations, empty when none is called so."""

    project: str
    files: tuple[str, ...]
    services: tuple[Surveyed, ...]
    postgres: SurveyedPostgres | None
    migrate: str


def survey(root: Path) -> Survey:
    """Look at the project in `root`. Raises Refused with the place when there is none or compose cannot read it."""
    files = tuple(name for name in COMPOSE_FILES if (root / name).is_file())[:1]
    if not files:
        raise Refused(f"{root}: no {' or '.join(COMPOSE_FILES)}", hint="run lastgood init where your compose file is")
    files += tuple(name for name in OVERRIDES if (root / name).is_file())
    project = _resolved(root, files)
    with connect(project.name, os.environ) as engine:
        services = tuple(_service(project, engine, name, root) for name in project.services)
        return Survey(
            project=project.name,
            files=files,
            services=services,
            postgres=_postgres(project, engine),
            migrate=next((n for n in project.services if n in ("migrate", "migrations", "migration")), ""),
        )


def _resolved(root: Path, files: tuple[str, ...]) -> Project:
    dotenv = root / ".env"
    given = dotenv_values(dotenv.read_text(encoding="utf-8", errors="replace")) if dotenv.is_file() else {}
    words = commands.survey(root, files)
    try:
        ended = child.run(words, deadline_s=RESOLVE_S, env=child.interpolation_environment(os.environ))
    except FileNotFoundError:
        raise Refused("there is no docker client on this machine", hint="install docker and docker compose") from None
    except child.Overran as error:
        raise Retryable(str(error), delay_s=2.0, hint="docker version") from None
    if ended.code:
        said = Masker([os.environ, given]).tail(ended.err, lines=12)
        raise Refused(f"the compose file cannot be used: {said}", hint="docker compose config --quiet")
    return Project.parse(ended.out)


def _service(project: Project, engine: Engine, name: str, root: Path) -> Surveyed:
    found = [c.facts() for c in engine.of_project() if c.service == name and not c.is_leftover]
    service = project.service(name)
    stateful = why_stateful(project, name)
    one_shot = str(service.get("restart") or "") in _ONE_SHOT and not found and not service.get("ports")
    reasons = [stateful] if stateful else list(obstacles(project, name, root=root, boot_s=USUAL_BOOT_S))
    if service.get("profiles"):
        reasons.append("it belongs to a profile")
    elif one_shot and not reasons and not project.has_health_check(name):
        reasons.append("it does not run all the time")
    health = {instance.health for instance in found}
    return Surveyed(
        name=name,
        why_not=reasons[0] if reasons else "",
        stateful=bool(stateful),
        ports=tuple(int(p["published"]) for p in service.get("ports") or () if str(p.get("published", "")).isdigit()),
        running=all(instance.running for instance in found) if found else None,
        healthy=None if not health or Health.NONE in health else health == {Health.HEALTHY},
    )


def _postgres(project: Project, engine: Engine) -> SurveyedPostgres | None:
    """The only Postgres of the project; with two of them, a person says which."""
    named = [n for n in project.services if project.reference(n).rsplit("/", 1)[-1].split(":")[0] in _POSTGRES]
    if len(named) != 1:
        return None
    (name,) = named
    running = next((c.name for c in engine.of_project() if c.service == name), "")
    given = project.environment(name)
    user = given.get("POSTGRES_USER", "postgres")
    password = given.get("POSTGRES_PASSWORD")
    return SurveyedPostgres(
        container=running or str(project.service(name).get("container_name") or f"{project.name}-{name}-1"),
        database=given.get("POSTGRES_DB", user),
        user=user,
        password=Secret(password) if password else None,
    )
