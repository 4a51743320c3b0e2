"""What is said of a release's migrations before any of them is applied."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from lastgood.core.errors import NeedsHuman
from lastgood.core.migration import Fit, Outlook
from lastgood.core.release import Release
from lastgood.testing.world import START
from tests.contract.rigs.postgres_world import SECOND, STATEMENTS, PostgresWorld
from tests.integration.test_alembic import ship

V1 = Release(id="v1", recorded_at=START, engine="process", services=(), statements=STATEMENTS)
V2 = replace(V1, id="v2")


def foreseen(world: PostgresWorld, migration: str, *, last_good: Release | None = V1) -> Outlook:
    world.ship("v2", {SECOND: migration})
    return world.target.foresee(V2, (SECOND,), last_good=last_good)


def test_a_renamed_column_is_no_one_way_door_and_the_old_release_does_not_run_on_it(embedded: PostgresWorld) -> None:
    before, there = embedded.target.observe(), embedded.sql("SELECT datname FROM pg_database ORDER BY 1")
    found = foreseen(embedded, "ALTER TABLE customers RENAME COLUMN name TO full_name; CREATE ROLE leftover")
    assert (found.last_good, found.old_release.fit, found.doors) == ("v1", Fit.NO, ())
    assert found.old_release.reason.startswith("SQLSTATE 42703 ")
    assert [c.object for c in found.changes if "name" in c.object.split(".")[-1]] == [
        "customers.customers_name_key",
        "customers.full_name",
        "customers.name",
    ]
    after = embedded.target.observe()
    assert replace(after, observed_at=before.observed_at, size_bytes=before.size_bytes) == before
    assert embedded.sql("SELECT datname FROM pg_database ORDER BY 1") == there
    assert embedded.one("SELECT count(*) FROM pg_roles WHERE rolname = 'leftover'") == 0


@pytest.mark.parametrize(
    "migration,door",
    [
        ("DROP TABLE audit", "table audit is dropped"),
        ("ALTER TABLE audit DROP COLUMN what", "column audit.what is dropped"),
        (
            "ALTER TABLE audit DROP COLUMN what; ALTER TABLE audit ADD COLUMN what text",
            "column audit.what is dropped and made anew",
        ),
        (
            "DROP VIEW paid; ALTER TABLE orders ALTER COLUMN id TYPE int",
            "column orders.id becomes integer from bigint, which not every value is",
        ),
        ("DELETE FROM audit WHERE at < now()", "rows of audit are deleted"),
        ("TRUNCATE audit", "all rows of audit are removed"),
        ("UPDATE audit SET what = upper(what)", "values in rows of audit may be overwritten"),
        (
            """DROP VIEW paid; ALTER TYPE state RENAME TO was; CREATE TYPE state AS ENUM ('new');
            ALTER TABLE orders ALTER COLUMN state DROP DEFAULT,
            ALTER COLUMN state TYPE state USING state::text::state; DROP TYPE was""",
            "type state no longer has 'paid'",
        ),
    ],
)
def test_what_nobody_could_take_from_the_rows_again_is_named(
    embedded: PostgresWorld, migration: str, door: str
) -> None:
    found = foreseen(embedded, f"BEGIN; {migration}; COMMIT;")
    assert (found.unseen, found.doors) == ("", (door,))


@pytest.mark.full
@pytest.mark.parametrize(
    "migration",
    [
        "ALTER TABLE audit ALTER COLUMN what TYPE varchar; ALTER TYPE state RENAME VALUE 'paid' TO 'settled'",
        "ALTER TABLE audit RENAME TO log",
        "CREATE INDEX CONCURRENTLY by_total ON orders (total)",
        "INSERT INTO audit (what) VALUES ('x')",
    ],
)
def test_what_keeps_every_value_is_no_one_way_door(embedded: PostgresWorld, migration: str) -> None:
    found = foreseen(embedded, migration)
    assert (found.unseen, found.doors, found.old_release.fit) == ("", (), Fit.YES)


@pytest.mark.parametrize(
    "migration,why",
    [
        ("ALTER TABLE nowhere ADD x int", 'fails on a copy without rows: SQLSTATE 42P01 relation "nowhere"'),
        ("CREATE TABLE x (id int); COMMIT; CREATE TABLE y (id int)", "ends its transaction by itself"),
    ],
)
def test_what_cannot_be_tried_is_unknown_and_says_why(embedded: PostgresWorld, migration: str, why: str) -> None:
    found = foreseen(embedded, migration)
    assert why in found.unseen
    assert (found.old_release.fit, found.old_release.reason, found.doors) == (Fit.UNKNOWN, found.unseen, ())


def test_without_a_good_release_or_its_statements_it_is_not_known_who_runs_on_it(embedded: PostgresWorld) -> None:
    silent = foreseen(embedded, "DROP TABLE audit", last_good=replace(V1, statements=()))
    assert (silent.old_release.fit, silent.old_release.reason) == (Fit.UNKNOWN, "v1 recorded no statements")
    first = foreseen(embedded, "DROP TABLE audit", last_good=None)
    assert (first.old_release.fit, first.last_good) == (Fit.UNKNOWN, "")
    assert silent.doors == first.doors == ("table audit is dropped",)


def test_values_in_a_recorded_statement_are_masked(embedded: PostgresWorld) -> None:
    found = foreseen(
        embedded,
        "ALTER TABLE customers RENAME COLUMN name TO full_name",
        last_good=replace(V1, statements=("SELECT id FROM customers WHERE name = 'it''s secret'",)),
    )
    assert found.old_release.reason.endswith("in `SELECT id FROM customers WHERE name = '********'`")


ALEMBIC = [sys.executable, "-m", "alembic", "upgrade", "head"]


@pytest.fixture
def alembic(embedded: PostgresWorld) -> PostgresWorld:
    """The shop at its first script; the second release brings one more."""
    embedded.sql("DROP TABLE _prisma_migrations")
    embedded.sql("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    embedded.sql("INSERT INTO alembic_version VALUES ('a1')")
    embedded.migrations = {"alembic": "migrations/versions", "command": ALEMBIC}
    ship(embedded, "v2", ("a1", None, "SELECT 1/0"), ("b2", "a1", "ALTER TABLE audit DROP COLUMN what"))
    return embedded


def test_alembics_command_is_tried_where_it_may_be_and_only_what_is_pending(alembic: PostgresWorld) -> None:
    found = alembic.target.foresee(V2, ("b2",), last_good=V1)
    assert "on_copy is not set" in found.unseen
    alembic.migrations = {**alembic.migrations, "on_copy": True}
    found = alembic.target.foresee(V2, ("b2",), last_good=V1)
    assert (found.unseen, found.doors, found.old_release.fit) == ("", ("column audit.what is dropped",), Fit.YES)
    assert alembic.target.observe().migrations == ("a1",)


def test_a_command_that_goes_to_the_live_database_all_the_same_needs_a_person(alembic: PostgresWorld) -> None:
    settings = alembic.folder / "v2" / "migrations" / "env.py"
    address = f"postgresql+psycopg://shop:pass%20word@/{alembic.config.name}?host={alembic.config.host}"
    text = settings.read_text().replace("sqlalchemy.create_engine(address)", f"sqlalchemy.create_engine({address!r})")
    settings.write_text(text)
    alembic.migrations = {**alembic.migrations, "on_copy": True}
    with pytest.raises(NeedsHuman, match="itself was migrated"):
        alembic.target.foresee(V2, ("b2",), last_good=V1)
