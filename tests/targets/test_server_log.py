"""What the database's own log says of SQL errors, however its lines begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from lastgood.core.facts import ServiceLog
from lastgood.core.migration import SqlError
from lastgood.targets.postgres.server_log import Senders, Session, errors_in, parse

SINCE = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
BERLIN = timezone(timedelta(hours=1))
SAID = 'column "name" does not exist at character 8'


def told(*lines: str, prefix: str, zone: timezone = UTC) -> list[tuple[str, tuple[str, ...], int]]:
    errors: tuple[SqlError, ...] = parse(
        lines, database="shop", prefix=prefix, zone=zone, since=SINCE, senders=Senders((), {})
    )
    return [(e.sqlstate, e.names, e.count) for e in errors]


@pytest.mark.parametrize(
    "prefix,head",
    [
        pytest.param("%m [%p] ", "2026-01-01 12:00:01.123 UTC [22274] ", id="stock"),
        pytest.param("%m [%p] %e %a %d ", "2026-01-01 12:00:01.123 UTC [23505] 42703 shop-web shop ", id="sqlstate"),
        pytest.param("%t:%r:%u@%d:[%p]: ", "2026-01-01 12:00:01 UTC:10.0.0.7(40001):web@shop:[42]: ", id="rds"),
        pytest.param("%n %-8p %l %e ", "1767268801.123 22274    42501 42703 ", id="epoch-and-width"),
        pytest.param("%m %q%e %d ", "2026-01-01 12:00:01.123 UTC 42703 shop ", id="sessions-only"),
        pytest.param("%t %m %e%d", "2026-01-01 12:00:01 UTC 2026-01-01 12:00:01.123 UTC 42703shop", id="two-times"),
        pytest.param("%m 100%% [%p] ", "2026-01-01 12:00:01.123 UTC 100% [53100] ", id="percent"),
    ],
)
def test_the_sqlstate_is_read_where_the_prefix_has_it_and_a_pid_is_never_one(prefix: str, head: str) -> None:
    assert told(f"{head}ERROR:  {SAID}", prefix=prefix) == [("42703", ("name",), 1)]


def test_a_time_is_read_in_the_zone_of_the_log() -> None:
    lines = (f"2026-01-01 13:00:{second} CET [1] ERROR:  {SAID}" for second in ("01", "02"))
    assert told(*lines, prefix="%t [%p] ", zone=BERLIN) == [("42703", ("name",), 2)]
    assert told(f"2026-01-01 12:59:59 CET [1] ERROR:  {SAID}", prefix="%t [%p] ", zone=BERLIN) == []


def test_other_databases_and_lastgood_itself_are_left_out_where_the_prefix_names_them() -> None:
    head = "2026-01-01 12:00:01.123 UTC [1] 42703"
    lines = [f"{head} {who} ERROR:  {SAID}" for who in ("web@shop-2", "lastgood@shop", "web@other", "web@shop")]
    assert told(*lines, prefix="%m [%p] %e %a@%d ") == [("42703", ("name",), 1)]


def test_an_error_of_a_statement_of_lastgood_is_left_out_whatever_the_prefix() -> None:
    """A stock server names no application: its log would hold what lastgood tried itself against the migration."""
    head = "2026-01-01 12:00:01.123 UTC [7] "
    lines = (
        f"{head}ERROR:  {SAID}",
        f"{head}STATEMENT:  /* lastgood */ SELECT name",
        "\tFROM customers",
        f"{head}ERROR:  {SAID}",
        f"{head}HINT:  perhaps",
        f'{head}STATEMENT:  DECLARE "lastgood_invariant" NO SCROLL CURSOR FOR SELECT name FROM customers',
        f"{head}ERROR:  {SAID}",
        f"{head}STATEMENT:  SELECT name FROM customers -- lastgood",
        f"{head}ERROR:  {SAID}",
    )
    assert told(*lines, prefix="%m [%p] ") == [("42703", ("name",), 2)]


def test_a_verbose_log_tells_the_sqlstate_in_the_message() -> None:
    line = f"2026-01-01 12:00:01 UTC [1] ERROR:  42703: {SAID}"
    assert told(line, prefix="%t [%p] ") == [("42703", ("name",), 1)]


def test_lines_that_cannot_be_read_are_no_errors() -> None:
    lines = (
        "",
        "garbage",
        "2026-13-77 99:00:00 UTC [1] ERROR:  x",
        f"ERROR:  {SAID}",
        "2026-01-01 12:00:01 UTC [1] LOG:  x",
    )
    assert told(*lines, prefix="%t [%p] ") == []


@pytest.mark.parametrize(
    "line,state",
    [
        ('psycopg.errors.UndefinedColumn: column "name" does not exist', "42703"),
        ('sqlalchemy.exc.ProgrammingError: (psycopg2.errors.UndefinedTable) relation "name" does not exist', "42P01"),
        ('asyncpg.exceptions.UndefinedColumnError: column "name" does not exist', "42703"),
        ('PG::UndefinedColumn: ERROR:  column "name" does not exist', "42703"),
        ('SQLSTATE[42703]: Undefined column: 7 ERROR:  column "name" does not exist', "42703"),
        ('ERROR: column "name" does not exist (SQLSTATE 42703)', "42703"),
        ('error: column "name" of relation "customers" does not exist', "42703"),
        (r'{"level":"error","message":"column \"name\" does not exist"}', "42703"),
        ('ERROR: null value in column "name" violates not-null constraint', "23502"),
    ],
)
def test_a_service_names_the_sqlstate_in_the_manner_of_its_library(line: str, state: str) -> None:
    (error,) = errors_in([ServiceLog(service="core", release="v2", lines=("started", line, line))])
    assert (error.sqlstate, error.count, error.said_by) == (state, 2, "core of v2")
    assert "name" in error.names


@pytest.mark.parametrize(
    "line",
    [
        "GET /name 500",
        "psycopg.errors.Nothing: x",
        "the column was added",
        "KeyError: 'name'",
        "asyncpg.exceptions.x",
    ],
)
def test_other_lines_of_a_service_tell_of_no_sql_error(line: str) -> None:
    assert errors_in([ServiceLog(service="core", release="v2", lines=(line,))]) == ()


def test_the_same_error_of_two_releases_is_told_apart() -> None:
    line = 'relation "orders" does not exist'
    logs = [ServiceLog(service="core", release=release, lines=(line,)) for release in ("v1", "v2", "")]
    assert [error.said_by for error in errors_in(logs)] == ["core of v1", "core of v2", "core"]


CORE = ServiceLog(
    service="core", release="v2", lines=(), addresses=frozenset({"172.18.0.5", "172.19.0.5"}), since=SINCE
)
WEB = replace(CORE, service="web", release="v1", addresses=frozenset({"172.18.0.6"}))
LATE = replace(CORE, since=SINCE + timedelta(seconds=2))


def sent_by(line: str, prefix: str, *logs: ServiceLog, sessions: Mapping[str, Session] | None = None) -> list[str]:
    errors = parse(
        [f"{line}ERROR:  {SAID}"],
        database="shop",
        prefix=prefix,
        zone=UTC,
        since=SINCE,
        senders=Senders(logs, sessions or {}),
    )
    return [error.sent_by for error in errors]


@pytest.mark.parametrize(
    "line,prefix,logs,by",
    [
        pytest.param("172.18.0.6 ", "%m %h ", (CORE, WEB), "web of v1", id="host"),
        pytest.param("172.19.0.5(40001) [22] ", "%m %r [%p] ", (CORE, WEB), "core of v2", id="host-and-port"),
        pytest.param("172.18.0.6 172.18.0.6(40001) ", "%m %h %r ", (WEB,), "web of v1", id="both"),
        pytest.param("172.18.0.6 ", "%m %h ", (replace(WEB, release=""),), "web", id="of-no-release"),
        pytest.param("172.18.0.9 ", "%m %h ", (CORE, WEB), "", id="nobody-has-it"),
        pytest.param("[local] ", "%m %h ", (CORE, WEB), "", id="a-socket"),
        pytest.param("172.18.0.5 ", "%m %h ", (LATE,), "", id="somebody-had-it-before"),
        pytest.param("172.18.0.5 ", "%m %h ", (CORE, replace(WEB, addresses=CORE.addresses)), "", id="two-have-it"),
        pytest.param("172.18.0.5 ", "%m %h ", (replace(CORE, since=None),), "", id="nobody-knows-since-when"),
        pytest.param("[22] ", "%m [%p] ", (CORE, WEB), "", id="no-session-is-connected"),
    ],
)
def test_a_session_is_of_the_container_that_has_its_address(
    line: str, prefix: str, logs: tuple[ServiceLog, ...], by: str
) -> None:
    assert sent_by(f"2026-01-01 12:00:01.123 UTC {line}", prefix, *logs) == [by]


@pytest.mark.parametrize(
    "began_s,by",
    [
        pytest.param(0.5, "core of v2", id="it-is-connected-still"),
        pytest.param(1.5, "", id="another-one-has-the-number-now"),
        pytest.param(-1.0, "", id="it-is-older-than-the-container"),
    ],
)
def test_where_the_log_names_no_address_the_session_that_is_connected_does(began_s: float, by: str) -> None:
    sessions = {"22": Session(address="172.18.0.5", began=SINCE + timedelta(seconds=began_s))}
    assert sent_by("2026-01-01 12:00:01.123 UTC [22] ", "%m [%p] ", CORE, sessions=sessions) == [by]


def test_the_same_error_of_two_senders_is_told_apart() -> None:
    lines = [f"2026-01-01 12:00:01.123 UTC 172.18.0.{n} ERROR:  {SAID}" for n in (5, 6, 6)]
    errors = parse(lines, database="shop", prefix="%m %h ", zone=UTC, since=SINCE, senders=Senders((CORE, WEB), {}))
    assert [(error.sent_by, error.count) for error in errors] == [("web of v1", 2), ("core of v2", 1)]
