"""A small HTTP server on loopback that answers, drips, talks nonsense or goes away, as a test wants."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

TICK_S: Final = 0.02
Reply = bytes | Callable[[socket.socket, threading.Event], None]


def answer(body: str | bytes, *, status: int = 200, headers: str = "") -> bytes:
    """A whole HTTP answer."""
    content = body.encode() if isinstance(body, str) else body
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(content)}\r\n{headers}\r\n".encode() + content


def hang(connection: socket.socket, gone: threading.Event) -> None:
    """Take the request and never answer."""
    gone.wait()


def drip_headers(connection: socket.socket, gone: threading.Event) -> None:
    """Send a header that never ends, byte by byte, so that no single read ever waits long."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nx-drip: ")
    _drip(connection, gone)


def drip_body(connection: socket.socket, gone: threading.Event) -> None:
    """Send a body that never ends, byte by byte."""
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n")
    _drip(connection, gone)


def flood(connection: socket.socket, gone: threading.Event) -> None:
    """Send a body that never ends, as fast as it is taken."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while not gone.is_set():
        connection.sendall(b"# flood\n" * 8192)


def _drip(connection: socket.socket, gone: threading.Event) -> None:
    while not gone.wait(TICK_S):
        connection.sendall(b"#")


@dataclass(slots=True)
class Loopback:
    """reply: what is sent next. requests: what arrived, first line and body. url: where to ask."""

    port: int
    reply: Reply = b""
    requests: list[tuple[str, bytes]] = field(default_factory=list[tuple[str, bytes]])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def loopback(reply: Reply = b"") -> Iterator[Loopback]:
    """Serve until the block ends; whoever is still being dripped on is let go then."""
    gone = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = Loopback(port=listener.getsockname()[1], reply=reply)
        workers: list[threading.Thread] = []
        connections: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                worker = threading.Thread(target=_serve, args=(served, connection, gone))
                worker.start()
                workers.append(worker)
                connections.append(connection)

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield served
        finally:
            gone.set()
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for connection in connections:
                with suppress(OSError):  # the client has gone already
                    connection.shutdown(socket.SHUT_RDWR)
            for worker in workers:
                worker.join()


def _serve(served: Loopback, connection: socket.socket, gone: threading.Event) -> None:
    with connection:
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (got := connection.recv(65536)):
                    return
                head += got
            top, _, body = head.partition(b"\r\n\r\n")
            length = next(
                (int(line.split(b":")[1]) for line in top.split(b"\r\n") if line.lower().startswith(b"content-length")),
                0,
            )
            while len(body) < length:
                body += connection.recv(65536)
            served.requests.append((top.split(b"\r\n")[0].decode(), body))
            if callable(served.reply):
                served.reply(connection, gone)
            else:
                connection.sendall(served.reply)
        except OSError:
            return  # the client has had enough


@contextmanager
def nobody() -> Iterator[str]:
    """An address at which nobody listens, and nobody will while the block lasts."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
