"""A team whose migrations are Alembic's: its own command applies them, its own table tells which there are."""

from __future__ import annotations

import sys

import pytest

from lastgood.core.plan import Migrate
from tests.contract.rigs.postgres_world import PostgresWorld, step

ENV = """
import os
import sqlalchemy
from alembic import context

address = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://", 1)
with sqlalchemy.create_engine(address).connect() as connection:
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()
"""
SCRIPT = """
from alembic import op

revision = {revision!r}
down_revision = {before!r}


def upgrade():
    op.execute({sql!r})
"""
RENAME = "ALTER TABLE customers RENAME COLUMN name TO full_name; UPDATE orders SET total = total + 1000"


def ship(world: PostgresWorld, release: str, *scripts: tuple[str, str | None, str]) -> None:
    root = world.folder / release
    (root / "migrations" / "versions").mkdir(parents=True, exist_ok=True)
    (root / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\n")
    (root / "migrations" / "env.py").write_text(ENV)
    for revision, before, sql in scripts:
        path = root / "migrations" / "versions" / f"{revision}.py"
        path.write_text(SCRIPT.format(revision=revision, before=before, sql=sql))


@pytest.fixture
def alembic(embedded: PostgresWorld) -> PostgresWorld:
    """The shop, whose first release has one script, and whose second one more."""
    embedded.sql("DROP TABLE _prisma_migrations")
    command = [sys.executable, "-m", "alembic", "upgrade", "head"]
    embedded.migrations = {"alembic": "migrations/versions", "command": command}
    first = ("a1", None, "SELECT 1")
    ship(embedded, "v1", first)
    ship(embedded, "v2", first, ("b2", "a1", RENAME))
    return embedded


def migrated(world: PostgresWorld, release: str, revision: str) -> tuple[str, ...]:
    world.target.apply(step("migrate", Migrate(release=release, migrations=(revision,))))
    return world.target.observe().migrations


def test_tables_without_a_history_are_refused_and_not_guessed(alembic: PostgresWorld) -> None:
    (line,) = alembic.target.preflight()
    assert line.startswith("alembic_version is missing, and there are tables")
    alembic.sql("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    (line,) = alembic.target.preflight()
    assert line.startswith("alembic_version names no migration, and there are tables")


def test_the_releases_own_command_applies_what_it_ships(alembic: PostgresWorld) -> None:
    assert alembic.target.ships("v1").migrations == ("a1",)
    assert alembic.target.ships("v2").migrations == ("b2",)
    assert migrated(alembic, "v1", "a1") == ("a1",)
    assert alembic.target.preflight() == ()
    assert migrated(alembic, "v2", "b2") == ("b2",)


@pytest.mark.parametrize("by_rows", [False, True], ids=["captured", "by rows"])
def test_the_history_goes_back_with_the_schema_and_nothing_written_since_is_lost(
    alembic: PostgresWorld, *, by_rows: bool
) -> None:
    alembic.by_rows = by_rows
    migrated(alembic, "v1", "a1")
    alembic.take()
    before = alembic.target.observe()
    migrated(alembic, "v2", "b2")
    alembic.sql("INSERT INTO orders (customer, total) VALUES (1, 900)")
    alembic.sql("UPDATE alembic_version SET version_num = 'b2'")  # a stamp, in a transaction of its own
    alembic.go_back()
    after = alembic.target.observe()
    assert (after.migrations, after.fingerprint) == (("a1",), before.fingerprint)
    assert alembic.one("SELECT count(*) FROM orders WHERE total = 900") == 1
    assert alembic.one("SELECT count(*) FROM orders WHERE total > 1000") == 0
