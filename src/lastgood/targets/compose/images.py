"""Finding a release's image again: by its ID, then by the digest it was pulled with; never by a tag that can move."""

from __future__ import annotations

from lastgood.core.errors import Refused
from lastgood.core.release import ServiceRecord
from lastgood.targets.compose.engine import Engine


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
