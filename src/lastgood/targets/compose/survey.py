"""What a compose project looks like to somebody who wants to roll it back: for `lastgood init`, before there is any
lastgood.yaml. Looks at the resolved files and at what runs; changes nothing.

Which files, profiles and project count is taken from what runs, where something does: compose notes it on every
container. A development override that lies beside the file of production is not loaded in production.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Final, cast

from lastgood.core.errors import Refused
from lastgood.core.facts import Health
from lastgood.core.secret import Secret
from lastgood.targets import child
from lastgood.targets.compose import commands
from lastgood.targets.compose.engine import Container, Engine, connect
from lastgood.targets.compose.obstacles import obstacles
from lastgood.targets.compose.project import LABEL_RELEASE, Json, Project
from lastgood.targets.compose.resolving import resolve
from lastgood.targets.compose.shape import (
    Kind,
    Shape,
    awaited,
    database_server,
    exposed_by,
    found_past_names,
    may_end,
    proxy,
    shape_of,
    what_is_lost,
)
from lastgood.targets.masking import dotenv_values

# The names that compose itself looks for, in its order: the first one that is there (compose-go 2, cli/options.go).
COMPOSE_FILES: Final = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
OVERRIDES: Final = (
    *("compose.override.yml", "compose.override.yaml"),
    *("docker-compose.override.yml", "docker-compose.override.yaml"),
)
_POSTGRES: Final = "postgres"
_MIGRATES: Final = re.compile(r"\b(prisma|alembic|migrat\w*)\b")
_HERE: Final = frozenset({"", "0.0.0.0", "::", "127.0.0.1"})  # noqa: S104 # compared, not listened on


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """One service. why_not: why it cannot go back, empty when it can. ports: published, and reached at 127.0.0.1.

    running: None when no container of it is there. healthy: what its own check says, None without one.
    """

    name: str
    shape: Shape
    why_not: str
    ports: tuple[int, ...]
    running: bool | None
    healthy: bool | None

    @property
    def stateful(self) -> bool:
        """Whether it is never touched at all."""
        return self.shape.kind is Kind.STATEFUL

    @property
    def works_by_itself(self) -> bool:
        """Whether a second one of it would do its work twice."""
        return self.shape.kind is Kind.WORKER


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyedPostgres:
    """A Postgres of the project, as its container was given it."""

    container: str
    database: str
    user: str
    password: Secret | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The project. migrate: the service that applies migrations, empty when there is none. awaited: the services for
    whose end others wait that may go back, each with the words that have compose run it. warnings: what is good to
    know before anything goes wrong, one line each.

    files, profiles, env_file: as compose was or would be called with them, relative to the folder. start_period_s: the
    longest time that a service may fail its own health check after its start. stop_grace_s: the longest that one may
    take to end.
    """

    project: str
    files: tuple[str, ...]
    profiles: tuple[str, ...]
    env_file: str | None
    services: tuple[Surveyed, ...]
    postgres: SurveyedPostgres | None
    migrate: str
    start_period_s: float
    stop_grace_s: float
    awaited: tuple[tuple[str, tuple[str, ...]], ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Origin:
    """What compose is called with. project: None for the name that compose gives it."""

    files: tuple[str, ...]
    profiles: tuple[str, ...] = ()
    env_file: str | None = None
    project: str | None = None
    warnings: tuple[str, ...] = ()


def survey(root: Path) -> Survey:
    """Look at the project in `root`. Raises Refused with the place when there is none or compose cannot read it."""
    with connect("", os.environ) as engine:
        origin = _started_here(engine, root) or _on_disk(root)
    words = commands.survey(root, origin.files, project=origin.project, env_file=origin.env_file)
    env = child.interpolation_environment(os.environ)
    project = resolve(words, env=env, env_file=root / (origin.env_file or ".env"))
    with connect(project.name, os.environ) as engine:
        containers = tuple(c for c in engine.of_project() if not c.is_leftover)
        active = _active(project, origin.profiles, {c.service for c in containers})
        services = tuple(_service(project, engine, containers, name, root, active) for name in project.services)
    meant = [name for name in project.services if _is_meant(project, name, active)]
    servers = [name for name in meant if database_server(project, name) == _POSTGRES]
    return Survey(
        project=project.name,
        files=origin.files,
        profiles=active,
        env_file=origin.env_file,
        services=services,
        # with two of them, a person says which
        postgres=_postgres(project, containers, servers[0]) if len(servers) == 1 else None,
        migrate=_migrates(project, services),
        start_period_s=max((project.start_period_s(s.name) for s in services if not s.why_not), default=0.0),
        stop_grace_s=max((project.stop_grace_s(s.name) for s in services if not s.why_not), default=0.0),
        awaited=tuple(
            (name, tuple(commands.once(name, built=project.is_built(name))))
            for name in awaited(project, [s.name for s in services if not s.why_not])
        ),
        warnings=(*origin.warnings, *_warnings(project, meant, servers)),
    )


def _started_here(engine: Engine, root: Path) -> _Origin | None:
    """With what the containers were started that run out of this folder; None when there are none, or nobody can tell
    because this program started them."""
    mine = [c for c in engine.of_folder(root) if c.facts().running and LABEL_RELEASE not in c.labels]
    if not mine:
        return None
    if len(projects := sorted({c.project for c in mine})) > 1:
        raise Refused(
            f"{' and '.join(projects)} run out of {root}: say which one it is in a lastgood.yaml of your own, as "
            "lastgood.example.yaml shows, and for a second one there `state: .lastgood-NAME` as well",
            hint="docker compose ls --all",
        )
    newest = max(mine, key=lambda c: c.created_at)
    if gone := [file for file in (*newest.compose_files, *newest.env_files) if not Path(file).is_file()]:
        found = _on_disk(root)
        return replace(
            found,
            project=projects[0],
            warnings=(f"{newest.name} was started from {gone[0]}, which is gone: {', '.join(found.files)} was read",),
        )
    files = tuple(_within(root, file) for file in newest.compose_files)
    env_files = [name for file in newest.env_files if (name := _within(root, file)) != ".env"]
    if not files or len(env_files) > 1:
        return None
    env_file = env_files[0] if env_files else None
    return _Origin(files=files, profiles=_profiles_said(root), env_file=env_file, project=projects[0])


def _within(root: Path, file: str) -> str:
    """A file's path from the folder, which may have been another path for whoever named the file."""
    folder, name = os.path.split(file)
    return os.path.relpath(Path(os.path.realpath(folder)) / name, os.path.realpath(root))


def _on_disk(root: Path) -> _Origin:
    """What `docker compose` would take in this folder without being told anything."""
    said = _settings(root)
    if named := said.get("COMPOSE_FILE"):
        files = tuple(named.split(said.get("COMPOSE_PATH_SEPARATOR", os.pathsep)))
        if gone := [file for file in files if not (root / file).is_file()]:
            raise Refused(f"COMPOSE_FILE names {gone[0]}, which is not in {root}", hint=f"ls {quote(str(root))}")
    else:
        files = tuple(name for name in COMPOSE_FILES if (root / name).is_file())[:1]
        if not files:
            hint = "run lastgood init where your compose file is"
            raise Refused(f"{root}: no {' or '.join(COMPOSE_FILES)}", hint=hint)
        files += tuple(name for name in OVERRIDES if (root / name).is_file())[:1]
    return _Origin(files=files, profiles=_profiles_said(root))


def _settings(root: Path) -> Mapping[str, str]:
    """Compose's own switches, from the environment and from .env, as compose reads them."""
    dotenv = root / ".env"
    given = dotenv_values(dotenv.read_text(encoding="utf-8", errors="replace")) if dotenv.is_file() else {}
    return {name: value for name, value in (given | dict(os.environ)).items() if name.startswith("COMPOSE_")}


def _profiles_said(root: Path) -> tuple[str, ...]:
    said = _settings(root).get("COMPOSE_PROFILES", "")
    return tuple(profile for part in said.split(",") if (profile := part.strip()))


def _active(project: Project, said: tuple[str, ...], running: Collection[str]) -> tuple[str, ...]:
    """The profiles that were said, and one for each service that runs and would not without."""
    active = list(said)
    for name in project.services:
        if name in running and not _is_meant(project, name, active):
            active.append(project.profiles(name)[0])
    return tuple(active)


def _is_meant(project: Project, name: str, active: Collection[str]) -> bool:
    return not (own := project.profiles(name)) or "*" in active or not set(own).isdisjoint(active)


def _service(
    project: Project, engine: Engine, containers: tuple[Container, ...], name: str, root: Path, active: Collection[str]
) -> Surveyed:
    own = [c for c in containers if c.service == name]
    found = [c.facts() for c in own]
    shape = shape_of(project, name, exposed=exposed_by(engine.image(own[0].image if own else project.reference(name))))
    health = {instance.health for instance in found}
    return Surveyed(
        name=name,
        shape=shape,
        why_not=next(_why_not(project, name, shape, root=root, active=active, runs=bool(found)), ""),
        ports=_ports(project, own, name),
        running=all(instance.running for instance in found) if found else None,
        healthy=None if not health or Health.NONE in health else health == {Health.HEALTHY},
    )


def _why_not(
    project: Project, name: str, shape: Shape, *, root: Path, active: Collection[str], runs: bool
) -> Iterator[str]:
    if shape.kind is Kind.STATEFUL:
        yield shape.why
    if not _is_meant(project, name, active):
        yield f"it belongs to the profile {' or '.join(project.profiles(name))}, which is not in use"
    if shape.kind is Kind.ONE_SHOT:
        yield f"it ends by itself: {shape.why}"
    elif shape.kind is Kind.WORKER and not runs and may_end(project, name):
        yield "nothing says whether it runs all the time, and it does not run now"
    yield from (line.removeprefix(f"{name} ") for line in obstacles(project, name, root=root, boot_s=math.inf))


def _ports(project: Project, containers: Collection[Container], name: str) -> tuple[int, ...]:
    """Ports of this host, as the running containers have them: the file may leave the choice to the engine."""
    if bound := {p for c in containers for host, p, kind in c.ports if kind == "tcp" and host in _HERE}:
        return tuple(sorted(bound))
    said = cast("tuple[Json, ...]", tuple(project.service(name).get("ports") or ()))
    return tuple(
        int(p["published"])
        for p in said
        if str(p.get("published", "")).isdigit()
        and p.get("protocol", "tcp") == "tcp"
        and str(p.get("host_ip") or "") in _HERE
    )


def _migrates(project: Project, services: Collection[Surveyed]) -> str:
    """The service that applies migrations and ends: Prisma's or Alembic's own before any other."""
    ending = [s.name for s in services if s.shape.kind is Kind.ONE_SHOT]
    said = {name: set(_MIGRATES.findall(" ".join((name, *project.sentence(name))))) for name in ending}
    return next((n for n in ending if said[n] & {"prisma", "alembic"}), next((n for n in ending if said[n]), ""))


def _postgres(project: Project, containers: Collection[Container], name: str) -> SurveyedPostgres:
    running = next((c.name for c in containers if c.service == name), "")
    given = project.environment(name)
    user = given.get("POSTGRES_USER", "postgres")
    password = given.get("POSTGRES_PASSWORD")
    return SurveyedPostgres(
        container=running or str(project.service(name).get("container_name") or f"{project.name}-{name}-1"),
        database=given.get("POSTGRES_DB", user),
        user=user,
        password=Secret(password) if password else None,
    )


def _warnings(project: Project, meant: Collection[str], servers: Collection[str]) -> Iterator[str]:
    if not meant:
        yield "no profile is in use: start the stack, or set COMPOSE_PROFILES in .env"
    if len(servers) > 1:
        yield f"{len(servers)} Postgres ({', '.join(servers)}): name the one of the release in database.postgres"
    for name in meant:
        if (server := database_server(project, name)) and server != _POSTGRES:
            yield f"{name} ({server}) is left as it is: only Postgres goes back with a release"
        if loses := what_is_lost(project, name):
            yield f"{name} {loses}"
        if front := found_past_names(project, name):
            yield f"{name} is found by {front} through its labels or environment: it is recreated (L4), not switched"
        if front := proxy(project, name):
            yield (
                f"{name} ({front}) goes on as it is: what it finds by labels, or by name where no edge is, is "
                "recreated (rung L4), not switched"
            )
