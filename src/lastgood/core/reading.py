"""What one look of a signal source returned. Never None, never a bare number: no data is a value of its own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The time a reading covers. since, until: aware UTC; `since` is the end of the previous reading."""

    since: datetime
    until: datetime

    @property
    def length_s(self) -> float:
        """Seconds from since to until."""
        return (self.until - self.since).total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests finished in the window, health checks left out. errors: answered 5xx. slow: took longer than the
    latency limit."""

    requests: int
    errors: int
    slow: int
    kind: Literal["traffic"] = "traffic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """A probe that asked a feature to do its work. failed: of `asked`. detail: why the last one failed, one line."""

    asked: int
    failed: int
    detail: str = ""
    kind: Literal["probed"] = "probed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A row that breaks an invariant. invariant: its file's stem. key: the row's key as text."""

    invariant: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Violations:
    """Rows that break invariants now, at most `cap` per invariant; total counts beyond the cap. unchecked: invariants
    that could not run, and why."""

    found: frozenset[Violation]
    total: int
    unchecked: tuple[tuple[str, str], ...] = ()
    kind: Literal["violations"] = "violations"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceState:
    """One serving instance. restarts: since it was created."""

    service: str
    running: bool
    unhealthy: bool
    restarts: int
    oom_killed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Instances:
    """State of the serving containers or processes."""

    instances: tuple[InstanceState, ...]
    kind: Literal["instances"] = "instances"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoData:
    """The source answered and had nothing for this window: neither healthy nor failed."""

    reason: str
    kind: Literal["no_data"] = "no_data"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDown:
    """The source could not be asked. Blindness is not failure: it pages, it never rolls back by itself."""

    reason: str
    kind: Literal["source_down"] = "source_down"


Samples = Traffic | Probed | Violations | Instances
Reading = Samples | NoData | SourceDown


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One source's reading in a bucket."""

    source: str
    reading: Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """All readings of one interval of the watch. at: aware UTC, the end of the interval."""

    at: datetime
    looks: tuple[Look, ...]

    def reading(self, source: str) -> Reading:
        """Return what `source` showed, NoData when it was not asked in this bucket."""
        return next((look.reading for look in self.looks if look.source == source), NoData(reason="not asked"))
