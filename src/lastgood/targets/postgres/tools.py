"""Postgres' own programs, on this host or inside the database's container; a password never stands on a command line.

Dumps are in the custom format and are read by pg_restore only, or an operator's own in that of a folder: a plain dump
replayed by psql can run code as the client's user (CVE-2025-8714), see `plain_dump`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO, Final

from psycopg.conninfo import make_conninfo

from lastgood.core.config import PostgresConfig
from lastgood.core.errors import OutcomeUnknown, Refused
from lastgood.targets import child
from lastgood.targets.postgres.connect import APPLICATION, CONNECT_S, LOCK_S

VERSION_S: Final = 10.0
_LAST_CHARACTERS: Final = 600
_ROOT: Final = "0"
"""Who owns what `docker cp` puts into a container, for its owner only: nobody else there could read it."""


class Tools:
    """pg_dump and pg_restore as the configuration reaches them."""

    def __init__(self, config: PostgresConfig) -> None:
        self._config = config

    def version(self) -> tuple[int, str]:
        """Return pg_dump's major version and what it says of itself. Raises Refused when it is not there."""
        said = self._run("pg_dump", ["--version"], session=APPLICATION, deadline_s=VERSION_S).strip()
        found = re.search(r"(\d+)", said)
        if found is None:
            raise Refused(f"pg_dump says {said!r}: expected its version")
        return int(found[1]), said

    def dump(
        self,
        database: str,
        into: Path,
        *,
        session: str,
        deadline_s: float,
        snapshot: str = "",
        schema_only: bool = False,
    ) -> None:
        """Dump into a new file, 0600 and on disk when this returns. snapshot: an exported one, to dump exactly it.

        session: what the server calls the tool's session, see `server.end_tool`.
        Raises Refused with what pg_dump said, OutcomeUnknown at the deadline; the file is then not to be used.
        """
        # a deploy waits for it: the level that pg_dump would choose takes far longer for a tenth of the size
        words = ["--format=custom", "--compress=1", f"--lock-wait-timeout={LOCK_S * 1000:.0f}", *self._to(database)]
        words += [f"--snapshot={snapshot}"] if snapshot else []
        words += ["--schema-only"] if schema_only else []
        with os.fdopen(os.open(into, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            self._run("pg_dump", words, session=session, deadline_s=deadline_s, stdout=file)
            os.fsync(file.fileno())

    def restore(self, dump: Path, database: str, *, session: str, deadline_s: float, schema_only: bool = False) -> None:
        """Restore into an empty database, all or nothing. dump: a file, or a folder of pg_dump's.

        Raises Refused with what pg_restore said: the database is empty then. OutcomeUnknown at the deadline.
        """
        words = ["--exit-on-error", "--single-transaction", *self._to(database)]
        words += ["--schema-only"] if schema_only else []
        self._read(dump, words, session=session, deadline_s=deadline_s)

    def contents(self, dump: Path, *, deadline_s: float) -> str:
        """Return what pg_restore tells of a dump without restoring it. Raises as `restore` does."""
        return self._read(dump, ["--list"], session=APPLICATION, deadline_s=deadline_s)

    def ask(self, query: str, database: str, *, session: str, deadline_s: float) -> str:
        """Return what a server answers that only the tools reach: one row of one column. Raises as `dump` does."""
        words = ["--no-psqlrc", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", f"--command={query}"]
        return self._run("psql", [*words, *self._to(database)], session=session, deadline_s=deadline_s).strip()

    def _read(self, dump: Path, words: list[str], *, session: str, deadline_s: float) -> str:
        """Have pg_restore read a dump. A folder cannot be told through a pipe: the container is given a copy."""
        if not dump.is_dir():
            with dump.open("rb") as file:
                return self._run("pg_restore", words, session=session, deadline_s=deadline_s, stdin=file)
        with self._within_reach(dump, deadline_s=deadline_s) as place:
            return self._run("pg_restore", [*words, place], session=session, deadline_s=deadline_s, user=_ROOT)

    @contextmanager
    def _within_reach(self, folder: Path, *, deadline_s: float) -> Generator[str]:
        """Lend where the tools find a folder. What a killed command left in the container is removed first."""
        container = self._config.container
        if not container:
            yield str(folder)
            return
        place = f"/tmp/lastgood-{sha256(self._config.name.encode()).hexdigest()[:8]}-{folder.name}"  # noqa: S108 # of the container
        remove = ["docker", "exec", "--user", _ROOT, container, "rm", "-rf", place]
        self._docker(remove, deadline_s=deadline_s)
        try:
            self._docker(["docker", "cp", str(folder), f"{container}:{place}"], deadline_s=deadline_s)
            yield place
        finally:
            self._docker(remove, deadline_s=deadline_s)

    @staticmethod
    def _docker(words: list[str], *, deadline_s: float) -> None:
        try:
            ended = child.run(words, deadline_s=deadline_s, env=child.bare_environment(os.environ))
        except FileNotFoundError:
            raise Refused("the docker client is not installed", hint="the README names the packages") from None
        except child.Overran as error:
            raise OutcomeUnknown(str(error)) from None
        if ended.code:
            raise Refused(f"{' '.join(words[:2])} ended {ended.code}: {ended.err.strip()[-_LAST_CHARACTERS:]}")

    @staticmethod
    def _to(database: str) -> list[str]:
        """A bare name with a `=` in it would be read as a whole connection string."""
        return [f"--dbname={make_conninfo(dbname=database)}", "--no-password"]

    def _run(
        self,
        program: str,
        arguments: list[str],
        *,
        session: str,
        deadline_s: float,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        user: str = "",
    ) -> str:
        given = self._session(session)
        words, env = self._words(program, given, user=user), child.bare_environment(os.environ) | given
        try:
            ended = child.run([*words, *arguments], deadline_s=deadline_s, env=env, stdin=stdin, stdout=stdout)
        except FileNotFoundError:
            raise Refused(f"{words[0]} is not installed", hint="database.postgres.bin in lastgood.yaml") from None
        except child.Overran as error:
            raise OutcomeUnknown(str(error)) from None
        if ended.code:
            raise Refused(f"{program} ended {ended.code}: {ended.err.strip()[-_LAST_CHARACTERS:]}")
        return ended.out

    def _words(self, program: str, given: Mapping[str, str], *, user: str = "") -> list[str]:
        """user: in the container, by default the one that it runs as."""
        if self._config.container:
            passed = [word for name in given for word in ("--env", name)] + (["--user", user] if user else [])
            return ["docker", "exec", "--interactive", *passed, self._config.container, program]
        if self._config.bin:
            return [str(Path(self._config.bin) / program)]
        return [shutil.which(program) or program]

    def _session(self, name: str) -> dict[str, str]:
        """Variables of libpq, which docker passes on by name."""
        # inside the container its address is not needed; a folder there is the socket's of another server
        beside = self._config.host.startswith("/")
        session = {
            "PGUSER": self._config.user,
            "PGAPPNAME": name,
            "PGCONNECT_TIMEOUT": str(CONNECT_S),
            "PGHOST": "127.0.0.1" if self._config.container and not beside else self._config.host,
            "PGPORT": str(self._config.port),
        }
        if self._config.password:
            session["PGPASSWORD"] = self._config.password.reveal()
        return session
