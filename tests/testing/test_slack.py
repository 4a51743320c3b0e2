"""The stand-in of Slack, by Slack's own client."""

# slack_sdk leaves its dicts and keyword arguments open, so strict mode cannot know them:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError

from lastgood.testing.slack import DEFAULT_TOKEN, SlackStandIn, doubles, read_messages
from lastgood.testing.standin import Fault, FaultKind

CHANNEL = "#dev-ops"
POST = "chat.postMessage"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "slack.jsonl"


@pytest.fixture
def slack(file: Path) -> Iterator[SlackStandIn]:
    with SlackStandIn(messages=file) as standin:
        yield standin


def client(slack: SlackStandIn, *, token: str = DEFAULT_TOKEN, timeout_s: int = 30) -> WebClient:
    return WebClient(token=token, base_url=slack.api_url, timeout=timeout_s, retry_handlers=[])


def refusal(slack: SlackStandIn, *, token: str = DEFAULT_TOKEN, **fields: str) -> str:
    with pytest.raises(SlackApiError) as caught:
        client(slack, token=token).api_call(POST, json={"channel": CHANNEL, "text": "x", **fields})
    return str(caught.value.response["error"])


def test_a_message_arrives_word_for_word(slack: SlackStandIn) -> None:
    sentence = "🚨 Deployment failed. Rollback to v2.0.3 completed. System operating normally. Investigation started."
    first = client(slack).chat_postMessage(channel=CHANNEL, text=sentence)
    client(slack).chat_postMessage(channel=str(first["channel"]), text="more", thread_ts=str(first["ts"]))
    top, answer = slack.messages
    assert (top.channel, top.text, top.thread) == ("dev-ops", sentence, None)
    assert answer.thread == top.ts == first["ts"]


def test_messages_are_kept_across_a_restart(slack: SlackStandIn, file: Path) -> None:
    client(slack).chat_postMessage(channel=CHANNEL, text="one")
    with SlackStandIn(messages=file) as restarted:
        client(restarted).chat_postMessage(channel=CHANNEL, text="two")
    assert [message.text for message in read_messages(file)] == ["one", "two"]


def test_the_token_and_the_channel_can_be_checked_beforehand(slack: SlackStandIn) -> None:
    assert client(slack).auth_test()["user"] == "lastgood"
    channels = client(slack).conversations_list()["channels"] or []
    assert [channel["name"] for channel in channels] == ["dev-ops"]


def test_slack_refuses_by_name(slack: SlackStandIn) -> None:
    assert refusal(slack, token="xoxb-other") == "invalid_auth"
    assert refusal(slack, channel="#elsewhere") == "channel_not_found"
    assert refusal(slack, text="") == "no_text"
    slack.fail(Fault(kind=FaultKind.ERROR, on=POST, status=200, code="account_inactive"))
    assert refusal(slack) == "account_inactive"
    assert slack.messages == ()


def test_too_many_requests_say_how_long_to_wait(slack: SlackStandIn) -> None:
    slack.fail(Fault(kind=FaultKind.RATE_LIMIT, on=POST, retry_after_s=7))
    with pytest.raises(SlackApiError) as caught:
        client(slack).chat_postMessage(channel=CHANNEL, text="x")
    assert caught.value.response.status_code == 429
    assert caught.value.response.headers["Retry-After"] == "7"
    client(slack).chat_postMessage(channel=CHANNEL, text="later")
    assert [message.text for message in slack.messages] == ["later"]


def test_an_error_of_the_service_takes_nothing_in(slack: SlackStandIn) -> None:
    slack.fail(Fault(kind=FaultKind.ERROR, status=503, count=2))
    for _ in range(2):
        with pytest.raises(SlackApiError) as caught:
            client(slack).chat_postMessage(channel=CHANNEL, text="x")
        assert caught.value.response.status_code == 503
    client(slack).chat_postMessage(channel=CHANNEL, text="later")
    assert len(slack.messages) == 1


def test_a_lost_answer_leads_to_a_double_that_can_be_counted(slack: SlackStandIn) -> None:
    slack.fail(Fault(kind=FaultKind.DROP, on=POST, after_accept=True))
    metadata = {"event_type": "rollback", "event_payload": {"id": "9c1e"}}
    with pytest.raises(OSError, match="closed connection"):
        client(slack).chat_postMessage(channel=CHANNEL, text="x", metadata=metadata)
    client(slack).chat_postMessage(channel=CHANNEL, text="x", metadata=metadata)
    client(slack).chat_postMessage(channel=CHANNEL, text="x", client_msg_id="another")
    assert len(slack.messages) == 3
    assert len(doubles(slack.messages)) == 1


def test_a_service_that_hangs_is_left_by_the_callers_deadline(slack: SlackStandIn) -> None:
    slack.fail(Fault(kind=FaultKind.HANG, on=POST))
    with pytest.raises(TimeoutError):
        client(slack, timeout_s=1).chat_postMessage(channel=CHANNEL, text="x")
    assert slack.messages == ()
