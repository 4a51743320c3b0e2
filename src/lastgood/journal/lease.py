"""A right as an OS lock that the living process holds: when it dies, however it dies, the right is free at once.

The lock file says who holds it, since when, and the fencing number, which grows by one with each claim and outlives
every process. Its content is one block, written in one call, so that a kill cannot tear it.
Looking whether a lock is held means taking it for a moment. The journal's own lock is held around that, so that a look
never makes somebody's claim fail.
"""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from lastgood.core.errors import Refused
from lastgood.journal.private_file import open_private

BLOCK_BYTES: Final = 4096
OWNER_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """What a lock file says. since: aware UTC, when it was claimed. fencing: from 1."""

    owner: str
    pid: int
    since: datetime
    fencing: int

    def __str__(self) -> str:
        return f"{self.owner} (pid {self.pid}) since {self.since:%Y-%m-%d %H:%M:%S} UTC"


_HOLDER: Final = TypeAdapter(Holder)


def take(path: Path, *, owner: str, now: datetime) -> tuple[int, Holder]:
    """Take the right. Returns the descriptor whose closing gives it back, and what was written.

    Raises Refused, naming the holder, when another living process has it; OSError when the file cannot be written, or
    when its fencing number cannot be read and would start again from 1.
    """
    descriptor = open_private(path)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused(f"held by {_read(descriptor, path)}", hint="lastgood status") from error
        last = _read(descriptor, path)
        holder = Holder(
            owner=owner[:OWNER_CHARACTERS].encode(errors="replace").decode(),
            pid=os.getpid(),
            since=now,
            fencing=last.fencing + 1 if last else 1,
        )
        if os.pwrite(descriptor, _HOLDER.dump_json(holder).ljust(BLOCK_BYTES), 0) != BLOCK_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, holder


def look(path: Path) -> Holder | None:
    """Return who holds the right now, None when nobody does. Raises OSError when the file cannot be read."""
    try:
        descriptor = open_private(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(descriptor, path)
        return None
    finally:
        os.close(descriptor)


def _read(descriptor: int, path: Path) -> Holder | None:
    content = os.pread(descriptor, BLOCK_BYTES, 0).strip()
    if not content:
        return None
    try:
        return _HOLDER.validate_json(content)
    except ValidationError as error:
        raise OSError(f"{path} does not say who held it last") from error
