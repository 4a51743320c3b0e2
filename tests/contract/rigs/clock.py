"""The machine's clock, for targets that wait for real things."""

from __future__ import annotations

from lastgood.assembly import SystemClock

CLOCK = SystemClock()
