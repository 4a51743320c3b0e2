"""A small shop in a database, with two releases of its files, on whatever server a rig brings."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from lastgood.core.config import DatabaseConfig, PgBouncerConfig, PostgresConfig
from lastgood.core.plan import (
    Action,
    CatchUp,
    EndCapture,
    ExportWrites,
    Fence,
    LiftFence,
    Migrate,
    MigrateDown,
    RehearseDown,
    ReplayWrites,
    RestoreClone,
    SaveDump,
    Serve,
    Step,
    SwapDatabase,
    TakeRestorePoint,
)
from lastgood.core.release import Down
from lastgood.core.report import Loss, Replayed
from lastgood.targets.postgres import PostgresTarget, shelf
from lastgood.targets.postgres.connect import Connection, connect
from tests.contract.rigs.clock import CLOCK

MIGRATE = Path(__file__).parents[3] / "examples" / "hypercode" / "prisma" / "migrate.py"
REPLAY = "replay-r1"
FIRST = "20250101000000_shop"
SECOND = "20250201000000_rename"
THIRD = "20250202000000_data"
SHOP = """
CREATE TYPE state AS ENUM ('new', 'paid');
CREATE TABLE customers (id serial PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE orders (
    id bigserial PRIMARY KEY,
    customer int NOT NULL REFERENCES customers ON DELETE CASCADE,
    total numeric NOT NULL CHECK (total > 0),
    state state NOT NULL DEFAULT 'new',
    at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE audit (what text, at timestamptz DEFAULT now());
CREATE VIEW paid AS SELECT * FROM orders WHERE state = 'paid';
CREATE FUNCTION double(n int) RETURNS int LANGUAGE sql AS 'SELECT n * 2';
INSERT INTO customers (name) SELECT 'customer ' || g FROM generate_series(1, 20) g;
INSERT INTO orders (customer, total) SELECT 1 + g % 20, 1 + g FROM generate_series(1, 100) g;
"""
RENAME = """
ALTER TABLE customers RENAME COLUMN name TO full_name;
ALTER TABLE orders DROP CONSTRAINT orders_total_check;
UPDATE orders SET total = total - 50;
"""
NICKNAME = "20250115000000_nickname"
ADD_NICKNAME = "ALTER TABLE customers ADD COLUMN nickname text"
NO_NICKNAME = Down(migrations=(NICKNAME,), sql="ALTER TABLE customers DROP COLUMN nickname")
INVARIANT = "SELECT o.id FROM orders o WHERE o.total <= 0"
STATEMENTS = ("SELECT id, name FROM customers WHERE id = 1", "INSERT INTO customers (name) VALUES ('statements')")


def step(name: str, action: Action, *, deadline_s: float = 60.0) -> Step:
    """A step of the world's, as a plan would have it."""
    return Step(name=name, action=action, deadline_s=deadline_s, explain=name)


class PostgresWorld:
    """The shop, the files of its two releases, and the target on it."""

    def __init__(self, folder: Path, config: PostgresConfig, pause: Callable[[], AbstractContextManager[None]]) -> None:
        self.folder, self.config, self._pause = folder, config, pause
        self.ship("v1", {FIRST: SHOP})
        self.ship("v2", {FIRST: SHOP, SECOND: RENAME})
        self.ship("nicknamed", {FIRST: SHOP, NICKNAME: ADD_NICKNAME})
        self.kept_as = f"{config.name}_bad_r1"
        self.invariants: Mapping[str, str] = {"totals-are-positive": INVARIANT}
        self.repairs: Mapping[str, str] = {}
        self.pgbouncer: PgBouncerConfig | None = None
        self.migrations: Mapping[str, object] = {"prisma": "prisma", "command": [sys.executable, "migrate.py"]}
        self.pgbackrest: Mapping[str, object] | None = None
        self.merge: Mapping[str, str] = {}
        self.pause_s = 0.0
        """For how long everybody may be kept out so that the restore point is a copy; 0 for a dump."""
        self.by_rows = False
        """How what was written since goes back: by rows, as where nothing was captured, or by transactions."""

    def ship(self, release: str, migrations: Mapping[str, str]) -> None:
        """Write the files of a release."""
        root = self.folder / release
        for name, text in migrations.items():
            (root / "prisma" / name).mkdir(parents=True, exist_ok=True)
            (root / "prisma" / name / "migration.sql").write_text(text)
        (root / "migrate.py").write_text(MIGRATE.read_text().replace('/ "migrations"', '/ "prisma"'))
        (root / "statements").mkdir(exist_ok=True)
        for number, statement in enumerate(STATEMENTS):
            (root / "statements" / f"{number}.sql").write_text(statement)

    @property
    def target(self) -> PostgresTarget:
        config = DatabaseConfig.model_validate(
            {
                "postgres": self.config,
                "pgbouncer": self.pgbouncer,
                "migrations": self.migrations,
                "statements": "statements/*.sql",
                "merge": self.merge,
                "restore_points": {"path": "restore-points", "keep": 2},
                "pgbackrest": self.pgbackrest,
            }
        )
        return PostgresTarget(
            config,
            root=self.folder,
            state=self.folder / "state",
            clock=CLOCK,
            workdir=lambda release: self.folder / release,
            invariants=self.invariants,
            repairs=self.repairs,
        )

    def sql(self, text: str, *, database: str | None = None) -> list[tuple[object, ...]]:
        """Do something by hand, as the application would."""
        with self.connect(database=database) as connection:
            cursor = connection.execute(text.encode())
            return cursor.fetchall() if cursor.description else []

    def connect(self, *, database: str | None = None) -> Connection:
        return connect(self.config, database=database, autocommit=True)

    def step_to_migrate(self, release: str = "v2", *migrations: str) -> Step:
        return step("migrate", Migrate(release=release, migrations=migrations or (SECOND,)))

    @property
    def restore_point(self) -> str:
        return "rp-d2"

    @property
    def clone(self) -> str:
        return f"{self.config.name}_lg_{self.restore_point}"

    @property
    def steps(self) -> Sequence[Step]:
        return (
            step("take", TakeRestorePoint(restore_point=self.restore_point, pause_s=self.pause_s)),
            step("migrate-up", Migrate(release="nicknamed", migrations=(NICKNAME,))),
            *self.way_down(NO_NICKNAME),
            self.step_to_migrate(),
            step("catch-up-in-vain", CatchUp(replay="replay-r0", restore_point=self.restore_point)),
            self.restore_clone,
            *self.way_back_of(by_rows=True),
            self.end_capture,
        )

    def way_down(self, *downs: Down, migrations: tuple[str, ...] = (), made_for: str = "") -> Sequence[Step]:
        """What a rollback does that takes the migrations down. migrations: by default all that are named."""
        dump = f"{self.config.name}-r0"
        migrations = migrations or tuple(name for down in downs for name in down.migrations)
        rehearse = RehearseDown(
            rehearsal="down-r0",
            dump=dump,
            downs=downs,
            migrations=migrations,
            made_for=made_for,
            restore_point=self.restore_point,
        )
        migrate = MigrateDown(
            aside="down-r0",
            downs=downs,
            migrations=migrations,
            made_for=made_for,
            restore_point=self.restore_point,
        )
        return (
            step("save-dump", SaveDump(name=dump)),
            step("rehearse-down", rehearse),
            step("migrate-down", migrate),
        )

    @property
    def replay(self) -> ReplayWrites:
        """Of what was written since the restore point."""
        return self._replay_of(by_rows=self.by_rows)

    def _replay_of(self, *, by_rows: bool) -> ReplayWrites:
        return ReplayWrites(replay=REPLAY, restore_point=self.restore_point, kept_as=self.kept_as, by_rows=by_rows)

    @property
    def way_back(self) -> Sequence[Step]:
        """What a rollback of the database does."""
        return self.way_back_of(by_rows=self.by_rows)

    def way_back_of(self, *, by_rows: bool) -> Sequence[Step]:
        """The same; by rows also where a clone was restored after its slot was read."""
        point, kept_as = self.restore_point, self.kept_as
        dump = step("save-dump", SaveDump(name=f"{self.config.name}-r1"))
        catch_up = step("catch-up", CatchUp(replay=REPLAY, restore_point=point))
        fence = self.fence
        export = step("export", ExportWrites(export="export-r1", restore_point=point, kept_as=kept_as))
        swap = SwapDatabase(swap="swap-r1", restore_point=point, clone=self.clone, kept_as=kept_as, replay=REPLAY)
        first = (dump, fence, export) if by_rows else (dump, catch_up, fence)
        replay = self._replay_of(by_rows=by_rows)
        return (*first, step("replay-writes", replay), step("swap-database", swap))

    @property
    def fence(self) -> Step:
        return step("fence", Fence(kept_as=self.kept_as))

    @property
    def restore_clone(self) -> Step:
        """What is needed where the clone is gone, or holds what cannot be gone on with."""
        return step("restore-clone", RestoreClone(restore_point=self.restore_point, clone=self.clone))

    @property
    def end_capture(self) -> Step:
        return step("end-capture", EndCapture())

    def take(self) -> None:
        """Take the restore point."""
        self.target.apply(self.steps[0])

    def migrate(self) -> None:
        """Bring the second release's schema."""
        self.target.apply(self.step_to_migrate())

    def go_back(self) -> None:
        """Do all that a rollback of the database does."""
        for each in self.way_back:
            self.target.apply(each)

    def exported(self, table: str) -> list[dict[str, Any]]:
        """What an export says of a table, oldest first."""
        path = self.folder / "state" / "exports" / "export-r1" / f"{table}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def lost(self) -> tuple[Loss, ...]:
        """What the export says left the database, rows by table."""
        path = self.folder / "state" / "exports" / "export-r1.json"
        return shelf.read(path, shelf.KEPT_EXPORT, what="export", hint="").losses

    def replayed(self) -> Replayed:
        """What became of what was written since."""
        return self.target.replayed(REPLAY)

    def quarantine(self) -> list[dict[str, Any]]:
        """What waits for a person, oldest first."""
        path = self.folder / "state" / "replays" / REPLAY / "quarantine.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def one(self, text: str, *, database: str | None = None) -> object:
        """The first value of an answer."""
        return self.sql(text, database=database)[0][0]

    @property
    def lift(self) -> Step:
        return step("lift", LiftFence(kept_as=self.kept_as))

    def swap_back(self, *, aside: str = "aside_r2") -> str:
        """Take the swap back. Returns what the database is called that is set aside."""
        kept_as = f"{self.config.name}_{aside}"
        self.target.apply(step("fence", Fence(kept_as=kept_as)))
        self.target.apply(step("swap-back", LiftFence(kept_as=self.kept_as, go_on_from=kept_as)))
        return kept_as

    @property
    def refused(self) -> Step:
        gone = SwapDatabase(swap="swap-r9", restore_point="rp-none", clone="nothing", kept_as=self.kept_as)
        return step("swap", gone)

    @property
    def foreign(self) -> Step:
        return step("serve", Serve(release="v1", service="web", artifact="sha256:0"))

    def effects(self) -> int:
        """Databases by identity and name, rows of the history, and files: each change counts as a new line seen."""
        seen: set[str] = getattr(self, "_seen", set())
        with self.connect(database="postgres") as connection:
            rows = connection.execute("SELECT oid, datname, datallowconn FROM pg_database").fetchall()
            names = [name for _, name, open_to_all in rows if open_to_all]
            seen.update(f"{row}" for row in rows)
        if self.config.name in names:
            seen.update(f"{row}" for row in self.sql("SELECT xmin, id FROM _prisma_migrations"))
        for path in (*self.folder.glob("restore-points/*"), *self.folder.glob("state/**/*")):
            if path.is_file():
                seen.add(f"{path} {path.stat().st_mtime_ns} {path.stat().st_ino}")
        self._seen = seen
        return len(seen)

    def unreachable(self) -> AbstractContextManager[None]:
        return self._pause()


@contextmanager
def opened(
    folder: Path, config: PostgresConfig, pause: Callable[[], AbstractContextManager[None]]
) -> Generator[PostgresWorld]:
    """The shop as its first release made it."""
    world = PostgresWorld(folder, config, pause)
    world.target.apply(world.step_to_migrate("v1", FIRST))
    yield world
