"""Migrations are taken down on a real server: what stays, what is set aside, what is refused, what a kill leaves."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lastgood.core.errors import Refused, Retryable
from lastgood.core.migration import DatabaseEvidence, Fit, WayDown
from lastgood.core.plan import Seen, Step, TakeRestorePoint, seen
from lastgood.core.release import Down
from lastgood.core.report import TerminalState
from lastgood.runbook.rooms import Rooms
from lastgood.targets.postgres import way_down
from lastgood.testing.stack import Behaviour
from tests.contract.rigs import postgres_embedded
from tests.contract.rigs.own_process import begin, ended
from tests.contract.rigs.postgres_world import FIRST, SECOND, SHOP, PostgresWorld, step
from tests.integration.test_postgres import V1, deadly
from tests.runbook.team import Team

UP = """
ALTER TABLE customers RENAME COLUMN name TO full_name;
ALTER TABLE customers ADD COLUMN nickname text;
ALTER TABLE audit ADD COLUMN who text;
CREATE TABLE coupons (code text PRIMARY KEY, percent int NOT NULL);
"""
DOWN = """
DROP TABLE coupons;
ALTER TABLE audit DROP COLUMN who;
ALTER TABLE customers DROP COLUMN nickname;
ALTER TABLE customers RENAME COLUMN full_name TO name;
"""
OLD = replace(V1, migrations=(FIRST,))


class GoingDown:
    """The shop, whose second release brings a migration that ships its way down."""

    def __init__(self, world: PostgresWorld, *, up: str = UP, down: str | None = DOWN) -> None:
        self.world = world
        world.ship("v2", {FIRST: SHOP, SECOND: up})
        if down is not None:
            (world.folder / "v2" / "prisma" / SECOND / "down.sql").write_text(down)
        self.downs = world.target.ships("v2").downs
        world.take()
        self.before = world.target.observe()
        world.migrate()

    def inspect(self) -> DatabaseEvidence:
        """What a rollback to the first release would find."""
        return self.world.target.inspect(
            since=self.world.target.restore_point(self.world.restore_point), target=OLD, downs=self.downs
        )

    def way_down(self) -> WayDown:
        evidence = self.inspect()
        assert evidence.old_release.fit is Fit.NO
        assert evidence.way_down is not None
        return evidence.way_down

    def steps(self) -> Sequence[Step]:
        """What a rollback would do then."""
        way = self.way_down()
        assert way.downs, way.reason
        return self.world.way_down(*way.downs, made_for=self.world.target.observe().fingerprint)

    def go(self) -> None:
        for each in self.steps():
            self.world.target.apply(each)

    def write(self) -> None:
        """What users do after the deploy."""
        self.world.sql("INSERT INTO customers (full_name, nickname) VALUES ('ada', 'countess')")
        self.world.sql("UPDATE customers SET nickname = 'three' WHERE id = 3")
        self.world.sql("INSERT INTO orders (customer, total) VALUES (3, 902)")
        self.world.sql("DELETE FROM orders WHERE id = 8")
        self.world.sql("INSERT INTO audit (what, who) VALUES ('seen', 'ada')")
        self.world.sql("INSERT INTO coupons VALUES ('spring', 10)")

    def aside(self, name: str) -> list[dict[str, Any]]:
        """What was set aside of a table, by every transaction."""
        paths = sorted((self.world.folder / "state" / "aside" / "down-r0").glob(f"*/{name}.jsonl"))
        assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]

    def scratch(self) -> list[str]:
        """Databases of ours beside the clone."""
        name = self.world.config.name
        return [d for d in self.world.target.observe().databases if d.startswith(f"{name}_lg_try")]


def test_every_row_that_was_written_stays_and_the_schema_is_the_old_one(world: PostgresWorld) -> None:
    shop = GoingDown(world)
    shop.write()
    oid = world.one("SELECT oid FROM pg_database WHERE datname = current_database()")
    shop.go()
    after = world.target.observe()
    assert (after.fingerprint, after.migrations) == (shop.before.fingerprint, (FIRST,))
    assert world.one("SELECT name FROM customers WHERE name = 'ada'") == "ada"
    assert world.one("SELECT count(*) FROM orders") == 100
    assert world.one("SELECT count(*) FROM orders WHERE total = 902") == 1
    assert world.one("SELECT count(*) FROM audit") == 1
    assert world.one("SELECT oid FROM pg_database WHERE datname = current_database()") == oid
    assert shop.scratch() == []


def test_what_the_new_columns_and_tables_held_is_set_aside_by_key(embedded: PostgresWorld) -> None:
    shop = GoingDown(embedded)
    shop.write()
    assert dict(shop.way_down().aside) == {"customers.nickname": 2, "audit.who": 1, "coupons": 1}
    shop.go()
    assert shop.aside("customers") == [
        {"key": {"id": 21}, "values": {"nickname": "countess"}},
        {"key": {"id": 3}, "values": {"nickname": "three"}},
    ]
    assert shop.aside("coupons") == [{"key": {"code": "spring"}, "values": {"code": "spring", "percent": 10}}]
    ((key, values),) = [line.values() for line in shop.aside("audit")]
    assert (key["what"], values) == ("seen", {"who": "ada"})
    assert [row["migration_name"] for row in shop.aside("_prisma_migrations")] == [SECOND]
    told = {loss.table: loss.rows for loss in embedded.target.set_aside("down-r0")}
    assert told == {"customers.nickname": 2, "audit.who": 1, "coupons": 1, "_prisma_migrations": 1}
    assert embedded.target.rehearsed("down-r0").rows == 20 + 1 + 100 + 1


@pytest.mark.full
def test_a_column_that_came_with_values_is_no_reason_against_it(embedded: PostgresWorld) -> None:
    shop = GoingDown(embedded, up=f"{UP}; UPDATE customers SET nickname = 'n' || id")
    shop.go()
    assert embedded.target.observe().fingerprint == shop.before.fingerprint
    assert len(shop.aside("customers")) == 20


@pytest.mark.full
def test_what_all_databases_of_the_server_share_is_as_it_was_after_a_rehearsal(embedded: PostgresWorld) -> None:
    name = embedded.config.name
    shop = GoingDown(embedded, down=f"{DOWN} ALTER DATABASE {name} SET statement_timeout = '7s';")
    dump, rehearse, _ = shop.steps()
    embedded.target.apply(dump)
    embedded.target.apply(rehearse)
    shared = (
        f"SELECT setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase WHERE datname = '{name}'"
    )
    assert embedded.sql(shared) == []


@pytest.mark.full
def test_a_migration_that_stayed_from_before_the_restore_point_stays(embedded: PostgresWorld) -> None:
    """An earlier rollback may have left the schema as it was, since the target runs on it."""
    third = "20250301000000_third"
    before = {FIRST: SHOP, SECOND: "CREATE TABLE extra (id int)"}
    embedded.ship("v2", before)
    embedded.migrate()
    embedded.ship("v3", {**before, third: UP})
    (embedded.folder / "v3" / "prisma" / third / "down.sql").write_text(DOWN)
    downs = embedded.target.ships("v3").downs
    embedded.take()
    embedded.target.apply(embedded.step_to_migrate("v3", third))
    since = embedded.target.restore_point(embedded.restore_point)
    way = embedded.target.inspect(since=since, target=OLD, downs=downs).way_down
    assert way is not None
    assert (way.migrations, way.downs) == ((third,), downs)


@pytest.mark.full
def test_values_that_a_later_migration_changed_speak_against_it_as_well(embedded: PostgresWorld) -> None:
    shop, third = GoingDown(embedded), "20250301000000_third"
    up = "ALTER TABLE orders ADD COLUMN note text; UPDATE orders SET total = total * 2"
    down = "UPDATE orders SET total = total / 2; ALTER TABLE orders DROP COLUMN note"
    embedded.ship("v3", {FIRST: SHOP, SECOND: UP, third: up})
    (embedded.folder / "v3" / "prisma" / third / "down.sql").write_text(down)
    shop.downs += embedded.target.ships("v3").downs
    embedded.target.apply(step("take", TakeRestorePoint(restore_point="rp-d3")))
    embedded.target.apply(embedded.step_to_migrate("v3", third))
    way = shop.way_down()
    assert way.reason == "the migration gave orders.total other values, which are only at rp-d2"


def test_a_release_ships_the_way_down_of_what_it_brings_and_of_nothing_else(embedded: PostgresWorld) -> None:
    shop = GoingDown(embedded)
    assert shop.downs == (Down(migrations=(SECOND,), sql=DOWN),)
    assert embedded.target.ships("v2").downs == ()


@pytest.mark.parametrize(
    "up,down,why",
    [
        pytest.param(UP, None, "", id="none-is-shipped", marks=pytest.mark.full),
        pytest.param(
            UP,
            DOWN.replace("DROP TABLE coupons;", ""),
            "the schema is not that of rp-d2 afterwards",
            id="not-all-of-it",
        ),
        pytest.param(UP, f"{DOWN} SELECT 1/0;", "division by zero (22012)", id="it-fails"),
        pytest.param(
            UP,
            DOWN.replace("DROP TABLE", "COMMIT; DROP TABLE"),
            "ends the transaction that it runs in",
            id="it-commits-by-itself",
        ),
        pytest.param(
            f"{UP}; CREATE INDEX ON orders (at)",
            f"{DOWN}; DROP INDEX CONCURRENTLY orders_at_idx",
            "cannot run inside a transaction block (25001)",
            id="it-cannot-be-in-a-transaction",
            marks=pytest.mark.full,
        ),
        pytest.param(
            f"{UP}; DROP VIEW paid; ALTER TABLE orders DROP COLUMN at",
            f"{DOWN}; ALTER TABLE orders ADD COLUMN at timestamptz NOT NULL DEFAULT now()",
            "the migration removed orders.at, and what it held is only at rp-d2",
            id="what-was-removed-held-values",
        ),
        pytest.param(
            f"{UP}; ALTER TABLE audit DROP COLUMN at",
            f"{DOWN}; ALTER TABLE audit ADD COLUMN at timestamptz DEFAULT now()",
            "the migration removed audit.at, and what was written to it before is only captured",
            id="what-was-removed-was-empty-at-the-restore-point",
            marks=pytest.mark.full,
        ),
        pytest.param(
            f"{UP}; ALTER TABLE audit RENAME COLUMN what TO words",
            f"{DOWN}; ALTER TABLE audit DROP COLUMN words, ADD COLUMN what text",
            "audit.what would be another column afterwards, without the values of today's",
            id="a-rename-is-written-as-drop-and-add",
        ),
        pytest.param(
            UP,
            DOWN.replace(
                "RENAME COLUMN full_name TO name",
                "DROP COLUMN full_name, ADD COLUMN name text NOT NULL UNIQUE DEFAULT ''; "
                "ALTER TABLE customers ALTER COLUMN name DROP DEFAULT",
            ),
            "customers.name would be another column afterwards",
            id="a-rename-is-written-as-drop-and-add-with-a-default",
            marks=pytest.mark.full,
        ),
        pytest.param(
            f"{UP}; ALTER TABLE audit ALTER COLUMN what TYPE varchar(9)",
            f"{DOWN}; ALTER TABLE audit DROP COLUMN what, ADD COLUMN what text",
            "audit.what would be another column afterwards",
            id="a-change-of-type-is-written-as-drop-and-add",
            marks=pytest.mark.full,
        ),
        pytest.param(
            UP,
            f"{DOWN} DO $$ BEGIN RAISE EXCEPTION 'in use' USING ERRCODE = '55006'; END $$",
            "in use (55006)",
            id="it-fails-for-good-by-a-code-that-sounds-like-later",
            marks=pytest.mark.full,
        ),
        pytest.param(
            UP, f"{DOWN} SET lock_timeout = 0", "sets lock_timeout", id="it-waits-for-ever", marks=pytest.mark.full
        ),
        pytest.param(
            UP,
            f"{DOWN} SET LOCAL session_replication_role = replica",
            "sets session_replication_role",
            id="it-keeps-triggers-out",
            marks=pytest.mark.full,
        ),
        pytest.param(
            f"{UP}; UPDATE orders SET total = total * 2",
            f"{DOWN}; UPDATE orders SET total = total / 2",
            "the migration gave orders.total other values, which are only at rp-d2",
            id="values-were-changed",
            marks=pytest.mark.full,
        ),
    ],
)
def test_what_would_not_give_the_old_release_its_database_back_is_not_chosen(
    embedded: PostgresWorld, up: str, down: str | None, why: str
) -> None:
    shop = GoingDown(embedded, up=up, down=down)
    before = embedded.target.observe()
    way = shop.inspect().way_down
    if down is None:
        assert way is None
    else:
        assert way is not None
        assert way.downs == ()
        assert why in way.reason
    after = embedded.target.observe()
    assert (after.fingerprint, after.migrations, after.databases) == (
        before.fingerprint,
        before.migrations,
        before.databases,
    )


@pytest.mark.full
def test_an_error_of_a_down_migration_is_not_taken_for_the_applications(tmp_path: Path) -> None:
    """On a stock server, whose log names neither application nor database."""
    with postgres_embedded.rig(tmp_path) as alone:
        alone.sql("ALTER SYSTEM SET log_line_prefix = '%m [%p] '")
        alone.sql("SELECT pg_reload_conf()")
        shop = GoingDown(alone, down=f"{DOWN} SELECT missing FROM customers")
        assert "missing" in shop.way_down().reason
        assert shop.inspect().errors == ()


DELETES = f"{DOWN} DELETE FROM orders WHERE id = 7;"
EMPTY, NOBODY = "''", "'nobody'"
REWRITES = "ALTER TABLE customers ALTER COLUMN name TYPE text USING CASE WHEN id = 3 THEN '' ELSE name END;"
"""No row is written for the server's count: the table is, as a whole."""
INVARIANTS = {
    "somebody-is-called-something": (
        "SELECT id FROM customers c WHERE coalesce(to_json(c)->>'name', to_json(c)->>'full_name') = ''"
    ),
    "nobody-is-nobody": "SELECT id FROM customers WHERE name = 'nobody'",
    "nicknames-are-told": "SELECT id FROM customers WHERE nickname = ''",
}
ON_DATA: Mapping[str, tuple[str, str]] = {
    "rows-are-deleted": (DELETES, "the down migration itself writes to 1 rows of orders"),
    "all-rows-go": (
        f"{DOWN} TRUNCATE orders;",
        "orders has rows, and would have none afterwards",
    ),
    "rows-go-unseen": (
        f"{DOWN} SET track_counts = off; DELETE FROM orders WHERE id = 7; SET track_counts = on;",
        "orders has 100 rows, and would have 99 afterwards",
    ),
    "values-are-changed": (
        f"{DOWN} UPDATE orders SET total = 5000 WHERE id < 9;",
        "the down migration itself writes to 7 rows of orders",  # one was deleted
    ),
    "an-invariant-breaks": (
        f"{DOWN} {REWRITES}",
        "rows would break the invariant somebody-is-called-something afterwards: 3",
    ),
    "an-invariant-of-the-old-schema-breaks": (
        f"{DOWN} {REWRITES.replace(EMPTY, NOBODY)}",
        "rows would break the invariant nobody-is-nobody afterwards: 3",
    ),
    "a-sequence-begins-anew": (
        f"{DOWN} ALTER SEQUENCE orders_id_seq RESTART;",
        "the sequence public.orders_id_seq would give out numbers again that it gave out before",
    ),
    "a-value-does-not-fit": (
        f"{DOWN} UPDATE customers SET name = NULL WHERE id = 3;",
        "null value in column",
    ),
}

SHORT_ON_DATA = frozenset({"rows-are-deleted"})


@pytest.mark.parametrize(
    "case", [case if case in SHORT_ON_DATA else pytest.param(case, marks=pytest.mark.full) for case in ON_DATA]
)
def test_what_only_shows_on_real_rows_shows_in_the_rehearsal_and_live_is_untouched(
    embedded: PostgresWorld, case: str
) -> None:
    down, why = ON_DATA[case]
    embedded.invariants = INVARIANTS
    shop = GoingDown(embedded, down=down)
    shop.write()
    before = embedded.sql("SELECT xmin, * FROM orders ORDER BY id")
    dump, rehearse, _ = shop.steps()
    embedded.target.apply(dump)
    with pytest.raises(Refused) as refused:
        embedded.target.apply(rehearse)
    assert why in refused.value.message
    assert embedded.sql("SELECT xmin, * FROM orders ORDER BY id") == before
    assert embedded.target.observe().migrations == (FIRST, SECOND)
    assert seen(rehearse, embedded.target.observe()) is Seen.NOT_DONE
    assert shop.scratch() == []


@pytest.mark.full
def test_what_a_rehearsal_refused_is_not_chosen_again(embedded: PostgresWorld) -> None:
    shop = GoingDown(embedded, down=DELETES)
    dump, rehearse, _ = shop.steps()
    embedded.target.apply(dump)
    with pytest.raises(Refused):
        embedded.target.apply(rehearse)
    way = shop.way_down()
    assert way.downs == ()
    assert way.reason == "they were refused before: the down migration itself writes to 1 rows of orders"


def test_what_passes_is_not_held_against_it(embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = GoingDown(embedded)
    dump, rehearse, _ = shop.steps()
    embedded.target.apply(dump)
    with monkeypatch.context() as patch:
        patch.setattr(way_down, "room", lambda *_: ("4 bytes are free",))
        with pytest.raises(Refused) as refused:
            embedded.target.apply(rehearse)
    assert refused.value.message == "there is no room for a copy: 4 bytes are free"
    assert shop.way_down().downs

    def busy(*_: object) -> Iterator[tuple[str, int]]:
        raise psycopg.errors.LockNotAvailable

    with monkeypatch.context() as patch:
        patch.setattr(way_down, "_held", busy)
        assert shop.way_down().reason.startswith("they could not be tried: ")
    embedded.target.apply(rehearse)


@pytest.mark.full
def test_where_nobody_could_write_for_longer_than_requests_wait_a_swap_is_chosen(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = GoingDown(embedded)
    dump, rehearse, _ = shop.steps()
    embedded.target.apply(dump)
    monkeypatch.setattr(way_down, "HELD_AT_MOST_S", 0.0)
    with pytest.raises(Refused):
        embedded.target.apply(rehearse)
    assert shop.way_down().reason.startswith("they were refused before: nobody could write for ")


def test_what_every_transaction_set_aside_is_kept(embedded: PostgresWorld) -> None:
    """The command was killed after the commit, and the bad release migrated forward again when it came up."""
    shop = GoingDown(embedded)
    shop.write()
    dump, rehearse, migrate = shop.steps()
    embedded.target.apply(dump)
    embedded.target.apply(rehearse)
    assert _killed(embedded, migrate, "way_down.carry_out", "after")
    embedded.migrate()
    embedded.sql("INSERT INTO customers (full_name, nickname) VALUES ('grace', 'admiral')")
    assert seen(migrate, embedded.target.observe()) is Seen.NOT_DONE
    embedded.target.apply(migrate)
    assert {line["values"]["nickname"] for line in shop.aside("customers")} == {"countess", "three", "admiral"}
    told = [(loss.table, loss.rows) for loss in embedded.target.set_aside("down-r0")]
    assert [rows for table, rows in told if table == "customers.nickname"] == [2, 1]


@pytest.mark.full
@pytest.mark.parametrize(
    "reads",
    [
        "SELECT 1 FROM customers",
        pytest.param("LOCK TABLE customers IN ACCESS EXCLUSIVE MODE", marks=pytest.mark.full),
    ],
)
def test_a_table_that_somebody_holds_is_waited_for_a_little_and_the_holder_is_named(
    embedded: PostgresWorld, reads: str
) -> None:
    shop = GoingDown(embedded)
    dump, rehearse, migrate = shop.steps()
    embedded.target.apply(dump)
    embedded.target.apply(rehearse)
    with embedded.connect() as other, other.transaction():
        other.execute(reads.encode())
        with pytest.raises(Retryable) as error:
            embedded.target.apply(migrate)
        assert f"held by {other.info.backend_pid} lastgood (idle in transaction)" in error.value.message
    assert embedded.target.observe().migrations == (FIRST, SECOND)
    embedded.target.apply(migrate)
    assert embedded.target.observe().migrations == (FIRST,)


@pytest.mark.parametrize(
    "isolation",
    ["read committed", pytest.param("repeatable read", marks=pytest.mark.full), "serializable"],
)
def test_nobody_writes_between_what_is_set_aside_and_the_commit(embedded: PostgresWorld, isolation: str) -> None:
    """Whatever a writer was told is committed is in a table or in a file."""
    embedded.sql(f"ALTER DATABASE {embedded.config.name} SET default_transaction_isolation = '{isolation}'")
    shop = GoingDown(embedded)
    dump, rehearse, migrate = shop.steps()
    embedded.target.apply(dump)
    embedded.target.apply(rehearse)
    told: list[str] = []
    stop = threading.Event()

    def write() -> None:
        with embedded.connect() as connection:
            try:
                while not stop.is_set():
                    code = f"c{len(told)}"
                    connection.execute("INSERT INTO coupons VALUES (%s, 1)", [code])
                    told.append(code)
            except psycopg.errors.UndefinedTable:
                pass

    writer = threading.Thread(target=write)
    writer.start()
    try:
        embedded.target.apply(migrate)
    finally:
        stop.set()
        writer.join()
    assert sorted(told) == sorted(line["key"]["code"] for line in shop.aside("coupons"))


class TeamWithADatabase(Team):
    """A team whose stack is in memory and whose database is a real one."""

    shop: PostgresWorld

    def rooms(self) -> Rooms:
        return replace(super().rooms(), database=self.shop.target)

    @classmethod
    def of(cls, shop: PostgresWorld, folder: Path, *, down: str) -> TeamWithADatabase:
        """v1 is good, and v2 serves, whose migration v1 cannot run on and which ships a way down."""
        shop.ship("v2", {FIRST: SHOP, SECOND: UP})
        (shop.folder / "v2" / "prisma" / SECOND / "down.sql").write_text(down)
        cls.shop = shop
        team = cls.with_a_good_release(folder)
        assert isinstance(team, TeamWithADatabase)
        team.deploy("v2", Behaviour(errors=0.3))
        shop.sql("INSERT INTO customers (full_name, nickname) VALUES ('ada', 'countess')")
        shop.sql("INSERT INTO orders (customer, total) VALUES (3, 902)")
        return team


def test_from_the_deploy_to_the_report(embedded: PostgresWorld, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = embedded.target.observe().fingerprint
    team = TeamWithADatabase.of(embedded, tmp_path_factory.mktemp("team"), down=DOWN)
    team.when_asked(team.approve)
    report = team.roll_back()
    assert report.terminal is TerminalState.ROLLED_BACK_VERIFIED, report.notes
    assert [step.name for step in report.steps][:4] == ["save-dump", "rehearse-down", "migrate-down", "pass-gate"]
    assert {check.name: check.passed for check in report.checks}["database schema"]
    assert {left.table: left.rows for left in report.aside} == {"customers.nickname": 1, "_prisma_migrations": 1}
    assert "sets aside     customers.nickname 1; every other value stays where it is" in team.told
    assert any(line.startswith("rehearsed      on a copy with all rows: 122 before and after") for line in team.told)
    assert (team.stack.serving, embedded.target.observe().fingerprint) == ("v1", before)
    assert embedded.one("SELECT count(*) FROM customers WHERE name = 'ada'") == 1


@pytest.mark.full
def test_after_a_rehearsal_that_refuses_the_next_rollback_swaps_and_loses_nothing(
    embedded: PostgresWorld, tmp_path_factory: pytest.TempPathFactory
) -> None:
    team = TeamWithADatabase.of(embedded, tmp_path_factory.mktemp("team"), down=DELETES)
    assert team.roll_back().terminal is TerminalState.REFUSED
    assert embedded.one("SELECT count(*) FROM orders WHERE id = 7 OR total = 902") == 2
    team.when_asked(team.approve)
    report = team.roll_back()
    assert report.terminal is TerminalState.ROLLED_BACK_VERIFIED, report.notes
    assert "swap-database" in [step.name for step in report.steps]
    assert embedded.one("SELECT count(*) FROM orders WHERE id = 7 OR total = 902") == 2
    assert embedded.one("SELECT count(*) FROM customers WHERE name = 'ada'") == 1


KILLED_AT = [
    ("fitting.copied", "before"),
    ("way_down._run", "after"),
    *(
        pytest.param(*moment, marks=pytest.mark.full)
        for moment in (
            ("way_down._save", "after"),
            ("way_down._take_down", "after"),
            ("shelf.write", "before"),
            ("shelf.write", "after"),
            ("way_down.carry_out", "after"),
        )
    ),
]


@pytest.mark.parametrize("where,when", KILLED_AT)
def test_killed_inside_a_step_it_is_done_exactly_once(embedded: PostgresWorld, where: str, when: str) -> None:
    shop = GoingDown(embedded)
    shop.write()
    killed: list[str] = []
    for each in shop.steps():
        if _killed(embedded, each, where, when):
            killed.append(each.name)
        embedded.target.apply(each)
        assert seen(each, embedded.target.observe()) is Seen.DONE
    # only a rehearsal makes a copy
    assert ("rehearse-down" if where == "fitting.copied" else "migrate-down") in killed
    assert embedded.target.observe().fingerprint == shop.before.fingerprint
    assert embedded.one("SELECT count(*) FROM orders") == 100
    assert len(shop.aside("customers")) == 2
    assert shop.scratch() == []


def test_killed_after_the_commit_it_is_seen_done_without_another_attempt(embedded: PostgresWorld) -> None:
    shop = GoingDown(embedded)
    dump, rehearse, migrate = shop.steps()
    embedded.target.apply(dump)
    embedded.target.apply(rehearse)
    assert _killed(embedded, migrate, "way_down.carry_out", "after")
    assert seen(migrate, embedded.target.observe()) is Seen.DONE
    effects = embedded.effects()
    embedded.target.apply(migrate)
    assert embedded.effects() == effects


def _killed(world: PostgresWorld, each: Step, where: str, when: str) -> bool:
    def dying() -> None:
        deadly(where, when)
        world.target.apply(each)

    status = ended(begin(dying))
    assert status in (0, -signal.SIGKILL), "the child's traceback is in the captured output"
    return status == -signal.SIGKILL
