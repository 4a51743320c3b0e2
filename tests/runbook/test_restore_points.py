"""The restore points as a person asks for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lastgood.core.errors import Refused
from lastgood.core.plan import Role
from lastgood.runbook.restore_points import check, look
from tests.runbook.team import BAD, Team


def test_what_was_taken_is_listed_as_a_way_back(team: Team) -> None:
    team.deploy(BAD)
    (listed,) = look(team.rooms())
    assert (listed.kept, listed.why_not, listed.captured) == (True, "", False)
    assert listed.restore_point == next(iter(team.stack.points.values()))


def test_what_was_exchanged_is_listed_with_what_was_expected(team: Team) -> None:
    team.deploy(BAD)
    (name, manifest), *_ = team.stack.database.manifests
    team.stack.database = replace(team.stack.database, manifests=((name, "another one"),))
    (listed,) = look(team.rooms())
    assert listed.kept
    assert f"its manifest is {'another one'[:12]}, expected {manifest[:12]}" in listed.why_not


def test_what_is_gone_is_said_to_be_gone(team: Team) -> None:
    team.deploy(BAD)
    team.stack.database = replace(team.stack.database, manifests=(), databases=frozenset({"app"}))
    (listed,) = look(team.rooms())
    assert not listed.kept
    assert list(check(team.rooms(), None)) == []


def test_a_check_says_of_each_what_is_wrong(team: Team) -> None:
    team.deploy(BAD)
    (name, _), *_ = team.stack.database.manifests
    assert [(one.restore_point.id, one.wrong) for one in check(team.rooms(), None)] == [(name, "")]
    team.stack.database = replace(team.stack.database, manifests=((name, "another"),))
    assert ["is not the one that was proved" in one.wrong for one in check(team.rooms(), name)] == [True]


def test_a_check_of_an_unknown_one_is_refused_with_the_known_ones(team: Team) -> None:
    team.deploy(BAD)
    (name, _), *_ = team.stack.database.manifests
    with pytest.raises(Refused, match=f"'rp-none' not found; known: {name}"):
        list(check(team.rooms(), "rp-none"))


def test_without_a_database_there_are_none(team: Team) -> None:
    team.parts = frozenset({Role.CONTAINERS})
    assert look(team.rooms()) == ()
