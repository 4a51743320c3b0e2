"""What a production database has beside tables, and what goes wrong on its host: a rollback ends well all the same, or
refuses before anything is touched."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from lastgood.core.errors import LastgoodError, Retryable
from tests.contract.rigs import postgres_embedded
from tests.contract.rigs.postgres_world import PostgresWorld

ROOM_MB = 3
MORE_THAN_FITS = (
    "CREATE TABLE big AS SELECT g AS id, md5(g::text) || md5((-g)::text) AS what FROM generate_series(1, 150000) g"
)


@contextmanager
def small_disk(folder: Path) -> Generator[None]:
    """A filesystem of its own, with room for little."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM_MB}m,mode=0700", "tmpfs", folder], check=True, timeout=10
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True, timeout=10)


def databases(world: PostgresWorld) -> set[str]:
    rows = world.sql("SELECT datname FROM pg_database WHERE starts_with(datname, current_database())")
    return {str(name) for (name,) in rows}


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small filesystem")


@needs_root
def test_a_disk_that_is_too_small_is_told_before_a_deploy(embedded: PostgresWorld) -> None:
    with small_disk(embedded.folder / "restore-points"):
        told = embedded.target.preflight()
    assert any("restore-points has 3 MB free; a dump may need" in line for line in told)


@needs_root
def test_a_disk_that_fills_up_leaves_no_half_of_a_restore_point(embedded: PostgresWorld) -> None:
    embedded.sql(MORE_THAN_FITS)
    with small_disk(embedded.folder / "restore-points"):
        with pytest.raises(LastgoodError, match="No space left"):
            embedded.take()
        assert embedded.target.observe().restore_points == frozenset()
        assert embedded.sql("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()") == []
    assert databases(embedded) == {embedded.config.name}
    embedded.take()  # and with room it is taken
    assert embedded.target.observe().restore_points == {embedded.restore_point}


@needs_root
def test_a_disk_that_is_full_keeps_the_live_database_serving(embedded: PostgresWorld) -> None:
    embedded.sql(MORE_THAN_FITS)
    embedded.take()
    embedded.migrate()
    first, *rest = embedded.way_back
    with small_disk(embedded.folder / "state" / "dumps"):
        with pytest.raises(LastgoodError, match="No space left"):
            embedded.target.apply(first)
        assert embedded.target.observe().dumps == frozenset()
    embedded.sql("INSERT INTO orders (customer, total) VALUES (1, 900)")
    for step in (first, *rest):
        embedded.target.apply(step)
    assert embedded.one("SELECT count(*) FROM orders WHERE total = 900") == 1


@pytest.mark.parametrize("by_rows", [False, True], ids=["captured", "by rows"])
def test_a_materialized_view_shows_what_was_written_since_or_is_named(
    embedded: PostgresWorld, *, by_rows: bool
) -> None:
    embedded.sql("CREATE MATERIALIZED VIEW per_state AS SELECT state, count(*) FROM orders GROUP BY 1")
    embedded.sql("CREATE MATERIALIZED VIEW states AS SELECT count(*) AS n FROM per_state")
    embedded.by_rows = by_rows
    embedded.take()
    embedded.migrate()
    embedded.sql("INSERT INTO orders (customer, total, state) VALUES (1, 900, 'paid')")
    embedded.go_back()
    named = [note for note in embedded.replayed().notes if note.startswith("REFRESH")]
    if by_rows:
        assert len(named) == 2
        assert 'REFRESH MATERIALIZED VIEW "public"."per_state": it shows' in named[0]
    else:
        assert named == []
        assert embedded.sql("SELECT state::text, count::int FROM per_state ORDER BY 1") == [("new", 100), ("paid", 1)]
        assert embedded.one("SELECT n FROM states") == 2


def test_a_materialized_view_that_cannot_be_refreshed_is_named_and_stops_nothing(embedded: PostgresWorld) -> None:
    embedded.sql("CREATE MATERIALIZED VIEW odd AS SELECT 1 / (total - 900) AS n FROM orders")
    embedded.take()
    embedded.migrate()
    embedded.sql("INSERT INTO orders (customer, total) VALUES (1, 900)")
    embedded.go_back()
    assert (
        'REFRESH MATERIALIZED VIEW "public"."odd": it shows an earlier state of its tables' in embedded.replayed().notes
    )
    assert embedded.one("SELECT count(*) FROM orders WHERE total = 900") == 1


def test_a_sequence_that_ran_far_ahead_goes_on_there(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.migrate()
    embedded.sql("SELECT setval('orders_id_seq', 9000000000)")
    embedded.sql("INSERT INTO orders (customer, total) VALUES (1, 900)")
    embedded.go_back()
    assert embedded.one("INSERT INTO orders (customer, total) VALUES (1, 1) RETURNING id") == 9000000002


def test_a_transaction_that_is_idle_ends_at_the_fence(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.migrate()
    with embedded.connect() as idle:
        idle.execute("BEGIN; UPDATE customers SET full_name = 'x' WHERE id = 1")
        embedded.go_back()
        with pytest.raises(psycopg.OperationalError):
            idle.execute("COMMIT")
    assert embedded.one("SELECT name FROM customers WHERE id = 1") == "customer 1"


def test_who_keeps_everybody_from_looking_is_named_and_nothing_is_touched(embedded: PostgresWorld) -> None:
    """As a migration does that hangs in the middle."""
    embedded.take()
    embedded.migrate()
    with embedded.connect() as idle:
        idle.execute("SET application_name = 'migrate'")
        idle.execute("BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        before = embedded.effects()
        with pytest.raises(
            Retryable, match=rf"lock timeout; held by {idle.info.backend_pid} migrate .*idle in transaction"
        ):
            embedded.go_back()
        assert embedded.effects() == before
    embedded.go_back()


def test_a_role_that_may_replicate_and_is_no_superuser_loses_nothing(tmp_path: Path) -> None:
    """As on a managed server with logical replication: transactions are replayed in their order."""
    with postgres_embedded.rig(tmp_path) as alone:
        alone.sql("CREATE ROLE app LOGIN CREATEDB REPLICATION PASSWORD 'pass word'; ALTER DATABASE shop OWNER TO app")
        alone.sql("REASSIGN OWNED BY shop TO app")
        alone.config = alone.config.model_copy(update={"user": "app"})
        assert alone.target.lossy_because() == ()
        before = alone.target.observe().fingerprint
        alone.take()
        alone.migrate()
        alone.sql("INSERT INTO orders (customer, total) VALUES (1, 900)")
        alone.sql("UPDATE orders SET total = total + 1 WHERE total = 900")
        alone.go_back()
        assert alone.target.observe().fingerprint == before
        assert alone.one("SELECT count(*) FROM orders WHERE total = 901") == 1
        assert alone.replayed().units == "transactions"


# --- a pooler in front of the server ---------------------------------------------------------------------------------


@contextmanager
def pooler(world: PostgresWorld, *more: str) -> Generator[str]:
    """PgBouncer in transaction mode before the server, as users reach it. Yields how to connect. more: of its
    settings."""
    bouncer = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    assert bouncer, "pgbouncer is missing: scripts/engine.sh installs it"
    password = world.config.password.reveal() if world.config.password else ""
    with postgres_embedded.open_folder() as folder:
        folder.chmod(0o777)  # it gives root up
        (folder / "users").write_text(f'"{world.config.user}" "{password}"\n')
        (folder / "ini").write_text(
            f"[databases]\n* = host={world.config.host} port={world.config.port}\n"
            f"[pgbouncer]\nlisten_port = 6432\nunix_socket_dir = {folder}\nauth_type = trust\n"
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
