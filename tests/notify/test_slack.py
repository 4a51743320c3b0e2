"""Slack's own: what each of its names means, what goes over the wire, and what its client library must not do."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from lastgood.core.config import SlackConfig
from lastgood.core.errors import ConfigError, LastgoodError, OutcomeUnknown, Refused, Retryable
from lastgood.core.secret import Secret
from lastgood.notify import slack
from lastgood.notify.slack import LONGEST, LONGEST_WAIT_S, SlackNotifier, shown
from lastgood.testing.slack import DEFAULT_TOKEN, SlackStandIn, doubles
from lastgood.testing.standin import Fault, FaultKind
from tests.signals.loopback import answer, loopback

POST = "chat.postMessage"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[SlackStandIn]:
    with SlackStandIn(messages=tmp_path / "slack.jsonl") as standin:
        yield standin


def notifier(url: str, *, token: str = DEFAULT_TOKEN, channel: str = "#dev-ops") -> SlackNotifier:
    return SlackNotifier(SlackConfig(channel=channel, token=Secret(token), url=url))


def failure(url: str, **settings: str) -> LastgoodError:
    with pytest.raises(LastgoodError) as raised:
        notifier(url, **settings).send("text", event_id="r1")
    return raised.value


@pytest.mark.parametrize(
    "code,kind",
    [
        ("invalid_auth", Refused),
        ("not_authed", Refused),
        ("account_inactive", Refused),
        ("token_revoked", Refused),
        ("token_expired", Refused),
        ("missing_scope", Refused),
        ("channel_not_found", Refused),
        ("not_in_channel", Refused),
        ("is_archived", Refused),
        ("restricted_action", Refused),
        ("msg_too_long", Refused),
        ("a_name_that_slack_may_yet_invent", Refused),
        ("ratelimited", Retryable),
        ("rate_limited", Retryable),
        ("message_limit_exceeded", Retryable),
        ("internal_error", OutcomeUnknown),
        ("fatal_error", OutcomeUnknown),
        ("request_timeout", OutcomeUnknown),
        ("service_unavailable", OutcomeUnknown),
        ("duplicate_message_not_found", OutcomeUnknown),
    ],
)
def test_each_name_that_slack_answers_with_has_its_meaning(
    service: SlackStandIn, code: str, kind: type[LastgoodError]
) -> None:
    service.fail(Fault(kind=FaultKind.ERROR, on=POST, status=200, code=code))
    error = failure(service.api_url)
    assert type(error) is kind
    assert kind is not Refused or (code in error.message and error.hint)
    assert service.messages == ()


@pytest.mark.parametrize(
    "reply,kind",
    [
        (answer("{}"), OutcomeUnknown),
        (answer("[1]"), OutcomeUnknown),
        (answer('"ok"'), OutcomeUnknown),
        (answer("null"), OutcomeUnknown),
        (answer("[" * 100_000), OutcomeUnknown),
        (answer('{"ok": false}'), OutcomeUnknown),
        (answer('{"ok": false, "error": {"a": 1}}'), Refused),
        (answer('{"ok": true}', status=502), OutcomeUnknown),
        (answer("<html>", status=404), Refused),
        (answer("<html>", status=403), Refused),
        (answer("", status=429), Retryable),
    ],
)
def test_an_answer_that_is_not_slacks_is_never_taken_for_its_yes(reply: bytes, kind: type[LastgoodError]) -> None:
    with loopback(reply) as server:
        assert type(failure(f"{server.url}/api/")) is kind


@pytest.mark.parametrize(
    "header,expected", [("7", 7), ("0", slack.AGAIN_S), ("soon", slack.AGAIN_S), ("9999999", LONGEST_WAIT_S)]
)
def test_slack_says_how_long_to_wait_and_the_wait_has_a_bound(header: str, expected: float) -> None:
    reply = answer('{"ok": false, "error": "ratelimited"}', status=429, headers=f"Retry-After: {header}\r\n")
    with loopback(reply) as server:
        error = failure(f"{server.url}/api/")
    assert isinstance(error, Retryable)
    assert error.delay_s == expected


def test_a_redirect_does_not_carry_the_token_elsewhere() -> None:
    with loopback(answer('{"ok": true}')) as thief:
        for status in (301, 302, 303, 307, 308):
            with loopback(answer("", status=status, headers=f"location: {thief.url}/\r\n")) as server:
                assert isinstance(failure(f"{server.url}/api/"), Refused)
        assert thief.requests == []


def test_a_proxy_of_the_environment_does_not_see_the_message(
    service: SlackStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loopback(answer('{"ok": true}')) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, proxy.url)
        notifier(service.api_url).send("text", event_id="r1")
        assert proxy.requests == []
    assert len(service.messages) == 1


def test_the_client_library_sends_once_and_says_nothing_on_its_own(
    service: SlackStandIn, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, logger="lastgood")
    for kind in (FaultKind.DROP, FaultKind.RATE_LIMIT, FaultKind.ERROR):
        service.fail(Fault(kind=kind, on=POST))
        failure(service.api_url)
    assert len(service.calls(POST)) == 3
    assert [record for record in caplog.records if "slack" in record.name] == []
    assert capfd.readouterr() == ("", "")


def test_a_message_is_shown_as_text_and_nothing_comes_out_of_it(service: SlackStandIn) -> None:
    notifier(service.api_url).send("see http://evil.example *now*", event_id="r1")
    (call,) = service.calls(POST)
    sent = json.loads(call.body)
    asked_for = {name: sent[name] for name in ("mrkdwn", "parse", "link_names", "unfurl_links", "unfurl_media")}
    assert asked_for == {
        "mrkdwn": False,
        "parse": "none",
        "link_names": False,
        "unfurl_links": False,
        "unfurl_media": False,
    }
    assert sent["metadata"] == {"event_type": "lastgood", "event_payload": {"event_id": "r1"}}
    assert call.bearer == DEFAULT_TOKEN


def test_a_lost_answer_and_another_try_leave_one_delivery_that_slack_can_tell_is_double(service: SlackStandIn) -> None:
    service.fail(Fault(kind=FaultKind.DROP, on=POST, after_accept=True))
    assert isinstance(failure(service.api_url), OutcomeUnknown)
    notifier(service.api_url).send("text", event_id="r1")
    assert len(service.messages) == 2
    assert len(doubles(service.messages)) == 1


def test_one_event_in_two_channels_is_two_deliveries(tmp_path: Path) -> None:
    with SlackStandIn(messages=tmp_path / "two.jsonl", channels=("dev-ops", "managers")) as service:
        for channel in ("#dev-ops", "#managers"):
            notifier(service.api_url, channel=channel).send("text", event_id="r1")
        assert doubles(service.messages) == ()


def test_the_cut_falls_behind_whole_characters() -> None:
    assert shown("a" * LONGEST) == "a" * LONGEST
    cut = shown("&" * (LONGEST + 1))
    assert cut == "&amp;" * (LONGEST - 3) + "..."


@pytest.mark.parametrize("token", ["with space", "line\nbreak", "trailing\r", "ünprintable", ""])
def test_a_token_that_cannot_be_sent_is_refused_beforehand_and_not_quoted(token: str) -> None:
    with pytest.raises(ConfigError, match=r"notify\.slack\.token") as raised:
        notifier("http://127.0.0.1:1/", token=token)
    assert not token or token not in f"{raised.value} {vars(raised.value)}"


def test_an_answer_that_repeats_the_token_does_not_show_it() -> None:
    for status in (200, 400, 500):
        with loopback(answer(json.dumps({"ok": False, "error": f"bad {DEFAULT_TOKEN}"}), status=status)) as server:
            error = failure(f"{server.url}/api/")
            assert DEFAULT_TOKEN not in f"{error!r} {vars(error)} {error.__cause__!r} {error.__context__!r}"
