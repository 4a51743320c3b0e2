"""A team whose migrations are Alembic's: its own command applies them, its own table tells which there are."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from lastgood.core.errors import ConfigError, Refused
from lastgood.core.migration import Fit, FitsSchema, WayDown
from lastgood.core.plan import Migrate
from lastgood.core.release import Down, Release
from tests.contract.rigs.postgres_world import STATEMENTS, PostgresWorld, step

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


def downgrade():
    for statement in {down!r}:
        op.execute(statement)
"""
RENAME = "ALTER TABLE customers RENAME COLUMN name TO full_name; UPDATE orders SET total = total + 1000"


NICK = "ALTER TABLE customers RENAME COLUMN name TO full_name; ALTER TABLE customers ADD COLUMN nickname text"
NO_NICK = (
    "ALTER TABLE customers DROP COLUMN nickname",
    "ALTER TABLE customers RENAME COLUMN full_name TO name",
)
V1 = Release(
    id="v1",
    recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
    engine="process",
    services=(),
    statements=STATEMENTS,
    migrations=("a1",),
)


def ship(world: PostgresWorld, release: str, *scripts: tuple[str, str | None, str], down: tuple[str, ...] = ()) -> None:
    """Write the files of a release. down: what its newest script does to be taken back."""
    root = world.folder / release
    (root / "migrations" / "versions").mkdir(parents=True, exist_ok=True)
    (root / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\n")
    (root / "migrations" / "env.py").write_text(ENV)
    for revision, before, sql in scripts:
        path = root / "migrations" / "versions" / f"{revision}.py"
        path.write_text(SCRIPT.format(revision=revision, before=before, sql=sql, down=down))


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


DOWNGRADE = [sys.executable, "-m", "alembic", "downgrade", "{from}:{to}", "--sql"]


def tried(world: PostgresWorld, *downs: Down) -> WayDown:
    """What a rollback to the first release would find of its way down."""
    since = world.target.restore_point(world.restore_point)
    way = world.target.inspect(since=since, target=V1, downs=downs).way_down
    assert way is not None
    return way


def test_its_own_downgrade_takes_two_releases_down_again_and_every_row_stays(alembic: PostgresWorld) -> None:
    alembic.migrations = {**alembic.migrations, "down": DOWNGRADE}
    first, second = ("a1", None, "SELECT 1"), ("b2", "a1", NICK)
    third = ("c3", "b2", "CREATE TABLE moods (id int PRIMARY KEY, mood text)")
    ship(alembic, "v2", first, second, down=NO_NICK)
    ship(alembic, "v3", first, second)
    ship(alembic, "v3", third, down=("DROP TABLE moods",))
    alembic.ship("v3", {})  # what every release says to the database
    migrated(alembic, "v1", "a1")
    alembic.take()
    before = alembic.target.observe()
    downs = alembic.target.ships("v2").downs
    assert migrated(alembic, "v2", "b2") == ("b2",)
    downs += alembic.target.ships("v3").downs
    assert migrated(alembic, "v3", "c3") == ("c3",)
    assert [down.migrations for down in downs] == [("b2",), ("c3",)]
    alembic.sql("INSERT INTO customers (full_name, nickname) VALUES ('ada', 'countess')")
    alembic.sql("INSERT INTO moods VALUES (1, 'good')")

    way = tried(alembic, *downs)
    assert (way.downs, way.migrations) == (downs, ("c3",))
    assert dict(way.aside) == {"customers.nickname": 1, "moods": 1}
    for each in alembic.way_down(*way.downs, migrations=way.migrations):
        alembic.target.apply(each)

    after = alembic.target.observe()
    assert (after.migrations, after.fingerprint) == (("a1",), before.fingerprint)
    assert alembic.one("SELECT count(*) FROM customers WHERE name = 'ada'") == 1
    (aside,) = (alembic.folder / "state" / "aside" / "down-r0").glob("*/customers.jsonl")
    (line,) = [json.loads(line) for line in aside.read_text().splitlines()]
    assert line == {"key": {"id": 21}, "values": {"nickname": "countess"}}
    assert migrated(alembic, "v2", "b2") == ("b2",)  # its history lets the next release be applied


@pytest.mark.full
def test_a_downgrade_that_does_not_give_the_schema_back_is_not_chosen(alembic: PostgresWorld) -> None:
    alembic.migrations = {**alembic.migrations, "down": DOWNGRADE}
    ship(alembic, "v2", ("a1", None, "SELECT 1"), ("b2", "a1", NICK), down=NO_NICK[1:])
    migrated(alembic, "v1", "a1")
    alembic.take()
    downs = alembic.target.ships("v2").downs
    migrated(alembic, "v2", "b2")
    way = tried(alembic, *downs)
    assert way.downs == ()
    assert way.reason.startswith("the schema is not that of rp-d2 afterwards: customers.nickname is new")


def test_a_downgrade_that_cannot_be_had_is_refused_before_anything_is_migrated(alembic: PostgresWorld) -> None:
    migrated(alembic, "v1", "a1")
    alembic.migrations = {**alembic.migrations, "down": [sys.executable, "-c", "raise SystemExit('no such revision')"]}
    with pytest.raises(Refused) as refused:
        alembic.target.ships("v2")
    assert refused.value.message.endswith("ended 1: no such revision")
    alembic.migrations = {**alembic.migrations, "down": [sys.executable, "-c", ""]}
    with pytest.raises(Refused) as refused:
        alembic.target.ships("v2")
    assert refused.value.message.endswith("printed no SQL")


def test_with_several_heads_nobody_can_tell_from_which_one_it_goes_down(alembic: PostgresWorld) -> None:
    migrated(alembic, "v1", "a1")
    ship(alembic, "v2", ("c3", "a1", "SELECT 1"))
    alembic.migrations = {**alembic.migrations, "down": DOWNGRADE}
    with pytest.raises(ConfigError) as error:
        alembic.target.ships("v2")
    assert "{from} would be one of b2, c3" in error.value.message


UP = [sys.executable, "-m", "alembic", "upgrade", "head"]
REFUSED = "what v1 runs when it starts ended 255: "  # Alembic's words for a revision that it does not know follow


def fit(world: PostgresWorld) -> FitsSchema:
    """Whether a rollback to the first release would find it able to run."""
    return world.target.inspect(since=world.target.restore_point(world.restore_point), target=V1).old_release


def test_a_release_that_refuses_the_history_when_it_starts_cannot_go_back_alone(alembic: PostgresWorld) -> None:
    ship(alembic, "v2", ("b2", "a1", "ALTER TABLE audit ADD COLUMN by text"))
    migrated(alembic, "v1", "a1")
    alembic.take()
    before = alembic.target.observe()
    migrated(alembic, "v2", "b2")
    assert fit(alembic).fit is Fit.YES  # every statement runs
    alembic.migrations = {**alembic.migrations, "at_start": UP}
    found = fit(alembic)
    assert (found.fit, found.reason[: len(REFUSED)]) == (Fit.NO, REFUSED)
    assert "b2" in found.reason
    assert alembic.target.observe().migrations == ("b2",)
    alembic.go_back()
    assert alembic.target.observe().fingerprint == before.fingerprint


@pytest.mark.full
def test_it_refuses_the_history_of_a_migration_that_left_the_schema_as_it_was(alembic: PostgresWorld) -> None:
    ship(alembic, "v2", ("b2", "a1", "UPDATE customers SET name = upper(name)"))
    migrated(alembic, "v1", "a1")
    alembic.take()
    migrated(alembic, "v2", "b2")
    alembic.migrations = {**alembic.migrations, "at_start": UP}
    evidence = alembic.target.inspect(since=alembic.target.restore_point("rp-d2"), target=V1)
    assert (evidence.changes, evidence.old_release.fit) == ((), Fit.NO)
    assert evidence.writes is not None  # the database has to go back, so what was written since is counted


@pytest.mark.parametrize(
    "at_start,why",
    [
        ([sys.executable, "-c", "raise SystemExit('never')"], "what v1 runs when it starts ended 1: never"),
        (UP, "what v1 runs when it starts changes the schema: audit.late is new"),
    ],
    ids=["fails always", "migrates"],
)
def test_what_says_nothing_of_the_migration_leaves_it_to_a_person(
    alembic: PostgresWorld, at_start: list[str], why: str
) -> None:
    migrated(alembic, "v1", "a1")
    alembic.take()
    alembic.sql("ALTER TABLE audit ADD COLUMN by text")
    ship(alembic, "v1", ("a9", "a1", "ALTER TABLE audit ADD COLUMN late text"))
    alembic.migrations = {**alembic.migrations, "at_start": at_start}
    found = fit(alembic)
    assert (found.fit, found.reason[: len(why)]) == (Fit.UNKNOWN, why)


def test_before_the_deploy_it_is_known_that_the_release_before_will_refuse_the_history(alembic: PostgresWorld) -> None:
    ship(alembic, "v2", ("b2", "a1", "ALTER TABLE audit ADD COLUMN by text"))
    migrated(alembic, "v1", "a1")
    alembic.migrations = {**alembic.migrations, "at_start": UP, "on_copy": True}
    release = replace(V1, id="v2", migrations=("b2",))
    found = alembic.target.foresee(release, ("b2",), last_good=V1)
    assert (found.old_release.fit, found.old_release.reason[: len(REFUSED)]) == (Fit.NO, REFUSED)
