"""Who used a database before it was fenced, and who uses the one that has its name."""

from __future__ import annotations

import pytest

from lastgood.targets.postgres.clients import Clients, check

WEB, AGENT, NEWER = ("hyper", "web v1", 3), ("reports", "", 1), ("hyper", "web v2", 2)


@pytest.mark.parametrize(
    "before,now,beside,passed,detail",
    [
        ((WEB, AGENT), (WEB, AGENT), (), True, "hyper web v1 x3, reports x1 connected"),
        ((WEB, AGENT), (NEWER,), (), True, "hyper web v2 x2 connected; not back yet: reports x1"),
        ((WEB,), (), (), False, "hyper web v1 x3 before, and nobody of them is back"),
        ((WEB,), (AGENT,), (), False, "hyper web v1 x3 before, and nobody of them is back"),
        ((), (), (), True, "nobody was connected before"),
        ((), (WEB,), (), True, "hyper web v1 x3 connected"),
        ((WEB,), (WEB,), (AGENT,), False, "reports x1 in app_bad_r1, which is no longer live"),
    ],
)
def test_a_swap_is_proved_by_who_came_back(
    before: Clients, now: Clients, beside: Clients, *, passed: bool, detail: str
) -> None:
    found = check(before, now, beside, replaced="app_bad_r1")
    assert (found.passed, found.detail) == (passed, detail)


def test_many_clients_are_counted_and_not_all_named() -> None:
    many = tuple(("hyper", f"{number}", 1) for number in range(9))
    assert check(many, many, (), replaced="app_bad_r1").detail.endswith("hyper 4 x1 and 4 more connected")
