"""The SQLite journal under damage, crashes, other processes and full disks."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lastgood.core.errors import NeedsHuman
from lastgood.core.reading import Bucket, Look, Traffic
from lastgood.core.record import BucketSeen, Frozen, Told
from lastgood.testing.world import START
from tests.journal.processes import append_many, append_until_full, claim_once, journal_in

SPAWN = multiprocessing.get_context("spawn")


@contextmanager
def running(work: Callable[..., None], *words: object) -> Iterator[SpawnProcess]:
    process = SPAWN.Process(target=work, args=words)
    process.start()
    try:
        yield process
    finally:
        if process.is_alive():
            process.kill()
        process.join()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A journal of eight records."""
    journal = journal_in(tmp_path / "state")
    for n in range(8):
        journal.append(Frozen(by="ada", why=f"reason {n}"))
    return tmp_path / "state"


def tamper(directory: Path, *statements: str) -> None:
    with closing(sqlite3.connect(directory / "journal.sqlite", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


EDIT = ("UPDATE records SET event = replace(event, 'ada', 'eve') WHERE seq = 3",)
ADD = ("INSERT INTO records SELECT 9, at, event, hash, hash FROM records WHERE seq = 8",)
SWAP = (
    "UPDATE records SET seq = -4 WHERE seq = 4",
    "UPDATE records SET seq = 4 WHERE seq = 5",
    "UPDATE records SET seq = 5 WHERE seq = -4",
)
TWICE = (
    "CREATE TABLE copy AS SELECT * FROM records",
    "DROP TABLE records",
    "ALTER TABLE copy RENAME TO records",
    "INSERT INTO records SELECT * FROM records WHERE seq = 5",
)


@pytest.mark.parametrize(
    "damage,named",
    [
        pytest.param(EDIT, "record 3", id="edited"),
        pytest.param(["UPDATE records SET at = '2020-01-01T00:00:00+00:00' WHERE seq = 3"], "record 3", id="redated"),
        pytest.param(["DELETE FROM records WHERE seq = 5"], "record 5", id="missing"),
        pytest.param(["DELETE FROM records WHERE seq = 1"], "record 1", id="missing-first"),
        pytest.param(["DELETE FROM records WHERE seq = 8"], "record 8", id="missing-last"),
        pytest.param(["DELETE FROM records WHERE seq > 5"], "records 6 to 8", id="missing-end"),
        pytest.param(["DELETE FROM records"], "records 1 to 8", id="missing-all"),
        pytest.param(["DROP TABLE records"], "records 1 to 8", id="missing-table"),
        pytest.param(SWAP, "record 4", id="reordered"),
        pytest.param(TWICE, "record 5", id="duplicated"),
        pytest.param(ADD, "record 9", id="added"),
        pytest.param(["UPDATE records SET event = x'ff00' WHERE seq = 2"], "record 2", id="not-text"),
    ],
)
def test_damage_is_found_and_named_and_nothing_goes_on(directory: Path, damage: Sequence[str], named: str) -> None:
    tamper(directory, *damage)
    assert any(named in line for line in journal_in(directory).verify())
    with pytest.raises(NeedsHuman) as refused:
        journal_in(directory).records()
    assert refused.value.hint == "lastgood audit verify"


@pytest.mark.parametrize("name", ["journal.sqlite", "journal.head"])
def test_a_file_that_is_gone_is_found(directory: Path, name: str) -> None:
    (directory / name).unlink()
    assert journal_in(directory).verify() != ()
    with pytest.raises(NeedsHuman):
        journal_in(directory).append(Frozen(by="ada", why="on and on"))


def test_an_old_copy_that_is_put_back_is_found(directory: Path, tmp_path: Path) -> None:
    shutil.copy(directory / "journal.sqlite", tmp_path / "old")
    journal_in(directory).append(Frozen(by="ada", why="the last word"))
    shutil.copy(tmp_path / "old", directory / "journal.sqlite")
    assert journal_in(directory).verify() == ("record 9 is missing at the end: the head names record 9",)


def test_an_old_copy_of_both_files_is_found_by_whoever_read_the_newer_one(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "old")
    reader = journal_in(directory)
    journal_in(directory).append(Frozen(by="ada", why="the last word"))
    assert len(reader.records()) == 9
    shutil.copytree(tmp_path / "old", directory, dirs_exist_ok=True)
    with pytest.raises(NeedsHuman, match="record 9"):
        reader.records(after=9)
    with pytest.raises(NeedsHuman, match="record 9"):
        reader.append(Frozen(by="ada", why="on and on"))


def test_damage_after_what_was_read_is_found_by_the_next_short_read(directory: Path) -> None:
    reader = journal_in(directory)
    reader.records()
    journal_in(directory).append(Frozen(by="ada", why="the last word"))
    tamper(directory, "UPDATE records SET event = replace(event, 'last', 'first') WHERE seq = 9")
    with pytest.raises(NeedsHuman, match="record 9"):
        reader.records(after=8)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pristine") / "state"
    journal = journal_in(directory)
    for n in range(12):
        journal.append(Frozen(by="ada", why=f"reason {n}"))
    return directory


COLUMNS = st.sampled_from(["at", "event", "prev", "hash"])
MUTATIONS = st.one_of(
    st.tuples(st.just("edit"), st.integers(1, 12), COLUMNS, st.text(max_size=30)),
    st.tuples(st.just("delete"), st.integers(1, 12), st.integers(1, 12), st.none()),
    st.tuples(st.just("move"), st.integers(1, 12), st.integers(-3, 40), st.none()),
    st.tuples(st.just("swap"), st.integers(1, 12), st.integers(1, 12), st.none()),
    st.tuples(st.just("copy"), st.integers(1, 12), st.integers(13, 20), st.none()),
)


@settings(max_examples=300)
@given(mutation=MUTATIONS)
def test_no_change_of_the_rows_goes_unnoticed(
    pristine: Path, tmp_path_factory: pytest.TempPathFactory, mutation: tuple[str, int, object, object]
) -> None:
    directory = tmp_path_factory.mktemp("mutated") / "state"
    shutil.copytree(pristine, directory)
    kind, seq, other, text = mutation
    with closing(sqlite3.connect(directory / "journal.sqlite", isolation_level=None)) as connection:
        rows = "SELECT * FROM records ORDER BY seq"
        before = connection.execute(rows).fetchall()
        try:
            match kind:
                case "edit":
                    connection.execute(f"UPDATE records SET {other} = ? WHERE seq = ?", (text, seq))
                case "delete":
                    connection.execute("DELETE FROM records WHERE seq BETWEEN ? AND ?", (seq, other))
                case "move":
                    connection.execute("UPDATE OR REPLACE records SET seq = ? WHERE seq = ?", (other, seq))
                case "swap":
                    connection.execute("UPDATE records SET seq = -99 WHERE seq = ?", (seq,))
                    connection.execute("UPDATE OR IGNORE records SET seq = ? WHERE seq = ?", (seq, other))
                    connection.execute("UPDATE OR IGNORE records SET seq = ? WHERE seq = -99", (other,))
                case _:
                    connection.execute(
                        "INSERT INTO records SELECT ?, at, event, prev, hash FROM records WHERE seq = ?", (other, seq)
                    )
        finally:
            changed = connection.execute(rows).fetchall() != before
    assert bool(journal_in(directory).verify()) is changed
    shutil.rmtree(directory)


@settings(max_examples=150)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
def test_no_damage_of_the_file_changes_what_is_read_unnoticed(
    pristine: Path, tmp_path_factory: pytest.TempPathFactory, place: float, flip: int, cut: bool
) -> None:
    directory = tmp_path_factory.mktemp("damaged") / "state"
    shutil.copytree(pristine, directory)
    expected = journal_in(directory).records()
    content = bytearray((directory / "journal.sqlite").read_bytes())
    at = int(place * len(content))
    content[at] ^= flip
    (directory / "journal.sqlite").write_bytes(content[:at] if cut else content)
    journal = journal_in(directory)
    if not journal.verify():
        assert journal.records() == expected
    shutil.rmtree(directory)


def test_a_writer_that_died_before_it_moved_the_head_has_not_damaged_anything(directory: Path) -> None:
    head = (directory / "journal.head").read_bytes()
    journal_in(directory).append(Frozen(by="ada", why="durable"))
    (directory / "journal.head").write_bytes(head)
    assert journal_in(directory).verify() == ()
    assert journal_in(directory).append(Frozen(by="ada", why="the next one")).seq == 10
    assert journal_in(directory).verify() == ()


def test_a_head_that_is_two_behind_is_damage(directory: Path) -> None:
    head = (directory / "journal.head").read_bytes()
    for _ in range(2):
        journal_in(directory).append(Frozen(by="ada", why="durable"))
    (directory / "journal.head").write_bytes(head)
    assert journal_in(directory).verify() == ("the head is old: it names record 8, the newest is record 10",)


def test_a_head_that_cannot_be_read_is_damage(directory: Path) -> None:
    (directory / "journal.head").write_bytes(b'{"seq": 8')
    assert "damaged" in journal_in(directory).verify()[0]
    with pytest.raises(NeedsHuman, match="damaged"):
        journal_in(directory).append(Frozen(by="ada", why="on and on"))


def test_a_record_of_a_newer_version_stops_this_one_by_name(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lastgood.journal.sqlite._canonical", lambda _event: '{"kind":"moon_phase","full":true}')
    journal_in(directory).append(Frozen(by="ada", why="as a newer version would"))
    monkeypatch.undo()
    with pytest.raises(NeedsHuman, match=r"record 9 \(moon_phase\).*newer"):
        journal_in(directory).records()
    assert journal_in(directory).verify() == (), "the chain itself holds"


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(Told(run="r1", channel="#ops", text="broken \ud800 text", delivered=True), id="lone-surrogate"),
        pytest.param(Frozen(by="ada", why=cast("str", b"bytes")), id="bytes"),
    ],
)
def test_an_event_that_could_not_be_read_again_is_not_written(directory: Path, event: Frozen | Told) -> None:
    with pytest.raises(NeedsHuman, match="read again"):
        journal_in(directory).append(event)
    assert len(journal_in(directory).records()) == 8


def test_what_was_read_of_a_bucket_is_what_was_written(directory: Path) -> None:
    bucket = Bucket(at=START, looks=(Look(source="traffic", reading=Traffic(requests=10, errors=1, slow=0)),))
    written = journal_in(directory).append(BucketSeen(deployment="d1", bucket=bucket))
    assert journal_in(directory).records(after=8) == [written]


def test_only_the_owner_can_read_the_files_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        journal = journal_in(tmp_path / "state")
        journal.append(Frozen(by="ada", why="a reason"))
        with journal.claim("ada"), sqlite3.connect(tmp_path / "state" / "journal.sqlite") as held:
            held.execute("SELECT * FROM records").fetchall()
            journal.append(Frozen(by="ada", why="while somebody keeps -wal and -shm alive"))
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}
        held.close()
    finally:
        os.umask(before)
    assert {"journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm", "journal.head", "lease.lock"} <= set(modes)
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["journal.sqlite", "journal.sqlite-wal", "journal.head", "journal.lock"])
def test_a_symbolic_link_in_the_place_of_a_file_is_refused(directory: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    if (directory / name).exists():
        (directory / name).rename(elsewhere)
    (directory / name).symlink_to(elsewhere)
    with pytest.raises(NeedsHuman, match=r"symbolic links?"):
        journal_in(directory).append(Frozen(by="ada", why="through the link"))
    with pytest.raises(NeedsHuman):
        journal_in(directory).records()


def test_a_lease_behind_a_symbolic_link_is_refused(directory: Path, tmp_path: Path) -> None:
    (directory / "lease.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NeedsHuman, match="symbolic links"), journal_in(directory).claim("ada"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_reading_a_journal_that_is_not_there_makes_nothing(tmp_path: Path) -> None:
    journal = journal_in(tmp_path / "state")
    assert (list(journal.records()), journal.holder(), journal.verify()) == ([], None, ())
    assert not (tmp_path / "state").exists()


def test_a_place_that_cannot_be_written_stops_before_any_effect(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NeedsHuman, match="cannot be used"):
        journal_in(tmp_path / "file" / "state").append(Frozen(by="ada", why="a reason"))


@pytest.mark.parametrize("limit_kib", [8, 40, 80, 200])
def test_a_full_disk_stops_the_journal_and_damages_nothing(tmp_path: Path, limit_kib: int) -> None:
    said, theirs = SPAWN.Pipe(duplex=False)
    with running(append_until_full, tmp_path / "state", limit_kib * 1024, theirs) as process:
        durable, message = said.recv()
        process.join()
    assert "nothing further is done" in message
    journal = journal_in(tmp_path / "state")
    assert journal.verify() == ()
    assert len(journal.records()) in (durable, durable + 1)
    journal.append(Frozen(by="ada", why="there is room again"))
    assert journal.verify() == ()


def test_two_processes_append_at_once_and_every_record_is_there(tmp_path: Path) -> None:
    pipes = {name: SPAWN.Pipe(duplex=False) for name in ("ada", "bob")}
    with (
        running(append_many, tmp_path / "state", "ada", 200, pipes["ada"][1]) as ada,
        running(append_many, tmp_path / "state", "bob", 200, pipes["bob"][1]) as bob,
    ):
        ada.join()
        bob.join()
    journal = journal_in(tmp_path / "state")
    assert journal.verify() == ()
    whys = [(r.event.by, r.event.why) for r in journal.records() if isinstance(r.event, Frozen)]
    assert len(whys) == 400
    assert [why for by, why in whys if by == "ada"] == [str(n) for n in range(200)]
    assert [why for by, why in whys if by == "bob"] == [str(n) for n in range(200)]


def test_a_writer_killed_at_any_moment_loses_no_record_that_it_was_told_is_durable(tmp_path: Path) -> None:
    for round_ in range(5):
        said, theirs = SPAWN.Pipe(duplex=False)
        with running(append_many, tmp_path / "state", f"round {round_}", 10_000, theirs) as process:
            durable = 0
            for _ in range(5 + 4 * round_):
                durable = said.recv()
            process.kill()
            process.join()
        theirs.close()
        durable = max([durable, *_drain(said)])
        journal = journal_in(tmp_path / "state")
        assert journal.verify() == ()
        assert len(journal.records()) in (durable, durable + 1)


def _drain(said: Connection) -> Iterator[int]:
    try:
        while said.poll():
            yield said.recv()
    except EOFError:
        return


def test_of_two_processes_that_claim_at_once_exactly_one_gets_it_and_fencing_grows(tmp_path: Path) -> None:
    ends = []
    for name in ("ada", "bob"):
        go_theirs, go = SPAWN.Pipe(duplex=False)
        said, said_theirs = SPAWN.Pipe(duplex=False)
        ends.append((name, go, said, go_theirs, said_theirs))
    with (
        running(claim_once, tmp_path / "state", "ada", ends[0][3], ends[0][4]),
        running(claim_once, tmp_path / "state", "bob", ends[1][3], ends[1][4]),
    ):
        for round_ in range(1, 101):
            for _, go, *_ in ends:
                go.send("on")
            fencing = sorted(said.recv() for _, _, said, *_ in ends)
            assert fencing == [0, round_]
            for _, go, *_ in ends:
                go.send("on")
            assert [said.recv() for _, _, said, *_ in ends] == ["free", "free"]
        for _, go, *_ in ends:
            go.send("stop")


def test_the_right_of_a_killed_holder_is_free_at_once_and_its_number_is_not_given_again(tmp_path: Path) -> None:
    go_theirs, go = SPAWN.Pipe(duplex=False)
    said, said_theirs = SPAWN.Pipe(duplex=False)
    journal = journal_in(tmp_path / "state")
    with running(claim_once, tmp_path / "state", "ada@host", go_theirs, said_theirs) as process:
        go.send("on")
        assert said.recv() == 1
        assert f"ada@host (pid {process.pid})" in (journal.holder() or "")
        process.kill()
        process.join()
    assert journal.holder() is None
    with journal.claim("bob@host") as lease:
        assert lease.fencing == 2


def test_a_look_at_the_holder_never_makes_a_claim_fail(tmp_path: Path) -> None:
    go_theirs, go = SPAWN.Pipe(duplex=False)
    said, said_theirs = SPAWN.Pipe(duplex=False)
    journal = journal_in(tmp_path / "state")
    with running(claim_once, tmp_path / "state", "ada", go_theirs, said_theirs):
        for round_ in range(1, 51):
            go.send("on")
            while not said.poll():
                journal.holder()
            assert said.recv() == round_
            go.send("on")
            said.recv()
        go.send("stop")
