"""SQL errors out of the server's own log, with their SQLSTATE and the names that they mention.

A line looks as `log_line_prefix` says; the SQLSTATE is there with `%e`, and is else told by the English message
(messages of PostgreSQL 15 to 18).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from lastgood.core.config import PostgresConfig
from lastgood.core.migration import SqlError
from lastgood.targets import child
from lastgood.targets.postgres.connect import APPLICATION, Connection

LOG_S: Final = 10.0
TAIL_BYTES: Final = 16 << 20
MOST_ERRORS: Final = 50
_LINE: Final = re.compile(
    r"^(?P<head>(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?) .*?)\b(?P<level>ERROR|FATAL|PANIC):\s+(?P<said>.*)$"
)
_SQLSTATE: Final = re.compile(r"(?<![\w-])([0-9A-Z]{5})(?![\w-])")
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
_NAMED: Final = re.compile(r'"([^"]+)"|\b(?:column|relation|function|type|constraint)\s+([\w.]+)')


def errors_since(config: PostgresConfig, connection: Connection, since: datetime) -> tuple[SqlError, ...]:
    """Return the errors of the live database since then, most frequent first; empty where its log cannot be read.

    connection: to the same server, for how it writes its log.
    """
    prefix, zone = _setting(connection, "log_line_prefix"), _setting(connection, "log_timezone")
    return parse(_lines(config, since), database=config.name, prefix=prefix, zone=zone, since=since)


def _setting(connection: Connection, name: str) -> str:
    row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
    return str(row[0]) if row else ""


def _lines(config: PostgresConfig, since: datetime) -> Iterable[str]:
    if config.container:
        begin = (since - timedelta(seconds=1)).astimezone(UTC).isoformat().replace("+00:00", "Z")
        words = ["docker", "logs", "--since", begin, config.container]
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


def parse(lines: Iterable[str], *, database: str, prefix: str, zone: str, since: datetime) -> tuple[SqlError, ...]:
    """Return what the lines say, counted by SQLSTATE and message. zone: of the times in the log.

    Lines of other databases are left out where `prefix` names the database, and lastgood's own where it names the
    application.
    """
    try:
        tz = ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError):
        tz = ZoneInfo("UTC")
    counted: Counter[tuple[str, str]] = Counter()
    for line in lines:
        found = _LINE.match(line)
        if found is None or datetime.fromisoformat(found["at"]).replace(tzinfo=tz) < since:
            continue
        words = re.split(r"[^\w-]+", found["head"])
        if ("%d" in prefix and database not in words) or ("%a" in prefix and APPLICATION in words):
            continue
        said = found["said"]
        counted[_sqlstate(found["head"] if "%e" in prefix else "", said), said] += 1
    return tuple(
        SqlError(sqlstate=state, names=_names(said), message=said, count=count)
        for (state, said), count in counted.most_common(MOST_ERRORS)
        if state
    )


def _sqlstate(head: str, said: str) -> str:
    in_head = [
        code for code in _SQLSTATE.findall(head) if not code.isdigit() or code[:2] in ("22", "23", "40", "42", "53")
    ]
    return in_head[0] if in_head else next((state for words, state in _BY_MESSAGE if words.search(said)), "")


def _names(said: str) -> tuple[str, ...]:
    found = [quoted or bare for quoted, bare in _NAMED.findall(said)]
    return tuple(dict.fromkeys(part for name in found for part in name.split(".") if part))
