"""The ledger outside: what users did, and what they were told; one line a transaction, in a file of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

BOUGHT: Final = "new"
PAID: Final = "paid"
REFUNDED: Final = "refunded"
"""A state that one of the migrations brings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Buy:
    """A new order. customer: 0 for the one whom the same transaction made. id: what it got."""

    customer: int
    total: int
    id: int = 0
    kind: Literal["buy"] = "buy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Add:
    """An order's total grows, or shrinks."""

    id: int
    by: int
    kind: Literal["add"] = "add"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """An order is in another state."""

    id: int
    state: str
    kind: Literal["mark"] = "mark"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """An order is another customer's."""

    id: int
    customer: int
    kind: Literal["move"] = "move"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """An order is deleted."""

    id: int
    kind: Literal["cancel"] = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """A new customer. id: what it got."""

    name: str
    id: int = 0
    kind: Literal["join"] = "join"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rename:
    """A customer is called otherwise."""

    id: int
    name: str
    kind: Literal["rename"] = "rename"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """A customer is deleted, and the server takes the orders along."""

    id: int
    kind: Literal["leave"] = "leave"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A new good. since: a moment, as UTC has it."""

    code: str
    name: str
    since: str
    kind: Literal["offer"] = "offer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdraw:
    """A good is deleted."""

    code: str
    kind: Literal["withdraw"] = "withdraw"


@dataclass(frozen=True, slots=True, kw_only=True)
class Renew:
    """A good is deleted, and inserted again with its code and its name."""

    code: str
    name: str
    since: str
    kind: Literal["renew"] = "renew"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recode:
    """A good gets another key. follow: the picks that the server takes along."""

    code: str
    to: str
    follow: tuple[int, ...]
    kind: Literal["recode"] = "recode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """A new pick of a good. id: what it got."""

    good: str
    id: int = 0
    kind: Literal["pick"] = "pick"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repick:
    """A pick is of another good."""

    id: int
    good: str
    kind: Literal["repick"] = "repick"


@dataclass(frozen=True, slots=True, kw_only=True)
class PutBack:
    """A pick is deleted."""

    id: int
    kind: Literal["put back"] = "put back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """A stock grows, or shrinks; in whatever unit it is then."""

    id: int
    by: int
    kind: Literal["take"] = "take"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliver:
    """A new stock. id: what it got."""

    n: int
    id: int = 0
    kind: Literal["deliver"] = "deliver"


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """A new visit, in the part of its day. what: the transaction's token. id: what it got."""

    day: int
    what: str
    id: int = 0
    kind: Literal["visit"] = "visit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Postpone:
    """A visit moves to the part of another day."""

    id: int
    day: int
    what: str
    kind: Literal["postpone"] = "postpone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """A visit is deleted."""

    id: int
    kind: Literal["strike"] = "strike"


AtTheDesk = Buy | Add | Mark | Move | Cancel | Join | Rename | Leave
AtTheMarket = Offer | Withdraw | Renew | Recode | Pick | Repick | PutBack | Take | Deliver | Visit | Postpone | Strike
Act = Annotated[AtTheDesk | AtTheMarket, Field(discriminator="kind")]


class Ended(StrEnum):
    """What the user was told. UNKNOWN: the answer to the commit was lost."""

    ACKNOWLEDGED = "acknowledged"
    UNKNOWN = "unknown"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A transaction. token: what it wrote into the audit. user: whose; acts: in their order, the audit's line is the
    last. later: whether it was said in the words of the release after the migration. why: the server's answer. nested:
    each act had a savepoint of its own. undone: what it did as well, and rolled back to a savepoint."""

    token: str
    user: str
    later: bool
    acts: tuple[Act, ...]
    ended: Ended
    why: str = ""
    nested: bool = False
    undone: tuple[Act, ...] = ()


LINE: Final = TypeAdapter(Line)


def read(path: Path) -> Iterator[Line]:
    """Yield the lines, those of a user in the order in which they were tried."""
    for line in path.read_bytes().splitlines():
        yield LINE.validate_json(line)
