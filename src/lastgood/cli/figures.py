"""The figures of a demo: what lastgood's own report says, beside what was counted from outside by others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pydantic import TypeAdapter

from lastgood.core.plan import Role
from lastgood.core.report import Report, StepOutcome
from lastgood.testing.traffic import Counts, Request, acknowledged_missions, summary

# The steps that users can notice, and the end of what served before, which may still answer. A database that is swapped
# ends requests too.
_SWITCHING: Final = ("serve-", "switch-", "settle", "hold-", "fence", "export-", "replay-", "swap-")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFigures:
    """One step of the rollback."""

    name: str
    target: str
    state: str
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Missions:
    """By the traffic's ledger: acknowledged to a user; missing: of those, not in the live database afterwards.

    announced_lost: rows that the report says wait in quarantine.
    """

    acknowledged: int
    missing: int
    announced_lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InvalidRows:
    """Missions that break an invariant, counted in the live database: after the rollback, and after their repair."""

    found: int
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyFigures:
    """One check after the rollback."""

    name: str
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds; None where there was nothing to time. detect_s: from serving to the decision. total_s: from the
    decision to the end, verification and telling included; the others: what the steps of that target took."""

    detect_s: float | None
    containers_s: float
    frontend_s: float
    database_s: float
    total_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What `lastgood demo --json` writes."""

    fault: str
    engine: str
    trigger: str
    sentence: str
    terminal_state: str
    steps: tuple[StepFigures, ...]
    requests: Counts
    missions: Missions
    verify: tuple[VerifyFigures, ...]
    notified: tuple[str, ...]
    timings: Timings
    database_kept: bool
    invalid_rows: InvalidRows
    wrong: tuple[str, ...] = ()

    @property
    def failed_until_switch(self) -> int:
        """Requests that failed between the decision and the switch, or after it."""
        counts = self.requests
        return counts.failed - counts.failed_before_decision - counts.failed_during_switch


FIGURES: Final = TypeAdapter(Figures)


def requests_of(ledger: Sequence[Request], report: Report | None, *, leaving: str) -> Counts:
    """Count the ledger's requests around the decision and the switch of a rollback. leaving: the release that went."""
    steps = _done(report)
    switching = [s for s in steps if s.name.startswith(_SWITCHING)]
    switch = (switching[0].began_at, switching[-1].ended_at) if switching else (None, None)
    swapped = any(s.name == "swap-database" for s in steps)
    return summary(ledger, report.decided_at if report else None, *switch, leaving=None if swapped else leaving)


def missions_of(ledger: Sequence[Request], report: Report | None, *, missing: int) -> Missions:
    """Put the ledger's missions beside what the report announced."""
    lost = sum(loss.rows for loss in report.losses if loss.table == "missions") if report else 0
    return Missions(acknowledged=len(acknowledged_missions(ledger)), missing=missing, announced_lost=lost)


def timings_of(report: Report | None) -> Timings:
    """Take the times from the report, which has them from the journal."""

    def spent(role: Role) -> float:
        return round(sum(s.duration_s for s in _done(report) if s.target == role.value), 3)

    decided = report.decided_at if report else None
    return Timings(
        detect_s=_between(report.served_at if report else None, decided),
        containers_s=spent(Role.CONTAINERS),
        frontend_s=spent(Role.FRONTEND),
        database_s=spent(Role.DATABASE),
        total_s=_between(decided, report.ended_at if report else None),
    )


def _done(report: Report | None) -> tuple[StepOutcome, ...]:
    return tuple(s for s in report.steps if s.began_at) if report else ()


def _between(earlier: datetime | None, later: datetime | None) -> float | None:
    return round((later - earlier).total_seconds(), 1) if earlier and later else None
