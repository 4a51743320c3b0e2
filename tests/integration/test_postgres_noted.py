"""Which transactions are the migration's and which are the application's, whatever each of them did."""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from lastgood.core.migration import Blame, DatabaseEvidence, judge_migration
from lastgood.core.plan import CatchUp, TakeRestorePoint
from lastgood.core.release import Release
from lastgood.targets.postgres import catalog, marks, noted, replay
from lastgood.targets.postgres.connect import connect
from lastgood.testing.world import START
from tests.contract.rigs.postgres_world import REPLAY, SECOND, THIRD, PostgresWorld, step

SPOIL: Final = "UPDATE orders SET total = total - 50"
NOTE: Final = "ALTER TABLE customers ADD COLUMN note text"


class Died(BaseException):
    """The process is gone."""


def went_back(world: PostgresWorld, migration: str, *statements: str) -> None:
    world.take()
    world.ship("v2", {SECOND: migration})
    world.migrate()
    for statement in statements:
        world.sql(statement)
    world.go_back()


def went_back_from_two(world: PostgresWorld, first: str, second: str, *statements: str) -> None:
    """The same, of two migrations, each of them a transaction of its own."""
    world.take()
    world.ship("v2", {SECOND: first, THIRD: second})
    world.target.apply(world.step_to_migrate("v2", SECOND, THIRD))
    for statement in statements:
        world.sql(statement)
    world.go_back()


def test_a_data_step_in_a_transaction_of_its_own_is_the_migration_s(embedded: PostgresWorld) -> None:
    embedded.invariants = {}  # of a slow look at one the notes tell too
    went_back_from_two(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text",
        "UPDATE customers SET name = 'wiped ' || id; DELETE FROM orders WHERE id <= 40",
        "INSERT INTO audit (what) VALUES ('good')",
    )
    assert embedded.one("SELECT min(name) FROM customers") == "customer 1"
    assert embedded.one("SELECT count(*) FROM orders") == 100
    assert embedded.sql("SELECT what FROM audit") == [("good",)]
    assert (embedded.replayed().total, embedded.replayed().skipped) == (2, 1)
    assert embedded.replayed().notes == ()


def test_a_migration_whose_change_of_the_schema_is_in_a_subtransaction_is_known(embedded: PostgresWorld) -> None:
    embedded.invariants = {}
    went_back(
        embedded,
        "DO $$ BEGIN ALTER TABLE orders DROP CONSTRAINT orders_total_check; "
        "EXCEPTION WHEN undefined_object THEN NULL; END $$; UPDATE orders SET total = total + 1000",
    )
    assert embedded.one("SELECT min(total) FROM orders") == 2
    assert embedded.replayed().skipped == 1


BESIDE: Final = (
    "CREATE INDEX ON audit (what); INSERT INTO audit (what) VALUES ('index')",
    "CREATE TABLE seen_2 PARTITION OF seen FOR VALUES FROM (10) TO (20); INSERT INTO seen VALUES (1, 5)",
    "CREATE TEMP VIEW one AS SELECT 1 AS x; INSERT INTO audit (what) VALUES ('temporary')",
    "ALTER TABLE audit DISABLE TRIGGER USER; INSERT INTO audit (what) VALUES ('off')",
)
"""What applications do that change the schema beside what they write."""


@pytest.mark.parametrize("when", ["before the migration", "after it"])
def test_what_an_application_writes_beside_a_change_of_the_schema_is_replayed(
    embedded: PostgresWorld, when: str
) -> None:
    embedded.sql(
        "CREATE TABLE seen (id int, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at); "
        "CREATE TABLE seen_1 PARTITION OF seen FOR VALUES FROM (0) TO (10)"
    )
    embedded.take()
    embedded.ship("v2", {SECOND: "ALTER TABLE customers ADD COLUMN note text; UPDATE customers SET name = 'x' || id"})
    with ExitStack() as open_:
        for number, beside in enumerate(BESIDE):
            if when == "after it" and not number:
                embedded.migrate()
            open_.enter_context(embedded.connect()).execute(
                f"BEGIN; {beside}; COMMIT".encode()
            )  # the view is there while it is open
        if when != "after it":
            embedded.migrate()
        for each in embedded.way_back[:2]:
            embedded.target.apply(each)
    for each in embedded.way_back[2:]:
        embedded.target.apply(each)
    assert {what for (what,) in embedded.sql("SELECT what FROM audit")} == {"index", "temporary", "off"}
    assert embedded.sql("SELECT * FROM seen") == [(1, 5)]
    assert embedded.one("SELECT min(name) FROM customers") == "customer 1"
    assert embedded.replayed().skipped == 1


def seen(world: PostgresWorld) -> DatabaseEvidence:
    before = Release(id="v1", recorded_at=START, engine="process", services=())
    return world.target.inspect(since=world.target.restore_point(world.restore_point), target=before)


def test_rows_that_a_data_step_of_its_own_broke_are_the_migration_s_fault(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.ship("v2", {SECOND: "ALTER TABLE orders DROP CONSTRAINT orders_total_check", THIRD: SPOIL})
    embedded.target.apply(embedded.step_to_migrate("v2", SECOND, THIRD))
    evidence = seen(embedded)
    assert [(broken.by_migration, broken.by_others) for broken in evidence.broken] == [(49, 0)]
    assert evidence.doubts == ()
    assert judge_migration(evidence).blame is Blame.MIGRATION


def cut_off(world: PostgresWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the command of two migrations, and die."""

    def dies(*_words: object, at_once: bool) -> None:
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(noted.Migrations, "end", dies)
        with pytest.raises(Died):
            world.target.apply(world.step_to_migrate("v2", SECOND, THIRD))


BLOCKS: Final = """
DO $$ BEGIN
    UPDATE orders SET total = total - 1;
    FOR n IN 1..100 LOOP
        BEGIN
            UPDATE orders SET total = total - 50 WHERE id = n;
            BEGIN
                UPDATE customers SET name = 'wiped ' || id WHERE id = n;
                IF n % 3 = 0 THEN RAISE division_by_zero; END IF;
            EXCEPTION WHEN division_by_zero THEN
                UPDATE customers SET name = 'wiped again ' || id WHERE id = n;
            END;
            UPDATE orders SET total = total + 0 WHERE id = n AND n % 2 = 0;
        EXCEPTION WHEN undefined_object THEN NULL;
        END;
    END LOOP;
END $$
"""
"""Subtransactions of PL/pgSQL, one after the other and one in the other, of which some are taken back."""
SAVEPOINTS: Final = """
BEGIN; SAVEPOINT a; UPDATE orders SET total = total - 51; ROLLBACK TO a; UPDATE orders SET total = total - 51;
SAVEPOINT b; UPDATE customers SET name = 'wiped ' || id; RELEASE b; COMMIT
"""


@pytest.mark.parametrize("data", [BLOCKS, SAVEPOINTS], ids=["blocks", "savepoints"])
def test_what_a_data_step_writes_in_subtransactions_is_the_migration_s(embedded: PostgresWorld, data: str) -> None:
    embedded.by_rows = True
    embedded.take()
    embedded.ship("v2", {SECOND: "ALTER TABLE orders DROP CONSTRAINT orders_total_check", THIRD: data})
    embedded.target.apply(embedded.step_to_migrate("v2", SECOND, THIRD))
    embedded.sql(
        "DO $$ BEGIN INSERT INTO audit (what) VALUES ('good'); EXCEPTION WHEN division_by_zero THEN NULL; END $$"
    )
    evidence = seen(embedded)
    assert [(broken.by_migration, broken.by_others) for broken in evidence.broken] == [(50, 0)]
    assert evidence.doubts == ()
    embedded.go_back()
    assert embedded.sql("SELECT min(total), max(total) FROM orders") == [(2, 101)]
    assert embedded.one("SELECT count(*) FROM customers WHERE name LIKE 'wiped%'") == 0
    assert embedded.sql("SELECT what FROM audit") == [("good",)]


@pytest.mark.full
def test_a_migration_s_session_that_began_before_the_command_is_said_to_be_known_in_part(
    embedded: PostgresWorld,
) -> None:
    embedded.take()
    with embedded.connect() as early:
        early.execute("SELECT set_config('application_name', %s, false)", [noted.COMMAND])
        early.execute("INSERT INTO audit (what) VALUES ('early')")
    embedded.ship("v2", {SECOND: "ALTER TABLE orders DROP CONSTRAINT orders_total_check", THIRD: SPOIL})
    embedded.target.apply(embedded.step_to_migrate("v2", SECOND, THIRD))
    (doubt,) = seen(embedded).doubts
    assert "did not tell the numbers of its subtransactions" in doubt


@pytest.mark.full
def test_of_a_migration_that_was_cut_off_the_log_still_tells(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the command and before anything was noted: the history says that it is done, and nobody comes
    back."""
    embedded.take()
    embedded.ship("v2", {SECOND: "ALTER TABLE orders DROP CONSTRAINT orders_total_check", THIRD: SPOIL})

    cut_off(embedded, monkeypatch)
    embedded.target.apply(embedded.step_to_migrate("v2", SECOND, THIRD))
    embedded.sql("BEGIN; CREATE INDEX ON audit (what); INSERT INTO audit (what) VALUES ('good'); COMMIT")
    embedded.invariants = {}
    embedded.go_back()
    assert embedded.one("SELECT min(total) FROM orders") == 2
    assert embedded.replayed().skipped == 1


@pytest.mark.full
@pytest.mark.parametrize("ends", ["capture", "fenced", "next"])
def test_of_a_migration_that_was_cut_off_the_log_is_read_before_the_capture_ends(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    embedded.invariants, embedded.by_rows = {}, True
    embedded.take()
    embedded.ship("v2", {SECOND: NOTE, THIRD: "UPDATE customers SET name = 'wiped ' || id"})
    cut_off(embedded, monkeypatch)
    embedded.sql("INSERT INTO audit (what) VALUES ('good')")
    match ends:
        case "capture":
            embedded.target.apply(embedded.end_capture)
        case "next":
            embedded.target.apply(step("take", TakeRestorePoint(restore_point="rp-d3")))
        case _:
            embedded.target.apply(embedded.fence)
            embedded.target.apply(embedded.end_capture)
            embedded.target.apply(embedded.lift)
    embedded.go_back()
    assert embedded.one("SELECT min(name) FROM customers") == "customer 1"
    assert embedded.sql("SELECT what FROM audit") == [("good",)]


@pytest.mark.full
def test_a_tool_that_neither_takes_a_name_nor_has_the_history_is_known_by_what_it_did(embedded: PostgresWorld) -> None:
    """It begins when the command runs, and changes schema and rows in one transaction; and others are known too."""
    embedded.ship("v2", {SECOND: NOTE})
    (embedded.folder / "v2" / "before.py").write_text(
        "import os, psycopg\n"
        "with psycopg.connect(os.environ['DATABASE_URL'], application_name='tool', autocommit=True) as db:\n"
        "    db.execute('ALTER TABLE audit ADD COLUMN more text; UPDATE customers SET name = upper(name)')\n"
        "    db.execute('DELETE FROM orders WHERE id <= 40')\n"
    )
    (embedded.folder / "v2" / "both.sh").write_text('set -e\n"$1" before.py\n"$1" migrate.py\n')
    embedded.migrations = {**embedded.migrations, "command": ["sh", "both.sh", sys.executable]}
    embedded.take()
    embedded.migrate()
    embedded.go_back()
    assert embedded.one("SELECT count(*) FROM orders WHERE id <= 40") == 40
    assert embedded.one("SELECT min(name) FROM customers") == "customer 1"


def test_a_tool_that_calls_itself_as_it_is_told_is_known_by_its_name(embedded: PostgresWorld) -> None:
    embedded.ship("v2", {SECOND: NOTE})
    (embedded.folder / "v2" / "both.sh").write_text(
        'set -e\n"$1" -c "import os, psycopg; '
        "psycopg.connect(os.environ['DATABASE_URL'], autocommit=True).execute('DELETE FROM orders WHERE id <= 40')\"\n"
        '"$1" migrate.py\n'
    )
    embedded.migrations = {**embedded.migrations, "command": ["sh", "both.sh", sys.executable]}
    embedded.take()
    embedded.migrate()
    embedded.go_back()
    assert embedded.one("SELECT count(*) FROM orders") == 100


def test_a_migration_that_switches_triggers_off_is_said_to_be_known_in_part(embedded: PostgresWorld) -> None:
    embedded.invariants = {}  # of a slow look at one the notes tell too
    went_back(
        embedded,
        "SET session_replication_role = replica; ALTER TABLE orders ADD COLUMN note text; "
        "ALTER TABLE customers DISABLE TRIGGER ALL; UPDATE customers SET name = 'x' || id; "
        "ALTER TABLE customers ENABLE TRIGGER ALL",
        "INSERT INTO audit (what) VALUES ('good')",
    )
    assert embedded.one("SELECT min(name) FROM customers") == "customer 1"
    (note,) = embedded.replayed().notes
    assert note.startswith("lastgood's trigger was not on customers all the while")


@pytest.mark.full
def test_where_triggers_are_asked_not_to_fire_the_marks_are_written_all_the_same(embedded: PostgresWorld) -> None:
    embedded.invariants = {}  # of a slow look at one the notes tell too
    went_back_from_two(
        embedded,
        f"SET session_replication_role = replica; {NOTE}",
        "SET session_replication_role = replica; UPDATE customers SET name = 'x' || id",
    )
    assert embedded.one("SELECT min(name) FROM customers") == "customer 1"
    assert embedded.replayed().notes == ()


@pytest.mark.full
def test_where_the_marks_cannot_be_read_the_catalogs_tell_and_it_is_said(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "READ_S", 0.001)
    embedded.take()
    embedded.migrate()
    embedded.sql("BEGIN; CREATE INDEX ON audit (what); INSERT INTO audit (what) VALUES ('later'); COMMIT")
    verdict = judge_migration(seen(embedded))
    assert verdict.blame is Blame.MIGRATION
    assert "are told by the catalogs alone (the marks in the log could not be read" in verdict.reasons[-1]
    embedded.go_back()
    assert verdict.reasons[-1] in embedded.replayed().notes
    assert embedded.sql("SELECT what FROM audit") == [("later",)]


# --- what is not replayed --------------------------------------------------------------------------------------------


def skipped(world: PostgresWorld) -> list[dict[str, Any]]:
    path = Path(world.replayed().skipped_file)
    assert path.parent.name == REPLAY
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_was_skipped_as_the_migration_s_is_listed_as_the_quarantine_is(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "MOST_SHOWN", 3)
    went_back_from_two(
        embedded,
        f"{NOTE}; UPDATE customers SET note = 'x' WHERE id = 3",
        "TRUNCATE orders; DELETE FROM customers WHERE id > 15",
    )
    first, second = skipped(embedded)
    assert first["reason"] == second["reason"] == replay.OF_THE_MIGRATION
    assert first["id"].startswith(f"{first['xid']}-")
    ((change),) = first["changes"]
    assert (change["table"], change["kind"], change["new"]["note"]) == ("customers", "updated", "x")
    assert [change["kind"] for change in second["changes"]] == ["emptied", "deleted", "deleted"]
    assert second["more"] == 3
    assert (embedded.replayed().skipped, embedded.replayed().replayed) == (2, 0)


@pytest.mark.full
def test_a_list_of_what_was_skipped_is_whole_whenever_the_replay_died(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded.take()
    embedded.ship("v2", {SECOND: NOTE, THIRD: "UPDATE customers SET name = 'x' || id"})
    embedded.target.apply(embedded.step_to_migrate("v2", SECOND, THIRD))
    true = replay.Replay._write_down  # where it is killed

    def dies(self: replay.Replay, carried: Any) -> None:  # noqa: ANN401 # as it comes
        true(self, carried)
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(replay.Replay, "_write_down", dies)
        with pytest.raises(Died):
            embedded.target.apply(embedded.way_back[1])
    embedded.go_back()
    (only,) = skipped(embedded)
    assert len(only["changes"]) == 20


def test_a_transaction_of_which_nothing_has_a_place_is_not_called_replayed(embedded: PostgresWorld) -> None:
    embedded.sql("CREATE TABLE seats (id int PRIMARY KEY, row int); INSERT INTO seats VALUES (1, 1), (2, 1)")
    rebuilt = (
        "CREATE TABLE seats_new (id int PRIMARY KEY, row bigint); INSERT INTO seats_new SELECT * FROM seats; "
        "DROP TABLE seats; ALTER TABLE seats_new RENAME TO seats"
    )
    embedded.take()
    embedded.ship("v2", {SECOND: rebuilt})
    embedded.migrate()
    for number in range(3, 6):
        embedded.sql(f"INSERT INTO seats VALUES ({number}, 2)")
    embedded.sql("INSERT INTO seats VALUES (6, 2); INSERT INTO audit (what) VALUES ('seat 6')")
    tried = embedded.target.try_replay(CatchUp(replay=REPLAY, restore_point=embedded.restore_point)).replayed
    embedded.go_back()
    assert tried is not None
    for told in (tried, embedded.replayed()):
        assert (told.total, told.replayed, told.without_place, told.skipped) == (4, 1, 3, 0)
        assert [(left.table, left.rows) for left in told.left_out] == [("seats", 4)]


# --- more than one deploy --------------------------------------------------------------------------------------------

AUDITED: Final = "ALTER TABLE audit ADD COLUMN x int"


def deployed_again(world: PostgresWorld, first: str | None, second: str, third: str | None = None) -> None:
    """Two deploys, each with a restore point of its own. first: None where that one migrates nothing."""
    world.take()
    if first is not None:
        world.ship("v15", {"20250120000000_audit": first})
        world.target.apply(world.step_to_migrate("v15", "20250120000000_audit"))
    world.target.apply(step("take", TakeRestorePoint(restore_point="rp-d3")))
    world.ship("v2", {SECOND: second} | ({THIRD: third} if third else {}))
    world.target.apply(world.step_to_migrate("v2", SECOND, *([THIRD] if third else [])))


@pytest.mark.parametrize("first", [None, AUDITED], ids=["alone", "after another"])
def test_by_rows_no_value_of_a_later_migration_goes_back_with_a_row_that_the_application_wrote_to(
    embedded: PostgresWorld, first: str | None
) -> None:
    embedded.by_rows = True
    deployed_again(embedded, first, f"{NOTE}; UPDATE orders SET total = total * 100")
    embedded.sql("UPDATE orders SET state = 'paid'")
    embedded.go_back()
    assert embedded.sql("SELECT min(total), max(total), min(state::text) FROM orders") == [(2, 101, "paid")]
    assert embedded.replayed().quarantined == 100


@pytest.mark.parametrize("first", [None, AUDITED], ids=["alone", "after another"])
def test_a_data_step_of_a_later_deploy_is_the_migration_s(embedded: PostgresWorld, first: str | None) -> None:
    embedded.invariants, embedded.by_rows = {}, True
    data = "UPDATE customers SET name = 'wiped ' || id; DELETE FROM orders WHERE id <= 40"
    deployed_again(embedded, first, NOTE, data)
    embedded.sql("INSERT INTO audit (what) VALUES ('good')")
    embedded.sql("DELETE FROM orders WHERE id = 100")
    embedded.go_back()
    assert embedded.one("SELECT min(name) FROM customers") == "customer 1"
    assert embedded.sql("SELECT count(*), max(id) FROM orders") == [(99, 99)]
    assert embedded.sql("SELECT what FROM audit") == [("good",)]
    assert embedded.replayed().quarantined == 40
    assert not [note for note in embedded.replayed().notes if "by the catalogs" in note]


def test_a_schema_that_was_changed_without_a_step_is_told_by_the_catalogs_and_that_is_said(
    embedded: PostgresWorld,
) -> None:
    embedded.invariants, embedded.by_rows = {}, True
    embedded.take()
    embedded.sql("BEGIN; ALTER TABLE orders ADD COLUMN by_hand int; UPDATE orders SET total = total * 100; COMMIT")
    embedded.target.apply(step("take", TakeRestorePoint(restore_point="rp-d3")))
    embedded.migrate()
    embedded.sql("DELETE FROM orders WHERE id = 100")
    embedded.go_back()
    assert embedded.sql("SELECT count(*), max(total) FROM orders") == [(100, 101)]
    assert [note for note in embedded.replayed().notes if "by the catalogs alone (the schema was changed since" in note]
    assert Counter(e["reason"].partition(":")[0] for e in embedded.quarantine()) == {
        "nobody saw the migration end": 1,
        "nobody saw what was written before the migration rewrote this row": 99,
    }


@pytest.mark.full
@pytest.mark.parametrize("noted_", [True, False])
def test_where_no_migration_was_nothing_is_in_doubt_unless_the_note_is_missing(
    embedded: PostgresWorld, *, noted_: bool
) -> None:
    embedded.take()
    embedded.target.apply(step("take", TakeRestorePoint(restore_point="rp-d3")))
    if not noted_:
        (embedded.folder / "restore-points" / noted.FOLDER / f"{embedded.restore_point}.json").unlink()
    doubts = seen(embedded).doubts
    assert ["there is no note of a migration" in doubt for doubt in doubts] == ([] if noted_ else [True])


# --- the triggers ----------------------------------------------------------------------------------------------------


def left(world: PostgresWorld, database: str | None = None) -> list[tuple[object, ...]]:
    """Everything of ours in a database."""
    return world.sql(
        "SELECT tgname::text FROM pg_trigger WHERE NOT tgisinternal UNION ALL "
        "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'lastgood%' UNION ALL "
        "SELECT proname::text FROM pg_proc WHERE proname = 'mark' UNION ALL "
        "SELECT pubname::text FROM pg_publication WHERE pubname LIKE '%.marks'",
        database=database,
    )


def test_nothing_of_the_marks_is_in_the_schema_the_clone_or_what_comes_after(embedded: PostgresWorld) -> None:
    with embedded.connect() as connection:
        before = catalog.objects(connection)
        embedded.take()
        assert catalog.objects(connection) == before
    assert left(embedded, embedded.clone) == []
    published = embedded.one("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()")
    assert len(left(embedded)) == len(("orders", "customers", "audit", "history", "schema", "function", "publication"))
    embedded.migrate()
    assert left(embedded) == [(f"{published}.marks",)]
    embedded.target.apply(embedded.end_capture)
    assert left(embedded) == []


@pytest.mark.full
def test_a_restore_point_after_one_that_was_cut_off_leaves_no_trigger_either(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, deaths = marks.arm, iter(range(10))

    def dying(*words: object, history: bool = False) -> None:
        if next(deaths) == 2:
            raise Died
        true(*words, history=history)  # type: ignore[arg-type] # as they come

    with monkeypatch.context() as patched:
        patched.setattr(marks, "arm", dying)
        patched.setattr("lastgood.targets.postgres.capture.Captures.end", lambda _self: None)  # nobody is there to
        with pytest.raises(Died):
            embedded.take()
    assert left(embedded)
    embedded.target.apply(embedded.end_capture)
    assert left(embedded) == []
    embedded.take()
    embedded.migrate()
    embedded.go_back()


@pytest.mark.full
def test_a_table_that_is_locked_keeps_its_trigger_and_the_function_until_the_capture_ends(
    embedded: PostgresWorld,
) -> None:
    embedded.take()
    with embedded.connect() as reader, embedded.connect() as ours:
        reader.execute("BEGIN; SELECT count(*) FROM audit")
        ours.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            marks.disarm(ours)
        embedded.sql("INSERT INTO audit (what) VALUES ('still')")
        reader.execute("ROLLBACK")
    embedded.target.apply(embedded.end_capture)
    assert left(embedded) == []


@pytest.mark.full
@pytest.mark.parametrize("migrating", [False, True], ids=["", "while a migration runs"])
def test_an_application_that_may_do_no_more_than_write_goes_on_writing(
    embedded: PostgresWorld, *, migrating: bool
) -> None:
    """Under a role of its own, one that it takes and gives back, and whatever search_path it has set."""
    web = f"{embedded.config.name}_web"
    embedded.sql(f"CREATE ROLE {web} LOGIN PASSWORD 'pass word'; CREATE ROLE {web}_less; GRANT {web}_less TO {web}")
    embedded.sql(f"GRANT INSERT, SELECT ON audit TO {web}, {web}_less")
    embedded.take()
    if migrating:
        with embedded.connect() as ours:
            marks.say_numbers(ours, said=True)
    config = embedded.config.model_copy(update={"user": web})
    with connect(config, autocommit=True) as session:
        session.execute("SET search_path = ''")
        session.execute("INSERT INTO public.audit (what) VALUES ('own')")
        session.execute(f"SET ROLE {web}_less".encode())
        session.execute("INSERT INTO public.audit (what) VALUES ('less')")
    embedded.migrate()
    embedded.go_back()
    assert sorted(embedded.sql("SELECT what FROM audit")) == [("less",), ("own",)]
    assert embedded.replayed().skipped == 1
