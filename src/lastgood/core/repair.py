"""Invalid rows put right one by one: what a person is shown, agrees to, and nothing else.

A row that the restore point has gets back the columns that break the invariant. For one that it does not have, the
team's own statement for that invariant says what it should be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnRepair:
    """A column of a row: its value now, and the one that it gets; as the server writes them, None for NULL."""

    column: str
    now: str | None
    becomes: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRepair:
    """An invalid row. key: its column, and the value that finds the row. invariants: those that it breaks.

    source: the restore point that has the old values, or the statement that made the new ones.
    """

    schema: str
    table: str
    key: tuple[str, str]
    invariants: tuple[str, ...]
    columns: tuple[ColumnRepair, ...]
    source: str

    @property
    def name(self) -> str:
        """As people say it."""
        return f"{self.table if self.schema == 'public' else f'{self.schema}.{self.table}'} {self.key[1]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRepaired:
    """Invalid rows for which there is no repair. keys: the first 20 of them. why: of the first, where they differ."""

    invariant: str
    rows: int
    keys: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairPlan:
    """What can be put right, and what cannot, as seen at one moment. since: the restore point that it was compared
    with."""

    since: str
    rows: tuple[RowRepair, ...]
    left: tuple[NotRepaired, ...]


class RepairState(StrEnum):
    """UNKNOWN: it began, and nobody has looked yet whether it was committed."""

    UNKNOWN = "unknown"
    DONE = "done"
    NOTHING = "nothing changed"


def by_reason(found: Iterable[tuple[str, str, str]], *, most: int) -> tuple[NotRepaired, ...]:
    """Put (invariant, key, why) together, by invariant; the first `most` keys of each are told."""
    kept: dict[str, list[tuple[str, str]]] = {}
    for invariant, key, why in found:
        kept.setdefault(invariant, []).append((key, why))
    return tuple(
        NotRepaired(invariant=name, rows=len(rows), keys=tuple(key for key, _ in rows[:most]), why=rows[0][1])
        for name, rows in kept.items()
    )


def candidates(now: Mapping[str, str | None], then: Mapping[str, str | None]) -> tuple[tuple[ColumnRepair, ...], ...]:
    """What to try for a row, in this order: each column that differs alone, in the order of the table, then all of
    them. The first that makes the row valid is the repair: what else the row holds may be a user's good write."""
    differ = tuple(
        ColumnRepair(column=name, now=value, becomes=then[name])
        for name, value in now.items()
        if name in then and then[name] != value
    )
    alone = tuple((one,) for one in differ)
    return (*alone, differ) if len(differ) > 1 else alone
