"""A Postgres out of a wheel, on a unix socket: one server a test, so that it may be stopped and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lastgood.core.config import PostgresConfig
from lastgood.core.secret import Secret
from tests.contract.rigs.postgres_world import PostgresWorld, opened


def postmaster(folder: Path) -> int:
    """The pid of the server whose data is in `folder`/pg."""
    return int((folder / "pg" / "postmaster.pid").read_text().split()[0])


def said(folder: Path) -> str:
    """The last lines of the server's log."""
    log = folder / "pg" / "log"
    return log.read_text()[-4000:] if log.exists() else ""


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that the server's own user may enter: pytest's are private, and made so again by each new session."""
    with tempfile.TemporaryDirectory(prefix="lastgood-test-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@contextmanager
def rig(_folder: Path) -> Iterator[PostgresWorld]:
    with open_folder() as folder, _served(folder) as world:
        yield world


@contextmanager
def _served(folder: Path) -> Iterator[PostgresWorld]:
    def server(*words: str) -> None:
        command = [sys.executable, "-m", "lastgood.testing.postgres", *words]
        done = subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(words[:2])}: {done.stderr}\n{said(folder)}"

    server("start", str(folder / "pg"), "shop", "shop", "pass word")
    reach = json.loads((folder / "pg.json").read_text())
    config = PostgresConfig(
        name="shop",
        user="shop",
        password=Secret("pass word"),
        host=reach["host"],
        bin=reach["bin"],
        log=reach["log"],
    )

    @contextmanager
    def pause() -> Iterator[None]:
        """Stop the server in its tracks: it takes connections and says nothing."""
        pid = postmaster(folder)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    try:
        with opened(folder, config, pause) as world:
            yield world
    finally:
        server("stop", str(folder / "pg"))
