"""What a production database has beside tables, and what goes wrong on its host: a rollback ends well all the same, or
refuses before anything is touched."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lastgood.core.errors import LastgoodError, Refused, Retryable
from lastgood.core.report import Progress, RowProgress, RowWork
from lastgood.targets.postgres import preflight, replay, restore_point, row_replay, writes
from lastgood.targets.postgres.connect import connect
from lastgood.targets.postgres.pgoutput import Transaction
from lastgood.targets.postgres.server import Server
from tests.contract.rigs import postgres_embedded
from tests.contract.rigs.clock import CLOCK
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
def test_restore_points_on_the_volume_of_the_data_are_told_before_a_deploy(embedded: PostgresWorld) -> None:
    def told() -> bool:
        return any(
            "restore-points is on the volume of the server's data" in line for line in embedded.target.cautions()
        )

    assert told()
    with small_disk(embedded.folder / "restore-points"):
        assert not told()


def test_a_table_without_a_key_is_told_before_a_deploy(embedded: PostgresWorld) -> None:
    def told() -> list[str]:
        return [line for line in embedded.target.cautions() if line.startswith("without a primary key: audit. ")]

    (line,) = told()
    assert line.endswith("ALTER TABLE audit ADD PRIMARY KEY (...)")
    embedded.sql("ALTER TABLE audit ADD id serial PRIMARY KEY")
    assert told() == []


def test_a_write_that_does_not_end_is_told_before_a_deploy(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "OLD_S", 0.0)
    with embedded.connect() as idle:
        idle.execute("SET application_name = 'payroll'")
        idle.execute("BEGIN; UPDATE customers SET name = 'x' WHERE id = 1")
        pid = idle.info.backend_pid
        (line,) = (line for line in embedded.target.cautions() if "payroll" in line)
        assert line.startswith(f"{pid} payroll ({embedded.config.user}, idle in transaction) has written and not ended")
        assert line.endswith(f"SELECT pg_terminate_backend({pid})")


def test_other_databases_are_told_where_a_recovery_would_copy_them(embedded: PostgresWorld) -> None:
    dumps, server = embedded.folder / "restore-points", Server(embedded.config)
    embedded.sql(f"CREATE DATABASE other_{embedded.config.name}", database="postgres")
    try:
        line = preflight.cautions(server, dumps, recovers=True)[-1]
        assert line.startswith("other databases of the server: ")
        assert f"other_{embedded.config.name}" in line
        assert not any("other databases" in line for line in preflight.cautions(server, dumps, recovers=False))
    finally:
        embedded.sql(f"DROP DATABASE other_{embedded.config.name}", database="postgres")


@pytest.mark.full
def test_what_other_roles_do_is_hidden_and_that_is_told(tmp_path: Path) -> None:
    with postgres_embedded.rig(tmp_path) as alone:
        alone.sql("CREATE ROLE app LOGIN PASSWORD 'pass word'; GRANT ALL ON ALL TABLES IN SCHEMA public TO app")
        config = alone.config
        alone.config = config.model_copy(update={"user": "app"})
        with connect(config):
            assert any("GRANT pg_read_all_stats TO app" in line for line in alone.target.cautions())
        with connect(config, autocommit=True) as superuser:
            superuser.execute("GRANT pg_read_all_stats TO app")
            assert not any("pg_read_all_stats" in line for line in alone.target.cautions())


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


@pytest.mark.full
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


@pytest.mark.full
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


def test_a_replay_by_rows_is_tried_while_users_write_and_leaves_nothing_behind(embedded: PostgresWorld) -> None:
    embedded.by_rows = True
    embedded.take()
    embedded.migrate()
    embedded.sql("INSERT INTO orders (customer, total) VALUES (1, 900)")
    embedded.sql("INSERT INTO orders (customer, total) VALUES (1, -1)")
    with embedded.connect() as idle:
        idle.execute("BEGIN; INSERT INTO orders (customer, total) VALUES (2, 901)")
        tried = embedded.target.try_replay(embedded.replay)
        idle.execute("ROLLBACK")
    assert tried.replayed is not None
    assert (tried.replayed.units, tried.replayed.quarantined) == ("rows", 1)
    assert embedded.sql("SELECT 1 FROM pg_namespace WHERE nspname = 'lastgood'", database=embedded.clone) == []
    assert embedded.one("SELECT count(*) FROM orders WHERE total = 900", database=embedded.clone) == 0
    assert 0.3 < tried.pause_s < 60
    embedded.go_back()
    assert (embedded.replayed().carried, embedded.replayed().quarantined) == (tried.replayed.carried, 1)
    assert embedded.sql("SELECT total::int FROM orders WHERE total > 899") == [(900,)]


def test_a_replay_by_rows_that_would_be_refused_is_refused_when_it_is_tried(embedded: PostgresWorld) -> None:
    embedded.by_rows = True
    embedded.take()
    embedded.migrate()
    embedded.sql("UPDATE orders SET total = 7 WHERE id = 1", database=embedded.clone)
    with pytest.raises(Refused, match="somebody wrote to orders"):
        embedded.target.try_replay(embedded.replay)


def test_a_replay_says_how_far_it_is_and_nothing_when_it_is_over(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded.take()
    embedded.migrate()
    for _ in range(12):
        embedded.sql("INSERT INTO orders (customer, total) VALUES (1, 900)")
    for name in ("AT_ONCE", "MOST_AT_ONCE"):  # else a batch that goes well doubles the next
        monkeypatch.setattr(replay, name, 4)
    target, seen, carry = embedded.target, list[Progress](), replay.Replay._carry

    def look(self: replay.Replay, batch: Sequence[Transaction]) -> None:
        if isinstance(now := target.progress(), Progress):
            seen.append(now)
        carry(self, batch)

    monkeypatch.setattr(replay.Replay, "_carry", look)
    for each in embedded.way_back:
        target.apply(each)
    assert [now.done for now in seen] == sorted(now.done for now in seen)
    assert {0, 4, 8} <= {now.done for now in seen}
    assert all(0 < now.at_bytes <= now.end_bytes for now in seen)
    assert target.progress() is None


def test_a_replay_by_rows_says_how_far_it_is_and_nothing_when_it_is_over(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded.by_rows = True
    embedded.take()
    embedded.migrate()
    for _ in range(12):
        embedded.sql("INSERT INTO orders (customer, total) VALUES (1, 900)")
    monkeypatch.setattr(row_replay, "AT_ONCE", 4)
    target, seen = embedded.target, list[RowProgress]()
    compared, answers = writes.Comparison.changes, row_replay._answers

    def look() -> None:
        so_far = target.progress()
        assert isinstance(so_far, RowProgress)
        seen.append(so_far)

    def comparing(self: writes.Comparison, *words: Any, **named: Any) -> Iterator[writes.Change]:  # noqa: ANN401 # whatever it is called with
        look()
        return compared(self, *words, **named)

    def answering(*words: Any) -> Iterator[Any]:  # noqa: ANN401 # whatever it is called with
        look()
        return answers(*words)

    monkeypatch.setattr(writes.Comparison, "changes", comparing)
    monkeypatch.setattr(row_replay, "_answers", answering)
    for each in embedded.way_back:
        target.apply(each)
        if seen:
            assert target.progress() is None
    sizes = {so_far.of for so_far in seen if so_far.work is RowWork.COMPARED}
    places = [so_far.done for so_far in seen if so_far.work is RowWork.COMPARED]
    assert len(sizes) == 1
    assert places == sorted(set(places)) * 2, "once for the export, and once to be carried"
    assert max(places) < sizes.pop()
    rows = [(so_far.done, so_far.of) for so_far in seen if so_far.work is RowWork.PUT_BACK]
    assert rows == [(0, 12), (4, 12), (8, 12)]


def test_how_much_the_server_lets_a_slot_keep_is_seen(embedded: PostgresWorld) -> None:
    assert embedded.target.observe().slot_limit_bytes == 4 << 30


@pytest.mark.full
def test_a_server_that_sets_a_slot_no_limit_is_seen(tmp_path: Path) -> None:
    with postgres_embedded.rig(tmp_path) as alone:
        alone.sql("ALTER SYSTEM SET max_slot_wal_keep_size = -1")
        alone.sql("SELECT pg_reload_conf()")
        with alone.connect() as new:
            assert new.execute("SHOW max_slot_wal_keep_size").fetchone() == ("-1",)
        assert alone.target.observe().slot_limit_bytes is None


@pytest.mark.full
def test_what_the_restore_of_a_point_wrote_is_kept_and_does_not_count_against_its_limit(
    embedded: PostgresWorld,
) -> None:
    embedded.sql(MORE_THAN_FITS)
    assert embedded.target.observe().restore_log_bytes > 10_000_000
    embedded.take()
    facts = embedded.target.observe()
    assert facts.capture_own_bytes > 10_000_000
    assert facts.captured_since_bytes < facts.capture_own_bytes / 2  # an empty database is made beside, no more
    embedded.sql("UPDATE big SET what = what || id")
    grown = embedded.target.observe()
    assert grown.captured_since_bytes > 10_000_000
    assert grown.capture_own_bytes == facts.capture_own_bytes


def test_a_server_that_lets_a_slot_keep_less_than_a_restore_writes_is_told_before_a_deploy(tmp_path: Path) -> None:
    with postgres_embedded.rig(tmp_path) as alone:
        alone.sql(MORE_THAN_FITS)
        assert alone.target.lossy_because() == ()
        alone.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'")
        alone.sql("SELECT pg_reload_conf()")
        (line,) = alone.target.lossy_because()
        assert line.startswith("a slot may keep 16 MiB of log, and a restore beside writes about ")
        assert line.endswith("max_slot_wal_keep_size")
        alone.take()
        kept = restore_point.newest(alone.folder / "restore-points", alone.config.name)
        assert kept is not None
        assert (kept.point.captured, kept.point.lossy_because) == (False, (line,))


@pytest.mark.parametrize("lossless", [False, True])
def test_a_log_that_the_server_let_go_of_while_a_point_was_taken_replays_nothing(
    tmp_path: Path, *, lossless: bool
) -> None:
    with postgres_embedded.rig(tmp_path) as alone:
        alone.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'")
        alone.sql("SELECT pg_reload_conf()")
        server, folder = Server(alone.config), alone.folder / "restore-points"

        def others_write() -> None:
            for _ in range(6):
                alone.sql("SELECT pg_logical_emit_message(false, '', repeat('x', 4000)) FROM generate_series(1, 4200)")
                alone.sql("SELECT pg_switch_wal()")
            alone.sql("CHECKPOINT")

        def take() -> None:
            restore_point.take(
                server, folder, alone.restore_point,
                keep=1, lossless=lossless, mark=others_write, deadline_s=60.0, clock=CLOCK,
            )  # fmt: skip

        if lossless:
            with pytest.raises(Refused, match="let go of the slot's log before the restore was over"):
                take()
            assert restore_point.newest(folder, server.live) is None
        else:
            take()
            kept = restore_point.newest(folder, server.live)
            assert kept is not None
            assert not kept.point.captured
            assert kept.slot == ""
            assert "let go" in kept.point.lossy_because[0]
        facts = alone.target.observe()
        assert (facts.captures, facts.capture_left) == (frozenset(), False)


def test_what_a_slot_keeps_counts_although_its_restore_point_was_never_kept(embedded: PostgresWorld) -> None:
    """As where a deploy was killed while it took one."""
    embedded.take()
    (embedded.folder / "restore-points" / f"{embedded.restore_point}.json").unlink()
    embedded.sql(MORE_THAN_FITS)
    facts = embedded.target.observe()
    assert (facts.captures, facts.capture_left) == (frozenset(), True)
    assert facts.capture_bytes > 10_000_000
    embedded.target.apply(embedded.end_capture)
    assert embedded.target.observe().capture_bytes == 0


@pytest.mark.full
def test_nobody_who_reads_waits_long_while_a_restore_point_waits_for_a_reader(embedded: PostgresWorld) -> None:
    """A change that waits for its lock has everybody behind it wait."""
    over, turned_away = threading.Event(), list[str]()

    def read() -> None:
        with embedded.connect() as connection:
            connection.execute("SET lock_timeout = '1s'")
            while not over.is_set():
                try:
                    connection.execute("SELECT FROM orders LIMIT 1")
                except psycopg.errors.LockNotAvailable as error:
                    turned_away.append(str(error))

    with embedded.connect() as long, ThreadPoolExecutor(1) as pool:
        long.execute("BEGIN; SELECT FROM orders LIMIT 1")
        reading = pool.submit(read)
        try:
            embedded.take()
        finally:
            over.set()
            reading.result()
        long.execute("ROLLBACK")
    assert turned_away == []
