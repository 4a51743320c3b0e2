"""An HAProxy of this machine, started for a test, and what stands behind it: servers on loopback, and a name server."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lastgood.core.config import ContainersConfig
from lastgood.core.plan import HELD_AT_MOST_S
from lastgood.targets.compose.edge import Edge
from lastgood.targets.compose.haproxy import (
    CONFIG_FILE,
    INSIDE,
    SOCKET_FILE,
    Route,
    Runtime,
    configuration,
    publish_from,
)
from lastgood.targets.compose.kept import Shelf
from lastgood.targets.compose.project import Project
from lastgood.targets.compose.stack import Stack
from tests.contract.rigs.clock import CLOCK

WEB: Final = Route(service="web", port=8080, patience_s=0.75, names=("web", "shop-web"))
# RFC 6455, 1.3, with its example of a key; HAProxy looks at it
SWITCHED: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


@contextmanager
def answering(text: str, asked: list[bytes]) -> Generator[int]:
    """A server on loopback that notes what it is asked, says `text` and closes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    asked.append(client.recv(4096))
                    client.sendall(f"HTTP/1.0 200 OK\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        over.set()
        server.shutdown(socket.SHUT_RDWR)


@contextmanager
def talking() -> Generator[int]:
    """A server on loopback that makes a websocket of each connection, and says again what it is told on it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    threading.Thread(target=talk, args=(client,), daemon=True).start()

        def talk(client: socket.socket) -> None:
            with client, contextlib.suppress(OSError):
                client.recv(4096)
                client.sendall(SWITCHED)
                while said := client.recv(4096):
                    client.sendall(said)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@contextmanager
def naming(*, v6: str = "") -> Generator[socket.socket]:
    """A name server that says of every name that it is loopback, as the engine's own does for its containers, and at
    another address. Closing it is what happens when the engine is killed."""
    aaaa = b"\xc0\x0c\0\x1c\0\1\0\0\0\1\0\x10" + socket.inet_pton(socket.AF_INET6, v6) if v6 else b""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    asked, client = server.recvfrom(4096)
                    # the question ends with its type and class; RFC 1035, 4.1
                    question = asked[12 : asked.index(b"\0", 12) + 5]
                    found = {b"\0\1": b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4\x7f\0\0\1", b"\0\x1c": aaaa}.get(question[-4:-2])
                    counts = b"\0\1\0\1\0\0\0\0" if found else b"\0\1\0\0\0\0\0\0"
                    server.sendto(asked[:2] + b"\x81\x80" + counts + question + (found or b""), client)

        threading.Thread(target=serve, daemon=True).start()
        yield server


def started(folder: Path, text: str, changes: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """An HAProxy of this machine with its socket open. changes: what in the file is another thing here."""
    for old, new in {INSIDE: str(folder), "    uid 99\n    gid 99\n": "", **changes}.items():
        assert old in text
        text = text.replace(old, new)
    (folder / CONFIG_FILE).write_text(text)
    program = shutil.which("haproxy") or "/usr/sbin/haproxy"
    process = subprocess.Popen([program, "-db", "-f", str(folder / CONFIG_FILE)], stderr=subprocess.DEVNULL)
    while not (folder / SOCKET_FILE).exists():
        assert process.poll() is None, "haproxy did not start"
        time.sleep(0.02)
    return process


class Running:
    """An HAProxy of this machine with one service in two slots, at addresses instead of names. names: the port of a
    server that is asked for names instead. at_most_s: how long everybody's requests wait."""

    def __init__(
        self, folder: Path, one: int, two: int, asked: list[bytes], *, names: int = 0, at_most_s: float = HELD_AT_MOST_S
    ) -> None:
        self.folder, self.asked = folder, asked
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        text = configuration([WEB], {"web": ["one", "two"]}, uid=os.getuid(), published=publish_from([WEB]))
        self.process = started(
            folder,
            text,
            {
                "bind :20000": f"bind 127.0.0.1:{self.port}",
                "bind :8080": f"bind unix@{folder / 'inside.sock'}",
                "abns@lastgood-": f"abns@{self.port}-",
                f"expire {HELD_AT_MOST_S:.0f}s": f"expire {at_most_s:.0f}s",
                "127.0.0.11:53": f"127.0.0.1:{names or 53}",
                "one:8080": f"one:{one}" if names else f"127.0.0.1:{one}",
                "two:8080": f"two:{two}" if names else f"127.0.0.1:{two}",
                "retries 3": "retries 40",
            },
        )
        self.runtime = Runtime(folder, anew="docker restart edge")

    def answer(self) -> str:
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as line:
            return self._answer_on(line)

    def answer_inside(self) -> str:
        """As a service that asks another one."""
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(10)
            line.connect(str(self.folder / "inside.sock"))
            return self._answer_on(line)

    @staticmethod
    def _answer_on(line: socket.socket) -> str:
        line.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return b"".join(iter(lambda: line.recv(4096), b"")).decode().rsplit("\r\n\r\n", 1)[-1]

    def ready(self) -> list[str]:
        return [slot.name for slot in self.runtime.slots() if slot.ready and slot.service == "web"]


def edge_in(folder: Path, **said: object) -> Edge:
    """An edge before web alone, with its folder made. said: what stands in `containers.edge` beside the route."""
    services = ["web", "chat"]
    config = ContainersConfig.model_validate(
        {"compose": {"project": "shop"}, "services": services, "edge": {"routes": {"web": 8080}, **said}}
    )
    assert config.edge is not None
    edge = Edge(config.edge, Stack(config=config, root=folder, state=folder, shelf=Shelf(folder), clock=CLOCK))
    edge.folder.mkdir(exist_ok=True)
    return edge


PROJECT: Final = Project({"name": "shop", "services": {"web": {}}})
