"""A deadline for a whole conversation, not for each packet of it: a peer that drips a byte a second never times out.

When the time is up the connection is shut down under the library that waits on it, which then fails at once.
"""

from __future__ import annotations

import os
import socket
import threading
from types import TracebackType
from typing import Self


class Deadline:
    """Ends the sockets that were handed to it `seconds` after the block was entered."""

    def __init__(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._guarded: list[socket.socket] = []
        self._lock = threading.Lock()
        self.over = False

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            for guarded in self._guarded:
                guarded.close()
            self._guarded.clear()

    def guard(self, descriptor: int) -> None:
        """Shut the connection behind `descriptor` down when the time is up, or now when it is. Raises OSError when this
        process has no descriptor left."""
        # a descriptor of our own: the library may wrap its socket for TLS, or close it and let the number be reused
        guarded = socket.socket(fileno=os.dup(descriptor))
        with self._lock:
            self._guarded.append(guarded)
            if self.over:
                _shut_down(guarded)

    def _end(self) -> None:
        with self._lock:
            self.over = True
            for guarded in self._guarded:
                _shut_down(guarded)


def _shut_down(guarded: socket.socket) -> None:
    try:
        guarded.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the peer was quicker
