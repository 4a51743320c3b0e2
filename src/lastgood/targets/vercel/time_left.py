"""How long one attempt may still take, shared out among the calls that it makes."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from lastgood.core.ports import Clock

CALL_S: Final = 10.0
"""Longest that one call may take; Vercel's own tool sees answers well under a second."""
LAST_CALL_S: Final = 1.0
"""What a call gets when nothing is left: the last look of an attempt is worth more than the exact deadline."""


class TimeLeft:
    """seconds: of the whole attempt, from now on."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._ends_at = clock.now() + timedelta(seconds=seconds)

    @property
    def seconds(self) -> float:
        """What is left, 0 or more."""
        return max(0.0, (self._ends_at - self._clock.now()).total_seconds())

    @property
    def over(self) -> bool:
        return not self.seconds

    def for_a_call(self) -> float:
        """The deadline for the next call, in seconds."""
        return max(LAST_CALL_S, min(CALL_S, self.seconds))

    def wait(self, seconds: float) -> None:
        """Wait before the next look, not longer than there is time."""
        self._clock.sleep(min(seconds, self.seconds))
