"""Fence and swap: who is let in before and after, what goes on, and what is found out before anything is renamed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from lastgood.core.errors import Refused, Retryable
from lastgood.core.plan import Fence, Plan, Purpose, Seen, TakeRestorePoint, seen
from lastgood.core.returning import lift_by_hand
from lastgood.targets.postgres.connect import Connection, connect
from lastgood.targets.postgres.properties import properties
from lastgood.targets.postgres.restore_point import SESSION
from tests.contract.rigs import postgres_embedded
from tests.contract.rigs.clock import CLOCK
from tests.contract.rigs.postgres_cluster import cluster
from tests.contract.rigs.postgres_world import PostgresWorld, step


def described(world: PostgresWorld, database: str) -> dict[str, str]:
    with world.connect(database="postgres") as connection:
        return properties(connection, database)


@contextmanager
def frozen(pid: int) -> Generator[None]:
    """A backend that hangs: no signal but this one reaches it."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_session_that_does_not_end_is_named_and_nobody_is_shut_out(embedded: PostgresWorld) -> None:
    fence = next(s for s in embedded.way_back if isinstance(s.action, Fence))
    with embedded.connect() as stubborn:
        stubborn.execute("SET application_name = 'payroll'")
        pid = stubborn.info.backend_pid
        with frozen(pid), pytest.raises(Retryable, match=rf"do not end: .*{pid} payroll \(shop, idle\)"):
            embedded.target.apply(fence)
    assert embedded.one("SELECT count(*) FROM orders") == 100
    assert seen(fence, embedded.target.observe()) is Seen.NOT_DONE
    embedded.target.apply(fence)
    assert not embedded.target.observe().exists


def as_role(world: PostgresWorld, role: str) -> Connection:
    return connect(world.config.model_copy(update={"user": role}), autocommit=True)


@pytest.mark.full
def test_sessions_of_another_role_end_at_the_fence(keeper: PostgresWorld) -> None:
    """Of what they are, a role that is no superuser sees nothing."""
    with as_role(keeper, "shop") as superuser:
        superuser.execute("GRANT pg_signal_backend TO app")
    keeper.take()
    keeper.migrate()
    with as_role(keeper, "web") as web:
        keeper.go_back()
        with pytest.raises(psycopg.OperationalError, match="terminating connection"):
            web.execute("SELECT 1")
    assert keeper.one("SELECT count(*) FROM orders") == 100


@pytest.mark.parametrize(
    "role, remedy",
    [("web", 'GRANT pg_signal_backend TO "app"'), ("shop", 'ALTER ROLE "shop" NOSUPERUSER (or end its sessions')],
)
def test_a_session_that_is_not_ours_to_end_is_refused_before_anybody_is_shut_out(
    keeper: PostgresWorld, role: str, remedy: str
) -> None:
    with as_role(keeper, role) as others, as_role(keeper, "app") as ours:
        with pytest.raises(Refused, match=rf"app may not end sessions of shop, .*\({role}, ") as refused:
            keeper.target.apply(keeper.fence)
        assert refused.value.hint.startswith(remedy)
        assert ours.execute("SELECT 1").fetchone() == (1,)
        assert others.execute("SELECT 1").fetchone() == (1,)
    assert seen(keeper.fence, keeper.target.observe()) is Seen.NOT_DONE


def test_a_role_whose_sessions_are_not_ours_to_end_is_told_before_a_deploy(keeper: PostgresWorld) -> None:
    (line,) = keeper.target.preflight()
    assert line == ('app may not end sessions of web, so shop could not be fenced: GRANT pg_signal_backend TO "app"')
    with as_role(keeper, "shop") as superuser:
        superuser.execute(line.partition(": ")[2].encode())
    assert keeper.target.preflight() == ()


@pytest.mark.full
def test_a_member_of_a_group_that_was_granted_something_is_told_as_well(keeper: PostgresWorld) -> None:
    with as_role(keeper, "shop") as superuser:
        superuser.execute(
            "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM web; CREATE ROLE readers; GRANT readers TO web"
        )
    assert keeper.target.preflight() == ()
    with as_role(keeper, "shop") as superuser:
        superuser.execute("GRANT SELECT ON orders TO readers")
    assert any("sessions of web" in line for line in keeper.target.preflight())


def test_an_application_that_is_a_superuser_is_told_before_a_deploy(keeper: PostgresWorld) -> None:
    with as_role(keeper, "shop"):
        told = keeper.target.preflight()
    assert any(
        "shop is a superuser and uses shop: app, which is none, may not end its sessions" in line for line in told
    )
    assert any('ALTER ROLE "shop" NOSUPERUSER' in line for line in told)


def test_an_extension_that_a_clone_could_not_have_is_told_before_a_deploy(keeper: PostgresWorld) -> None:
    with as_role(keeper, "shop") as superuser:
        superuser.execute("CREATE EXTENSION vector; GRANT pg_signal_backend TO app")
        assert any(
            "extension vector was made by shop and is not trusted: app may not make it in a clone" in line
            for line in keeper.target.preflight()
        )
        superuser.execute("UPDATE pg_extension SET extversion = '0.0.1' WHERE extname = 'vector'")
        told = next(line for line in keeper.target.preflight() if line.startswith("extension"))
        assert told.startswith("extension vector is 0.0.1 here and would be ")
        assert told.endswith(': ALTER EXTENSION "vector" UPDATE')


def behind_the_fence(world: PostgresWorld) -> None:
    """Do what a rollback does until the fence is up."""
    world.take()
    world.migrate()
    for each in world.way_back[:3]:
        world.target.apply(each)


def test_nobody_can_make_a_database_of_the_name_behind_the_fence(embedded: PostgresWorld) -> None:
    """As `prisma migrate deploy` does, and the entrypoint of many an image, where it finds none."""
    behind_the_fence(embedded)
    name = embedded.config.name
    with pytest.raises(psycopg.errors.DuplicateDatabase):
        embedded.sql(f"CREATE DATABASE {name}", database="postgres")
    with pytest.raises(Retryable, match="not currently accepting connections"):
        embedded.connect()
    assert not embedded.target.observe().exists
    assert name not in embedded.target.observe().databases
    for each in embedded.way_back[3:]:
        embedded.target.apply(each)
    assert embedded.one("SELECT count(*) FROM orders") == 100


def stranger(world: PostgresWorld) -> None:
    """A database of the live name, made behind a fence that left the name free, or by who took the empty one away."""
    name = world.config.name
    world.sql(f"ALTER DATABASE {name} RENAME TO {name}_lg_elsewhere", database="postgres")
    world.sql(f"CREATE DATABASE {name}", database="postgres")
    world.sql("CREATE TABLE precious (id int); INSERT INTO precious VALUES (1)")


def test_a_database_that_somebody_made_behind_the_fence_is_neither_taken_for_the_swapped_one_nor_touched(
    embedded: PostgresWorld,
) -> None:
    behind_the_fence(embedded)
    stranger(embedded)
    name, kept_as, told = embedded.config.name, embedded.kept_as, list[str]()
    for each in (embedded.way_back[-1], embedded.lift):
        with pytest.raises(Refused, match=f"{name} is a database that somebody made while {kept_as}") as refused:
            embedded.target.apply(each)
        told.append(refused.value.hint)
    assert embedded.one("SELECT id FROM precious") == 1
    words = told[-1].removeprefix("psql -d postgres: ").removesuffix("; then lastgood rollback")
    for statement in words.split("; "):
        embedded.sql(statement, database="postgres")
    embedded.target.apply(embedded.lift)
    assert embedded.one("SELECT count(*) FROM orders") == 100
    assert embedded.one("SELECT id FROM precious", database=f"{name}_made_meanwhile") == 1


def test_a_kept_database_is_dropped_when_a_person_releases_it_and_no_other(embedded: PostgresWorld) -> None:
    behind_the_fence(embedded)
    name, kept_as = embedded.config.name, embedded.kept_as
    assert embedded.target.kept() == (), "what stands behind a fence is production"
    for each in embedded.way_back[3:]:
        embedded.target.apply(each)
    assert [one.name for one in embedded.target.kept()] == [kept_as]
    aside = embedded.swap_back()
    (one,) = embedded.target.kept()
    assert (one.name, one.size_bytes > 1_000_000) == (aside, True)
    for other in (name, kept_as, embedded.clone, "postgres", "lastgood"):
        with pytest.raises(Refused, match=f"{other} is no database that a swap of {name} keeps; kept: {aside}"):
            embedded.target.release(other, deadline_s=60.0)
    with embedded.connect(database=aside), pytest.raises(Retryable, match=f"{aside} is in use: .* lastgood"):
        embedded.target.release(aside, deadline_s=60.0)
    embedded.target.release(aside, deadline_s=60.0)
    assert embedded.target.kept() == ()
    assert aside not in embedded.target.observe().databases
    assert embedded.one("SELECT count(*) FROM orders") == 100


def test_a_database_that_a_stranger_has_the_name_of_is_not_released(embedded: PostgresWorld) -> None:
    behind_the_fence(embedded)
    stranger(embedded)
    with pytest.raises(Refused, match="kept: none"):
        embedded.target.release(embedded.kept_as, deadline_s=60.0)


@pytest.mark.full
def test_a_database_that_was_kept_before_that_was_noted_is_released_as_well(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.migrate()
    embedded.go_back()
    embedded.sql(f"DELETE FROM kept WHERE name = '{embedded.kept_as}'", database="lastgood")
    embedded.target.release(embedded.kept_as, deadline_s=60.0)
    assert embedded.kept_as not in embedded.target.observe().databases


def test_a_swap_that_happened_is_not_lifted(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.migrate()
    embedded.go_back()
    with pytest.raises(Refused, match="the swap happened"):
        embedded.target.apply(embedded.lift)


@pytest.mark.full
def test_a_fence_that_left_the_name_free_is_lifted_and_swapped_as_well(embedded: PostgresWorld) -> None:
    """As one that stood while lastgood was brought up to date."""
    behind_the_fence(embedded)
    name = embedded.config.name
    embedded.sql(f"ALTER DATABASE {name} RENAME TO {name}_lg__fence", database="postgres")
    embedded.target.apply(embedded.lift)
    assert embedded.one("SELECT count(*) FROM orders") == 100
    embedded.target.apply(embedded.fence)
    embedded.sql(f"ALTER DATABASE {name} RENAME TO {name}_lg__fence", database="postgres")
    for each in embedded.way_back[3:]:
        embedded.target.apply(each)
    assert embedded.one("SELECT name FROM customers WHERE id = 1") == "customer 1"


def test_what_a_person_is_told_to_type_lifts_the_fence_and_can_do_no_harm_where_it_is_lifted(
    embedded: PostgresWorld,
) -> None:
    behind_the_fence(embedded)
    plan = Plan(
        id="r1",
        purpose=Purpose.ROLLBACK,
        made_at=CLOCK.now(),
        from_release="v2",
        to_release="v1",
        steps=(embedded.fence,),
        rung="in place",
    )
    words = lift_by_hand(plan).removeprefix("psql -d postgres: ")
    embedded.sql(words, database="postgres")
    assert seen(embedded.lift, embedded.target.observe()) is Seen.DONE
    assert embedded.one("SELECT count(*) FROM orders") == 100
    with pytest.raises(psycopg.Error):
        embedded.sql(words, database="postgres")
    assert embedded.one("SELECT count(*) FROM orders") == 100


@pytest.mark.full
def test_an_empty_database_that_a_killed_command_left_unmarked_is_made_anew(embedded: PostgresWorld) -> None:
    name = embedded.config.name
    embedded.sql(f"CREATE DATABASE {name}_lg__fence TEMPLATE template0 ALLOW_CONNECTIONS false", database="postgres")
    behind_the_fence(embedded)
    embedded.target.apply(embedded.lift)
    assert embedded.one("SELECT count(*) FROM orders") == 100


def test_who_used_the_database_is_back_when_it_was_swapped(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.migrate()
    name = embedded.kept_as
    with embedded.connect() as web:
        web.execute("SET application_name = 'web'")
        embedded.go_back()
        assert (
            embedded.target.clients(name).detail == f"{embedded.config.user} web x1 before, and nobody of them is back"
        )
    with embedded.connect() as web:
        web.execute("SET application_name = 'web'")
        assert (embedded.target.clients(name).passed, embedded.target.clients(name).detail) == (
            True,
            f"{embedded.config.user} web x1 connected",
        )
        with embedded.connect(database=name) as stray:
            stray.execute("SET application_name = 'payroll'")
            assert embedded.target.clients(name).detail == (
                f"{embedded.config.user} payroll x1 in {name}, which is no longer live"
            )


def test_a_swap_is_taken_back_with_all_that_was_there_and_what_came_since_stays_beside(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.migrate()
    embedded.sql("INSERT INTO customers (full_name) VALUES ('written on the new schema')")
    migrated = embedded.target.observe().fingerprint
    embedded.go_back()
    assert embedded.target.observe().foreign == {embedded.restore_point}
    embedded.sql("INSERT INTO customers (name) VALUES ('written since')")
    beside = embedded.swap_back()
    assert embedded.target.observe().foreign == frozenset()
    assert embedded.target.observe().fingerprint == migrated
    assert embedded.one("SELECT count(*) FROM customers WHERE full_name = 'written on the new schema'") == 1
    assert embedded.one("SELECT count(*) FROM customers WHERE name = 'written since'", database=beside) == 1
    given_out = embedded.one("SELECT max(id) FROM customers", database=beside)
    assert embedded.one("INSERT INTO customers (full_name) VALUES ('next') RETURNING id > " + str(given_out)) is True


@pytest.fixture
def roles(embedded: PostgresWorld) -> Generator[str]:
    """The beginning of the names of three roles, which are gone afterwards."""
    name = embedded.config.name
    for role in ("owner", "web", "late"):
        embedded.sql(f"CREATE ROLE {name}_{role} LOGIN PASSWORD 'pass word'")
    yield name
    for database in (name, f"{name}_bad_r1", embedded.clone):
        if database in embedded.target.observe().databases:
            embedded.sql(f'DROP DATABASE "{database}" WITH (FORCE)', database="postgres")
    for role in ("owner", "web", "late"):
        embedded.sql(f"DROP ROLE {name}_{role}", database="postgres")


def test_the_clone_lets_in_whom_the_live_database_let_in(embedded: PostgresWorld, roles: str) -> None:
    name = embedded.config.name
    for text in (
        f"ALTER DATABASE {name} OWNER TO {roles}_owner",
        f"REVOKE ALL ON DATABASE {name} FROM PUBLIC, {roles}_owner",
        f"GRANT CONNECT ON DATABASE {name} TO {roles}_web WITH GRANT OPTION",
        f"ALTER DATABASE {name} CONNECTION LIMIT 7",
        f"ALTER DATABASE {name} SET search_path = '$user', public",
        f"ALTER DATABASE {name} SET DateStyle = 'German, DMY'",
        f"ALTER DATABASE {name} SET shop.greeting = 'it''s \"open\" =)'",
        f"ALTER ROLE {roles}_web IN DATABASE {name} SET statement_timeout = '3s'",
    ):
        embedded.sql(text)
    before = described(embedded, name)
    assert before["connection limit"] == "7"
    assert before[f"setting statement_timeout of {roles}_web"] == "3s"
    embedded.take()
    assert described(embedded, embedded.clone) == before
    embedded.migrate()
    embedded.go_back()
    assert described(embedded, name) == before
    web = embedded.config.model_copy(update={"user": f"{roles}_web"})
    with connect(web) as connection:
        assert connection.execute("SHOW shop.greeting").fetchone() == ('it\'s "open" =)',)
    with pytest.raises(Retryable, match="permission denied for database"):
        connect(embedded.config.model_copy(update={"user": f"{roles}_late"}))


def test_a_database_that_nobody_may_enter_has_a_clone_that_nobody_may_enter(embedded: PostgresWorld) -> None:
    embedded.sql(f"REVOKE ALL ON DATABASE {embedded.config.name} FROM PUBLIC, shop")
    embedded.take()
    assert [name for name in described(embedded, embedded.clone) if name.startswith("right")] == []


def test_what_an_administrator_granted_since_stays_and_what_the_migration_set_goes(
    embedded: PostgresWorld, roles: str
) -> None:
    name = embedded.config.name
    embedded.sql(f"ALTER DATABASE {name} SET search_path = public")
    embedded.take()
    embedded.ship(
        "v2",
        {"20250201000000_rename": f"ALTER TABLE audit ADD COLUMN x int; ALTER DATABASE {name} SET search_path = x"},
    )
    embedded.migrate()
    embedded.sql(f"GRANT CREATE ON DATABASE {name} TO {roles}_late")
    embedded.sql(f"ALTER ROLE {roles}_late IN DATABASE {name} SET work_mem = '9MB'")
    embedded.go_back()
    after = described(embedded, name)
    assert after["setting search_path"] == "public"
    assert after[f"setting work_mem of {roles}_late"] == "9MB"
    assert after[f"right CREATE of {roles}_late"] == "granted"


def test_a_sequence_that_the_migration_renamed_goes_on_where_it_stopped(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.ship("v2", {"20250201000000_rename": "ALTER SEQUENCE orders_id_seq RENAME TO numbers"})
    embedded.migrate()
    used = embedded.one("INSERT INTO orders (customer, total) VALUES (1, 900) RETURNING id")
    embedded.go_back()
    following = embedded.one("INSERT INTO orders (customer, total) VALUES (1, 900) RETURNING id")
    assert following == int(str(used)) + 1


@pytest.mark.parametrize(
    "migration",
    [
        "ALTER TABLE orders ALTER id ADD GENERATED BY DEFAULT AS IDENTITY (START 101)",
        "ALTER TABLE orders ALTER id ADD GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME no START 101)",
    ],
    ids=["of the same name", "of another name"],
)
def test_a_sequence_that_the_migration_made_anew_gives_no_number_out_twice(
    embedded: PostgresWorld, migration: str
) -> None:
    embedded.take()
    without = "ALTER TABLE orders ALTER COLUMN id DROP DEFAULT; DROP SEQUENCE orders_id_seq; "
    embedded.ship("v2", {"20250201000000_rename": without + migration})
    embedded.migrate()
    for _ in range(2):
        embedded.sql("INSERT INTO orders (customer, total) VALUES (1, 900)")
    embedded.sql("SELECT nextval(pg_get_serial_sequence('orders', 'id'))")  # as a write does that does not fit
    embedded.go_back()
    assert embedded.one("INSERT INTO orders (customer, total) VALUES (1, 900) RETURNING id") == 104


@pytest.mark.full
def test_a_sequence_that_is_gone_goes_on_past_what_is_in_its_column(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.ship(
        "v2", {"20250201000000_rename": "ALTER TABLE orders ALTER COLUMN id DROP DEFAULT; DROP SEQUENCE orders_id_seq"}
    )
    embedded.migrate()
    embedded.sql("INSERT INTO orders (id, customer, total) VALUES (150, 1, 900)")
    embedded.go_back()
    assert embedded.one("INSERT INTO orders (customer, total) VALUES (1, 900) RETURNING id") == 151


@pytest.mark.full
def test_a_sequence_that_counts_down_goes_on_downwards(embedded: PostgresWorld) -> None:
    embedded.sql("CREATE SEQUENCE down INCREMENT -1 MAXVALUE 100 START 100")
    embedded.sql("SELECT nextval('down')")
    embedded.take()
    embedded.sql("SELECT nextval('down') FROM generate_series(1, 4)")
    embedded.migrate()
    embedded.go_back()
    assert embedded.one("SELECT nextval('down')") == 95


def test_a_row_of_the_clone_that_somebody_changed_is_noticed(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.migrate()
    embedded.sql("UPDATE orders SET total = total + 1 WHERE id = 1", database=embedded.clone)
    with pytest.raises(Refused, match="somebody wrote to orders"):
        embedded.go_back()


@pytest.mark.full
def test_looking_into_the_clone_does_not_make_it_unfit(embedded: PostgresWorld) -> None:
    with embedded.connect() as open_since_before:
        open_since_before.execute("BEGIN; SELECT pg_current_xact_id()")
        embedded.take()
        open_since_before.rollback()
    embedded.by_rows = True
    embedded.migrate()
    embedded.sql("VACUUM ANALYZE", database=embedded.clone)
    embedded.sql("SELECT count(*) FROM orders", database=embedded.clone)
    embedded.go_back()
    assert embedded.one("SELECT count(*) FROM orders") == 100


@pytest.mark.full
def test_a_damaged_restore_point_hides_no_other_one(embedded: PostgresWorld) -> None:
    embedded.take()
    (embedded.folder / "restore-points" / "rp-d1.json").write_text('{"point": ')
    assert embedded.target.observe().restore_points == {"rp-d2"}
    embedded.target.apply(step("take", TakeRestorePoint(restore_point="rp-d3")))
    assert embedded.target.observe().restore_points == {"rp-d2", "rp-d3"}


def test_a_tool_that_a_killed_command_left_is_ended_by_the_next_attempt(embedded: PostgresWorld) -> None:
    with embedded.connect() as left_behind:
        left_behind.execute("SELECT set_config('application_name', %s, false)", [SESSION])
        embedded.take()
        with pytest.raises(psycopg.OperationalError, match="terminating connection"):
            left_behind.execute("SELECT 1")


def test_a_locked_table_makes_a_restore_point_wait_no_longer_than_five_seconds(embedded: PostgresWorld) -> None:
    with embedded.connect() as holder, holder.transaction():
        holder.execute("LOCK TABLE orders")
        with pytest.raises(Retryable, match="lock timeout"):
            embedded.take()
    facts = embedded.target.observe()
    assert facts.restore_points == set()
    assert embedded.clone not in facts.databases
    assert list(embedded.folder.glob("restore-points/*")) == []


def test_every_statement_of_ours_has_its_limits(embedded: PostgresWorld) -> None:
    assert embedded.one("SHOW lock_timeout") == "5s"
    assert embedded.one("SHOW statement_timeout") == "30s"


@pytest.mark.full
def test_the_ledger_is_made_although_somebody_uses_the_template(tmp_path: Path) -> None:
    with postgres_embedded.rig(tmp_path) as alone, alone.connect(database="template1"):
        alone.take()
        assert "lastgood" in alone.target.observe().databases


def test_a_logical_slot_is_told_before_a_deploy(tmp_path: Path) -> None:
    """Its reader would go on with the replaced database and never know."""
    with postgres_embedded.rig(tmp_path) as alone:
        alone.sql("ALTER SYSTEM SET wal_level = logical")
        tools = Path(str(alone.config.bin))
        data = alone.folder / "pg"
        subprocess.run(
            [tools / "pg_ctl", "-w", "-D", data, "-o", f'-h "" -k {alone.config.host}', "-l", data / "log", "restart"],
            check=True,
            timeout=30,
            capture_output=True,
            user=data.owner(),
        )
        alone.sql("SELECT pg_create_logical_replication_slot('cdc', 'pgoutput')")
        assert any("slot cdc" in line for line in alone.target.preflight())


def test_an_owner_that_is_no_superuser_goes_all_the_way(tmp_path: Path) -> None:
    """As on a managed server: the role owns the database and may create others, and no more."""
    with postgres_embedded.rig(tmp_path) as alone:
        alone.sql("CREATE ROLE app LOGIN CREATEDB PASSWORD 'pass word'; ALTER DATABASE shop OWNER TO app")
        alone.sql("REASSIGN OWNED BY shop TO app")
        alone.config = alone.config.model_copy(update={"user": "app"})
        alone.by_rows = True
        assert alone.target.preflight() == ()
        assert alone.target.lossy_because() == ("app may not replicate: ALTER ROLE app REPLICATION",)
        before = alone.target.observe().fingerprint
        alone.take()
        alone.migrate()
        alone.sql("INSERT INTO orders (customer, total) VALUES (1, 900)")
        alone.go_back()
        assert alone.target.observe().fingerprint == before
        assert alone.one("SELECT count(*) FROM orders WHERE total = 900") == 1


# --- what no fence ends, and no swap takes along ---------------------------------------------------------------------


def fence_is_refused(world: PostgresWorld) -> Refused:
    """And nobody is thrown out."""
    with world.connect() as user:
        with pytest.raises(Refused) as refused:
            world.target.apply(world.fence)
        user.execute("SELECT 1")
    assert seen(world.fence, world.target.observe()) is Seen.NOT_DONE
    return refused.value


def test_a_transaction_prepared_since_the_deploy_is_named_before_anybody_is_thrown_out(tmp_path: Path) -> None:
    with postgres_embedded.open_folder() as folder, cluster(folder, None) as made:
        with connect(made.config, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET max_prepared_transactions = 5")
        made.start(after=made.kill())
        with postgres_embedded.database(tmp_path, made.config) as world:
            world.sql("BEGIN; INSERT INTO audit (what) VALUES ('half'); PREPARE TRANSACTION 'pay''ment'")
            refused = fence_is_refused(world)
            assert "transaction pay'ment is prepared" in refused.message
            assert refused.hint == (
                f"psql -d {world.config.name}: COMMIT PREPARED 'pay''ment' (or ROLLBACK PREPARED 'pay''ment')"
            )
            world.sql("ROLLBACK PREPARED 'pay''ment'")
            world.target.apply(world.fence)


def test_a_slot_and_a_subscription_made_since_the_deploy_are_named_before_anybody_is_thrown_out(
    embedded: PostgresWorld,
) -> None:
    embedded.take()
    embedded.migrate()
    slot = f"reader_of_{embedded.config.name}"
    embedded.sql(f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")
    embedded.sql(
        "CREATE SUBSCRIPTION \"from Head\" CONNECTION 'dbname=nowhere' PUBLICATION all_of_it "
        "WITH (connect = false, slot_name = NONE)"
    )
    refused = fence_is_refused(embedded)
    assert f"subscription from Head writes to {embedded.config.name}" in refused.message
    assert f"slot {slot} reads the changes of {embedded.config.name} for pgoutput" in refused.message
    database, typed = str(refused.hint).removeprefix("psql -d ").split(": ", 1)
    assert database == embedded.config.name
    for statement in typed.split("; "):
        embedded.sql(statement)
    embedded.target.apply(embedded.fence)
