"""Where the story goes: lines that stay, and one at the foot that changes.

On a terminal that one is written over itself; elsewhere, as in a log of CI, it is a line like any other, now and then.
"""

from __future__ import annotations

import shutil
import sys
from threading import Lock
from time import monotonic
from typing import Final

from lastgood.cli.rendering import clean

EVERY_S: Final = 5.0
"""Between two lines where none can be written over."""
_BACK: Final = "\r\x1b[K"


class Screen:
    """Standard error. Its users may have threads."""

    def __init__(self) -> None:
        self._writing, self._passing, self._told_at = Lock(), False, -EVERY_S

    def say(self, line: str) -> None:
        """One line of the story, at once; what was about to change makes room."""
        with self._writing:
            back = _BACK if self._passing else ""
            self._passing = False
            print(f"{back}{clean(line)}", file=sys.stderr, flush=True)

    def update(self, line: str) -> None:
        """A line that the next one takes the place of."""
        if not sys.stderr.isatty():
            if monotonic() - self._told_at >= EVERY_S:
                self._told_at = monotonic()
                self.say(line)
            return
        with self._writing:
            self._passing = True
            width = shutil.get_terminal_size().columns - 1
            print(f"{_BACK}{clean(line)[:width]}", end="", file=sys.stderr, flush=True)
