"""Which releases an answer went through: this process's own, and those of the services that it asked.

`X-Release` says who answered, `X-Releases` everybody who had a part in it. More than one name there is a request that
crossed from one release to another. Who was asked and never answered is not named.
"""

from collections.abc import Set as AbstractSet
from contextvars import ContextVar
from typing import Final

import httpx

from hypercode_http.release import RELEASE

HEADER: Final = "X-Releases"

_path: ContextVar[set[str]] = ContextVar("path")


def begin_path() -> AbstractSet[str]:
    """The releases of the request that this task answers; it grows while others are asked."""
    path = {RELEASE}
    _path.set(path)
    return path


async def note_path(response: httpx.Response) -> None:
    """A response hook of the clients with which services ask each other, whatever the status is."""
    named = response.headers.get(HEADER, "")
    _path.get(set()).update(filter(None, named.split(", ")))
