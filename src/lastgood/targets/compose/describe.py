"""Describing a release: what the files on disk would start, or what serves now; its images held, its configuration
kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import chain, combinations
from typing import Final, cast

from lastgood.core.errors import LastgoodError, Refused, Retryable
from lastgood.core.plan import runs
from lastgood.core.release import Composed, KeptCode, Release, ServiceRecord, Untouched
from lastgood.targets.checkout import checkout
from lastgood.targets.compose import commands
from lastgood.targets.compose.code import keep_code
from lastgood.targets.compose.edge_setup import unknown_at_the_edge
from lastgood.targets.compose.engine import COMPOSE_CONFIG, COMPOSE_PROJECT, COMPOSE_VERSION, Container, Engine
from lastgood.targets.compose.foreign import refuse_compose_1
from lastgood.targets.compose.haproxy import MOST_INSTANCES
from lastgood.targets.compose.images import ensure_image
from lastgood.targets.compose.kept import held_as
from lastgood.targets.compose.obstacles import obstacles, slow_to_start
from lastgood.targets.compose.project import Json, Project
from lastgood.targets.compose.shape import why_stateful
from lastgood.targets.compose.stack import Stack

ENGINE_NAME: Final = "compose"
MOST_DEPENDENCIES: Final = 4
"""Each part of a service's dependencies costs one call of compose, 0.07 s; beyond this many, none is made."""


def prepare(stack: Stack, engine: Engine, serving: Sequence[Container], name: str, recorded_at: datetime) -> Release:
    """Build or pull what the files on disk say, hold and keep it. serving: every container that gets requests. Raises
    Refused: what serves is as it was."""
    stack.shelf.folder(name)
    project = _usable(stack, engine)
    services = stack.config.services
    code: dict[str, tuple[KeptCode, ...]] = {}
    for s in services:
        project, code[s] = keep_code(stack, project, s)
    built = [s for s in services if project.is_built(s)]
    if built:
        stack.build(project, built)
    if absent := [s for s in services if s not in built and _is_to_be_pulled(engine, project, s)]:
        if unpullable := [s for s in absent if project.service(s).get("pull_policy") == "never"]:
            service = unpullable[0]
            raise Refused(
                f"image {project.reference(service)} of {service} is not on this host and its pull_policy is never",
                hint=f"docker pull {project.reference(service)}",
            )
        stack.pull(project, absent)
    here = [s for s in services if s not in built and s not in absent and _may_have_moved(engine, project, s)]
    unasked = _pull_what_moved(stack, project, here)
    project = stack.shelf.with_contents(project, services)
    key = stack.shelf.key()
    records = [
        _record(
            stack,
            engine,
            name,
            ServiceRecord(
                name=s,
                artifact=_image_id(engine, s, project.reference(s), project=stack.name, built=s in built),
                held_as="",
                reference=project.reference(s),
                config_hash=project.config_hash(s, key),
                env_hash=project.env_hash(s, key),
                code=code[s],
            ),
            project,
        )
        for s in services
    ]
    _refuse_a_silent_no_op(stack, serving, name, records, unasked)
    return _keep(stack, engine, name, recorded_at=recorded_at, project=project, records=records)


def _is_to_be_pulled(engine: Engine, project: Project, service: str) -> bool:
    """Whether the image is not here, or the file says that the one here is not good enough."""
    always = project.service(service).get("pull_policy") == "always"
    return always or engine.image(project.reference(service)) is None


def _may_have_moved(engine: Engine, project: Project, service: str) -> bool:
    """Whether the tag may stand for another image by now than the one of it that is here: it came from a registry, and
    nobody said that the one here is good enough."""
    reference = project.reference(service)
    image = engine.image(reference)
    came = image is not None and _digest(image, reference) is not None
    return came and "@" not in reference and "pull_policy" not in project.service(service)


def _pull_what_moved(stack: Stack, project: Project, services: Sequence[str]) -> LastgoodError | None:
    """Pull each of them, which is a question where nothing moved. Returns why one could not be: then what is here is
    deployed."""
    failed: LastgoodError | None = None
    for service in services:
        try:
            stack.pull(project, [service])
        except (Refused, Retryable) as error:
            failed = failed or error
    return failed


def _refuse_a_silent_no_op(
    stack: Stack,
    serving: Sequence[Container],
    name: str,
    records: Sequence[ServiceRecord],
    unasked: LastgoodError | None,
) -> None:
    """Raise Refused where what is new was not seen, and the new release is what serves already: a registry did not say
    what its tags stand for (unasked), or a variable of the shell, which compose puts before the env file, keeps out
    what that says."""
    beaten = stack.beaten()
    if not (beaten or unasked) or stack.shelf.find(name) is not None:
        return
    shown = [container.facts() for container in serving]
    wanted = {record.name: record for record in records}
    if {i.service for i in shown} == set(wanted) and all(i.serves and runs(wanted[i.service], i) for i in shown):
        if unasked:
            raise Refused(
                f"with the images on this host {name} is what serves already, and {unasked.message}; a service with "
                "pull_policy: missing is content with what is here",
                hint=unasked.hint,
            )
        variable, file = beaten[0]
        raise Refused(
            f"{variable} of the environment beats the one in {file}, and with it {name} is what serves already",
            hint=f"unset {variable}",
        )


def describe_running(
    stack: Stack, engine: Engine, serving: Sequence[Container], name: str, recorded_at: datetime
) -> Release:
    """Hold and keep what serves now. serving: every container that gets requests. Raises Refused when a service does
    not run, or runs two images at once."""
    stack.shelf.folder(name)
    project = _usable(stack, engine)
    key = stack.shelf.key()
    records: list[ServiceRecord] = []
    for service in stack.config.services:
        container = _only_one(service, [c for c in serving if c.service == service and c.facts().running])
        project, code = _as_it_runs(stack, engine, project, container)
        records.append(
            _record(
                stack,
                engine,
                name,
                ServiceRecord(
                    name=service,
                    artifact=container.image,
                    held_as="",
                    reference=project.reference(service),
                    config_hash=container.facts().config_hash,
                    env_hash=project.env_hash(service, key),
                    code=code,
                ),
                project,
            )
        )
    project = stack.shelf.with_contents(project, stack.config.services)
    return _keep(
        stack, engine, name, recorded_at=recorded_at, project=project, records=records, command="lastgood record"
    )


def _usable(stack: Stack, engine: Engine) -> Project:
    """Resolve the files on disk. Raises Refused when a service could not be rolled back as it is, naming every
    reason."""
    refuse_compose_1(engine, stack)
    project = stack.resolve()
    if found := unusable(stack, project):
        raise Refused("; ".join(found), hint="lastgood doctor")
    return project


def unusable(stack: Stack, project: Project) -> tuple[str, ...]:
    """Say why the services that may go back could not be recorded from the files on disk, one line each."""
    if missing := [s for s in stack.config.services if s not in project.services]:
        has = ", ".join(project.services)
        return (f"containers.services names {', '.join(missing)}, which the compose file does not have; it has: {has}",)
    return (
        *(
            line
            for service in stack.config.services
            for line in obstacles(project, service, root=stack.root, boot_s=stack.config.boot)
        ),
        *_killed_too_soon(stack, project),
        *_too_many(stack, project),
        *_linked_past_the_edge(stack, project),
        *unknown_at_the_edge(stack, project),
    )


def _killed_too_soon(stack: Stack, project: Project) -> Iterator[str]:
    """A service gets as long to end as lastgood.yaml says. Where that says nothing, a file that says more is meant."""
    if "stop" in stack.config.model_fields_set:
        return
    for service in stack.config.services:
        if (grace_s := project.stop_grace_s(service)) > stack.config.stop:
            yield (
                f"{service} may take {grace_s:.0f} s to end (stop_grace_period), and would be killed after "
                f"{stack.config.stop:.0f} s: set containers.stop"
            )


def _too_many(stack: Stack, project: Project) -> Iterator[str]:
    edge = stack.config.edge
    for service in (s for s in edge.routes if s not in edge.one_at_a_time) if edge else ():
        if service in project.services and (asked := project.instances(service) or 1) > MOST_INSTANCES:
            yield (
                f"{service} asks for {asked} instances, and the edge has room for {MOST_INSTANCES} of each release: "
                f"ask for fewer, or take {service} out of containers.edge.routes, then: lastgood init --edge"
            )


def _linked_past_the_edge(stack: Stack, project: Project) -> Iterator[str]:
    """A link leads to a container, and behind the edge that is none for long."""
    if (edge := stack.config.edge) is None:
        return
    for service in stack.config.services:
        for other, known_as in project.links(service):
            if other in edge.routes:
                yield (
                    f"{service} knows {other} as {known_as} by a link, which leads past the edge: give {other} the "
                    f"alias {known_as} in its networks instead"
                )


def _image_id(engine: Engine, service: str, reference: str, *, project: str, built: bool) -> str:
    image = engine.image(reference)
    if image is None:
        raise Refused(f"image {reference} of {service} is not there after it was built or pulled", hint="docker images")
    # Two projects of one host may build under one name at the same time. Compose says in the image whose it is.
    maker = str(cast("Json", image.get("Config", {}).get("Labels") or {}).get(COMPOSE_PROJECT, project))
    if built and maker != project:
        raise Refused(f"image {reference} of {service} was built by project {maker} meanwhile", hint="lastgood deploy")
    return str(image["Id"])


def _record(stack: Stack, engine: Engine, release: str, found: ServiceRecord, project: Project) -> ServiceRecord:
    """Complete a record with what the image and the model say, and with the tag that will hold it."""
    image = engine.image(found.artifact)
    if image is None:
        raise Refused(f"the image of {found.name} ({found.artifact[:19]}) is gone from this host", hint="docker images")
    return replace(
        found,
        held_as=held_as(found.name, release, project=stack.name),
        digest=_digest(image, found.reference),
        probe=project.probe(found.name, cast("Json", image.get("Config", {}).get("Healthcheck") or {})),
        ports=project.published(found.name),
    )


def _digest(image: Json, reference: str) -> str | None:
    """The digest by which a registry knows the image under the repository of `reference`."""
    digests = cast("Iterable[str]", image.get("RepoDigests") or ())
    return next((d for d in digests if _repository(d) == _repository(reference)), None)


def _repository(reference: str) -> str:
    """The repository of a reference. The engine leaves out what stands for its own hub: `docker.io/library/`."""
    repository = reference.split("@", maxsplit=1)[0]
    if ":" in repository.rsplit("/", 1)[-1]:
        repository = repository.rsplit(":", 1)[0]
    return repository.removeprefix("docker.io/").removeprefix("library/")


def _keep(
    stack: Stack,
    engine: Engine,
    name: str,
    *,
    recorded_at: datetime,
    project: Project,
    records: Sequence[ServiceRecord],
    command: str = "lastgood deploy",
) -> Release:
    for record in records:
        of_image = cast("Json", (engine.image(record.artifact) or {}).get("Config") or {})
        check = cast("Json", of_image.get("Healthcheck") or {})
        if slow := slow_to_start(project, record.name, boot_s=stack.config.boot, of_image=check):
            raise Refused(slow, hint="lastgood doctor")
    known = stack.shelf.find(name)
    try:
        kept = stack.shelf.keep(name, project, tuple(records), command=command)
        for record in kept.services:
            ensure_image(engine, record)
    except LastgoodError:
        if known is None:  # whatever is there of it is of this attempt, and nobody will know of it
            _drop(stack, engine, name, records)
        raise
    found, compose = checkout(stack.root, state=stack.state), stack.config.compose
    return Release(
        id=kept.name,
        recorded_at=recorded_at,
        engine=ENGINE_NAME,
        services=kept.services,
        commit=found.commit,
        dirty=found.dirty,
        unresolved=found.unresolved,
        config_file=stack.shelf.config_file(kept.name),
        config_hash=kept.config_hash,
        composed=Composed(
            project=compose.project,
            files=compose.files,
            profiles=compose.profiles,
            env_file=compose.env_file,
            version=stack.compose_version(),
        ),
        untouched=tuple(_untouched(project, s) for s in project.services if s not in stack.config.services),
    )


def _drop(stack: Stack, engine: Engine, name: str, records: Sequence[ServiceRecord]) -> None:
    """Remove what is there of a release that could not be kept, as far as that can be done now: why it could not be is
    what counts."""
    with contextlib.suppress(LastgoodError):
        stack.shelf.remove(name)
        for record in records:
            engine.let_go(record.artifact, record.held_as)


def _untouched(project: Project, service: str) -> Untouched:
    stateful = why_stateful(project, service)
    return Untouched(
        name=service,
        reference=project.reference(service),
        stateful=bool(stateful),
        why=stateful or "containers.services does not name it",
    )


def _only_one(service: str, containers: Sequence[Container]) -> Container:
    """The container that stands for all of a service's. Raises Refused when they do not run the same."""
    if not containers:
        raise Refused(f"{service} does not run, so there is nothing to record", hint="docker ps --all")
    shapes = {(c.image, c.facts().config_hash) for c in containers}
    if len(shapes) > 1:
        names = ", ".join(f"{c.name} {c.image[:19]}" for c in containers)
        raise Refused(f"the containers of {service} do not run the same: {names}", hint="docker ps")
    return containers[0]


def _as_it_runs(
    stack: Stack, engine: Engine, project: Project, container: Container
) -> tuple[Project, tuple[KeptCode, ...]]:
    """The model with one service as its container was started, and its code: what this program started comes from a
    release that starts the same, anything else from today's files with the environment that the container has."""
    service, facts = container.service, container.facts()
    # Not by the release that the container was started for: it may be let go of while its service serves a later one.
    kept = stack.shelf.started_with(service, facts.artifact, facts.config_hash) if facts.release else None
    if kept and (record := kept.service(service)):
        return project.with_service(service, stack.shelf.project(kept)), record.code
    image = engine.image(container.image)
    of_image = cast("Sequence[str]", (image or {}).get("Config", {}).get("Env") or ())
    today = project.environment(service)
    given = {
        name: value
        for name, value in container.environment.items()
        if name in today or f"{name}={value}" not in of_image
    }
    as_it_runs = project.with_environment(service, given)
    _check_it_is_what_runs(stack, as_it_runs, container)
    return keep_code(stack, as_it_runs, service)


def _check_it_is_what_runs(stack: Stack, as_it_runs: Project, container: Container) -> None:
    """Raise Refused when the files on disk would not make this container: recorded, they would make another one on
    the day of a rollback."""
    if differs(stack, as_it_runs, container):
        raise Refused(
            f"the compose file on disk is not what {container.service} was started from, so it cannot be recorded: "
            "check out what was deployed, or start it from what is here",
            hint=stack.by_hand("up", "--detach", "--no-deps", container.service),
        )


def differs(stack: Stack, project: Project, container: Container) -> bool:
    """Whether compose would make another container of this model than the one that it made. False where its hash cannot
    tell: another compose made the container, or it waits for too many."""
    service = container.service
    if container.labels.get(COMPOSE_VERSION, "").partition("-")[0] != stack.compose_version():
        return False
    # It covers the paths of bind mounts as well, which compose writes as the shell's folder was called.
    here = str(commands.home(stack.config.compose, stack.root))
    there = container.started_in
    if there and os.path.realpath(there) == here != there:
        project = project.with_folder(service, there, instead_of=here)
    # The hash covers depends_on, of which `up` leaves out what was not asked for: any part of it may have been there.
    needs = project.dependencies(service)
    if len(needs) > MOST_DEPENDENCIES:
        return False
    parts = chain.from_iterable(combinations(needs, size) for size in range(len(needs), -1, -1))
    made_with = container.labels.get(COMPOSE_CONFIG)
    return all(stack.hashes(project.with_dependencies(service, part))[service] != made_with for part in parts)
