"""Who used a database before it was fenced, and who uses the one that has its name."""

from __future__ import annotations

import pytest

from lastgood.targets.postgres.clients import Clients, check

WEB, AGENT = ("hyper web", 3), ("hyper agent", 1)


@pytest.mark.parametrize(
    "before,now,beside,passed,detail",
    [
        ((WEB, AGENT), (WEB, AGENT), (), True, "hyper web x3, hyper agent x1 connected"),
        ((WEB, AGENT), (("hyper web", 1),), (), True, "hyper web x1 connected; not back yet: hyper agent x1"),
        ((WEB,), (), (), False, "hyper web x3 before, and nobody of them is back"),
        ((WEB,), (AGENT,), (), False, "hyper web x3 before, and nobody of them is back"),
        ((), (), (), True, "nobody was connected before"),
        ((), (WEB,), (), True, "hyper web x3 connected"),
        ((WEB,), (WEB,), (AGENT,), False, "hyper agent x1 in app_bad_r1, which is no longer live"),
    ],
)
def test_a_swap_is_proved_by_who_came_back(
    before: Clients, now: Clients, beside: Clients, *, passed: bool, detail: str
) -> None:
    found = check(before, now, beside, replaced="app_bad_r1")
    assert (found.passed, found.detail) == (passed, detail)


def test_many_clients_are_counted_and_not_all_named() -> None:
    many = tuple((f"hyper {number}", 1) for number in range(9))
    assert check(many, many, (), replaced="app_bad_r1").detail.endswith("hyper 4 x1 and 4 more connected")
