"""Entries of the quarantine are told apart, whatever their ids."""

from __future__ import annotations

import pytest

from lastgood.core.errors import Refused
from lastgood.core.quarantine import EntryChange, QuarantineEntry, entry_named, numbered


def entry(name: str, *, replay: str = "replay-r1", tables: tuple[str, ...] = ("orders",)) -> QuarantineEntry:
    changes = tuple(EntryChange(table=table, kind="inserted", new={"id": "1"}) for table in tables)
    return QuarantineEntry(id=name, replay=replay, reason="it does not fit", changes=changes)


def test_an_entry_is_found_by_its_id_and_by_its_whole_name() -> None:
    known = (entry("7-0/1"), entry("8-0/2"))
    assert entry_named(known, "8-0/2") is known[1]
    assert entry_named(known, "replay-r1/7-0/1") is known[0]


def test_an_id_of_two_replays_is_not_guessed() -> None:
    known = (entry("orders:5"), entry("orders:5", replay="replay-r2"))
    with pytest.raises(Refused, match="replay-r1/orders:5, replay-r2/orders:5"):
        entry_named(known, "orders:5")
    assert entry_named(known, "replay-r2/orders:5") is known[1]


def test_an_entry_that_is_not_there_is_refused() -> None:
    with pytest.raises(Refused, match="9-0/3 is not in quarantine"):
        entry_named((entry("7-0/1"),), "9-0/3")


def test_a_row_that_waits_twice_has_two_ids() -> None:
    assert numbered(["orders:5", "orders:6", "orders:5", "orders:5"]) == (
        "orders:5",
        "orders:6",
        "orders:5~2",
        "orders:5~3",
    )


def test_a_table_is_named_once_in_the_order_of_writing() -> None:
    assert entry("7-0/1", tables=("orders", "audit", "orders")).tables == ("orders", "audit")
