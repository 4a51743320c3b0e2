"""The machine's clock, for targets that wait for real things."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class RealClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)  # this is the clock

    def sleep(self, seconds: float) -> None:
        time.sleep(max(seconds, 0.0))  # this is the clock


CLOCK = RealClock()
