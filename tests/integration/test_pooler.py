"""PgBouncer in front of the server: its clients wait while the database is exchanged, and none is thrown out."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
from psycopg import ClientCursor
from psycopg.rows import dict_row

from lastgood.core.config import PgBouncerConfig
from lastgood.core.errors import LastgoodError, Refused, Retryable
from lastgood.core.plan import Seen, SwapDatabase, seen
from lastgood.targets.postgres.pooler import Pooler
from tests.contract.rigs import postgres_embedded
from tests.contract.rigs.postgres_world import PostgresWorld


@contextmanager
def pooler(world: PostgresWorld, *more: str, databases: str = "") -> Generator[str]:
    """PgBouncer in transaction mode before the server, as users reach it. Yields how to connect. more: of its
    settings. databases: lines of that section, before the one for all others."""
    bouncer = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    assert bouncer, "pgbouncer is missing: scripts/engine.sh installs it"
    password = world.config.password.reveal() if world.config.password else ""
    with postgres_embedded.open_folder() as folder:
        folder.chmod(0o777)  # it gives root up
        (folder / "users").write_text(f'"{world.config.user}" "{password}"\n"reader" ""\n')
        (folder / "ini").write_text(
            f"[databases]\n{databases}\n* = host={world.config.host} port={world.config.port}\n"
            f"[pgbouncer]\nlisten_port = 6432\nunix_socket_dir = {folder}\nauth_type = trust\n"
            f"admin_users = {world.config.user}\n"
            f"auth_file = {folder}/users\npool_mode = transaction\nserver_login_retry = 0.2\nlogfile = {folder}/log\n"
            + "".join(f"{line}\n" for line in more)
        )
        server = Path(world.config.host, ".s.PGSQL.5432").owner()  # who alone may connect through that socket
        words = [bouncer, "--quiet", *(["--user", server] if os.geteuid() == 0 else []), str(folder / "ini")]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 10
            while not (folder / ".s.PGSQL.6432").exists():
                assert time.monotonic() < until, (folder / "log").read_text()
                time.sleep(0.05)
            yield f"host={folder} port=6432 user={world.config.user} dbname={world.config.name}"
        finally:
            process.terminate()
            process.wait(10)


def write_through(address: str, stop: threading.Event, acknowledged: list[str]) -> None:
    """A user behind the pooler: whoever is thrown out comes again."""
    while not stop.is_set():
        try:
            with psycopg.connect(address, autocommit=True, connect_timeout=2, prepare_threshold=None) as user:
                for token in tokens():
                    if stop.is_set():
                        return
                    user.execute("INSERT INTO audit (what) VALUES (%s)", [token])
                    acknowledged.append(token)
                    time.sleep(0.01)
        except psycopg.Error:
            time.sleep(0.05)


def wait_for(number: int, acknowledged: list[str]) -> None:
    until = time.monotonic() + 20
    while len(acknowledged) < number:
        assert time.monotonic() < until, "nobody is served"
        time.sleep(0.02)


def tokens() -> Iterator[str]:
    while True:
        yield secrets.token_hex(8)


def test_users_behind_a_pooler_reach_the_database_that_came_back_and_lose_nothing(embedded: PostgresWorld) -> None:
    acknowledged: list[str] = []
    stop = threading.Event()
    with pooler(embedded) as address:
        user = threading.Thread(target=write_through, args=(address, stop, acknowledged))
        embedded.take()
        embedded.migrate()
        user.start()
        try:
            wait_for(20, acknowledged)
            embedded.go_back()
            after = len(acknowledged)
            wait_for(after + 20, acknowledged)
        finally:
            stop.set()
            user.join(timeout=30)
    there = {str(what) for (what,) in embedded.sql("SELECT what FROM audit")}
    assert set(acknowledged) <= there
    assert (
        embedded.one("SELECT count(*) FROM pg_attribute WHERE attrelid = 'customers'::regclass AND attname = 'name'")
        == 1
    )


def test_a_pooler_in_the_place_of_the_server_is_refused_by_name(embedded: PostgresWorld) -> None:
    with pooler(embedded) as address:
        host = address.split()[0].removeprefix("host=")
        embedded.config = embedded.config.model_copy(update={"host": host, "port": 6432})
        with pytest.raises(LastgoodError, match="unsupported startup parameter") as refused:
            embedded.take()
        assert "not those of a pooler" in refused.value.hint


def test_a_pooler_that_swallows_settings_is_told_before_a_deploy(embedded: PostgresWorld) -> None:
    with pooler(embedded, "ignore_startup_parameters = options, replication") as address:
        host = address.split()[0].removeprefix("host=")
        embedded.config = embedded.config.model_copy(update={"host": host, "port": 6432})
        assert any("pooler" in line for line in embedded.target.preflight())


# --- a pooler that lastgood may ask to let its clients wait ----------------------------------------------------------


@contextmanager
def known_pooler(world: PostgresWorld, *more: str, databases: str = "") -> Generator[str]:
    """The same, and the target knows of it."""
    with pooler(world, *more, databases=databases) as address:
        host = address.split()[0].removeprefix("host=")
        world.pgbouncer = PgBouncerConfig(user=world.config.user, host=host, port=6432)
        try:
            yield address
        finally:
            world.pgbouncer = None


def paused(world: PostgresWorld) -> bool | None:
    return world.target.observe().paused


@contextmanager
def users(address: str, *, number: int = 3) -> Generator[tuple[list[str], list[str]]]:
    """Users who never come again when they are thrown out. Yields what was acknowledged, and what went wrong."""
    acknowledged: list[str] = []
    failed: list[str] = []
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(address, autocommit=True, connect_timeout=2, prepare_threshold=None) as user:
            for token in tokens():
                if stop.is_set():
                    return
                try:
                    with user.transaction():
                        user.execute("INSERT INTO audit (what) VALUES (%s)", [token])
                        user.execute("UPDATE orders SET total = total + 1 WHERE id = 1")
                except psycopg.Error as error:
                    failed.append(str(error))
                    return
                acknowledged.append(token)
                time.sleep(0.01)

    threads = [threading.Thread(target=write) for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        wait_for(20, acknowledged)
        yield acknowledged, failed
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=30)


def total(world: PostgresWorld) -> Decimal:
    return Decimal(str(world.one("SELECT total FROM orders WHERE id = 1")))


@pytest.mark.parametrize("by_rows", [False, True], ids=["transactions", "rows"])
def test_no_client_of_the_pooler_is_thrown_out_by_a_rollback(embedded: PostgresWorld, *, by_rows: bool) -> None:
    embedded.by_rows = by_rows
    with known_pooler(embedded) as address:
        embedded.take()
        embedded.migrate()
        before = total(embedded)
        with users(address) as (acknowledged, failed):
            embedded.go_back()
            wait_for(len(acknowledged) + 20, acknowledged)
        assert failed == []
        assert not paused(embedded)
        there = {str(what) for (what,) in embedded.sql("SELECT what FROM audit")}
        assert set(acknowledged) == there
        if not by_rows:  # of a row whose last state is invalid, rows cannot tell what users added
            assert total(embedded) == before + 50 + len(acknowledged)  # the migration took 50 off


def test_who_waits_at_the_pooler_is_let_in_when_the_fence_is_lifted(embedded: PostgresWorld) -> None:
    with known_pooler(embedded) as address, users(address) as (acknowledged, failed):
        embedded.target.apply(embedded.fence)
        assert paused(embedded)
        embedded.target.apply(embedded.lift)
        wait_for(len(acknowledged) + 20, acknowledged)
    assert failed == []


def test_a_command_that_died_behind_the_pause_leaves_a_fence_to_be_lifted(embedded: PostgresWorld) -> None:
    with known_pooler(embedded) as address, users(address) as (acknowledged, failed):
        the_pooler(embedded).pause()
        facts = embedded.target.observe()
        assert (facts.paused, facts.exists, seen(embedded.lift, facts)) == (True, True, Seen.NOT_DONE)
        embedded.target.apply(embedded.lift)
        wait_for(len(acknowledged) + 20, acknowledged)
    assert failed == []


def test_a_swap_whose_clients_still_wait_is_not_over(embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(_pooler: object) -> None:
        raise Retryable("PgBouncer does not answer", delay_s=1.0, hint="look")

    with known_pooler(embedded) as address:
        embedded.take()
        embedded.migrate()
        with users(address) as (acknowledged, failed):
            monkeypatch.setattr(Pooler, "resume", silent)
            with pytest.raises(Retryable):
                embedded.go_back()
            swap = embedded.way_back[-1]
            assert isinstance(swap.action, SwapDatabase)
            assert swap.action.swap in embedded.target.observe().swaps
            assert seen(swap, embedded.target.observe()) is Seen.NOT_DONE
            assert any("RESUME" in check.detail for check in embedded.target.checks("") if not check.passed)
            monkeypatch.undo()
            embedded.target.apply(swap)
            assert seen(swap, embedded.target.observe()) is Seen.DONE
            wait_for(len(acknowledged) + 20, acknowledged)
        assert failed == []


def test_a_fence_that_cannot_be_had_lets_everybody_in_again(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stays(*_: object) -> None:
        raise Retryable("sessions do not end", delay_s=1.0)

    monkeypatch.setattr("lastgood.targets.postgres.swap.fence", stays)
    with known_pooler(embedded) as address, users(address) as (acknowledged, failed):
        with pytest.raises(Retryable):
            embedded.target.apply(embedded.fence)
        assert not paused(embedded)
        wait_for(len(acknowledged) + 20, acknowledged)
    assert failed == []


def test_who_stays_in_a_transaction_holds_up_no_fence(embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lastgood.targets.postgres.pooler.ANSWERED_WITHIN_S", 0.5)
    with known_pooler(embedded) as address:
        with psycopg.connect(address, prepare_threshold=None) as idle:
            idle.execute("INSERT INTO audit (what) VALUES ('never committed')")
            with users(address) as (acknowledged, failed):
                embedded.target.apply(embedded.fence)
                facts = embedded.target.observe()
                assert (facts.exists, facts.paused) == (False, True)
                embedded.target.apply(embedded.lift)
                wait_for(len(acknowledged) + 20, acknowledged)
            assert failed == []
            with pytest.raises(psycopg.Error):
                idle.commit()
        assert embedded.one("SELECT count(*) FROM audit WHERE what = 'never committed'") == 0


def test_a_pooler_that_is_gone_holds_up_no_rollback_and_is_told(embedded: PostgresWorld) -> None:
    with known_pooler(embedded):
        embedded.take()
        embedded.migrate()
        gone = embedded.pgbouncer
    embedded.pgbouncer = gone
    embedded.go_back()
    assert [check.name for check in embedded.target.checks("") if not check.passed] == ["PgBouncer hands on"]
    assert embedded.target.preflight() == ()
    assert any("PgBouncer does not answer" in line for line in embedded.target.thrown_out_because())


def test_a_pooler_that_does_not_say_whether_its_clients_wait_is_looked_at_again(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object, **__: object) -> None:
        raise Retryable("PgBouncer: timeout expired", delay_s=1.0)

    with known_pooler(embedded) as address, users(address) as (acknowledged, failed):
        embedded.target.apply(embedded.fence)
        monkeypatch.setattr(Pooler, "_console", silent)
        with pytest.raises(Retryable, match="timeout expired") as error:
            embedded.target.apply(embedded.lift)
        assert "RESUME" in error.value.hint
        facts = embedded.target.observe()
        assert (facts.paused, facts.exists, seen(embedded.lift, facts)) == (None, True, Seen.UNKNOWN)
        monkeypatch.undo()
        embedded.target.apply(embedded.lift)
        assert seen(embedded.lift, embedded.target.observe()) is Seen.DONE
        wait_for(len(acknowledged) + 20, acknowledged)
    assert failed == []


def test_a_pooler_that_ended_makes_nobody_wait(embedded: PostgresWorld) -> None:
    with known_pooler(embedded):
        embedded.target.apply(embedded.fence)
        gone = embedded.pgbouncer
    embedded.pgbouncer = gone
    embedded.target.apply(embedded.lift)
    assert seen(embedded.lift, embedded.target.observe()) is Seen.DONE


def test_a_pause_of_somebody_else_is_left_alone(embedded: PostgresWorld) -> None:
    with known_pooler(embedded) as address:
        psycopg.connect(address).close()
        pool = the_pooler(embedded)
        pool.pause()
        pool.mark.unlink()
        assert not paused(embedded)
        pool.resume()
        assert any("RESUME" in line for line in pool.obstacles())


def test_only_the_pools_of_this_database_wait(embedded: PostgresWorld) -> None:
    name, other = embedded.config.name, f"host={embedded.config.host} port=5432"
    named = (
        f"alias = {other} dbname={name}\nstaging = host=127.0.0.2 port=5432 dbname={name}\nelse = {other} dbname=else"
    )
    with known_pooler(embedded, databases=named) as address:
        assert any("lead to several servers" in line for line in embedded.target.thrown_out_because())
        assert embedded.pgbouncer
        embedded.pgbouncer = embedded.pgbouncer.model_copy(update={"databases": ("alias",)})
        assert embedded.target.thrown_out_because() == ()
        the_pooler(embedded).pause()
        assert waiting(address) == {"alias"}
        embedded.pgbouncer = embedded.pgbouncer.model_copy(update={"databases": ()})
        the_pooler(embedded).resume()
        assert waiting(address) == set()


def test_what_keeps_clients_from_being_made_to_wait_is_told(embedded: PostgresWorld) -> None:
    with known_pooler(embedded, "stats_users = reader") as address:
        psycopg.connect(address).close()  # PgBouncer knows a database by a wildcard once somebody has come for it
        assert embedded.target.thrown_out_because() == ()
        the_pooler(embedded).pause()
        assert any("RESUME" in line for line in embedded.target.thrown_out_because())
        the_pooler(embedded).resume()
        assert embedded.pgbouncer
        embedded.pgbouncer = embedded.pgbouncer.model_copy(update={"user": "nobody"})
        assert any("PgBouncer" in line for line in embedded.target.thrown_out_because())
        with pytest.raises((Refused, Retryable)):
            the_pooler(embedded).pause()
        embedded.pgbouncer = embedded.pgbouncer.model_copy(update={"user": "reader"})
        assert embedded.target.thrown_out_because() == ("reader is not among the admin_users of PgBouncer",)
        assert all(check.passed for check in embedded.target.checks(""))  # whoever comes is handed on all the same


def waiting(address: str) -> set[str]:
    """The databases whose clients wait, as PgBouncer shows them."""
    with closing(
        psycopg.connect(f"{address} dbname=pgbouncer", autocommit=True, cursor_factory=ClientCursor)
    ) as console:
        rows = console.cursor(row_factory=dict_row).execute("SHOW DATABASES").fetchall()
    return {str(row["name"]) for row in rows if str(row["paused"]) == "1"}


def the_pooler(world: PostgresWorld) -> Pooler:
    assert world.pgbouncer
    return Pooler(world.pgbouncer, live=world.config.name, mark=world.folder / "state" / "clients" / "wait")
