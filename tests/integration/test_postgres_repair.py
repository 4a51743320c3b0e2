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
    assert row.sources == (shop.restore_point,)
    assert shop.sql("SELECT total::int, state::text FROM orders WHERE id = 5") == [(6, "paid")]
    assert shop.sql("SELECT * FROM orders WHERE id <> 5 ORDER BY id") == before


def test_looking_changes_nothing_and_a_second_look_finds_the_same(shop: PostgresWorld) -> None:
    shop.sql("UPDATE orders SET total = 0 WHERE id IN (5, 7)")
    before = shop.sql("SELECT xmin, * FROM orders ORDER BY id")
    first = plan(shop)
    assert [row.key for row in first.rows] == [(("id", "5"),), (("id", "7"),)]
    assert plan(shop) == first
    assert shop.sql("SELECT xmin, * FROM orders ORDER BY id") == before


def test_two_columns_go_back_where_neither_alone_is_enough(shop: PostgresWorld) -> None:
    shop.invariants = {"both": "SELECT id FROM orders WHERE total < 0 OR customer = 20"}
    shop.sql("UPDATE orders SET total = -1, customer = 20, state = 'paid' WHERE id = 5")
    (row,) = repaired(shop).rows
    assert [one.column for one in row.columns] == ["customer", "total"]
    assert (plan(shop).rows, plan(shop).left) == ((), ())


def test_a_row_that_breaks_two_invariants_is_one_repair(shop: PostgresWorld) -> None:
    shop.invariants = {"totals": "SELECT id FROM orders WHERE total <= 0", "owners": PAID_HAS_TOTAL}
    shop.sql("UPDATE orders SET total = 0, state = 'paid' WHERE id = 5")
    (row,) = repaired(shop).rows
    assert [name for name, _ in row.breaks] == ["totals", "owners"]
    assert {one.column for one in row.columns} == {"total", "state"}


def test_a_row_written_since_is_left_unless_the_team_says_what_it_should_be(shop: PostgresWorld) -> None:
    shop.sql("INSERT INTO orders (id, customer, total) VALUES (900, 1, 0), (901, 2, -5)")
    (left,) = plan(shop).left
    assert (left.rows, left.keys, left.why) == (
        2,
        ("900", "901"),
        f"not found at {shop.restore_point} by its key: a statement in `repairs` says what it should be",
    )
    shop.repairs = {"totals-are-positive": "UPDATE orders SET total = greatest(1, -total) WHERE id = $1"}
    made = repaired(shop)
    assert {row.sources for row in made.rows} == {("the statement for totals-are-positive",)}
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
        (
            "UPDATE nothing SET total = 1 WHERE id = $1",
            'does not make it valid: relation "nothing" does not exist (42P01)',
        ),
        ("UPDATE orders SET total = 'x' WHERE id = $1", "invalid input syntax for type numeric"),
        ("UPDATE orders SET customer = -7, total = 1 WHERE id = $1", "violates foreign key constraint"),
    ],
)
def test_a_statement_that_does_something_else_is_no_repair(shop: PostgresWorld, statement: str, why: str) -> None:
    shop.sql("INSERT INTO orders (id, customer, total) VALUES (900, 1, 0), (901, 2, 3)")
    shop.repairs = {"totals-are-positive": statement}
    made = plan(shop)
    assert made.rows == ()
    assert why in made.left[0].why
    assert shop.sql("SELECT total::int FROM orders WHERE id >= 900 ORDER BY id") == [(0,), (3,)]


@pytest.mark.full
def test_a_statement_that_needs_another_row_changed_is_no_repair(shop: PostgresWorld) -> None:
    shop.invariants = {"named": "SELECT o.id FROM orders o JOIN customers c ON c.id = o.customer WHERE c.name = 'x'"}
    shop.sql("UPDATE customers SET name = 'x' WHERE id = 6")
    both = "WITH other AS (UPDATE customers SET name = 'y' WHERE id = 6) UPDATE orders SET state = 'paid' WHERE id = $1"
    shop.repairs = {"named": both}
    made = plan(shop)
    assert made.rows == ()
    assert {left.why for left in made.left} == {
        "the statement for named makes it valid only by what it does to other rows"
    }


def test_between_two_columns_that_would_do_a_person_chooses(shop: PostgresWorld) -> None:
    shop.invariants = {"paid": PAID_HAS_TOTAL}
    shop.sql("UPDATE orders SET total = 1, state = 'paid' WHERE id = 40")
    assert [left.why for left in plan(shop).left] == [
        "each of total, state alone would make it valid: a statement in `repairs` says which"
    ]
    shop.repairs = {"paid": "UPDATE orders SET total = 41 WHERE id = $1"}
    assert [one.column for row in repaired(shop).rows for one in row.columns] == ["total"]


def test_a_change_that_would_break_another_invariant_is_not_chosen(shop: PostgresWorld) -> None:
    shop.invariants = {
        "totals": "SELECT id FROM orders WHERE total < 0",
        "few are paid": "SELECT id FROM orders WHERE state = 'paid' AND total > 0",
    }
    shop.sql("UPDATE orders SET total = -20, state = 'paid' WHERE id = 5")
    (row,) = repaired(shop).rows
    assert [one.column for one in row.columns] == ["total", "state"]


@pytest.mark.full
def test_another_row_that_took_the_key_over_gives_it_nothing(embedded: PostgresWorld) -> None:
    embedded.sql("CREATE TABLE notes (tenant int, id int, what text, PRIMARY KEY (tenant, id))")
    embedded.sql("INSERT INTO notes VALUES (1, 7, 'good')")
    embedded.invariants = {"notes": "SELECT id FROM notes WHERE what = ''"}
    embedded.take()
    embedded.sql("DELETE FROM notes; INSERT INTO notes VALUES (2, 7, '')")
    made = plan(embedded)
    assert made.rows == ()
    assert made.left[0].why.startswith("not found at")


def test_a_row_without_a_key_and_one_without_a_primary_key_are_left(embedded: PostgresWorld) -> None:
    embedded.invariants = {
        "nobody": "SELECT c.id FROM audit a LEFT JOIN customers c ON c.name = a.what WHERE c.id IS NULL",
        "audit": "SELECT what FROM audit WHERE what = 'bad'",
    }
    embedded.take()
    embedded.sql("INSERT INTO audit (what) VALUES ('bad')")
    assert {left.invariant: left.why for left in plan(embedded).left} == {
        "nobody": "the invariant gives no key",
        "audit": "audit has no primary key",
    }


def test_a_value_with_which_the_invariant_cannot_be_asked_is_no_repair(embedded: PostgresWorld) -> None:
    embedded.sql("CREATE TABLE told (id int PRIMARY KEY, what text)")
    embedded.invariants = {"told": "SELECT id FROM told WHERE what::int < 0"}
    embedded.take()
    embedded.sql("INSERT INTO told VALUES (1, '-1')")
    embedded.repairs = {"told": "UPDATE told SET what = 'n/a' WHERE id = $1"}
    made = plan(embedded)
    assert made.rows == ()
    assert "invalid input syntax for type integer" in made.left[0].why


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


def test_a_row_that_became_valid_since_it_was_shown_is_left_as_it_is(shop: PostgresWorld) -> None:
    shop.invariants = {"paid": PAID_HAS_TOTAL}
    shop.sql("UPDATE orders SET state = 'paid' WHERE id = 5")
    made = plan(shop)
    shop.sql("UPDATE orders SET total = 500 WHERE id = 5")
    with pytest.raises(Refused, match="5 does not break paid any more"):
        shop.target.repair(made.rows, about_to_commit=lambda _xid: None)
    assert shop.sql("SELECT total::int, state::text FROM orders WHERE id = 5") == [(500, "paid")]


def test_what_breaks_an_invariant_elsewhere_is_refused_whole(shop: PostgresWorld) -> None:
    shop.invariants = {
        "totals-are-positive": "SELECT id FROM orders WHERE total <= 0",
        "sum": "SELECT 'all' FROM orders HAVING sum(total) > 5150",
    }
    shop.sql("UPDATE orders SET total = 0 WHERE id = 5")
    shop.sql("UPDATE orders SET total = total + 2 WHERE id = 7")
    made = plan(shop)
    with pytest.raises(Refused, match="it breaks the invariant sum: all"):
        shop.target.repair(made.rows, about_to_commit=lambda _xid: None)
    assert shop.one("SELECT total::int FROM orders WHERE id = 5") == 0


@pytest.mark.full
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
    assert {row.key[0][1] for row in made.rows} == {"it's", "\\"}
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
    assert [row.name for row in made.rows] == ["parts_old 1, 2025-05-05", "parts_new 2, 2026-05-05"]
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


def test_new_rows_are_found_behind_any_number_of_old_ones(shop: PostgresWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.sql("ALTER TABLE orders DISABLE TRIGGER USER; UPDATE orders SET total = 0 WHERE id <= 50")
    shop.target.apply(shop.steps[0])  # nothing: it is taken
    monkeypatch.setattr("lastgood.targets.postgres.broken.MOST_ROWS", 3)
    assert len(plan(shop).rows) == 3


def test_without_its_clone_a_restore_point_is_nothing_to_compare_with(shop: PostgresWorld) -> None:
    point = shop.target.restore_point(shop.restore_point)
    with shop.connect(database="postgres") as connection:
        connection.execute(f'DROP DATABASE "{point.clone}"'.encode())
    with pytest.raises(Refused, match="nothing to compare with"):
        shop.target.repairs(since=point)
    with pytest.raises(Refused, match="expected"):
        shop.target.repairs(since=replace(point, manifest="0" * 64))
