"""The service whose releases are switched: 20 ms of work, 1.5 s until it serves, and a quiet end on SIGTERM.

    python service.py           GET anything, POST an id, GET /slow?s=10, GET /health; X-Release says who answered
    python service.py ledger    writes each posted id down, once for each time that it is asked to
    python service.py ids       prints what was written down
    python service.py worker    has no traffic, and does not listen to SIGTERM

An id that was posted is acknowledged when the ledger has it. The standard library only: with healthy.py this file is
the whole image.
"""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import time
from pathlib import Path

PORT, LEDGER_PORT = 8080, 9000
WORK_S = 0.02
LEDGER = Path("/data/ids")


class Ledger:
    """The way to the ledger: one connection, one id at a time."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._wire: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def write(self, name: bytes) -> bool:
        """Never repeated here: an id that stands there twice was posted twice."""
        async with self._turn:
            try:
                if self._wire is None or self._wire[0].at_eof():
                    self._wire = await asyncio.wait_for(asyncio.open_connection("ledger", LEDGER_PORT), 2)
                reader, writer = self._wire
                writer.write(name + b"\n")
                if await asyncio.wait_for(reader.readline(), 2) == b"ok\n":
                    return True
            except (OSError, TimeoutError):
                pass
            self._wire = None
            return False


class Service:
    """Answers until told to stop; then answers what was asked, and ends."""

    def __init__(self, release: str) -> None:
        self.release = release
        self.ending = asyncio.Event()
        self._ledger = Ledger()
        self._answering = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._idle: set[asyncio.StreamWriter] = set()

    async def run(self) -> None:
        await asyncio.sleep(float(os.environ.get("BOOT_S", "1.5")))
        server = await asyncio.start_server(self._client, "0.0.0.0", PORT, backlog=1024)  # noqa: S104 # a container's own
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.ending.set)
        await self.ending.wait()
        server.close()
        for writer in self._idle:
            writer.close()
        await self._quiet.wait()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        keep = True
        try:
            while keep and not self.ending.is_set():
                self._idle.add(writer)
                head = await reader.readuntil(b"\r\n\r\n")
                self._idle.discard(writer)
                self._answering += 1
                self._quiet.clear()
                try:
                    keep = await self._answer(head, reader, writer)
                finally:
                    self._answering -= 1
                    if not self._answering:
                        self._quiet.set()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._idle.discard(writer)
            writer.close()

    async def _answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        method, path, version = head.split(b"\r\n", 1)[0].split(b" ")
        lower = head.lower()
        length = int(lower.partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
        body = await reader.readexactly(length)
        status = b"200 OK"
        if path.startswith(b"/slow"):
            await asyncio.sleep(float(path.partition(b"s=")[2] or 1))
        elif path != b"/health":
            await asyncio.sleep(WORK_S)
        if method == b"POST" and not await self._ledger.write(body):
            status = b"503 Service Unavailable"
        keep = version == b"HTTP/1.1" and b"connection: close" not in lower and not self.ending.is_set()
        release = self.release.encode()
        writer.write(
            b"HTTP/1.1 %b\r\nX-Release: %b\r\nContent-Length: %d\r\nConnection: %b\r\n\r\n%b"
            % (status, release, len(release), b"keep-alive" if keep else b"close", release)
        )
        await writer.drain()
        return keep


async def keep_ledger(book: io.FileIO) -> None:
    """Write each id on a line. book: what the ledger before it wrote is in it; the file outlives the container."""

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            book.write(line)
            writer.write(b"ok\n")
        writer.close()

    ending = asyncio.Event()
    server = await asyncio.start_server(client, "0.0.0.0", LEDGER_PORT)  # noqa: S104 # a container's own
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    await ending.wait()
    server.close()


def worker() -> None:
    """The first process of a container gets no signal that it does not ask for: the usual way of being deaf."""
    while True:
        time.sleep(3600)


def main(words: list[str]) -> None:
    match words:
        case ["ledger"]:
            asyncio.run(keep_ledger(LEDGER.open("ab", buffering=0)))
        case ["ids"]:
            sys.stdout.write(LEDGER.read_text() if LEDGER.exists() else "")
        case ["worker"]:
            worker()
        case _:
            asyncio.run(Service(os.environ.get("RELEASE", "")).run())


if __name__ == "__main__":
    main(sys.argv[1:])
