"""What pgoutput writes, byte by byte (PostgreSQL docs 55.9), and what is read from it."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lastgood.core.errors import Bug
from lastgood.targets.postgres.pgoutput import Decoder, RowChange, Transaction, Truncation, Unsent, Value, messages

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
MICROSECONDS = (AT - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def begin(xid: int = 7, commit: int = 100) -> bytes:
    return b"B" + struct.pack("!QqI", commit, MICROSECONDS, xid)


def commit(end: int = 108) -> bytes:
    return b"C" + struct.pack("!BQQq", 0, end - 8, end, MICROSECONDS)


def relation(
    oid: int = 1, name: str = "orders", identity: str = "f", columns: tuple[str, ...] = ("id", "what")
) -> bytes:
    described = b"".join(b"\x01" + column.encode() + b"\0" + struct.pack("!Ii", 25, -1) for column in columns)
    head = b"R" + struct.pack("!I", oid) + b"public\0" + name.encode() + b"\0" + identity.encode()
    return head + struct.pack("!H", len(columns)) + described


def row(*values: Value) -> bytes:
    sent = [
        b"n"
        if value is None
        else b"u"
        if isinstance(value, Unsent)
        else b"t" + struct.pack("!i", len(value.encode())) + value.encode()
        for value in values
    ]
    return struct.pack("!H", len(values)) + b"".join(sent)


def insert(*values: Value, oid: int = 1) -> bytes:
    return b"I" + struct.pack("!I", oid) + b"N" + row(*values)


def read(*messages: bytes) -> list[Transaction]:
    return list(Decoder().transactions(messages))


def rows(*messages: bytes) -> list[tuple[tuple[Value, ...] | None, tuple[Value, ...] | None]]:
    """(old, new) of every change of one transaction."""
    (transaction,) = read(begin(), relation(), *messages, commit())
    return [(change.old, change.new) for change in transaction.changes if isinstance(change, RowChange)]


def test_a_transaction_has_its_number_its_place_in_the_log_and_its_time() -> None:
    (found,) = read(begin(xid=4_000_000_000, commit=1 << 40), commit(end=(1 << 40) + 8))
    assert (found.xid, found.commit, found.end) == (4_000_000_000, 1 << 40, (1 << 40) + 8)
    assert found.committed_at == AT
    assert found.changes == ()


def test_a_table_is_described_once_and_anew_when_it_changed() -> None:
    first, second = read(
        begin(),
        relation(columns=("id", "name")),
        insert("1", "a"),
        commit(),
        begin(),
        insert("2", "b"),
        relation(columns=("id", "full_name")),
        insert("3", "c"),
        commit(),
    )
    shown = [c.relation.columns for t in (first, second) for c in t.changes if isinstance(c, RowChange)]
    assert shown == [("id", "name"), ("id", "name"), ("id", "full_name")]


@pytest.mark.parametrize("identity, whole", [("f", True), ("d", False), ("i", False), ("n", False)])
def test_whether_old_rows_are_sent_whole_is_told(identity: str, whole: bool) -> None:  # a case
    ((change,),) = (t.changes for t in read(begin(), relation(identity=identity), insert("1", "a"), commit()))
    assert isinstance(change, RowChange)
    assert change.relation.whole is whole


def test_each_kind_of_change_has_the_rows_that_it_was_sent_with() -> None:
    oid = struct.pack("!I", 1)
    assert rows(insert("1", None)) == [(None, ("1", None))]
    assert rows(b"U" + oid + b"N" + row("1", "b")) == [(None, ("1", "b"))]
    assert rows(b"U" + oid + b"O" + row("1", "a") + b"N" + row("1", "b")) == [(("1", "a"), ("1", "b"))]
    assert rows(b"U" + oid + b"K" + row("1", None) + b"N" + row("2", Unsent.UNCHANGED)) == [
        (("1", None), ("2", Unsent.UNCHANGED))
    ]
    assert rows(b"D" + oid + b"O" + row("1", "a")) == [(("1", "a"), None)]


def test_tables_that_were_emptied_together_are_one_change() -> None:
    emptied = b"T" + struct.pack("!IBII", 2, 0, 1, 2)
    ((change,),) = (t.changes for t in read(begin(), relation(), relation(2, "lines"), emptied, commit()))
    assert isinstance(change, Truncation)
    assert [table.name for table in change.relations] == ["orders", "lines"]


def test_what_is_no_change_of_a_row_is_passed_over() -> None:
    kind, origin, said = b"Y" + struct.pack("!I", 9) + b"public\0state\0", b"O" + bytes(8) + b"a\0", b"M\x01" + bytes(8)
    assert rows(origin, kind, said, insert("1", "a")) == [(None, ("1", "a"))]


def test_a_transaction_that_is_cut_off_is_none() -> None:
    assert read(begin(), relation(), insert("1", "a")) == []


def test_what_is_taken_as_it_comes_is_counted_and_not_kept() -> None:
    taken: list[int] = []

    def take(xid: int, change: object) -> bool:
        assert isinstance(change, RowChange)
        taken.append(xid)
        return change.new == ("2", "b")

    messages = [begin(), relation(), insert("1", "a"), insert("2", "b"), commit()]
    (found,) = Decoder(take).transactions(messages)
    assert (len(found.changes), found.aside, taken) == (1, 1, [7, 7])


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([insert("1", "a")], id="outside of a transaction"),
        pytest.param([begin(), b"S" + bytes(5)], id="of a later version"),
        pytest.param(
            [begin(), relation(), b"I" + struct.pack("!I", 1) + b"N" + struct.pack("!H", 1) + b"b"], id="binary"
        ),
    ],
)
def test_what_this_version_does_not_have_is_not_passed_over(messages: list[bytes]) -> None:
    with pytest.raises(Bug, match="pgoutput sent"):
        read(*messages)


@given(
    values=st.lists(st.none() | st.just(Unsent.UNCHANGED) | st.text(st.characters(exclude_characters="\0")), max_size=5)
)
def test_any_text_comes_as_it_was_sent(values: list[Value]) -> None:
    assert rows(insert(*values)) == [(None, tuple(values))]


def message(text: str, prefix: str = "lastgood", *, of_a_transaction: bool = True) -> bytes:
    head = struct.pack("!BQ", of_a_transaction, 90) + prefix.encode() + b"\0"
    return b"M" + head + struct.pack("!i", len(text.encode())) + text.encode()


def test_messages_of_ours_are_told_with_their_transaction_and_no_others() -> None:
    sent = (
        message("before any", of_a_transaction=False),
        begin(xid=7),
        message("another's", prefix="app"),
        message("it's ☃"),
        message("at once", of_a_transaction=False),
        relation(),
        insert("1", "x"),
        message(""),
        commit(),
        begin(xid=4_000_000_000),
        message("later"),
        commit(),
    )
    assert list(messages(sent, prefix="lastgood")) == [(7, "it's ☃"), (7, ""), (4_000_000_000, "later")]
