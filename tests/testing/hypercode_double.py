"""The few lines of HyperCode that the traffic's own tests need: login, missions, chat, and ways to misbehave."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

RELEASE = "v2.0.3"


@dataclass
class HyperCodeDouble:
    """Answers on loopback. Where everything is held, nothing is answered until `hold` is set.

    cut_next_mission: one 201 whose body breaks off.
    """

    port: int = 0
    token: str = "t1"
    missions: list[str] = field(default_factory=list[str])
    asked: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    hold: threading.Event = field(default_factory=threading.Event)
    hold_everything: bool = False
    cut_next_mission: bool = False
    logins: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hold.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def _handler(double: HyperCodeDouble) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self, status: int, body: object, *, announced_extra_bytes: int = 0) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("X-Release", RELEASE)
            self.send_header("X-Releases", f"{RELEASE}, v2.0.6")
            self.send_header("Content-Length", str(len(data) + announced_extra_bytes))
            self.end_headers()
            self.wfile.write(data)
            self.close_connection = announced_extra_bytes > 0

        def _entered(self) -> bool:
            double.asked.release()
            if double.hold_everything:
                double.hold.wait()
            return self.headers.get("Authorization") == f"Bearer {double.token}"

        def do_GET(self) -> None:
            self._answer(200, []) if self._entered() else self._answer(401, {})

        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/login":
                double.logins += 1
                self._answer(200, {"token": double.token})
            elif not self._entered():
                self._answer(401, {})
            elif self.path == "/missions":
                assert 1 <= sent["credits"] <= 500
                assert sent["priority"] in ("low", "normal", "high")
                with double.lock:
                    mission = str(len(double.missions) + 1)
                    cut, double.cut_next_mission = double.cut_next_mission, False
                    double.missions.append(mission)
                self._answer(201, {"id": int(mission)}, announced_extra_bytes=10 if cut else 0)
            else:
                self._answer(200, {"reply": "ok"})

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name http.server gives it)
            """Silence: the tests read the ledger."""

    return Handler
