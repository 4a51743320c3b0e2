"""The accounts find what they are there to find: data that are as they must be are clean, and each way of being wrong
is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.campaign.accounts import NEGATIVE, NO_STATE, Books, Data, Findings, Found, Order, judge
from tests.campaign.ledger import PAID, REFUNDED, Act, Add, Buy, Cancel, Ended, Join, Leave, Line, Mark, Move
from tests.campaign.misfit import DEPENDS
from tests.contract.rigs.postgres_shapes import SHAPES, SPLIT

AT = "2026-01-01"


def base() -> Data:
    orders = {id_: Order(customer=1, total=10, state="new") for id_ in (1, 2)}
    return Data(orders=orders, customers={1: "customer 1", 2: "customer 2"})


def line(token: str, *acts: Act, ended: Ended = Ended.ACKNOWLEDGED, later: bool = True) -> Line:
    return Line(token=token, user=token[0], later=later, acts=acts, ended=ended)


def entry(token: str, reason: str, *changes: Mapping[str, Any]) -> dict[str, Any]:
    told = {"table": "audit", "kind": "inserted", "new": {"what": token}}
    return {"reason": reason, "changes": [*changes, told]}


def bought(id_: int, customer: int = 1) -> dict[str, Any]:
    return {"table": "orders", "kind": "inserted", "new": {"id": str(id_), "customer": str(customer)}}


LINES = (
    line("a-1", Buy(customer=1, total=30, id=3), Add(id=1, by=5), later=False),
    line("a-2", Buy(customer=1, total=-5, id=4)),
    line("a-3", Mark(id=4, state=PAID)),
    line("b-1", Add(id=1, by=2)),
    line("b-2", Add(id=2, by=7), ended=Ended.UNKNOWN),
    line("b-3", Cancel(id=2), ended=Ended.UNKNOWN),
    line("b-4", Cancel(id=1), ended=Ended.FAILED),
    line("a-4", Move(id=3, customer=2), later=False),
)
BEFORE_THE_FENCE = ("a-1", "a-2", "a-3", "b-1", "b-2")
MARKED = {"table": "orders", "kind": "updated", "old": {"state": "new"}, "new": {"id": "4", "state": PAID}}
CHANGED = "change 1: "
FOUND = Found(
    data=Data(
        orders={
            1: Order(customer=1, total=17, state="new"),
            2: Order(customer=1, total=17, state="new"),
            3: Order(customer=2, total=30, state="new"),
        },
        customers=base().customers,
    ),
    audit=[(token, AT) for token in ("a-1", "b-1", "b-2", "a-4")],
    kept_audit=[(token, AT) for token in BEFORE_THE_FENCE],
    quarantine=[
        entry("a-2", CHANGED + 'violates check constraint "orders_total_check"', bought(4)),
        entry("a-3", CHANGED + "it depends on one in quarantine", MARKED),
    ],
    left_out={},
)


def judged(found: Found, lines: tuple[Line, ...] = LINES, shape: str = "rename and backfill") -> Findings:
    return judge(lines, base(), found, SHAPES[shape])


def without(token: str) -> list[tuple[str, str]]:
    return [(each, at) for each, at in FOUND.audit if each != token]


def test_data_that_are_as_the_ledger_says_are_clean() -> None:
    assert judged(FOUND) == Findings()


@pytest.mark.parametrize("token", ["a-1", "b-1", "a-4", "b-2"])
def test_a_transaction_that_is_nowhere_is_not_accounted_for(token: str) -> None:
    assert token in judged(replace(FOUND, audit=without(token))).unaccounted


def test_one_that_should_wait_and_is_nowhere_is_not_accounted_for() -> None:
    assert "a-3" in judged(replace(FOUND, quarantine=FOUND.quarantine[:1])).unaccounted


def test_one_whose_answer_was_lost_and_that_was_never_committed_is_nobodys_loss() -> None:
    assert "b-3" not in judged(FOUND).unaccounted


@pytest.mark.parametrize("token", ["a-1", "b-2"])
def test_one_that_is_there_twice_was_applied_twice(token: str) -> None:
    assert judged(replace(FOUND, audit=[*FOUND.audit, (token, AT)])).twice == [token]


def test_one_that_is_there_and_waits_as_well_would_be_applied_twice() -> None:
    assert judged(replace(FOUND, audit=[*FOUND.audit, ("a-2", AT)])).twice == ["a-2"]


def test_one_that_waits_twice_would_be_applied_twice() -> None:
    assert judged(replace(FOUND, quarantine=[*FOUND.quarantine, FOUND.quarantine[0]])).twice == ["a-2"]


def with_order(id_: int, order: Order | None) -> Found:
    orders = {key: value for key, value in {**FOUND.data.orders, id_: order}.items() if value}
    return replace(FOUND, data=replace(FOUND.data, orders=orders))


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(with_order(1, Order(customer=1, total=22, state="new")), id="a sum that was added twice"),
        pytest.param(with_order(3, Order(customer=1, total=30, state="new")), id="a move that is not there"),
        pytest.param(with_order(3, None), id="a row that is gone"),
        pytest.param(with_order(4, Order(customer=1, total=-5, state="new")), id="a row that should wait"),
        pytest.param(
            replace(FOUND, data=replace(FOUND.data, customers={1: "CUSTOMER 1", 2: "customer 2"})),
            id="a value that the migration made",
        ),
        pytest.param(replace(FOUND, audit=[("a-1", "2027"), *FOUND.audit[1:]]), id="another time"),
        pytest.param(replace(FOUND, audit=[*FOUND.audit, ("b-4", AT)]), id="one that failed is there"),
        pytest.param(replace(FOUND, audit=[*FOUND.audit, ("x-1", AT)]), id="one that nobody wrote"),
        pytest.param(
            replace(FOUND, audit=without("b-1"), quarantine=[*FOUND.quarantine, entry("b-1", "it breaks something")]),
            id="one that fits waits",
        ),
        pytest.param(
            replace(FOUND, quarantine=[entry("a-2", "no reason", bought(4)), FOUND.quarantine[1]]),
            id="a reason that does not explain",
        ),
        pytest.param(
            replace(FOUND, quarantine=[{**FOUND.quarantine[0], "reason": ""}, FOUND.quarantine[1]]), id="no reason"
        ),
        pytest.param(
            replace(FOUND, quarantine=[entry("a-2", FOUND.quarantine[0]["reason"]), FOUND.quarantine[1]]),
            id="a change that is not told",
        ),
        pytest.param(replace(FOUND, left_out={1: 2}), id="something left out that has its place"),
    ],
)
def test_what_is_not_as_it_must_be_is_told(found: Found) -> None:
    assert judged(found).wrong


def test_a_number_that_is_given_out_twice_is_told() -> None:
    again = line("a-5", Buy(customer=2, total=30, id=3), later=False)
    found = replace(FOUND, audit=[*FOUND.audit, ("a-5", AT)])
    assert any("given out twice" in said for said in judged(found, (*LINES, again)).wrong)


def test_what_an_update_adds_to_a_table_of_the_migrations_is_left_out_and_its_orders_wait() -> None:
    lines = (line("a-1", Add(id=1, by=4)), line("a-2", Buy(customer=1, total=9, id=3)), line("a-3", Add(id=3, by=1)))
    tokens = [("a-1", AT), ("a-3", AT)]
    found = Found(
        data=base(),
        audit=tokens,
        kept_audit=[*tokens, ("a-2", AT)],
        quarantine=[entry("a-2", 'null value in column "total" of relation "orders"', bought(3))],
        left_out={1: 4, 3: 1},
    )
    assert judged(found, lines, SPLIT) == Findings()
    assert judged(replace(found, left_out={1: 4}), lines, SPLIT).wrong


def test_who_follows_one_that_waits_for_its_state_waits_as_well() -> None:
    lines = (line("a-1", Mark(id=1, state=REFUNDED)), line("a-2", Mark(id=1, state=PAID)))
    reason = 'invalid input value for enum state: "refunded"'

    def marked(state: str) -> dict[str, Any]:
        return {"table": "orders", "kind": "updated", "old": {}, "new": {"id": "1", "state": state}}

    found = Found(
        data=base(),
        audit=[],
        kept_audit=[("a-1", AT), ("a-2", AT)],
        quarantine=[entry("a-1", reason, marked(REFUNDED)), entry("a-2", reason, marked(PAID))],
        left_out={},
    )
    assert judged(found, lines, "another type") == Findings()


def test_who_deletes_what_one_that_waits_changed_waits_as_well() -> None:
    lines = (line("a-1", Mark(id=1, state=REFUNDED)), line("a-2", Mark(id=1, state=PAID)), line("a-3", Cancel(id=1)))
    books = Books(base(), SHAPES["another type"])
    assert [books.replayed(each) for each in lines] == [(NO_STATE,), (NO_STATE,), (DEPENDS,)]
    assert 1 in books.now.orders


def test_only_who_changes_a_row_that_waits_may_wait_because_of_that() -> None:
    lines = (line("a-1", Buy(id=9, customer=1, total=-1)), line("a-2", Mark(id=9, state=REFUNDED)))
    books = Books(base(), SHAPES["another type"])
    assert [books.replayed(each) for each in lines] == [(NEGATIVE,), (NO_STATE, DEPENDS)]
    reason = "it depends on one in quarantine"
    alone = (line("a-1", Mark(id=1, state=REFUNDED)),)
    told = {"table": "orders", "kind": "updated", "old": {}, "new": {"id": "1", "state": REFUNDED}}
    found = Found(data=base(), audit=[], kept_audit=[("a-1", AT)], quarantine=[entry("a-1", reason, told)], left_out={})
    assert judged(found, alone, "another type").wrong == [
        f"a-1 waits because of {NO_STATE!r}, and its reason says {reason!r}"
    ]


def test_who_leaves_with_an_order_that_waits_may_wait_because_of_either() -> None:
    books = Books(base(), SHAPES["another type"])
    books.replayed(line("a-1", Mark(id=1, state=REFUNDED)))
    books.replayed(line("a-2", Buy(customer=1, total=-5, id=4), Buy(customer=1, total=5, id=5)))
    assert books.replayed(line("a-3", Leave(id=1))) == (NO_STATE, DEPENDS)


def test_a_customer_whose_order_stays_behind_does_not_leave() -> None:
    """The order left before the customer, in a transaction that waits: here it is still the customer's."""
    lines = (
        line("a-1", Join(name="a-1", id=3), Buy(customer=3, total=5, id=3), later=False),
        line("a-2", Cancel(id=3), Buy(customer=1, total=-5, id=4)),
        line("a-3", Leave(id=3)),
    )
    data = base()
    data.customers[3], data.orders[3] = "a-1", Order(customer=3, total=5, state="new")
    gone = {"table": "orders", "kind": "deleted", "old": {"id": "3"}}
    left = {"table": "customers", "kind": "deleted", "old": {"id": "3"}}
    found = Found(
        data=data,
        audit=[("a-1", AT)],
        kept_audit=[(token, AT) for token in ("a-1", "a-2", "a-3")],
        quarantine=[
            entry("a-2", CHANGED + "orders_total_check", gone, bought(4)),
            entry("a-3", CHANGED + "it depends on one in quarantine", left),
        ],
        left_out={},
    )
    assert judged(found, lines) == Findings()
