"""What is tried for an invalid row, and in which order."""

from __future__ import annotations

import pytest

from lastgood.core.repair import ColumnRepair, by_reason, candidates

Row = dict[str, str | None]


def tried(now: Row, then: Row) -> list[list[str]]:
    return [[one.column for one in change] for change in candidates(now, then)]


@pytest.mark.parametrize(
    "now, then, columns",
    [
        ({"a": "1"}, {"a": "1"}, []),
        ({"a": "1"}, {}, []),
        ({"a": "1"}, {"a": None}, [["a"]]),
        ({"a": None, "b": "2"}, {"a": "1", "b": "2"}, [["a"]]),
        ({"a": "1", "b": "2", "c": "3"}, {"a": "0", "b": "2", "c": "0"}, [["a"], ["c"], ["a", "c"]]),
    ],
)
def test_each_column_that_differs_is_tried_alone_before_all_of_them(
    now: Row, then: Row, columns: list[list[str]]
) -> None:
    assert tried(now, then) == columns


def test_a_change_says_what_was_there_and_what_comes() -> None:
    assert candidates({"a": "1"}, {"a": None}) == ((ColumnRepair(column="a", now="1", becomes=None),),)


def test_what_cannot_be_repaired_is_told_by_invariant() -> None:
    credits_, owner = by_reason([("credits", "1", "new"), ("owner", "7", "gone"), ("credits", "2", "old")], most=1)
    assert (credits_.invariant, credits_.rows, credits_.keys, credits_.why) == ("credits", 2, ("1",), "new")
    assert (owner.rows, owner.keys) == (1, ("7",))
