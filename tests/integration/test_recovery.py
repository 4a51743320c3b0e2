"""A catastrophe: what pgBackRest kept is brought back beside, in a cluster of its own, and the database goes back to
it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from lastgood.core.errors import Refused
from lastgood.core.migration import Rung
from lastgood.core.release import LogPoint, RestorePoint
from lastgood.targets import child
from lastgood.targets.postgres import preflight, recovery
from lastgood.targets.postgres.connect import connect
from lastgood.targets.postgres.preflight import Space
from lastgood.targets.postgres.tools import Tools
from tests.contract.rigs import postgres_embedded
from tests.contract.rigs.clock import CLOCK
from tests.contract.rigs.postgres_cluster import OWNER, Cluster, cluster, needed_programs
from tests.contract.rigs.postgres_world import PostgresWorld
from tests.integration.test_own_dump import everything, left, team_of, way_back

DEADLINE_S: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A server whose log is archived by pgBackRest, and of which it has one backup. folder: of all of it."""

    folder: Path
    server: Cluster

    @property
    def side(self) -> Path:
        return self.folder / "side"

    @property
    def config(self) -> dict[str, object]:
        return {"stanza": "main", "path": str(self.side), "user": OWNER, "config": str(self.folder / "pgbackrest.conf")}

    def pgbackrest(self, *words: str) -> str:
        return as_owner("pgbackrest", f"--config={self.folder / 'pgbackrest.conf'}", "--stanza=main", *words)

    def set(self, **settings: str) -> None:
        """Change settings of the server, which reads them again."""
        with connect(self.server.config, database="postgres", autocommit=True) as connection:
            for name, value in settings.items():
                connection.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
            connection.execute("SELECT pg_reload_conf()")


def as_owner(*words: str) -> str:
    user = OWNER if os.geteuid() == 0 else None
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60, user=user, cwd="/")
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def kept_server() -> Generator[Kept]:
    programs = needed_programs("pgbackrest")
    with postgres_embedded.open_folder() as folder, cluster(folder, programs) as server:
        config = folder / "pgbackrest.conf"
        for name in ("repo", "log", "lock", "side"):
            (folder / name).mkdir(mode=0o700)
            if os.geteuid() == 0:
                os.chown(folder / name, pwd.getpwnam(OWNER).pw_uid, -1)
        config.write_text(
            f"[global]\nrepo1-path={folder}/repo\nlog-path={folder}/log\nlock-path={folder}/lock\nlog-level-file=off\n"
            f"start-fast=y\narchive-timeout=10\n[main]\npg1-path={server.data}\npg1-socket-path={server.data}\n"
            "pg1-user=shop\npg1-database=postgres\n"
        )
        with (server.data / "postgresql.auto.conf").open("a") as settings:
            push = f"pgbackrest --config={config} --stanza=main archive-push %p"
            settings.write(f"archive_mode = on\narchive_command = '{push}'\n")
        server.stop()
        server.start()
        made = Kept(folder=folder, server=server)
        made.pgbackrest("stanza-create")
        made.pgbackrest("--type=full", "backup")
        time.sleep(1.1)  # its end is known to the second, and what is recovered must be later
        yield made


@pytest.fixture(scope="module")
def kept() -> Generator[Kept]:
    """One server for all tests here that do not harm it."""
    with kept_server() as made:
        yield made


@pytest.fixture
def shop(kept: Kept, tmp_path: Path) -> Generator[PostgresWorld]:
    """The shop in a database of its own on that server."""
    with postgres_embedded.database(tmp_path, kept.server.config) as made:
        made.pgbackrest = kept.config
        yield made


def now(world: PostgresWorld) -> LogPoint:
    """This moment, by the server's clock."""
    at = world.one("SELECT clock_timestamp()")
    assert isinstance(at, datetime)
    return LogPoint(at=at.astimezone(UTC))


def recovered(world: PostgresWorld, to: LogPoint, **given: object) -> RestorePoint:
    said: list[str] = []
    options: dict[str, object] = {"expected": {}, "known": (), "deadline_s": DEADLINE_S, "progress": said.append}
    return world.target.recover(to, **(options | given))  # type: ignore[arg-type] # of the test's own


def wrong(world: PostgresWorld) -> tuple[str, ...]:
    """What doctor and deploy would say."""
    facts = world.target.backups()
    assert facts is not None
    return facts.wrong


def lose_restore_point(world: PostgresWorld) -> None:
    """The disk with the dumps is gone, and the clone as well."""
    shutil.rmtree(world.folder / "restore-points")
    world.sql(f'DROP DATABASE "{world.clone}"', database="postgres")


def servers_in(folder: Path) -> list[str]:
    """The servers that stand in a folder."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            stands = (process / "cwd").readlink()
        except OSError:
            continue
        if stands.is_relative_to(folder):
            found.append(f"{process.name} in {stands}")
    return found


def is_clear(kept: Kept) -> bool:
    return list(kept.side.iterdir()) == [] and servers_in(kept.side) == []


ORDERS: Final = "SELECT id, total FROM orders ORDER BY id"


@pytest.mark.full
def test_after_a_catastrophe_the_database_of_before_the_migration_is_swapped_in(
    shop: PostgresWorld, kept: Kept
) -> None:
    schema = left(shop)
    shop.sql("INSERT INTO orders (customer, total) VALUES (1, 500)")
    before = shop.sql(ORDERS)
    shop.take()
    point = shop.target.restore_point(shop.restore_point)
    assert point.log is not None
    assert point.log.name.startswith("lastgood_rp-d2_")
    shop.migrate()
    shop.sql("INSERT INTO orders (customer, total) VALUES (1, 900)")
    shop.sql("DROP TABLE orders CASCADE; DROP TABLE _prisma_migrations")
    lose_restore_point(shop)
    own = recovered(shop, point.log, expected={"v1": schema})
    assert (own.own, own.log, own.taken_at) == ("custom", point.log, point.log.at)
    assert is_clear(kept)
    assert shop.sql(ORDERS, database=own.clone) == before
    shop.target.prove(own, deadline_s=DEADLINE_S)
    plan = way_back(shop, own, schema=schema)
    assert plan.database is not None
    assert (plan.database.rung, plan.database.leaves_since) == (Rung.D5, point.log.at)
    assert plan.step("swap-database").loses == (
        f"everything written since {point.log.at:%Y-%m-%d %H:%M:%S} UTC; it stays in {shop.kept_as}"
    )
    assert any("goes back to what pgBackRest recovered, at-" in warning for warning in plan.warnings)
    for each in (s for s in plan.steps if s.role.value == "database"):
        shop.target.apply(each)
    assert shop.sql(ORDERS) == before
    assert all(check.passed for check in shop.target.checks(schema))
    assert shop.one("SELECT to_regclass('customers')::text", database=shop.kept_as) == "customers"


def test_a_moment_holds_what_was_written_before_it_and_nothing_later(shop: PostgresWorld, kept: Kept) -> None:
    shop.sql("INSERT INTO audit (what) VALUES ('before')")
    moment = now(shop)
    shop.sql("INSERT INTO audit (what) VALUES ('after'); DROP TABLE orders CASCADE")
    own = recovered(shop, moment)
    assert own.id == f"at-{moment.at:%Y%m%d-%H%M%S}"
    assert shop.sql("SELECT what FROM audit", database=own.clone) == [("before",)]
    assert shop.one("SELECT count(*) FROM orders", database=own.clone) == 100
    assert is_clear(kept)


@pytest.mark.full
def test_the_same_again_is_the_same_and_nothing_is_done(shop: PostgresWorld) -> None:
    """As after a kill between the proof and the journal, which does not know of it."""
    moment = now(shop)
    own, before = recovered(shop, moment), everything(shop)
    said: list[str] = []
    for known in ((), (own,)):
        assert recovered(shop, moment, known=known, progress=said.append) == own
    assert said == []
    assert everything(shop) == before


@pytest.mark.full
def test_one_that_is_damaged_is_made_anew_under_another_name(shop: PostgresWorld) -> None:
    moment = now(shop)
    own = recovered(shop, moment)
    (shop.folder / "restore-points" / own.path).write_bytes(b"")
    again = recovered(shop, moment, known=(own,))
    assert again.id == f"{own.id}-2"
    shop.target.prove(again, deadline_s=DEADLINE_S)


def killed(world: PostgresWorld, to: LogPoint, at: Callable[[], None]) -> None:
    """Recover in a process that is killed there, and leaves what it had started. at: makes it so, in that process."""
    pid = os.fork()
    if pid == 0:
        at()
        try:
            recovered(world, to)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9


def die(*_: object, **__: object) -> str:
    os.kill(os.getpid(), 9)
    return ""


def while_the_side_cluster_serves() -> None:
    Tools.dump = die  # type: ignore[assignment,method-assign] # of this process only


def while_a_restore_runs() -> None:
    run = child.run

    def leave(words: list[str], **given: object) -> child.Ended:
        if "restore" not in words:
            return run(words, **given)  # type: ignore[arg-type] # as it was called
        subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.1)
        die()
        raise AssertionError

    child.run = leave  # type: ignore[assignment] # of this process only


@pytest.mark.full
@pytest.mark.parametrize(
    "at", [while_the_side_cluster_serves, pytest.param(while_a_restore_runs, marks=pytest.mark.full)]
)
def test_what_a_killed_command_left_is_cleared_and_made_anew(
    shop: PostgresWorld, kept: Kept, at: Callable[[], None]
) -> None:
    moment = now(shop)
    shop.sql("DROP TABLE orders CASCADE")
    killed(shop, moment, at)
    assert not is_clear(kept)
    assert any(f"{kept.side} holds a copy of the whole server that a recovery left" in line for line in wrong(shop))
    own = recovered(shop, moment)
    assert is_clear(kept)
    assert wrong(shop) == ()
    assert shop.one("SELECT count(*) FROM orders", database=own.clone) == 100


@pytest.mark.full
def test_what_a_killed_command_left_is_cleared_where_nothing_else_is_to_be_done(
    shop: PostgresWorld, kept: Kept
) -> None:
    """Neither what was recovered before nor a moment that no backup reaches leaves it standing."""
    moment = now(shop)
    own = recovered(shop, moment)
    killed(shop, now(shop), while_the_side_cluster_serves)
    assert recovered(shop, moment) == own
    assert is_clear(kept)
    killed(shop, now(shop), while_the_side_cluster_serves)
    with pytest.raises(Refused, match="the first backup of stanza main ended after"):
        recovered(shop, before_the_first_backup(shop))
    assert is_clear(kept)


@pytest.mark.full
def test_a_pid_that_was_left_and_is_somebody_elses_by_now_is_not_ended(shop: PostgresWorld, kept: Kept) -> None:
    moment, live = now(shop), postgres_embedded.postmaster(kept.folder)
    killed(shop, moment, while_the_side_cluster_serves)
    left_behind = kept.side / "data" / "postmaster.pid"
    pid, _, rest = left_behind.read_text().partition("\n")
    os.kill(int(pid), signal.SIGQUIT)
    until = time.monotonic() + 20
    while servers_in(kept.side):
        assert time.monotonic() < until
        time.sleep(0.05)
    left_behind.write_text(f"{live}\n{rest}")
    recovered(shop, moment)
    assert is_clear(kept)
    assert postgres_embedded.postmaster(kept.folder) == live


@dataclass(frozen=True, slots=True)
class SetWrong:
    """A host's clock that is set wrong."""

    by: timedelta

    def now(self) -> datetime:
        return CLOCK.now() + self.by

    def sleep(self, seconds: float) -> None:
        CLOCK.sleep(seconds)


@pytest.mark.full
def test_a_moment_is_over_when_it_is_by_the_servers_clock(shop: PostgresWorld) -> None:
    target = shop.target
    target._clock = SetWrong(timedelta(hours=-2))
    given: dict[str, object] = {"expected": {}, "known": (), "deadline_s": DEADLINE_S, "progress": lambda _: None}
    moment = now(shop)
    assert target.recover(moment, **given).taken_at == moment.at  # type: ignore[arg-type] # of the test's own
    target._clock = SetWrong(timedelta(hours=2))
    with pytest.raises(Refused, match="is yet to come"):
        target.recover(yet_to_come(shop), **given)  # type: ignore[arg-type] # of the test's own


@pytest.mark.full
def test_what_was_set_for_the_live_server_does_not_act_in_the_side_cluster(shop: PostgresWorld, kept: Kept) -> None:
    pid_file, ended = kept.folder / "log" / "live.pid", kept.folder / "log" / "ended"
    as_owner("sh", "-c", 'echo live > "$0"', str(pid_file))
    try:
        kept.set(external_pid_file=str(pid_file), recovery_end_command=f"touch {ended}")
        kept.pgbackrest("--type=incr", "backup")
        time.sleep(1.1)
        recovered(shop, now(shop))
        assert pid_file.read_text() == "live\n"
        assert not ended.exists()
    finally:
        kept.set(external_pid_file="", recovery_end_command="")


def yet_to_come(world: PostgresWorld) -> LogPoint:
    return LogPoint(at=now(world).at + timedelta(hours=1))


def before_the_first_backup(_: PostgresWorld) -> LogPoint:
    return LogPoint(at=datetime(2026, 1, 1, tzinfo=UTC))


def of_an_unknown_stanza(world: PostgresWorld) -> LogPoint:
    assert world.pgbackrest is not None
    world.pgbackrest = {**world.pgbackrest, "stanza": "other"}
    return now(world)


def without_pgbackrest(world: PostgresWorld) -> LogPoint:
    world.pgbackrest = None
    return now(world)


REFUSALS: Final = {
    yet_to_come: ("is yet to come", "date --utc"),
    before_the_first_backup: ("the first backup of stanza main ended after 2026-01-01 00:00:00 UTC", "recover --at 20"),
    of_an_unknown_stanza: ("pgBackRest knows no stanza other", "pgbackrest --stanza=other stanza-create"),
    without_pgbackrest: ("pgBackRest is not configured", "database.pgbackrest in lastgood.yaml"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_be_recovered_is_refused_before_anything_begins(
    shop: PostgresWorld, kept: Kept, what: Callable[[PostgresWorld], LogPoint]
) -> None:
    to, before = what(shop), everything(shop)
    with pytest.raises(Refused, match=REFUSALS[what][0]) as refused:
        recovered(shop, to)
    assert REFUSALS[what][1] in refused.value.hint
    assert is_clear(kept)
    assert everything(shop) == before


@pytest.mark.full
def test_a_folder_with_what_is_not_ours_is_left_alone(shop: PostgresWorld, kept: Kept) -> None:
    theirs = kept.side / "theirs"
    theirs.write_text("mine")
    try:
        with pytest.raises(Refused, match=r"holds what lastgood did not make here \(theirs\)"):
            recovered(shop, now(shop))
        (kept.side / "lastgood.conf").write_text("# lastgood: side cluster of another stack's\n")
        with pytest.raises(Refused, match=r"holds what lastgood did not make here"):
            recovered(shop, now(shop))
        assert theirs.read_text() == "mine"
        assert any("holds what lastgood did not make here" in line for line in wrong(shop))
    finally:
        for path in kept.side.iterdir():
            path.unlink()


@pytest.mark.full
def test_a_disk_that_is_too_small_is_said_before_it_is_full(
    shop: PostgresWorld, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed command left has gone by then: it may be all that is missing."""
    killed(shop, now(shop), while_the_side_cluster_serves)
    monkeypatch.setattr(preflight, "space", lambda *_: Space(fsid="a", free=1_000_000))
    with pytest.raises(Refused, match="side has 1 MB free: expected"):
        recovered(shop, now(shop))
    assert is_clear(kept)


@pytest.mark.full
def test_a_broken_archive_is_said_by_doctor_at_the_deploy_and_here(
    shop: PostgresWorld, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wrong(shop) == ()
    (push,) = shop.sql("SHOW archive_command")[0]
    monkeypatch.setattr(recovery, "ARCHIVED_S", 1.0)
    try:
        kept.set(archive_command="false")
        with pytest.raises(Refused, match=r"the archive of main ends at .*: expected .*; the server fails to archive"):
            recovered(shop, now(shop))
        assert any("fails to archive" in line for line in wrong(shop))
        kept.set(archive_command="true")
        shop.sql("SELECT pg_switch_wal()")
        until = time.monotonic() + 10
        while not any("has sent" in line for line in wrong(shop)):
            assert time.monotonic() < until
            time.sleep(0.1)
    finally:
        kept.set(archive_command=str(push))
        kept.pgbackrest("--type=incr", "backup")  # what was sent nowhere is missing between the first and what follows
        time.sleep(1.1)
    assert is_clear(kept)


@pytest.mark.full
def test_a_database_that_was_not_there_yet_is_refused_and_nothing_is_left(
    kept: Kept, tmp_path: Path, shop: PostgresWorld
) -> None:
    moment = now(shop)
    with postgres_embedded.database(tmp_path / "later", kept.server.config) as later:
        later.pgbackrest = kept.config
        with pytest.raises(Refused, match=f"the server had no database {later.config.name} at that moment"):
            recovered(later, moment)
    assert is_clear(kept)


def test_a_role_that_may_not_mark_the_log_takes_its_restore_points_and_is_told(
    shop: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = shop.config.name
    shop.sql(f"CREATE ROLE {name} LOGIN CREATEDB; ALTER DATABASE {name} OWNER TO {name}")
    plain = shop.config.model_copy(update={"user": name})
    monkeypatch.setattr(shop, "config", plain)
    try:
        function = "pg_create_restore_point(text)"
        assert f"{name} may not call {function}: GRANT EXECUTE ON FUNCTION {function} TO {name}" in wrong(shop)
        assert recovery.mark(shop.target._server, "rp-d2", "x") is None
    finally:
        monkeypatch.undo()
        shop.sql(f"ALTER DATABASE {name} OWNER TO shop; DROP ROLE {name}")


# --- as a person types it --------------------------------------------------------------------------------------------


def test_a_person_recovers_and_the_plan_is_told_of_it(shop: PostgresWorld) -> None:
    lastgood = team_of(shop)
    moment = now(shop).at
    shop.sql("DROP TABLE orders CASCADE")
    said = lastgood("restore-points", "recover", "--at", moment.isoformat())
    for words in (
        "restoring backup ",
        "(recovered by pgBackRest)",
        "its schema is the one that v1 left",
        "would lose  everything written since ",
        "what was recovered has no snapshot",
    ):
        assert words in said
    again = lastgood("restore-points", "recover", "--at", moment.isoformat())
    assert "is a restore point already; nothing changed" in again
    assert "recovered by pgBackRest: nothing since could be replayed" in lastgood("restore-points", "list")
    assert "last backup 20" in lastgood("doctor", code=1)
    assert "expected one of --to and --at" in lastgood("restore-points", "recover", "--to", "x", "--at", "y", code=2)
    assert "--at y: expected a time with its zone" in lastgood("restore-points", "recover", "--at", "y", code=2)
    assert "no restore point has a place in the server's log" in lastgood("restore-points", "recover", code=3)


# --- the whole server ------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_server_that_is_lost_is_brought_back_by_the_words_that_a_person_is_told(tmp_path: Path) -> None:
    with kept_server() as kept, postgres_embedded.database(tmp_path, kept.server.config) as shop:
        shop.pgbackrest = kept.config
        shop.take()
        point = shop.target.restore_point(shop.restore_point)
        assert point.log is not None
        shop.sql("DROP TABLE orders CASCADE; SELECT pg_switch_wal()")
        kept.pgbackrest("--type=incr", "backup")  # the newest, and from after the target
        kept.server.stop()
        with pytest.raises(Refused, match="with every one of its databases, and what was written after") as refused:
            recovered(shop, point.log)
        words = refused.value.hint.removeprefix(f"sudo -u {OWNER} ").split()
        assert {"--delta", "--type=name", f"--target={point.log.name}", "--target-action=promote"} <= set(words)
        as_owner(*words)
        kept.server.start()
        until = CLOCK.now() + timedelta(seconds=20)
        while shop.one("SELECT pg_is_in_recovery()", database="postgres"):  # its own may not be there yet
            assert CLOCK.now() < until
            CLOCK.sleep(0.05)
        assert shop.one("SELECT count(*) FROM orders") == 100
        # and from then on the backup that is on the branch that was left is passed over
        shop.sql("INSERT INTO audit (what) VALUES ('since')")
        moment = now(shop)
        kept.pgbackrest("--type=full", "backup")
        own = recovered(shop, moment)
        assert shop.sql("SELECT what FROM audit", database=own.clone) == [("since",)]
