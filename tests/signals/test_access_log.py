"""Counting requests from an access log: rotation, formats, and everything that a line can get wrong."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lastgood.core.config import LogFormat
from lastgood.core.reading import NoData, Reading, SourceDown, Traffic, Window
from lastgood.signals import access_log
from lastgood.signals.access_log import AccessLog
from tests.contract.rigs.sources.access_log import LINES

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
LINE = LINES[LogFormat.COMBINED_TIMED]
FAILED = LINE.replace(" 200 ", " 502 ")


class Proxy:
    """A proxy that writes its log, and a source that is read every five seconds, from BEGAN on."""

    def __init__(
        self, folder: Path, log_format: LogFormat = LogFormat.COMBINED_TIMED, limit_s: float | None = 0.5
    ) -> None:
        self.log = folder / "access.log"
        self.rotated = folder / "access.log.1"
        self.source = AccessLog("traffic", self.log, log_format, ("/health", "/metrics"), limit_s)
        self.until = BEGAN
        self.log.touch()
        self.written = 0

    def write(self, *lines: str, to: Path | None = None, end: str = "\n") -> None:
        """No two lines are equal: one client each."""
        self.written += 1
        lines = tuple(line.replace("10.0.0.1", f"10.0.{self.written}.{n}") for n, line in enumerate(lines))
        with (to or self.log).open("a") as file:
            file.write("\n".join(lines) + end)

    def read(self, seconds: int = 5) -> Reading:
        window = Window(since=self.until, until=self.until + timedelta(seconds=seconds))
        self.until = window.until
        return self.source.read(window)

    def rename(self) -> None:
        if self.rotated.exists():
            self.rotated.rename(f"{self.log}.2")
        self.log.rename(self.rotated)
        self.log.touch()

    def copy(self) -> None:
        """As logrotate does for `copytruncate`, but that the copy before is overwritten."""
        shutil.copy(self.log, self.rotated)

    def empty(self) -> None:
        os.truncate(self.log, 0)


@pytest.fixture
def proxy(tmp_path: Path) -> Proxy:
    return Proxy(tmp_path)


@pytest.fixture(params=[0, 3])
def begun(proxy: Proxy, request: pytest.FixtureRequest) -> Proxy:
    """One whose log was read for the first time, when it was empty and when it was not."""
    if request.param:
        proxy.write(*[FAILED] * request.param)
    assert isinstance(proxy.read(), NoData)
    return proxy


def traffic(requests: int, errors: int = 0, slow: int = 0) -> Traffic:
    return Traffic(requests=requests, errors=errors, slow=slow)


def test_only_what_was_added_is_counted_and_a_quiet_log_is_no_traffic(begun: Proxy) -> None:
    begun.write(LINE, FAILED, LINE)
    assert [begun.read(), begun.read()] == [traffic(3, errors=1), traffic(0)]


def test_a_line_is_counted_when_it_is_whole(begun: Proxy) -> None:
    begun.write(LINE, FAILED[:40], end="")
    assert begun.read() == traffic(1)
    begun.write(FAILED[40:], LINE)
    assert begun.read() == traffic(2, errors=1)


def test_a_window_without_length_leaves_out_what_was_before(begun: Proxy) -> None:
    begun.write(FAILED)
    assert isinstance(begun.read(seconds=0), NoData)
    begun.write(LINE)
    assert begun.read() == traffic(1)


def test_a_log_that_is_renamed_is_read_to_its_end_and_the_new_one_from_its_beginning(begun: Proxy) -> None:
    for _ in range(3):
        begun.write(FAILED, FAILED)
        begun.rename()
        begun.write(LINE)
        assert begun.read() == traffic(3, errors=2)
        assert begun.read() == traffic(0)


def test_what_the_proxy_writes_to_the_renamed_log_until_it_opens_the_new_one_is_counted(begun: Proxy) -> None:
    begun.rename()
    begun.write(LINE, to=begun.rotated)
    assert begun.read() == traffic(1)
    begun.write(FAILED, to=begun.rotated)
    begun.write(LINE)
    assert begun.read() == traffic(2, errors=1)
    assert begun.read() == traffic(0)


def test_a_log_that_is_renamed_and_not_begun_anew_is_down_and_nothing_is_lost(begun: Proxy) -> None:
    begun.write(FAILED)
    begun.log.rename(begun.rotated)
    assert begun.read() == SourceDown(reason=f"{begun.log}: no such file or directory")
    begun.write(LINE)
    assert begun.read() == traffic(2, errors=1)


def test_a_rotation_while_it_is_read_is_no_other_file(begun: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is open when it is renamed, so that both names are the same file."""
    begun.write(FAILED)
    opened = access_log._opened_if_there

    def rotate_first(path: Path) -> object:
        monkeypatch.undo()
        begun.log.rename(begun.rotated)
        begun.write(LINE, to=begun.rotated)
        return opened(path)

    monkeypatch.setattr(access_log, "_opened_if_there", rotate_first)
    assert begun.read() == traffic(1, errors=1)
    begun.write(LINE)
    assert begun.read() == traffic(2)


def test_a_log_that_is_copied_and_emptied_is_counted_once(begun: Proxy) -> None:
    for _ in range(3):
        begun.write(FAILED, FAILED)
        begun.copy()
        begun.empty()
        begun.write(LINE)
        assert begun.read() == traffic(3, errors=2)
        assert begun.read() == traffic(0)


def test_a_copy_is_not_counted_before_the_log_is_emptied(begun: Proxy) -> None:
    begun.write(FAILED, FAILED)
    begun.copy()
    assert begun.read() == traffic(2, errors=2)
    begun.empty()
    begun.write(LINE)
    assert begun.read() == traffic(1)


def test_a_log_that_is_emptied_begins_at_0_though_it_grew_longer_than_it_was(begun: Proxy) -> None:
    begun.write(FAILED)
    assert begun.read() == traffic(1, errors=1)
    begun.empty()
    begun.write(*[LINE] * 9)
    assert begun.read() == traffic(9)


def test_lines_that_are_missing_are_not_passed_over_in_silence(begun: Proxy) -> None:
    for _ in range(2):
        begun.write(FAILED)
        begun.rename()
        begun.write(LINE)
        begun.rename()
        begun.write(LINE)
        assert begun.read() == SourceDown(
            reason=f"{begun.log}: began anew, and access.log.1 does not go on where the reading ended"
        )
        begun.write(FAILED)
        assert begun.read() == traffic(1, errors=1)


def test_a_second_copy_in_one_interval_is_not_taken_for_the_first(proxy: Proxy) -> None:
    proxy.write(LINE)
    proxy.read()
    for _ in range(2):
        proxy.write(FAILED)
        proxy.copy()
        proxy.empty()
    assert isinstance(proxy.read(), SourceDown)
    proxy.write(LINE)
    assert proxy.read() == traffic(1)


def test_lines_that_cannot_be_read_are_counted_and_the_first_is_shown(begun: Proxy) -> None:
    begun.write(LINE, "GET /a?token=secret\t500", FAILED, "", LINE.replace(" 0.010", " 0.010 500"))
    assert begun.read() == SourceDown(reason=f"{begun.log}: 3 of 5 lines are not combined-timed, the first: GET /a")
    begun.write(LINE)
    assert begun.read() == traffic(1)


def test_a_line_without_end_does_not_stop_it_for_good(begun: Proxy) -> None:
    for _ in range(2):
        begun.write("x" * 20_000, end="")
        assert isinstance(begun.read(), SourceDown)
    begun.write("", LINE)
    assert isinstance(begun.read(), SourceDown)
    begun.write(FAILED)
    assert begun.read() == traffic(1, errors=1)


def test_so_many_bytes_and_no_more(begun: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "MAX_BYTES", 1 << 20)
    begun.write(*[LINE] * 12_000)
    assert begun.read() == SourceDown(reason=f"{begun.log}: grew by more than 1 MiB since it was read")
    begun.write(LINE)
    assert begun.read() == traffic(1)


def test_so_many_lines_and_no_more(begun: Proxy) -> None:
    begun.write("\n" * access_log.MAX_LINES)
    assert begun.read() == SourceDown(reason=f"{begun.log}: grew by more than 200,000 lines since it was read")
    begun.write(LINE)
    assert begun.read() == traffic(1)


def test_a_pipe_does_not_hold_it_up(proxy: Proxy) -> None:
    proxy.log.unlink()
    os.mkfifo(proxy.log)
    assert proxy.read() == SourceDown(reason=f"{proxy.log}: is not a regular file")


@pytest.mark.parametrize("log_format", LogFormat)
@pytest.mark.parametrize("status,errors", [("500", 1), ("599", 1), ("499", 0), ("404", 0), ("101", 0)])
def test_only_server_errors_are_errors(tmp_path: Path, log_format: LogFormat, status: str, errors: int) -> None:
    proxy = Proxy(tmp_path, log_format, None)
    proxy.read()
    proxy.write(LINES[log_format].replace(" 200 ", f" {status} "))
    assert proxy.read() == traffic(1, errors)


@pytest.mark.parametrize(
    "log_format,was,took,slow",
    [
        (LogFormat.COMBINED_TIMED, " 0.010", " 0.500", 0),
        (LogFormat.COMBINED_TIMED, " 0.010", " 0.501", 1),
        (LogFormat.COMBINED_TIMED, " 0.010", " 61.000", 1),
        (LogFormat.HAPROXY, "/10 ", "/500 ", 0),
        (LogFormat.HAPROXY, "/10 ", "/501 ", 1),
        (LogFormat.HAPROXY, "0/0/1/9/10 200", "10/-1/-1/-1/3010 -1", 1),
    ],
)
def test_slow_is_over_the_limit(tmp_path: Path, log_format: LogFormat, was: str, took: str, slow: int) -> None:
    proxy = Proxy(tmp_path, log_format)
    proxy.read()
    proxy.write(LINES[log_format].replace(was, took))
    assert proxy.read() == traffic(1, slow=slow)


@pytest.mark.parametrize("log_format", LogFormat)
@pytest.mark.parametrize(
    "request_line,counted",
    [
        ("GET /health HTTP/1.1", 0),
        ("GET /health?deep=1 HTTP/1.1", 0),
        ("GET https://hypercode.example/health HTTP/2.0", 0),
        ("GET /healthy HTTP/1.1", 1),
        ("GET /a?next=/health HTTP/1.1", 1),
        ("<BADREQ>", 1),
        ("-", 1),
        ("", 1),
        (r"\x16\x03\x01\x02 \x22 500 1", 1),
    ],
)
def test_health_checks_are_not_traffic_and_what_is_no_http_is(
    tmp_path: Path, log_format: LogFormat, request_line: str, counted: int
) -> None:
    proxy = Proxy(tmp_path, log_format, None)
    proxy.read()
    proxy.write(LINES[log_format].replace("GET /a HTTP/1.1", request_line))
    assert proxy.read() == traffic(counted)


@pytest.mark.parametrize(
    "was,said",
    [
        (" - - ", " - a b] x "),
        ('"-"', r'"\" 500 1 \""'),
        ('"curl/8"', r'"\x22 500 1 - 9.000"'),
        (" 12 ", " - "),
    ],
)
def test_what_a_client_says_does_not_change_what_is_counted(begun: Proxy, was: str, said: str) -> None:
    begun.write(LINE.replace(was, said, 1))
    assert begun.read() == traffic(1)


@pytest.mark.parametrize(
    "was,said",
    [
        ("web core/c1", "web~ web/<NOSRV>"),
        (' "GET', ' {1/2/3/4/5 500 1|} {} "GET'),
        (' HTTP/1.1"', "xxxxxxxx"),
        ("Jan  1 00:00:00 host haproxy[7]: ", "<134>Jan  1 00:00:00 haproxy[7]: "),
    ],
)
def test_what_haproxy_may_write_is_read(tmp_path: Path, was: str, said: str) -> None:
    proxy = Proxy(tmp_path, LogFormat.HAPROXY)
    proxy.read()
    proxy.write(LINES[LogFormat.HAPROXY].replace(was, said))
    assert proxy.read() == traffic(1)
