"""One public port: takes HTTP/1.1 requests and passes each to whatever instance the service has at that moment.

The route is looked up for each request, not for each connection: a switch moves the next request, those in flight end
where they began. A request is taken in whole before it is passed on, so that a slow client keeps no service busy, and
it is sent once.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import h11

READ_BYTES: Final = 65_536
MOST_BYTES: Final = 16 << 20
"""Of one request's body."""
IDLE_S: Final = 75.0
CONNECT_S: Final = 2.0
# RFC 9110, section 7.6.1: for one connection only.
_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
Headers = list[tuple[bytes, bytes]]


class Hold:
    """Where requests from outside wait while they are held. insider: whether a connection from this port to that one is
    one of the services' own, whose requests never wait: they are part of one that is being answered."""

    def __init__(self, insider: Callable[[int, int], bool]) -> None:
        self._insider = insider
        self._over = asyncio.Event()
        self._ends_at = 0.0

    @property
    def on(self) -> bool:
        """Whether requests wait. Nobody has to end it: its time runs out."""
        return not self._over.is_set() and time.monotonic() < self._ends_at

    def begin(self, at_most_s: float) -> None:
        """Hold from now on. Begun again while it is on, its time begins anew."""
        if not self.on:
            self._over.set()
            self._over = asyncio.Event()
        self._ends_at = time.monotonic() + at_most_s

    def end(self) -> None:
        """Pass on what waits, and what comes."""
        self._over.set()

    async def passed(self, port: int, to: int) -> None:
        """Wait until a request of the connection between these ports may be passed on."""
        while self.on and not await asyncio.to_thread(self._insider, port, to):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), self._ends_at - time.monotonic())


@dataclass(slots=True)
class Route:
    """Where a service's requests go. port: None while nothing serves. in_flight: requests by instance."""

    hold: Hold
    port: int | None = None
    instance: str = ""
    in_flight: Counter[str] = field(default_factory=Counter[str])


class _TooLarge(Exception):
    """The request's body is over MOST_BYTES."""


async def serve_client(route: Route, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one client's connection until it ends."""
    connection = h11.Connection(h11.SERVER)
    try:
        while await _one_request(route, connection, reader, writer):
            connection.start_next_cycle()
    except (OSError, h11.ProtocolError, asyncio.IncompleteReadError, TimeoutError):
        pass  # the client is gone, or speaks no HTTP
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _one_request(
    route: Route, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    """Take one request and answer it. Returns whether another may follow on this connection."""
    request = await asyncio.wait_for(_next(connection, reader, writer), IDLE_S)
    if not isinstance(request, h11.Request):
        return False
    try:
        body = await asyncio.wait_for(_body(connection, reader, writer), IDLE_S)
    except _TooLarge:
        await _answer(connection, writer, 413, b"the request is larger than 16 MiB\n")
        return False
    await route.hold.passed(writer.get_extra_info("peername")[1], writer.get_extra_info("sockname")[1])
    if reader.at_eof():  # gave up while it waited, and may have asked again
        return False
    instance = route.instance
    route.in_flight[instance] += 1
    try:
        await _pass_on(route.port, request, body, connection, writer)
    finally:
        route.in_flight[instance] -= 1
    return connection.our_state is h11.DONE and connection.their_state is h11.DONE


async def _next(
    connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None = None
) -> h11.Event:
    """Read until there is an event. Raises RemoteProtocolError when the other side speaks out of turn."""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Event):
            return event
        if event is h11.PAUSED:
            raise h11.RemoteProtocolError("more was sent than was asked for")
        if writer is not None and connection.they_are_waiting_for_100_continue:
            writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        connection.receive_data(await reader.read(READ_BYTES))


async def _body(connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    body = bytearray()
    while True:
        event = await _next(connection, reader, writer)
        if isinstance(event, h11.Data):
            body += event.data
            if len(body) > MOST_BYTES:
                raise _TooLarge
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        else:
            raise h11.RemoteProtocolError("the request ended before it was complete")


async def _pass_on(
    port: int | None, request: h11.Request, body: bytes, client: h11.Connection, writer: asyncio.StreamWriter
) -> None:
    """Send the request to the instance and its answer to the client. What was begun and broke off is broken off."""
    if port is None:
        await _answer(client, writer, 503, b"nothing serves here\n")
        return
    try:
        upstream = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), CONNECT_S)
    except (OSError, TimeoutError):
        await _answer(client, writer, 502, b"the service does not take connections\n")
        return
    try:
        await _relay(upstream[0], upstream[1], request, body, client, writer)
    except (OSError, h11.RemoteProtocolError):
        if client.our_state is not h11.SEND_RESPONSE:
            raise
        await _answer(client, writer, 502, b"the service broke the connection off\n")
    finally:
        upstream[1].close()


async def _relay(
    from_service: asyncio.StreamReader,
    to_service: asyncio.StreamWriter,
    request: h11.Request,
    body: bytes,
    client: h11.Connection,
    writer: asyncio.StreamWriter,
) -> None:
    service = h11.Connection(h11.CLIENT)
    headers = [*_end_to_end(request.headers, without=b"content-length"), (b"connection", b"close")]
    if body or request.method in (b"POST", b"PUT", b"PATCH"):
        headers.append((b"content-length", str(len(body)).encode()))
    sending: tuple[h11.Event, ...] = (
        h11.Request(method=request.method, target=request.target, headers=headers),
        *([h11.Data(data=body)] if body else []),
        h11.EndOfMessage(),
    )
    for part in sending:
        to_service.write(service.send(part) or b"")
    await to_service.drain()
    while True:
        event = await _next(service, from_service)
        match event:
            case h11.InformationalResponse():
                continue
            case h11.Response():
                told = h11.Response(
                    status_code=event.status_code, reason=event.reason, headers=_end_to_end(event.headers)
                )
                writer.write(client.send(told) or b"")
            case h11.Data():
                writer.write(client.send(h11.Data(data=bytes(event.data))) or b"")
            case h11.EndOfMessage():
                writer.write(client.send(h11.EndOfMessage()) or b"")
                await writer.drain()
                return
            case _:
                raise h11.RemoteProtocolError("the service ended its answer early")
        await writer.drain()


def _end_to_end(headers: Iterable[tuple[bytes, bytes]], *, without: bytes = b"") -> Headers:
    """Without what is said for one connection only, the headers that `Connection` names included."""
    named = {part.strip().lower() for name, value in headers if name == b"connection" for part in value.split(b",")}
    return [(name, value) for name, value in headers if name not in _HOP | named | {without}]


async def _answer(client: h11.Connection, writer: asyncio.StreamWriter, status: int, said: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(said)).encode())]
    for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=said), h11.EndOfMessage()):
        writer.write(client.send(event) or b"")
    await writer.drain()
