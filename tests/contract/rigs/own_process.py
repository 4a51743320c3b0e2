"""Work in a process of its own, which may be killed."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable


def begin(work: Callable[[], object]) -> int:
    """Fork, and return the pid of the process that does the work. It exits 0, or 1 with a traceback on stderr."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 # the other side of a fork must not come back into the caller
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def ended(pid: int) -> int:
    """Wait for its end; return its exit code, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
