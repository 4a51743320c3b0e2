"""Slack: one message an event, through the app's own bot.

An event that is sent again bears the same `client_msg_id`, by which Slack can tell a double, and the event's id as
metadata, by which a person can. Text is foreign: it may hold a commit message or what a service said. So it is shown as
text: no link, no mention, no markup comes out of it, whoever wrote it.

slack_sdk builds the request and reads the answer; it travels over the house's wire. By itself the library waits for
each byte as long as for the first, follows a redirect with the token on it, and logs to stderr.
Source: docs.slack.dev/reference/methods/chat.postMessage, read 2026-11.
"""

# slack_sdk leaves its dicts and keyword arguments open, so strict mode cannot know them:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.request import Request
from uuid import UUID, uuid5

from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError

from lastgood.core.config import SlackConfig
from lastgood.core.errors import ConfigError, LastgoodError, OutcomeUnknown, Refused, Retryable
from lastgood.wire.asking import NoAnswer, ask
from lastgood.wire.foreign_text import one_line

DEADLINE_S: Final = 8.0
"""For the whole conversation; the port gives 10 s, and looking the name up is the machine's own time."""
MAX_BYTES: Final = 1 << 20
LONGEST: Final = 3500
"""Characters of a message. Slack asks for at most 4,000 and cuts at 40,000; escaping makes one character five."""
AGAIN_S: Final = 1.0
"""Slack takes about one message a second for a channel (docs.slack.dev/apis/web-api/rate-limits, read 2026-11)."""
LONGEST_WAIT_S: Final = 3600.0
EVENTS: Final = UUID("6f4ac9f5-3f6a-4f0e-9d2b-0d5b1f6d0c11")
"""Namespace of the ids that Slack gets. Never changed: a new one would make every event new."""
ESCAPED: Final[Mapping[str, str]] = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
NOT_SLACK: Final = "not_slack"
"""Stands for an error's name where the answer has none: a proxy's page, or another service."""
RATE_LIMITED: Final = frozenset({"ratelimited", "rate_limited", "message_limit_exceeded"})
UNCLEAR: Final = frozenset(
    {
        "fatal_error",
        "internal_error",
        "request_timeout",
        "service_unavailable",
        "duplicate_channel_not_found",
        "duplicate_message_not_found",
    }
)
"""Slack: "it's possible some aspect of the operation succeeded", or the event was told before and taken away."""
_NEW_TOKEN: Final = "put a working bot token (xoxb-...) where notify.slack.token reads it"  # noqa: S105 # a sentence
HINTS: Final[Mapping[str, str]] = {
    "invalid_auth": _NEW_TOKEN,
    "not_authed": _NEW_TOKEN,
    "account_inactive": _NEW_TOKEN,
    "token_revoked": _NEW_TOKEN,
    "token_expired": _NEW_TOKEN,
    "channel_not_found": "check notify.slack.channel; in a private channel: /invite @the-bot",
    "not_in_channel": "in that channel: /invite @the-bot",
    "is_archived": "name a living channel in notify.slack.channel",
    "missing_scope": "give the app the scope chat:write and install it again",
    "restricted_action": "a workspace admin must let the app post there",
}


class SlackNotifier:
    """core.ports.Notifier for one channel. Raises ConfigError when the token cannot be sent as one."""

    def __init__(self, config: SlackConfig) -> None:
        # Checked here, since the library that would refuse it quotes what it refuses.
        if not re.fullmatch(r"[!-~]+", config.token.reveal()):
            raise ConfigError("notify.slack.token: expected printable characters without spaces")
        self._config = config

    @property
    def channel(self) -> str:
        return self._config.channel

    def send(self, text: str, *, event_id: str) -> None:
        try:
            _Client(self._config).chat_postMessage(
                channel=self._config.channel,
                text=shown(text),
                client_msg_id=str(uuid5(EVENTS, f"{self._config.channel} {event_id}")),
                metadata={"event_type": "lastgood", "event_payload": {"event_id": event_id}},
                mrkdwn=False,
                parse="none",
                link_names=False,
                unfurl_links=False,
                unfurl_media=False,
            )
        except SlackApiError as error:
            response = error.response
            failure = self._meaning(
                int(response.status_code), response.headers, str(response.get("error") or NOT_SLACK)
            )
        else:
            return
        raise failure  # outside of the block above: the library's sentence holds the whole answer

    def _meaning(self, status: int, headers: Mapping[str, str], code: str) -> LastgoodError:
        """What Slack's answer means. Slack says no with status 200 and a name."""
        where = _where(self._config)
        said = one_line(self._config.token.hidden_in(code), 80)
        if status == 429 or code in RATE_LIMITED:
            wait_s = _wait_s(headers)
            return Retryable(f"{where}: too many messages, again in {wait_s:.0f} s", delay_s=wait_s)
        if status >= 500 or code in UNCLEAR or (status < 300 and code == NOT_SLACK):
            return OutcomeUnknown(f"{where}: answered {status} ({said}), which does not say whether it was told")
        if code == NOT_SLACK:
            return Refused(f"{where}: answered {status}, and not as slack does", hint="check notify.slack.url")
        return Refused(f"{where}: refused with {said}", hint=HINTS.get(code, "check notify.slack in lastgood.yaml"))


def shown(text: str) -> str:
    """Return the text as Slack is to show it: cut, without what does not print, its three special characters
    escaped."""
    cut = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    return "".join(ESCAPED.get(c, c) if c == "\n" or c.isprintable() else " " for c in cut)


def _where(config: SlackConfig) -> str:
    return f"slack {one_line(config.channel, 80)}"


class _Client(WebClient):
    """Slack's client over the house's wire: one deadline for all of it, no redirect, no proxy, no retry, no log."""

    def __init__(self, config: SlackConfig) -> None:
        quiet = logging.getLogger(f"{__name__}.sdk")
        quiet.disabled = True
        super().__init__(token=config.token.reveal(), base_url=config.url, retry_handlers=[], logger=quiet)
        self._config = config

    def _perform_urllib_http_request_internal(self, url: str, req: Request) -> dict[str, Any]:
        """Where slack_sdk 3.48 opens the connection. Returns status, headers, body; raises what no answer means."""
        answer = ask(
            "POST",
            url,
            deadline_s=DEADLINE_S,
            max_bytes=MAX_BYTES,
            json=req.data if isinstance(req.data, bytes) else b"",
            headers={"authorization": req.get_header("Authorization", "")},
        )
        if isinstance(answer, NoAnswer):
            said = one_line(self._config.token.hidden_in(answer.reason))
            if answer.sent:
                raise OutcomeUnknown(f"{_where(self._config)}: the message was sent, and its answer was lost: {said}")
            raise Retryable(f"{_where(self._config)}: {said}", delay_s=AGAIN_S)
        return {"status": answer.status, "headers": answer.headers, "body": _object(answer.body)}


def _object(body: bytes) -> str:
    """The body where it is a JSON object, else one that says so: slack_sdk falls over anything else."""
    try:
        found: object = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    return json.dumps(found if isinstance(found, dict) else {"ok": False, "error": NOT_SLACK})


def _wait_s(headers: Mapping[str, str]) -> float:
    asked = headers.get("retry-after", "")
    return min(max(float(asked), AGAIN_S), LONGEST_WAIT_S) if asked.isdecimal() else AGAIN_S
