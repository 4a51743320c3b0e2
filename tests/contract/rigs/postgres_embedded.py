"""A Postgres out of a wheel, on a unix socket: one server for many worlds, or one of its own, to be stopped and
killed."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from lastgood.core.config import PostgresConfig
from lastgood.core.secret import Secret
from lastgood.targets.postgres.connect import connect
from tests.contract.rigs.postgres_world import PostgresWorld, opened

PASSWORD = "pass word"


def postmaster(folder: Path) -> int:
    """The pid of the server whose data is in `folder`/pg."""
    return int((folder / "pg" / "postmaster.pid").read_text().split()[0])


@contextmanager
def open_folder() -> Generator[Path]:
    """A folder that the server's own user may enter: pytest's are private, and made so again by each new session."""
    with tempfile.TemporaryDirectory(prefix="lastgood-test-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@contextmanager
def server(folder: Path) -> Generator[PostgresConfig]:
    """A running server with its data in `folder`/pg, and how its database `shop` is reached."""

    def command(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "lastgood.testing.postgres", *words],
            check=False,
            timeout=60,
            capture_output=True,
            text=True,
            input=PASSWORD,
        )
        assert done.returncode == 0, f"{' '.join(words[:2])}: {done.stderr}\n{_said(folder)}"

    command("start", str(folder / "pg"), "shop", "shop")
    reach = json.loads((folder / "pg.json").read_text())
    try:
        yield PostgresConfig(name="shop", user="shop", password=Secret(PASSWORD), **reach)
    finally:
        command("stop", str(folder / "pg"))


def _said(folder: Path) -> str:
    """The last lines of the server's log."""
    log = folder / "pg" / "log"
    return log.read_text()[-4000:] if log.exists() else ""


@contextmanager
def rig(_folder: Path) -> Generator[PostgresWorld]:
    """A world on a server of its own; `world.folder` has its data in `pg`."""
    with open_folder() as folder, server(folder) as config, opened(folder, config, _pause_of(folder)) as world:
        yield world


def _pause_of(folder: Path) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def pause() -> Generator[None]:
        """Stop the server in its tracks: it takes connections and says nothing."""
        pid = postmaster(folder)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    return pause


@contextmanager
def database(folder: Path, config: PostgresConfig) -> Generator[PostgresWorld]:
    """A world in a database of its own of a server that others use as well."""
    config = config.model_copy(update={"name": f"shop_{secrets.token_hex(3)}"})
    with connect(config, database="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {config.name}".encode())

    @contextmanager
    def pause() -> Generator[None]:
        raise NotImplementedError("others use this server")
        yield

    try:
        with opened(folder, config, pause) as world:
            yield world
    finally:
        with connect(config, database="postgres", autocommit=True) as connection:
            made = connection.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [config.name])
            for (name,) in made.fetchall():  # and with each of them its slots, of which a server has only ten
                connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())
