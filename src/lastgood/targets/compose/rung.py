"""Which rung of the ladder a service stands on: chosen here and nowhere else.

The ladder (L0 warm, L1 standby, L2 start-first, L3 held requests, L4 recreate) needs an edge in front of the service
from L3 up. This target has none yet, so every service is recreated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class ContainerRung(StrEnum):
    """How a service is put back."""

    RECREATE = "L4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A rung, and why not a higher one."""

    rung: ContainerRung
    why: str


def choose_rung(services: Sequence[str]) -> Chosen:
    """Choose the highest rung that `services` allow."""
    return Chosen(rung=ContainerRung.RECREATE, why=f"no edge in front of {', '.join(services)}")
