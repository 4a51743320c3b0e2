"""A unix socket in front of the Docker engine that dies at a chosen request, or says no to it: what an engine does that
is killed, or whose disk is full, without doing it to the engine that others use."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final

ENGINE: Final = Path(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://"))
"""Where the machine's engine listens."""
_PIECE: Final = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Dies:
    """At the first request that matches `at`, such as `POST /containers/[^/]+/stop`, the engine goes away: before it
    arrives, or where it is `done`, after its effect and without an answer. later: how many such requests pass first.
    back_after_s: None for never."""

    at: str
    done: bool = False
    later: int = 0
    back_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SaysNo:
    """Every request that matches `at` is refused, as by an engine whose disk is full."""

    at: str
    message: str
    status: int = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Kills:
    """At the first request that matches `at`, whoever sent it dies (`gone` does that): the engine carries it out, and
    nobody hears the answer. later: how many such requests pass first."""

    at: str
    later: int = 0


class EngineGateway:
    """Forwards to the engine at `engine` what arrives at `path`. fault: what goes wrong; a death happens once.
    struck: how often one did. gone, back: what else happens at a death, and before it listens again: the engine of a
    test's own is killed, and started; or a command is killed."""

    def __init__(self, path: Path, engine: Path) -> None:
        self.path, self._engine = path, engine
        self.fault: Dies | Kills | SaysNo | None = None
        self.struck = 0
        self.gone: Callable[[], None] = lambda: None
        self.back: Callable[[], None] = lambda: None
        self._back_after_s: float | None = None
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._ends: set[socket.socket] = set()
        self._timers: list[threading.Timer] = []
        self.listen()

    @property
    def url(self) -> str:
        """For DOCKER_HOST."""
        return f"unix://{self.path}"

    def listen(self) -> None:
        """Be there, from now on or again."""
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen(64)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def die(self, *, back_after_s: float | None = None) -> None:
        """Go away in the middle of whatever is under way."""
        self._go()
        self.gone()
        if back_after_s is not None:
            timer = threading.Timer(back_after_s, self._return)
            timer.daemon = True
            self._timers.append(timer)
            timer.start()

    def _return(self) -> None:
        self.back()
        self.listen()

    def _go(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            self.path.unlink(missing_ok=True)
        with self._lock:
            ends, self._ends = self._ends, set()
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End for good."""
        for timer in self._timers:
            timer.cancel()
            timer.join()
        self._go()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        engine = socket.socket(socket.AF_UNIX)
        with client, engine, contextlib.suppress(OSError):
            engine.connect(str(self._engine))
            with self._lock:
                self._ends |= {client, engine}
            unanswered = threading.Event()
            back = threading.Thread(target=self._answer, args=(engine, client, unanswered), daemon=True)
            back.start()
            with client.makefile("rb") as stream:
                while request := _request(stream):
                    if not self._let_through(request, client, engine, unanswered):
                        break
            with contextlib.suppress(OSError):
                engine.shutdown(socket.SHUT_WR)
            back.join()

    def _let_through(
        self, request: bytes, client: socket.socket, engine: socket.socket, unanswered: threading.Event
    ) -> bool:
        match fault := self._due(request):
            case SaysNo(status=status, message=message):
                body = json.dumps({"message": message}).encode()
                head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                client.sendall(head.encode() + body)
            case Dies(done=False):
                self.die(back_after_s=fault.back_after_s)
                return False
            case Dies():
                self._back_after_s = fault.back_after_s
                unanswered.set()
                engine.sendall(request)
            case Kills():
                self.gone()
                engine.sendall(request)
            case None:
                engine.sendall(request)
        return True

    def _due(self, request: bytes) -> Dies | Kills | SaysNo | None:
        # `POST /v1.41/containers/create?name=x HTTP/1.1`: the version of the API is nobody's business here.
        line = re.sub(r" /v[0-9.]+/", " /", request.split(b"\r\n", 1)[0].decode())
        with self._lock:
            fault = self.fault
            if fault is None or not re.match(fault.at, line):
                return None
            if isinstance(fault, Dies | Kills) and fault.later:
                self.fault = replace(fault, later=fault.later - 1)
                return None
            self.struck += 1
            if isinstance(fault, Dies | Kills):
                self.fault = None
            return fault

    def _answer(self, engine: socket.socket, client: socket.socket, unanswered: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while piece := engine.recv(_PIECE):
                if unanswered.is_set():
                    self.die(back_after_s=self._back_after_s)
                    return
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)


def _request(stream: BinaryIO) -> bytes:
    """One whole request, empty at the end of the stream."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        if not (line := stream.readline()):
            return b""
        head += line
    fields = {
        name.strip().lower(): value.strip() for name, _, value in (f.partition(b":") for f in head.split(b"\r\n")[1:])
    }
    if fields.get(b"transfer-encoding") == b"chunked":
        return head + _chunks(stream)
    return head + stream.read(int(fields.get(b"content-length", b"0")))


def _chunks(stream: BinaryIO) -> bytes:
    body = b""
    while True:
        size = stream.readline()
        length = int(size.split(b";")[0], 16)
        body += size + stream.read(length + 2)
        if not length:
            return body


@contextmanager
def gateway(path: Path, engine: Path) -> Iterator[EngineGateway]:
    """A gateway for the length of the block."""
    made = EngineGateway(path, engine)
    try:
        yield made
    finally:
        made.close()
