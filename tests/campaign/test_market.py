"""The accounts find at the market what they are there to find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import pytest

from tests.campaign.accounts import REST_WAITS, Books, Data, Findings, Found, judge
from tests.campaign.ledger import (
    Act,
    AtTheMarket,
    Buy,
    Deliver,
    Ended,
    Line,
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
from tests.campaign.market import SHAPES
from tests.campaign.market_books import (
    ANOTHER_UNIT,
    NO_GOOD,
    NO_ZONE,
    SAME_CODE,
    SAME_NAME,
    Good,
    Market,
    Visited,
    fit,
    tells,
)
from tests.campaign.misfit import DEPENDS, DoesNotFit

ANEW, ZONED = "rows put in anew, a later partition", "a table emptied, a time with a zone"
AT, SINCE, IN_TOKYO = "2026-01-01", "2026-03-01 20:00:00", "2026-03-02 05:00:00"
BAD: Final = Buy(customer=1, total=-5, id=9)


def good(name: str) -> Good:
    return Good(name=name, since=SINCE)


def base() -> Data:
    market = Market(
        goods={"a": good("A"), "b": good("B")},
        picks={1: "a"},
        stocks={1: 10},
        visits={1: Visited(day=1, what="z"), 2: Visited(day=1, what="z")},
    )
    return Data(customers={1: "one"}, market=market)


def line(token: str, *acts: Act, later: bool = True, undone: tuple[Act, ...] = ()) -> Line:
    return Line(token=token, user="u", later=later, acts=acts, ended=Ended.ACKNOWLEDGED, undone=undone)


def change(table: str, kind: str, **row: object) -> dict[str, Any]:
    return {"table": table, "kind": kind, ("old" if kind == "deleted" else "new"): {k: str(v) for k, v in row.items()}}


def changed(table: str, old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, Any]:
    before, after = ({name: str(value) for name, value in row.items()} for row in (old, new))
    return {"table": table, "kind": "updated", "old": before, "new": after}


def entry(token: str, reason: str, *changes: Mapping[str, Any]) -> dict[str, Any]:
    return {"reason": reason, "changes": [*changes, change("audit", "inserted", what=token)]}


BOUGHT: Final = change("orders", "inserted", id=9, customer=1)
LINES: Final = (
    line("1", Recode(code="a", to="c", follow=(1,)), Deliver(n=4, id=2), later=False, undone=(Deliver(n=1, id=3),)),
    line("2", Take(id=1, by=500)),
    line("3", Visit(day=2, what="3", id=3), Postpone(id=1, day=2, what="3")),
    line("4", BAD, Visit(day=2, what="4", id=4), Postpone(id=2, day=2, what="4")),
    line("5", Withdraw(code="b"), Offer(code="d", name="B", since=SINCE)),
)
TAKEN: Final = entry(
    "2", f"the migration rewrote it, {ANOTHER_UNIT}", changed("stocks", {"n": 1000}, {"id": 1, "n": 1500})
)
WAITS: Final[Mapping[str, Any]] = entry(
    "4", "change 1: orders_total_check", BOUGHT, change("visits_1", "deleted", id=2)
)
REST: Final[Mapping[str, Any]] = {
    "reason": REST_WAITS,
    "changes": [change("visits_2", "inserted", id=id_, day=2, what="4") for id_ in (2, 4)],
}
LIVE: Final = Market(
    goods={"c": good("A"), "d": good("B")},
    picks={1: "c"},
    stocks={1: 10, 2: 4},
    visits={1: Visited(day=2, what="3"), 2: Visited(day=1, what="z"), 3: Visited(day=2, what="3")},
)
FOUND: Final = Found(
    data=Data(customers={1: "one"}, market=LIVE),
    audit=[(token, AT) for token in "135"],
    kept_audit=[(token, AT) for token in "12345"],
    quarantine=[TAKEN, WAITS, REST],
    left_out={},
)


def judged(found: Found) -> Findings:
    return judge(LINES, base(), found, SHAPES[ANEW])


def live(**tables: Any) -> Found:  # noqa: ANN401 # as the market has them
    return replace(FOUND, data=replace(FOUND.data, market=replace(LIVE, **tables)))


def waiting(*entries: Mapping[str, Any]) -> Found:
    return replace(FOUND, quarantine=entries)


def test_a_market_that_is_as_the_ledger_says_is_clean() -> None:
    assert judged(FOUND) == Findings()


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(live(stocks={1: 510, 2: 4}), id="what counts in another unit was added"),
        pytest.param(live(stocks={1: 10, 2: 4, 3: 1}), id="what was rolled back to a savepoint is there"),
        pytest.param(live(picks={1: "a"}), id="a pick did not follow its good"),
        pytest.param(live(goods={"c": good("A")}), id="a good is gone whose name was used again"),
        pytest.param(live(goods={**LIVE.goods, "b": good("B")}), id="a good is there twice"),
        pytest.param(live(goods={**LIVE.goods, "d": Good(name="B", since=IN_TOKYO)}), id="a time is another"),
        pytest.param(live(visits={**LIVE.visits, 4: Visited(day=2, what="4")}), id="half of a transaction is there"),
        pytest.param(live(visits={**LIVE.visits, 1: Visited(day=1, what="z")}), id="a row did not move"),
        pytest.param(waiting(TAKEN, WAITS), id="rows in no log are nowhere"),
        pytest.param(waiting(TAKEN, WAITS, {**REST, "changes": REST["changes"][:1]}), id="one of them is nowhere"),
        pytest.param(waiting(TAKEN, WAITS, {**REST, "reason": "because"}), id="they wait because of something else"),
        pytest.param(
            waiting(TAKEN, entry("4", WAITS["reason"], *WAITS["changes"][:2], *REST["changes"])),
            id="they do not wait apart",
        ),
        pytest.param(waiting({**TAKEN, "reason": DEPENDS}, WAITS, REST), id="a reason that does not explain"),
        pytest.param(
            waiting(TAKEN, WAITS, REST, {**REST, "changes": [change("visits_2", "inserted", what="3")]}),
            id="a rest of what is there",
        ),
    ],
)
def test_what_is_not_as_it_must_be_at_the_market_is_told(found: Found) -> None:
    assert judged(found).wrong


def test_rows_in_no_log_that_wait_twice_would_be_applied_twice() -> None:
    assert judged(waiting(TAKEN, WAITS, REST, REST)).twice == ["4"]


def test_an_entry_that_tells_what_was_rolled_back_is_told() -> None:
    undone = Deliver(n=1, id=3)
    lines = (line("1", BAD, undone=(undone,)),)
    found = replace(FOUND, data=base(), audit=[], kept_audit=[("1", AT)])
    fits = replace(found, quarantine=[entry("1", "orders_total_check", BOUGHT)])
    told = replace(
        found, quarantine=[entry("1", "orders_total_check", BOUGHT, change("stocks", "inserted", id=3, n=1))]
    )
    assert judge(lines, base(), fits, SHAPES[ANEW]) == Findings()
    assert judge(lines, base(), told, SHAPES[ANEW]).wrong


def test_a_moment_in_tokyo_is_what_clocks_show_there_and_waits_once_it_has_a_zone() -> None:
    lines = (
        line("1", Offer(code="c", name="C", since=SINCE), later=False),
        line("2", Offer(code="d", name="D", since=SINCE)),
        line("3", Deliver(n=100, id=2)),
        line("4", Recode(code="a", to="e", follow=(1,))),
    )
    data = base()
    data.market.goods = {"e": good("A"), "b": good("B"), "c": Good(name="C", since=IN_TOKYO)}
    data.market.picks = {1: "e"}
    found = Found(
        data=data,
        audit=[("1", AT), ("4", AT)],
        kept_audit=[(token, AT) for token in "1234"],
        quarantine=[
            entry("2", f"goods.since: {NO_ZONE}", change("goods", "inserted", code="d", name="D", since=f"{SINCE}+00")),
            entry("3", f"stocks: {DEPENDS}", change("stocks", "inserted", id=2, n=100)),
        ],
        left_out={},
    )
    assert judge(lines, base(), found, SHAPES[ZONED]) == Findings()
    data.market.goods["c"] = good("C")
    assert judge(lines, base(), found, SHAPES[ZONED]).wrong


@pytest.mark.parametrize(
    "acts, why",
    [
        ([Offer(code="a", name="C", since=SINCE)], SAME_CODE),
        ([Offer(code="c", name="A", since=SINCE)], SAME_NAME),
        ([Withdraw(code="a")], NO_GOOD),
        ([Recode(code="b", to="a", follow=())], SAME_CODE),
        ([Recode(code="a", to="c", follow=())], DEPENDS),
        ([Pick(good="c", id=2)], NO_GOOD),
        ([PutBack(id=1), Withdraw(code="a")], ""),
        ([Renew(code="b", name="B", since=IN_TOKYO)], ""),
        (
            [
                Recode(code="a", to="away", follow=(1,)),
                Recode(code="b", to="a", follow=()),
                Recode(code="away", to="b", follow=(1,)),
            ],
            "",
        ),
    ],
)
def test_what_the_old_schema_does_not_take_is_known(acts: list[AtTheMarket], why: str) -> None:
    def done() -> str:
        fresh = base().market
        try:
            for act in acts:
                fit(act, base().market, fresh, "UTC")
        except DoesNotFit as misfit:
            return str(misfit)
        return ""

    assert done() == why


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(Offer(code="a", name="C", since=SINCE), id="a good where one left"),
        pytest.param(Renew(code="c", name="A", since=SINCE), id="one that came"),
        pytest.param(Withdraw(code="c"), id="one that is gone again"),
        pytest.param(Pick(good="c", id=2), id="a pick of it"),
        pytest.param(Repick(id=1, good="c"), id="a pick that becomes one of it"),
    ],
)
def test_who_comes_to_a_key_of_what_waits_waits_as_well(second: AtTheMarket) -> None:
    books = Books(base(), SHAPES[ANEW])
    assert books.replayed(line("1", BAD, Recode(code="a", to="c", follow=(1,)))) == ("orders_total_check",)
    assert DEPENDS in books.replayed(line("2", second))
    assert books.now.market == base().market


def test_a_pick_of_what_stands_there_now_is_none_of_what_stands_there_after_the_way_back() -> None:
    books = Books(base(), SHAPES[ANEW])
    books.replayed(line("1", BAD, Recode(code="a", to="c", follow=(1,))))
    books.replayed(line("2", Recode(code="b", to="a", follow=())))
    assert books.replayed(line("3", Pick(good="a", id=2))) == (DEPENDS, DEPENDS)
    assert books.now.market == base().market


def test_a_name_of_what_waits_is_not_free() -> None:
    books = Books(base(), SHAPES[ANEW])
    books.replayed(line("1", BAD, Withdraw(code="b")))
    assert books.replayed(line("2", Offer(code="c", name="B", since=SINCE))) == (SAME_NAME,)


@pytest.mark.parametrize(
    "act, told",
    [
        (Strike(id=2), change("visits_1", "deleted", id=2)),
        (Take(id=1, by=-5), changed("stocks", {"n": 10}, {"id": 1, "n": 5})),
        (PutBack(id=1), change("picks", "deleted", id=1)),
        (Visit(day=2, what="t", id=4), change("visits_rest", "inserted", id=4, day=2, what="t")),
    ],
)
def test_an_entry_tells_of_an_act(act: AtTheMarket, told: Mapping[str, Any]) -> None:
    assert tells(act, [told], None)
    assert not tells(act, [{**told, "table": "elsewhere"}], None)


def test_an_entry_tells_of_a_key_that_changed_only_with_who_followed() -> None:
    act = Recode(code="a", to="c", follow=(1,))
    moved = changed("goods", {"code": "a"}, {"code": "c"})
    followed = changed("picks", {"id": 1, "good": "a"}, {"id": 1, "good": "c"})
    assert tells(act, [moved, followed], None)
    assert not tells(act, [moved], None)
    assert not tells(act, [followed], None)
