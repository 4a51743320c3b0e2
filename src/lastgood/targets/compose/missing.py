"""What a kept release would need to serve again, looked for on this host: its images, its configuration, its code, the
files that it reads, whom its requests would come from, and that nobody holds its name or its port."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final, cast

from lastgood.core.deploying import stays_as_it_is
from lastgood.core.errors import Refused
from lastgood.core.release import Missing, Release, ServiceRecord
from lastgood.targets.compose.edge import Edge, edge_of
from lastgood.targets.compose.engine import Engine
from lastgood.targets.compose.foreign import refuse_compose_1
from lastgood.targets.compose.in_the_way import Present, in_the_way_of
from lastgood.targets.compose.obstacles import missing_files
from lastgood.targets.compose.project import Json, Project
from lastgood.targets.compose.reach import may_touch
from lastgood.targets.compose.stack import Stack

_ANOTHER: Final = "lastgood deploy   (the next good release is a way back again)"


def missing(stack: Stack, engine: Engine, edge: Edge | None, release: Release) -> Iterator[Missing]:
    """Say what is not there or in the way, one line each; a release that could serve right now has none."""
    try:
        refuse_compose_1(engine, stack)
    except Refused as error:
        yield Missing(what=error.message, fix=error.hint)
    if release.composed and release.is_of_another(stack.name):
        what = f"{release.id} is of compose project {release.composed.project}, and this is {stack.name}"
        yield Missing(what=what, fix=_ANOTHER, lost=True, by_config=True)
        return
    for record in release.services:
        yield from _image(engine, record)
    try:
        kept = stack.shelf.find(release.id)
        project = stack.shelf.project(kept) if kept else None
    except Refused as error:
        yield Missing(what=error.message, fix=_ANOTHER, lost=True)
        return
    if project is None:
        yield Missing(what=f"nothing is kept of {release.id}", fix=_ANOTHER, lost=True)
        return
    yield from unreachable(stack, edge, project, release.id, [record.name for record in release.services])
    there = Present.at(engine)
    yield from _untouchable(stack, there, release)
    for record in release.services:
        for line in missing_files(project, record.name):
            # the file that is missing is the release's own copy, and not the one that it was made of
            yield Missing(what=line, fix=_ANOTHER, lost=True)
        if edge is not None and (port := _port_of_the_edge(there, edge, project, record.name)):
            what = f"port {port} of {record.name} is the edge's by now, and containers.edge.routes does not name it"
            yield Missing(what=what, fix=_ANOTHER, lost=True, by_config=True)
            continue
        for line in in_the_way_of(there, edge, project, record.name, stack=stack):
            yield Missing(what=line, fix="docker ps --all")


def _port_of_the_edge(there: Present, edge: Edge, project: Project, service: str) -> int:
    """The port that a service had before there was an edge, and that the edge has now for others; 0 for none."""
    if service in edge.config.routes or edge_of(project) is not None:
        return 0
    held = {port for c in there.own if c.service == edge.config.service for _, port, _ in c.ports}
    asked = [str(port.get("published") or "") for port in project.service(service).get("ports") or ()]
    return next((int(port) for port in asked if port.isdigit() and int(port) in held), 0)


def unreachable(
    stack: Stack, edge: Edge | None, project: Project, release: str, services: Collection[str]
) -> Iterator[Missing]:
    """Say which of these services of a release nobody would reach if they served again: they were recorded behind an
    edge, which had their ports and names, and has them no longer."""
    front = edge_of(project)
    if front is None:
        return
    if edge is None:
        if ports := [str(port["published"]) for port in front.get("ports") or () if port.get("published")]:
            had = f"{release} was recorded behind an edge, which had the port {' and '.join(ports)}"
            what, lost = f"{had}: there is none now, and nobody would be reached", stack.config.edge is None
            yield Missing(what=what, fix=_ANOTHER if lost else stack.by_hand(), lost=lost, by_config=lost)
        return
    networks = cast("Mapping[str, Json | None]", front.get("networks") or {})
    known = {alias for at in networks.values() for alias in (at or {}).get("aliases") or ()}
    for name in (s for s in services if s in known and s not in (*edge.config.routes, *stack.config.services)):
        what = f"{name} of {release} was reached through the edge, and containers.edge.routes does not name it any more"
        yield Missing(what=what, fix=_ANOTHER, lost=True, by_config=True)


def _untouchable(stack: Stack, there: Present, release: Release) -> Iterator[Missing]:
    """A service that is among those that are never touched by now stays as it is, and is not made where there is
    none."""
    names = {record.name for record in release.services}
    stays = names - may_touch(stack, names)
    present = {c.service for c in there.own if not c.is_retired}
    for name in sorted(stays):
        lost = name not in present
        yield Missing(what=stays_as_it_is(name, release.id), fix=_ANOTHER, lost=lost, by_config=lost)


def _image(engine: Engine, record: ServiceRecord) -> Iterator[Missing]:
    if engine.image(record.artifact) is None:
        gone = f"the image of {record.name} ({record.artifact[:19]}) is not on this host"
        if record.digest is None:
            yield Missing(what=f"{gone}, and no registry is known to have it", fix=_ANOTHER, lost=True)
        else:
            yield Missing(what=f"{gone}; {record.digest} may still be pulled", fix=f"docker pull {record.digest}")
        return
    held = engine.image(record.held_as)
    if held is None or held["Id"] != record.artifact:
        yield Missing(
            what=f"the image of {record.name} has lost its tag {record.held_as}, and the next cleaning may take it",
            fix=f"docker tag {record.artifact} {record.held_as}",
        )
