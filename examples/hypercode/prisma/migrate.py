"""Apply the pending migrations of `migrations/`, as `prisma migrate deploy` does, with psycopg instead of Node.

The table `_prisma_migrations` is Prisma's own, row for row, so either of the two can go on where the other stopped.
Each migration.sql is sent as one multi-statement query, which Postgres runs as one transaction. A migration that fails
leaves its row without `finished_at`; later runs refuse until a person has said what to do with it.

    DATABASE_URL=postgresql://... python prisma/migrate.py
"""

import hashlib
import os
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg

# Prisma Migrate's own lock and wait (prisma-engines, postgres `acquire_lock`): the two exclude each other.
_LOCK: Final = 72707369
_LOCK_WAIT_S: Final = 10

_CREATE_TABLE: Final = """
CREATE TABLE _prisma_migrations (
    id                      VARCHAR(36) PRIMARY KEY NOT NULL,
    checksum                VARCHAR(64) NOT NULL,
    finished_at             TIMESTAMPTZ,
    migration_name          VARCHAR(255) NOT NULL,
    logs                    TEXT,
    rolled_back_at          TIMESTAMPTZ,
    started_at              TIMESTAMPTZ NOT NULL DEFAULT now(),
    applied_steps_count     INTEGER NOT NULL DEFAULT 0
)"""


class MigrationRefused(Exception):
    """Nothing was applied, or the failing migration was undone by Postgres; the message begins with Prisma's code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One folder of `migrations/`. `checksum`: SHA-256 of migration.sql, hexadecimal."""

    name: str
    sql: str
    checksum: str


def read_migrations(folder: Path) -> Sequence[Migration]:
    """In the order in which they apply, which is that of their names."""
    found: list[Migration] = []
    for script in sorted(folder.glob("*/migration.sql")):
        content = script.read_bytes()
        found.append(
            Migration(
                name=script.parent.name, sql=content.decode("utf-8"), checksum=hashlib.sha256(content).hexdigest()
            )
        )
    return found


def migrate(database_url: str, migrations: Sequence[Migration]) -> Sequence[str]:
    """Names of the migrations that were applied now. Raises MigrationRefused or psycopg.OperationalError."""
    with psycopg.connect(database_url, autocommit=True, connect_timeout=10, application_name="prisma migrate") as db:
        # The lock ends with the connection, whatever happens to this process.
        db.execute("SELECT set_config('lock_timeout', %s, false)", [f"{_LOCK_WAIT_S}s"])
        try:
            db.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
        except psycopg.errors.LockNotAvailable as error:
            raise MigrationRefused(f"P1002: another migration is running; waited {_LOCK_WAIT_S} s for it") from error
        db.execute("RESET lock_timeout")
        _ensure_table(db)
        _refuse_failed(db)
        done = _finished(db)
        for migration in migrations:
            if migration.name in done and done[migration.name] != migration.checksum:
                print(f"warning: {migration.name} was changed after it was applied", file=sys.stderr)
        pending = [migration for migration in migrations if migration.name not in done]
        for migration in pending:
            _apply(db, migration)
        return [migration.name for migration in pending]


def _ensure_table(db: psycopg.Connection) -> None:
    tables = {name for (name,) in db.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")}
    if "_prisma_migrations" in tables:
        return
    if tables:
        raise MigrationRefused("P3005: the database schema is not empty and has no migration history")
    db.execute(_CREATE_TABLE)


def _refuse_failed(db: psycopg.Connection) -> None:
    failed = [
        name
        for (name,) in db.execute(
            """SELECT migration_name FROM _prisma_migrations
               WHERE finished_at IS NULL AND rolled_back_at IS NULL ORDER BY started_at"""
        )
    ]
    if failed:
        raise MigrationRefused(f"P3009: failed migrations were found, none will be applied: {', '.join(failed)}")


def _finished(db: psycopg.Connection) -> dict[str, str]:
    """Checksums by name."""
    rows = db.execute(
        """SELECT migration_name, checksum FROM _prisma_migrations
           WHERE finished_at IS NOT NULL AND rolled_back_at IS NULL"""
    )
    return dict(rows.fetchall())


def _apply(db: psycopg.Connection, migration: Migration) -> None:
    row_id = str(uuid.uuid4())
    db.execute(
        "INSERT INTO _prisma_migrations (id, checksum, migration_name, started_at) VALUES (%s, %s, %s, now())",
        [row_id, migration.checksum, migration.name],
    )
    try:
        db.execute(
            migration.sql.encode()
        )  # without parameters psycopg uses the simple protocol: many statements at once
    except psycopg.Error as error:
        if not db.closed:
            db.execute("UPDATE _prisma_migrations SET logs = %s WHERE id = %s", [_log(migration, error), row_id])
        raise MigrationRefused(f"P3018: {migration.name} failed to apply: {error.sqlstate}: {error}") from error
    db.execute("UPDATE _prisma_migrations SET finished_at = now(), applied_steps_count = 1 WHERE id = %s", [row_id])


def _log(migration: Migration, error: psycopg.Error) -> str:
    return (
        "A migration failed to apply.\n\n"
        f"Migration name: {migration.name}\n\n"
        f"Database error code: {error.sqlstate}\n\n"
        f"Database error:\n{error}"
    )


def main() -> int:
    """Exit code 0: the schema is up to date. 1: it is not, and stderr says why."""
    database_url = os.environ.get("DATABASE_URL", "")
    if not database_url:
        print("DATABASE_URL is not set", file=sys.stderr)
        return 1
    try:
        applied = migrate(database_url, read_migrations(Path(__file__).parent / "migrations"))
    except (MigrationRefused, psycopg.OperationalError) as error:
        print(error, file=sys.stderr)
        return 1
    for name in applied:
        print(f"applied {name}")
    if not applied:
        print("no pending migrations")
    return 0


if __name__ == "__main__":
    sys.exit(main())
