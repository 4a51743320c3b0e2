"""What the data must hold after the way back, worked out from the ledger alone, compared with what it holds.

A second opinion on the replay: here a transaction is said again by its intention, and not by its rows. Users have rows
of their own, and to those that they share they only add, so each user's lines can be gone through by themselves.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tests.campaign import market_books
from tests.campaign.ledger import (
    BOUGHT,
    PAID,
    Act,
    Add,
    AtTheMarket,
    Buy,
    Cancel,
    Deliver,
    Ended,
    Join,
    Leave,
    Line,
    Mark,
    Move,
    Pick,
    Rename,
    Visit,
)
from tests.campaign.market import LATER_PART
from tests.campaign.market_books import Market
from tests.campaign.misfit import DEPENDS, DoesNotFit, check
from tests.contract.rigs.postgres_shapes import Shape, Unfit

NO_TOTAL: Final = 'null value in column "total"'
NEGATIVE: Final = "orders_total_check"
NO_STATE: Final = "invalid input value for enum state"
NO_CUSTOMER: Final = "orders_customer_fkey"
NAMESAKE: Final = "customers_name_key"
REST_WAITS: Final = "the rest of its transaction waits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    customer: int
    total: int
    state: str


@dataclass(slots=True)
class Data:
    """The shop's rows by their numbers."""

    orders: dict[int, Order] = field(default_factory=dict[int, Order])
    customers: dict[int, str] = field(default_factory=dict[int, str])
    market: Market = field(default_factory=Market)

    def copy(self) -> Data:
        return Data(dict(self.orders), dict(self.customers), self.market.copy())


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is there afterwards. audit: tokens of the live data with their times; kept_audit: of the replaced database.
    quarantine: its entries. left_out: by how much shared orders grew in a table that the old schema does not have."""

    data: Data
    audit: Sequence[tuple[str, str]]
    kept_audit: Sequence[tuple[str, str]]
    quarantine: Sequence[Mapping[str, Any]]
    left_out: Mapping[int, int]


@dataclass(slots=True)
class Findings:
    """unaccounted, twice: tokens. wrong: anything else, one line each."""

    unaccounted: list[str] = field(default_factory=list[str])
    twice: list[str] = field(default_factory=list[str])
    wrong: list[str] = field(default_factory=list[str])

    @property
    def clean(self) -> bool:
        return not (self.unaccounted or self.twice or self.wrong)


def judge(lines: Sequence[Line], base: Data, found: Found, shape: Shape) -> Findings:
    """Compare. base: the rows before anybody wrote."""
    findings = Findings()
    live, kept = (Counter(token for token, _ in audit) for audit in (found.audit, found.kept_audit))
    rests, waiting = dict(_rests(found, findings)), dict(_waiting(found, findings))
    findings.twice += sorted(token for token, count in live.items() if count > 1 or token in waiting)
    books = Books(base, shape)
    for line in lines:
        there = line.token in live or line.token in waiting
        if line.ended is Ended.FAILED:
            if there or line.token in kept or line.token in rests:
                findings.wrong.append(f"{line.token} failed ({line.why}), and is there")
        elif line.token in kept:
            apart = [act for act in line.acts if line.later and books.is_told_apart(act)]
            _replayed(line, books.replayed(line), live, waiting, findings)
            _told_apart(line, apart, waiting, rests, findings)
        elif line.token in live:
            books.written(line)
        elif line.ended is Ended.ACKNOWLEDGED:
            findings.unaccounted.append(line.token)
    known = {line.token for line in lines}
    findings.wrong += [f"{token} is in no ledger" for token in sorted({*live, *kept, *waiting, *rests} - known)]
    findings.wrong += books.wrong
    _compare_rows(books, found, findings)
    return findings


def _replayed(
    line: Line, misfits: Sequence[str], live: Counter[str], waiting: Mapping[str, Mapping[str, Any]], findings: Findings
) -> None:
    """One that was committed before the fence: in the live data, or explained in quarantine."""
    if line.token not in live and line.token not in waiting:
        findings.unaccounted.append(line.token)
    elif misfits and line.token in live:
        findings.wrong.append(f"{line.token} is in the live data, where it does not fit: {misfits[0]}")
    elif line.token in waiting:
        reason, told = waiting[line.token]["reason"], _told(waiting[line.token])
        if not misfits:
            findings.wrong.append(f"{line.token} fits, and waits in quarantine: {reason}")
        elif not any(misfit in reason for misfit in misfits):
            findings.wrong.append(f"{line.token} waits because of {misfits[0]!r}, and its reason says {reason!r}")
        findings.wrong += [
            f"{line.token} waits, and {act} is among its changes, which it took back"
            for act in line.undone
            if told(act)
        ]


def _told_apart(
    line: Line,
    apart: Sequence[Act],
    waiting: Mapping[str, Mapping[str, Any]],
    rests: Mapping[str, Mapping[str, Any]],
    findings: Findings,
) -> None:
    """All that one wrote which waits is told, by its entry or by that of the rows that are in no log; of one that is in
    the live data nothing is."""
    entry, rest = waiting.get(line.token), rests.get(line.token)
    if entry is not None:
        told = _told(entry, rest["changes"] if rest else [])
        findings.wrong += [
            f"{line.token} waits, and {act} is not among its changes"
            for act in line.acts
            if not (told.apart(act) if act in apart else told(act))
        ]
    if rest is not None and (entry is None or not apart):
        findings.wrong.append(f"a rest of {line.token} waits that it does not have, or without it")


def _rests(found: Found, findings: Findings) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The entries of rows that are in no log, by the tokens of who wrote them last."""
    seen: set[str] = set()
    for entry in found.quarantine:
        if {change["table"] for change in entry["changes"]} != {LATER_PART}:
            continue
        tokens = {change["new"]["what"] for change in entry["changes"]}
        if len(tokens) > 1 or entry["reason"] != REST_WAITS:
            findings.wrong.append(f"rows of a later partition do not wait as they must: {json.dumps(entry)}")
        findings.twice += sorted(tokens & seen)
        seen |= tokens
        yield min(tokens), entry


def _waiting(found: Found, findings: Findings) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The entries by their tokens."""
    seen: set[str] = set()
    for entry in found.quarantine:
        if {change["table"] for change in entry["changes"]} == {LATER_PART}:
            continue
        tokens = [change["new"]["what"] for change in entry["changes"] if change["table"] == "audit"]
        if len(tokens) != 1 or not entry["reason"]:
            findings.wrong.append(f"an entry of the quarantine does not say whose it is, or why: {json.dumps(entry)}")
            continue
        if tokens[0] in seen:
            findings.twice.append(tokens[0])
        seen.add(tokens[0])
        yield tokens[0], entry


class _told:  # noqa: N801 # read as a question
    """Whether an entry of the quarantine tells of an act, with its values. rest: what is told apart."""

    def __init__(self, entry: Mapping[str, Any], rest: Sequence[Mapping[str, Any]] = ()) -> None:
        self._changes, self._rest = entry["changes"], rest

    def apart(self, act: Act) -> bool:
        """Whether it is told, and of its row that is in no log apart."""
        return isinstance(act, AtTheMarket) and market_books.tells(act, self._changes, self._rest)

    def __call__(self, act: Act) -> bool:
        match act:
            case Buy(id=id_, customer=customer):
                return any(new["customer"] == str(customer) for new in self._of("orders", "inserted", id_))
            case Join(id=id_, name=name):
                return any(name in new.values() for new in self._of("customers", "inserted", id_))
            case Rename(id=id_, name=name):
                return any(name in new.values() for new in self._of("customers", "updated", id_))
            case Mark(id=id_, state=state):
                return any(new["state"] == state for new in self._of("orders", "updated", id_))
            case Move(id=id_, customer=customer):
                return any(new["customer"] == str(customer) for new in self._of("orders", "updated", id_))
            case Add(id=id_, by=by):
                return any(
                    int(change["new"]["total"]) - int(change["old"]["total"]) == by
                    for change in self._changes
                    if change["table"] in ("orders", "totals")
                    and change["kind"] == "updated"
                    and change["new"]["id"] == str(id_)
                    and "total" in change["new"]
                )
            case Cancel(id=id_):
                return bool(self._of("orders", "deleted", id_))
            case Leave(id=id_):
                return bool(self._of("customers", "deleted", id_))
            case _:
                return market_books.tells(act, self._changes, None)

    def _of(self, table: str, kind: str, id_: int) -> list[Mapping[str, Any]]:
        row = "old" if kind == "deleted" else "new"
        return [
            change[row]
            for change in self._changes
            if (change["table"], change["kind"]) == (table, kind) and change[row]["id"] == str(id_)
        ]


class Books:
    """The data as it must be, line by line. before: what the replaced database held, but for what the migration made of
    its values; now: what the live one holds."""

    def __init__(self, base: Data, shape: Shape) -> None:
        self.before, self.now = base.copy(), base.copy()
        self.left_out: Counter[int] = Counter()
        self.wrong: list[str] = []
        self._split, self._shape = shape.unfit is Unfit.SPLIT, shape
        self._given: set[tuple[str, int]] = set()
        self._codes: set[str] = set()
        """At which a good was made or deleted, or from or to which one went, by what waits."""

    def is_told_apart(self, act: Act) -> bool:
        """As market_books has it."""
        return isinstance(act, AtTheMarket) and market_books.is_told_apart(act, self._shape)

    def replayed(self, line: Line) -> tuple[str, ...]:
        """Take a line of before the fence. Return what its reason must name one of, empty when it fits: what does not
        fit by itself may also change a row that waits, which is looked at first."""
        self._numbers(line)
        fresh, grown = self.now.copy(), Counter[int]()
        misfit = ""
        without_total = self._split and line.later
        unsayable = next(filter(None, (self._unsayable(act) for act in line.acts if line.later)), "")
        at_the_market = any(isinstance(act, AtTheMarket) and self._follows(act, later=line.later) for act in line.acts)
        follows = at_the_market or any(self._waits(act) for act in line.acts)
        try:
            for act in line.acts:
                if isinstance(act, Add) and without_total:
                    grown[act.id] += act.by
                else:
                    self._fit(act, fresh, without_total=without_total)
        except DoesNotFit as error:
            misfit = str(error)
        for act in line.acts:
            _do(act, self.before, self._shape.zone)
        if not (misfit or unsayable or at_the_market):
            self.now = fresh
            self.left_out += grown
            return ()
        self._codes.update(
            code for act in line.acts if isinstance(act, AtTheMarket) for code in market_books.codes(act)
        )
        if unsayable:
            return (unsayable,)
        return (misfit or DEPENDS, DEPENDS) if follows else (misfit,)

    def _unsayable(self, act: Act) -> str:
        return market_books.unsayable(act, self._shape) if isinstance(act, AtTheMarket) else ""

    def _follows(self, act: AtTheMarket, *, later: bool) -> bool:
        there, here = self.before.market, self.now.market
        return market_books.follows(act, later=later, there=there, here=here, waiting=self._codes, shape=self._shape)

    def _waits(self, act: Act) -> bool:
        """Whether it changes a row of the rigs' shop that was made by what waits, or takes one along."""
        match act:
            case Add(id=id_) | Mark(id=id_) | Move(id=id_) | Cancel(id=id_):
                return id_ in self.before.orders and id_ not in self.now.orders
            case Leave(id=id_) if not _of(self.before, id_) <= self.now.orders.keys():
                return True
            case Rename(id=id_) | Leave(id=id_):
                return id_ in self.before.customers and id_ not in self.now.customers
            case _:
                return False

    def written(self, line: Line) -> None:
        """Take a line of after the swap: the live data took it as it is."""
        self._numbers(line)
        for act in line.acts:
            if not _do(act, self.now, self._shape.zone):
                self.wrong.append(f"{line.token} was acknowledged, and {act} has no row")

    def _numbers(self, line: Line) -> None:
        for act in (*line.acts, *line.undone):
            if isinstance(act, Buy | Join | Pick | Deliver | Visit):
                if (act.kind, act.id) in self._given:
                    self.wrong.append(f"{line.token}: number {act.id} was given out twice")
                self._given.add((act.kind, act.id))

    def _fit(self, act: Act, fresh: Data, *, without_total: bool) -> None:
        """Do it in the data of the old schema. Raises DoesNotFit."""
        before, orders, customers = self.before, fresh.orders, fresh.customers
        match act:
            case Buy(customer=customer, total=total):
                check(not without_total, NO_TOTAL)
                check(total > 0, NEGATIVE)
                check(customer in customers, NO_CUSTOMER)
            case Add(id=id_, by=by):
                check(id_ in orders, DEPENDS)
                check(orders[id_].total + by > 0, NEGATIVE)
            case Mark(id=id_, state=state):
                if before.orders[id_].state == state:
                    return
                check({before.orders[id_].state, state} <= {BOUGHT, PAID}, NO_STATE)
                check(id_ in orders and orders[id_].state == before.orders[id_].state, DEPENDS)
            case Move(id=id_, customer=customer):
                if before.orders[id_].customer == customer:
                    return
                check(id_ in orders and orders[id_].customer == before.orders[id_].customer, DEPENDS)
                check(customer in customers, NO_CUSTOMER)
            case Cancel(id=id_):
                self._goes_as_found(id_, fresh, without_total=without_total)
            case Join(name=name):
                check(name not in customers.values(), NAMESAKE)
            case Rename(id=id_, name=name):
                check(id_ in customers and customers[id_] == before.customers[id_], DEPENDS)
                check(name not in customers.values(), NAMESAKE)
            case Leave(id=id_):
                # whom the server took along there, and nobody else
                here, there = (_of(data, id_) for data in (fresh, before))
                for order in sorted(there):
                    self._goes_as_found(order, fresh, without_total=without_total)
                check(customers.get(id_) == before.customers[id_] and here <= there, DEPENDS)
                for order in there:
                    del orders[order]
            case _:
                market_books.fit(act, before.market, fresh.market, self._shape.zone)
                return
        _do(act, fresh, self._shape.zone)

    def _goes_as_found(self, order: int, fresh: Data, *, without_total: bool) -> None:
        """What is deleted is in everything what the transaction found. Raises DoesNotFit."""
        found, there = self.before.orders[order], fresh.orders.get(order)
        check(found.state in (BOUGHT, PAID), NO_STATE)
        if there is not None and without_total:
            there = replace(there, total=found.total)
        check(there == found, DEPENDS)


def _of(data: Data, customer: int) -> set[int]:
    return {id_ for id_, order in data.orders.items() if order.customer == customer}


def _do(act: Act, data: Data, zone: str) -> bool:
    """Do it, as a server does that takes everything; whether its row was there."""
    orders, customers = data.orders, data.customers
    match act:
        case Buy(id=id_, customer=customer, total=total):
            orders[id_] = Order(customer=customer, total=total, state=BOUGHT)
        case Join(id=id_, name=name):
            customers[id_] = name
        case Leave(id=id_):
            for order in _of(data, id_):
                del orders[order]
            return customers.pop(id_, None) is not None
        case Rename(id=id_, name=name):
            if id_ not in customers:
                return False
            customers[id_] = name
        case Add(id=id_) | Mark(id=id_) | Move(id=id_) | Cancel(id=id_):
            if id_ not in orders:
                return False
            match act:
                case Add(by=by):
                    orders[id_] = replace(orders[id_], total=orders[id_].total + by)
                case Mark(state=state):
                    orders[id_] = replace(orders[id_], state=state)
                case Move(customer=customer):
                    orders[id_] = replace(orders[id_], customer=customer)
                case Cancel():
                    del orders[id_]
        case _:
            return market_books.do(act, data.market, zone)
    return True


def _compare_rows(books: Books, found: Found, findings: Findings) -> None:
    """Every row of the live data, and its sum."""
    must_be, is_there = books.now.market, found.data.market
    tables: tuple[tuple[str, Mapping[Any, object], Mapping[Any, object]], ...] = (
        ("order", books.now.orders, found.data.orders),
        ("customer", books.now.customers, found.data.customers),
        ("good", must_be.goods, is_there.goods),
        ("pick", must_be.picks, is_there.picks),
        ("stock", must_be.stocks, is_there.stocks),
        ("visit", must_be.visits, is_there.visits),
    )
    for name, rows, there in tables:
        for id_ in sorted(rows.keys() | there.keys()):
            if rows.get(id_) != there.get(id_):
                findings.wrong.append(f"{name} {id_} is {there.get(id_)}, and must be {rows.get(id_)}")
    sums = [sum(order.total for order in orders.values()) for orders in (books.now.orders, found.data.orders)]
    if sums[0] != sums[1]:
        findings.wrong.append(f"all totals are {sums[1]}, and must be {sums[0]}")
    sums = [sum(market.stocks.values()) for market in (must_be, is_there)]
    if sums[0] != sums[1]:
        findings.wrong.append(f"all stocks are {sums[1]}, and must be {sums[0]}")
    for id_ in sorted(books.left_out.keys() | found.left_out.keys()):
        must, is_ = books.left_out[id_], found.left_out.get(id_, 0)
        if must != is_:
            findings.wrong.append(f"order {id_} grew by {is_} in what was left out, and must by {must}")
    kept = dict(found.kept_audit)
    findings.wrong += [
        f"{token} was written at {kept[token]}, and says {at}"
        for token, at in found.audit
        if token in kept and kept[token] != at
    ]
