"""Steady traffic against HyperCode, counted from outside, and the ledger that keeps the count.

An open loop: a request starts at its due time whatever became of the earlier ones. A client that waits for
answers stops asking while the stack is down, and so hides the outage that it was meant to count.

It runs as a process of its own (`python -m lastgood.testing.traffic --url http://127.0.0.1:8000 --ledger FILE`), so
that nothing it counts depends on the program that is being judged. A mission is acknowledged only when its 201 was
read whole.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import TextIO, cast

import httpx

REQUEST_DEADLINE_S = 15.0
LOGIN_WAIT_S = 120.0
LOGIN_PAUSE_S = 0.2
# Shorter than what servers grant (uvicorn: 5 s by default): a client that reuses a connection at the very moment
# the server gives it up would count failures that the stack never had.
KEEP_ALIVE_S = 2.0
NEW_CONNECTION_SHARE = 0.25
REMEMBERED_MISSIONS = 1_000
PRIORITIES = ("low", "normal", "high")
USER, PASSWORD = "ada", "lovelace"


class Kind(StrEnum):
    """What a request asks for; the values stand in the ledger."""

    CREATE_MISSION = "create_mission"
    LIST_MISSIONS = "list_missions"
    GET_MISSION = "get_mission"
    CHAT = "chat"
    LOGIN = "login"


MIX_PERCENT = {Kind.CREATE_MISSION: 40, Kind.LIST_MISSIONS: 25, Kind.GET_MISSION: 15, Kind.CHAT: 10, Kind.LOGIN: 10}


class Lost(StrEnum):
    """How a request ended that got no whole answer; stands in the ledger in the place of the status."""

    TIMEOUT = "timeout"
    REFUSED = "refused"
    RESET = "reset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One finished request.

    n: its place in the order of sending, from 0. sent_at: aware UTC. elapsed_ms: from sending to the end of the body.
    release: the X-Release header of the answer. releases: its X-Releases header, whoever had a part in the answer.
    mission: the id of a mission whose 201 was read whole, as text.
    """

    n: int
    kind: Kind
    sent_at: datetime
    elapsed_ms: float
    status: int | Lost
    release: str | None = None
    releases: tuple[str, ...] = ()
    mission: str | None = None

    @property
    def finished_at(self) -> datetime:
        return self.sent_at + timedelta(milliseconds=self.elapsed_ms)

    @property
    def failed(self) -> bool:
        """True for an answer of 500 or more and for no answer. A 4xx is an answer."""
        return isinstance(self.status, Lost) or self.status >= 500

    @property
    def crossed(self) -> bool:
        """Whether services of more than one release worked on it."""
        return len(self.releases) > 1

    def to_line(self) -> str:
        return json.dumps(
            {
                "n": self.n,
                "kind": self.kind,
                "sent_at": self.sent_at.isoformat(),
                "elapsed_ms": self.elapsed_ms,
                "status": self.status,
                "release": self.release,
                "releases": self.releases,
                "mission": self.mission,
            }
        )

    @classmethod
    def from_line(cls, line: str) -> Request:
        """Raises ValueError or KeyError when the line is not one that `to_line` wrote."""
        entry = json.loads(line)
        status = entry["status"]
        return cls(
            n=int(entry["n"]),
            kind=Kind(entry["kind"]),
            sent_at=datetime.fromisoformat(entry["sent_at"]),
            elapsed_ms=float(entry["elapsed_ms"]),
            status=status if isinstance(status, int) else Lost(status),
            release=entry["release"],
            releases=tuple(entry["releases"]),
            mission=entry["mission"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The figures of one ledger. What failed neither before the decision nor in the switch failed between or after.
    crossed: requests on which services of more than one release worked. failed_with: how many of `failed` for each
    status or `Lost`, as text, the most first."""

    sent: int
    failed: int
    failed_before_decision: int
    failed_during_switch: int
    crossed: int
    failed_with: dict[str, int]


def read_ledger(path: Path) -> tuple[Request, ...]:
    """Every finished request, in the order in which they ended.

    Safe while the traffic is still running: a last line without its newline is not finished yet and is left out.
    Raises ValueError with file and line for any other line that cannot be read.
    """
    *lines, _unfinished = path.read_text(encoding="utf-8").split("\n")
    requests: list[Request] = []
    for number, line in enumerate(lines, start=1):
        try:
            requests.append(Request.from_line(line))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a line of a traffic ledger: {line[:80]!r}") from error
    return tuple(requests)


def summary(
    requests: Sequence[Request],
    decided_at: datetime | None,
    switch_from: datetime | None,
    switch_to: datetime | None,
    *,
    leaving: str | None = None,
) -> Counts:
    """Count what failed, and when. All times are aware UTC.

    Before the decision: the failure was known before `decided_at`; without a decision that is every failure.
    During the switch: any part of the request lay between `switch_from` and `switch_to`, so a request that the switch
    cut off counts although it was sent earlier. leaving: the release that the switch takes out of traffic; the 5xx
    it answered itself are its own failures and not the switch's. Leave it None where the switch can make it fail.
    """
    failed = [request for request in requests if request.failed]
    before = [request for request in failed if decided_at is None or request.finished_at < decided_at]
    during: list[Request] = []
    if switch_from is not None and switch_to is not None:
        during = [
            request
            for request in failed
            if request.sent_at <= switch_to
            and request.finished_at >= switch_from
            and (leaving is None or request.release != leaving)
        ]
    return Counts(
        sent=len(requests),
        failed=len(failed),
        failed_before_decision=len(before),
        failed_during_switch=len(during),
        crossed=sum(request.crossed for request in requests),
        failed_with=dict(Counter(str(request.status) for request in failed).most_common()),
    )


def acknowledged_missions(requests: Iterable[Request]) -> tuple[str, ...]:
    """The ids that users were promised, as text, in the order of acknowledgement."""
    return tuple(request.mission for request in requests if request.mission is not None)


class LoginRefusedError(Exception):
    """The stack did not let the traffic in within the time allowed; says what it answered last."""


@dataclass(slots=True, kw_only=True)
class Traffic:
    """One run of the generator. Not thread-safe: it lives in one event loop."""

    kept: httpx.AsyncClient
    fresh: httpx.AsyncClient
    ledger: TextIO
    rate: float
    draw: random.Random
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    token: str = ""
    login_due: bool = False
    missions: deque[str] = field(default_factory=lambda: deque(maxlen=REMEMBERED_MISSIONS))

    async def run(self, duration_s: float | None) -> None:
        """Send until told to stop or for `duration_s` seconds, then wait for what is in flight.

        The wait is bounded, since every request has its own deadline. Raises LoginRefusedError.
        """
        await self._first_login()
        now = asyncio.get_running_loop().time
        begin = now()
        in_flight: set[asyncio.Task[None]] = set()
        n = 0
        while not self.stopping.is_set() and (duration_s is None or n < duration_s * self.rate):
            if await self._stopped_within(begin + n / self.rate - now()):
                break
            task = asyncio.create_task(self._send(n, self._next_kind(), self._next_client()))
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)
            n += 1
        if in_flight:
            await asyncio.gather(*in_flight)

    async def _first_login(self) -> None:
        """Wait for a stack that is still starting. These attempts are not traffic and are not counted."""
        now = asyncio.get_running_loop().time
        give_up_at = now() + LOGIN_WAIT_S
        last = "no answer"
        while not self.token and not self.stopping.is_set():
            try:
                answer = await self.fresh.request(*_LOGIN_PATH, json=_LOGIN_BODY)
                last = f"status {answer.status_code}"
                if answer.status_code == HTTPStatus.OK:
                    self.token = _text(answer, "token") or ""
            except httpx.TransportError as error:
                last = str(error) or type(error).__name__
            if not self.token and now() > give_up_at:
                raise LoginRefusedError(f"no login as {USER} within {LOGIN_WAIT_S:g} s: {last}")
            if not self.token:
                await self._stopped_within(LOGIN_PAUSE_S)

    async def _stopped_within(self, seconds: float) -> bool:
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), timeout=seconds)
        return self.stopping.is_set()

    def _next_kind(self) -> Kind:
        kind = self.draw.choices(list(MIX_PERCENT), weights=list(MIX_PERCENT.values()))[0]
        if self.login_due:
            self.login_due = False
            return Kind.LOGIN
        if kind is Kind.GET_MISSION and not self.missions:
            return Kind.LIST_MISSIONS
        return kind

    def _next_client(self) -> httpx.AsyncClient:
        return self.fresh if self.draw.random() < NEW_CONNECTION_SHARE else self.kept

    def _build(self, n: int, kind: Kind, client: httpx.AsyncClient) -> httpx.Request:
        bearer = {"Authorization": f"Bearer {self.token}"}
        match kind:
            case Kind.CREATE_MISSION:
                # Many stay under 100 credits, so that a constraint on small amounts meets rows that break it.
                amount = self.draw.choice((self.draw.randint(1, 99), self.draw.randint(1, 500)))
                mission = {"title": f"mission {n}", "credits": amount, "priority": self.draw.choice(PRIORITIES)}
                return client.build_request("POST", "/missions", json=mission, headers=bearer)
            case Kind.LIST_MISSIONS:
                return client.build_request("GET", "/missions", params={"limit": 20}, headers=bearer)
            case Kind.GET_MISSION:
                return client.build_request("GET", f"/missions/{self.draw.choice(self.missions)}", headers=bearer)
            case Kind.CHAT:
                return client.build_request("POST", "/chat", json={"message": f"status of {n}?"}, headers=bearer)
            case Kind.LOGIN:
                return client.build_request(*_LOGIN_PATH, json=_LOGIN_BODY)

    async def _send(self, n: int, kind: Kind, client: httpx.AsyncClient) -> None:
        request = self._build(n, kind, client)
        sent_at = datetime.now(UTC)  # noqa: TID251 (the ledger is compared with what the program says of its own time)
        begin = time.perf_counter()
        status: int | Lost
        answer: httpx.Response | None = None
        try:
            # httpx limits each read and write; the deadline of the whole request is ours to keep.
            async with asyncio.timeout(REQUEST_DEADLINE_S):
                answer = await client.send(request)
            status = answer.status_code
        except (TimeoutError, httpx.TimeoutException):
            status = Lost.TIMEOUT
        except httpx.ConnectError:
            status = Lost.REFUSED
        except (httpx.TransportError, httpx.DecodingError):
            status = Lost.RESET
        elapsed_ms = round((time.perf_counter() - begin) * 1000, 1)
        mission = self._learn(kind, answer)
        headers = answer.headers if answer is not None else httpx.Headers()
        finished = Request(
            n=n,
            kind=kind,
            sent_at=sent_at,
            elapsed_ms=elapsed_ms,
            status=status,
            release=headers.get("X-Release"),
            releases=tuple(filter(None, headers.get("X-Releases", "").split(", "))),
            mission=mission,
        )
        self.ledger.write(finished.to_line() + "\n")
        self.ledger.flush()

    def _learn(self, kind: Kind, answer: httpx.Response | None) -> str | None:
        """Keep what later requests need from this answer; the acknowledged mission, if it is one."""
        status = answer.status_code if answer is not None else None
        if answer is None or status == HTTPStatus.UNAUTHORIZED:
            self.login_due = self.login_due or kind is Kind.LOGIN or status == HTTPStatus.UNAUTHORIZED
        elif kind is Kind.LOGIN and status == HTTPStatus.OK:
            self.token = _text(answer, "token") or self.token
        elif kind is Kind.CREATE_MISSION and status == HTTPStatus.CREATED:
            mission = _text(answer, "id")
            if mission is not None:
                self.missions.append(mission)
            return mission
        return None


_LOGIN_PATH = ("POST", "/login")
_LOGIN_BODY = {"user": USER, "password": PASSWORD}


def _text(answer: httpx.Response, key: str) -> str | None:
    """The value under `key` of a JSON object, as text; None when the body is something else."""
    try:
        body: object = answer.json()
    except ValueError:
        return None
    value = cast("dict[str, object]", body).get(key) if isinstance(body, dict) else None
    return str(value) if isinstance(value, int | str) else None


async def generate(url: str, *, rate: float, ledger: Path, seed: int | None, duration_s: float | None) -> None:
    """Send `rate` requests a second to `url` until SIGTERM or SIGINT, appending to `ledger`.

    Raises LoginRefusedError when the stack lets nobody in.
    """
    # trust_env: a proxy of the environment must not stand between the traffic and loopback.
    kept = httpx.AsyncClient(
        base_url=url,
        timeout=REQUEST_DEADLINE_S,
        trust_env=False,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEP_ALIVE_S),
    )
    fresh = httpx.AsyncClient(
        base_url=url,
        timeout=REQUEST_DEADLINE_S,
        trust_env=False,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
    )
    # Buffered by line, in the loop's own thread: one write and one flush a request.
    with ledger.open("a", encoding="utf-8", buffering=1) as book:
        async with kept, fresh:
            traffic = Traffic(kept=kept, fresh=fresh, ledger=book, rate=rate, draw=random.Random(seed))  # noqa: S311 (traffic, not secrets)
            loop = asyncio.get_running_loop()
            for signum in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(signum, traffic.stopping.set)
            await traffic.run(duration_s)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def main(words: Sequence[str] | None = None) -> int:
    """Exit 0 after an ordered end, 1 when nobody could log in."""
    parser = argparse.ArgumentParser(prog="lastgood.testing.traffic", description=__doc__)
    parser.add_argument("--url", required=True, help="address of HyperCode, such as http://127.0.0.1:8000")
    parser.add_argument("--rate", type=_positive, default=20.0, help="requests per second (20)")
    parser.add_argument("--ledger", type=Path, required=True, help="file that gets one JSON line per finished request")
    parser.add_argument("--seed", type=int, help="makes the order of the requests repeatable")
    parser.add_argument("--duration", type=_positive, help="seconds; without it until SIGTERM")
    options = parser.parse_args(words)
    try:
        asyncio.run(
            generate(
                options.url,
                rate=options.rate,
                ledger=options.ledger,
                seed=options.seed,
                duration_s=options.duration,
            )
        )
    except LoginRefusedError as error:
        sys.stderr.write(f"traffic: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
