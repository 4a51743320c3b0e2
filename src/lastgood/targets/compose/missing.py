"""What a kept release would need to serve again, looked for on this host: its images, its configuration, its code, the
files that it reads, and that nobody holds its name or its port."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lastgood.core.errors import Refused
from lastgood.core.release import Missing, Release, ServiceRecord
from lastgood.targets.compose.edge import Edge
from lastgood.targets.compose.engine import Engine
from lastgood.targets.compose.foreign import refuse_compose_1
from lastgood.targets.compose.in_the_way import in_the_way_of
from lastgood.targets.compose.obstacles import missing_files
from lastgood.targets.compose.stack import Stack

_ANOTHER: Final = "lastgood deploy   (the next good release is a way back again)"


def missing(stack: Stack, engine: Engine, edge: Edge | None, release: Release) -> Iterator[Missing]:
    """Say what is not there or in the way, one line each; a release that could serve right now has none."""
    try:
        refuse_compose_1(engine, stack)
    except Refused as error:
        yield Missing(what=error.message, fix=error.hint)
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
    for record in release.services:
        for line in missing_files(project, record.name):
            # the file that is missing is the release's own copy, and not the one that it was made of
            yield Missing(what=line, fix=_ANOTHER, lost=True)
        for line in in_the_way_of(engine, edge, project, record.name, stack=stack.name):
            yield Missing(what=line, fix="docker ps --all")


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
