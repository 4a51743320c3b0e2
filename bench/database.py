"""What a way back of the database costs: the written procedure, a restore beside, and lastgood's rungs, in one run.

    python -m bench.database [--sizes 0.2 2 8] [--rate 100] [--seconds 5] [--ways ...] [--programs DIR | wheel]

For each size (GB) and each way, on a server of this machine that all share: users write at a steady rate; a restore
point is taken; a migration spoils rows; users write on; the database goes back while they try. What they were promised
is in a ledger of their own. The last lines compare taking a proved restore point with a dump and a restore alone.
pgBackRest brings the whole server back, every database of it; version 2.45 knows servers up to PostgreSQL 15.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

import psycopg

from lastgood.assembly import SystemClock
from lastgood.core.config import DatabaseConfig, PostgresConfig
from lastgood.core.errors import LastgoodError
from lastgood.core.plan import (
    Action,
    CatchUp,
    ExportWrites,
    Fence,
    Migrate,
    ReplayWrites,
    SaveDump,
    Step,
    SwapDatabase,
    TakeRestorePoint,
)
from lastgood.targets.postgres import PostgresTarget
from lastgood.targets.postgres.connect import Connection, connect
from tests.contract.rigs.postgres_cluster import Cluster, cluster, newest_programs

LIVE: Final = "shop"
BASE: Final = "shop_base"
SIDE: Final = "shop_side"
OLD: Final = "shop_replaced"
BY_HAND: Final = "backup_pre_deploy.sql"
BESIDE: Final = "before.dump"
POINT: Final = "rp-d1"
ALLOWED_S: Final = 60.0
KEPT_AS: Final = "shop_bad_r1"
PGBACKREST: Final = "pgBackRest"
NOWHERE: Final = "/bin/true"
"""An archive that keeps nothing."""
USERS: Final = 4
PRODUCTS: Final = 20_000
ROWS_A_GB: Final = 3_200_000
AGAIN_S: Final = 0.01
SCHEMA = """
CREATE TABLE products (id int PRIMARY KEY, name text NOT NULL, stock int NOT NULL);
CREATE TABLE orders (id bigserial PRIMARY KEY, token text NOT NULL, product int NOT NULL REFERENCES products);
CREATE TABLE events (id bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT now(), what text NOT NULL);
"""
EVENTS = """
INSERT INTO events (id, what)
SELECT g, md5(g::text) || md5((g + 1)::text) || md5((g + 2)::text) || md5((g + 3)::text) || md5((g + 4)::text)
    || md5((g + 5)::text) || md5((g + 6)::text) FROM generate_series(%s::bigint, %s::bigint) g
"""
BAD = "ALTER TABLE products RENAME COLUMN name TO title; UPDATE products SET stock = stock / 2;"
MIGRATE = """
import os, pathlib, psycopg
with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    connection.execute(pathlib.Path("bad.sql").read_bytes())
    connection.execute("CREATE TABLE IF NOT EXISTS _prisma_migrations (migration_name text, started_at timestamptz "
                       "DEFAULT now(), finished_at timestamptz DEFAULT now(), rolled_back_at timestamptz)")
    connection.execute("INSERT INTO _prisma_migrations (migration_name) VALUES ('bad')")
"""


@dataclass
class Users:
    """They write at a steady rate, each transaction under a token of its own, and note when it was acknowledged."""

    config: PostgresConfig
    rate: float
    acknowledged: list[tuple[float, float, str]] = field(default_factory=list[tuple[float, float, str]])
    """(when, how long it took, token)"""
    over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def writing(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._write) for _ in range(USERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in threads:
                thread.join()

    def _write(self) -> None:
        connection: Connection | None = None
        due = time.monotonic()
        while not self.over.is_set():
            due = max(due + USERS / self.rate, time.monotonic() - 1.0)
            self.over.wait(max(due - time.monotonic(), 0.0))
            token, began = secrets.token_hex(8), time.monotonic()
            try:
                if connection is None or connection.closed:
                    connection = connect(self.config, autocommit=True)
                with connection.transaction():
                    product = secrets.randbelow(PRODUCTS) + 1
                    connection.execute("INSERT INTO orders (token, product) VALUES (%s, %s)", [token, product])
                    connection.execute("UPDATE products SET stock = stock - 1 WHERE id = %s", [product])
            except (psycopg.Error, LastgoodError):
                if connection is not None:
                    connection.close()
                connection = None
                time.sleep(AGAIN_S)
                continue
            self.acknowledged.append((time.monotonic(), time.monotonic() - began, token))
        if connection is not None:
            connection.close()

    def latency_ms(self, since: float, until: float) -> float:
        """Mean of what was acknowledged between two moments."""
        return 1000 * statistics.fmean([took for at, took, _ in self.acknowledged if since <= at <= until] or [0.0])

    def pause_s(self, since: float, until: float) -> float:
        """The longest time without any acknowledgement."""
        at = sorted([since, until, *(when for when, *_ in self.acknowledged if since <= when <= until)])
        return max(later - sooner for sooner, later in pairwise(at))


class Ground:
    """The server, the base of a size, and what each way needs to go back."""

    def __init__(self, folder: Path, server: Cluster) -> None:
        self.folder, self.server, self.config = folder, server, server.config
        self.target: PostgresTarget
        release = folder / "v2"
        (release / "prisma" / "bad").mkdir(parents=True)
        (release / "prisma" / "bad" / "migration.sql").write_text(BAD)
        (release / "bad.sql").write_text(BAD)
        (release / "migrate.py").write_text(MIGRATE)

    def admin(self) -> Connection:
        return connect(self.config, database="postgres", autocommit=True)

    def tool(self, name: str, *words: str, database: str, stdin: Path | None = None, into: Path | None = None) -> None:
        """Run one of Postgres' programs."""
        config = self.config
        where = ["-h", config.host, "-p", str(config.port), "-U", config.user, "-d", database]
        with (stdin or Path("/dev/null")).open("rb") as source, (into or Path("/dev/null")).open("wb") as sink:
            program = str(Path(config.bin or "") / name)
            subprocess.run([program, *where, *words], stdin=source, stdout=sink, stderr=subprocess.PIPE, check=True)

    def pgbackrest(self, *words: str) -> None:
        """Run pgBackRest, as who owns the data."""
        config, owner = self.folder / "pgbackrest.conf", self.server.data.owner() if os.geteuid() == 0 else None
        command = ["pgbackrest", f"--config={config}", "--stanza=main", *words]
        subprocess.run(command, user=owner, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)

    def archive(self, command: str) -> None:
        """Have the server archive its log so."""
        with self.admin() as admin:
            admin.execute(f"ALTER SYSTEM SET archive_command = '{command}'".encode())
            admin.execute("SELECT pg_reload_conf()")

    def set_up_pgbackrest(self) -> None:
        """A place for its backups, and a server that can archive: that takes a new start."""
        config = self.folder / "pgbackrest.conf"
        config.write_text(
            f"[global]\nrepo1-path={self.folder}/repo\nlog-level-file=off\nlock-path={self.folder}/lock\nstart-fast=y\n"
            "log-level-stderr=error\n"
            f"compress-type=lz4\nprocess-max=2\n[main]\npg1-path={self.server.data}\n"
            f"pg1-socket-path={self.config.host}\npg1-user={self.config.user}\npg1-database=postgres\n"
        )
        with self.admin() as admin:
            admin.execute("ALTER SYSTEM SET archive_mode = on")
        self.archive(NOWHERE)
        self.server.stop()
        self.server.start()

    def grow(self, gigabytes: float) -> None:
        """Make the base larger, up to a size."""
        with self.admin() as admin:
            if not admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", [BASE]).fetchone():
                admin.execute(f"CREATE DATABASE {BASE}".encode())
                with connect(self.config, database=BASE, autocommit=True) as base:
                    base.execute(SCHEMA)
                    base.execute(
                        "INSERT INTO products SELECT g, 'product ' || g, 100000 FROM generate_series(1, %s) g",
                        [PRODUCTS],
                    )
        with connect(self.config, database=BASE, autocommit=True) as base:
            row = base.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()
            there, wanted = int(row[0]) if row else 0, int(gigabytes * ROWS_A_GB)
            for first in range(there + 1, wanted + 1, 400_000):
                base.execute(EVENTS, [first, min(first + 399_999, wanted)])
            base.execute("VACUUM ANALYZE")

    def begin(self) -> None:
        """A live database as the base is, and nothing of the way before."""
        for file in (BY_HAND, BESIDE):
            (self.folder / file).unlink(missing_ok=True)
        shutil.rmtree(self.folder / "state", ignore_errors=True)
        shutil.rmtree(self.folder / "restore-points", ignore_errors=True)
        self.archive(NOWHERE)
        for name in ("repo", "lock"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir()
            if os.geteuid() == 0:
                shutil.chown(self.folder / name, self.server.data.owner())
        with self.admin() as admin:
            for (slot,) in admin.execute("SELECT slot_name FROM pg_replication_slots").fetchall():
                admin.execute("SELECT pg_drop_replication_slot(%s)", [slot])
            # the ledger of swaps, too: the next way has a swap of the same name
            names = "SELECT datname FROM pg_database WHERE datname ~ '^(shop|lastgood)' AND datname <> %s"
            for (name,) in admin.execute(names, [BASE]).fetchall():
                admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())
            admin.execute(f"CREATE DATABASE {LIVE} TEMPLATE {BASE} STRATEGY file_copy".encode())
            admin.execute("CHECKPOINT")
        database = DatabaseConfig.model_validate(
            {
                "postgres": self.config,
                "migrations": {"prisma": "prisma", "command": [sys.executable, "migrate.py"]},
                "restore_points": {"path": "restore-points"},
            }
        )
        self.target = PostgresTarget(
            database,
            root=self.folder,
            state=self.folder / "state",
            clock=SystemClock(),
            workdir=lambda release: self.folder / release,
            invariants={
                "stock": "SELECT id FROM products WHERE stock < 0",
                # as large as the database: a look at all of it would be the pause
                "events": "SELECT id FROM events WHERE what = ''",
            },
            repairs={},
        )

    def apply(self, *actions: Action) -> None:
        for action in actions:
            self.target.apply(Step(name=action.kind, action=action, deadline_s=7200, explain=""))

    def migrate(self) -> None:
        self.apply(Migrate(release="v2", migrations=("bad",)))

    def kick(self, name: str) -> None:
        """Keep everybody out of a database."""
        with self.admin() as admin:
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

    def disk(self) -> int:
        """Bytes of all databases but base and live one, of the log that slots keep, and of files beside."""
        with self.admin() as admin:
            row = admin.execute(
                "SELECT coalesce(sum(pg_database_size(datname)), 0) FROM pg_database "
                "WHERE datname LIKE 'shop%%' AND datname NOT IN (%s, %s)",
                [BASE, LIVE],
            ).fetchone()
            log = admin.execute(
                "SELECT coalesce(sum(pg_current_wal_lsn() - restart_lsn), 0) FROM pg_replication_slots"
            ).fetchone()
        files = [f for f in self.folder.rglob("*") if f.is_file() and not f.is_relative_to(self.folder / "pg")]
        return sum(int(found[0]) for found in (row, log) if found) + sum(f.stat().st_size for f in files)


def by_hand_take(ground: Ground) -> None:
    ground.tool("pg_dump", database=LIVE, into=ground.folder / BY_HAND)


def by_hand_back(ground: Ground) -> None:
    """Stop the application, restore into an empty database, start it again."""
    ground.kick(LIVE)
    with ground.admin() as admin:
        admin.execute(f"DROP DATABASE {LIVE} WITH (FORCE)".encode())
        # under another name until its data is whole: for so long the application is down
        admin.execute(f"CREATE DATABASE {SIDE}".encode())
        ground.tool("psql", "-q", "-v", "ON_ERROR_STOP=1", database=SIDE, stdin=ground.folder / BY_HAND)
        admin.execute(f"ALTER DATABASE {SIDE} RENAME TO {LIVE}".encode())


def side_take(ground: Ground) -> None:
    ground.tool("pg_dump", "-Fc", "-Z1", database=LIVE, into=ground.folder / BESIDE)


def side_back(ground: Ground) -> None:
    """Restore beside while the application goes on, then change names."""
    with ground.admin() as admin:
        admin.execute(f"CREATE DATABASE {SIDE}".encode())
        ground.tool("pg_restore", str(ground.folder / BESIDE), database=SIDE)
        ground.kick(LIVE)
        admin.execute(f"ALTER DATABASE {LIVE} RENAME TO {OLD}".encode())
        admin.execute(f"ALTER DATABASE {SIDE} RENAME TO {LIVE}".encode())


def lastgood_take(ground: Ground) -> None:
    ground.apply(TakeRestorePoint(restore_point=POINT))


def lastgood_copy(ground: Ground) -> None:
    """Where users may be kept out meanwhile."""
    ground.apply(TakeRestorePoint(restore_point=POINT, pause_s=ALLOWED_S))


def lastgood_back(ground: Ground) -> None:
    """Rung D3: the safety dump is part of it."""
    ground.apply(
        SaveDump(name="shop-r1"),
        CatchUp(replay="r", restore_point=POINT),
        Fence(kept_as=KEPT_AS),
        ReplayWrites(replay="r", restore_point=POINT, kept_as=KEPT_AS, by_rows=False),
        SwapDatabase(swap="s", restore_point=POINT, clone=f"{LIVE}_lg_{POINT}", kept_as=KEPT_AS, replay="r"),
    )


def lastgood_back_by_rows(ground: Ground) -> None:
    """Rung D3b."""
    ground.apply(
        SaveDump(name="shop-r1"),
        Fence(kept_as=KEPT_AS),
        ExportWrites(export="e", restore_point=POINT, kept_as=KEPT_AS),
        ReplayWrites(replay="r", restore_point=POINT, kept_as=KEPT_AS, by_rows=True),
        SwapDatabase(swap="s", restore_point=POINT, clone=f"{LIVE}_lg_{POINT}", kept_as=KEPT_AS, replay="r"),
    )


def whole_take(ground: Ground) -> None:
    """A full backup while the application runs, and a name in the log. With a backup of last night it is the name
    alone."""
    ground.archive(f"pgbackrest --config={ground.folder / 'pgbackrest.conf'} --stanza=main archive-push %p")
    ground.pgbackrest("stanza-create")
    ground.pgbackrest("--type=full", "backup")
    with ground.admin() as admin:
        admin.execute("SELECT pg_create_restore_point(%s)", [POINT])
        admin.execute("SELECT pg_switch_wal()")


def whole_back(ground: Ground) -> None:
    """Stop the server, put back the files that differ, start it, and wait until it has recovered and can be written
    to."""
    ground.server.stop()
    ground.pgbackrest("--delta", "--type=name", f"--target={POINT}", "--target-action=promote", "restore")
    ground.server.start()
    with ground.admin() as admin:
        while admin.execute("SELECT pg_is_in_recovery()").fetchone() != (False,):
            time.sleep(AGAIN_S)


Way = tuple[Callable[[Ground], None], Callable[[Ground], None]]
WAYS: Final[dict[str, Way]] = {
    "by hand": (by_hand_take, by_hand_back),
    "restore beside": (side_take, side_back),
    PGBACKREST: (whole_take, whole_back),
    "lastgood D3": (lastgood_take, lastgood_back),
    "lastgood D3, copied": (lastgood_copy, lastgood_back),
    "lastgood D3b": (lastgood_take, lastgood_back_by_rows),
}
HEAD: Final = (
    "| size | way | take | slower in it | disk before | disk after | back | pause "
    "| acknowledged | lost | in quarantine |"
)


def play(ground: Ground, name: str, *, gigabytes: float, rate: float, seconds: float) -> None:
    """Go one way, and print its line."""
    take, back = WAYS[name]
    ground.begin()
    users = Users(ground.config, rate)
    with users.writing():
        at = [time.monotonic()]

        def mark() -> None:
            at.append(time.monotonic())

        time.sleep(seconds)
        mark()
        take(ground)
        mark()
        disk = ground.disk()
        ground.migrate()
        time.sleep(seconds)
        mark()
        back(ground)
        mark()
        disk_after = ground.disk()
        time.sleep(2.0)
        mark()
    began, taking, taken, going, gone, over = at
    acknowledged = {token for _, _, token in users.acknowledged}
    with connect(ground.config) as live:
        there = {str(token) for (token,) in live.execute("SELECT token FROM orders").fetchall()}
    waits = ground.folder / "state" / "replays" / "r" / "quarantine.jsonl"
    waiting = waits.read_text() if waits.exists() else ""
    quarantined = {token for token in acknowledged - there if token in waiting}
    usual, slow = users.latency_ms(began, taking), users.latency_ms(taking, taken)
    print(
        f"| {gigabytes:g} GB | {name} | {taken - taking:.1f} s | {slow / usual:.1f} times ({slow:.1f} ms) "
        f"| {disk / 1e9:.2f} GB | {disk_after / 1e9:.2f} GB "
        f"| {gone - going:.1f} s | {users.pause_s(going, over):.2f} s | {len(acknowledged):,} "
        f"| {len(acknowledged - there - quarantined):,} | {len(quarantined):,} |",
        flush=True,
    )


def compare_taking(ground: Ground, *, gigabytes: float) -> str:
    """A proved restore point against a dump and a restore alone, on an idle database, in a line."""
    ground.begin()
    began = time.monotonic()
    side_take(ground)
    with ground.admin() as admin:
        admin.execute(f"CREATE DATABASE {SIDE}".encode())
    ground.tool("pg_restore", str(ground.folder / BESIDE), database=SIDE)
    alone_s = time.monotonic() - began
    ground.begin()
    began = time.monotonic()
    lastgood_take(ground)
    proved_s = time.monotonic() - began
    bar_s = alone_s * 1.1 + 30
    return (
        f"{gigabytes:g} GB: a proved restore point {proved_s:.1f} s, dump and restore alone {alone_s:.1f} s "
        f"(bar {bar_s:.1f} s)"
    )


def measure(ground: Ground, options: argparse.Namespace) -> None:
    """Every size, every way."""
    print(HEAD)
    print("|" + "---|" * HEAD.count(" |"))
    taken: list[str] = []
    for size in sorted(options.sizes):
        ground.grow(size)
        for name in options.ways:
            play(ground, name, gigabytes=size, rate=options.rate, seconds=options.seconds)
        taken.append(compare_taking(ground, gigabytes=size))
    print("\n" + "\n".join(taken))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench.database")
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.2, 2.0, 8.0])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--programs", default=str(newest_programs() or "wheel"))
    options = parser.parse_args(words)
    programs = None if options.programs == "wheel" else Path(options.programs)
    if PGBACKREST in options.ways and (programs is None or not shutil.which("pgbackrest")):
        parser.error(
            f"{PGBACKREST} needs pgbackrest and Debian's Postgres, which scripts/engine.sh installs, or --ways"
        )
    with tempfile.TemporaryDirectory(prefix="lastgood-bench-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        with cluster(folder, programs) as server:
            ground = Ground(folder, server)
            if PGBACKREST in options.ways:
                ground.set_up_pgbackrest()
            measure(ground, options)


if __name__ == "__main__":
    main()
