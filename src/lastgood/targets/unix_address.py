"""Addresses of unix sockets, which have no more than 107 bytes, for sockets that lie in folders of any depth."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def short_path(socket: Path) -> Generator[str]:
    """Yield a short path of a socket, good for as long as the block lasts. Raises OSError when its folder is gone."""
    folder = os.open(socket.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{socket.name}"
    finally:
        with suppress(OSError):
            os.close(folder)
