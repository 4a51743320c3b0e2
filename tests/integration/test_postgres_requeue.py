"""What waits in quarantine is put into the live database whole, once, and over nothing that was written since; or it is
said what does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import pytest
from psycopg import sql

from lastgood.core.errors import Refused
from lastgood.core.quarantine import EntryChange, QuarantineEntry
from lastgood.core.record import RunEnded, RunStarted
from lastgood.core.report import TerminalState
from lastgood.journal.sqlite import SqliteJournal
from tests.contract.rigs.clock import CLOCK
from tests.contract.rigs.postgres_world import SECOND, PostgresWorld
from tests.core.examples import rollback_plan

RELAXED: Final = "ALTER TABLE orders DROP CONSTRAINT orders_total_check, ADD COLUMN note text"
RENAMED: Final = f"{RELAXED}; ALTER TABLE customers RENAME COLUMN name TO full_name"
LET_IN: Final = "ALTER TABLE orders DROP CONSTRAINT orders_total_check"
FREE: Final = "INSERT INTO orders (id, customer, total, note) VALUES (900, 1, 0, 'free')"


def went_back(world: PostgresWorld, migration: str, *statements: str) -> tuple[QuarantineEntry, ...]:
    """A bad migration came, was written to and was put back; return what waits."""
    world.invariants = {}
    world.take()
    world.ship("v2", {SECOND: migration})
    world.migrate()
    for statement in statements:
        world.sql(statement)
    world.go_back()
    return world.target.quarantine()


def put(
    world: PostgresWorld, entry: QuarantineEntry, note: Callable[[int], None] = lambda _xid: None
) -> tuple[str, ...]:
    return world.target.requeue(entry, replay=world.replay, about_to_commit=note)


def total(world: PostgresWorld, order: int) -> object:
    return world.one(f"SELECT total FROM orders WHERE id = {order}")


def test_what_does_not_fit_is_refused_with_the_change_and_the_reason(embedded: PostgresWorld) -> None:
    (entry,) = went_back(embedded, RELAXED, FREE)
    noted: list[int] = []
    with pytest.raises(Refused, match=r"change 1 \(orders\): .*orders_total_check.* \(23514\)"):
        put(embedded, entry, noted.append)
    assert noted == []
    assert embedded.one("SELECT count(*) FROM orders WHERE id = 900") == 0


def test_an_entry_goes_in_once_it_fits_and_says_what_has_no_place(embedded: PostgresWorld) -> None:
    (entry,) = went_back(embedded, RELAXED, FREE)
    embedded.sql(LET_IN)
    assert put(embedded, entry) == ("orders: no place for note",)
    assert embedded.sql("SELECT customer, total::int, state::text FROM orders WHERE id = 900") == [(1, 0, "new")]


def test_an_entry_is_not_put_in_twice_where_the_swap_was_taken_back(embedded: PostgresWorld) -> None:
    (entry,) = went_back(embedded, RELAXED, "UPDATE orders SET total = total - 100 WHERE id = 5")
    there = total(embedded, 5)
    embedded.swap_back()
    written = total(embedded, 5)
    assert written != there
    with pytest.raises(Refused, match="it is in it already"):
        put(embedded, entry)
    assert total(embedded, 5) == written


@pytest.mark.full
def test_columns_that_the_migration_renamed_go_back_to_their_old_names(embedded: PostgresWorld) -> None:
    both = "BEGIN; INSERT INTO customers (id, full_name) VALUES (900, 'Ada'); "
    both += "INSERT INTO orders (customer, total) VALUES (900, 0); COMMIT"
    (entry,) = went_back(embedded, RENAMED, both)
    embedded.sql(LET_IN)
    put(embedded, entry)
    assert embedded.one("SELECT name FROM customers WHERE id = 900") == "Ada"
    assert embedded.one("SELECT count(*) FROM orders WHERE customer = 900") == 1


def test_a_number_is_changed_by_as_much_and_what_was_written_since_stays(embedded: PostgresWorld) -> None:
    (entry,) = went_back(embedded, RELAXED, "UPDATE orders SET total = total - 100 WHERE id = 5")
    embedded.sql("UPDATE orders SET total = total + 500, state = 'paid' WHERE id = 5")
    put(embedded, entry)
    assert embedded.sql("SELECT total::int, state::text FROM orders WHERE id = 5") == [(406, "paid")]


def test_a_value_that_somebody_changed_since_is_not_written_over(embedded: PostgresWorld) -> None:
    bad = "BEGIN; UPDATE customers SET name = 'Ada' WHERE id = 3; UPDATE orders SET total = 0 WHERE id = 5; COMMIT"
    (entry,) = went_back(embedded, RELAXED, bad)
    embedded.sql(LET_IN)
    embedded.sql("UPDATE customers SET name = 'Grace' WHERE id = 3")
    with pytest.raises(Refused, match=r"change 1 \(customers\): its row is not as it was found"):
        put(embedded, entry)
    assert embedded.one("SELECT name FROM customers WHERE id = 3") == "Grace"
    assert total(embedded, 5) == 6, "an entry goes in whole or not at all"


def test_a_row_that_was_written_to_since_is_not_deleted(embedded: PostgresWorld) -> None:
    both = "BEGIN; DELETE FROM orders WHERE id = 7; UPDATE orders SET total = 0 WHERE id = 5; COMMIT"
    (entry,) = went_back(embedded, RELAXED, both)
    embedded.sql(LET_IN)
    embedded.sql("UPDATE orders SET state = 'paid' WHERE id = 7")
    with pytest.raises(Refused, match=r"change 1 \(orders\): its row is not as it was found"):
        put(embedded, entry)
    embedded.sql("UPDATE orders SET state = 'new' WHERE id = 7")
    put(embedded, entry)
    assert embedded.one("SELECT count(*) FROM orders WHERE id = 7") == 0


def test_one_that_depends_on_another_goes_in_after_it(embedded: PostgresWorld) -> None:
    first, second = went_back(embedded, RELAXED, FREE, "UPDATE orders SET state = 'paid' WHERE id = 900")
    embedded.sql(LET_IN)
    with pytest.raises(Refused, match="waits in quarantine itself"):
        put(embedded, second)
    put(embedded, first)
    put(embedded, second)
    assert embedded.one("SELECT state::text FROM orders WHERE id = 900") == "paid"


def test_an_entry_that_breaks_an_invariant_is_refused(embedded: PostgresWorld) -> None:
    (entry,) = went_back(embedded, RELAXED, FREE)
    embedded.sql(LET_IN)
    embedded.invariants = {"totals-are-positive": "SELECT id FROM orders WHERE total <= 0"}
    with pytest.raises(Refused, match="it breaks the invariant totals-are-positive: 900"):
        put(embedded, entry)
    assert embedded.one("SELECT count(*) FROM orders WHERE id = 900") == 0


def test_what_triggers_wrote_is_not_written_twice_and_they_are_as_they_were(embedded: PostgresWorld) -> None:
    embedded.sql(
        "CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN INSERT INTO audit (what) VALUES (NEW.id::text); RETURN NEW; END'; "
        "CREATE TRIGGER noted AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION noted(); "
        "ALTER TABLE orders ENABLE ALWAYS TRIGGER noted"
    )
    (entry,) = went_back(embedded, RELAXED, FREE)
    embedded.sql(LET_IN)
    put(embedded, entry)
    assert embedded.sql("SELECT what FROM audit") == [("900",)]
    assert embedded.one("SELECT tgenabled::text FROM pg_trigger WHERE tgname = 'noted'") == "A"


def test_the_server_tells_whether_a_requeue_was_committed(embedded: PostgresWorld) -> None:
    (entry,) = went_back(embedded, RELAXED, FREE)
    embedded.sql(LET_IN)
    noted: list[int] = []

    def dies(xid: int) -> None:
        noted.append(xid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        put(embedded, entry, dies)
    put(embedded, entry, noted.append)
    assert [embedded.target.is_committed(xid) for xid in noted] == [False, True]


def test_a_table_that_was_emptied_is_left_to_a_person(embedded: PostgresWorld) -> None:
    (entry,) = went_back(embedded, RELAXED, "TRUNCATE audit")
    with pytest.raises(Refused, match="it empties audit"):
        put(embedded, entry)


@pytest.mark.full
def test_rows_of_a_table_that_the_migration_made_are_left_out_and_named(embedded: PostgresWorld) -> None:
    made = f"{RELAXED}; CREATE TABLE coupons (code text PRIMARY KEY)"
    (entry,) = went_back(embedded, made, f"BEGIN; {FREE}; INSERT INTO coupons VALUES ('half'); COMMIT")
    embedded.sql(LET_IN)
    assert put(embedded, entry) == ("orders: no place for note", "coupons: no such table")
    assert total(embedded, 900) == 0


def test_an_entry_of_which_nothing_has_a_place_is_refused(embedded: PostgresWorld) -> None:
    (entry,) = went_back(embedded, RELAXED, FREE)
    noted = EntryChange(table="orders", kind="updated", old={"id": "5"}, new={"id": "5", "note": "x"})
    only = replace(entry, changes=(noted,))
    with pytest.raises(Refused, match="no place for any of it"):
        put(embedded, only)


def test_a_name_that_means_something_else_since_is_not_guessed(embedded: PostgresWorld) -> None:
    embedded.sql(
        "CREATE TABLE pairs (id int PRIMARY KEY, a int CHECK (a > 0), b int); INSERT INTO pairs VALUES (1, 1, 2)"
    )
    swapped = (
        "ALTER TABLE pairs DROP CONSTRAINT pairs_a_check; ALTER TABLE pairs RENAME a TO c; "
        "ALTER TABLE pairs RENAME b TO a; ALTER TABLE pairs RENAME c TO b"
    )
    (entry,) = went_back(embedded, swapped, "UPDATE pairs SET b = -1 WHERE id = 1")
    with pytest.raises(Refused, match="the names of pairs were given to something else"):
        put(embedded, entry)


@pytest.mark.full
def test_without_the_replaced_database_nothing_is_taken_for_a_column_that_has_no_place(embedded: PostgresWorld) -> None:
    noted, bare = went_back(embedded, RELAXED, FREE, "INSERT INTO orders (id, customer, total) VALUES (901, 1, 0)")
    embedded.sql(LET_IN)
    drop(embedded, embedded.kept_as)
    put(embedded, bare)
    assert total(embedded, 901) == 0
    with pytest.raises(Refused, match="orders has no note, and the replaced database is gone"):
        put(embedded, noted)


def drop(world: PostgresWorld, database: str) -> None:
    slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s"
    with world.connect(database="postgres") as by_hand:
        by_hand.execute(slots, [database])
        by_hand.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database)))


@pytest.mark.full
def test_what_waits_while_its_row_moved_to_another_partition_and_back_counts_once(embedded: PostgresWorld) -> None:
    embedded.sql(
        "CREATE TABLE parts (id int, region text, n int, PRIMARY KEY (id, region)) PARTITION BY LIST (region); "
        "CREATE TABLE parts_a PARTITION OF parts FOR VALUES IN ('a'); "
        "CREATE TABLE parts_b PARTITION OF parts FOR VALUES IN ('b'); INSERT INTO parts VALUES (1, 'a', 100)"
    )
    (entry,) = went_back(
        embedded,
        RELAXED,
        "WITH bad AS (INSERT INTO orders (customer, total) VALUES (1, -5)) UPDATE parts SET n = n - 7 WHERE id = 1",
        "UPDATE parts SET region = 'b' WHERE id = 1",
        "UPDATE parts SET region = 'a' WHERE id = 1",
    )
    embedded.sql(LET_IN)
    put(embedded, entry)
    assert embedded.sql("SELECT * FROM parts") == [(1, "a", 93)]


@pytest.mark.full
def test_a_number_that_is_a_code_goes_in_over_what_was_found_only(embedded: PostgresWorld) -> None:
    embedded.merge = {"jobs.kind": "set"}
    embedded.sql("CREATE TABLE jobs (id int PRIMARY KEY, state int CHECK (state IN (1, 2, 5)), kind int NOT NULL)")
    embedded.sql("INSERT INTO jobs VALUES (1, 1, 1), (2, 1, 1)")
    bad = "WITH bad AS (INSERT INTO orders (customer, total) VALUES (1, -5)) UPDATE jobs SET "
    waiting = went_back(embedded, RELAXED, f"{bad} state = 2 WHERE id = 1", f"{bad} kind = 2 WHERE id = 2")
    embedded.sql(f"{LET_IN}; UPDATE jobs SET state = 5, kind = 5")
    for entry in waiting:
        with pytest.raises(Refused, match="its row is not as it was found"):
            put(embedded, entry)


def test_a_row_whose_key_was_gone_is_not_taken_for_another(embedded: PostgresWorld) -> None:
    embedded.sql("CREATE TABLE seats (id int PRIMARY KEY, kind text); INSERT INTO seats VALUES (1, 'a'), (3, 'a')")
    (entry,) = went_back(
        embedded,
        "ALTER TABLE seats ADD COLUMN uid int; UPDATE seats SET uid = id; ALTER TABLE seats DROP COLUMN id",
        "DELETE FROM seats WHERE uid = 3",
    )
    embedded.sql("DELETE FROM seats WHERE id = 3")
    with pytest.raises(Refused, match="seats: neither the key of a row is told nor its id"):
        put(embedded, entry)
    assert embedded.sql("SELECT id FROM seats") == [(1,)]


@pytest.mark.full
def test_what_rules_wrote_is_not_written_twice_and_they_are_as_they_were(embedded: PostgresWorld) -> None:
    embedded.sql("CREATE RULE noted AS ON INSERT TO orders DO ALSO INSERT INTO audit (what) VALUES ('rule')")
    embedded.sql("ALTER TABLE orders ENABLE ALWAYS RULE noted")
    (entry,) = went_back(embedded, RELAXED, FREE)
    embedded.sql(LET_IN)
    put(embedded, entry)
    assert embedded.one("SELECT count(*) FROM audit") == 1
    assert embedded.one("SELECT ev_enabled::text FROM pg_rewrite WHERE rulename = 'noted'") == "A"


# --- rows, of which only the last state could be told ----------------------------------------------------------------


@pytest.mark.full
def test_a_value_of_which_nobody_could_tell_whose_it_is_goes_in_by_a_persons_word(embedded: PostgresWorld) -> None:
    embedded.by_rows = True
    (entry,) = went_back(
        embedded,
        f"{RELAXED}; UPDATE orders SET total = total + 50",
        "UPDATE orders SET total = 7 WHERE id = 5",
    )
    assert (entry.xid, entry.id) == (None, "orders:5")
    put(embedded, entry)
    assert total(embedded, 5) == 7


def test_a_row_that_was_changed_since_is_not_written_over(embedded: PostgresWorld) -> None:
    embedded.by_rows = True
    (entry,) = went_back(embedded, RELAXED, "UPDATE orders SET total = 0 WHERE id = 5")
    embedded.sql(LET_IN)
    embedded.sql("UPDATE orders SET total = 8 WHERE id = 5")
    with pytest.raises(Refused, match="its row is not as it was found"):
        put(embedded, entry)
    assert total(embedded, 5) == 8


@pytest.mark.full
def test_a_row_of_every_kind_of_value_goes_in_as_it_was(embedded: PostgresWorld) -> None:
    embedded.by_rows = True
    embedded.sql(
        "CREATE TABLE odd (id int PRIMARY KEY, ok int CHECK (ok > 0), tags text[], doc jsonb, raw json, blob bytea, "
        "ratio float8, twice int GENERATED ALWAYS AS (ok * 2) STORED)"
    )
    (entry,) = went_back(
        embedded,
        "ALTER TABLE odd DROP CONSTRAINT odd_ok_check",
        r"""INSERT INTO odd VALUES (1, 0, ARRAY['a,b', NULL], '{"k": [1, null]}', '{"a":  1}', '\x00ff', 0.5)""",
    )
    embedded.sql("ALTER TABLE odd DROP CONSTRAINT odd_ok_check")
    put(embedded, entry)
    of = "SELECT (tags, doc, raw::jsonb, blob, ratio, twice)::text FROM odd"
    assert embedded.sql(of) == embedded.sql(of, database=embedded.kept_as) != []


def test_numbers_are_carried_as_numbers_wherever_they_stand(embedded: PostgresWorld) -> None:
    embedded.by_rows = True
    embedded.sql("CREATE TABLE docs (id int PRIMARY KEY, price numeric, doc jsonb)")
    waiting = went_back(embedded, RELAXED, """INSERT INTO docs VALUES (1, 1.50, '{"k": [1.50, 1e400]}')""")
    assert waiting == ()
    of = "SELECT docs::text FROM docs"
    assert embedded.sql(of) == embedded.sql(of, database=embedded.kept_as) != []


def test_a_row_with_a_fraction_waits_as_any_other_and_so_do_values_that_are_left_out(embedded: PostgresWorld) -> None:
    embedded.by_rows = True
    embedded.sql("CREATE TABLE prices (id int PRIMARY KEY, price numeric CHECK (price > 0))")
    (entry,) = went_back(
        embedded,
        "ALTER TABLE prices DROP CONSTRAINT prices_price_check, ADD COLUMN rebate numeric",
        "INSERT INTO prices VALUES (1, -1.50, 0.25)",
    )
    embedded.sql("ALTER TABLE prices DROP CONSTRAINT prices_price_check")
    put(embedded, entry)
    assert str(embedded.one("SELECT price FROM prices")) == "-1.50"


# --- as a person types it --------------------------------------------------------------------------------------------


def team_of(world: PostgresWorld) -> Callable[..., str]:
    """A lastgood.yaml beside the world's state, and a journal that knows its rollback; return what runs a command."""
    journal = SqliteJournal(world.folder / "state", clock=CLOCK)
    plan = replace(rollback_plan(None), id="r1", steps=tuple(world.way_back))
    journal.append(RunStarted(run="r1", plan=plan, trigger="person", sentence="", by="ada"))
    journal.append(RunEnded(run="r1", terminal=TerminalState.ROLLED_BACK_VERIFIED, serving="v1"))
    postgres = world.config.model_dump(mode="json", exclude_none=True, exclude={"password"})
    assert world.config.password is not None
    postgres["password"] = world.config.password.reveal()
    config = {
        "version": 1,
        "stack": "shop",
        "state": "state",
        "watch": {"window": "1m"},
        "process": {"services": {"web": {"command": ["true"], "port": 8080}}},
        "database": {"postgres": postgres, "restore_points": {"path": "restore-points"}},
    }
    (world.folder / "lastgood.yaml").write_text(json.dumps(config))

    def lastgood(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "lastgood", *words, "--config", str(world.folder / "lastgood.yaml")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    return lastgood


@pytest.mark.full
def test_a_person_lists_shows_requeues_and_discards(embedded: PostgresWorld) -> None:
    first, second = went_back(embedded, RELAXED, FREE, "UPDATE orders SET total = 0 WHERE id = 5")
    lastgood = team_of(embedded)
    assert lastgood("quarantine", "list").splitlines()[-1] == "2 of 2 wait for a person"
    assert "    note  free" in lastgood("quarantine", "show", first.id)
    assert "    total  6 -> 0" in lastgood("quarantine", "show", second.name)
    requeue = ("quarantine", "requeue", first.id)
    assert "orders_total_check" in lastgood(*requeue, "--yes", code=3)
    embedded.sql(LET_IN)
    assert "    note  free" in (unasked := lastgood(*requeue, code=3))
    assert "nobody said yes" in unasked
    assert "is in the live database\nleft out  orders: no place for note" in lastgood(*requeue, "--yes")
    assert "already" in lastgood(*requeue, "--yes")
    lastgood("quarantine", "discard", second.id, code=3)
    lastgood("quarantine", "discard", second.id, "-m", "a test order")
    told = json.loads(lastgood("quarantine", "list", "--json"))
    assert [(one["entry"]["id"], one["decision"]["state"]) for one in told] == [
        (first.id, "requeued"),
        (second.id, "discarded"),
    ]
    assert lastgood("quarantine", "list").splitlines()[-1] == "0 of 2 wait for a person"
    assert (total(embedded, 900), total(embedded, 5)) == (0, 6)
