"""Saying that something takes long, while it still takes long.

A thread of its own speaks, because the one that works waits for the world. A stack in memory, whose time is stepped,
brings a reminder of its own: starting a thread for each step is most of what a simulated run costs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from threading import Timer

IfSlow = Callable[[float, Callable[[], None]], AbstractContextManager[None]]
"""Takes seconds and what to do when the block lasts longer: at most once, and never after the block."""


@contextmanager
def if_slow(after_s: float, say: Callable[[], None]) -> Generator[None]:
    """Call `say` once if the block lasts longer than `after_s`, in real time."""
    said = Timer(after_s, say)
    said.daemon = True
    said.start()
    try:
        yield
    finally:
        said.cancel()
