"""Whether a request that got no answer may have arrived: the difference between another try and another look."""

from __future__ import annotations

from pathlib import Path

import pytest

from lastgood.testing.slack import SlackStandIn
from lastgood.wire.asking import Answer, NoAnswer, ask
from tests.signals.loopback import Reply, drip_body, drip_headers, flood, hang, loopback, nobody

DEADLINE_S = 0.3


def test_a_request_that_found_nobody_was_not_sent() -> None:
    with nobody() as url:
        got = ask("POST", url, deadline_s=DEADLINE_S, max_bytes=100, json=b"{}")
    assert isinstance(got, NoAnswer)
    assert not got.sent


@pytest.mark.parametrize("address", ["http://", "nonsense", "http://\x00/", "ftp://127.0.0.1/"])
def test_an_address_that_cannot_be_asked_was_not(address: str) -> None:
    got = ask("POST", address, deadline_s=DEADLINE_S, max_bytes=100)
    assert isinstance(got, NoAnswer)
    assert not got.sent


@pytest.mark.parametrize("reply", [b"", hang, drip_headers, drip_body, flood], ids=["dropped", "hang", "h", "b", "f"])
def test_a_request_without_a_whole_answer_may_have_arrived(reply: Reply) -> None:
    with loopback(reply) as server:
        got = ask("POST", server.url, deadline_s=DEADLINE_S, max_bytes=100, json=b"{}")
    assert isinstance(got, NoAnswer)
    assert got.sent


def test_headers_go_along_and_the_environments_proxy_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with SlackStandIn(messages=tmp_path / "messages") as slack:
        url = f"{slack.api_url}auth.test"
        got = ask("GET", url, deadline_s=10, max_bytes=1000, headers={"authorization": "Bearer me"})
        (call,) = slack.calls("auth.test")
    assert isinstance(got, Answer)
    assert call.headers["authorization"] == "Bearer me"
