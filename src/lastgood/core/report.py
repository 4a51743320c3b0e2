"""How an incident ended, what was done, what it cost, what a person should do next; and the sentences that say so.

The sentence of the procedure is sent word for word, and only when it is true.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class TerminalState(StrEnum):
    """Every incident ends in exactly one of these."""

    HEALTHY_KEPT = "HEALTHY_KEPT"
    INCONCLUSIVE_KEPT = "INCONCLUSIVE_KEPT"
    ROLLED_BACK_VERIFIED = "ROLLED_BACK_VERIFIED"
    ROLLED_BACK_DEGRADED = "ROLLED_BACK_DEGRADED"
    REFUSED = "REFUSED"
    DENIED = "DENIED"
    ABORTED_BY_HUMAN = "ABORTED_BY_HUMAN"
    NEEDS_HUMAN = "NEEDS_HUMAN"
    SUPERSEDED = "SUPERSEDED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check that says yes or no after a rollback: a running image, a health probe, a smoke test, a domain."""

    name: str
    passed: bool
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What became of a step. state: done, failed, not started or unknown."""

    name: str
    target: str
    state: str
    duration_s: float
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Rows that left the live data in one table, and the file that holds them."""

    table: str
    rows: int
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The whole story of a run, for people and for `--json`. owner: whose incident it is."""

    run: str
    terminal: TerminalState
    trigger: str
    sentence: str
    from_release: str
    to_release: str
    began_at: datetime
    ended_at: datetime
    steps: tuple[StepOutcome, ...] = ()
    checks: tuple[Check, ...] = ()
    losses: tuple[Loss, ...] = ()
    remaining: tuple[str, ...] = ()
    next_steps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    evidence_file: str = ""
    owner: str = ""
