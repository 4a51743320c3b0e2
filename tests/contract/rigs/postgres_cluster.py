"""A Postgres that is killed and started again: of the programs that the machine has (Debian's), or out of the wheel.

It syncs to disk, as a server does by itself: a kill -9 of one that does not would prove nothing.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from lastgood.core.config import PostgresConfig
from lastgood.targets.postgres.connect import connect
from tests.contract.rigs import postgres_embedded

OWNER: Final = "postgres"
"""Debian's user; a server does not run as root."""
START_S: Final = 60
DEAD_S: Final = 30.0
SETTINGS: Final = """
wal_level = logical
max_slot_wal_keep_size = 4GB
log_line_prefix = '%m [%p] %e %a@%d '
max_connections = 60
"""


def newest_programs() -> Path | None:
    """The folder of the newest server's programs on this machine, as Debian lays them out; None without one."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(found, key=lambda path: int(path.parent.name), default=None)


def needed_programs(*others: str) -> Path:
    """The same for a test that cannot do without them, and these programs: it fails where CI is to have everything, and
    is told as not run elsewhere."""
    programs = newest_programs()
    if programs is not None and all(shutil.which(name) for name in others):
        return programs
    missing = f"{' and '.join((*others, 'the Postgres of the distribution'))} missing: scripts/engine.sh installs them"
    if os.environ.get("LASTGOOD_REQUIRE_ENGINE"):
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A server with its data in `data`; config: how its database `shop` is reached."""

    data: Path
    config: PostgresConfig

    def backends(self, database: str) -> list[int]:
        """The pids of the sessions in databases whose name begins with that, as their titles say."""
        wanted = f"postgres: {self.config.user} {database}"
        return [pid for pid in self._children(self._postmaster()) if _title(pid).startswith(wanted)]

    def kill(self) -> list[int]:
        """Kill the server as a whole, so that nobody of it says or writes another word. Return who it was."""
        postmaster = self._postmaster()
        os.kill(postmaster, signal.SIGSTOP)  # so that it starts nobody meanwhile
        pids = [*self._children(postmaster), postmaster]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return pids

    def start(self, *, after: Sequence[int] = ()) -> None:
        """Start the server, and wait until it lets in. after: who was killed. They may stay in the list of processes
        until somebody asks for their exit codes, and a server takes that for another one in its place."""
        until = time.monotonic() + DEAD_S
        while any(_alive(pid) for pid in after):
            assert time.monotonic() < until, f"{after} do not die"
            time.sleep(0.002)
        if after:
            for left in (self.data / "postmaster.pid", Path(self.config.host) / f".s.PGSQL.{self.config.port}.lock"):
                left.unlink(missing_ok=True)
        command = ["-w", "-D", self.data, "-l", self.data / "log", "-o", f'-h "" -k {self.config.host}', "start"]
        _run(Path(str(self.config.bin)) / "pg_ctl", *command, user=_owner(self.data))

    def stop(self) -> None:
        """Stop it at once."""
        if not self._is_up():
            return
        _run(Path(str(self.config.bin)) / "pg_ctl", "-w", "-D", self.data, "-m", "fast", "stop", user=_owner(self.data))

    def _is_up(self) -> bool:
        return (self.data / "postmaster.pid").exists() and _alive(self._postmaster())

    def _postmaster(self) -> int:
        return postgres_embedded.postmaster(self.data.parent)

    @staticmethod
    def _children(pid: int) -> list[int]:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def cluster(folder: Path, programs: Path | None) -> Generator[Cluster]:
    """A running server with its data in `folder`/pg. programs: None for those of the wheel."""
    if programs is None:
        with postgres_embedded.server(folder) as config:
            yield _trusted(Cluster(data=folder / "pg", config=config))
        return
    data = folder / "pg"
    data.mkdir(mode=0o700)
    user = OWNER if os.geteuid() == 0 else None
    if user:
        os.chown(data, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    _run(programs / "initdb", "-D", data, "-U", "shop", "--auth=trust", "--encoding=UTF8", "--no-sync", user=user)
    (data / "postgresql.auto.conf").write_text(SETTINGS)
    config = PostgresConfig(name="shop", user="shop", host=str(data), bin=str(programs), log=str(data / "log"))
    made = Cluster(data=data, config=config)
    made.start()
    try:
        with connect(config, database="postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE shop")
        yield _trusted(made)
    finally:
        made.stop()


def _trusted(made: Cluster) -> Cluster:
    with connect(made.config) as connection:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            row = connection.execute(f"SHOW {setting}".encode()).fetchone()
            assert row == ("on",), f"{setting} is off"
    return made


def _owner(data: Path) -> str | None:
    return data.owner() if os.geteuid() == 0 else None


def _run(*words: object, user: str | None) -> None:
    done = subprocess.run(
        [str(word) for word in words],
        check=False,
        timeout=START_S,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        user=user,
        cwd="/",
    )
    assert done.returncode == 0, f"{words[0]}: {done.stdout}"


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    """Whether it holds anything yet: nobody may have asked for the exit code of a dead one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
