"""PgBouncer in front of the database: its clients wait while the database is exchanged, instead of being thrown out.

Only its admin console is used, with the commands of pgbouncer.org/usage.html (tried with 1.18): PAUSE lets what is
under way come to its end and hands on nothing more, RESUME hands it on. Whoever waits is kept by PgBouncer alone, so
one that is started again holds nobody.
"""

from __future__ import annotations

import select
from contextlib import closing
from dataclasses import dataclass
from time import monotonic
from typing import Final

import psycopg
from psycopg import sql

from lastgood.core.config import PgBouncerConfig
from lastgood.core.errors import LastgoodError, Refused, Retryable
from lastgood.core.plan import ANSWERED_WITHIN_S
from lastgood.targets.postgres.connect import CONNECT_S, container_address

ASK_S: Final = 5.0
_AGAIN_S: Final = 1.0
_CONSOLE: Final = "pgbouncer"
_HINT: Final = "database.pgbouncer in lastgood.yaml"


@dataclass(frozen=True, slots=True)
class Pooler:
    """The PgBouncer of one database. live: the database's name on the server; clients may call it otherwise."""

    config: PgBouncerConfig
    live: str

    def paused(self) -> bool:
        """Whether any of its clients is made to wait. One that does not answer makes nobody wait: it serves nobody."""
        try:
            return bool(self._pools(paused=True))
        except LastgoodError:
            return False

    def pause(self) -> None:
        """Let every client wait, and what is under way end, ANSWERED_WITHIN_S at most: whoever is in the middle of a
        transaction then is thrown out, as without a pooler. Raises Retryable or Refused when it cannot be told."""
        until = monotonic() + ANSWERED_WITHIN_S
        for pool in self._pools(paused=False):
            self._say("PAUSE", pool, within_s=max(until - monotonic(), 0.0))

    def resume(self) -> None:
        """Hand on what waits, and what comes. Safe to repeat. Raises Retryable, with what a person types, when it
        cannot be told."""
        try:
            for pool in self._pools(paused=True):
                self._say("RESUME", pool, within_s=ASK_S)
        except LastgoodError as error:
            raise Retryable(error.message, delay_s=_AGAIN_S, hint=self.by_hand()) from error

    def by_hand(self) -> str:
        """What a person types, and where, to let them in."""
        place = self.config.container or f"{self.config.host}:{self.config.port}"
        return f"the admin console of PgBouncer at {place}: RESUME;"

    def obstacles(self) -> list[str]:
        """What would keep its clients from being made to wait, one line each."""
        try:
            if self._pools(paused=True):
                return [f"PgBouncer makes the clients of {self.live} wait; {self.by_hand()}"]
        except LastgoodError as error:
            return [f"{error.message}: {error.hint}"]
        return []

    def _pools(self, *, paused: bool) -> list[str]:
        """The names by which its clients know the live database."""
        rows = self._asked(b"SHOW DATABASES", within_s=ASK_S)
        if rows is None:
            raise Retryable("PgBouncer does not answer on its admin console", delay_s=_AGAIN_S, hint=_HINT)
        # its own name for the console stands there too, and leads to itself
        return [row["name"] for row in rows if row["database"] == self.live and (row["paused"] == "1") is paused]

    def _say(self, command: str, pool: str, *, within_s: float) -> None:
        name = sql.Identifier(pool).as_bytes(None)
        self._asked(command.encode() + b" " + name, within_s=within_s)

    def _asked(self, command: bytes, *, within_s: float) -> list[dict[str, str]] | None:
        """The rows of the answer; None when it did not come in time. The console knows only the simple protocol."""
        config = self.config
        try:
            console = psycopg.connect(
                host=container_address(config.container) if config.container else config.host,
                port=config.port,
                user=config.user,
                password=config.password.reveal() if config.password else None,
                dbname=_CONSOLE,
                connect_timeout=CONNECT_S,
                autocommit=True,
            )
            with closing(console):
                wire, until = console.pgconn, monotonic() + within_s
                wire.send_query(command)
                while wire.is_busy():
                    if not select.select([wire.socket], [], [], max(until - monotonic(), 0.0))[0]:
                        return None
                    wire.consume_input()
                result = wire.get_result()
        except psycopg.OperationalError as error:
            said = " ".join(str(error).split())
            raise Retryable(f"PgBouncer does not answer: {said}", delay_s=_AGAIN_S, hint=_HINT) from error
        if result is None or result.error_message:
            said = result.error_message.decode(errors="replace").strip() if result else "nothing"
            raise Refused(f"PgBouncer answers {said}", hint=_HINT)
        names = [(result.fname(at) or b"").decode() for at in range(result.nfields)]
        return [
            {name: (result.get_value(row, at) or b"").decode() for at, name in enumerate(names)}
            for row in range(result.ntuples)
        ]
