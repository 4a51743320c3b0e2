"""What every journal promises (core.ports.Journal), shown on the real one and on the one that ships for simulations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lastgood.core.errors import Refused
from lastgood.core.ports import Journal, Right
from lastgood.core.record import Frozen, Unfrozen
from lastgood.journal.sqlite import SqliteJournal
from lastgood.testing.world import MemoryJournal, SteppedClock

MAKERS: dict[str, Callable[[Path], Journal]] = {
    "sqlite": lambda directory: SqliteJournal(directory, clock=SteppedClock()),
    "memory": lambda _directory: MemoryJournal(SteppedClock()),
}


@pytest.fixture(params=MAKERS)
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    return MAKERS[request.param](tmp_path / "state")


def test_a_journal_without_records_holds(journal: Journal) -> None:
    assert list(journal.records()) == []
    assert journal.verify() == ()


def test_records_come_back_in_the_order_in_which_they_were_appended(journal: Journal) -> None:
    appended = [journal.append(Frozen(by="ada", why=f"reason {n}")) for n in range(5)]
    assert [record.seq for record in appended] == [1, 2, 3, 4, 5]
    assert list(journal.records()) == appended
    assert journal.verify() == ()


def test_only_the_records_after_a_number_are_returned(journal: Journal) -> None:
    appended = [journal.append(Frozen(by="ada", why=str(n))) for n in range(4)]
    assert list(journal.records(after=2)) == appended[2:]
    assert list(journal.records(after=4)) == []
    later = journal.append(Unfrozen(by="ada", why="done"))
    assert list(journal.records(after=4)) == [later]
    assert list(journal.records(after=1)) == [*appended[1:], later]


def test_a_right_is_held_for_the_length_of_the_block(journal: Journal) -> None:
    assert journal.holder() is None
    with journal.claim("ada@host") as lease:
        assert lease.owner == "ada@host"
        assert "ada@host" in (journal.holder() or "")
    assert journal.holder() is None


def test_a_right_that_is_held_is_refused_naming_its_holder(journal: Journal) -> None:
    with journal.claim("ada@host"), pytest.raises(Refused, match="ada@host"), journal.claim("bob@host"):
        pass
    with journal.claim("bob@host") as lease:
        assert lease.owner == "bob@host"


@pytest.mark.parametrize("right", [Right.WATCH, Right.PREPARE])
def test_watching_and_preparing_keep_nobody_from_a_run(journal: Journal, right: Right) -> None:
    with journal.claim("somebody", right), journal.claim("runner", Right.RUN):
        assert "somebody" in (journal.holder(right) or "")
        assert "runner" in (journal.holder(Right.RUN) or "")


def test_a_right_is_given_back_when_the_block_fails(journal: Journal) -> None:
    with pytest.raises(ZeroDivisionError), journal.claim("ada@host"):
        _ = 1 // 0
    assert journal.holder() is None
