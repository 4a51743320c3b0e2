"""Finding a release's image again: by its ID, then by the digest it was pulled with; never by a tag that can move.

And having the tag that compose starts from, which a build moves, lead to what serves again.
"""

from __future__ import annotations

from collections.abc import Iterator
from shlex import quote

from lastgood.core.errors import LastgoodError, Refused
from lastgood.core.release import ServiceRecord
from lastgood.targets.compose.engine import Engine
from lastgood.targets.compose.kept import KeptRelease, Shelf


def ensure_image(engine: Engine, record: ServiceRecord) -> None:
    """Have the image of `record` on this host, under its held tag. Raises Refused, nothing stopped, when it is gone.

    A held tag that somebody moved is put back: the ID decides, not the tag.
    """
    if engine.image(record.artifact) is None:
        _pull(engine, record)
    tagged = engine.image(record.held_as)
    if tagged is None or tagged["Id"] != record.artifact:
        engine.hold(record.artifact, record.held_as)


def _pull(engine: Engine, record: ServiceRecord) -> None:
    gone = f"the image of {record.name} ({record.artifact[:19]}, held as {record.held_as}) is not on this host"
    if record.digest is None:
        raise Refused(f"{gone}, and no registry is known to have it", hint="lastgood doctor")
    try:
        engine.pull_digest(record.digest)
    except Refused as error:
        raise Refused(
            f"{gone}, and {record.digest} cannot be pulled: {error.message}", hint="lastgood doctor"
        ) from error
    pulled = engine.image(record.digest)
    if pulled is None or pulled["Id"] != record.artifact:
        raise Refused(f"{gone}, and {record.digest} is another image now", hint="lastgood doctor")


def name_again(shelf: Shelf, engine: Engine, release: str) -> Iterator[str]:
    """Have the names from which `docker compose up` starts lead to the images of a kept release again, where another
    one took them along. Yields what became of each, one line.

    Moved is only a name that both releases have, for what is built here: what a registry moves, a pull would move
    again, and what is of no release somebody built since and may want.
    """
    if (kept := shelf.find(release)) is None:
        return
    others = {(r.reference, r.artifact): o.name for o in shelf.known() if o.name != release for r in o.services}
    built = _built(shelf, kept)
    for record in kept.services:
        named = engine.image(record.reference) if record.reference and "@" not in record.reference else None
        if named is None or named["Id"] == record.artifact:
            continue
        if (other := others.get((record.reference, named["Id"]))) is None:
            continue
        by_hand = f"docker tag {quote(record.held_as)} {quote(record.reference)}"
        starts = f"docker compose up would start {record.name} from {record.reference}, which is the image of {other}"
        if record.reference not in built:
            yield f"{starts}, as the registry may have it; until the next pull: {by_hand}"
            continue
        try:
            engine.hold(record.artifact, _with_tag(record.reference))
        except LastgoodError as error:
            yield f"{starts}, still: {error.message}; next: {by_hand}"
        else:
            yield f"{record.reference}, from which compose starts {record.name}, is the image of {release} again"


def _built(shelf: Shelf, kept: KeptRelease) -> frozenset[str]:
    """The names that a build here gives to an image; others of its services may start from it as well."""
    project = shelf.unchecked(kept)
    return frozenset(project.reference(name) for name in project.services if project.is_built(name))


def _with_tag(reference: str) -> str:
    return reference if ":" in reference.rsplit("/", 1)[-1] else f"{reference}:latest"
