"""Invalid rows get back what breaks an invariant, from the restore point or by the team's own statement, and nothing
else of them, or of any other row, is touched."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lastgood.core.errors import Refused, Retryable
from lastgood.core.repair import ColumnRepair, RepairPlan
from tests.contract.rigs.postgres_world import SECOND, PostgresWorld

LET_IN = "ALTER TABLE orders DROP CONSTRAINT orders_total_check"
PAID_HAS_TOTAL = "SELECT id FROM orders WHERE state = 'paid' AND total < 10"


def plan(world: PostgresWorld) -> RepairPlan:
    return world.target.repairs(since=world.target.restore_point(world.restore_point))


def repaired(world: PostgresWorld) -> RepairPlan:
    """Look, and do it."""
    made, noted = plan(world), list[int]()
    world.target.repair(made.rows, about_to_commit=noted.append)
    assert [world.target.is_committed(xid) for xid in noted] == [True]
    return made


@pytest.fixture
def shop(embedded: PostgresWorld) -> PostgresWorld:
    """The checks are off, as they would be in an application that makes them itself, and a restore point is taken."""
    embedded.sql(LET_IN)
    embedded.take()
    return embedded


def test_only_the_column_that_breaks_it_goes_back(shop: PostgresWorld) -> None:
    shop.sql("UPDATE orders SET total = -1, state = 'paid' WHERE id = 5")
    before = shop.sql("SELECT * FROM orders WHERE id <> 5 ORDER BY id")
    (row,) = repaired(shop).rows
    assert (row.name, row.columns) == ("orders 5", (ColumnRepair(column="total", now="-1", becomes="6"),))
    assert row.source == shop.restore_point
    assert shop.sql("SELECT total::int, state::text FROM orders WHERE id = 5") == [(6, "paid")]
    assert shop.sql("SELECT * FROM orders WHERE id <> 5 ORDER BY id") == before


def test_looking_changes_nothing_and_a_second_look_finds_the_same(shop: PostgresWorld) -> None:
    shop.sql("UPDATE orders SET total = 0 WHERE id IN (5, 7)")
    before = shop.sql("SELECT xmin, * FROM orders ORDER BY id")
    first = plan(shop)
    assert [row.key for row in first.rows] == [("id", "5"), ("id", "7")]
    assert plan(shop) == first
    assert shop.sql("SELECT xmin, * FROM orders ORDER BY id") == before


def test_two_columns_go_back_where_neither_alone_is_enough(shop: PostgresWorld) -> None:
    shop.invariants = {"both": "SELECT id FROM orders WHERE total < 0 OR customer = 20"}
    shop.sql("UPDATE orders SET total = -1, customer = 20 WHERE id = 5")
    (row,) = repaired(shop).rows
    assert [one.column for one in row.columns] == ["customer", "total"]
    assert plan(shop) == RepairPlan(since=shop.restore_point, rows=(), left=())


def test_a_row_that_breaks_two_invariants_is_one_repair(shop: PostgresWorld) -> None:
    shop.invariants = {"totals": "SELECT id FROM orders WHERE total <= 0", "owners": PAID_HAS_TOTAL}
    shop.sql("UPDATE orders SET total = 0, state = 'paid' WHERE id = 5")
    (row,) = repaired(shop).rows
    assert row.invariants == ("totals", "owners")
    assert {one.column for one in row.columns} == {"total", "state"}


def test_a_row_written_since_is_left_unless_the_team_says_what_it_should_be(shop: PostgresWorld) -> None:
    shop.sql("INSERT INTO orders (id, customer, total) VALUES (900, 1, 0), (901, 2, -5)")
    (left,) = plan(shop).left
    assert (left.rows, left.keys, left.why) == (
        2,
        ("900", "901"),
        f"written since {shop.restore_point}, so there is no older state of it",
    )
    shop.repairs = {"totals-are-positive": "UPDATE orders SET total = greatest(1, -total) WHERE id = $1"}
    made = repaired(shop)
    assert {row.source for row in made.rows} == {"the statement for totals-are-positive"}
    assert shop.sql("SELECT id, total::int, customer FROM orders WHERE id >= 900 ORDER BY id") == [
        (900, 1, 1),
        (901, 5, 2),
    ]


@pytest.mark.parametrize(
    "statement, why",
    [
        ("UPDATE orders SET total = -2 WHERE id = $1", "does not make it valid"),
        ("DELETE FROM orders WHERE id = $1", "does not make it valid"),
        ("UPDATE orders SET total = 1 WHERE id >= $1", "does not make it valid"),
        ("UPDATE nothing SET total = 1 WHERE id = $1", "does not make it valid"),
    ],
)
def test_a_statement_that_does_something_else_is_no_repair(shop: PostgresWorld, statement: str, why: str) -> None:
    shop.sql("INSERT INTO orders (id, customer, total) VALUES (900, 1, 0), (901, 2, 3)")
    shop.repairs = {"totals-are-positive": statement}
    made = plan(shop)
    assert made.rows == ()
    assert why in made.left[0].why
    assert shop.sql("SELECT total::int FROM orders WHERE id >= 900 ORDER BY id") == [(0,), (3,)]


def test_a_row_that_was_changed_since_it_was_shown_is_not_written_over_and_nothing_is(shop: PostgresWorld) -> None:
    shop.sql("UPDATE orders SET total = 0 WHERE id IN (5, 7)")
    made = plan(shop)
    shop.sql("UPDATE orders SET total = 70 WHERE id = 7")
    noted: list[int] = []
    with pytest.raises(Refused, match="orders 7 is not as it was shown"):
        shop.target.repair(made.rows, about_to_commit=noted.append)
    assert noted == []
    assert shop.sql("SELECT total::int FROM orders WHERE id IN (5, 7) ORDER BY id") == [(0,), (70,)]


def test_a_good_write_to_another_column_since_it_was_shown_stays(shop: PostgresWorld) -> None:
    shop.sql("UPDATE orders SET total = 0 WHERE id = 5")
    made = plan(shop)
    shop.sql("UPDATE orders SET state = 'paid' WHERE id = 5")
    shop.target.repair(made.rows, about_to_commit=lambda _xid: None)
    assert shop.sql("SELECT total::int, state::text FROM orders WHERE id = 5") == [(6, "paid")]


def test_what_would_break_another_invariant_is_refused_whole(shop: PostgresWorld) -> None:
    shop.invariants = {"totals-are-positive": shop.invariants["totals-are-positive"], "paid": PAID_HAS_TOTAL}
    shop.sql("UPDATE orders SET total = 0 WHERE id = 5")
    made = plan(shop)
    shop.sql("UPDATE orders SET state = 'paid', total = 0 WHERE id = 5")
    shop.invariants = {"totals-are-positive": "SELECT id FROM orders WHERE total <= 0", "few": "SELECT total FROM paid"}
    with pytest.raises(Refused, match="it breaks the invariant few: 6"):
        shop.target.repair(made.rows, about_to_commit=lambda _xid: None)
    assert shop.one("SELECT total::int FROM orders WHERE id = 5") == 0


def test_names_that_the_migration_changed_and_columns_that_it_made_are_understood(shop: PostgresWorld) -> None:
    rename = "ALTER TABLE orders RENAME TO purchases; ALTER TABLE purchases RENAME COLUMN total TO amount; "
    rename += "ALTER TABLE purchases ADD COLUMN note text DEFAULT 'new'"
    shop.ship("v2", {SECOND: rename})
    shop.migrate()
    shop.invariants = {"amounts": "SELECT id FROM purchases WHERE amount <= 0"}
    shop.sql("UPDATE purchases SET amount = 0 WHERE id = 5")
    (row,) = repaired(shop).rows
    assert row.columns == (ColumnRepair(column="amount", now="0", becomes="6"),)


ODD = """
CREATE TABLE "odd one" ("the key" text PRIMARY KEY, "a b" jsonb, c bytea, d float8, e text[], f int
    GENERATED ALWAYS AS (length("the key")) STORED, g numeric, ok boolean DEFAULT true);
INSERT INTO "odd one" ("the key", "a b", c, d, e, g) VALUES
    ('it''s', '{"x": [1, null]}', '\\x00ff', 'NaN', '{a,NULL,"b c"}', 1.10),
    ('\\', NULL, NULL, '-Infinity', '{}', 'NaN');
"""


def test_values_of_every_kind_go_back_as_they_were(embedded: PostgresWorld) -> None:
    embedded.sql(ODD)
    embedded.invariants = {"odd": """SELECT "the key" FROM "odd one" WHERE "a b" = '0' OR c = 'x' OR g = 0"""}
    embedded.take()
    before = embedded.sql('SELECT "odd one"::text FROM "odd one" ORDER BY 1')
    embedded.sql("""UPDATE "odd one" SET "a b" = '0', c = 'x', g = 0""")
    made = repaired(embedded)
    assert {row.key[1] for row in made.rows} == {"it's", "\\"}
    assert embedded.sql('SELECT "odd one"::text FROM "odd one" ORDER BY 1') == before


PARTS = """
CREATE TABLE parts (id int, at date, n int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE parts_old PARTITION OF parts FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE parts_new PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO parts VALUES (1, '2025-05-05', 1), (2, '2026-05-05', 2), (3, '2025-01-01', 3), (3, '2026-01-01', 3);
"""


def test_a_partition_has_the_row_and_a_key_of_two_rows_is_none(embedded: PostgresWorld) -> None:
    embedded.sql(PARTS)
    embedded.invariants = {"parts": "SELECT id FROM parts WHERE n = 0"}
    embedded.take()
    embedded.sql("UPDATE parts SET n = 0")
    made = repaired(embedded)
    assert [row.name for row in made.rows] == ["parts 1", "parts 2"]
    assert [(left.keys, left.why) for left in made.left] == [(("3",), "its key is not of one row only")]
    assert embedded.sql("SELECT n FROM parts ORDER BY id, at") == [(1,), (2,), (0,), (0,)]


def test_triggers_of_the_table_fire_as_for_any_write(shop: PostgresWorld) -> None:
    shop.sql(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN INSERT INTO audit (what) VALUES ('order ' || NEW.id); RETURN NEW; END$$; "
        "CREATE TRIGGER note AFTER UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION note()"
    )
    shop.sql("UPDATE orders SET total = 0 WHERE id = 5; TRUNCATE audit")
    repaired(shop)
    assert shop.sql("SELECT what FROM audit") == [("order 5",)]


def test_a_computed_key_finds_no_row(shop: PostgresWorld) -> None:
    shop.invariants = {"computed": "SELECT 'order ' || id FROM orders WHERE total <= 0"}
    shop.sql("UPDATE orders SET total = 0 WHERE id = 5")
    (left,) = plan(shop).left
    assert (left.keys, left.why) == (("order 5",), "the first column of the invariant is no column of a table")


def test_a_row_that_somebody_holds_is_not_waited_for_long(shop: PostgresWorld) -> None:
    shop.sql("UPDATE orders SET total = 0 WHERE id = 5")
    with shop.connect() as other, other.transaction():
        other.execute("SELECT 1 FROM orders WHERE id = 5 FOR UPDATE")
        with pytest.raises(Retryable, match="lock timeout"):
            plan(shop)


def test_more_rows_than_a_person_reads_are_left(shop: PostgresWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lastgood.targets.postgres.repair.MOST_REPAIRED", 3)
    shop.sql("UPDATE orders SET total = 0 WHERE id <= 5")
    made = plan(shop)
    assert len(made.rows) == 3
    assert [(left.rows, left.keys) for left in made.left] == [(2, ("4", "5"))]


def test_without_its_clone_a_restore_point_is_nothing_to_compare_with(shop: PostgresWorld) -> None:
    point = shop.target.restore_point(shop.restore_point)
    with shop.connect(database="postgres") as connection:
        connection.execute(f'DROP DATABASE "{point.clone}"'.encode())
    with pytest.raises(Refused, match="nothing to compare with"):
        shop.target.repairs(since=point)
    with pytest.raises(Refused, match="expected"):
        shop.target.repairs(since=replace(point, manifest="0" * 64))
