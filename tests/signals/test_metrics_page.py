"""Counting requests from a metrics page: restarts, replacements, replicas, and everything a page can get wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from lastgood.core.reading import NoData, Reading, SourceDown, Traffic, Window
from lastgood.signals import metrics_page
from lastgood.signals.metrics_page import MetricsPage
from tests.signals.loopback import Loopback, Reply, answer, drip_body, drip_headers, flood, loopback, nobody

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
OLD = BEGAN.timestamp() - 3600
LATER = BEGAN.timestamp() + 7


class Watching:
    """A source that is read every five seconds, from BEGAN on."""

    def __init__(self, *pages: str, limit_s: float | None = 0.5) -> None:
        self.source = MetricsPage("traffic", pages, ("/health", "/metrics"), limit_s)
        self.until = BEGAN

    def read(self) -> Reading:
        window = Window(since=self.until, until=self.until + timedelta(seconds=5))
        self.until = window.until
        return self.source.read(window)


def page(
    *rows: tuple[str, str, int], slow: int = 0, started: float | None = None, extra: str = "", edge: str = "0.5"
) -> bytes:
    """A page of (handler, status, count); every handler's requests are timed, `slow` of the first one's over 0.5 s."""
    lines = [f'http_requests_total{{handler="{h}",method="GET",status="{s}"}} {n}' for h, s, n in rows]
    by_handler = {h: sum(n for other, _, n in rows if other == h) for h, _, _ in rows}
    for index, (handler, count) in enumerate(by_handler.items()):
        quick = count - (slow if index == 0 else 0)
        lines += [
            f'http_request_duration_seconds_bucket{{handler="{handler}",le="{edge}"}} {quick}',
            f'http_request_duration_seconds_bucket{{handler="{handler}",le="+Inf"}} {count}',
            f'http_request_duration_seconds_count{{handler="{handler}"}} {count}',
        ]
    if started is not None:
        lines.append(f"process_start_time_seconds {started}")
    return answer("\n".join(["# TYPE http_requests_total counter", *lines, extra]) + "\n")


@pytest.fixture
def server() -> Iterator[Loopback]:
    with loopback() as served:
        yield served


def readings(server: Loopback, pages: Sequence[bytes], *, limit_s: float | None = 0.5) -> list[Reading]:
    watching = Watching(f"{server.url}/metrics", limit_s=limit_s)
    found: list[Reading] = []
    for shown in pages:
        server.reply = shown
        found.append(watching.read())
    return found


def test_the_first_reading_has_nothing_to_compare_with(server: Loopback) -> None:
    assert isinstance(readings(server, [page(("/a", "200", 10))])[0], NoData)


def test_only_what_grew_is_counted(server: Loopback) -> None:
    shown = [
        page(("/a", "200", 10), ("/a", "500", 1), slow=2),
        page(("/a", "200", 30), ("/a", "500", 5), slow=5),
        page(("/a", "200", 30), ("/a", "500", 5), slow=5),
    ]
    assert readings(server, shown)[1:] == [
        Traffic(requests=24, errors=4, slow=3),
        Traffic(requests=0, errors=0, slow=0),
    ]


@pytest.mark.parametrize("status,errors", [("500", 7), ("503", 7), ("5xx", 7), ("404", 0), ("429", 0), ("4xx", 0)])
def test_only_server_errors_are_errors(server: Loopback, status: str, errors: int) -> None:
    found = readings(server, [page(("/a", status, 1)), page(("/a", status, 8))])
    assert found[1] == Traffic(requests=7, errors=errors, slow=0)


def test_health_checks_and_the_page_itself_are_not_traffic(server: Loopback) -> None:
    shown = [page(("/a", "200", n), ("/health", "200", 50 * n), ("/metrics", "500", 50 * n)) for n in (1, 3)]
    assert readings(server, shown)[1] == Traffic(requests=2, errors=0, slow=0)


@pytest.mark.parametrize("label", ["handler", "path", "route", "endpoint"])
@pytest.mark.parametrize("status", ["status", "code", "status_code"])
def test_the_labels_of_common_instrumentations_are_known(server: Loopback, label: str, status: str) -> None:
    shown = [
        page(("/a", "500", n), ("/health", "200", 9 * n)).replace(b"handler=", f"{label}=".encode())
        .replace(b"status=", f"{status}=".encode()) for n in (1, 4)
    ]  # fmt: skip
    shown = [answer(text.partition(b"\r\n\r\n")[2]) for text in shown]
    assert readings(server, shown)[1] == Traffic(requests=3, errors=3, slow=0)


def test_an_error_of_a_kind_that_was_never_seen_before_is_counted(server: Loopback) -> None:
    found = readings(server, [page(("/a", "200", 10)), page(("/a", "200", 10), ("/a", "500", 3))])
    assert found[1] == Traffic(requests=3, errors=3, slow=0)


def test_a_restart_is_no_negative_rate(server: Loopback) -> None:
    found = readings(server, [page(("/a", "200", 1000), slow=9), page(("/a", "200", 4), ("/a", "500", 2), slow=1)])
    assert found[1] == Traffic(requests=6, errors=2, slow=1)


def test_a_new_process_behind_the_same_port_is_counted_from_its_start(server: Loopback) -> None:
    """It already answered more than the old one ever did, so no counter shrank."""
    found = readings(
        server, [page(("/a", "200", 10), started=OLD), page(("/a", "200", 50), ("/a", "500", 20), started=LATER)]
    )
    assert found[1] == Traffic(requests=70, errors=20, slow=0)


def test_two_processes_that_take_turns_behind_one_port_are_each_compared_with_themselves(server: Loopback) -> None:
    turns = [(1000, OLD), (5, LATER), (1003, OLD), (9, LATER), (1004, OLD)]
    found = readings(server, [page(("/a", "200", n), started=started) for n, started in turns])
    assert [r.requests for r in found[1:] if isinstance(r, Traffic)] == [5, 3, 4, 1]


def test_an_older_process_seen_for_the_first_time_brings_no_past(server: Loopback) -> None:
    shown = [page(("/a", "200", 10), started=LATER), page(("/a", "200", 5000), started=OLD)]
    shown.append(page(("/a", "200", 5003), started=OLD))
    found = readings(server, shown)
    assert [r.requests for r in found[1:] if isinstance(r, Traffic)] == [0, 3]


def test_a_page_of_the_client_library_tells_its_process_by_when_it_was_created(server: Loopback) -> None:
    """The library writes `_created` lines; two registries stand for two processes."""

    def library(requests: int, shift_s: float) -> bytes:
        registry = CollectorRegistry()
        counter = Counter("http_requests", "x", ["handler", "status"], registry=registry)
        timer = Histogram("http_request_duration_seconds", "x", ["handler"], buckets=(0.5,), registry=registry)
        counter.labels("/a", "200").inc(requests)
        for _ in range(requests):
            timer.labels("/a").observe(0.1)
        lines = generate_latest(registry).decode().splitlines()
        moved = [
            f"{line.rpartition(' ')[0]} {BEGAN.timestamp() + shift_s}" if "_created{" in line else line
            for line in lines
        ]
        return answer("\n".join(moved) + "\n")

    found = readings(server, [library(10, -3600), library(12, -3600), library(40, 8)])
    assert found[1:] == [Traffic(requests=2, errors=0, slow=0), Traffic(requests=40, errors=0, slow=0)]


def test_a_service_without_requests_yet_is_seen_and_its_first_request_is_counted(server: Loopback) -> None:
    found = readings(server, [page(), page(extra="# idle"), page(("/a", "500", 1))])
    assert found[1:] == [Traffic(requests=0, errors=0, slow=0), Traffic(requests=1, errors=1, slow=0)]


def test_a_window_without_length_begins_anew(server: Loopback) -> None:
    watching = Watching(f"{server.url}/metrics")
    server.reply = page(("/a", "200", 10))
    watching.read()
    server.reply = page(("/a", "200", 90))
    assert isinstance(watching.source.read(Window(since=watching.until, until=watching.until)), NoData)
    server.reply = page(("/a", "200", 95))
    assert watching.read() == Traffic(requests=5, errors=0, slow=0)


def test_replicas_are_added_up_and_a_silent_one_is_blindness(server: Loopback) -> None:
    with loopback() as other:
        watching = Watching(f"{server.url}/metrics", f"{other.url}/metrics")
        server.reply, other.reply = page(("/a", "200", 10)), page(("/a", "200", 100))
        watching.read()
        server.reply, other.reply = page(("/a", "200", 13)), page(("/a", "500", 101))
        assert watching.read() == Traffic(requests=104, errors=101, slow=0)
        server.reply, other.reply = page(("/a", "200", 20)), answer("", status=503)
        assert isinstance(watching.read(), SourceDown)
        server.reply, other.reply = page(("/a", "200", 21)), page(("/a", "500", 102))
        assert watching.read() == Traffic(requests=9, errors=1, slow=0)


def test_a_limit_between_the_edges_is_said_with_the_edges(server: Loopback) -> None:
    found = readings(server, [page(("/a", "200", 1))], limit_s=0.4)[0]
    assert isinstance(found, SourceDown)
    assert "0.4 s is not an edge" in found.reason
    assert "0.5, inf" in found.reason


def test_without_a_latency_limit_no_histogram_is_needed(server: Loopback) -> None:
    shown = [answer(f'http_requests_total{{handler="/a",status="200"}} {n}\n') for n in (1, 3)]
    assert readings(server, shown, limit_s=None)[1] == Traffic(requests=2, errors=0, slow=0)
    assert isinstance(readings(server, shown)[1], SourceDown)


@pytest.mark.parametrize(
    "body,why",
    [
        ('http_requests_total{handler="/a"} 1\n', "no label status"),
        ("up 1\n", "has no http_requests_total"),
        ("", "has no http_requests_total"),
        ("<html>not found</html>", "text format"),
        ('http_requests_total{handler="/a",status="200"} NaN\n', "not a count"),
        ('http_requests_total{handler="/a",status="200"} +Inf\n', "not a count"),
        ('http_requests_total{handler="/a",status="200"} -1\n', "not a count"),
        ('http_requests_total{handler="/a",status="200"} 1e400\n', "not a count"),
        ('http_requests_total{handler="/a",status="200"} 0.5\n', "not a count"),
        ('http_requests_total{status="200"} 1\nhttp_requests_total{status="200"} 2\n', "twice"),
        ('http_requests_total{status="200" 1\n', "text format"),
        ("http_requests_total{status=\n", "text format"),
        ("up 1\n" * 20_001, "more than 20,000 samples"),
        ('http_requests_total{status="' + "x" * 20_000 + '"} 1\n', "more than 16,384"),
    ],
)  # fmt: skip
def test_a_page_that_cannot_be_trusted_is_a_source_that_is_down(server: Loopback, body: str, why: str) -> None:
    found = readings(server, [answer(body)])[0]
    assert isinstance(found, SourceDown)
    assert why in found.reason


@pytest.mark.parametrize("status", [301, 302, 401, 404, 500])
def test_any_other_status_is_a_source_that_is_down_and_no_redirect_is_followed(server: Loopback, status: int) -> None:
    found = readings(server, [answer("", status=status, headers=f"location: {server.url}/elsewhere\r\n")])[0]
    assert isinstance(found, SourceDown)
    assert str(status) in found.reason
    assert len(server.requests) == 1


@pytest.mark.parametrize("reply", [drip_headers, drip_body], ids=["headers", "body"])
def test_a_page_that_drips_ends_with_the_deadline(
    server: Loopback, monkeypatch: pytest.MonkeyPatch, reply: Reply
) -> None:
    monkeypatch.setattr(metrics_page, "DEADLINE_S", 0.3)
    server.reply = reply
    found = Watching(f"{server.url}/metrics").read()
    assert found == SourceDown(reason=f"{server.url}/metrics: no complete answer within 0.3 s")


def test_a_page_without_end_is_not_kept(server: Loopback) -> None:
    server.reply = flood
    found = Watching(f"{server.url}/metrics").read()
    assert isinstance(found, SourceDown)
    assert "larger than" in found.reason


def test_nobody_there_is_a_source_that_is_down() -> None:
    with nobody() as url:
        assert isinstance(Watching(f"{url}/metrics").read(), SourceDown)


def test_a_proxy_of_the_environment_is_not_used(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    with nobody() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy)
        assert isinstance(readings(server, [page(("/a", "200", 1))])[0], NoData)


def test_a_page_that_is_a_copy_of_the_past_is_no_data(server: Loopback) -> None:
    copy = page(("/a", "200", 9), extra="process_cpu_seconds_total 1.5")
    found = readings(server, [copy] * 5)
    assert [type(reading) for reading in found] == [NoData, Traffic, NoData, NoData, NoData]


def test_a_quiet_service_is_not_taken_for_a_copy(server: Loopback) -> None:
    found = readings(server, [page(("/a", "200", 9))] * 6)
    assert found[1:] == [Traffic(requests=0, errors=0, slow=0)] * 5


LINES = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.builds("http_requests_total{{status={!r}}} {}".format, st.text(max_size=5), st.floats()),
        st.builds('http_requests_total{{status="{}"}} {}'.format, st.text(max_size=5), st.text(max_size=8)),
        st.builds('http_request_duration_seconds_bucket{{le="{}"}} {}'.format, st.text(max_size=5), st.integers()),
        st.builds("http_requests_total{}".format, st.text(alphabet='{}",=\\ x1#', max_size=12)),
    ),
    max_size=6,
)


@given(lines=LINES)
def test_no_text_makes_the_counting_raise(lines: list[str]) -> None:
    text = "\n".join(lines)
    with suppress(metrics_page._Unusable):
        for series, value in metrics_page._samples(text):
            assert metrics_page._count(series, value) == value
