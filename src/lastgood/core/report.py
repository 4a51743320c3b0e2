"""How an incident ended, what was done, what it cost, what a person should do next; and the sentences that say so.

The sentence of the procedure is sent word for word, and only when it is true.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, assert_never

from lastgood.core.release import LATER

LONG_S: Final = 90.0
"""What takes longer is told in minutes."""


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
    """One check that says yes or no after a rollback: a running image, a health probe, a smoke test, a domain.

    unproved: what it could not tell although nothing speaks against it; empty when it told all.
    """

    name: str
    passed: bool
    detail: str = ""
    unproved: Annotated[str, LATER] = ""

    @property
    def answer(self) -> str:
        """As people read it; `ok` says that all of it is proved."""
        return "FAILED" if not self.passed else "unproved" if self.unproved else "ok"

    @property
    def told(self) -> str:
        """What it saw, and what it could not tell."""
        return "; ".join(filter(None, (self.detail, self.unproved)))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What became of a step. state: done, failed, not done, unknown or not started. duration_s: over all attempts.

    began_at, ended_at: first intent and last look, as journaled; None when it was not started.
    changes_what_serves: users can notice that it began.
    """

    name: str
    target: str
    state: str
    duration_s: float
    note: str = ""
    began_at: datetime | None = None
    ended_at: datetime | None = None
    changes_what_serves: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Rows of one table that are not in the live data, and the file that holds them."""

    table: str
    rows: int
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What became of the writes since a restore point when its clone was swapped in.

    carried: (table, rows put into the clone). units: what is counted, `transactions` or, where only their last state
    could be told, `rows`. total: all of them; quarantined: those that do not fit; skipped: the migration's own, which
    skipped_file lists; without_place: those of which nothing has a place in the old schema.
    losses: rows in quarantine, by table. left_out: values for which the old schema has no place, and where they are.
    """

    units: str
    total: int
    quarantined: int
    skipped: int
    carried: tuple[tuple[str, int], ...] = ()
    losses: tuple[Loss, ...] = ()
    left_out: tuple[Loss, ...] = ()
    notes: tuple[str, ...] = ()
    without_place: Annotated[int, LATER] = 0
    skipped_file: Annotated[str, LATER] = ""

    @property
    def replayed(self) -> int:
        """Those that are in the clone, with all of theirs that has a place there."""
        return self.total - self.skipped - self.quarantined - self.without_place


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What would become of the writes since a restore point: a replay that was taken back.

    replayed: None where nothing can be replayed, as into an own dump. more: then, (table, rows that the live one has
    more than what would take its place), by name, most first. whole: all of them were tried, not only the first.
    pause_s: for how long nobody could write, about.
    """

    replayed: Replayed | None
    whole: bool
    pause_s: float
    more: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a replay is. done: transactions, also those that were skipped or wait. at_bytes: up to which place of the
    server's log; end_bytes: where that ended then."""

    done: int
    at_bytes: int
    end_bytes: int


class RowWork(StrEnum):
    """What is done with rows where no transaction can be told: all tables are compared, then what differs is put
    back."""

    COMPARED = "compared"
    PUT_BACK = "put back"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowProgress:
    """How far that is. done, of: bytes of the tables that were compared and of all of them, or rows."""

    work: RowWork
    done: int
    of: int


def same_work(one: Progress | RowProgress, other: Progress | RowProgress) -> bool:
    """Whether the one can be measured by the other."""
    works = [each.work if isinstance(each, RowProgress) else None for each in (one, other)]
    return works[0] is works[1]


def progress_line(first: Progress | RowProgress, now: Progress | RowProgress, *, took_s: float) -> str:
    """Say how far a replay is and how long it may still take, by what was done since `first`, `took_s` ago, where that
    was the same work."""
    first = first if same_work(first, now) else now
    if isinstance(now, RowProgress):
        return _rows_line(first if isinstance(first, RowProgress) else now, now, took_s=took_s)
    return _transactions_line(first if isinstance(first, Progress) else now, now, took_s=took_s)


def _transactions_line(first: Progress, now: Progress, *, took_s: float) -> str:
    """What is left is known in bytes of the log, and in transactions only as far as those were alike until now."""
    done, moved = now.done - first.done, now.at_bytes - first.at_bytes
    left, written = max(now.end_bytes - now.at_bytes, 0), now.end_bytes - first.end_bytes
    told = f"{now.done:,} transactions replayed"
    if done <= 0 or moved <= 0 or took_s <= 0:
        return f"{told}, {left / 1e6:,.1f} MB of log left"
    told += f", about {round(left * done / moved):,} left"
    if moved <= written:
        return f"{told}; as much is written as is replayed, so there is no end yet"
    return f"{told}, {_about(left * took_s / (moved - written))}"


def _rows_line(first: RowProgress, now: RowProgress, *, took_s: float) -> str:
    moved, left = now.done - first.done, now.of - now.done
    match now.work:
        case RowWork.COMPARED:
            told = f"{now.done / 1e6:,.1f} of {now.of / 1e6:,.1f} MB of tables compared"
        case RowWork.PUT_BACK:
            told = f"{now.done:,} of {now.of:,} rows put back"
        case _:
            assert_never(now.work)
    return f"{told}, {_about(left * took_s / moved)}" if moved > 0 and took_s > 0 else told


def _about(left_s: float) -> str:
    return f"about {left_s / 60:.0f} min" if left_s > LONG_S else f"about {left_s:.0f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """Down migrations that went well on a copy with all rows. took_s: how long, what is set aside included. rows: over
    all tables that stay, the same before and after."""

    took_s: float
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The whole story of a run, for people and for `--json`. owner: whose incident it is.

    served_at: when the watch of the release began, None when it never served. decided_at: when the trigger fired or a
    person asked; began_at: when the run began, after planning. serving: the release that serves now, where known.
    parts: which parts went back, empty for the whole release. uncounted: what left the live data and nobody can count,
    and where it is; empty for nothing. aside: what the down migrations took away, by column or table, and where it is.
    never_served: what was deployed stopped before users could notice it, and so nothing that serves was put back.
    """

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
    served_at: datetime | None = None
    decided_at: datetime | None = None
    serving: str = ""
    parts: tuple[str, ...] = ()
    replayed: Replayed | None = None
    uncounted: str = ""
    aside: tuple[Loss, ...] = ()
    never_served: Annotated[bool, LATER] = False

    @property
    def way(self) -> str:
        """What went where, in a few words: nothing did where the release that is left never served, or serves on."""
        if self.never_served:
            return f"{self.from_release} never served, {self.to_release} does"
        if self.from_release == self.to_release:
            return f"{self.to_release} put right"
        return f"{self.from_release} -> {self.to_release}"


def announcement(report: Report) -> str:
    """Say to the team how it ended. The procedure's sentence, word for word, only for a verified rollback."""
    left, back, who = report.from_release, report.to_release, report.owner or "a person"
    match report.terminal:
        case TerminalState.ROLLED_BACK_VERIFIED if report.parts:
            parts = " and ".join(report.parts)
            return f"ℹ️ {parts} went back to {back}, and the checks passed. {report.serving or left} serves."
        case TerminalState.ROLLED_BACK_VERIFIED if stayed := _stayed(report):
            return "\n".join((f"ℹ️ {stayed}, and the checks passed.", *_remaining(report)))
        case TerminalState.ROLLED_BACK_VERIFIED:
            said = (
                f"🚨 Deployment failed. Rollback to {back} completed. System operating normally. Investigation started."
            )
            return "\n".join((said, *_remaining(report)))
        case TerminalState.ROLLED_BACK_DEGRADED:
            failed = ", ".join(c.name for c in report.checks if not c.passed) or "unknown"
            if stayed := _stayed(report):
                return f"⚠️ {stayed}, but these checks fail: {failed}. {who} is needed."
            return (
                f"⚠️ Deployment of {left} failed. {back} runs again, but these checks fail: {failed}. {who} is needed."
            )
        case TerminalState.REFUSED:
            return (
                f"⚠️ {left} is bad ({report.sentence}). Rollback refused{_where(report)}, nothing was touched. "
                f"{who} is needed."
            )
        case TerminalState.DENIED:
            return _ended_by_person(report, "denied", mark="ℹ️")
        case TerminalState.ABORTED_BY_HUMAN:
            return _ended_by_person(report, "aborted by a person", mark="⚠️")
        case TerminalState.NEEDS_HUMAN:
            to_do = "; ".join(report.next_steps) or f"lastgood explain {report.run}"
            return f"🚨 Rollback of {left} stopped{_where(report)} and needs {who}. Next: {to_do}"
        case TerminalState.INCONCLUSIVE_KEPT:
            return f"⚠️ {left} was kept, but is not proved good: {report.sentence}"
        case TerminalState.HEALTHY_KEPT:
            return f"✅ {left} was watched and is kept as good."
        case TerminalState.SUPERSEDED:
            return f"ℹ️ The watch of {left} ended: a newer deployment took over."
        case _:
            assert_never(report.terminal)


def _stayed(report: Report) -> str:
    """How it came that the same release serves as before; empty where one took another's place."""
    left, back = report.from_release, report.to_release
    if report.never_served:
        why = f"{left} was not deployed ({report.sentence})"
        return f"{why}. It never served, nothing had to be put back: {back} serves"
    return f"{back} served already. What was not as it left it was put right" if left == back else ""


def _ended_by_person(report: Report, how: str, *, mark: str) -> str:
    """A person ended it. What still serves is only said where no step began that users can notice."""
    noticed = [step for step in report.steps if step.changes_what_serves and step.began_at]
    if not noticed:
        return f"{mark} Rollback of {report.from_release} was {how}. {report.from_release} still serves."
    done = ", ".join(step.name for step in noticed if step.state == "done")
    step = _stopped_at(report)
    at = f" at {step.name}" if step else ""
    so_far = f"; done: {done}" if done else ""
    serves = f"{report.serving} serves." if report.serving else "What serves: lastgood status"
    return f"⚠️ Rollback of {report.from_release} was {how}{at}{so_far}. {serves}"


def _stopped_at(report: Report) -> StepOutcome | None:
    return next((step for step in report.steps if step.state != "done"), None)


def _where(report: Report) -> str:
    """At which step, and why, as far as it is known."""
    step = _stopped_at(report)
    if step is None:
        return ""
    return f" at {step.name} ({step.note})" if step.note else f" at {step.name}"


def _remaining(report: Report) -> tuple[str, ...]:
    """What a verified rollback did not put right, and what it took away."""
    lines: list[str] = []
    if report.remaining:
        lines.append(f"Invalid rows remain: {'; '.join(report.remaining)}")
    if gone := [loss for loss in report.losses if loss.rows]:
        tables = ", ".join(f"{loss.rows} of {loss.table}" for loss in gone)
        lines.append(f"Rows that do not fit wait in quarantine ({tables}): {gone[0].file}")
    if report.replayed:
        lines += _not_replayed(report.replayed)
    if report.uncounted:
        lines.append(f"Not in the live data any more: {report.uncounted}")
    return tuple(lines)


def _not_replayed(of: Replayed) -> Iterator[str]:
    """What of the writes since is in files only, and does not wait for anybody."""
    if left := [left for left in of.left_out if left.rows]:
        tables = ", ".join(f"{one.rows} of {one.table}" for one in left)
        yield f"Values for which the old schema has no place ({tables}): {left[0].file}"
    if of.skipped and of.skipped_file:
        yield f"Not replayed, as the migration's own: {of.skipped} {of.units}: {of.skipped_file}"
