"""Processes by identity: pid and start time, since a pid is given out again (proc(5), field 22 of `stat`)."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

OWNER: Final = "LASTGOOD_STATE"
"""Variable by which a process is known to belong to a state directory, even if nobody wrote it down."""


def started(pid: int) -> int:
    """Return the start time of a living process, in clock ticks since boot; 0 when there is none or it is a zombie."""
    try:
        # the name may hold blanks and brackets; what follows the last bracket does not
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return 0
    return 0 if fields[0] in ("Z", "X") else int(fields[19])


def lives(pid: int, start: int) -> bool:
    """Whether exactly this process is there."""
    return pid > 0 and start > 0 and started(pid) == start


def end(pid: int, start: int, deadly: signal.Signals) -> None:
    """Send a signal to the process group of exactly this process."""
    if lives(pid, start):
        with suppress(ProcessLookupError):
            os.killpg(pid, deadly)


def has_connection(leaders: Collection[int], *, port: int, to: int) -> bool:
    """Whether a process of these sessions has a TCP connection between these ports (proc(5): `net/tcp`, `fd`)."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port, to)}
    if not sockets:
        return False
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and os.getsid(int(folder.name)) in leaders:
                for descriptor in (folder / "fd").iterdir():
                    if str(descriptor.readlink()) in sockets:
                        return True
    return False


def _inodes(port: int, to: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):  # a socket for both is listed with the second, whatever it speaks
        with suppress(OSError):
            for fields in map(str.split, Path("/proc/net", table).read_text().splitlines()[1:]):
                if [int(end.rpartition(":")[2], 16) for end in fields[1:3]] == [port, to]:
                    yield fields[9]


def owned_by(state: Path) -> Iterator[tuple[int, int]]:
    """Yield (pid, start) of every session leader that was started for this state directory, the caller left out.

    What a service starts itself stays in the service's session and is not listed.
    """
    mark = f"{OWNER}={state}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with suppress(OSError):
            pid = int(folder.name)
            ours = mark in (folder / "environ").read_bytes().split(b"\0") and os.getsid(pid) == pid
            if ours and (start := started(pid)):
                yield pid, start
