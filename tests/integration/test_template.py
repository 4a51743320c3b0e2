"""A restore point that is a copy of the files, where a pause is allowed: what it holds, who waits and for how long, and
what becomes of everybody when it is given up or killed."""

from __future__ import annotations

import signal
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from lastgood.core.errors import Retryable
from lastgood.core.release import RestorePoint
from lastgood.targets.postgres import capture, template
from lastgood.targets.postgres.capture import Captures
from lastgood.targets.postgres.connect import Connection, connect
from lastgood.targets.postgres.server import Server
from tests.contract.rigs.own_process import begin, ended
from tests.contract.rigs.postgres_world import PostgresWorld
from tests.integration.test_postgres import deadly
from tests.integration.test_postgres_swap import frozen

ALLOWED_S = 30.0


@pytest.fixture
def copying(embedded: PostgresWorld) -> PostgresWorld:
    """The shop, whose users may be kept out."""
    embedded.pause_s = ALLOWED_S
    return embedded


@pytest.fixture
def waiting(world: PostgresWorld) -> PostgresWorld:
    """The same on every server."""
    world.pause_s = ALLOWED_S
    return world


def point(world: PostgresWorld) -> RestorePoint:
    return world.target.restore_point(world.restore_point)


@contextmanager
def open_transaction(world: PostgresWorld, text: str, *, database: str | None = None) -> Generator[Connection]:
    """Somebody's, who wrote and is not done."""
    with connect(world.config, database=database) as connection:
        connection.execute(text.encode())
        yield connection
        connection.close()


def test_a_copy_is_the_database_of_one_moment_and_every_transaction_since_is_replayed(waiting: PostgresWorld) -> None:
    waiting.take()
    taken = point(waiting)
    assert (taken.copied, taken.captured, taken.lossy_because, taken.not_copied) == (True, True, (), "")
    assert 0 < taken.paused_s < ALLOWED_S
    assert dict(taken.rows)["orders"] == 100
    waiting.migrate()
    waiting.sql("UPDATE orders SET total = total + 1 WHERE id = 7")
    waiting.sql("INSERT INTO audit (what) VALUES ('since')")
    waiting.go_back()
    assert waiting.one("SELECT total FROM orders WHERE id = 7") == 9
    assert waiting.sql("SELECT what FROM audit") == [("since",)]
    assert waiting.one("SELECT count(*) FROM orders") == 100
    assert (waiting.quarantine(), waiting.replayed().replayed) == ([], 2)


def test_who_writes_all_the_while_finds_each_acknowledged_row_once(copying: PostgresWorld) -> None:
    acknowledged: list[int] = []
    done = False

    def write() -> None:
        number = 0
        while not done:
            try:
                with connect(copying.config, autocommit=True) as connection:
                    while not done:
                        number += 1
                        connection.execute("INSERT INTO audit (what) VALUES (%s)", [str(number)])
                        acknowledged.append(number)
            except Exception as error:
                if not isinstance(error, psycopg.Error) and "does not answer" not in str(error):
                    raise

    with ThreadPoolExecutor() as users:
        writer = users.submit(write)
        try:
            while len(acknowledged) < 20:
                assert not writer.done(), writer.result()
            copying.take()
            before = len(acknowledged)
            until = time.monotonic() + 20
            while len(acknowledged) < before + 20:
                assert time.monotonic() < until, "nobody writes any more"
            copying.migrate()
        finally:
            done = True
        writer.result(30)
    copying.go_back()
    found = [int(str(what)) for (what,) in copying.sql("SELECT what FROM audit")]
    assert len(set(found)) == len(found)
    assert set(acknowledged) <= set(found)


def test_new_sessions_wait_and_get_in_and_those_that_were_there_are_ended(
    copying: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    was_there = copying.connect()
    waited: list[bool] = []
    true = template._end_others

    def meanwhile(*words: Any, **named: Any) -> None:  # noqa: ANN401 # whatever it is called with
        new = users.submit(copying.one, "SELECT count(*) FROM customers")
        true(*words, **named)
        time.sleep(0.2)
        waited.append(not new.done())
        coming.append(new)

    coming: list[Any] = []
    monkeypatch.setattr(template, "_end_others", meanwhile)
    with ThreadPoolExecutor() as users:
        copying.take()
        assert [new.result(10) for new in coming] == [20]
    assert waited == [True]
    assert point(copying).copied
    with pytest.raises(psycopg.OperationalError):
        was_there.execute("SELECT 1")


def test_without_a_pause_nobody_is_kept_out(embedded: PostgresWorld) -> None:
    with embedded.connect() as user:
        embedded.take()
        assert user.execute("SELECT count(*) FROM orders").fetchone() == (100,)
    taken = point(embedded)
    assert (taken.copied, taken.paused_s, taken.not_copied) == (False, 0.0, "")


@pytest.mark.full
def test_a_copy_is_lossless_where_a_transaction_that_stays_open_keeps_a_dump_from_it(copying: PostgresWorld) -> None:
    with open_transaction(copying, "UPDATE orders SET total = 5000 WHERE id = 3"):
        copying.take()
    taken = point(copying)
    assert (taken.copied, taken.captured, taken.lossy_because) == (True, True, ())
    assert copying.one("SELECT total FROM orders WHERE id = 3") == 4


def test_a_copy_is_lossless_where_the_log_of_a_restore_would_be_too_much_for_a_slot(
    copying: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "slot_limit", lambda _connection: 1)
    assert "a slot may keep" in copying.target.lossy_because()[0]
    assert copying.target.lossy_because(copied=True) == ()
    copying.take()
    assert (point(copying).copied, point(copying).captured) == (True, True)


@pytest.mark.full
def test_a_dump_is_not_lossless_behind_a_transaction_that_stays_open(embedded: PostgresWorld) -> None:
    with open_transaction(embedded, "UPDATE orders SET total = 5000 WHERE id = 3"):
        embedded.take()
    taken = point(embedded)
    assert not taken.captured
    assert "orders is locked" in taken.lossy_because[0]


@pytest.mark.full
def test_a_copy_that_takes_too_long_is_given_up_and_the_database_dumped(copying: PostgresWorld) -> None:
    copying.pause_s = 0.02
    copying.take()
    taken = point(copying)
    assert (taken.copied, taken.captured) == (False, True)
    assert "0.02 s" in taken.not_copied
    assert taken.paused_s < 5
    copying.migrate()
    copying.sql("INSERT INTO audit (what) VALUES ('since')")
    copying.go_back()
    assert copying.sql("SELECT what FROM audit") == [("since",)]


@pytest.mark.parametrize("role", ["web", "shop"])
def test_a_session_that_is_not_ours_to_end_keeps_everybody_in(keeper: PostgresWorld, role: str) -> None:
    keeper.pause_s = ALLOWED_S
    others = keeper.config.model_copy(update={"user": role})
    with connect(others, autocommit=True) as user, keeper.connect() as ours:
        keeper.take()
        for session in (user, ours):
            assert session.execute("SELECT 1").fetchone() == (1,)
    taken = point(keeper)
    assert (taken.copied, taken.paused_s) == (False, 0.0)
    assert taken.not_copied.startswith("app may not end sessions of shop")


@pytest.mark.full
def test_a_role_that_is_no_superuser_can_copy(keeper: PostgresWorld) -> None:
    keeper.pause_s = ALLOWED_S
    keeper.take()
    taken = point(keeper)
    assert (taken.copied, taken.captured, taken.not_copied) == (True, True, "")


def test_a_session_that_does_not_end_is_named_and_everybody_gets_in_again(copying: PostgresWorld) -> None:
    with copying.connect() as stubborn:
        stubborn.execute("SET application_name = 'payroll'")
        with frozen(stubborn.info.backend_pid):
            copying.take()
            assert copying.one("SELECT count(*) FROM orders") == 100
    taken = point(copying)
    assert (taken.copied, taken.captured) == (False, True)
    assert "do not end" in taken.not_copied
    assert "payroll" in taken.not_copied
    assert 0 < taken.paused_s < 10


def test_a_transaction_of_another_database_is_not_waited_for_in_the_pause(copying: PostgresWorld) -> None:
    with (
        copying.connect(database="postgres") as other,
        copying.connect() as user,
        Captures(Server(copying.config), copying.folder / "captures").prepared(
            "lastgood_x", deadline_s=10
        ) as beginning,
        other.transaction(force_rollback=True),
    ):
        other.execute("CREATE TABLE somewhere_else ()")
        other.execute("SELECT pg_sleep(0.3)")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(template, "LOCK_S", 0.2)
            given_up = template.copy(
                Server(copying.config), copying.clone, most_s=10, beginning=beginning, look=lambda _: None
            )
        assert isinstance(given_up, template.NotCopied)
        assert "lastgood of postgres has written and not ended" in given_up.because
        assert given_up.paused_s == 0.0
        assert user.execute("SELECT 1").fetchone() == (1,)
    Captures(Server(copying.config), copying.folder / "captures").end()


def test_a_slot_that_cannot_be_had_in_the_pause_ends_it(copying: PostgresWorld) -> None:
    with copying.connect(database="postgres") as other, other.transaction(force_rollback=True):
        other.execute("CREATE TABLE somewhere_else ()")
        server = Server(copying.config)
        captures = Captures(server, copying.folder / "captures")
        with captures.prepared("lastgood_x", deadline_s=10) as beginning:
            given_up = template.copy(server, copying.clone, most_s=10, beginning=beginning, look=lambda _: None)
            assert copying.one("SELECT count(*) FROM orders") == 100
        captures.end()
    assert isinstance(given_up, template.NotCopied)
    assert "no capture could begin" in given_up.because
    assert 0 < given_up.paused_s < 4


def test_a_worker_of_the_server_in_the_database_is_told_and_keeps_it_from_being_copied(
    copying: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert copying.target.not_copied_because() == ()
    monkeypatch.setattr(template, "_OURS_TO_END", ("nobody",))
    with copying.connect() as worker:
        worker.execute("SET application_name = 'scheduler'")
        (told,) = [line for line in copying.target.not_copied_because() if "scheduler" in line]
        assert told.endswith(f"pid {worker.info.backend_pid}")
        copying.take()
        assert worker.execute("SELECT 1").fetchone() == (1,)
    assert not point(copying).copied


KILLED_AT = (
    "template._locked", "template._end_others", "capture._create_slot", "restore_point._described", "template._copied",
    "restore_point.make_alike", "tools.Tools.dump", "restore_point._prove",
)  # fmt: skip
SHORT = ("template._locked", "restore_point._described", "template._copied")


@pytest.mark.parametrize(
    "where", [pytest.param(where, marks=[] if where in SHORT else [pytest.mark.full]) for where in KILLED_AT]
)
def test_killed_while_everybody_waits_everybody_gets_in_and_the_same_step_ends_the_same(
    copying: PostgresWorld, where: str
) -> None:
    def dying() -> None:
        deadly(where, "after")
        copying.take()

    assert ended(begin(dying)) == -signal.SIGKILL
    until = time.monotonic() + 10
    while not let_in(copying):
        assert time.monotonic() < until, "nobody lets them in"
    copying.sql("INSERT INTO audit (what) VALUES ('between')")
    copying.take()
    assert point(copying).copied
    copying.migrate()
    copying.sql("INSERT INTO audit (what) VALUES ('since')")
    copying.go_back()
    copying.target.apply(copying.end_capture)
    assert copying.sql("SELECT what FROM audit ORDER BY at") == [("between",), ("since",)]
    name = copying.config.name
    assert {each for each in copying.target.observe().databases if each.startswith(name)} == {name, copying.kept_as}


def let_in(world: PostgresWorld) -> bool:
    try:
        return world.one("SELECT count(*) FROM orders") == 100
    except Retryable:
        return False


@pytest.mark.full
def test_a_copy_that_a_killed_command_left_under_way_does_not_keep_the_next_from_it(copying: PostgresWorld) -> None:
    def dying() -> None:
        deadly("template._locked", "after")
        copying.take()

    with copying.connect() as user:  # as long as it is there, the copy waits for it, and the next command for the copy
        assert ended(begin(dying)) == -signal.SIGKILL
        until = time.monotonic() + 20
        while not taken(copying):
            assert time.monotonic() < until, "it is never over"
        with pytest.raises(psycopg.OperationalError):
            user.execute("SELECT 1")
    assert point(copying).copied


def taken(world: PostgresWorld) -> bool:
    try:
        world.take()
    except Retryable:
        return False
    return True


@pytest.mark.full
@pytest.mark.parametrize("pause_s", [0.0, ALLOWED_S], ids=["dump", "copy"])
def test_where_nothing_can_be_captured_the_rows_of_a_copy_go_back_as_those_of_a_dump(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch, pause_s: float
) -> None:
    monkeypatch.setattr(capture, "obstacles", lambda _server, *, copied=False: ("wal_level is replica",))  # noqa: ARG005 # asked of both
    embedded.by_rows, embedded.pause_s = True, pause_s
    embedded.take()
    taken = point(embedded)
    assert (taken.copied, taken.captured, taken.lossy_because) == (pause_s > 0, False, ("wal_level is replica",))
    embedded.migrate()
    embedded.sql("UPDATE customers SET full_name = 'ada' WHERE id = 7")
    embedded.sql("UPDATE orders SET state = 'paid' WHERE id = 9")
    embedded.sql("DELETE FROM orders WHERE id = 8")
    embedded.sql("INSERT INTO orders (customer, total) VALUES (1, 900)")
    embedded.go_back()
    assert embedded.one("SELECT name FROM customers WHERE id = 7") == "ada"
    assert embedded.sql("SELECT total FROM orders WHERE id IN (9, 101) ORDER BY id") == [(10,), (900,)]
    assert embedded.one("SELECT count(*) FROM orders") == 100
    kept = embedded.replayed()
    assert (dict(kept.carried), [entry["id"] for entry in embedded.quarantine()]) == (
        {"customers": 1, "orders": 3},
        ["orders:9"],
    )


def test_what_a_copy_shows_of_the_capture_is_neither_in_the_clone_nor_in_the_dump(copying: PostgresWorld) -> None:
    copying.take()
    assert copying.sql("SELECT pubname FROM pg_publication", database=copying.clone) == []
    assert copying.one("SELECT to_regnamespace('lastgood_marks')::text", database=copying.clone) is None
    assert (
        copying.one("SELECT relreplident::text FROM pg_class WHERE relname = 'orders'", database=copying.clone) == "d"
    )
    dump = copying.folder / "restore-points" / f"{copying.restore_point}.dump"
    assert "lastgood" not in Server(copying.config).tools.contents(dump, deadline_s=10)
    copying.target.prove(point(copying), deadline_s=30)


def test_the_dump_of_a_copy_can_be_restored(copying: PostgresWorld) -> None:
    copying.take()
    copying.sql(f"CREATE DATABASE {copying.config.name}_lg_again", database="postgres")
    dump = copying.folder / "restore-points" / f"{copying.restore_point}.dump"
    Server(copying.config).tools.restore(dump, f"{copying.config.name}_lg_again", session="test", deadline_s=30)
    assert copying.one("SELECT count(*) FROM orders", database=f"{copying.config.name}_lg_again") == 100
