"""One request as the load wrote it down, and the file of them.

All times are seconds of the machine's monotonic clock, which every process of the machine shares.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Kind(StrEnum):
    """NEW: a GET on a connection of its own. KEPT: a GET on one that is kept. POST: an id, on either. SLOW: a GET that
    takes 10 s."""

    NEW = "new"
    KEPT = "kept"
    POST = "post"
    SLOW = "slow"


class Lost(StrEnum):
    """How a request ended that got no whole answer."""

    REFUSED = "refused"
    RESET = "reset"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """n: place in the order of sending. service: which of several, from 1. due_at: when it had to be sent, whatever
    became of the ones before; sent_at: when it was. release: who answered, empty for nobody or for a proxy."""

    n: int
    kind: Kind
    service: int
    due_at: float
    sent_at: float
    ended_at: float
    status: int | Lost
    release: str

    @property
    def failed(self) -> bool:
        """Anything but a whole 200."""
        return self.status != 200

    @property
    def why(self) -> str:
        """The reason of a failure: a status, or how it was lost."""
        return str(self.status)


def to_line(request: Request) -> str:
    return json.dumps(
        [
            request.n,
            request.kind,
            request.service,
            round(request.due_at, 6),
            round(request.sent_at, 6),
            round(request.ended_at, 6),
            request.status,
            request.release,
        ]
    )


def read(path: Path) -> tuple[Request, ...]:
    """Every request of a load that has ended, in the order in which they ended."""
    return tuple(_from_lines(path.read_text(encoding="utf-8").splitlines()))


def _from_lines(lines: Iterable[str]) -> Iterable[Request]:
    for line in lines:
        n, kind, service, due_at, sent_at, ended_at, status, release = json.loads(line)
        yield Request(
            n=n,
            kind=Kind(kind),
            service=service,
            due_at=due_at,
            sent_at=sent_at,
            ended_at=ended_at,
            status=status if isinstance(status, int) else Lost(status),
            release=release,
        )
