"""Invalid rows put right one by one: what a person is shown, agrees to, and nothing else.

A row that the restore point has gets back the columns that break the invariant. For one that it does not have, or where
more than one column would do, the team's own statement for that invariant says what it should be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnRepair:
    """A column of a row: its value now, and the one that it gets; as the server writes them, None for NULL."""

    column: str
    now: str | None
    becomes: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRepair:
    """An invalid row. key: column and value of its primary key. breaks: the invariants that it breaks, each with the
    key by which the invariant names it.

    sources: where the new values are from: the restore point, or a statement.
    """

    schema: str
    table: str
    key: tuple[tuple[str, str], ...]
    breaks: tuple[tuple[str, str], ...]
    columns: tuple[ColumnRepair, ...]
    sources: tuple[str, ...]

    @property
    def name(self) -> str:
        """As people say it."""
        table = self.table if self.schema == "public" else f"{self.schema}.{self.table}"
        return f"{table} {', '.join(value for _, value in self.key)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRepaired:
    """Invalid rows for which there is no repair, and why. keys: the first 20 of them."""

    invariant: str
    rows: int
    keys: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairPlan:
    """What can be put right, and what cannot, as seen at one moment. since, taken_at: the restore point that it was
    compared with."""

    since: str
    taken_at: datetime
    rows: tuple[RowRepair, ...]
    left: tuple[NotRepaired, ...]


class RepairState(StrEnum):
    """UNKNOWN: it began, and nobody has looked yet whether it was committed."""

    UNKNOWN = "unknown"
    DONE = "done"
    NOTHING = "nothing changed"


def by_reason(found: Iterable[tuple[str, str, str]], *, most: int) -> tuple[NotRepaired, ...]:
    """Put (invariant, key, why) together, by invariant and reason; the first `most` keys of each are told."""
    kept: dict[tuple[str, str], list[str]] = {}
    for invariant, key, why in found:
        kept.setdefault((invariant, why), []).append(key)
    return tuple(
        NotRepaired(invariant=invariant, rows=len(keys), keys=tuple(keys[:most]), why=why)
        for (invariant, why), keys in kept.items()
    )


def differing(now: Mapping[str, str | None], then: Mapping[str, str | None]) -> tuple[ColumnRepair, ...]:
    """Every column that is not as it was then, in the order of the table."""
    return tuple(
        ColumnRepair(column=name, now=value, becomes=then[name])
        for name, value in now.items()
        if name in then and then[name] != value
    )


def smallest(
    columns: tuple[ColumnRepair, ...], makes_valid: Callable[[tuple[ColumnRepair, ...]], bool]
) -> tuple[tuple[ColumnRepair, ...], ...]:
    """Return the smallest changes that make a row valid, by trying: what else it holds may be a user's good write.

    Each column alone, and all that do are returned: between them only a person can choose. Where none does, all of them
    together, and from these each is left out that is not needed. Empty where they do not either.
    """
    if alone := tuple((one,) for one in columns if makes_valid((one,))):
        return alone
    needed = columns
    if len(columns) < 2 or not makes_valid(columns):  # one was tried alone
        return ()
    for one in columns:
        without = tuple(other for other in needed if other is not one)
        if makes_valid(without):
            needed = without
    return (needed,)
