"""Probes that ask a feature to do its work."""

from __future__ import annotations

import gc
import json
import os
import resource
from collections.abc import Iterator
from datetime import UTC, date, datetime

import pytest

from lastgood.core.config import ProbeConfig
from lastgood.core.errors import ConfigError
from lastgood.core.reading import Probed, SourceDown, Window
from lastgood.signals.probe import Probe
from tests.signals.loopback import Loopback, Reply, answer, drip_body, drip_headers, hang, loopback, nobody

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = Window(since=NOW, until=NOW)


@pytest.fixture
def server() -> Iterator[Loopback]:
    with loopback() as served:
        yield served


def probe(url: str, **settings: object) -> Probe:
    return Probe("agent", ProbeConfig.model_validate({"post": f"{url}/execute", **settings}))


def test_a_feature_that_did_its_work_passes(server: Loopback) -> None:
    server.reply = answer('{"status": "completed", "steps": [{"id": 7}], "quick": true}')
    asking = probe(
        server.url,
        json={"task": "ping"},
        expect={"status": "completed", "steps": "present", "steps.0.id": 7, "quick": True},
    )
    assert asking.read(WINDOW) == Probed(asked=1, failed=0)
    request, body = server.requests[0]
    assert request == "POST /execute HTTP/1.1"
    assert json.loads(body) == {"task": "ping"}


@pytest.mark.parametrize(
    "body,expect,why",
    [
        ('{"status": "failed"}', {"status": "completed"}, 'status is "failed", expected "completed"'),
        ('{"steps": []}', {"steps": "present"}, "steps is empty"),
        ('{"steps": null}', {"steps": "present"}, "steps is empty"),
        ("{}", {"steps": "present"}, "steps is missing"),
        ('{"a": {"b": 1}}', {"a.b": 2}, "a.b is 1, expected 2"),
        ('{"a": {"b": 1}}', {"a.c": 1}, "a.c is missing"),
        ('{"a": 1}', {"a": True}, "a is 1, expected true"),
        ('{"a": [1]}', {"a.1": 1}, "a.1 is missing"),
        ("[]", {"a": 1}, "a is missing"),
        ("<html>", {"a": 1}, "not JSON"),
        ('{"a": NaN}', {"a": 1}, "not JSON"),
        ("[" * 100_000, {"a": 1}, "not JSON"),
        ('{"a": "\x1b[2Jred\\u202e"}', {"a": 1}, "not JSON"),
        ('{"a": "\\u001b[2J\\u202e"}', {"a": 1}, "a is "),
    ],
)  # fmt: skip
def test_another_answer_than_expected_is_a_failed_probe(
    server: Loopback, body: str, expect: dict[str, object], why: str
) -> None:
    server.reply = answer(body)
    found = probe(server.url, expect=expect).read(WINDOW)
    assert isinstance(found, Probed)
    assert (found.asked, found.failed) == (1, 1)
    assert why in found.detail
    assert found.detail.isprintable()


def test_a_status_is_compared_with_the_expected_one(server: Loopback) -> None:
    server.reply = answer("", status=503)
    found = probe(server.url).read(WINDOW)
    assert found == Probed(asked=1, failed=1, detail=f"POST {server.url}/execute: answered 503, expected 200")
    assert probe(server.url, status=503).read(WINDOW) == Probed(asked=1, failed=0)


@pytest.mark.parametrize("reply", [hang, drip_headers, drip_body])
def test_an_answer_that_does_not_end_is_a_failed_probe(server: Loopback, reply: Reply) -> None:
    server.reply = reply
    found = probe(server.url, timeout="300ms").read(WINDOW)
    assert isinstance(found, Probed)
    assert found.failed == 1
    assert "no complete answer within 0.3 s" in found.detail


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}"])
def test_an_answer_that_is_no_answer_is_a_failed_probe(server: Loopback, reply: bytes) -> None:
    server.reply = reply
    found = probe(server.url).read(WINDOW)
    assert isinstance(found, Probed)
    assert found.failed == 1


def test_a_refused_connection_is_a_failed_probe() -> None:
    with nobody() as url:
        found = probe(url).read(WINDOW)
    assert isinstance(found, Probed)
    assert "refused" in found.detail.lower()


def test_a_name_that_does_not_resolve_is_a_failed_probe() -> None:
    found = probe("http://nobody.invalid:81").read(WINDOW)
    assert isinstance(found, Probed)
    assert found.failed == 1


def test_a_user_and_password_in_the_address_are_not_shown() -> None:
    with nobody() as url:
        found = probe(url.replace("//", "//ada:hunter2@") + "/x?token=hunter2").read(WINDOW)
    assert isinstance(found, Probed)
    assert "hunter2" not in found.detail


# Whoever runs out of files half-way leaves a socket to the garbage collector, and its warning needs a file as well.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_machine_that_cannot_ask_knows_nothing(server: Loopback) -> None:
    asking = probe(server.url)
    server.reply = answer("{}")
    assert asking.read(WINDOW) == Probed(asked=1, failed=0)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208 # numbers, not paths
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, limits[1]))
    held: list[int] = []
    try:
        while True:
            try:
                held.append(os.dup(0))
            except OSError:
                break
        found = asking.read(WINDOW)
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    gc.collect()
    assert isinstance(found, SourceDown)


def test_a_body_that_cannot_be_sent_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"watch\.triggers\.agent\.probe\.json"):
        probe("http://127.0.0.1:1", json={"day": date(2026, 1, 1)})
