"""Who used a database before it was fenced, and who uses the one that has its name."""

from __future__ import annotations

import pytest

from lastgood.targets.postgres.clients import CLIENTS, Client, Clients, check

WEB, AGENT, NEWER = Client("hyper", "web v1", 3), Client("reports", "", 1), Client("hyper", "web v2", 2)


@pytest.mark.parametrize(
    "before,now,beside,passed,detail",
    [
        ((WEB, AGENT), (WEB, AGENT), (), True, "hyper web v1 x3, reports x1 connected"),
        ((WEB, AGENT), (NEWER,), (), True, "hyper web v2 x2 connected"),
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
    many = tuple(Client("hyper", f"{number}", 1) for number in range(9))
    assert check(many, many, (), replaced="app_bad_r1").detail.endswith("hyper 4 x1 and 4 more connected")


CORE, AGENTS, PSQL = Client("hyper", "core", 5), Client("hyper", "agent", 2), Client("hyper", "psql", 1)


@pytest.mark.parametrize(
    "before,now,unproved",
    [
        ((CORE, AGENTS), (CORE, AGENTS), ""),
        ((CORE, AGENTS), (CORE,), "not back by that name: hyper agent x2"),
        (
            (CORE, AGENTS),
            (PSQL,),
            "not back by that name: hyper core x5, hyper agent x2; hyper psql x1 may be of them",
        ),
        (
            (Client("hyper", "", 9, 3),),
            (Client("hyper", "", 4, 1),),
            "hyper x4 comes from 1 of 3 addresses",
        ),
        ((Client("hyper", "", 9, 3),), (Client("hyper", "", 4, 3),), ""),
        (
            (Client("hyper", "", 9),),
            (Client("hyper", "", 4),),
            "hyper x4 give themselves no application_name: services are not told apart",
        ),
        ((Client("hyper", "", 1),), (Client("hyper", "", 1),), ""),
    ],
    ids=["all", "one is missing", "another one", "from fewer addresses", "from each address", "alike", "one alone"],
)
def test_one_session_of_a_role_does_not_prove_every_service_of_it(before: Clients, now: Clients, unproved: str) -> None:
    assert check(before, now, (), replaced="app_bad_r1").unproved == unproved


def test_who_was_noted_before_addresses_were_is_read() -> None:
    assert CLIENTS.validate_json('[["hyper", "core", 5]]') == (CORE,)
