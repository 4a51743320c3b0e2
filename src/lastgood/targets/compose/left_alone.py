"""What a deploy leaves as it is, and the files on disk have otherwise: services that `containers.services` does not
name, and that have no container, or one of another configuration.

`docker compose up` would start or recreate them. Nothing of that is done here, and of what keeps data nobody is told
how: to recreate a database is for whoever knows where its data are.
"""

from __future__ import annotations

from collections.abc import Iterator

from lastgood.targets.compose import commands
from lastgood.targets.compose.describe import differs
from lastgood.targets.compose.engine import COMPOSE_CONFIG, Container, Engine
from lastgood.targets.compose.project import LABEL_RELEASE, Project
from lastgood.targets.compose.shape import Kind, Shape, awaited, exposed_by, may_end, shape_of
from lastgood.targets.compose.stack import Stack


def left_alone(stack: Stack, engine: Engine, *, besides: str) -> Iterator[tuple[str, str]]:
    """Say what is so of each, and what a person types for it, empty where that might cost data. What ends by itself is
    none of them. besides: the edge, which `lastgood init --edge` looks after."""
    project = stack.resolve()
    once = awaited(project, stack.config.services)
    names = [s for s in project.services if s not in (*stack.config.services, *once, besides)]
    if not names:
        return
    containers = [c for c in engine.of_project() if not (c.is_leftover or c.is_retired)]
    hashes = stack.hashes(project)  # of most of them this one call says that they are as they should be
    for name in names:
        own = [c for c in containers if c.service == name]
        if not (found := _found(stack, project, name, own, compose_hash=hashes[name])):
            continue
        image = engine.image(own[0].image if own else project.reference(name))
        shape = shape_of(project, name, exposed=exposed_by(image))
        if shape.kind is Kind.STATEFUL:
            yield f"{name} {found}, and lastgood never touches it ({shape.why})", ""
        elif not _ends(project, name, shape, own):
            does = "recreates it" if own else "makes one"
            words = commands.up_alone(name, built=project.is_built(name))
            yield f"{name} {found}, and no deploy {does}", stack.by_hand(*words)


def _ends(project: Project, name: str, shape: Shape, own: list[Container]) -> bool:
    """Whether it ends by itself: as its shape says, or where nothing says that it runs all the time and it ended
    well."""
    ended = bool(own) and all(c.facts().exit_code == 0 for c in own)
    return shape.kind is Kind.ONE_SHOT or (shape.kind is Kind.WORKER and may_end(project, name) and ended)


def _found(stack: Stack, project: Project, name: str, own: list[Container], *, compose_hash: str) -> str:
    """How a service is not as the files have it, empty when it is, or when nobody can tell: what this program started
    bears the hash of what it was started from."""
    if not own:
        return "" if project.instances(name) == 0 else "has no container"
    others = [c for c in own if LABEL_RELEASE not in c.labels and c.labels.get(COMPOSE_CONFIG) != compose_hash]
    return "is not as the compose files have it by now" if any(differs(stack, project, c) for c in others) else ""
