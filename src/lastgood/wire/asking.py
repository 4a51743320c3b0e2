"""One HTTP request on a new connection, bounded in time and in bytes, that returns an answer or says why there is none.

A new connection each time: one that was kept open may still lead to the release before. Redirects are not followed,
proxies of the environment are ignored, compressed answers are not asked for (a small one can unpack to gigabytes).
The deadline holds for the whole conversation from the connection on; looking a name up is bounded by the machine's
resolver, and connecting by half the deadline for each of the name's addresses.
"""

from __future__ import annotations

import errno
import functools
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import httpx

from lastgood.wire.deadline import Deadline
from lastgood.wire.foreign_text import one_line

OWN_LIMITS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back, whatever its status. headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAnswer:
    """Why there is none. own: this machine could not even ask (no descriptors, no memory, no ports left).

    sent: the request may have arrived, and what it asks for may have been done. False: it cannot have.
    """

    reason: str
    own: bool = False
    sent: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    method: str
    url: str
    headers: Mapping[str, str]
    json: bytes | None
    deadline_s: float
    max_bytes: int


class _Progress:
    """How far a conversation came. sent: its first byte may be on the wire."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self.sent = False

    def traced(self, event: str, info: Mapping[str, Any]) -> None:
        # https://www.encode.io/httpcore/extensions/#trace (read 2026-11)
        if event == "connection.connect_tcp.complete":
            self._deadline.guard(info["return_value"].get_extra_info("socket").fileno())
        elif event == "http11.send_request_headers.started":
            self.sent = True


def ask(
    method: str,
    url: str,
    *,
    deadline_s: float,
    max_bytes: int,
    json: bytes | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Answer | NoAnswer:
    """Send one request. json: the body, already encoded. headers: beside its own. Never raises for what the other side
    does."""
    request = _Request(method=method, url=url, headers=headers, json=json, deadline_s=deadline_s, max_bytes=max_bytes)
    with Deadline(deadline_s) as deadline:
        progress = _Progress(deadline)
        try:
            return _ask(request, deadline, progress)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            if deadline.over or isinstance(error, httpx.TimeoutException):
                return NoAnswer(reason=f"no complete answer within {deadline_s:g} s", sent=progress.sent)
            return NoAnswer(reason=_reason(error), own=_is_own(error), sent=progress.sent)


def _ask(request: _Request, deadline: Deadline, progress: _Progress) -> Answer | NoAnswer:
    headers = {"accept-encoding": "identity", "connection": "close", "user-agent": "lastgood", **request.headers}
    if request.json is not None:
        headers["content-type"] = "application/json"
    timeout = httpx.Timeout(request.deadline_s, connect=request.deadline_s / 2)
    with (
        httpx.Client(trust_env=False, follow_redirects=False, timeout=timeout, verify=_trust()) as client,
        client.stream(
            request.method,
            request.url,
            content=request.json,
            headers=headers,
            extensions={"trace": progress.traced},
        ) as response,
    ):
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > request.max_bytes:
                return NoAnswer(reason=f"the answer is larger than {request.max_bytes:,} bytes")
        if deadline.over:  # an answer without a length ends where the connection does
            return NoAnswer(reason=f"no complete answer within {request.deadline_s:g} s")
        return Answer(status=response.status_code, headers=dict(response.headers.items()), body=bytes(body))


@functools.cache
def _trust() -> ssl.SSLContext:
    """Load the machine's certificates once: it takes 20 ms, and a probe is sent every few seconds."""
    return ssl.create_default_context()


def _is_own(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in OWN_LIMITS:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _reason(error: Exception) -> str:
    return one_line(f"no answer: {str(error) or type(error).__name__}")
