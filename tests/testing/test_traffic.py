"""The traffic is run as the process that it is, against a HyperCode that misbehaves on purpose."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lastgood.testing.traffic import Kind, Lost, Request, acknowledged_missions, read_ledger, summary

from .hypercode_double import RELEASE, HyperCodeDouble

WAIT_S = 30
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def start(ledger: Path) -> Iterator[Start]:
    running: list[subprocess.Popen[bytes]] = []

    def begin(url: str, *words: str) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "lastgood.testing.traffic",
            "--url",
            url,
            "--ledger",
            str(ledger),
            "--seed",
            "7",
        ]
        running.append(subprocess.Popen([*command, *words]))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.wait(timeout=WAIT_S)


def test_each_mission_that_was_promised_stands_in_the_ledger(start: Start, ledger: Path) -> None:
    with HyperCodeDouble() as hypercode:
        assert start(hypercode.url, "--rate", "100", "--duration", "1").wait(timeout=WAIT_S) == 0
    requests = read_ledger(ledger)
    assert sorted(request.n for request in requests) == list(range(100))
    assert {request.kind for request in requests} == set(Kind)
    assert {request.release for request in requests} == {RELEASE}
    assert {request.releases for request in requests} == {(RELEASE, "v2.0.6")}
    assert summary(requests, None, None, None).crossed == 100
    assert sorted(acknowledged_missions(requests)) == sorted(hypercode.missions)


def test_a_mission_whose_201_broke_off_was_not_promised(start: Start, ledger: Path) -> None:
    with HyperCodeDouble(cut_next_mission=True) as hypercode:
        assert start(hypercode.url, "--rate", "50", "--duration", "1").wait(timeout=WAIT_S) == 0
    requests = read_ledger(ledger)
    assert [request.status for request in requests if request.failed] == [Lost.RESET]
    assert set(hypercode.missions) - set(acknowledged_missions(requests)) == {"1"}


def test_requests_start_although_none_is_answered(start: Start, ledger: Path) -> None:
    with HyperCodeDouble(hold_everything=True) as hypercode:
        process = start(hypercode.url, "--rate", "40", "--duration", "1")
        for _ in range(30):
            assert hypercode.asked.acquire(timeout=WAIT_S)
        assert all(request.kind is Kind.LOGIN for request in read_ledger(ledger))
        assert process.wait(timeout=WAIT_S) == 0
    lost = [request for request in read_ledger(ledger) if request.kind is not Kind.LOGIN]
    assert {request.status for request in lost} == {Lost.TIMEOUT}


def test_a_refused_token_is_followed_by_a_new_login(start: Start, ledger: Path) -> None:
    with HyperCodeDouble() as hypercode:
        process = start(hypercode.url, "--rate", "50", "--duration", "2")
        for _ in range(10):
            assert hypercode.asked.acquire(timeout=WAIT_S)
        hypercode.token = "t2"
        assert process.wait(timeout=WAIT_S) == 0
    statuses = [request.status for request in read_ledger(ledger)]
    assert 401 in statuses
    assert 401 not in statuses[-20:]


def test_it_waits_for_a_stack_that_is_still_starting(start: Start, ledger: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as starting:
        port = starting.getsockname()[1]
        process = start(f"http://127.0.0.1:{port}", "--rate", "20", "--duration", "0.5")
        starting.settimeout(WAIT_S)
        starting.accept()[0].close()
    with HyperCodeDouble(port=port):
        assert process.wait(timeout=WAIT_S) == 0
    assert not any(request.failed for request in read_ledger(ledger))


def test_a_stack_that_goes_away_is_counted_as_refused(start: Start, ledger: Path) -> None:
    with HyperCodeDouble() as hypercode:
        process = start(hypercode.url, "--rate", "50", "--duration", "2")
        assert hypercode.asked.acquire(timeout=WAIT_S)
    assert process.wait(timeout=WAIT_S) == 0
    assert Lost.REFUSED in {request.status for request in read_ledger(ledger)}


def test_sigterm_stops_the_sending_and_counts_what_was_in_flight(start: Start, ledger: Path) -> None:
    with HyperCodeDouble(hold_everything=True) as hypercode:
        process = start(hypercode.url, "--rate", "50")
        for _ in range(5):
            assert hypercode.asked.acquire(timeout=WAIT_S)
        process.send_signal(signal.SIGTERM)
        hypercode.hold.set()
        assert process.wait(timeout=WAIT_S) == 0
    numbers = sorted(request.n for request in read_ledger(ledger))
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 5


AT = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def request(second: float, *, status: int | Lost = 500, took_ms: float = 100, release: str | None = None) -> Request:
    sent_at = AT + timedelta(seconds=second)
    return Request(n=0, kind=Kind.CHAT, sent_at=sent_at, elapsed_ms=took_ms, status=status, release=release)


def test_an_unfinished_last_line_is_left_out(ledger: Path) -> None:
    whole = replace(request(0, release="v2.0.6"), releases=("v2.0.3", "v2.0.6"))
    ledger.write_text(whole.to_line() + "\n" + whole.to_line()[:20])
    assert read_ledger(ledger) == (whole,)


def test_a_broken_line_is_named_with_its_number(ledger: Path) -> None:
    ledger.write_text(request(0).to_line() + '\n{"n": 1}\n')
    with pytest.raises(ValueError, match=r"ledger\.jsonl:2: "):
        read_ledger(ledger)


def test_failures_are_counted_by_when_they_happened() -> None:
    requests = [
        request(0, status=200),
        request(1, status=404),
        request(2),
        request(3, status=Lost.TIMEOUT, took_ms=5_000),  # overlaps decision and switch
        request(6),
        request(7.5, status=Lost.REFUSED),
        request(20, status=Lost.RESET),
    ]
    counts = summary(requests, AT + timedelta(seconds=5), AT + timedelta(seconds=7), AT + timedelta(seconds=9))
    assert (counts.sent, counts.failed) == (7, 5)
    assert counts.failed_before_decision == 1
    assert counts.failed_during_switch == 2
    assert list(counts.failed_with.items()) == [("500", 2), ("timeout", 1), ("refused", 1), ("reset", 1)]


def test_the_leaving_release_answers_for_its_own_errors() -> None:
    requests = [request(7, release="v2.0.6"), request(7, release="v2.0.3"), request(7, status=Lost.RESET)]
    counts = summary(requests, AT, AT + timedelta(seconds=6), AT + timedelta(seconds=8), leaving="v2.0.6")
    assert counts.failed_during_switch == 2


def test_without_a_decision_every_failure_came_before_it() -> None:
    counts = summary([request(1), request(2)], None, None, None)
    assert (counts.failed_before_decision, counts.failed_during_switch) == (2, 0)
