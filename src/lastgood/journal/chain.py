"""The hash chain: how a line is sealed to the one before it, and every way in which a stored chain can be wrong.

Pure, and the same for every store. Each line's hash covers the hash before it, its own number, time and event; the
newest hash is also kept in a second place (the head), because a chain alone cannot show that its last line is gone.
Whoever can write both places can rewrite the whole story: only a copy outside of this machine would show that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

GENESIS: Final = "0" * 64
"""Stands before the first line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The newest line of a chain. seq: 0 when there is none yet."""

    seq: int
    hash: str


START: Final = Head(seq=0, hash=GENESIS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A record as it is stored. at: ISO 8601 with its offset. event: JSON text. Nothing here is trusted before
    `faults` was asked."""

    seq: int
    at: str
    event: str
    prev: str
    hash: str

    @property
    def head(self) -> Head:
        """This line as the newest one."""
        return Head(seq=self.seq, hash=self.hash)


def seal(after: Head, *, at: str, event: str) -> Line:
    """Make the line that follows `after`."""
    seq = after.seq + 1
    return Line(seq=seq, at=at, event=event, prev=after.hash, hash=_hash(seq, at, event, after.hash))


def faults(lines: Sequence[Line], *, after: Head) -> tuple[str, ...]:
    """Say what is wrong with lines that should follow `after`, one fault a line; empty when the chain holds.

    lines: ordered by seq, as stored. What follows a fault is compared with what stands there, so that one edited
    record is one fault.
    """
    found: list[str] = []
    previous = after
    for line in lines:
        if line.seq <= previous.seq:
            found.append(f"record {line.seq} is there more than once")
            continue
        if line.seq > previous.seq + 1:
            found.append(f"{_span(previous.seq + 1, line.seq - 1)} missing")
        elif line.prev != previous.hash:
            found.append(f"record {line.seq} does not follow record {previous.seq}: it names another one before it")
        if _hash(line.seq, line.at, line.event, line.prev) != line.hash:
            found.append(f"record {line.seq} was changed: its hash does not fit what it says")
        previous = line.head
    return tuple(found)


def head_fault(last: Line | None, kept: Head) -> str:
    """Compare the newest stored line with the head that was kept apart; empty when they fit.

    A head exactly one line behind fits: the writer died between the two writes, and the line names that head.
    """
    newest = last.head if last else START
    if kept == newest or is_one_behind(last, kept):
        return ""
    if kept.seq > newest.seq:
        return f"{_span(newest.seq + 1, kept.seq)} missing at the end: the head names record {kept.seq}"
    if kept.seq == newest.seq:
        return f"record {newest.seq} is not the one that the head names"
    return f"the head is old: it names record {kept.seq}, the newest is record {newest.seq}"


def is_one_behind(last: Line | None, kept: Head) -> bool:
    """Whether the writer of `last` died before it could move the head."""
    return last is not None and kept == Head(seq=last.seq - 1, hash=last.prev)


def _hash(seq: int, at: str, event: str, prev: str) -> str:
    # surrogatepass: a text that was damaged on disk must fail its hash, not this function
    body = json.dumps([seq, at, event], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(prev.encode("utf-8", "surrogatepass") + body.encode("utf-8", "surrogatepass")).hexdigest()


def _span(first: int, last: int) -> str:
    return f"record {first} is" if first == last else f"records {first} to {last} are"
