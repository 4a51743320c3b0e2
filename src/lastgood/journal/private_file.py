"""Files that only their owner reads: made with 0600 whatever the umask says, replaced as a whole, never behind a link.

A symbolic link in the journal's directory would let a write land elsewhere, so each file is opened without following
one. Everything here raises OSError; the journal says what that means.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

OWNER_ONLY: Final = 0o600
LOCK_TRIES: Final = 2000
LOCK_PAUSE_S: Final = 0.005
"""An append takes about 10 ms; ten seconds of asking outlast any queue of living writers."""


def make_directory(directory: Path) -> None:
    """Create the directory with 0700, or take everybody else's rights away from the one that is there."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_mode & 0o777 != 0o700:
        directory.chmod(0o700)


def refuse_link(path: Path) -> None:
    """Raise OSError(ELOOP) when `path` is a symbolic link. A path with nothing behind it is fine."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link", str(path))


def open_private(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """Open, and where the flags say so create, a file with 0600. Returns a descriptor that no child inherits."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, OWNER_ONLY)
    if flags & os.O_CREAT and os.fstat(descriptor).st_mode & 0o777 != OWNER_ONLY:
        os.fchmod(descriptor, OWNER_ONLY)
    return descriptor


def replace_whole(path: Path, content: bytes) -> None:
    """Replace the content so that a reader, or a crash at any moment, finds the old one or the new one. Durable on
    return. One writer at a time: the caller holds a lock."""
    fresh = path.with_name(path.name + ".new")
    refuse_link(path)
    with os.fdopen(open_private(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Generator[None]:
    """Hold the OS lock on `path` for the length of the block; the system lets go when the process dies.

    Raises BlockingIOError when it cannot be had in 10 s: whoever holds it was stopped in the middle of a write.
    """
    descriptor = open_private(path)
    try:
        _take(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, path)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, kind: int, path: Path) -> None:
    for attempt in range(LOCK_TRIES):
        if attempt:
            time.sleep(LOCK_PAUSE_S)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        return
    raise BlockingIOError(errno.EWOULDBLOCK, "another process holds it and does not move", str(path))
