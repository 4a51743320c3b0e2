"""What leaves the live data is in the export, whatever the migration did to the tables: told by a ledger outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

import pytest

from lastgood.core.errors import OutcomeUnknown
from lastgood.core.plan import TakeRestorePoint
from lastgood.core.release import Release
from lastgood.targets.postgres import row_replay, writes
from lastgood.testing.world import START
from tests.contract.rigs.postgres_world import SECOND, STATEMENTS, PostgresWorld, step

V1 = Release(id="v1", recorded_at=START, engine="process", services=(), statements=STATEMENTS)


@pytest.fixture(autouse=True)
def nothing_was_captured(embedded: PostgresWorld) -> None:
    """Then the rows are exported, and carried in their last state."""
    embedded.by_rows = True


def rows(world: PostgresWorld, table: str, *, database: str | None = None) -> dict[object, object]:
    """The ledger: key to row, as text."""
    pairs = world.sql(f'SELECT id, t::text FROM "{table}" t', database=database)
    return {pair[0]: pair[1] for pair in pairs}


def migrated(world: PostgresWorld, migration: str) -> None:
    world.take()
    world.ship("v2", {SECOND: migration})
    world.migrate()


def told(world: PostgresWorld) -> Mapping[str, int]:
    """Rows by table, as the plan would announce them."""
    writes = world.target.inspect(since=world.target.restore_point("rp-d2"), target=V1).writes
    assert writes is not None
    return {table: rows for table, rows in writes.tables if rows}


def lost(world: PostgresWorld) -> Mapping[str, int]:
    return {loss.table: loss.rows for loss in world.lost()}


def test_rows_whose_key_changed_its_type_are_told_apart(embedded: PostgresWorld) -> None:
    migrated(
        embedded,
        "DROP VIEW paid; ALTER TABLE orders ALTER COLUMN id DROP DEFAULT, ALTER COLUMN id TYPE text USING id::text; "
        "ALTER TABLE audit ADD COLUMN by text",
    )
    embedded.sql("INSERT INTO orders (id, customer, total) VALUES ('ord-1', 1, 900)")
    embedded.sql("UPDATE orders SET total = 7000 WHERE id = '7'")
    embedded.sql("DELETE FROM orders WHERE id = '8'")
    assert told(embedded) == {"orders": 3}
    embedded.go_back()
    assert lost(embedded) == {"orders": 3}
    assert {(o["change"], str(o["row"]["id"])) for o in embedded.exported("orders")} == {
        ("inserted", "ord-1"),
        ("updated", "7"),
        ("deleted", "8"),
    }


def test_keys_may_be_called_as_we_call_our_own_columns(embedded: PostgresWorld) -> None:
    embedded.sql('CREATE TABLE odd ("row" int, by_migration text, key0 text, PRIMARY KEY ("row", by_migration))')
    embedded.sql("INSERT INTO odd VALUES (1, 'a', 'x'), (2, 'b', 'y'), (3, 'c', 'z')")
    embedded.take()
    embedded.migrate()
    embedded.sql("UPDATE odd SET key0 = 'changed' WHERE \"row\" = 2")
    embedded.sql('DELETE FROM odd WHERE "row" = 3')
    embedded.go_back()
    assert sorted((o["change"], o["row"]["row"]) for o in embedded.exported("odd")) == [("deleted", 3), ("updated", 2)]


def test_what_only_a_new_column_holds_is_exported(embedded: PostgresWorld) -> None:
    migrated(
        embedded,
        "DROP VIEW paid; ALTER TABLE orders ADD COLUMN discount int, ALTER COLUMN total TYPE numeric(12, 2)",
    )
    embedded.sql("UPDATE orders SET discount = 5 WHERE id IN (3, 4)")
    embedded.sql("UPDATE orders SET total = total WHERE id = 9")
    embedded.go_back()
    assert [(o["change"], o["row"]["id"], o["row"]["discount"]) for o in embedded.exported("orders")] == [
        ("updated", 3, 5),
        ("updated", 4, 5),
    ]


def test_an_application_that_truncates_a_table_is_no_migration(embedded: PostgresWorld) -> None:
    migrated(embedded, "ALTER TABLE audit ADD COLUMN by text")
    embedded.sql("BEGIN; TRUNCATE orders; INSERT INTO orders (customer, total) VALUES (1, 900), (2, 901); COMMIT")
    assert told(embedded) == {"orders": 102}
    embedded.go_back()
    assert lost(embedded) == {"orders": 102}


def test_rows_of_a_table_that_the_migration_made_are_exported(embedded: PostgresWorld) -> None:
    migrated(embedded, "CREATE TABLE coupons (id int PRIMARY KEY); INSERT INTO coupons VALUES (1), (2)")
    embedded.sql("INSERT INTO coupons VALUES (3)")
    embedded.go_back()
    assert [(o["change"], o["row"]["id"]) for o in embedded.exported("coupons")] == [("inserted", 3)]


def test_a_table_that_was_renamed_and_moved_is_the_same_table(embedded: PostgresWorld) -> None:
    migrated(
        embedded,
        "CREATE SCHEMA sales; ALTER TABLE orders RENAME TO purchases; ALTER TABLE purchases SET SCHEMA sales; "
        "ALTER TABLE sales.purchases RENAME COLUMN id TO number; UPDATE sales.purchases SET total = total + 1",
    )
    embedded.sql("INSERT INTO sales.purchases (customer, total) VALUES (1, 900)")
    embedded.sql("DELETE FROM sales.purchases WHERE number = 5")
    embedded.go_back()
    assert sorted(o["change"] for o in embedded.exported("orders")) == ["deleted", "inserted"]
    assert lost(embedded) == {"orders": 2}


def test_tables_whose_names_look_alike_have_files_of_their_own(embedded: PostgresWorld) -> None:
    embedded.sql('CREATE SCHEMA a; CREATE TABLE a.b (id int PRIMARY KEY); CREATE TABLE "a.b" (id int PRIMARY KEY)')
    embedded.sql('CREATE TABLE "../../escape" (id int PRIMARY KEY)')
    embedded.take()
    embedded.migrate()
    embedded.sql('INSERT INTO a.b VALUES (1); INSERT INTO "a.b" VALUES (2), (3); INSERT INTO "../../escape" VALUES (4)')
    embedded.go_back()
    losses = embedded.lost()
    assert sorted((loss.table, loss.rows) for loss in losses) == [("../../escape", 1), ("a.b", 1), ("a.b", 2)]
    assert len({loss.file for loss in losses}) == 3
    inside = embedded.folder / "state" / "exports" / "export-r1"
    assert {path.parent for path in inside.rglob("*.jsonl")} <= {inside, inside / "rewritten"}
    assert {path.stat().st_mode & 0o777 for path in inside.rglob("*.jsonl")} == {0o600}


def test_what_the_migration_rewrote_is_kept_apart_and_is_no_loss(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.migrate()
    embedded.go_back()
    rewritten = embedded.folder / "state" / "exports" / "export-r1" / "rewritten" / "orders.jsonl"
    assert len(rewritten.read_text().splitlines()) == 100
    assert embedded.lost() == ()


@pytest.mark.parametrize("migration", ["ALTER TABLE customers RENAME COLUMN name TO full_name", "SELECT 1"])
@pytest.mark.parametrize("by_rows", [True, False], ids=["rows", "transactions"])
def test_the_outside_ledger_and_the_live_data_agree_row_by_row(
    embedded: PostgresWorld, migration: str, *, by_rows: bool
) -> None:
    """Every kind of write, between the restore point and the migration and after it, subtransactions included."""
    embedded.by_rows = by_rows
    embedded.take()
    embedded.sql("INSERT INTO orders (customer, total) SELECT 1 + g % 20, g FROM generate_series(1, 30) g")
    embedded.ship("v2", {SECOND: migration})
    embedded.migrate()
    embedded.sql(
        "DO $$ BEGIN FOR n IN 1..20 LOOP BEGIN INSERT INTO orders (customer, total) VALUES (n, n); "
        "IF n % 3 = 0 THEN RAISE division_by_zero; END IF; EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; "
        "END $$"
    )
    embedded.sql("UPDATE orders SET state = 'paid' WHERE id % 7 = 0")
    embedded.sql("UPDATE orders SET total = total WHERE id % 5 = 0")
    embedded.sql("DELETE FROM orders WHERE id % 11 = 0")
    embedded.sql("UPDATE orders SET id = id + 100000 WHERE id = 13")
    before, point = rows(embedded, "orders"), rows(embedded, "orders", database=embedded.clone)
    embedded.go_back()
    assert rows(embedded, "orders") == rows(embedded, "orders", database=embedded.kept_as) == before
    if not by_rows:
        return
    differing = {
        *(("inserted", key) for key in before.keys() - point.keys()),
        *(("deleted", key) for key in point.keys() - before.keys()),
        *(("updated", key) for key in before.keys() & point.keys() if before[key] != point[key]),
    }
    found = [(o["change"], o["row"]["id"]) for o in embedded.exported("orders")]
    assert len(found) == len(set(found))
    assert set(found) == differing
    assert lost(embedded)["orders"] == len(differing)


def test_a_generated_column_is_made_again_and_not_carried(embedded: PostgresWorld) -> None:
    embedded.sql(
        "CREATE TABLE sized (id int PRIMARY KEY, what text, size int GENERATED ALWAYS AS (length(what)) STORED)"
    )
    embedded.sql("INSERT INTO sized VALUES (1, 'a'), (2, 'a')")
    migrated(embedded, "ALTER TABLE orders ADD COLUMN note text")
    embedded.sql("UPDATE sized SET what = 'longer' WHERE id = 1")
    embedded.sql("INSERT INTO sized VALUES (3, 'new')")
    embedded.go_back()
    assert embedded.quarantine() == []
    assert embedded.sql("SELECT id, size FROM sized ORDER BY id") == [(1, 6), (2, 1), (3, 3)]


# --- what the migration deleted --------------------------------------------------------------------------------------

GONE = "it was gone when the migration was over: whether the migration deleted it or the application cannot be told"


def reasons(world: PostgresWorld) -> Mapping[str, int]:
    return Counter(f"{entry['changes'][0]['table']}: {entry['reason']}" for entry in world.quarantine())


def test_what_the_migration_deleted_is_there_again_and_is_listed(embedded: PostgresWorld) -> None:
    embedded.sql(
        "CREATE TABLE logs (id int, of text, PRIMARY KEY (id, of)); INSERT INTO logs VALUES (1, 'a'), (2, 'b')"
    )
    migrated(embedded, "ALTER TABLE customers ADD COLUMN note text; DELETE FROM orders WHERE id <= 40; TRUNCATE logs")
    embedded.sql("DELETE FROM orders WHERE id = 50; INSERT INTO orders (id, customer, total) VALUES (3, 1, 900)")
    embedded.go_back()
    assert embedded.sql("SELECT count(*), max(total) FROM orders") == [(99, 900)]
    assert embedded.sql("SELECT * FROM orders WHERE id = 50") == []
    assert embedded.sql("SELECT * FROM logs ORDER BY id") == [(1, "a"), (2, "b")]
    assert reasons(embedded) == {f"orders: {GONE}": 39, f"logs: {GONE}": 2}
    assert embedded.replayed().quarantined == 41


def test_of_a_table_that_lost_more_rows_than_are_noted_no_deletion_is_carried(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_replay, "MOST_NOTED", 10)
    migrated(embedded, "ALTER TABLE customers ADD COLUMN note text; DELETE FROM orders WHERE id <= 40")
    embedded.sql("DELETE FROM orders WHERE id = 50; DELETE FROM customers WHERE id = 20")
    embedded.go_back()
    assert embedded.one("SELECT count(*) FROM orders") == 100
    assert embedded.one("SELECT count(*) FROM customers") == 20
    assert {reason.partition(":")[0] for reason in reasons(embedded)} == {"orders", "customers"}


def test_where_the_end_of_the_migration_was_not_seen_no_deletion_is_carried(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.sql("ALTER TABLE customers ADD COLUMN note text; DELETE FROM orders WHERE id <= 40")
    embedded.sql("UPDATE orders SET total = 900 WHERE id = 50")
    embedded.go_back()
    assert embedded.sql("SELECT count(*), max(total) FROM orders") == [(100, 900)]
    assert sum(reasons(embedded).values()) == 40


def test_rows_whose_keys_the_migration_changed_are_not_there_twice(embedded: PostgresWorld) -> None:
    migrated(embedded, "ALTER TABLE customers ADD COLUMN note text; UPDATE orders SET id = id + 1000")
    embedded.sql("UPDATE orders SET total = 900 WHERE id = 1007")
    embedded.sql("INSERT INTO orders (id, customer, total) VALUES (3000, 1, 5)")
    embedded.go_back()
    assert embedded.sql("SELECT count(*), max(id) FROM orders") == [(101, 3000)]
    waiting = {entry["id"]: entry for entry in embedded.quarantine()}
    assert len(waiting) == 200
    assert waiting["orders:1007"]["changes"][0]["new"]["total"] == 900


def test_rows_that_the_migration_moved_to_another_table_are_not_in_both(embedded: PostgresWorld) -> None:
    embedded.sql(
        "CREATE TABLE old_orders (id bigint PRIMARY KEY, total numeric); INSERT INTO old_orders VALUES (-1, 1); "
        "CREATE TABLE ev (id int, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at); "
        "CREATE TABLE ev_1 PARTITION OF ev FOR VALUES FROM (0) TO (10); "
        "CREATE TABLE ev_2 PARTITION OF ev FOR VALUES FROM (10) TO (20); INSERT INTO ev VALUES (1, 1), (2, 2)"
    )
    migrated(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text; UPDATE ev SET at = at + 10 WHERE id = 1; "
        "WITH moved AS (DELETE FROM orders WHERE id < 5 RETURNING id, total) INSERT INTO old_orders TABLE moved",
    )
    embedded.sql("UPDATE old_orders SET total = 900 WHERE id = 3")
    embedded.sql("INSERT INTO old_orders VALUES (3000, 1)")
    embedded.go_back()
    assert embedded.one("SELECT count(*) FROM orders") == 100
    assert embedded.sql("SELECT id FROM old_orders ORDER BY id") == [(-1,), (3000,)]
    assert embedded.sql("SELECT id, at FROM ev ORDER BY id") == [(1, 1), (2, 2)]
    assert Counter(entry["changes"][0]["table"] for entry in embedded.quarantine()) == {
        "orders": 4,
        "old_orders": 4,
        "ev_1": 1,
        "ev_2": 1,
    }


def test_a_row_that_came_back_is_not_taken_along_by_the_deletion_of_its_parent(embedded: PostgresWorld) -> None:
    migrated(embedded, "ALTER TABLE customers ADD COLUMN note text; DELETE FROM orders WHERE customer = 5 AND id < 50")
    embedded.sql("DELETE FROM customers WHERE id IN (5, 6)")
    embedded.go_back()
    assert embedded.sql("SELECT id FROM customers WHERE id IN (5, 6)") == [(5,)]
    assert embedded.one("SELECT count(*) FROM orders WHERE customer IN (5, 6)") == 3
    assert reasons(embedded) == {
        f"orders: {GONE}": 3,
        "customers: rows that stay would be taken along by its deletion": 1,
    }


def test_nor_is_one_of_a_partition(embedded: PostgresWorld) -> None:
    embedded.sql(
        "CREATE TABLE ev (id int PRIMARY KEY) PARTITION BY RANGE (id); "
        "CREATE TABLE ev_1 PARTITION OF ev FOR VALUES FROM (0) TO (10); INSERT INTO ev VALUES (1), (2); "
        "CREATE TABLE noted (id int PRIMARY KEY, ev int REFERENCES ev ON DELETE CASCADE); "
        "INSERT INTO noted VALUES (1, 1), (2, 2)"
    )
    migrated(embedded, "ALTER TABLE customers ADD COLUMN note text; DELETE FROM noted WHERE id = 1")
    embedded.sql("DELETE FROM ev")
    embedded.go_back()
    assert embedded.sql("SELECT * FROM ev, noted") == [(1, 1, 1)]
    assert sum(reasons(embedded).values()) == 2


# --- what was written before the migration ---------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["total", "state"])
def test_a_write_before_the_migration_is_not_lost_when_it_rewrites_the_row(
    embedded: PostgresWorld, column: str
) -> None:
    embedded.take()
    value = {"total": "total + 1000", "state": "'paid'"}[column]
    embedded.sql(f"UPDATE orders SET {column} = {value} WHERE id = 7")
    embedded.ship(
        "v2", {SECOND: "ALTER TABLE customers ADD COLUMN note text; UPDATE orders SET total = total + 50 WHERE id < 90"}
    )
    embedded.migrate()
    embedded.sql("UPDATE orders SET state = 'paid' WHERE id = 95")
    assert told(embedded) == {"orders": 2}
    embedded.go_back()
    assert embedded.sql("SELECT total, state::text FROM orders WHERE id = 7") == [(8, "new")]
    (waits,) = [entry for entry in embedded.quarantine() if entry["id"] == "orders:7"]
    assert waits["reason"].startswith("it was written to between the restore point and the migration")
    (change,) = waits["changes"]
    written = {"total": 1058, "state": "new"} if column == "total" else {"total": 58, "state": "paid"}
    assert {**change["old"], **change["new"]}.items() >= written.items()
    assert (change["old"]["total"], change["old"]["state"]) == (8, "new")
    assert [note for note in embedded.replayed().notes if note.startswith("88 rows that the migration wrote last")]
    assert lost(embedded) == {"orders": 2}


def test_of_a_table_with_more_such_writes_than_are_noted_all_that_the_migration_rewrote_waits(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writes, "MOST_TOUCHED", 2)
    embedded.take()
    embedded.sql("UPDATE orders SET state = 'paid' WHERE id <= 3; UPDATE customers SET name = 'new' WHERE id = 1")
    embedded.ship("v2", {SECOND: "ALTER TABLE customers ADD COLUMN note text; UPDATE orders SET total = total + 50"})
    embedded.migrate()
    embedded.go_back()
    assert {reason.partition(" was")[0]: rows for reason, rows in reasons(embedded).items()} == {"orders: orders": 100}
    assert embedded.one("SELECT name FROM customers WHERE id = 1") == "new"


def test_a_row_without_a_key_that_came_before_the_migration_rewrote_it_waits(embedded: PostgresWorld) -> None:
    embedded.sql("INSERT INTO audit (what) VALUES ('old')")
    embedded.take()
    embedded.sql("INSERT INTO audit (what) VALUES ('acknowledged')")
    embedded.ship("v2", {SECOND: "ALTER TABLE customers ADD COLUMN note text; UPDATE audit SET what = what || '.'"})
    embedded.migrate()
    embedded.go_back()
    assert embedded.sql("SELECT what FROM audit") == [("old",)]
    assert {entry["changes"][0]["new"]["what"] for entry in embedded.quarantine()} == {"old.", "acknowledged."}


def test_where_nobody_saw_the_migration_begin_all_that_it_rewrote_waits(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.sql("UPDATE orders SET state = 'paid' WHERE id = 7")
    embedded.sql("BEGIN; ALTER TABLE customers ADD COLUMN note text; UPDATE orders SET total = total + 50; COMMIT")
    embedded.sql("UPDATE customers SET name = 'new' WHERE id = 1")
    embedded.go_back()
    assert embedded.one("SELECT name FROM customers WHERE id = 1") == "new"
    assert len(embedded.quarantine()) == 100
    assert {entry["reason"].partition(" the")[0] for entry in embedded.quarantine()} == {
        "nobody saw what was written before"
    }


def test_a_write_before_a_migration_that_was_tried_twice_is_not_lost(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.sql("UPDATE orders SET state = 'paid' WHERE id = 7")
    embedded.ship("v2", {SECOND: "UPDATE orders SET total = total + 50; SELECT 1 / 0"})
    with pytest.raises(OutcomeUnknown):
        embedded.migrate()
    embedded.sql("UPDATE orders SET state = 'paid' WHERE id = 8")
    embedded.sql("DELETE FROM _prisma_migrations WHERE finished_at IS NULL")  # as `prisma migrate resolve` does
    embedded.ship("v2", {SECOND: "ALTER TABLE customers ADD COLUMN note text; UPDATE orders SET total = total + 50"})
    embedded.migrate()
    embedded.go_back()
    assert {entry["id"] for entry in embedded.quarantine()} == {"orders:7", "orders:8"}


def test_a_write_between_two_deploys_is_not_lost_when_the_second_rewrites_the_row(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.sql("UPDATE orders SET state = 'paid' WHERE id = 7")
    embedded.target.apply(step("take", TakeRestorePoint(restore_point="rp-d3")))
    embedded.sql("UPDATE orders SET state = 'paid' WHERE id = 8")
    embedded.ship("v2", {SECOND: "ALTER TABLE customers ADD COLUMN note text; UPDATE orders SET total = total + 50"})
    embedded.migrate()
    embedded.go_back()
    assert {entry["id"] for entry in embedded.quarantine()} == {"orders:7", "orders:8"}


# --- what a value is -------------------------------------------------------------------------------------------------


def test_rows_that_exchanged_a_unique_value_go_back(embedded: PostgresWorld) -> None:
    embedded.sql(
        "CREATE TABLE items (id int PRIMARY KEY, list int, at int NOT NULL CHECK (at >= 0), UNIQUE (list, at), "
        "of int UNIQUE REFERENCES customers); "
        "INSERT INTO items VALUES (1, 1, 1, 1), (2, 1, 2, 2), (3, 1, 3, NULL), (4, 2, 1, 4), (5, 2, 2, 5)"
    )
    migrated(embedded, "DELETE FROM customers WHERE id = 20")
    for statement in (
        "UPDATE customers SET name = 'x' WHERE id = 1",
        "UPDATE customers SET name = 'customer 1' WHERE id = 2",
        "UPDATE customers SET name = 'customer 2' WHERE id = 1",
        "UPDATE items SET at = at + 10 WHERE list = 1",
        "UPDATE items SET at = (at + 1) % 3 + 1 WHERE list = 1",
        "UPDATE items SET of = 9 WHERE id = 4",
        "UPDATE items SET of = 4 WHERE id = 5",
        "UPDATE items SET of = 5 WHERE id = 4",
        "UPDATE customers SET name = 'customer 20' WHERE id = 3",  # whose row is there again
    ):
        embedded.sql(statement)
    now = "SELECT id, list, at, of FROM items ORDER BY id"
    before = embedded.sql(now)
    embedded.go_back()
    waiting = [entry["id"] for entry in embedded.quarantine() if "it was gone when" not in entry["reason"]]
    assert waiting == ["customers:3"]
    assert embedded.sql(now) == before
    names = embedded.sql("SELECT id, name FROM customers WHERE id IN (1, 2, 3, 20) ORDER BY id")
    assert names == [(1, "customer 2"), (2, "customer 1"), (3, "customer 3"), (20, "customer 20")]


HALLS: Final = (
    "CREATE TABLE hall (id int PRIMARY KEY, name text NOT NULL UNIQUE, n int DEFAULT 1); "
    "CREATE TABLE {seat} (id int PRIMARY KEY, hall text REFERENCES hall (name) ON UPDATE {how}); "
    "INSERT INTO hall VALUES (1, 'a'), (2, 'b'), (3, 'c'); "
    "INSERT INTO {seat} VALUES (1, 'a'), (2, 'b'), (3, 'a'), (4, 'c'), (5, NULL)"
)
EXCHANGED: Final = "; ".join(
    f"UPDATE hall SET name = {n}" for n in ("'x' WHERE id = 1", "'a' WHERE id = 2", "'b' WHERE id = 1")
)
CONSTRAINTS: Final = (
    "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), obj_description(oid, 'pg_constraint') "
    "FROM pg_constraint ORDER BY 1, 2"
)


@pytest.mark.parametrize("how", ["CASCADE", "SET NULL", "SET DEFAULT"])
@pytest.mark.parametrize("seat", ["a_seat", "seat"])
def test_what_follows_a_key_is_afterwards_what_it_is_in_the_live_data(
    embedded: PostgresWorld, seat: str, how: str
) -> None:
    embedded.sql(HALLS.format(seat=seat, how=how))
    migrated(embedded, "ALTER TABLE orders ADD COLUMN note text")
    for statement in (
        "UPDATE hall SET name = 'd' WHERE id = 1",
        "UPDATE hall SET name = 'a' WHERE id = 2",
        f"UPDATE {seat} SET hall = 'a' WHERE id IN (3, 5)",  # where it stood before, and now another one stands
    ):
        embedded.sql(statement)
    now = (f"SELECT * FROM {seat} ORDER BY id", "SELECT * FROM hall ORDER BY id", CONSTRAINTS)
    before = [embedded.sql(each) for each in now]
    embedded.go_back()
    assert embedded.quarantine() == []
    assert [embedded.sql(each) for each in now] == before


def test_keys_that_were_exchanged_go_back_with_what_follows_them(embedded: PostgresWorld) -> None:
    embedded.sql(HALLS.format(seat="seat", how="CASCADE"))
    migrated(embedded, "ALTER TABLE orders ADD COLUMN note text")
    embedded.sql(EXCHANGED)
    embedded.go_back()
    assert embedded.quarantine() == []
    assert embedded.sql("SELECT id, name FROM hall ORDER BY id") == [(1, "b"), (2, "a"), (3, "c")]
    assert embedded.sql("SELECT id, hall FROM seat ORDER BY id") == [(1, "b"), (2, "a"), (3, "b"), (4, "c"), (5, None)]


@pytest.mark.parametrize("seat", ["a_seat", "seat"])
def test_a_key_of_a_row_that_was_deleted_goes_to_another_one_with_what_follows_it(
    embedded: PostgresWorld, seat: str
) -> None:
    embedded.sql(HALLS.format(seat=seat, how="CASCADE ON DELETE CASCADE"))
    migrated(embedded, "ALTER TABLE orders ADD COLUMN note text")
    embedded.sql("DELETE FROM hall WHERE id = 1")
    embedded.sql("UPDATE hall SET name = 'a' WHERE id = 2")
    embedded.go_back()
    assert embedded.quarantine() == []
    assert embedded.sql("SELECT id, name FROM hall ORDER BY id") == [(2, "a"), (3, "c")]
    assert embedded.sql(f"SELECT id, hall FROM {seat} ORDER BY id") == [(2, "a"), (4, "c"), (5, None)]


@pytest.mark.parametrize("how", ["CASCADE", "NO ACTION"])
def test_what_refers_to_a_key_that_waits_waits_with_it(embedded: PostgresWorld, how: str) -> None:
    embedded.invariants = {"some": "SELECT id FROM hall WHERE n < 0"}
    embedded.sql(HALLS.format(seat="seat", how=how))
    embedded.sql("UPDATE seat SET hall = NULL WHERE id < 4")
    migrated(embedded, "ALTER TABLE orders ADD COLUMN note text")
    embedded.sql(f"{EXCHANGED}; UPDATE hall SET n = -1 WHERE id = 1")
    embedded.sql("INSERT INTO seat VALUES (6, 'a'), (7, 'c'); UPDATE seat SET hall = 'b' WHERE id = 1")
    embedded.go_back()
    assert {entry["id"] for entry in embedded.quarantine()} == {"hall:1", "hall:2", "seat:1", "seat:6"}
    assert embedded.sql("SELECT id, name FROM hall ORDER BY id") == [(1, "a"), (2, "b"), (3, "c")]
    assert embedded.sql("SELECT id, hall FROM seat WHERE hall IS NOT NULL ORDER BY id") == [(4, "c"), (7, "c")]


@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
@pytest.mark.parametrize("how", ["CASCADE", "SET NULL"])
def test_a_row_that_waits_refers_to_what_it_referred_to(embedded: PostgresWorld, how: str, *, taken: bool) -> None:
    embedded.invariants = {"no": "SELECT id FROM seat WHERE id = 1 AND n < 0"}
    embedded.sql(f"{HALLS.format(seat='seat', how=how)}; ALTER TABLE seat ADD COLUMN n int")
    migrated(embedded, "ALTER TABLE orders ADD COLUMN note text")
    embedded.sql("UPDATE hall SET name = 'd' WHERE id = 1; UPDATE seat SET n = -1 WHERE id = 1")
    embedded.sql(f"UPDATE hall SET name = '{'a' if taken else 'e'}' WHERE id = 2")
    halls, seats = "SELECT name FROM hall ORDER BY id", "SELECT hall FROM seat ORDER BY id"
    now = [embedded.sql(each) for each in (halls, seats)]
    embedded.go_back()
    waiting = {entry["id"] for entry in embedded.quarantine()}
    if how == "CASCADE":
        assert waiting == {"seat:1"}
        assert [embedded.sql(each) for each in (halls, seats)] == now
    else:
        assert waiting == {"seat:1", "hall:1", *(("hall:2",) if taken else ())}
        assert embedded.sql(seats)[0] == ("a",)
        assert embedded.sql(halls)[0] == ("a",)


REFERENCES: Final = """
CREATE SCHEMA other;
CREATE TABLE hall (id int PRIMARY KEY, name text, of int, UNIQUE (name, of));
CREATE TABLE other."Seat" (id int, "Of" int, "Hall" text) PARTITION BY RANGE (id);
CREATE TABLE seat_1 PARTITION OF other."Seat" FOR VALUES FROM (0) TO (9);
CREATE TABLE seat_2 PARTITION OF other."Seat" FOR VALUES FROM (9) TO (20);
ALTER TABLE other."Seat" ADD CONSTRAINT "in" FOREIGN KEY ("Hall", "Of") REFERENCES hall (name, of) {how};
COMMENT ON CONSTRAINT "in" ON other."Seat" IS 'it''s so';
CREATE TABLE old (id int PRIMARY KEY, hall text, of int);
INSERT INTO old VALUES (1, 'gone', 0);
ALTER TABLE old ADD FOREIGN KEY (hall, of) REFERENCES hall (name, of) ON UPDATE CASCADE NOT VALID;
INSERT INTO hall VALUES (1, 'a', 0), (2, 'b', 0);
INSERT INTO old VALUES (2, 'a', 0);
ALTER TABLE seat_1 ADD PRIMARY KEY (id);
ALTER TABLE seat_2 ADD PRIMARY KEY (id);
INSERT INTO other."Seat" VALUES (1, 0, 'a'), (10, 0, 'a'), (11, 0, 'b')
"""


def test_references_are_afterwards_as_they_were(embedded: PostgresWorld) -> None:
    how = "MATCH FULL ON UPDATE CASCADE ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED"
    embedded.sql(REFERENCES.format(how=how))
    migrated(embedded, "ALTER TABLE orders ADD COLUMN note text")
    constraints = embedded.sql(CONSTRAINTS)
    embedded.sql("UPDATE hall SET name = 'x' WHERE id = 1")
    embedded.go_back()
    assert embedded.quarantine() == []
    assert embedded.sql(CONSTRAINTS) == constraints
    assert embedded.sql("SELECT id, hall FROM old ORDER BY id") == [(1, "gone"), (2, "x")]
    assert embedded.sql('SELECT id, "Hall" FROM other."Seat" ORDER BY id') == [(1, "x"), (10, "x"), (11, "b")]


def test_what_only_looks_like_the_same_number_is_another_value(embedded: PostgresWorld) -> None:
    embedded.sql(
        "UPDATE customers SET name = '007' WHERE id = 3; CREATE TABLE doc (id int PRIMARY KEY, of jsonb, n int); "
        """INSERT INTO doc VALUES (1, '{"a": true}', 1), (2, '"7"', 1), (3, '1', 1)"""
    )
    migrated(
        embedded,
        "ALTER TABLE orders ADD COLUMN note text; ALTER TABLE doc ALTER COLUMN n TYPE numeric(9, 2), ADD m int",
    )
    embedded.sql("UPDATE customers SET name = '7' WHERE id = 3")
    embedded.sql("""UPDATE doc SET of = '{"a": 1}' WHERE id = 1; UPDATE doc SET of = '7' WHERE id = 2""")
    embedded.sql("UPDATE doc SET of = '2' WHERE id = 3")
    embedded.go_back()
    assert embedded.one("SELECT name FROM customers WHERE id = 3") == "7"
    assert embedded.sql("SELECT of::text, n FROM doc ORDER BY id") == [('{"a": 1}', 1), ("7", 1), ("2", 1)]
    assert embedded.quarantine() == []


def test_a_key_that_breaks_an_invariant_takes_no_row_of_another_table_out(embedded: PostgresWorld) -> None:
    embedded.invariants = {"no-large-orders": "SELECT o.id FROM orders o WHERE o.total > 5000"}
    migrated(embedded, "ALTER TABLE customers ADD COLUMN note text")
    embedded.sql("UPDATE orders SET total = 9999 WHERE id = 5; UPDATE customers SET name = 'good' WHERE id = 5")
    embedded.go_back()
    assert embedded.one("SELECT name FROM customers WHERE id = 5") == "good"
    assert reasons(embedded) == {"orders: it breaks the invariant no-large-orders: 5": 1}


def test_a_computed_key_that_breaks_an_invariant_takes_out_whatever_may_be_meant(embedded: PostgresWorld) -> None:
    embedded.invariants = {"no-large-orders": "SELECT o.id + 0 FROM orders o WHERE o.total > 5000"}
    migrated(embedded, "ALTER TABLE customers ADD COLUMN note text")
    embedded.sql("UPDATE orders SET total = 9999 WHERE id = 5; UPDATE customers SET name = 'good' WHERE id = 5")
    embedded.go_back()
    assert reasons(embedded) == {
        f"{table}: the invariant no-large-orders breaks for 5, and of which table that key is cannot be told": 1
        for table in ("orders", "customers")
    }


def test_of_a_table_whose_rows_cannot_be_found_again_no_deletion_is_carried_and_that_is_said(
    embedded: PostgresWorld,
) -> None:
    embedded.sql("INSERT INTO audit (what) VALUES ('a'), ('b'); CREATE TABLE seat (id int PRIMARY KEY, uid int)")
    embedded.sql("INSERT INTO seat VALUES (1, 1), (2, 2)")
    migrated(embedded, "ALTER TABLE seat DROP COLUMN id; ALTER TABLE seat ADD PRIMARY KEY (uid)")
    embedded.sql("DELETE FROM audit WHERE what = 'a'; DELETE FROM seat WHERE uid = 2")
    embedded.go_back()
    assert embedded.sql("SELECT (SELECT count(*) FROM audit), (SELECT count(*) FROM seat)") == [(2, 2)]
    assert {note for note in embedded.replayed().notes if "deletions" in note} == {
        "audit has no key, or not the one it had: deletions cannot be told, and none was carried",
        "seat has no key, or not the one it had: deletions cannot be told, and none was carried",
    }
