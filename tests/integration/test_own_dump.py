"""An operator's own dump becomes a restore point whole and proved, or not at all; and the database goes back to it."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import psycopg
import pytest

from lastgood.core.errors import Refused, Retryable
from lastgood.core.migration import Blame, Fit, Rung, judge_migration
from lastgood.core.plan import Fence, Plan, SaveDump, SwapDatabase, TakeRestorePoint
from lastgood.core.record import ReleaseCompleted, ReleaseJudged, ReleaseRecorded, RestorePointKept
from lastgood.core.release import DumpFormat, Release, RestorePoint
from lastgood.core.returning import World, make_plan
from lastgood.journal.sqlite import SqliteJournal
from lastgood.targets.postgres import own_dump, plain_dump
from tests.contract.rigs.clock import CLOCK
from tests.contract.rigs.postgres_container import docker
from tests.contract.rigs.postgres_world import STATEMENTS, PostgresWorld, step
from tests.core.examples import DEADLINES, facts

NAME: Final = "own-backup"
V1: Final = Release(
    id="v1", recorded_at=datetime(2026, 1, 1, tzinfo=UTC), engine="process", services=(), statements=STATEMENTS
)


def dumped(world: PostgresWorld, name: str, *words: str, program: str = "pg_dump") -> Path:
    """What the procedure has a person do."""
    path = world.folder / name
    tools = world.target._server.tools
    to = [] if program == "pg_dumpall" else [f"--dbname={world.config.name}"]
    if "--format=directory" not in words:
        with path.open("wb") as file:
            tools._run(program, [*words, *to], session="test", deadline_s=60, stdout=file)
    elif world.config.container:
        tools._run(program, [*words, *to, "--file=/tmp/made"], session="test", deadline_s=60)
        docker("cp", f"{world.config.container}:/tmp/made", str(path))
    else:
        tools._run(program, [*words, *to, f"--file={path}"], session="test", deadline_s=60)
    return path


def left(world: PostgresWorld) -> str:
    """The schema that the good release left."""
    return world.target.observe().fingerprint


def added(
    world: PostgresWorld,
    dump: Path,
    *,
    name: str | None = NAME,
    schema: str | None = None,
    taken_at: datetime | None = None,
    known: tuple[RestorePoint, ...] = (),
) -> RestorePoint:
    return world.target.register(
        dump,
        name=name,
        taken_at=taken_at,
        expected={"v1": schema} if schema else {},
        known=known,
        deadline_s=60,
    )


def everything(world: PostgresWorld) -> tuple[object, ...]:
    """What a refusal must leave as it was."""
    shelf = world.folder / "restore-points"
    files = {p.relative_to(shelf): p.lstat().st_ino for p in shelf.rglob("*")} if shelf.exists() else {}
    seen = world.target.observe()
    return sorted(seen.databases), seen.fingerprint, world.sql("SELECT xmin::text, id FROM orders ORDER BY id"), files


FORMATS: dict[str, tuple[tuple[str, ...], DumpFormat]] = {
    "plain": ((), DumpFormat.PLAIN),
    "plain-with-inserts": (("--inserts", "--verbose"), DumpFormat.PLAIN),
    "plain-that-cleans": (("--clean", "--if-exists"), DumpFormat.PLAIN),
    "custom": (("--format=custom",), DumpFormat.CUSTOM),
    "directory": (("--format=directory", "--jobs=2"), DumpFormat.DIRECTORY),
}
TRICKY: Final = """
CREATE TABLE "odd ""; \\! name" (a text PRIMARY KEY, b bytea, c text[]);
INSERT INTO "odd ""; \\! name" VALUES (E'\\\\.', '\\x00ff', ARRAY['a;b', NULL, E'\\n\\\\.\\n']);
INSERT INTO "odd ""; \\! name" VALUES (E'\\\\! id', NULL, NULL);
CREATE FUNCTION atomic() RETURNS int BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 2 END; END;
CREATE FUNCTION notes() RETURNS trigger LANGUAGE plpgsql AS $f$BEGIN -- it's; \\! one
  RETURN NEW; END$f$;
CREATE TRIGGER noting BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION notes();
INSERT INTO audit (what) VALUES ('before the deploy');
SELECT lo_from_bytea(0, 'large');
CREATE MATERIALIZED VIEW totals AS SELECT sum(total) FROM orders;
"""


# --- each format, all the way ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_a_dump_of_each_format_is_proved_and_kept_for_its_owner_only(world: PostgresWorld, form: str) -> None:
    words, kind = FORMATS[form]
    world.sql(TRICKY)
    point = added(world, dumped(world, "dump", *words), schema=left(world))
    assert (point.own, point.snapshot, point.captured) == (kind, "", False)
    assert dict(point.rows) == {"orders": 100, "customers": 20, "audit": 1, 'odd "; \\! name': 2}
    world.target.prove(point, deadline_s=60)
    kept = [world.folder / "restore-points" / point.path, *(world.folder / "restore-points" / point.path).rglob("*")]
    assert {path.stat().st_mode & 0o077 for path in kept} == {0}
    odd = 'SELECT a, b, c FROM "odd ""; \\! name" ORDER BY 1'
    assert world.sql(odd, database=point.clone) == world.sql(odd)
    assert world.sql("SELECT * FROM totals", database=point.clone) == world.sql("SELECT * FROM totals")
    assert world.one("SELECT count(*) FROM pg_largeobject_metadata", database=point.clone) == 1


@pytest.mark.parametrize("form", ["plain", "custom"])
def test_what_is_compressed_is_kept_as_what_it_is(embedded: PostgresWorld, form: str) -> None:
    words, kind = FORMATS[form]
    whole = dumped(embedded, "dump", *words)
    packed = embedded.folder / "dump.gz"
    packed.write_bytes(gzip.compress(whole.read_bytes()))
    point = added(embedded, packed, schema=left(embedded))
    assert point.own is kind
    assert (embedded.folder / "restore-points" / point.path).read_bytes() == whole.read_bytes()


def way_back(world: PostgresWorld, own: RestorePoint, *, schema: str) -> Plan:
    """The plan of a rollback whose only way back is that dump."""
    evidence = world.target.inspect(since=own, target=V1)
    seen = World(
        containers=facts("v1"),
        rung="L2",
        database=world.target.observe(),
        evidence=evidence,
        own_dump=own,
        fingerprint=schema,
    )
    return make_plan(V1, seen, plan_id="r1", now=CLOCK.now(), serving="v2", deadlines=DEADLINES)


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=[] if form in ("plain", "custom") else [pytest.mark.full]) for form in FORMATS]
)
def test_the_database_goes_back_to_it_and_the_replaced_one_is_kept(world: PostgresWorld, form: str) -> None:
    schema, before = left(world), world.sql("SELECT id, total FROM orders ORDER BY id")
    own = added(world, dumped(world, "dump", *FORMATS[form][0]), schema=schema)
    world.migrate()
    used = world.one("INSERT INTO orders (customer, total) VALUES (1, 900) RETURNING id")
    plan = way_back(world, own, schema=schema)
    assert plan.database is not None
    assert plan.database.rung is Rung.D4
    assert plan.database.leaves_since == own.taken_at
    steps = [s for s in plan.steps if s.role.value == "database"]
    assert [type(s.action) for s in steps] == [SaveDump, Fence, SwapDatabase]
    for each in steps:
        world.target.apply(each)
    assert world.sql("SELECT id, total FROM orders ORDER BY id") == before
    assert all(check.passed for check in world.target.checks(own.fingerprint))
    assert world.one(f"SELECT count(*) FROM orders WHERE id = {used}", database=world.kept_as) == 1
    assert world.one("INSERT INTO orders (customer, total) VALUES (1, 900) RETURNING id") == int(str(used)) + 1


def test_the_plan_says_what_leaves_and_that_nobody_can_count_it(embedded: PostgresWorld) -> None:
    schema = left(embedded)
    own = added(embedded, dumped(embedded, "dump"), schema=schema)
    embedded.migrate()
    plan = way_back(embedded, own, schema=schema)
    swap = plan.step("swap-database")
    assert (
        swap.loses == f"everything written since {own.taken_at:%Y-%m-%d %H:%M:%S} UTC; it stays in {embedded.kept_as}"
    )
    assert swap.needs_approval
    assert any("goes back to an own dump, own-backup" in warning for warning in plan.warnings)
    assert plan.database is not None
    assert plan.database.carries is None


def test_a_swap_to_it_is_tried_by_looking_through_it_and_counting(embedded: PostgresWorld) -> None:
    schema = left(embedded)
    own = added(embedded, dumped(embedded, "dump"), schema=schema)
    embedded.migrate()
    embedded.sql("INSERT INTO orders (customer, total) SELECT 1, 900 FROM generate_series(1, 3)")
    embedded.sql("INSERT INTO audit (what) VALUES ('seen'); DELETE FROM customers WHERE id = 20")
    swap = way_back(embedded, own, schema=schema).step("swap-database").action
    assert isinstance(swap, SwapDatabase)
    tried = embedded.target.try_replay(swap)
    assert tried.replayed is None
    assert dict(tried.more)["audit"] == 1
    assert "customers" not in dict(tried.more)
    assert tried.pause_s > 0.3
    embedded.sql("UPDATE orders SET total = 1 WHERE id = 1", database=own.clone)
    with pytest.raises(Refused, match="somebody wrote to orders"):
        embedded.target.try_replay(swap)


@pytest.mark.full
def test_without_a_snapshot_nobody_is_blamed_for_a_row(embedded: PostgresWorld) -> None:
    own = added(embedded, dumped(embedded, "dump"), schema=left(embedded))
    embedded.migrate()
    evidence = embedded.target.inspect(since=own, target=V1)
    assert [(b.by_migration, b.by_others, b.by_somebody) for b in evidence.broken] == [(0, 0, 49)]
    assert evidence.writes is None
    assert evidence.old_release.fit is Fit.NO
    assert judge_migration(evidence).blame is Blame.NOT_PROVED
    with embedded.connect() as connection:
        connection.execute("SET application_name = 'shop'")
        with pytest.raises(psycopg.errors.UndefinedColumn):
            connection.execute("SELECT name FROM customers")
    assert judge_migration(embedded.target.inspect(since=own, target=V1)).blame is Blame.MIGRATION
    assert {name for name in embedded.target.observe().databases if "_lg_try_" in name} == set()


def test_a_clone_of_it_that_somebody_wrote_to_is_not_swapped_in(embedded: PostgresWorld) -> None:
    own = added(embedded, dumped(embedded, "dump"), schema=left(embedded))
    embedded.sql("UPDATE orders SET total = 1 WHERE id = 1", database=own.clone)
    with pytest.raises(Refused, match="somebody wrote to orders"):
        embedded.target.prove(own, deadline_s=60)
    embedded.target.apply(step("fence", Fence(kept_as=embedded.kept_as)))
    swap = SwapDatabase(
        swap="s", restore_point=own.id, clone=own.clone, kept_as=embedded.kept_as, manifest=own.manifest
    )
    with pytest.raises(Refused, match="somebody wrote to orders"):
        embedded.target.apply(step("swap", swap))
    embedded.target.apply(embedded.lift)


# --- when it was taken -----------------------------------------------------------------------------------------------


def test_an_archive_is_as_old_as_it_says_and_a_plain_dump_as_its_file(embedded: PostgresWorld) -> None:
    before = CLOCK.now() - timedelta(seconds=2)
    archive, plain = dumped(embedded, "a", "--format=custom"), dumped(embedded, "p")
    os.utime(plain, (946684800, 946684800))
    assert before <= added(embedded, archive, name="own-a").taken_at <= CLOCK.now()
    assert added(embedded, plain, name="own-p").taken_at == datetime(2000, 1, 1, tzinfo=UTC)


def test_an_archive_is_never_younger_than_its_file(embedded: PostgresWorld) -> None:
    """It keeps no zone: made where clocks show more, it would seem to be taken later."""
    archive = dumped(embedded, "a", "--format=custom")
    os.utime(archive, (946684800, 946684800))
    assert added(embedded, archive).taken_at == datetime(2000, 1, 1, tzinfo=UTC)


def test_what_a_person_says_of_its_time_counts(embedded: PostgresWorld) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    point = added(embedded, dumped(embedded, "p"), name=None, taken_at=moment)
    assert (point.id, point.taken_at) == ("own-20260102-030405", moment)


# --- kept ------------------------------------------------------------------------------------------------------------


def test_the_copy_counts_and_not_the_file(embedded: PostgresWorld) -> None:
    dump = dumped(embedded, "p")
    point = added(embedded, dump)
    dump.write_text("gone")
    embedded.target.prove(point, deadline_s=60)


def test_the_same_dump_again_is_the_same_restore_point(embedded: PostgresWorld) -> None:
    dump = dumped(embedded, "p")
    point = added(embedded, dump)
    before = everything(embedded)
    assert added(embedded, dump, name="own-other", known=(point,)) == point
    assert everything(embedded) == before


def test_one_that_is_damaged_is_made_anew_from_the_file(embedded: PostgresWorld) -> None:
    dump = dumped(embedded, "p")
    point = added(embedded, dump)
    (embedded.folder / "restore-points" / point.path).write_bytes(b"")
    again = added(embedded, dump, known=(point,))
    assert (again.id, again.sha256) == (point.id, point.sha256)
    assert again.manifest != point.manifest
    embedded.target.prove(again, deadline_s=60)


def test_the_name_of_another_one_is_refused_and_nothing_changes(embedded: PostgresWorld) -> None:
    first = added(embedded, dumped(embedded, "p"))
    embedded.sql("INSERT INTO audit (what) VALUES ('x')")
    second = dumped(embedded, "p2")
    before = everything(embedded)
    for known in ((first,), ()):  # the second: where the journal was lost
        with pytest.raises(Refused, match="own-backup is the name of another restore point"):
            added(embedded, second, known=known)
    assert everything(embedded) == before


def test_the_name_of_one_that_lastgood_took_is_refused(embedded: PostgresWorld) -> None:
    embedded.take()
    dump = dumped(embedded, "p")
    with pytest.raises(Refused, match="rp-d2 is the name of another restore point"):
        added(embedded, dump, name=embedded.restore_point)
    embedded.target.prove(embedded.target.restore_point(embedded.restore_point), deadline_s=60)


@pytest.mark.full
def test_an_own_dump_outlives_every_restore_point_that_lastgood_takes(embedded: PostgresWorld) -> None:
    own = added(embedded, dumped(embedded, "p"), taken_at=datetime(2000, 1, 1, tzinfo=UTC))
    for name in ("rp-d1", "rp-d2", "rp-d3"):
        embedded.target.apply(step("take", TakeRestorePoint(restore_point=name)))
    assert embedded.target.observe().restore_points == {own.id, "rp-d2", "rp-d3"}
    embedded.target.prove(own, deadline_s=60)


@pytest.mark.full
def test_a_migration_after_it_notes_what_it_rewrote_for_the_restore_point_of_the_deploy(
    embedded: PostgresWorld,
) -> None:
    embedded.take()
    added(embedded, dumped(embedded, "p"))
    embedded.migrate()
    assert [p.stem for p in (embedded.folder / "state" / "migrated").glob("*.json")] == [embedded.restore_point]


@pytest.mark.full
def test_a_dump_that_was_made_while_a_capture_ran_shows_nothing_of_it(embedded: PostgresWorld) -> None:
    schema = left(embedded)
    embedded.take()
    marks = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'lastgood%'"
    assert embedded.sql("SELECT pubname FROM pg_publication") != []
    assert embedded.sql(marks) != []
    own = added(embedded, dumped(embedded, "p", "--format=custom"), schema=schema)
    assert embedded.sql("SELECT pubname FROM pg_publication", database=own.clone) == []
    assert embedded.sql(marks, database=own.clone) == []
    assert embedded.sql("SELECT FROM pg_trigger WHERE tgname LIKE 'lastgood%'", database=own.clone) == []
    full = "SELECT relname FROM pg_class WHERE relreplident = 'f' AND relkind = 'r'"
    assert embedded.sql(full, database=own.clone) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda shelf: next(shelf.glob("*.dat.gz")).unlink(),
        lambda shelf: (shelf / "more.dat").write_bytes(b""),
        lambda shelf: (shelf / "toc.dat").write_bytes(b"PGDMP"),
        lambda shelf: shelf.chmod(0o755),
        lambda shelf: (shelf / "toc.dat").chmod(0o644),
        lambda shelf: (shelf / "toc.dat").rename(shelf / "toc.tad"),
        lambda shelf: next(shelf.glob("*.dat.gz")).rename(shelf / "1.dat.gz"),
    ],
    ids=["a-file-gone", "a-file-more", "another-file", "open", "a-file-open", "renamed", "another-renamed"],
)
def test_a_folder_that_is_not_what_was_proved_is_refused(
    embedded: PostgresWorld, damage: Callable[[Path], object]
) -> None:
    own = added(embedded, dumped(embedded, "d", "--format=directory"))
    damage(embedded.folder / "restore-points" / own.path)
    with pytest.raises(Refused, match=rf"{own.path}.*expected"):
        embedded.target.prove(own, deadline_s=60)


# --- refused, and nothing left ---------------------------------------------------------------------------------------


def altered(world: PostgresWorld, change: Callable[[str], str]) -> Path:
    path = dumped(world, "p")
    path.write_text(change(path.read_text()))
    return path


def with_command(command: str) -> Callable[[PostgresWorld], Path]:
    return lambda world: altered(
        world, lambda text: text.replace("SET lock_timeout", f"{command}\nSET lock_timeout", 1)
    )


def written(content: bytes) -> Callable[[PostgresWorld], Path]:
    def put(world: PostgresWorld) -> Path:
        (world.folder / "p").write_bytes(content)
        return world.folder / "p"

    return put


def folder(change: Callable[[Path], object]) -> Callable[[PostgresWorld], Path]:
    def put(world: PostgresWorld) -> Path:
        made = dumped(world, "d", "--format=directory")
        change(made)
        return made

    return put


def packed(change: Callable[[bytes], bytes]) -> Callable[[PostgresWorld], Path]:
    def put(world: PostgresWorld) -> Path:
        path = dumped(world, "p")
        path.write_bytes(change(gzip.compress(path.read_bytes())))
        return path

    return put


def half_an_archive(world: PostgresWorld) -> Path:
    path = dumped(world, "c", "--format=custom")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 5])  # behind it may be its contents once more
    return path


def of_another_database(world: PostgresWorld) -> Path:
    with world.connect(database="postgres") as connection:
        connection.execute(f'CREATE DATABASE "{world.config.name}x"'.encode())
    other = PostgresWorld(world.folder, world.config.model_copy(update={"name": f"{world.config.name}x"}), world._pause)
    other.sql("CREATE TABLE things (id int)")
    return dumped(other, "c", "--format=custom")


def of_other_tables(world: PostgresWorld) -> Path:
    of_another_database(world)
    other = PostgresWorld(world.folder, world.config.model_copy(update={"name": f"{world.config.name}x"}), world._pause)
    return dumped(other, "p")


def migrated(world: PostgresWorld) -> Path:
    world.migrate()
    return dumped(world, "p")


def a_pipe(world: PostgresWorld) -> Path:
    os.mkfifo(world.folder / "p")
    return world.folder / "p"


REFUSALS: dict[str, tuple[Callable[[PostgresWorld], Path], str]] = {
    "not there": (lambda world: world.folder / "nowhere.sql", "nowhere.sql: No such file or directory: expected"),
    "empty": (written(b""), "is empty: expected a dump"),
    "an empty gzip": (written(gzip.compress(b"")), "is empty: expected a dump"),
    "an error page": (written(b"<!DOCTYPE html><h1>502</h1>"), "begins with `<!DOCTYPE html>"),
    "half a gzip": (packed(lambda content: content[:-50]), "expected a whole gzip"),
    "a gzip with a flipped bit": (
        packed(lambda content: content[:-6] + bytes([content[-6] ^ 1]) + content[-5:]),
        "expected a whole gzip",
    ),
    "a gzip with something behind it": (packed(lambda content: content + b"more"), "expected a whole gzip"),
    "half a plain dump": (lambda world: altered(world, lambda text: text[: len(text) // 2]), "so it is not whole"),
    "without its trailer": (
        lambda world: altered(world, lambda text: text.replace("dump complete", "dump")),
        "expected|is not where pg_dump writes it",
    ),
    "twice": (lambda world: altered(world, lambda text: text + text), "goes on after the end of the dump"),
    "a program": (with_command("\\! touch /tmp/lastgood-was-here"), r"line \d+: `\\!` is a command for psql"),
    "a copy of a file": (with_command("\\copy orders from '/etc/passwd'"), r"`\\copy` is a command for psql"),
    "another file": (with_command("\\i /etc/passwd"), r"`\\i` is a command for psql"),
    "elsewhere": (with_command("\\connect postgres"), r"`\\connect` is a command for psql"),
    "a program of the server": (with_command("COPY orders FROM PROGRAM 'id';"), "nothing that pg_dump writes"),
    "another role": (with_command("CREATE ROLE intruder SUPERUSER;"), "reaches beyond the database"),
    "SQL that fails": (with_command("ALTER TABLE nowhere ADD x int;"), r"line \d+: `ALTER .* does not exist"),
    "of a whole cluster": (lambda world: dumped(world, "p", program="pg_dumpall"), "is of a whole cluster"),
    "one that makes its database": (lambda world: dumped(world, "p", "--create"), "reaches beyond the database"),
    "one that cleans what is not there": (lambda world: dumped(world, "p", "-c"), r"line \d+: `ALTER TABLE .*does not"),
    "a schema alone": (lambda world: dumped(world, "p", "--schema-only"), "holds the rows of no table"),
    "an archive of a schema alone": (
        lambda world: dumped(world, "c", "--schema-only", "--format=custom"),
        "holds the rows of no table",
    ),
    "rows alone": (lambda world: dumped(world, "p", "--data-only"), "does not exist"),
    "without the rows of a table": (
        lambda world: dumped(world, "c", "--exclude-table-data=orders", "--format=custom"),
        "holds the rows of 3 of 4 tables: expected all of them",
    ),
    "of one table": (
        lambda world: dumped(world, "p", "--table=audit"),
        "its schema is not the one that v1 left: expected that of v1, but",
    ),
    "of another schema": (
        migrated,
        "its schema is not the one that v1 left",
    ),
    "a tar": (lambda world: dumped(world, "t", "--format=tar"), "is a tar: expected pg_dump's custom or directory"),
    "half an archive": (half_an_archive, "cannot be re(stored|ad)"),
    "of another database": (of_another_database, "is a dump of shop_.*x: expected one of shop_"),
    "of an older server": (
        lambda world: altered(world, lambda text: text.replace("database version 1", "database version ", 1)),
        r"was dumped from PostgreSQL \d: expected PostgreSQL 1\d",
    ),
    "of a server that it does not name": (
        lambda world: altered(world, lambda text: text.replace("-- Dumped from", "-- Made from", 1)),
        "was dumped from a server that it does not name",
    ),
    "a folder of something": (lambda world: world.folder, "has no toc.dat: expected"),
    "a folder without a file": (folder(lambda made: next(made.glob("*.dat.gz")).unlink()), "cannot be restored"),
    "a folder with a link": (
        folder(lambda made: (made / "1.dat").symlink_to("/etc/passwd")),
        "1.dat: Too many levels of symbolic links: expected a dump",
    ),
    "a folder with a folder": (folder(lambda made: (made / "more").mkdir()), "more is no file: expected"),
    "a pipe": (a_pipe, "is no file: expected"),
}  # fmt: skip


SHORT_REFUSALS = frozenset(
    {
        "empty",
        "an error page",
        "half a gzip",
        "half a plain dump",
        "a program",
        "another file",
        "elsewhere",
        "another role",
    }
    | {"of one table", "of another schema", "half an archive", "of another database", "of an older server", "a pipe"}
)


@pytest.mark.parametrize(
    "what", [what if what in SHORT_REFUSALS else pytest.param(what, marks=pytest.mark.full) for what in REFUSALS]
)
def test_what_is_no_dump_of_this_database_is_refused_and_nothing_is_left(embedded: PostgresWorld, what: str) -> None:
    schema = left(embedded)
    make, said = REFUSALS[what]
    dump = make(embedded)
    before = everything(embedded)
    (embedded.folder / "restore-points").mkdir(exist_ok=True)
    with pytest.raises(Refused, match=said) as refused:
        added(embedded, dump, schema=schema)
    assert "expected" in refused.value.message or ": line " in refused.value.message
    assert everything(embedded) == before
    assert not Path("/tmp/lastgood-was-here").exists()  # noqa: S108 # what a command in a dump would have made
    assert embedded.sql("SELECT FROM pg_roles WHERE rolname = 'intruder'") == []


@pytest.mark.parametrize(
    "name,said",
    [("-x", "cannot be a restore point's name"), ("a/b", "cannot be"), ("x" * 60, "longer than the 63 bytes")],
)
def test_a_name_that_cannot_be_one_is_refused(embedded: PostgresWorld, name: str, said: str) -> None:
    dump = dumped(embedded, "p")
    with pytest.raises(Refused, match=said):
        added(embedded, dump, name=name)
    assert list((embedded.folder / "restore-points").iterdir()) == []


def test_a_time_that_is_yet_to_come_is_refused(embedded: PostgresWorld) -> None:
    dump = dumped(embedded, "p")
    with pytest.raises(Refused, match="yet to come"):
        added(embedded, dump, taken_at=CLOCK.now() + timedelta(hours=1))
    later = (CLOCK.now() + timedelta(hours=1)).timestamp()
    os.utime(dump, (later, later))
    with pytest.raises(Refused, match="yet to come") as refused:
        added(embedded, dump)
    assert "--taken-at" in refused.value.hint


def test_a_dump_of_other_tables_is_refused_where_no_release_says_which(embedded: PostgresWorld) -> None:
    dump = of_other_tables(embedded)
    before = everything(embedded)
    (embedded.folder / "restore-points").mkdir(exist_ok=True)
    with pytest.raises(Refused, match="has none of the tables of"):
        added(embedded, dump)
    assert everything(embedded) == before


def test_a_dump_without_the_rights_is_refused_with_those_that_are_missing(embedded: PostgresWorld) -> None:
    embedded.sql("GRANT SELECT ON orders TO pg_monitor")
    dump = dumped(embedded, "p", "--no-privileges")
    with pytest.raises(Refused, match=r"expected that of v1, but orders\.\(rights\) .*pg_monitor SELECT"):
        added(embedded, dump, schema=left(embedded))


def test_a_schema_that_nothing_here_has_any_more_is_named_by_its_hash(embedded: PostgresWorld) -> None:
    with pytest.raises(Refused, match=r"its fingerprint is [0-9a-f]{12}, expected abcabcabcabc of v1"):
        added(embedded, dumped(embedded, "p"), schema="abc" * 20)


def test_a_disk_that_fills_up_is_said_before_it_is_full(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump = dumped(embedded, "p")
    monkeypatch.setattr(own_dump, "LEAST_FREE_BYTES", 1 << 60)
    with pytest.raises(Refused, match="that stay free on the disk"):
        added(embedded, dump)
    assert list((embedded.folder / "restore-points").iterdir()) == []


def test_a_dump_that_takes_too_long_is_given_up_and_nothing_is_left(embedded: PostgresWorld) -> None:
    slow = "CREATE TABLE slow AS SELECT pg_sleep(30)::text;"
    dump = altered(embedded, lambda text: text.replace("SET lock_timeout", f"{slow}\nSET lock_timeout", 1))
    before = everything(embedded)
    (embedded.folder / "restore-points").mkdir(exist_ok=True)
    with pytest.raises((Retryable, Refused), match="cancel"):
        embedded.target.register(dump, name=NAME, taken_at=None, expected={}, known=(), deadline_s=2)
    assert everything(embedded) == before


def test_what_a_killed_command_left_is_made_anew(embedded: PostgresWorld) -> None:
    dump = dumped(embedded, "p")
    child = os.fork()
    if child == 0:

        def die(*_: object, **__: object) -> None:
            os.kill(os.getpid(), 9)

        plain_dump.load = die  # of this process only
        try:
            added(embedded, dump)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert embedded.target.observe().restore_points == set()
    own = added(embedded, dump)
    embedded.target.prove(own, deadline_s=60)


# --- as a person types it --------------------------------------------------------------------------------------------


def team_of(world: PostgresWorld) -> Callable[..., str]:
    """A lastgood.yaml beside the world's state, and a journal in which v1 is good; return what runs a command."""
    journal = SqliteJournal(world.folder / "state", clock=CLOCK)
    journal.append(ReleaseRecorded(release=V1))
    journal.append(ReleaseCompleted(release="v1", fingerprint=left(world)))
    journal.append(ReleaseJudged(release="v1", good=True, by="ada"))
    postgres = world.config.model_dump(mode="json", exclude_none=True, exclude={"password"})
    if world.config.password:
        postgres["password"] = world.config.password.reveal()
    config = {
        "version": 1,
        "stack": "shop",
        "state": "state",
        "watch": {"window": "1m"},
        "process": {"services": {"web": {"command": ["true"], "port": 8080}}},
        "database": {
            "postgres": postgres,
            "restore_points": {"path": "restore-points"},
            "pgbackrest": world.pgbackrest,
        },
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


def test_a_person_adds_lists_and_checks(embedded: PostgresWorld) -> None:
    lastgood, dump = team_of(embedded), dumped(embedded, "backup_pre_deploy.sql")
    said = lastgood("restore-points", "add", str(dump), "--name", NAME)
    for words in (
        f"{NAME}  taken ",
        "(own dump, plain)",
        "120 rows in 3 tables; its schema is the one that v1 left",
        "would lose  everything written since ",
        f"kept        {NAME}.sql",
        "next: lastgood plan",
    ):
        assert words in said
    assert "is a restore point already; nothing changed" in lastgood("restore-points", "add", str(dump))
    assert "own dump, plain: nothing since could be replayed" in lastgood("restore-points", "list")
    assert lastgood("restore-points", "check") == f"ok      {NAME}\n"
    (told,) = json.loads(lastgood("restore-points", "list", "--json"))
    assert (told["restore_point"]["own"], told["why_not"]) == ("plain", "")
    (embedded.folder / "restore-points" / f"{NAME}.sql").write_bytes(b"")
    assert "is not the one that was proved" in lastgood("restore-points", "check", NAME, code=1)
    journal = SqliteJournal(embedded.folder / "state", clock=CLOCK)
    assert [type(r.event) for r in journal.records()][3:] == [RestorePointKept]


@pytest.mark.parametrize(
    "words,code,said",
    [
        (("--taken-at", "yesterday"), 2, "yesterday: expected a time with its zone, as 2026-11-26T14:02:00Z"),
        pytest.param(
            ("--taken-at", "2026-01-01T00:00:00"), 2, "expected a time with its zone", marks=pytest.mark.full
        ),
        pytest.param(("--taken-at", "2999-01-01T00:00:00Z"), 3, "is yet to come", marks=pytest.mark.full),
        (("--name", "no/name"), 3, "cannot be a restore point's name"),
    ],
)  # fmt: skip
def test_what_a_person_types_wrong_is_said_and_changes_nothing(
    embedded: PostgresWorld, words: tuple[str, ...], code: int, said: str
) -> None:
    lastgood, dump = team_of(embedded), dumped(embedded, "p.sql")
    assert said in lastgood("restore-points", "add", str(dump), *words, code=code)
    assert "no restore point yet" in lastgood("restore-points", "list")


def test_a_file_that_is_not_there_and_one_with_commands_are_refused_by_name(embedded: PostgresWorld) -> None:
    lastgood, dump = team_of(embedded), with_command("\\! id")(embedded)
    assert "nowhere.sql: No such file" in lastgood("restore-points", "add", "nowhere.sql", code=3)
    assert "is a command for psql, which would run on this host" in lastgood("restore-points", "add", str(dump), code=3)
    assert "no restore point yet" in lastgood("restore-points", "list")
