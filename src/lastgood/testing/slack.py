"""A stand-in of Slack's Web API on loopback: it takes messages into a file and fails on demand.

    with SlackStandIn(messages=Path("slack.jsonl")) as slack:
        WebClient(token=DEFAULT_TOKEN, base_url=slack.api_url).chat_postMessage(channel="#dev-ops", text="...")

or `python -m lastgood.testing.slack --port 7002 --messages slack.jsonl`. Like the real one it says no with status 200
and `ok: false`, and it does not recognise a message sent twice: telling doubles is left to the tests, by `delivery`.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from lastgood.testing.standin import Answer, Call, Fault, FaultKind, StandIn, serve_until_told

DEFAULT_TOKEN = "xoxb-standin"  # noqa: S105 (it opens nothing but the stand-in)
DEFAULT_CHANNEL = "dev-ops"
TEAM, TEAM_ID, BOT, BOT_ID = "standin", "T0STANDIN", "lastgood", "U0LASTGOOD"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message that was taken in.

    channel: its name without "#". ts: Slack's id of the message, unique and rising. thread: the ts it answers.
    delivery: what the sender calls this delivery, its `client_msg_id` or else its `metadata` as JSON; the same delivery
    twice is a double.
    """

    ts: str
    channel: str
    text: str
    thread: str | None
    delivery: str | None


def read_messages(path: Path) -> tuple[Message, ...]:
    """Every message in the order of arrival; none when the file is not there yet."""
    if not path.exists():
        return ()
    *lines, _unfinished = path.read_text(encoding="utf-8").split("\n")
    return tuple(Message(**json.loads(line)) for line in lines)


def doubles(messages: Iterable[Message]) -> tuple[str, ...]:
    """The deliveries that arrived more than once."""
    counts = Counter(message.delivery for message in messages if message.delivery is not None)
    return tuple(delivery for delivery, count in counts.items() if count > 1)


class SlackStandIn(StandIn):
    """One workspace with one bot. Operations that faults can wait for: the names of the methods, `chat.postMessage`.

    A refusal of Slack's own is a fault of kind ERROR with status 200 and its name as code, such as invalid_auth.
    """

    def __init__(
        self,
        *,
        messages: Path,
        port: int = 0,
        token: str = DEFAULT_TOKEN,
        channels: tuple[str, ...] = (DEFAULT_CHANNEL,),
    ) -> None:
        """messages: the file, kept and continued across restarts. Raises OSError when the port is in use."""
        super().__init__(port=port)
        self._token = token
        self._file = messages
        self._channel_ids = {name: f"C{sha256(name.encode()).hexdigest()[:10].upper()}" for name in channels}
        self._lock = threading.Lock()
        self._last_us = 0

    @property
    def api_url(self) -> str:
        """The base_url for slack_sdk's WebClient."""
        return f"{self.url}/api/"

    @property
    def messages(self) -> tuple[Message, ...]:
        return read_messages(self._file)

    def operation(self, call: Call) -> str:
        match call.parts:
            case ("api", ("chat.postMessage" | "auth.test" | "conversations.list") as method):
                return method
            case _:
                return ""

    def answer(self, call: Call) -> Answer:
        operation = self.operation(call)
        if not operation:
            return _refusal("unknown_method")
        try:
            fields = {**call.query, **call.fields()}
        except ValueError:
            return _refusal("invalid_json")
        token = call.bearer or fields.get("token")
        if not token:
            return _refusal("not_authed")
        if not secrets.compare_digest(str(token).encode(), self._token.encode()):
            return _refusal("invalid_auth")
        match operation:
            case "chat.postMessage":
                return self._post(fields)
            case "auth.test":
                who = {"team": TEAM, "team_id": TEAM_ID, "user": BOT, "user_id": BOT_ID, "url": f"{self.url}/"}
                return Answer(body={"ok": True, **who})
            case _:
                channels = [
                    {"id": channel_id, "name": name, "is_channel": True, "is_member": True, "is_archived": False}
                    for name, channel_id in self._channel_ids.items()
                ]
                return Answer(body={"ok": True, "channels": channels, "response_metadata": {"next_cursor": ""}})

    def failure(self, fault: Fault) -> Answer:
        if fault.kind is FaultKind.RATE_LIMIT:
            refusal = _refusal(fault.code or "ratelimited")
            return Answer(status=429, body=refusal.body, headers={"Retry-After": str(fault.retry_after_s)})
        return Answer(status=fault.status, body=_refusal(fault.code or "internal_error").body)

    def _post(self, fields: dict[str, object]) -> Answer:
        wanted = str(fields.get("channel", "")).removeprefix("#")
        channel = next((name for name, known in self._channel_ids.items() if wanted in (name, known)), None)
        if channel is None:
            return _refusal("channel_not_found")
        if not any(fields.get(part) for part in ("text", "blocks", "attachments")):
            return _refusal("no_text")
        thread = fields.get("thread_ts")
        with self._lock:
            message = Message(
                ts=self._next_ts(),
                channel=channel,
                text=str(fields.get("text", "")),
                thread=str(thread) if thread else None,
                delivery=_delivery(fields),
            )
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(message), ensure_ascii=False) + "\n")
        shown = {"type": "message", "text": message.text, "ts": message.ts, "user": BOT_ID, "team": TEAM_ID}
        return Answer(body={"ok": True, "channel": self._channel_ids[channel], "ts": message.ts, "message": shown})

    def _next_ts(self) -> str:
        self._last_us = max(time.time_ns() // 1000, self._last_us + 1)
        return f"{self._last_us // 1_000_000}.{self._last_us % 1_000_000:06d}"


def _refusal(error: str) -> Answer:
    return Answer(body={"ok": False, "error": error})


def _delivery(fields: dict[str, object]) -> str | None:
    if fields.get("client_msg_id"):
        return str(fields["client_msg_id"])
    metadata = fields.get("metadata")
    if not metadata:
        return None
    # As a form it comes as text, as JSON it comes as an object: one spelling for both.
    return json.dumps(json.loads(metadata) if isinstance(metadata, str) else metadata, sort_keys=True)


def main(words: Sequence[str] | None = None) -> int:
    """Exit 0 after an ordered end, 1 when the port is in use."""
    parser = argparse.ArgumentParser(prog="lastgood.testing.slack", description="a stand-in of Slack on loopback")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; the address is printed")
    parser.add_argument("--messages", type=Path, required=True, help="file that gets one JSON line per message")
    parser.add_argument("--token", default=DEFAULT_TOKEN)
    parser.add_argument(
        "--channel", action="append", help=f"name without #, more than once if need be ({DEFAULT_CHANNEL})"
    )
    options = parser.parse_args(words)
    try:
        standin = SlackStandIn(
            messages=options.messages,
            port=options.port,
            token=options.token,
            channels=tuple(options.channel or (DEFAULT_CHANNEL,)),
        )
    except OSError as error:
        sys.stderr.write(f"slack stand-in: cannot listen on port {options.port}: {error.strerror}\n")
        return 1
    serve_until_told(standin)
    return 0


if __name__ == "__main__":
    sys.exit(main())
