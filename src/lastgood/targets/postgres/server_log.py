"""SQL errors out of the logs of the server and of the services, with their SQLSTATE and the names that they mention.

A line begins as `log_line_prefix` says: the SQLSTATE is read where `%e` puts it, and is else told by the English
message (of PostgreSQL 15 to 18). What lastgood's own statements provoke is nobody's failure and is left out.

Whose session it was is told by its address, where `%h` or `%r` puts that, or the process of `%p` is connected still: a
container has it for itself, from its start on. Behind a pooler, or through a port of the host, it is nobody's.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Final

import psycopg

from lastgood.core.config import PostgresConfig
from lastgood.core.facts import ServiceLog
from lastgood.core.migration import SqlError
from lastgood.targets import child
from lastgood.targets.postgres.connect import APPLICATION, Connection

LOG_S: Final = 10.0
TAIL_BYTES: Final = 16 << 20
TAIL_LINES: Final = 100_000
MOST_ERRORS: Final = 50
OURS: Final = b"/* lastgood */ "
"""Put before a statement that may fail and must not be taken for the application's: a stock server names no
application in its log, but it does log the statement (log_min_error_statement)."""

_OUR_STATEMENTS: Final = (OURS.decode(), 'DECLARE "lastgood_')
_MESSAGE: Final = r"(?P<level>[A-Z]+\d?):\s+(?P<said>.*)"
_ERRORS: Final = frozenset({"ERROR", "FATAL", "PANIC"})
_CONTINUES: Final = frozenset({"DETAIL", "HINT", "QUERY", "CONTEXT", "LOCATION", "BACKTRACE"})
_BY_MESSAGE: Final = (
    (re.compile(r"^column .* does not exist"), "42703"),
    (re.compile(r"^relation .* does not exist"), "42P01"),
    (re.compile(r"^function .* does not exist"), "42883"),
    (re.compile(r"^type .* does not exist"), "42704"),
    (re.compile(r"^permission denied"), "42501"),
    (re.compile(r"violates not-null constraint"), "23502"),
    (re.compile(r"violates foreign key constraint"), "23503"),
    (re.compile(r"violates unique constraint"), "23505"),
    (re.compile(r"violates check constraint"), "23514"),
    (re.compile(r"^invalid page in block"), "XX001"),
)
_VERBOSE: Final = re.compile(r"(?P<state>[0-9A-Z]{5}): (?P<said>.*)")  # log_error_verbosity
_NAMED: Final = re.compile(
    r'"([^"]+)"|\b(?:column|relation|table|view|sequence|schema|function|type|constraint)\s+([\w.]+)'
)

LONGEST_SAID: Final = 200
"""Characters of a service's message that are kept."""
# What libraries write: PDO, JDBC and pgx the SQLSTATE; psycopg, asyncpg and the pg gem a class named after it.
_STATE: Final = re.compile(r"\bSQLSTATE\W{1,3}([0-9A-Z]{5})\b")
_CLASS: Final = re.compile(r"\b(?:psycopg2?\.errors\.|asyncpg\.exceptions\.|PG::)(\w+)")
_VIOLATES: Final = r"(?:null value|new row|duplicate key|(?:insert|update) or (?:update|delete))\b.*? "
_BY_MESSAGE_INSIDE: Final = tuple(
    (re.compile(rf"\b{words.pattern[1:] if words.pattern[0] == '^' else _VIOLATES + words.pattern}"), state)
    for words, state in _BY_MESSAGE
)

# log_line_prefix (PostgreSQL 18 docs, 19.8.3): `%`, a width that pads, a letter.
_ESCAPE: Final = re.compile(r"%(-?\d*)([a-zA-Z%])")
_WRITTEN: Final = {
    "m": r"(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+) [^\s:]+",
    "t": r"(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) [^\s:]+",
    "n": r"(?P<epoch>\d+\.\d+)",
    "e": r"(?P<state>[0-9A-Z]{5})",
    "d": r"(?P<database>.*?)",
    "a": r"(?P<application>.*?)",
    "p": r"(?P<pid>\d+)",
    "h": r"(?P<host>[^\s(]*?)",
    "r": r"(?P<host>[^\s(]*?)(?:\(\d+\))?",
    "%": "%",
}
_SAME: Final = ({"m", "t"}, {"h", "r"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session that is connected. began: when it did."""

    address: str
    began: datetime


def errors_since(
    config: PostgresConfig, connection: Connection, since: datetime, *, logs: Iterable[ServiceLog] = ()
) -> tuple[SqlError, ...]:
    """Return the errors of the live database since then, most frequent first; empty where its log cannot be read.

    connection: to the same server, for how it writes its log, and who is connected. logs: of the services, for their
    addresses.
    """
    row = connection.execute(
        "SELECT current_setting('log_line_prefix'), "
        "(now() AT TIME ZONE current_setting('log_timezone')) - (now() AT TIME ZONE 'UTC')"
    ).fetchone()
    prefix, offset = row or ("", timedelta(0))
    rows = connection.execute(
        "SELECT pid::text, host(client_addr), backend_start FROM pg_stat_activity WHERE client_addr IS NOT NULL"
    )
    sessions = {pid: Session(address=address, began=began) for pid, address, began in rows}
    lines, zone = _lines(config, since), timezone(offset)
    return parse(lines, database=config.name, prefix=prefix, zone=zone, since=since, senders=Senders(logs, sessions))


def _lines(config: PostgresConfig, since: datetime) -> Iterable[str]:
    if config.container:
        begin = (since - timedelta(seconds=1)).astimezone(UTC).isoformat().replace("+00:00", "Z")
        words = ["docker", "logs", "--since", begin, "--tail", str(TAIL_LINES), config.container]
        try:
            ended = child.run(words, deadline_s=LOG_S, env=child.bare_environment(os.environ))
        except (FileNotFoundError, child.Overran):
            return []
        return f"{ended.out}\n{ended.err}".splitlines()
    if not config.log:
        return []
    try:
        with Path(config.log).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


class Senders:
    """Whose session an error was of. logs: of the services. sessions: those that are connected, by the pid."""

    def __init__(self, logs: Iterable[ServiceLog], sessions: Mapping[str, Session]) -> None:
        self._sessions = sessions
        self._at: dict[str, ServiceLog | None] = {}
        for log in logs:
            for address in log.addresses:  # one that two have tells neither
                self._at[address] = None if address in self._at else log

    def of(self, error: _Error) -> str:
        """Return the service and its release, empty where nobody can tell."""
        address, since = error.host, error.at
        if not address and (session := self._sessions.get(error.pid or "")) and session.began <= error.at:
            address, since = session.address, session.began
        log = self._at.get(address or "")
        return log.told if log and log.since and log.since <= since else ""


def parse(
    lines: Iterable[str], *, database: str, prefix: str, zone: timezone, since: datetime, senders: Senders
) -> tuple[SqlError, ...]:
    """Return what the lines say, counted by SQLSTATE, message and sender. prefix: log_line_prefix. zone: of the log's
    times.

    Lines of other databases are left out where the prefix names the database, and lastgood's own where it names the
    application or the log has the statement. Without a time in the prefix nothing is known to be recent.
    """
    counted: Counter[tuple[str, str, str]] = Counter()
    for error in _errors(lines, _line(prefix), zone):
        ours = (error.application or "").startswith(APPLICATION) or error.statement.startswith(_OUR_STATEMENTS)
        if error.at >= since and error.database in (None, database) and not ours:
            counted[error.state or _by_message(error.said), error.said, senders.of(error)] += 1
    return tuple(
        SqlError(sqlstate=state, names=_names(said), message=said, count=count, sent_by=by)
        for (state, said, by), count in counted.most_common(MOST_ERRORS)
        if state
    )


def errors_in(logs: Iterable[ServiceLog]) -> tuple[SqlError, ...]:
    """Return what the logs of services say of errors of the server, counted by service, release, SQLSTATE and message:
    the most frequent MOST_ERRORS. Whatever library a service has, it says the SQLSTATE, its name, or the server's own
    message, somewhere in a line."""
    counted: Counter[tuple[str, str, str]] = Counter()
    for log in logs:
        for line in log.lines:
            said = " ".join(line.replace('\\"', '"').split())  # a line may be JSON
            state, begin = _in_a_line(said)
            if state:
                counted[log.told, state, said[begin : begin + LONGEST_SAID]] += 1
    return tuple(
        SqlError(sqlstate=state, names=_names(said), message=said, count=count, said_by=by)
        for (by, state, said), count in counted.most_common(MOST_ERRORS)
    )


def _in_a_line(line: str) -> tuple[str, int]:
    """The SQLSTATE that a line of a service tells of, empty for none, and where the server's message begins."""
    said = next(((found.start(), state) for words, state in _BY_MESSAGE_INSIDE if (found := words.search(line))), None)
    begin, state = said or (0, "")
    if told := _STATE.search(line):
        return told[1], begin
    if told := _CLASS.search(line):
        named = getattr(psycopg.errors, told[1], None) or getattr(psycopg.errors, told[1].removesuffix("Error"), None)
        if isinstance(named, type) and issubclass(named, psycopg.Error):
            return named.sqlstate or "", begin
    return state, begin


@dataclass(slots=True, kw_only=True)
class _Error:
    """One error with the statement that follows it. None: the prefix does not tell."""

    at: datetime
    said: str
    state: str | None
    database: str | None
    application: str | None
    host: str | None
    pid: str | None
    statement: str = ""


def _line(prefix: str) -> re.Pattern[str]:
    """The regular expression for a line of a session; what follows `%q` only sessions write."""
    parts: list[str] = []
    end, known = 0, set[str]()
    for found in _ESCAPE.finditer(prefix):
        letter, padded = found[2], r"\s*" if found[1] else ""
        # a second time of the same thing, or what says nothing here: a session id, the command
        written = r".*?" if letter in known else _WRITTEN.get(letter, r".*?")
        known |= next((same for same in _SAME if letter in same), {letter})
        parts += [re.escape(prefix[end : found.start()]), "" if letter == "q" else f"{padded}{written}{padded}"]
        end = found.end()
    return re.compile("".join((*parts, re.escape(prefix[end:]), _MESSAGE)))


def _errors(lines: Iterable[str], form: re.Pattern[str], zone: timezone) -> Iterator[_Error]:
    """Each error; its DETAIL, HINT and STATEMENT come right behind it, as lines of the same beginning."""
    last: _Error | None = None
    for line in lines:
        found = form.fullmatch(line)
        if found is None or found["level"] in _CONTINUES:
            continue
        if found["level"] == "STATEMENT":
            if last:
                last.statement = found["said"]
            continue
        if last:
            yield last
        told, last = found.groupdict(), None
        if told["level"] in _ERRORS and (at := _time(told, zone)):
            verbose = _VERBOSE.fullmatch(found["said"])
            last = _Error(
                at=at,
                said=verbose["said"] if verbose else found["said"],
                state=told.get("state") or (verbose["state"] if verbose else None),
                database=told.get("database"),
                application=told.get("application"),
                host=told.get("host"),
                pid=told.get("pid"),
            )
    if last:
        yield last


def _time(told: dict[str, str | None], zone: timezone) -> datetime | None:
    try:
        if epoch := told.get("epoch"):
            return datetime.fromtimestamp(float(epoch), tz=UTC)
        at = told.get("at")
        return datetime.fromisoformat(at).replace(tzinfo=zone) if at else None
    except ValueError:
        return None


def _by_message(said: str) -> str:
    return next((state for words, state in _BY_MESSAGE if words.search(said)), "")


def _names(said: str) -> tuple[str, ...]:
    found = [quoted or bare for quoted, bare in _NAMED.findall(said)]
    return tuple(dict.fromkeys(part for name in found for part in name.split(".") if part))
