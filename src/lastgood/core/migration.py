"""Did the migration cause the failure, can the last good release run on today's schema, and which rung follows.

Evidence is collected by the database target; this file only weighs it (facts: SQLSTATE class 42 is "syntax error or
access rule violation", PostgreSQL 15 docs appendix A). A rollback of the schema is never the answer to a storage fault.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from lastgood.core.release import Down

MOST_CHANGES = 20
"""Differences of a schema that are kept and shown: a person reads no more of them at a glance."""
LONGEST_CHANGE = 400
LONGEST_LINE = 200
"""Characters of one of them that are kept, and shown."""


class Rung(StrEnum):
    """How far the database goes back, from the least to the most invasive."""

    D0 = "D0 leave the schema"
    D2 = "D2 down migration"
    D3 = "D3 swap and replay"
    D3B = "D3b swap and replay by rows"
    SWAP = "D3 swap to the clone"
    """Of plans made before rows were replayed."""
    D4 = "D4 swap to an own dump"
    """An operator's own dump, restored beside: nothing that was written since it can be put into it."""
    D5 = "D5 swap to what pgBackRest recovered"
    """The same, of a dump of what the server was at a moment of its log."""


_WHOLE: Final = re.compile(r"(is new|is gone) \((?:table|sequence) ")
_CODED: Final = re.compile(r"(?<=type )[a-z](?=')| rights of [^()]*(?=\)$)|\s+(?=\)$)")
"""What tells one schema from another, and nothing to a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaChange:
    """One difference between the schema before the deploy and now. object: `table` or `table.column`, change: one
    line."""

    object: str
    change: str

    def __str__(self) -> str:
        """One line of bounded length: a view's definition may be long."""
        told = " ".join(f"{self.object}: {self.change}".split())
        return told if len(told) <= LONGEST_LINE else f"{told[:LONGEST_LINE]} ..."


def foremost(changes: tuple[SchemaChange, ...]) -> tuple[tuple[SchemaChange, ...], int]:
    """Return the first MOST_CHANGES of them as a person reads them, as long as they are kept, and how many others there
    are. That a table or a sequence is new or gone says so of its parts."""
    whole = {each.object: found[1] for each in changes if (found := _WHOLE.match(each.change))}
    told = [
        replace(each, change=_CODED.sub("", whole.get(each.object, each.change))[:LONGEST_CHANGE])
        for each in changes
        if not any(each.object.startswith(f"{name}.") and each.change.startswith(how) for name, how in whole.items())
    ]
    return tuple(told[:MOST_CHANGES]), max(len(told) - MOST_CHANGES, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlError:
    """Errors of one SQLSTATE since the deploy. names: identifiers found in the server's message. count: how often.
    said_by: the service in whose log they stand, and its release; empty for the server's own log. sent_by: the service
    and the release of whose sessions that tells, as far as their addresses do."""

    sqlstate: str
    names: tuple[str, ...]
    message: str
    count: int
    said_by: str = ""
    sent_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenInvariant:
    """An invariant that held before the deploy. by_migration: rows whose xmin is the migration's; by_others: the rest.
    by_somebody: rows of which nobody can tell, where no snapshot says what came after it.

    keys: examples, at most 20.
    """

    invariant: str
    by_migration: int
    by_others: int
    keys: tuple[str, ...]
    by_somebody: int = 0

    @property
    def rows(self) -> int:
        """All of them."""
        return self.by_migration + self.by_others + self.by_somebody


class Fit(StrEnum):
    """Whether a release runs on a schema. UNKNOWN is not YES."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class FitsSchema:
    """Result of executing a release's recorded statements on a clone of today's schema. tried: how many."""

    fit: Fit
    tried: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is known of a deploy's migrations before any of them is applied: they were tried on an empty copy.

    old_release: whether `last_good`, the release to go back to (empty for none), runs on the schema that they leave.
    doors: what nobody could take from the rows again afterwards, one line each. changes: of the schema, the first
    MOST_CHANGES of them; more: how many others there are. unseen: why the copy does not show them, empty where it does.
    """

    old_release: FitsSchema
    last_good: str = ""
    doors: tuple[str, ...] = ()
    changes: tuple[SchemaChange, ...] = ()
    more: int = 0
    unseen: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WayDown:
    """What came of trying the down migrations on an empty copy of today's schema.

    downs: all that have to be run, oldest first; empty where the schema would not be the old one afterwards. reason:
    how it went, one sentence. migrations: what leaves the history. aside: (column or table that came since, values that
    it holds), which the old schema has no place for.
    """

    downs: tuple[Down, ...]
    reason: str
    migrations: tuple[str, ...] = ()
    aside: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WritesSince:
    """Rows written after a restore point by others than the migration. tables: (table, rows), most rows first.

    rate_per_s: rows a second over the last minute known. exact: counted behind the fence, not estimated while writing
    goes on.
    """

    tables: tuple[tuple[str, int], ...]
    rate_per_s: float = 0.0
    exact: bool = False

    @property
    def total(self) -> int:
        """Rows over all tables."""
        return sum(rows for _, rows in self.tables)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseEvidence:
    """Everything the database target could find out, read-only, before a plan is made. way_down: None where no down
    migration was shipped, or none is needed. doubts: why the migration's transactions may not be those that it is
    believed to have made, one sentence each. storage: how much of the indexes was looked at for storage_faults, or why
    nothing was, one line; empty where nothing points at the database."""

    database: str
    changes: tuple[SchemaChange, ...]
    errors: tuple[SqlError, ...]
    broken: tuple[BrokenInvariant, ...]
    old_release: FitsSchema
    writes: WritesSince | None
    storage_faults: tuple[str, ...] = ()
    size_bytes: int = 0
    way_down: WayDown | None = None
    doubts: tuple[str, ...] = ()
    storage: str = ""


class Blame(StrEnum):
    """Who caused it, as far as the evidence goes."""

    NOBODY = "no schema difference"
    MIGRATION = "the migration"
    APPLICATION = "the application, not the migration"
    STORAGE = "the storage"
    NOT_PROVED = "not proved"


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationVerdict:
    """blame, with one sentence for each piece of evidence that led to it."""

    blame: Blame
    reasons: tuple[str, ...]


def judge_migration(evidence: DatabaseEvidence) -> MigrationVerdict:
    """Weigh the evidence. MIGRATION only with a schema difference and a class 42 error that names a changed object, or
    an invariant that held before and is broken in rows that the migration's own transaction wrote."""
    if evidence.storage_faults:
        return MigrationVerdict(blame=Blame.STORAGE, reasons=evidence.storage_faults)
    by_others = tuple(
        f"invariant {b.invariant}: {b.by_others} rows broken by later transactions"
        for b in evidence.broken
        if b.by_others
    )
    if not evidence.changes:
        blame = Blame.APPLICATION if by_others else Blame.NOBODY
        return MigrationVerdict(blame=blame, reasons=("the schema is the one from before the deploy", *by_others))
    changed = {name for change in evidence.changes for name in change.object.split(".")}
    by_migration = (
        *(
            f"SQLSTATE {e.sqlstate}, {e.count} times{f' in the log of {e.said_by}' if e.said_by else ''}"
            f"{f' in sessions of {e.sent_by}' if e.sent_by else ''}, "
            f"names {', '.join(sorted(changed & set(e.names)))}: {e.message}"
            for e in evidence.errors
            if e.sqlstate.startswith("42") and changed & set(e.names)
        ),
        *(
            f"invariant {b.invariant} held before the deploy and is broken in {b.by_migration} rows that the "
            "migration wrote"
            for b in evidence.broken
            if b.by_migration
        ),
    )
    doubts = evidence.doubts if evidence.broken else ()
    if by_migration:
        return MigrationVerdict(blame=Blame.MIGRATION, reasons=(*by_migration, *by_others, *doubts))
    if by_others:
        return MigrationVerdict(blame=Blame.APPLICATION, reasons=(*by_others, *doubts))
    nobody_knows = tuple(
        f"invariant {b.invariant}: {b.by_somebody} rows broken, and without a snapshot nobody can tell by whom"
        for b in evidence.broken
        if b.by_somebody
    )
    unproved = "the schema changed, but no error names a changed object and no invariant broke"
    return MigrationVerdict(blame=Blame.NOT_PROVED, reasons=nobody_knows or (unproved,))
