"""Reads what the plugin pgoutput writes: the changes of each transaction, in the order of the commits.

Version 1 of its protocol, in text (PostgreSQL docs 55.9, "Logical Replication Message Formats", 15 to 18): with that
version a transaction arrives whole, after its commit. pgoutput is part of every server, test_decoding is not.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Final, TypeAlias

from lastgood.core.errors import Bug

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""From which Postgres counts microseconds."""


class Unsent(Enum):
    """A long value that was stored apart and did not change: the server does not read it again."""

    UNCHANGED = "unchanged"


Value: TypeAlias = str | Unsent | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """A table as it was when the transaction wrote to it. columns: names in the order of their numbers, without those
    that are dropped or generated; types: (oid, modifier) of each. whole: whether old rows are sent whole, not only
    their key."""

    oid: int
    schema: str
    name: str
    whole: bool
    columns: tuple[str, ...]
    types: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowChange:
    """One row. old: None for a new row, and where only its key could have been sent and that did not change. new: None
    for a row that was deleted. Values in the order of the relation's columns."""

    relation: Relation
    old: tuple[Value, ...] | None
    new: tuple[Value, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncation:
    """These tables were emptied."""

    relations: tuple[Relation, ...]


Change: TypeAlias = RowChange | Truncation


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """One that was committed. xid: 32 bits, as xmin shows it. end: position behind it, from which the next one is read;
    commit: of its commit record, the same number whenever it is read. aside: how many changes are not in `changes`,
    because whoever reads took them as they came."""

    xid: int
    commit: int
    end: int
    committed_at: datetime
    changes: tuple[Change, ...]
    aside: int = 0


@dataclass(slots=True)
class _Reader:
    data: bytes
    at: int = 0

    def take(self, layout: str) -> tuple[int, ...]:
        found = struct.unpack_from("!" + layout, self.data, self.at)
        self.at += struct.calcsize("!" + layout)
        return found

    def number(self, layout: str) -> int:
        return self.take(layout)[0]

    def letter(self) -> str:
        self.at += 1
        return chr(self.data[self.at - 1])

    def text(self) -> str:
        end = self.data.index(b"\0", self.at)
        found = self.data[self.at : end].decode()
        self.at = end + 1
        return found

    def row(self) -> tuple[Value, ...]:
        return tuple(self._value() for _ in range(self.number("H")))

    def _value(self) -> Value:
        match self.letter():
            case "n":
                return None
            case "u":
                return Unsent.UNCHANGED
            case "t":
                length = self.number("i")
                self.at += length
                return self.data[self.at - length : self.at].decode()
            case other:
                raise Bug(f"pgoutput sent a value of kind {other!r}, which is not of its text format")


@dataclass(slots=True)
class _Open:
    xid: int
    commit: int
    committed_at: datetime
    changes: list[Change] = field(default_factory=list[Change])
    aside: int = 0


class Decoder:
    """Of one reading of a slot: a table is described once, before its first change.

    take: is shown each change as it comes, with the transaction's number, and says whether it took it. A migration may
    rewrite more rows in one transaction than fit into memory.
    """

    def __init__(self, take: Callable[[int, Change], bool] = lambda _xid, _change: False) -> None:
        self._relations: dict[int, Relation] = {}
        self._take = take

    def transactions(self, messages: Iterable[bytes]) -> Iterator[Transaction]:
        """Yield each transaction once its commit was read. One that is cut off is not yielded.

        Raises Bug for a message that this version of the protocol does not have: nothing is passed over.
        """
        open_: _Open | None = None
        for message in messages:
            reader = _Reader(message)
            kind = reader.letter()
            if kind == "B":
                commit, committed_at, xid = reader.take("QqI")
                open_ = _Open(xid=xid, commit=commit, committed_at=_EPOCH + timedelta(microseconds=committed_at))
            elif open_ is None:
                raise Bug(f"pgoutput sent {kind!r} outside of a transaction")
            elif kind == "C":
                _, _, end, _ = reader.take("BQQq")
                yield Transaction(
                    xid=open_.xid,
                    commit=open_.commit,
                    end=end,
                    committed_at=open_.committed_at,
                    changes=tuple(open_.changes),
                    aside=open_.aside,
                )
                open_ = None
            elif (change := self._change(kind, reader)) is None:
                continue
            elif self._take(open_.xid, change):
                open_.aside += 1
            else:
                open_.changes.append(change)

    def _change(self, kind: str, reader: _Reader) -> Change | None:
        match kind:
            case "R":
                self._describe(reader)
            case "I":
                relation = self._relations[reader.number("I")]
                reader.letter()
                return RowChange(relation=relation, old=None, new=reader.row())
            case "U":
                relation = self._relations[reader.number("I")]
                old = None
                if reader.letter() in "KO":  # before the new row: the old one, or its key
                    old = reader.row()
                    reader.letter()
                return RowChange(relation=relation, old=old, new=reader.row())
            case "D":
                relation = self._relations[reader.number("I")]
                reader.letter()
                return RowChange(relation=relation, old=reader.row(), new=None)
            case "T":
                count, _ = reader.take("IB")
                oids = reader.take(f"{count}I")
                return Truncation(relations=tuple(self._relations[oid] for oid in oids))
            case "Y" | "O" | "M":  # a type's name, an origin, a message of the application: no change of a row
                pass
            case _:
                raise Bug(f"pgoutput sent a message {kind!r}, which version 1 of its protocol does not have")
        return None

    def _describe(self, reader: _Reader) -> None:
        oid = reader.number("I")
        schema, name, identity = reader.text(), reader.text(), reader.letter()
        columns: list[str] = []
        types: list[tuple[int, int]] = []
        for _ in range(reader.number("H")):
            reader.number("B")
            columns.append(reader.text())
            types.append((reader.number("I"), reader.number("i")))
        self._relations[oid] = Relation(
            oid=oid,
            schema=schema or "pg_catalog",
            name=name,
            whole=identity == "f",
            columns=tuple(columns),
            types=tuple(types),
        )


def messages(sent: Iterable[bytes], *, prefix: str) -> Iterator[tuple[int, str]]:
    """Yield (transaction, text) of the messages that were written into transactions under `prefix`, and pass over all
    else. sent: as read with the option `messages`, which servers have from PostgreSQL 14 on."""
    xid = 0
    for data in sent:
        reader = _Reader(data)
        match reader.letter():
            case "B":
                _, _, xid = reader.take("QqI")
            case "M":
                flags, _ = reader.take("BQ")
                if flags & 1 and reader.text() == prefix:
                    length = reader.number("i")
                    yield xid, data[reader.at : reader.at + length].decode()
            case _:
                pass
