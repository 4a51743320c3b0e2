"""What the market must hold after the way back, act by act, and what an entry of the quarantine must tell of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, assert_never

from tests.campaign.ledger import (
    AtTheMarket,
    Deliver,
    Offer,
    Pick,
    Postpone,
    PutBack,
    Recode,
    Renew,
    Repick,
    Strike,
    Take,
    Visit,
    Withdraw,
)
from tests.campaign.market import EAST_H, LATER_PART, SECOND_DAY
from tests.campaign.misfit import DEPENDS, check
from tests.contract.rigs.postgres_shapes import Refill, Shape

SAME_CODE: Final = "goods_pkey"
SAME_NAME: Final = "goods_name_key"
NO_GOOD: Final = "picks_good_fkey"
ANOTHER_UNIT: Final = "maybe into another unit"
NO_ZONE: Final = "in which time zone its values are meant cannot be told"


@dataclass(frozen=True, slots=True, kw_only=True)
class Good:
    """since: what a clock of the database's zone showed."""

    name: str
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Visited:
    day: int
    what: str


@dataclass(slots=True)
class Market:
    """Its rows by their keys; picks: of which good."""

    goods: dict[str, Good] = field(default_factory=dict[str, Good])
    picks: dict[int, str] = field(default_factory=dict[int, str])
    stocks: dict[int, int] = field(default_factory=dict[int, int])
    visits: dict[int, Visited] = field(default_factory=dict[int, Visited])

    def copy(self) -> Market:
        return Market(dict(self.goods), dict(self.picks), dict(self.stocks), dict(self.visits))

    def picks_of(self, code: str) -> set[int]:
        return {id_ for id_, good in self.picks.items() if good == code}


def unsayable(act: AtTheMarket, shape: Shape) -> str:
    """Why the old schema has no words for it after the migration, whatever is there; empty where it has."""
    match act:
        case Take() | Deliver() if shape.refill is Refill.DELETED:
            return ANOTHER_UNIT
        case Offer() | Withdraw() | Renew() if EAST_H[shape.zone]:
            return NO_ZONE
        case _:
            return ""


def codes(act: AtTheMarket) -> tuple[str, ...]:
    """At which codes it makes a good, deletes one, or has another one stand after it."""
    match act:
        case Offer(code=code) | Withdraw(code=code) | Renew(code=code):
            return (code,)
        case Recode(code=code, to=to):
            return (code, to)
        case _:
            return ()


def is_told_apart(act: AtTheMarket, shape: Shape) -> bool:
    """Whether a row of it is in no log: it goes back as it was last, and waits by itself where it waits."""
    return bool(shape.attach) and isinstance(act, Visit | Postpone) and act.day == SECOND_DAY


def fit(act: AtTheMarket, before: Market, fresh: Market, zone: str) -> None:
    """Do it in the data of the old schema. before: as the transaction found them there. Raises DoesNotFit."""
    goods, picks = fresh.goods, fresh.picks
    match act:
        case Offer(code=code, name=name):
            check(code not in goods, SAME_CODE)
            check(name not in {good.name for good in goods.values()}, SAME_NAME)
        case Withdraw(code=code):
            check(goods.get(code) == before.goods[code], DEPENDS)
            check(not fresh.picks_of(code), NO_GOOD)
        case Renew(code=code):
            check(goods.get(code) == before.goods[code], DEPENDS)
        case Recode(code=code, to=to, follow=follow):
            # nobody follows but who did there
            check(code in goods and fresh.picks_of(code) == set(follow), DEPENDS)
            check(to not in goods, SAME_CODE)
        case Pick(good=code):
            check(code in goods, NO_GOOD)
        case Repick(id=id_, good=code):
            check(picks.get(id_) == before.picks[id_], DEPENDS)
            check(code in goods, NO_GOOD)
        case PutBack(id=id_):
            check(picks.get(id_) == before.picks[id_], DEPENDS)
        case Take(id=id_):
            check(id_ in fresh.stocks, DEPENDS)
        case Postpone(id=id_) | Strike(id=id_):
            check(fresh.visits.get(id_) == before.visits[id_], DEPENDS)
        case Deliver() | Visit():
            pass
        case _:
            assert_never(act)
    do(act, fresh, zone)


def follows(act: AtTheMarket, *, later: bool, there: Market, here: Market, waiting: set[str], shape: Shape) -> bool:
    """Whether it changes a row that was made, deleted or given its key by what waits, or by the migration, or refers to
    one. waiting: such codes."""
    match act:
        case Take() | Deliver() if later and shape.refill is Refill.EMPTIED:
            return True
        case Pick(good=code):
            return code in waiting
        case Repick(id=id_, good=code):
            return code in waiting or (id_ in there.picks and id_ not in here.picks)
        case PutBack(id=id_):
            return id_ in there.picks and id_ not in here.picks
        case Recode(code=code, to=to, follow=follow):
            return not waiting.isdisjoint((code, to)) or not here.picks.keys() >= set(follow)
        case Take(id=id_):
            return id_ in there.stocks and id_ not in here.stocks
        case Postpone(id=id_) | Strike(id=id_):
            return id_ in there.visits and id_ not in here.visits
        case _:
            return not waiting.isdisjoint(codes(act))


def do(act: AtTheMarket, market: Market, zone: str) -> bool:
    """Do it, as a server does that takes everything; whether its row was there."""
    goods, picks, stocks, visits = market.goods, market.picks, market.stocks, market.visits
    match act:
        case Offer(code=code, name=name, since=since):
            goods[code] = Good(name=name, since=_clock(since, zone))
        case Renew(code=code, since=since):
            if code not in goods:
                return False
            goods[code] = replace(goods[code], since=_clock(since, zone))
        case Withdraw(code=code):
            return goods.pop(code, None) is not None
        case Recode(code=code, to=to):
            if code not in goods:
                return False
            for pick in market.picks_of(code):
                picks[pick] = to
            goods[to] = goods.pop(code)
        case Pick(id=id_, good=code) | Repick(id=id_, good=code):
            there, picks[id_] = id_ in picks, code
            return there or isinstance(act, Pick)
        case PutBack(id=id_):
            return picks.pop(id_, None) is not None
        case Take(id=id_, by=by):
            there, stocks[id_] = id_ in stocks, stocks.get(id_, 0) + by
            return there
        case Deliver(id=id_, n=n):
            stocks[id_] = n
        case Visit(id=id_, day=day, what=what) | Postpone(id=id_, day=day, what=what):
            there, visits[id_] = id_ in visits, Visited(day=day, what=what)
            return there or isinstance(act, Visit)
        case Strike(id=id_):
            return visits.pop(id_, None) is not None
        case _:
            assert_never(act)
    return True


def _clock(since: str, zone: str) -> str:
    return str(datetime.fromisoformat(since) + timedelta(hours=EAST_H[zone]))


def tells(act: AtTheMarket, changes: Sequence[Mapping[str, Any]], apart: Sequence[Mapping[str, Any]] | None) -> bool:
    """Whether an entry of the quarantine tells of it, with its values. apart: what tells of it where it is in no log;
    None where it is in one."""

    def of(table: str, kind: str, **values: object) -> bool:
        return any(rows for rows in _rows(changes, table, kind) if _has(rows[-1], values))

    match act:
        case Offer(code=code, name=name, since=since):
            return _is_offered(changes, code, name, since)
        case Renew(code=code, name=name, since=since):
            return of("goods", "deleted", code=code) and _is_offered(changes, code, name, since)
        case Withdraw(code=code):
            return of("goods", "deleted", code=code)
        case Recode(code=code, to=to, follow=follow):
            moved = [rows for rows in _rows(changes, "goods", "updated") if _has(rows[0], {"code": code})]
            led = [rows for rows in _rows(changes, "picks", "updated") if _has(rows[0], {"good": code})]
            return (
                any(_has(new, {"code": to}) for _, new in moved)
                and {int(new["id"]) for _, new in led if _has(new, {"good": to})} >= set(follow)
            )  # fmt: skip
        case Pick(id=id_, good=code):
            return of("picks", "inserted", id=id_, good=code)
        case Repick(id=id_, good=code):
            return of("picks", "updated", id=id_, good=code)
        case PutBack(id=id_):
            return of("picks", "deleted", id=id_)
        case Take(id=id_, by=by):
            grown = (int(new["n"]) - int(old["n"]) for old, new in _rows(changes, "stocks", "updated", id=id_))
            return by in grown
        case Deliver(id=id_, n=n):
            return of("stocks", "inserted", id=id_, n=n)
        case Visit(id=id_, day=day, what=what):
            return _is_visited(changes, apart, id_, day, what)
        case Postpone(id=id_, day=day, what=what):
            return of("visits_1", "deleted", id=id_) and _is_visited(changes, apart, id_, day, what)
        case Strike(id=id_):
            return of("visits_1", "deleted", id=id_)
        case _:
            assert_never(act)


def _rows(changes: Sequence[Mapping[str, Any]], table: str, kind: str, **values: object) -> Iterator[Any]:
    """What the changes of one kind tell of a table's rows: (before, after), or the one that there is."""
    for change in changes:
        if (change["table"], change["kind"]) == (table, kind):
            rows = tuple(change[when] for when in ("old", "new") if when in change)
            if _has(rows[-1], values):
                yield rows


def _has(row: Mapping[str, Any], values: Mapping[str, object]) -> bool:
    return all(row.get(name) == str(value) for name, value in values.items())


def _is_offered(changes: Sequence[Mapping[str, Any]], code: str, name: str, since: str) -> bool:
    """A moment is told as UTC has it; so is what a clock shows in a database of that zone."""
    return any(
        new["since"].removesuffix("+00") == since
        for (new,) in _rows(changes, "goods", "inserted", code=code, name=name)
    )


def _is_visited(
    changes: Sequence[Mapping[str, Any]], apart: Sequence[Mapping[str, Any]] | None, id_: int, day: int, what: str
) -> bool:
    part = "visits_1" if day != SECOND_DAY else "visits_rest" if apart is None else LATER_PART
    return any(_rows(changes if apart is None else apart, part, "inserted", id=id_, day=day, what=what))
