"""What is tried for an invalid row, and in which order."""

from __future__ import annotations

import pytest

from lastgood.core.repair import ColumnRepair, by_reason, differing, smallest

Row = dict[str, str | None]


def columns(*names: str) -> tuple[ColumnRepair, ...]:
    return tuple(ColumnRepair(column=name, now="1", becomes="0") for name in names)


def ways(among: str, *valid: set[str]) -> list[str]:
    """What is found where each of these sets, and whatever holds one of them, makes the row valid."""

    def makes_valid(tried: tuple[ColumnRepair, ...]) -> bool:
        return any(one <= {column.column for column in tried} for one in valid)

    return ["".join(one.column for one in way) for way in smallest(columns(*among), makes_valid)]


@pytest.mark.parametrize(
    "now, then, names",
    [
        ({"a": "1"}, {"a": "1"}, ""),
        ({"a": "1"}, {}, ""),
        ({"a": "1"}, {"a": None}, "a"),
        ({"a": None, "b": "2"}, {"a": "1", "b": "2"}, "a"),
        ({"a": "1", "b": "2", "c": "3"}, {"a": "0", "b": "2", "c": "0"}, "ac"),
    ],
)
def test_what_differs_is_told_in_the_order_of_the_table(now: Row, then: Row, names: str) -> None:
    assert "".join(one.column for one in differing(now, then)) == names


def test_a_change_says_what_was_there_and_what_comes() -> None:
    assert differing({"a": "1"}, {"a": None}) == (ColumnRepair(column="a", now="1", becomes=None),)


def test_one_column_is_enough_where_it_is() -> None:
    assert ways("abc", {"b"}) == ["b"]


def test_between_columns_that_would_do_alone_nobody_chooses() -> None:
    assert ways("abc", {"a"}, {"c"}) == ["a", "c"]


def test_where_none_is_enough_no_more_go_back_than_are_needed() -> None:
    assert ways("abcd", {"b", "d"}) == ["bd"]
    assert ways("ab", {"a", "b"}) == ["ab"]


def test_where_all_of_them_are_not_enough_there_is_no_way() -> None:
    assert ways("ab", {"z"}) == ways("a", {"z"}) == ways("", set()) == []


def test_what_cannot_be_repaired_is_told_by_invariant_and_reason() -> None:
    told = by_reason(
        [("credits", "1", "new"), ("owner", "7", "new"), ("credits", "2", "new"), ("credits", "3", "x")], most=1
    )
    assert [(one.invariant, one.rows, one.keys, one.why) for one in told] == [
        ("credits", 2, ("1",), "new"),
        ("owner", 1, ("7",), "new"),
        ("credits", 1, ("3",), "x"),
    ]
