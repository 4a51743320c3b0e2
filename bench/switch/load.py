"""The load: an open loop in a process of its own.

    python -m bench.switch.load --ports 8001 8002 --rate 150 --file FILE --run NAME

A request is sent when it is due, whatever became of the ones before: a client that waits for answers stops asking
while a service is down, and hides the outage that it was meant to count. Times count from when a request was due.
Nothing is ever sent twice, so an id that was written down twice was doubled on the way. SIGTERM ends it: what is under
way is waited for, and the file is complete when the process has ended.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

from bench.switch.request import Kind, Lost, Request, to_line

HOST: Final = "127.0.0.1"
MIX: Final = {Kind.NEW: 40, Kind.KEPT: 30, Kind.POST: 30}
SLOW_EVERY_S: Final = 2.0
SLOW_S: Final = 10.0
DEADLINE_S: Final = {Kind.NEW: 10.0, Kind.KEPT: 10.0, Kind.POST: 10.0, Kind.SLOW: SLOW_S + 15.0}
IDLE_S: Final = 5.0
"""A connection that was idle for longer is not used again: no proxy here gives one up so soon."""

Answer = tuple[int | Lost, str]
"""Status, and the release that answered."""


class Wire(asyncio.Protocol):
    """One connection, with at most one request on it."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self.closed = False
        self.reusable = False
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    async def ask(self, request: bytes) -> Answer:
        self._answer = asyncio.get_running_loop().create_future()
        self._received, self.reusable = b"", False
        if self._transport is None or self.closed:
            return Lost.RESET, ""
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._conclude(ended=False)

    def eof_received(self) -> bool:
        self._conclude(ended=True)
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 # asyncio names it so
        self.closed = True
        self._conclude(ended=True)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _conclude(self, *, ended: bool) -> None:
        if self._answer is None or self._answer.done():
            self.closed = self.closed or ended
            return
        head, found, body = self._received.partition(b"\r\n\r\n")
        lower = head.lower()
        length = lower.partition(b"content-length:")[2].split(b"\r\n", 1)[0]
        whole = bool(found) and (len(body) >= int(length) if length else ended)
        if whole:
            self.reusable = not ended and b"connection: close" not in lower and bool(length)
            release = lower.partition(b"x-release:")[2].split(b"\r\n", 1)[0].strip().decode()
            self._answer.set_result((int(head[9:12]), release))
        elif ended:
            self._answer.set_result((Lost.RESET, ""))
        self.closed = self.closed or ended


@dataclass(slots=True, kw_only=True)
class Load:
    """One run of the generator; lives in one event loop."""

    ports: tuple[int, ...]
    rate: float
    run: str
    file: TextIO
    draw: random.Random
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    kept: dict[int, deque[Wire]] = field(default_factory=dict[int, deque[Wire]])

    async def send_all(self) -> None:
        """Send until told to end, then wait for what is under way; each has a deadline of its own."""
        begin, n = time.monotonic() + 0.1, 0
        under_way: set[asyncio.Task[None]] = set()
        slow_every = max(1, round(self.rate * SLOW_EVERY_S))
        while not self.ending.is_set():
            due_at = begin + n / self.rate
            if (left_s := due_at - time.monotonic()) > 0:
                await asyncio.sleep(left_s)
            kind = Kind.SLOW if n % slow_every == slow_every // 2 else self._drawn()
            task = asyncio.create_task(self._send(n, kind, due_at))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            n += 1
            if left_s < 0:
                await asyncio.sleep(0)  # behind: what was sent must still be read
        await asyncio.gather(*under_way)

    def _drawn(self) -> Kind:
        return self.draw.choices(list(MIX), weights=list(MIX.values()))[0]

    async def _send(self, n: int, kind: Kind, due_at: float) -> None:
        service = n % len(self.ports) + 1
        port = self.ports[service - 1]
        keeps = kind is Kind.KEPT or (kind is Kind.POST and n % 2 == 0)
        sent_at = time.monotonic()
        wire: Wire | None = None
        try:
            async with asyncio.timeout(DEADLINE_S[kind] - (sent_at - due_at)):
                wire = self._taken(port) if keeps else None
                if wire is None:
                    _, wire = await asyncio.get_running_loop().create_connection(Wire, HOST, port)
                status, release = await wire.ask(self._words(n, kind, keeps=keeps))
        except TimeoutError:
            status, release = Lost.TIMEOUT, ""
        except ConnectionRefusedError:
            status, release = Lost.REFUSED, ""
        except OSError:
            status, release = Lost.RESET, ""
        ended_at = time.monotonic()
        if wire is not None:
            if keeps and wire.reusable and not wire.closed:
                wire.idle_since = ended_at
                self.kept.setdefault(port, deque()).append(wire)
            else:
                wire.close()
        done = Request(
            n=n,
            kind=kind,
            service=service,
            due_at=due_at,
            sent_at=sent_at,
            ended_at=ended_at,
            status=status,
            release=release,
        )
        self.file.write(to_line(done) + "\n")

    def _taken(self, port: int) -> Wire | None:
        """Return a kept connection that, as far as a client can know, is still open."""
        pool = self.kept.setdefault(port, deque())
        while pool:
            wire = pool.pop()
            if not wire.closed and time.monotonic() - wire.idle_since < IDLE_S:
                return wire
            wire.close()
        return None

    def _words(self, n: int, kind: Kind, *, keeps: bool) -> bytes:
        connection = "keep-alive" if keeps else "close"
        body = posted(self.run, n) if kind is Kind.POST else ""
        path = f"/slow?s={SLOW_S:g}" if kind is Kind.SLOW else "/"
        method = "POST" if kind is Kind.POST else "GET"
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def posted(run: str, n: int) -> str:
    """Return the id that a request of this run posts."""
    return f"{run}-{n}"


async def generate(ports: tuple[int, ...], *, rate: float, path: Path, run: str) -> None:
    """Send to the ports in turn until SIGTERM or SIGINT."""
    with path.open("w", encoding="utf-8") as file:
        load = Load(ports=ports, rate=rate, run=run, file=file, draw=random.Random(0))  # noqa: S311 # traffic, not secrets
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, load.ending.set)
        await load.send_all()


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.switch.load", description="An open loop of requests.")
    parser.add_argument("--ports", type=int, nargs="+", required=True)
    parser.add_argument("--rate", type=float, default=150.0, help="requests per second, over all ports")
    parser.add_argument("--file", type=Path, required=True, help="where each request is written down")
    parser.add_argument("--run", default="run", help="begins every id that is posted")
    asked = parser.parse_args()
    asyncio.run(generate(tuple(asked.ports), rate=asked.rate, path=asked.file, run=asked.run))


if __name__ == "__main__":
    main()
