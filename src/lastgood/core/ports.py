"""The doors of the core: what every eye, hand, memory and voice promises.

One contract suite per port (tests/contract) runs over every adapter and every stand-in that ships. Each guarantee
below is tested there. Adapters raise the errors of `core.errors` and nothing else; each call ends within its deadline.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from lastgood.core.facts import (
    BackupFacts,
    ContainerFacts,
    DatabaseFacts,
    Facts,
    FrontendFacts,
    KeptDatabase,
    ServiceLog,
)
from lastgood.core.migration import DatabaseEvidence, Outlook
from lastgood.core.plan import CatchUp, ReplayWrites, Role, Step, SwapDatabase
from lastgood.core.quarantine import QuarantineEntry
from lastgood.core.reading import Reading, Window
from lastgood.core.record import Event, Record
from lastgood.core.release import Down, LogPoint, Missing, Release, RestorePoint, Shipped
from lastgood.core.repair import RepairPlan, RowRepair
from lastgood.core.report import Check, DryRun, Loss, Progress, Rehearsed, Replayed, RowProgress


class Clock(Protocol):
    """Time, so that a test can own it."""

    def now(self) -> datetime:
        """Aware UTC."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait; returns early never."""
        ...


class SignalSource(Protocol):
    """An eye. Reads only; leaves no rows behind."""

    @property
    def name(self) -> str:
        """Unique in the configuration; triggers name it."""
        ...

    def read(self, window: Window) -> Reading:
        """Return what happened in `window`. Never raises for a source that is down, slow, or talks nonsense: that is
        SourceDown. What answers and has nothing to say of the window is NoData; a count that did not grow is one of 0.
        The first call of a counting source sees no earlier value and returns NoData, and a window without length begins
        its counting anew. Ends within 5 s."""
        ...


class Target(Protocol):
    """A hand."""

    @property
    def role(self) -> Role:
        """Which steps it takes."""
        ...

    def observe(self) -> Facts:
        """Look. Changes nothing. Raises Retryable when it cannot look now, Refused when it may not: never facts that
        were not seen."""
        ...

    def apply(self, step: Step) -> None:
        """Carry the step out. Safe to repeat: applying a step that is done changes nothing.
        Raises Refused or Retryable: this attempt left nothing changed. OutcomeUnknown: sent, answer lost.
        NeedsHuman: it stands where neither another attempt nor another look will help.
        Afterwards `core.plan.seen(step, observe())` tells whether it is done. Ends within step.deadline_s."""
        ...


class Containers(Target, Protocol):
    """The services that may go back: compose, process, later swarm."""

    def observe(self) -> ContainerFacts: ...

    def prepare(self, name: str, recorded_at: datetime) -> Release:
        """Build or pull what the files on disk say, hold it, and describe it. What serves is not touched. Repeating
        gives the same artifacts. Raises Refused with the place when the stack cannot be rolled back as it is."""
        ...

    def preflight(self) -> tuple[str, ...]:
        """Return what in the files on disk would keep the next release from being prepared or recorded, one line each;
        empty when all is well. Changes nothing. Raises Refused when they cannot be read."""
        ...

    def awaited(self) -> tuple[tuple[str, str], ...]:
        """Return the services for whose end those that may go back wait before they start, in the order in which they
        run, each with what a person types to run it as the files on disk have it: no release does. Changes nothing.
        Raises Refused when they cannot be read."""
        ...

    def left_alone(self) -> tuple[tuple[str, str], ...]:
        """Return the services of the files on disk that no release has and that are not there as these say: what is so,
        and what a person types for it; nothing where that might cost data. Not those that end by themselves. Changes
        nothing. Raises Refused when the files cannot be read."""
        ...

    def describe_running(self, name: str, recorded_at: datetime) -> Release:
        """Describe and hold what serves now, as a release of that name. For `init` and `record`."""
        ...

    def fetch(self, release: Release) -> None:
        """Have every artifact of a prepared release on this host, from its registry where it must be. What serves is
        not touched. Raises Refused, naming it, when one is nowhere any more."""
        ...

    def missing(self, release: Release) -> tuple[Missing, ...]:
        """Return what `release` would need to serve again, and to be reached, and does not find on this host; empty
        when all is there. Asks no registry and changes nothing."""
        ...

    def hold(self, release: Release) -> None:
        """Hold again what is here of `release` and lost what held it. What is gone stays gone. Safe to repeat."""
        ...

    def name_again(self, release: Release) -> tuple[str, ...]:
        """Have the names from which others than lastgood start the services lead to the artifacts of `release`, where
        another one took them along when it was made. Return what became of that, one line each, with what to type where
        they do not; empty when they do already. What serves goes on. Safe to repeat."""
        ...

    def kept(self) -> frozenset[str]:
        """Return the names of the releases of which anything is kept here."""
        ...

    def let_go(self, release: Release) -> None:
        """Remove what holds and keeps `release`, and nothing that another kept release needs. What serves goes on.
        Safe to repeat. Raises Refused when something cannot be removed; then `kept` still names it."""
        ...

    def rung(self, release: str = "") -> str:
        """Name the rung on which `release` would be put back now, and why not a higher one, one line. Without a
        release: the one on which a rollback would go after the next deploy."""
        ...

    def evidence(self, into: Path) -> tuple[str, ...]:
        """Save logs (last 2,000 lines each) and inspect output of the serving instances; return the files' names."""
        ...

    def logs(self, since: datetime) -> tuple[ServiceLog, ...]:
        """Return what the serving instances wrote since then, the last 2,000 lines each; where the engine notes no time
        of a line, since the instance was started. Changes nothing."""
        ...

    def checks(self, release: Release, *, found: Collection[tuple[str, int]] = ()) -> tuple[Check, ...]:
        """Compare every serving instance with `release`: its artifact, and that no service serves, or may come back by
        itself, which the release does not have. Left out is what stood beside it when it was recorded, and what is
        never touched. found: (service, number) of what was left as it was: of these no more are asked for."""
        ...


class Database(Target, Protocol):
    """The one database that belongs to the release."""

    def observe(self) -> DatabaseFacts: ...

    def preflight(self) -> tuple[str, ...]:
        """Return what would keep a restore point from being taken or used here, one line each; empty when all is
        well."""
        ...

    def cautions(self) -> tuple[str, ...]:
        """Return what a rollback of the database would cost or not bring back here, one line each with what to type;
        nothing of it keeps a restore point from being taken. Changes nothing."""
        ...

    def room(self) -> tuple[tuple[str, int], ...]:
        """Return (where, free bytes) of each filesystem that a dump and a clone go to, as far as that can be seen.
        Changes nothing."""
        ...

    def thrown_out_because(self) -> tuple[str, ...]:
        """Return why clients of a configured pooler would be thrown out by a swap instead of made to wait, one line
        each; empty when nothing speaks against it. Changes nothing, never raises."""
        ...

    def ships(self, release: str) -> Shipped:
        """Read what the files of a prepared release say about the database. Down migrations are those of what the
        database does not have yet, so it is asked before it is migrated. Raises ConfigError with the place, Refused or
        Retryable when the down migrations cannot be had."""
        ...

    def foresee(self, release: Release, migrations: Sequence[str], *, last_good: Release | None) -> Outlook:
        """Try pending migrations of a prepared release on an empty copy of today's schema, and the statements of
        `last_good` after them. What cannot be tried within half a minute is unknown, and says why.

        Changes nothing. Raises NeedsHuman when a command of the release went to the live database all the same.
        """
        ...

    def restore_point(self, restore_point: str) -> RestorePoint:
        """Return a restore point that was just proved, with its manifest's hash, for the journal. Raises Refused when
        there is none of that id or its dump fails its hash."""
        ...

    def prove(self, restore_point: RestorePoint, *, deadline_s: float) -> None:
        """Compare all that is kept of a restore point, dump and clone, with what the journal has of it. Changes
        nothing. Raises Refused naming what is not as it was proved, and what was expected in its place."""
        ...

    def register(
        self,
        dump: Path,
        *,
        name: str | None,
        taken_at: datetime | None,
        expected: Mapping[str, str],
        known: Collection[RestorePoint],
        deadline_s: float,
    ) -> RestorePoint:
        """Keep an operator's own dump as a restore point: copied, restored beside, proved. A dump that is kept already
        is returned as it was.

        name, taken_at: None for what the dump says. expected: fingerprints of the schema by release, one of which it
        must have where there are any. known: what the journal has. Raises Refused, nothing left of it, with what is
        wrong and what was expected.
        """
        ...

    def backups(self) -> BackupFacts | None:
        """Return what pgBackRest has of the server; None where it is not configured. Changes nothing."""
        ...

    def recover(
        self,
        to: LogPoint,
        *,
        expected: Mapping[str, str],
        known: Collection[RestorePoint],
        deadline_s: float,
        progress: Callable[[str], None],
    ) -> RestorePoint:
        """Bring the database beside as it was at a place in the server's log, and keep that as `register` keeps a dump.
        What was recovered to the same place already is returned as it was.

        Safe to repeat. Raises as `register` does: then nothing of it is left, nor of the side cluster.
        """
        ...

    def inspect(
        self,
        *,
        since: RestorePoint,
        target: Release,
        downs: Sequence[Down] = (),
        logs: Sequence[ServiceLog] = (),
    ) -> DatabaseEvidence:
        """Collect the evidence since `since`, and try `target`'s statements, and what it runs when it starts, on a
        clone of today's schema; where they do not run, the down migrations too. Read-only on the live database. downs:
        of every release since, oldest first. logs: of the services, whose SQL errors count too. Raises Refused when
        what is kept of `since` is not what the journal has of it."""
        ...

    def lossy_because(self, *, copied: bool = False) -> tuple[str, ...]:
        """Return what would keep the transactions written after the next restore point from being replayed one by one,
        one line each; empty when nothing does. copied: whether that one is a copy. Changes nothing."""
        ...

    def not_copied_because(self) -> tuple[str, ...]:
        """Return what would keep the next restore point from being a copy, one line each, whether or not a pause is
        allowed; empty when nothing does. Changes nothing."""
        ...

    def try_replay(self, of: CatchUp | ReplayWrites | SwapDatabase) -> DryRun:
        """Replay what a step would replay, and take all of it back; of a swap without a replay, compare what it would
        put there with what is there. A minute at most is replayed, and nothing that is asked takes longer. Changes
        nothing. Raises Refused or Retryable when it cannot be tried now, or would be refused then."""
        ...

    def progress(self) -> Progress | RowProgress | None:
        """Return how far the replay is that this process carries out; None while it does not. Asks
        nobody, and may be called from another thread."""
        ...

    def replayed(self, replay: str) -> Replayed:
        """Return what became of the writes in a finished replay. Raises Refused when there is no such replay."""
        ...

    def rehearsed(self, rehearsal: str) -> Rehearsed:
        """Return how a rehearsal of down migrations went. Raises Refused when there is no such rehearsal."""
        ...

    def set_aside(self, aside: str) -> tuple[Loss, ...]:
        """Return what down migrations took away, and where it is. Raises Refused when nothing is there."""
        ...

    def quarantine(self) -> tuple[QuarantineEntry, ...]:
        """Return what waits, or waited, in the quarantine of every replay, oldest first within each. Raises Refused
        when a file of it cannot be read."""
        ...

    def requeue(
        self, entry: QuarantineEntry, *, replay: ReplayWrites, about_to_commit: Callable[[int], None]
    ) -> tuple[str, ...]:
        """Put an entry into the live database, all of it in one transaction; return what has no place there, one line
        each. replay: which set it aside; its restore point and its kept database tell what was renamed.

        about_to_commit: is given the id of that transaction before it is committed, to be noted durably. Raises Refused
        when something does not fit, nothing changed; OutcomeUnknown when the answer was lost: ask `is_committed`.
        """
        ...

    def repairs(self, *, since: RestorePoint) -> RepairPlan:
        """Find what would put each row right that breaks an invariant now and did not at `since`. Ends within a minute
        of trying; each change is tried on the live database, which locks its row meanwhile, and is taken back. Raises
        Refused when there is nothing to compare with."""
        ...

    def repair(self, rows: Sequence[RowRepair], *, about_to_commit: Callable[[int], None]) -> None:
        """Put rows right in the live database, all of them in one transaction, each only where it is as it was shown.

        about_to_commit and errors: as for `requeue`.
        """
        ...

    def kept(self) -> tuple[KeptDatabase, ...]:
        """Return the databases that another one took the place of, oldest first, as far as they are there. Never the
        live one, nor what stands behind a fence."""
        ...

    def release(self, name: str, *, deadline_s: float) -> None:
        """Drop a database of `kept`. Raises Refused, nothing changed, for any other; Retryable while somebody is
        connected to it; OutcomeUnknown when the answer was lost."""
        ...

    def is_committed(self, xid: int) -> bool | None:
        """Whether that transaction is in the data; None when it cannot be told."""
        ...

    def checks(self, fingerprint: str) -> tuple[Check, ...]:
        """Compare the live schema with a fingerprint (empty: only that it answers), and that it accepts a
        connection."""
        ...

    def clients(self, replaced: str) -> Check:
        """Compare who uses the live database with who used it when it was fenced as `replaced`, which nobody must use
        any more."""
        ...


class Frontend(Target, Protocol):
    """The frontend host."""

    def observe(self) -> FrontendFacts: ...

    def checks(self, deployment: str) -> tuple[Check, ...]:
        """Fetch every configured production domain and compare what answers with `deployment`."""
        ...

    def resume_auto_assign(self) -> None:
        """Let later pushes go live again after a rollback turned that off. Raises as `apply` does."""
        ...


class Notifier(Protocol):
    """A voice."""

    @property
    def channel(self) -> str:
        """Where it speaks, for the report."""
        ...

    def send(self, text: str, *, event_id: str) -> None:
        """Send the text once per `event_id` as far as the service allows. Raises Retryable, Refused or OutcomeUnknown.
        Foreign text in it is escaped. Ends within 10 s."""
        ...


class Checker(Protocol):
    """A set of yes-or-no checks run after a rollback: health addresses, the smoke tests."""

    def run(self, names: Collection[str]) -> tuple[Check, ...]:
        """Run them all within the configured deadline. A check that could not run is a check that did not pass, and
        says so. names: what the release that answers may call itself."""
        ...

    def named(self) -> tuple[str, ...]:
        """Return the names by which what serves now calls itself, sorted; empty when it does not say. Never raises."""
        ...


class Right(StrEnum):
    """RUN: to carry a plan out. WATCH: to write the buckets of a watch, so that no request is counted twice. PREPARE:
    to build and keep a release, and to ask about it. Only RUN keeps anybody from a rollback."""

    RUN = "run"
    WATCH = "watch"
    PREPARE = "prepare"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A right that is held. fencing: grows with every claim; owner: who holds it, for people."""

    owner: str
    fencing: int


class Journal(Protocol):
    """The memory. Append-only; durable when `append` returns; never in the database that may be restored."""

    def append(self, event: Event) -> Record:
        """Write one line, fsynced. Raises NeedsHuman when it cannot be made durable: then no effect may follow."""
        ...

    def records(self, *, after: int = 0) -> Sequence[Record]:
        """Return the lines with seq > `after`, oldest first. Raises NeedsHuman when the chain does not hold."""
        ...

    def claim(self, owner: str, right: Right = Right.RUN) -> AbstractContextManager[Lease]:
        """Take a right for as long as the block lasts and this process lives. Raises Refused when another living
        process has it, naming it."""
        ...

    def holder(self, right: Right = Right.RUN) -> str | None:
        """Return who holds a right now, None when nobody does."""
        ...

    def verify(self) -> tuple[str, ...]:
        """Check every hash, the order, the count and the head kept in the second file. Returns what is wrong, one line
        each, empty when the chain holds."""
        ...
