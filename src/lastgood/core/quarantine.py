"""What did not fit the old schema when a database went back, and what a person decided about it.

An entry is never changed: what was decided stands in the journal, and its state is the newest decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from lastgood.core.errors import Refused


class EntryState(StrEnum):
    """What a person decided. UNKNOWN: a requeue began, and nobody has looked yet whether it was committed."""

    WAITING = "waiting"
    UNKNOWN = "unknown"
    REQUEUED = "requeued"
    DISCARDED = "discarded"


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryChange:
    """One row. kind: inserted, updated, deleted, written or emptied. old, new: by column; None where there was no row.

    key: of the row in the old schema's names, empty where the transaction's own rows tell it.
    """

    table: str
    kind: str
    key: Mapping[str, Any] | None = None
    old: Mapping[str, Any] | None = None
    new: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineEntry:
    """A transaction, or where only rows could be told a row (xid is None), that is not in the live data.

    id: unique within its replay. Names are as they were when a transaction wrote; of a row, the old schema's.
    """

    id: str
    replay: str
    reason: str
    changes: tuple[EntryChange, ...]
    xid: int | None = None
    commit_lsn: str | None = None
    committed_at: str | None = None

    @property
    def name(self) -> str:
        """Unique among all of them."""
        return f"{self.replay}/{self.id}"

    @property
    def tables(self) -> tuple[str, ...]:
        """Each once, in the order in which it was written to."""
        return tuple(dict.fromkeys(change.table for change in self.changes))


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineDecision:
    """The newest thing that happened to an entry. xid: of the transaction of the live database that requeues it."""

    state: EntryState
    by: str
    why: str = ""
    xid: int | None = None


WAITS = QuarantineDecision(state=EntryState.WAITING, by="")


def entry_named(entries: Iterable[QuarantineEntry], name: str) -> QuarantineEntry:
    """Return the entry of that id, or of `replay/id`. Raises Refused when there is none, or more than one."""
    found = [entry for entry in entries if name in (entry.id, entry.name)]
    if not found:
        raise Refused(f"{name} is not in quarantine", hint="lastgood quarantine list")
    if len(found) > 1:
        known = ", ".join(entry.name for entry in found)
        raise Refused(f"{name} is the id of more than one: {known}", hint=f"lastgood quarantine show {found[0].name}")
    return found[0]


def numbered(ids: Iterable[str]) -> tuple[str, ...]:
    """Return the ids, each of them once: a row that waits twice gets a number the second time."""
    seen: set[str] = set()
    told: list[str] = []
    for wanted in ids:
        name, number = wanted, 1
        while name in seen:
            number += 1
            name = f"{wanted}~{number}"
        seen.add(name)
        told.append(name)
    return tuple(told)
