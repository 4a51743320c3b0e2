"""Which migrations the files of a release bring, and which of them the database says it has.

Prisma: a folder for each, and the rows of `_prisma_migrations` (prisma-engines). Alembic: a script for each that names
the one before it, and the heads in `alembic_version` (Alembic docs, "Working with Branches"); here the heads count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from lastgood.core.config import MigrationsConfig
from lastgood.core.errors import ConfigError
from lastgood.core.release import Down
from lastgood.targets.postgres import catalog
from lastgood.targets.postgres.catalog import ALEMBIC, PRISMA
from lastgood.targets.postgres.connect import Connection

_REVISION: Final = "revision"
_BEFORE: Final = "down_revision"


def shipped(config: MigrationsConfig, at: Path) -> tuple[str, ...]:
    """Return what the files under `at` bring, oldest first. Raises ConfigError with the place."""
    if config.prisma is not None:
        folder = _folder(at / config.prisma, "prisma")
        return tuple(sorted(path.parent.name for path in folder.glob("*/migration.sql")))
    before = dict(_scripts(_folder(at / str(config.alembic), "alembic")))
    referred = {name for names in before.values() for name in names}
    if unknown := sorted(referred - before.keys()):
        raise ConfigError(f"database.migrations.alembic: {config.alembic}: no script has revision {unknown[0]}")
    return tuple(sorted(before.keys() - referred))


def downs(config: MigrationsConfig, at: Path) -> tuple[Down, ...]:
    """Return what lies beside Prisma's migrations to take them down again, oldest first: a `down.sql` of its own each
    (Prisma docs, "Generating down migrations"). Raises ConfigError with the place."""
    if config.prisma is None:
        return ()
    files = sorted(_folder(at / config.prisma, "prisma").glob("*/down.sql"))
    try:
        return tuple(Down(migrations=(file.parent.name,), sql=file.read_text(encoding="utf-8")) for file in files)
    except (OSError, ValueError) as error:
        raise ConfigError(f"database.migrations.prisma: {config.prisma}: down.sql cannot be read: {error}") from None


def scripts(config: MigrationsConfig, at: Path, migrations: Sequence[str]) -> tuple[tuple[str, str], ...] | None:
    """Return (migration, SQL) of these, as Prisma's files have them; None where only Alembic can tell its SQL. Raises
    ConfigError with the place."""
    if config.prisma is None:
        return None
    folder = _folder(at / config.prisma, "prisma")
    try:
        return tuple((name, (folder / name / "migration.sql").read_text(encoding="utf-8")) for name in migrations)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"database.migrations.prisma: {config.prisma}: migration.sql cannot be read: {error}"
        ) from None


def filled(config: MigrationsConfig, *, new: Sequence[str], there: Sequence[str]) -> tuple[str, ...]:
    """Return the command of `down`, with `{from}` and `{to}` filled: the newest of the new migrations, and the newest
    that the database has, `base` for none. Raises ConfigError where a word asks for one of several heads."""
    words = config.down or ()
    for place, names in (("{from}", new), ("{to}", there)):
        if config.alembic and len(names) > 1 and any(place in word for word in words):
            raise ConfigError(
                f"database.migrations.down: {place} would be one of {', '.join(names)}: expected one head"
            )
    to = there[-1] if there else "base"
    return tuple(word.replace("{from}", new[-1]).replace("{to}", to) for word in words)


def forget(connection: Connection, migrations: Sequence[str]) -> None:
    """Take migrations out of Prisma's history. Alembic's own SQL changes its own."""
    if _exists(connection, PRISMA):
        connection.execute(
            sql.SQL("DELETE FROM {} WHERE migration_name = ANY(%s)").format(sql.Identifier(PRISMA)), [list(migrations)]
        )


def carry(source: Connection, into: Connection) -> None:
    """Put the rows of the history into a copy of the schema that has none."""
    for name in catalog.HISTORIES:
        if _exists(source, name) and _exists(into, name):
            table = sql.Identifier(name)
            with (
                source.cursor().copy(sql.SQL("COPY {} TO STDOUT").format(table)) as rows,
                into.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(table)) as taken,
            ):
                for row in rows:
                    taken.write(row)


def known(connection: Connection) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (finished, failed) migrations of the database, oldest first; empty where there is no history."""
    finished, failed = _of_prisma(connection) or ((), ())
    return (*finished, *(_of_alembic(connection) or ())), failed


def gaps(live: Connection, config: MigrationsConfig) -> tuple[str, ...]:
    """Return why nobody can tell which migrations the database has, one line each; empty when that can be told."""
    try:
        return _gaps(live, config)
    except psycopg.errors.InsufficientPrivilege as error:
        return (f"which migrations the database has cannot be told: {error.diag.message_primary}",)


def _gaps(live: Connection, config: MigrationsConfig) -> tuple[str, ...]:
    if config.prisma is not None:
        prisma = _of_prisma(live)
        mend, history = "npx prisma migrate resolve", None if prisma is None else (*prisma[0], *prisma[1])
        failed = [f"migration {each} began and did not finish: {mend}" for each in (prisma[1] if prisma else ())]
        name = PRISMA
    else:
        name, mend, history, failed = ALEMBIC, "alembic stamp", _of_alembic(live), list[str]()
    if not history and catalog.tables(live):
        said = "is missing" if history is None else "names no migration"
        failed.append(f"{name} {said}, and there are tables: which migrations they have cannot be told: {mend}")
    return tuple(failed)


def _of_prisma(connection: Connection) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    if not _exists(connection, PRISMA):
        return None
    rows = connection.execute(
        sql.SQL(
            "SELECT migration_name, finished_at IS NOT NULL FROM {} WHERE rolled_back_at IS NULL ORDER BY started_at"
        ).format(sql.Identifier(PRISMA))
    ).fetchall()
    finished = tuple(name for name, done in rows if done)
    return finished, tuple(name for name, done in rows if not done and name not in finished)


def _of_alembic(connection: Connection) -> tuple[str, ...] | None:
    if not _exists(connection, ALEMBIC):
        return None
    rows = connection.execute(sql.SQL("SELECT version_num FROM {} ORDER BY 1").format(sql.Identifier(ALEMBIC)))
    return tuple(version for (version,) in rows)


def _folder(folder: Path, kind: str) -> Path:
    if not folder.is_dir():
        raise ConfigError(f"database.migrations.{kind}: {folder}: expected a folder with migrations")
    return folder


def _exists(connection: Connection, table: str) -> bool:
    return connection.execute("SELECT to_regclass(%s)", [table]).fetchone() != (None,)


def _scripts(folder: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (revision, those before it) of every script. They are read, not run."""
    for path in sorted(folder.glob("*.py")):
        if path.name == "__init__.py":
            continue
        told = _constants(path)
        if len(told.get(_REVISION, ())) != 1 or _BEFORE not in told:
            raise ConfigError(f"{path}: expected a script of Alembic, with {_REVISION} and {_BEFORE}")
        yield told[_REVISION][0], told[_BEFORE]


def _constants(path: Path) -> dict[str, tuple[str, ...]]:
    """The two names as a script assigns them at its top: None, a text, or more of them. Raises ConfigError when it is
    no Python, or they are something else."""
    told: dict[str, tuple[str, ...]] = {}
    try:
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in (_REVISION, _BEFORE):
                    told[name] = _texts(value)
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value) if name in (_REVISION, _BEFORE):
                    told[name] = _texts(value)
                case _:
                    pass
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"{path}: expected a script of Alembic: {error}") from None
    return told


def _texts(value: ast.expr) -> tuple[str, ...]:
    match value:
        case ast.Constant(value=None):
            return ()
        case ast.Constant(value=str(text)):
            return (text,)
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return tuple(text for element in elements for text in _texts(element))
        case _:
            message = f"line {value.lineno}: expected None, a revision, or more in a tuple"
            raise ValueError(message)
