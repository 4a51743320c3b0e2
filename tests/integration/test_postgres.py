"""The database goes back on a real server: what is counted, exported, kept, refused, and what a kill leaves."""

from __future__ import annotations

import os
import pkgutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lastgood.core.errors import OutcomeUnknown, Refused
from lastgood.core.migration import Blame, Fit, judge_migration
from lastgood.core.plan import Fence, Seen, Step, TakeRestorePoint, seen
from lastgood.core.release import Release
from lastgood.core.secret import Secret
from lastgood.targets import postgres as room
from tests.contract.rigs import postgres_embedded
from tests.contract.rigs.own_process import begin, ended
from tests.contract.rigs.postgres_world import INVARIANT, SECOND, STATEMENTS, PostgresWorld, step

V1 = Release(
    id="v1", recorded_at=datetime(2026, 1, 1, tzinfo=UTC), engine="process", services=(), statements=STATEMENTS
)


def test_every_row_written_since_is_in_the_export_and_nothing_else_is(world: PostgresWorld) -> None:
    world.by_rows = True
    world.take()
    # between the restore point and the migration, which then rewrites the same rows
    world.sql("INSERT INTO orders (customer, total) VALUES (1, 900), (2, 901)")
    world.sql("UPDATE customers SET name = 'renamed before' WHERE id = 3")
    world.migrate()
    world.sql("INSERT INTO orders (customer, total) VALUES (3, 902)")
    world.sql("UPDATE orders SET state = 'paid' WHERE id = 7")
    world.sql("UPDATE customers SET full_name = full_name WHERE id = 9")
    world.sql("DELETE FROM orders WHERE id = 8")
    world.sql("INSERT INTO audit (what) VALUES ('seen')")
    world.go_back()

    orders = world.exported("orders")
    assert sorted((str(o["change"]), o["row"]["id"]) for o in orders) == [
        ("deleted", 8),
        ("inserted", 101),
        ("inserted", 102),
        ("inserted", 103),
        ("updated", 7),
    ]
    assert [(o["change"], o["row"]) for o in world.exported("customers")] == [
        ("updated", {"id": 3, "full_name": "renamed before"})
    ]
    assert [o["change"] for o in world.exported("audit")] == ["written"]
    losses = {loss.table: loss.rows for loss in world.lost()}
    assert losses == {"orders": 5, "customers": 1, "audit": 1}


def test_the_live_database_is_the_clone_and_the_replaced_one_is_kept(world: PostgresWorld) -> None:
    world.take()
    before = world.target.observe().fingerprint
    world.migrate()
    world.sql("INSERT INTO orders (customer, total) VALUES (1, 900)")
    world.go_back()
    assert world.one("SELECT count(*) FROM orders WHERE total < 0") == 0
    assert world.one("SELECT count(*) FROM orders") == 101
    assert world.one("SELECT count(*) FROM orders", database=world.kept_as) == 101
    assert world.target.observe().fingerprint == before
    assert all(check.passed for check in world.target.checks(before))


def test_no_number_of_a_sequence_is_given_out_twice(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.migrate()
    used = embedded.one("INSERT INTO orders (customer, total) VALUES (1, 900) RETURNING id")
    embedded.go_back()
    assert embedded.one("INSERT INTO orders (customer, total) VALUES (1, 900) RETURNING id") == int(str(used)) + 1


def test_settings_and_rights_of_the_database_come_back_with_it(embedded: PostgresWorld) -> None:
    name = embedded.config.name
    embedded.sql(f"ALTER DATABASE {name} SET statement_timeout = '7s'")
    embedded.sql(f"ALTER DATABASE {name} SET search_path = public, pg_catalog")
    embedded.sql(f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
    rights = f"SELECT array_agg(a::text ORDER BY a::text) FROM pg_database, unnest(datacl) a WHERE datname = '{name}'"
    before = embedded.one(rights)
    embedded.take()
    embedded.migrate()
    embedded.go_back()
    assert embedded.one(rights) == before
    settings = (
        f"SELECT setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase WHERE datname = '{name}'"
    )
    assert embedded.one(settings) == ["statement_timeout=7s", "search_path=public, pg_catalog"]


def test_a_superuser_that_keeps_connecting_does_not_get_past_the_fence(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.migrate()
    acknowledged: list[int] = []
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            try:
                with psycopg.connect(
                    host=embedded.config.host,
                    user="shop",
                    password="pass word",
                    dbname=embedded.config.name,
                    connect_timeout=2,
                ) as connection:
                    while not stop.is_set():
                        row = connection.execute(
                            "INSERT INTO orders (customer, total) VALUES (1, 5000) RETURNING id"
                        ).fetchone()
                        connection.commit()
                        if row:
                            acknowledged.append(row[0])
            except psycopg.Error:
                continue

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        while len(acknowledged) < 100:
            time.sleep(0.01)
        embedded.go_back()
        after = len(acknowledged) + 20
        while len(acknowledged) < after:
            time.sleep(0.01)
    finally:
        stop.set()
        for writer in writers:
            writer.join(timeout=30)
    live = {row[0] for row in embedded.sql("SELECT id FROM orders")}
    in_export = {o["row"]["id"] for o in embedded.exported("orders")}
    assert set(acknowledged) <= live | in_export
    assert not live & in_export
    assert len(acknowledged) == len(set(acknowledged))


def test_the_migration_is_blamed_with_the_evidence_for_it(world: PostgresWorld) -> None:
    world.take()
    world.migrate()
    with world.connect() as connection:
        connection.execute("SET application_name = 'shop'")
        with pytest.raises(psycopg.errors.UndefinedColumn):
            connection.execute("SELECT name FROM customers")
    evidence = world.target.inspect(since=world.target.restore_point(world.restore_point), target=V1)
    assert {c.object for c in evidence.changes} >= {
        "customers.name",
        "customers.full_name",
        "orders.orders_total_check",
    }
    assert ("42703", 1) in {(e.sqlstate, e.count) for e in evidence.errors}
    assert [(b.by_migration, b.by_others) for b in evidence.broken] == [(49, 0)]
    assert evidence.old_release.fit is Fit.NO
    assert "name" in evidence.old_release.reason
    assert judge_migration(evidence).blame is Blame.MIGRATION
    assert evidence.writes is not None
    assert evidence.writes.total == 0
    assert {name for name in world.target.observe().databases if "_lg_try_" in name} == set()


def test_rows_that_the_application_broke_are_not_blamed_on_a_migration(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.ship("v2", {SECOND: "ALTER TABLE orders DROP CONSTRAINT orders_total_check"})
    embedded.migrate()
    embedded.sql("INSERT INTO orders (customer, total) VALUES (1, 0)")
    evidence = embedded.target.inspect(since=embedded.target.restore_point("rp-d2"), target=V1)
    assert [(b.by_migration, b.by_others, b.keys) for b in evidence.broken] == [(0, 1, ("101",))]
    assert evidence.old_release.fit is Fit.YES
    assert judge_migration(evidence).blame is Blame.APPLICATION


@pytest.mark.full
def test_looking_for_evidence_writes_nothing_to_the_live_database(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.migrate()
    before = embedded.sql("SELECT id, xmin::text FROM customers ORDER BY id")
    embedded.target.inspect(since=embedded.target.restore_point("rp-d2"), target=V1)
    assert embedded.sql("SELECT id, xmin::text FROM customers ORDER BY id") == before
    assert embedded.one(f"SELECT count(*) FROM ({INVARIANT}) q") == 49


def test_what_is_written_between_plan_and_fence_is_estimated_first_and_counted_then(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.sql("INSERT INTO orders (customer, total) VALUES (1, 900), (2, 901)")
    embedded.migrate()
    embedded.sql("INSERT INTO orders (customer, total) VALUES (1, 902)")
    writes = embedded.target.inspect(since=embedded.target.restore_point("rp-d2"), target=V1).writes
    assert writes is not None
    assert dict(writes.tables) == {"orders": 3, "customers": 0, "audit": 0}


def test_a_dump_that_is_not_the_one_that_was_proved_is_refused(embedded: PostgresWorld) -> None:
    embedded.take()
    dump = embedded.folder / "restore-points" / "rp-d2.dump"
    content = dump.read_bytes()
    for damaged in (content[:-1], b"", bytes([content[0] ^ 1]) + content[1:], content[:-9] + b"<html>..."):
        dump.write_bytes(damaged)
        with pytest.raises(Refused, match="rp-d2"):
            embedded.target.restore_point("rp-d2")
    dump.write_bytes(content)
    assert embedded.target.restore_point("rp-d2").id == "rp-d2"
    assert dump.stat().st_mode & 0o777 == 0o600


def test_a_clone_that_somebody_wrote_to_is_not_swapped_in(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.migrate()
    embedded.sql("DELETE FROM orders WHERE id = 1", database=embedded.clone)
    with pytest.raises(Refused, match="not as it was proved"):
        embedded.go_back()
    assert embedded.target.observe().exists, "the fence was up already"


def test_a_fence_can_be_lifted_and_everybody_is_let_in_again(world: PostgresWorld) -> None:
    world.take()
    fence = next(s for s in world.way_back if isinstance(s.action, Fence))
    world.target.apply(fence)
    assert not world.target.observe().exists
    assert seen(world.lift, world.target.observe()) is Seen.NOT_DONE
    world.target.apply(world.lift)
    assert seen(world.lift, world.target.observe()) is Seen.DONE
    assert world.one("SELECT count(*) FROM orders") == 100


def test_a_migration_that_fails_is_unknown_until_somebody_looks(embedded: PostgresWorld) -> None:
    embedded.ship("v2", {SECOND: "ALTER TABLE nowhere ADD COLUMN x int"})
    with pytest.raises(OutcomeUnknown, match="nowhere"):
        embedded.migrate()
    facts = embedded.target.observe()
    assert facts.failed_migrations == (SECOND,)
    assert seen(embedded.step_to_migrate(), facts) is Seen.UNKNOWN


@pytest.mark.full
def test_only_the_newest_restore_points_are_kept_with_their_clones(embedded: PostgresWorld) -> None:
    for name in ("rp-d1", "rp-d2", "rp-d3"):
        embedded.target.apply(step("take", TakeRestorePoint(restore_point=name)))
    facts = embedded.target.observe()
    assert facts.restore_points == {"rp-d2", "rp-d3"}
    assert {name for name in facts.databases if name.startswith(f"{embedded.config.name}_lg_")} == {
        embedded.clone,
        embedded.clone.replace("rp-d2", "rp-d3"),
    }


def test_preflight_names_a_role_that_could_not_do_it(embedded: PostgresWorld) -> None:
    assert embedded.target.preflight() == ()
    embedded.sql("CREATE ROLE plain LOGIN PASSWORD 'pass word'")
    embedded.config = embedded.config.model_copy(update={"user": "plain"})
    told = "\n".join(embedded.target.preflight())
    assert "CREATEDB" in told
    assert "does not own" in told


@pytest.mark.full
def test_a_wrong_password_is_refused_with_the_place_to_mend(tmp_path: Path) -> None:
    with postgres_embedded.rig(tmp_path) as alone:
        (alone.folder / "pg" / "pg_hba.conf").write_text("local all all scram-sha-256\n")
        alone.sql("SELECT pg_reload_conf()")
        alone.config = alone.config.model_copy(update={"password": Secret("wrong")})
        refused = until_refused(alone)
    assert "password" in refused.message
    assert "lastgood.yaml" in refused.hint


def test_a_migration_command_that_prints_its_address_does_not_show_the_password(embedded: PostgresWorld) -> None:
    fails = [sys.executable, "-c", "import os; raise SystemExit('x' * 580 + os.environ['DATABASE_URL'] + 'pass word')"]
    embedded.migrations = {**embedded.migrations, "command": fails, "down": fails}
    with pytest.raises(OutcomeUnknown) as up:
        embedded.target.apply(embedded.step_to_migrate())
    with pytest.raises(Refused) as down:
        embedded.target.ships("v2")
    for said in (up.value.message, down.value.message):
        assert "ended 1: " in said
        assert "word" not in said


def until_refused(world: PostgresWorld) -> Refused:
    """The server reads its rules again in its own time."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            world.target.observe()
        except Refused as error:
            return error
    pytest.fail("a wrong password is not refused")


KILLED_AT = (
    "restore_point._dump", "server.create_beside", "tools.Tools.restore", "restore_point._prove", "shelf.write",
    "server.shut", "server.rename", "server.admit", "restore_point.clone_as_proved", "swap._carry_sequences_on",
    "server.open_ledger", "capture.Captures._publish", "capture._create_slot", "capture.Captures.uncover",
    "capture.Captures.end", "replay._begin", "replay.Replay._carry", "replay.Replay._round", "replay.finish",
    "replay.Replay.copy_for_the_next", "replay.clear",
)  # fmt: skip
SHORT = frozenset({
    ("replay.Replay._carry", "after"), ("server.rename", "after"), ("row_replay._write_down", "after"),
})  # fmt: skip
KILLED_AT_BY_ROWS = ("writes.export", "row_replay._put", "row_replay._write_down", "row_replay.carry", "replay.clear")


def deadly(where: str, when: str) -> None:
    """Have this process killed before or after the function at that place of the room, wherever the room calls it."""
    module, *path = where.split(".")
    owner: Any = import_module(f"lastgood.targets.postgres.{module}")
    for part in path[:-1]:
        owner = getattr(owner, part)
    true = getattr(owner, path[-1])

    def die(*words: object, **named: object) -> object:
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = true(*words, **named)
        os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(owner, path[-1], die)
    for each in pkgutil.iter_modules(room.__path__):
        importer = import_module(f"lastgood.targets.postgres.{each.name}")
        if getattr(importer, path[-1], None) is true:
            setattr(importer, path[-1], die)


def kills() -> Iterator[Any]:
    for by_rows, places in ((False, KILLED_AT), (True, KILLED_AT_BY_ROWS)):
        for where in places:
            for when in ("before", "after"):
                marks = [] if (where, when) in SHORT else [pytest.mark.full]
                yield pytest.param(where, when, by_rows, id=f"{where}-{when}-{'rows' if by_rows else ''}", marks=marks)


@pytest.mark.parametrize("where,when,by_rows", list(kills()))
def test_killed_inside_a_step_the_same_steps_end_the_same(
    embedded: PostgresWorld, where: str, when: str, *, by_rows: bool
) -> None:
    """Each step that reaches the place is killed there once and then taken again."""
    embedded.by_rows = by_rows
    killed = 0
    for each in (embedded.steps[0], embedded.step_to_migrate(), *embedded.way_back, embedded.end_capture):
        killed += _killed(embedded, each, where, when)
        embedded.target.apply(each)
        if each.name == "migrate":
            embedded.sql("INSERT INTO orders (customer, total) VALUES (1, 900)")
    assert killed
    facts = embedded.target.observe()
    assert all(seen(each, facts) is Seen.DONE for each in embedded.way_back if not isinstance(each.action, Fence))
    name = embedded.config.name
    assert {each for each in facts.databases if each.startswith(name)} == {name, embedded.kept_as}
    assert embedded.one("SELECT count(*) FROM orders WHERE total = 900") == 1
    assert embedded.one("SELECT count(*) FROM orders") == 101
    assert (embedded.replayed().carried, embedded.quarantine()) == ((("orders", 1),), [])
    assert (
        embedded.sql("SELECT slot_name FROM pg_replication_slots WHERE database LIKE current_database() || '%'") == []
    )
    assert embedded.one(f"SELECT count(*) FROM swaps WHERE database = '{name}'", database="lastgood") == 1


def _killed(world: PostgresWorld, each: Step, where: str, when: str) -> bool:
    """Take a step in a process of its own, and say whether that was killed."""

    def dying() -> None:
        deadly(where, when)
        world.target.apply(each)

    status = ended(begin(dying))
    assert status in (0, -signal.SIGKILL), "the child's traceback is in the captured output"
    return status == -signal.SIGKILL
