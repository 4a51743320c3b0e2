"""How fast is a replay beside the application that wrote, and how long is the pause: on an embedded server, in one run.

    python -m bench.replay [--seconds 10] [--users 4] [--rows 20000]

Users write as fast as they can (an order, an amount that everybody adds to, a line of an audit; synchronous_commit on);
then what they wrote is replayed, and the database is swapped. Prints both rates, their ratio, and the pause from the
fence to the swap. Everything is on this machine, which the server, the users and the replay share.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psycopg

from lastgood.assembly import SystemClock
from lastgood.core.config import DatabaseConfig, PostgresConfig
from lastgood.core.plan import Action, CatchUp, Fence, Migrate, ReplayWrites, Step, SwapDatabase, TakeRestorePoint
from lastgood.core.secret import Secret
from lastgood.targets.postgres import PostgresTarget
from lastgood.targets.postgres.connect import Connection, connect

POINT = "rp-d1"
SCHEMA = """
CREATE TABLE products (id int PRIMARY KEY, name text NOT NULL, stock int NOT NULL);
CREATE TABLE orders (id bigserial PRIMARY KEY, product int NOT NULL REFERENCES products, amount int NOT NULL);
CREATE TABLE audit (what text, at timestamptz DEFAULT now());
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


def write(config: PostgresConfig, until: float, rows: int, done: list[int]) -> None:
    """One user."""
    written, chance = 0, random.Random(secrets.token_hex(4))  # noqa: S311 # which row is no secret
    with connect(config, autocommit=True) as connection:
        while time.monotonic() < until:
            product = chance.randint(1, rows)
            with connection.transaction():
                connection.execute("INSERT INTO orders (product, amount) VALUES (%s, 1)", [product])
                connection.execute("UPDATE products SET stock = stock - 1 WHERE id = %s", [product])
                connection.execute("INSERT INTO audit (what) VALUES ('sold')")
            written += 1
    done.append(written)


def prepared(connection: Connection, rows: int) -> None:
    """Make the shop."""
    connection.execute(SCHEMA)
    connection.execute("INSERT INTO products SELECT g, 'product ' || g, 1000 FROM generate_series(1, %s) g", [rows])


def measure(folder: Path, config: PostgresConfig, *, seconds: float, users: int, rows: int) -> None:
    """Play it once and print the figures."""
    with connect(config, autocommit=True) as connection:
        prepared(connection, rows)
    (folder / "v2" / "prisma" / "bad").mkdir(parents=True)
    (folder / "v2" / "prisma" / "bad" / "migration.sql").write_text(BAD)
    (folder / "v2" / "bad.sql").write_text(BAD)
    (folder / "v2" / "migrate.py").write_text(MIGRATE)
    database = DatabaseConfig.model_validate(
        {"postgres": config, "migrations": {"prisma": "prisma", "command": [sys.executable, "migrate.py"]}}
    )
    target = PostgresTarget(
        database,
        root=folder,
        state=folder / "state",
        clock=SystemClock(),
        workdir=lambda release: folder / release,
        invariants={"stock": "SELECT id FROM products WHERE stock < 0"},
        repairs={},
    )
    kept_as, clone = f"{config.name}_bad", f"{config.name}_lg_{POINT}"

    def apply(action: Action) -> float:
        began = time.monotonic()
        target.apply(Step(name=action.kind, action=action, deadline_s=3600, explain=""))
        return time.monotonic() - began

    apply(TakeRestorePoint(restore_point=POINT))
    apply(Migrate(release="v2", migrations=("bad",)))
    done: list[int] = []
    until = time.monotonic() + seconds
    writers = [threading.Thread(target=write, args=(config, until, rows, done)) for _ in range(users)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    took_s = apply(CatchUp(replay="r", restore_point=POINT))
    pause_s = apply(Fence(kept_as=kept_as))
    pause_s += apply(ReplayWrites(replay="r", restore_point=POINT, kept_as=kept_as, by_rows=False))
    pause_s += apply(SwapDatabase(swap="s", restore_point=POINT, clone=clone, kept_as=kept_as, replay="r"))
    replayed = target.replayed("r")
    written, replay_rate = sum(done) / seconds, replayed.total / took_s
    print(f"written    {sum(done):,} transactions by {users} users in {seconds:g} s: {written:,.0f} a second")
    print(f"replayed   {replayed.total:,} ({replayed.quarantined} in quarantine) in {took_s:.1f} s: {replay_rate:,.0f}")
    print(f"ratio      {replay_rate / written:.2f}")
    print(f"pause      {pause_s:.2f} s from the fence to the swap")
    with connect(config) as live:
        ((orders,),) = live.execute("SELECT count(*) FROM orders").fetchall()
        print(f"orders     {orders:,} in the live data, {sum(done):,} acknowledged")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.replay")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--rows", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lastgood-bench-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        server = [sys.executable, "-m", "lastgood.testing.postgres"]
        subprocess.run([*server, "start", str(folder / "pg"), "shop", "shop"], input="secret", text=True, check=True)
        try:
            reach = json.loads((folder / "pg.json").read_text())
            config = PostgresConfig(name="shop", user="shop", password=Secret("secret"), **reach)
            measure(folder, config, seconds=options.seconds, users=options.users, rows=options.rows)
        except psycopg.Error as error:
            sys.exit(f"{error}")
        finally:
            subprocess.run([*server, "stop", str(folder / "pg")], check=True)


if __name__ == "__main__":
    main()
