"""Invariants on a real Postgres."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from lastgood.core.errors import Retryable
from lastgood.core.reading import SourceDown, Violation, Violations, Window
from lastgood.signals.invariants import Invariants
from tests.signals.database import database
from tests.signals.loopback import drip_body, loopback

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = Window(since=NOW, until=NOW)
SCHEMA = (
    "CREATE TABLE users (id int PRIMARY KEY)",
    "CREATE TABLE missions (id int PRIMARY KEY, owner_id int, credits int, title text DEFAULT '100% {sure}')",
    "INSERT INTO users VALUES (1)",
    "INSERT INTO missions VALUES (1, 1, 5), (2, 1, 0), (3, 9, -4)",
)
CREDITS = "-- positive, always\nSELECT id, credits FROM missions WHERE credits <= 0;\n"


@pytest.fixture
def address() -> Iterator[str]:
    with database(*SCHEMA) as made:
        yield made


def reading(address: str, *, timeout_s: float = 4.0, **statements: str) -> object:
    return Invariants("data", statements, connecting(address), timeout_s).read(WINDOW)


def connecting(address: str) -> Callable[[], psycopg.Connection[Any]]:
    return lambda: psycopg.connect(address)


def run(address: str, *statements: str) -> None:
    with psycopg.connect(address, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def keys(*of: tuple[str, str]) -> frozenset[Violation]:
    return frozenset(Violation(invariant=invariant, key=key) for invariant, key in of)


def test_each_row_that_breaks_an_invariant_is_named_by_its_key(address: str) -> None:
    found = reading(address, credits=CREDITS, sure="SELECT id FROM missions WHERE title NOT LIKE '%{sure}'")
    assert found == Violations(found=keys(("credits", "2"), ("credits", "3")), total=2)


def test_an_invariant_whose_table_is_not_there_is_unchecked_and_the_others_run(address: str) -> None:
    found = reading(address, absent="SELECT id FROM nowhere", credits=CREDITS, zero="SELECT 1 / 0 FROM missions")
    assert isinstance(found, Violations)
    assert found.found == keys(("credits", "2"), ("credits", "3"))
    assert [name for name, _ in found.unchecked] == ["absent", "zero"]
    assert "nowhere" in found.unchecked[0][1]


def test_no_more_than_a_thousand_rows_are_kept_and_all_are_counted(address: str) -> None:
    found = reading(address, many="SELECT g, repeat('x', 1000) FROM generate_series(1, 2345) g", credits=CREDITS)
    assert isinstance(found, Violations)
    assert len(found.found) == 1002
    assert found.total == 2347


@pytest.mark.parametrize("rows", [0, 1, 49, 50, 51, 100, 999, 1000, 1001])
def test_the_count_is_right_at_the_edges_of_what_is_fetched_at_once(address: str, rows: int) -> None:
    found = reading(address, many=f"SELECT g FROM generate_series(1, {rows}) g")
    assert isinstance(found, Violations)
    assert (len(found.found), found.total) == (min(rows, 1000), rows)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1; DELETE FROM missions",
        "SELECT 1; COMMIT; DELETE FROM missions",
        "WITH gone AS (DELETE FROM missions RETURNING id) SELECT id FROM gone",
        "DELETE FROM missions RETURNING id",
        "SELECT id FROM users FOR UPDATE",
        "SELECT nextval('seq')",
        "SELECT pg_advisory_lock(1) FROM wrong syntax",
    ],
)
def test_a_statement_that_would_change_something_is_unchecked_and_changes_nothing(address: str, statement: str) -> None:
    run(address, "CREATE SEQUENCE seq")
    found = reading(address, bad=statement, credits=CREDITS)
    assert isinstance(found, Violations)
    assert [name for name, _ in found.unchecked] == ["bad"]
    with psycopg.connect(address) as connection:
        assert connection.execute("SELECT count(*), (SELECT last_value FROM seq) FROM missions").fetchone() == (3, 1)


def test_a_key_that_is_no_value_of_python_is_a_key(address: str) -> None:
    found = reading(address, odd="SELECT 'infinity'::timestamptz UNION ALL SELECT NULL")
    assert isinstance(found, Violations)
    assert found.found == keys(("odd", "infinity"), ("odd", "NULL"))


def test_a_slow_invariant_is_unchecked_and_those_before_it_count(address: str) -> None:
    found = reading(address, timeout_s=1.5, credits=CREDITS, slow="SELECT id FROM missions, pg_sleep(60)")
    assert isinstance(found, Violations)
    assert found.total == 2
    assert [name for name, _ in found.unchecked] == ["slow"]


def test_a_foreign_key_that_is_not_valid_is_checked_by_us(address: str) -> None:
    run(
        address,
        "ALTER TABLE missions ADD CONSTRAINT owner FOREIGN KEY (owner_id) REFERENCES users NOT VALID",
        "INSERT INTO missions VALUES (4, NULL, 1)",
    )
    assert reading(address) == Violations(found=keys(("fk:owner", "3")), total=1)


def test_a_foreign_key_whose_triggers_are_off_is_checked_by_us(address: str) -> None:
    run(
        address,
        "DELETE FROM missions WHERE id = 3",
        "ALTER TABLE missions ADD CONSTRAINT owner FOREIGN KEY (owner_id) REFERENCES users",
    )
    assert reading(address) == Violations(found=frozenset(), total=0)
    run(
        address,
        "ALTER TABLE missions DISABLE TRIGGER ALL",
        "INSERT INTO missions VALUES (7, 77, 1)",
    )
    assert reading(address) == Violations(found=keys(("fk:owner", "7")), total=1)


def test_a_foreign_key_of_several_columns_in_another_schema_is_checked(address: str) -> None:
    run(
        address,
        'CREATE SCHEMA "odd %s {name}"',
        'CREATE TABLE "odd %s {name}".parents (a int, "B" int, UNIQUE (a, "B"))',
        'CREATE TABLE "odd %s {name}".children (x int, y int)',
        'INSERT INTO "odd %s {name}".parents VALUES (1, 2)',
        'INSERT INTO "odd %s {name}".children VALUES (1, 2), (2, 1), (NULL, 5)',
        'ALTER TABLE "odd %s {name}".children ADD CONSTRAINT both_of'
        ' FOREIGN KEY (y, x) REFERENCES "odd %s {name}".parents ("B", a) NOT VALID',
    )
    assert reading(address) == Violations(found=keys(("fk:both_of", "1, 2")), total=1)


def test_a_database_that_is_away_is_a_source_that_is_down() -> None:
    def away() -> psycopg.Connection[Any]:
        raise Retryable("could not connect to 127.0.0.1:5432", delay_s=1)

    found = Invariants("data", {}, away, 1.0).read(WINDOW)
    assert isinstance(found, SourceDown)
    assert "could not connect" in found.reason


def test_a_session_that_is_ended_in_the_middle_is_a_source_that_is_down(address: str) -> None:
    found = reading(address, own="SELECT pg_terminate_backend(pg_backend_pid())", credits=CREDITS)
    assert isinstance(found, SourceDown)


def test_a_server_that_is_no_database_is_a_source_that_is_down() -> None:
    with loopback(drip_body) as server:
        found = Invariants(
            "data", {}, lambda: psycopg.connect(f"host=127.0.0.1 port={server.port} connect_timeout=2"), 1.0
        ).read(WINDOW)
    assert isinstance(found, SourceDown)
