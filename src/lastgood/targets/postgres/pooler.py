"""PgBouncer in front of the database: its clients wait while the database is exchanged, instead of being thrown out.

Only its admin console is used, with the commands of pgbouncer.org/usage.html (tried with 1.18): PAUSE lets what is
under way come to its end and hands on nothing more, RESUME hands it on. Whoever waits is kept by PgBouncer alone, so
one that is started again holds nobody.
"""

from __future__ import annotations

import select
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

import psycopg
from psycopg import sql

from lastgood.core.config import PgBouncerConfig
from lastgood.core.errors import LastgoodError, Refused, Retryable
from lastgood.core.plan import ANSWERED_WITHIN_S
from lastgood.targets.postgres import shelf
from lastgood.targets.postgres.connect import CONNECT_S, container_address

ASK_S: Final = 5.0
_AGAIN_S: Final = 1.0
_CONSOLE: Final = "pgbouncer"
_HINT: Final = "database.pgbouncer in lastgood.yaml"
# libpq's words for an address at which nobody listens
_NOBODY_LISTENS: Final = ("Connection refused", "No such file or directory")


class _Away(Exception):
    """Nobody listens there. Whoever waited at a PgBouncer that ended waits no more."""


@dataclass(frozen=True, slots=True)
class Pooler:
    """The PgBouncer of one database. live: the database's name on the server; clients may call it otherwise. mark: the
    file that says that lastgood made them wait: a pause of somebody else's is none of ours to end."""

    config: PgBouncerConfig
    live: str
    mark: Path

    def paused(self) -> bool | None:
        """Whether its clients wait because of us; None when that cannot be told."""
        if not self.mark.exists():
            return False
        try:
            return any(pool.paused for pool in self._pools())
        except _Away:
            return False
        except LastgoodError:
            return None

    def pause(self) -> None:
        """Let every client wait, and what is under way end, ANSWERED_WITHIN_S at most: whoever is in the middle of a
        transaction then is thrown out, as without a pooler. Raises Retryable or Refused when it cannot be told."""
        until = monotonic() + ANSWERED_WITHIN_S
        try:
            pools = [pool.name for pool in self._pools() if not pool.paused]
        except _Away as error:
            raise Retryable(f"PgBouncer does not answer: {error}", delay_s=_AGAIN_S, hint=_HINT) from None
        shelf.mark(self.mark)
        for pool in pools:
            self._say("PAUSE", pool, within_s=max(until - monotonic(), 0.0))

    def resume(self) -> None:
        """Hand on what waits because of us, and what comes. Safe to repeat. Raises Retryable, with what a person types,
        when it cannot be told."""
        if not self.mark.exists():
            return
        try:
            for pool in self._pools():
                if pool.paused:
                    self._say("RESUME", pool.name, within_s=ASK_S)
            if any(pool.paused for pool in self._pools()):
                raise Retryable(f"the clients of {self.live} still wait at PgBouncer", delay_s=_AGAIN_S)
        except _Away:
            pass
        except LastgoodError as error:
            raise Retryable(error.message, delay_s=_AGAIN_S, hint=self.by_hand()) from error
        self.mark.unlink(missing_ok=True)

    def by_hand(self) -> str:
        """What a person types, and where, to let them in."""
        place = self.config.container or f"{self.config.host}:{self.config.port}"
        return f"the admin console of PgBouncer at {place}: RESUME;"

    def obstacles(self) -> tuple[str, ...]:
        """What would have its clients thrown out instead of made to wait, one line each."""
        try:
            pools, settings = self._pools(), self._asked(b"SHOW CONFIG", within_s=ASK_S)
        except _Away as error:
            return (f"PgBouncer does not answer: {error}",)
        except LastgoodError as error:
            return (error.message,)
        found: list[str] = []
        if any(pool.paused for pool in pools):
            found.append(f"PgBouncer makes the clients of {self.live} wait: {self.by_hand()}")
        if len({pool.server for pool in pools}) > 1:
            names = ", ".join(sorted(pool.name for pool in pools))
            found.append(f"{names} of PgBouncer lead to several servers: database.pgbouncer.databases says which")
        admins = next((row["value"] for row in settings if row["key"] == "admin_users"), "")
        if self.config.user not in {*map(str.strip, admins.split(",")), _CONSOLE}:
            found.append(f"{self.config.user} is not among the admin_users of PgBouncer")
        return tuple(found)

    def keeps_out(self) -> str:
        """Why its clients do not come through now; empty when they do."""
        try:
            waits = any(pool.paused for pool in self._pools())
        except _Away as error:
            return f"PgBouncer does not answer: {error}"
        except LastgoodError as error:
            return error.message
        return f"PgBouncer makes the clients of {self.live} wait: {self.by_hand()}" if waits else ""

    def _pools(self) -> list[_Pool]:
        """Those that lead to the live database."""
        wanted = self.config.databases
        return [
            _Pool(name=row["name"], server=f"{row['host']}:{row['port']}", paused=row["paused"] == "1")
            for row in self._asked(b"SHOW DATABASES", within_s=ASK_S)
            if (row["name"] in wanted if wanted else row["database"] == self.live)
        ]

    def _say(self, command: str, pool: str, *, within_s: float) -> None:
        """An answer that does not come in time is none to wait for: who looks is told what became of it."""
        with suppress(TimeoutError):
            self._exchange(command.encode() + b" " + sql.Identifier(pool).as_bytes(None), within_s=within_s)

    def _asked(self, command: bytes, *, within_s: float) -> list[dict[str, str]]:
        try:
            return self._exchange(command, within_s=within_s)
        except TimeoutError:
            raise Retryable("PgBouncer does not answer on its console", delay_s=_AGAIN_S, hint=_HINT) from None

    def _exchange(self, command: bytes, *, within_s: float) -> list[dict[str, str]]:
        """The rows of the answer. Raises TimeoutError when it did not come. The console knows only the simple
        protocol."""
        with closing(self._console()) as console:
            wire, until = console.pgconn, monotonic() + within_s
            try:
                wire.send_query(command)
                while wire.is_busy():
                    if not select.select([wire.socket], [], [], max(until - monotonic(), 0.0))[0]:
                        raise TimeoutError
                    wire.consume_input()
                result = wire.get_result()
            except psycopg.OperationalError as error:
                raise Retryable(f"PgBouncer: {_words(error)}", delay_s=_AGAIN_S, hint=_HINT) from error
        if result is None or result.error_message:
            said = result.error_message.decode(errors="replace").strip() if result else "nothing"
            raise Refused(f"PgBouncer answers {said}", hint=_HINT)
        names = [(result.fname(at) or b"").decode() for at in range(result.nfields)]
        return [
            {name: (result.get_value(row, at) or b"").decode() for at, name in enumerate(names)}
            for row in range(result.ntuples)
        ]

    def _console(self) -> psycopg.Connection[tuple[Any, ...]]:
        config = self.config
        try:
            return psycopg.connect(
                host=container_address(config.container) if config.container else config.host,
                port=config.port,
                user=config.user,
                password=config.password.reveal() if config.password else None,
                dbname=_CONSOLE,
                connect_timeout=CONNECT_S,
                autocommit=True,
            )
        except psycopg.OperationalError as error:
            said = _words(error)
            if any(words in said for words in _NOBODY_LISTENS):
                raise _Away(said) from error
            raise Retryable(f"PgBouncer: {said}", delay_s=_AGAIN_S, hint=_HINT) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pool:
    """name: by which clients know the database. server: where it leads."""

    name: str
    server: str
    paused: bool


def _words(error: psycopg.Error) -> str:
    return " ".join(str(error).split())
