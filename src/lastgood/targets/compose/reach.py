"""Which services may be touched: those that containers.services names, and those that only earlier releases have.

A service that was renamed or dropped is in no file of today, so containers.services cannot name it, and yet the release
that has it must be able to go back. A service that the stack still has and that containers.services does not name (any
more) is left alone, whatever was recorded of it once: it may have got data since.
"""

from __future__ import annotations

from collections.abc import Collection

from lastgood.core.errors import Refused
from lastgood.targets.compose.stack import Stack


def may_touch(stack: Stack, names: Collection[str]) -> frozenset[str]:
    """Return those of these services that may be stopped and recreated. The newest kept release whose stack had a
    service says whether it went back with the others. Raises Retryable when compose does not answer."""
    listed = {*names} & {*stack.config.services}
    unknown = {*names} - listed
    found = {*listed}
    for age, (kept, project) in enumerate(stack.shelf.newest_first()):
        if not unknown:
            break
        had = unknown & {*project.services}
        own = {name for name in had if kept.service(name) is not None}
        # of the newest one it may have been taken out since: of containers.services, or of the compose file as well
        found |= _gone_today(stack, own) if own and age == 0 else own
        unknown -= had
    return frozenset(found)


def _gone_today(stack: Stack, names: set[str]) -> set[str]:
    """Those that the files on disk do not have; none where these cannot be read."""
    try:
        return names - {*stack.resolve().services}
    except Refused:
        return set()
