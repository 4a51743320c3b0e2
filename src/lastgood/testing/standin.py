"""A small HTTP service on loopback that fails on demand: what the stand-ins of Vercel and Slack have in common.

A fault is set for an operation and a number of calls, and is used up by them: in-process by `fail`, from another
process by POST `/_control/faults` with the fields of Fault. Faults live in memory: a restart heals, as with the real
thing. Nothing here listens on any address but 127.0.0.1.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self, cast
from urllib.parse import parse_qsl, unquote, urlsplit

BODY_LIMIT_BYTES = 1_000_000
HANG_LIMIT_S = 600.0
REMEMBERED_CALLS = 10_000
LOOPBACK = "127.0.0.1"
CONTROL = "_control"


class FaultKind(StrEnum):
    """What goes wrong instead of an answer."""

    ERROR = "error"
    RATE_LIMIT = "rate_limit"
    DROP = "drop"
    HANG = "hang"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that will go wrong.

    on: the operation it waits for; empty means any. count: how many calls it spoils, 1 or more.
    after_accept: the call is carried out before its answer is spoiled, so that the caller cannot know.
    status and code belong to ERROR, an empty code means the service's usual one; retry_after_s to RATE_LIMIT.
    """

    kind: FaultKind
    on: str = ""
    count: int = 1
    after_accept: bool = False
    status: int = 500
    code: str = ""
    retry_after_s: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"a fault spoils 1 call or more, not {self.count}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request as it arrived. parts: the path's segments, decoded. Header names are lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(unquote(part) for part in self.path.split("/") if part)

    @property
    def bearer(self) -> str | None:
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme == "Bearer" else None

    def fields(self) -> dict[str, object]:
        """The body as named values, whether it came as JSON or as a form. Raises ValueError when it is neither."""
        # By the look of the body and not by its content type, which `curl -d` always gives as a form.
        if not self.body.lstrip().startswith((b"{", b"[")):
            return dict(parse_qsl(self.body.decode()))
        value: object = json.loads(self.body)
        if not isinstance(value, dict):
            raise ValueError("the body is not a JSON object")  # noqa: TRY004 (what was sent is wrong, not a type here)
        return cast("dict[str, object]", value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One response. body: anything json.dumps takes, bytes that go out as they are, or None for no body."""

    status: int = 200
    body: object = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def encoded(self) -> tuple[bytes, Mapping[str, str]]:
        """The body's bytes and the headers that announce them."""
        if self.body is None:
            # No type without a body: told that nothing is JSON, Vercel's client fails to read it and asks again.
            return b"", self.headers
        if isinstance(self.body, bytes):
            return self.body, {"Content-Type": "text/html; charset=utf-8", **self.headers}
        return json.dumps(self.body).encode(), {"Content-Type": "application/json; charset=utf-8", **self.headers}


class StandIn(ABC):
    """A service on loopback, one thread a connection; serves while its `with` block lasts.

    Subclasses answer; they must guard their own state, since calls come from many threads.
    """

    def __init__(self, *, port: int = 0) -> None:
        """port: 0 takes a free one, to be read from `url`. Raises OSError when the port is in use."""
        self._faults: list[Fault] = []
        self._faults_lock = threading.Lock()
        self._calls: deque[tuple[str, Call]] = deque(maxlen=REMEMBERED_CALLS)
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer((LOOPBACK, port), _handler_of(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @abstractmethod
    def operation(self, call: Call) -> str:
        """The name by which faults and tests know what the call asks for; empty: never spoiled, not remembered."""

    @abstractmethod
    def answer(self, call: Call) -> Answer:
        """Carry the call out."""

    @abstractmethod
    def failure(self, fault: Fault) -> Answer:
        """The answer of this service for a fault of kind ERROR or RATE_LIMIT."""

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def fail(self, fault: Fault) -> None:
        """Faults that wait for the same operation are used up in the order in which they were set."""
        with self._faults_lock:
            self._faults.append(fault)

    def heal(self) -> None:
        """Forget every fault that is not used up."""
        with self._faults_lock:
            self._faults.clear()

    def calls(self, operation: str) -> tuple[Call, ...]:
        """What arrived for this operation, oldest first, spoiled or not."""
        return tuple(call for name, call in tuple(self._calls) if name == operation)

    def respond(self, call: Call) -> Answer | None:
        """The answer with a due fault applied; None: drop the connection without an answer."""
        if call.parts[:1] == (CONTROL,):
            return self._controlled(call)
        operation = self.operation(call)
        fault = None
        if operation:
            self._calls.append((operation, call))
            fault = self._due_fault(operation)
        if fault is None:
            return self.answer(call)
        if fault.after_accept:
            self.answer(call)
        match fault.kind:
            case FaultKind.ERROR | FaultKind.RATE_LIMIT:
                return self.failure(fault)
            case FaultKind.HANG:
                self._closing.wait(HANG_LIMIT_S)
                return None
            case FaultKind.DROP:
                return None

    def control(self, call: Call, parts: tuple[str, ...]) -> Answer:
        """Drive this service from another process; parts: what follows `/_control/`. Raises ValueError."""
        raise ValueError(f"no control {call.method} {'/'.join(parts)}")

    def _controlled(self, call: Call) -> Answer:
        parts = call.parts[1:]
        try:
            match call.method, parts:
                case "POST", ("faults",):
                    self.fail(_fault(call.fields()))
                    return Answer(status=204)
                case "DELETE", ("faults",):
                    self.heal()
                    return Answer(status=204)
                case "GET", ("calls", operation):
                    return Answer(body=[f"{one.method} {one.path}" for one in self.calls(operation)])
                case _:
                    return self.control(call, parts)
        except (ValueError, KeyError) as error:
            return Answer(status=400, body={"error": str(error)})

    def _due_fault(self, operation: str) -> Fault | None:
        with self._faults_lock:
            for place, fault in enumerate(self._faults):
                if fault.on in ("", operation):
                    self._faults[place : place + 1] = [replace(fault, count=fault.count - 1)] if fault.count > 1 else []
                    return fault
        return None


def number(fields: Mapping[str, object], name: str, default: float) -> float:
    """A number out of a body. Raises ValueError when something else stands there."""
    value = fields.get(name, default)
    if not isinstance(value, int | float):
        raise ValueError(f"{name} is not a number: {value!r}")  # noqa: TRY004 (what was sent is wrong, not a type here)
    return value


def _fault(fields: Mapping[str, object]) -> Fault:
    return Fault(
        kind=FaultKind(str(fields["kind"])),
        on=str(fields.get("on", "")),
        count=int(number(fields, "count", 1)),
        after_accept=bool(fields.get("after_accept", False)),
        status=int(number(fields, "status", 500)),
        code=str(fields.get("code", "")),
        retry_after_s=int(number(fields, "retry_after_s", 1)),
    )


def _handler_of(standin: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # One write an answer: head and body apart would wait for each other's acknowledgement for 40 ms.
        wbufsize = -1

        def _serve(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            if size > BODY_LIMIT_BYTES:
                self.close_connection = True
                self._send(Answer(status=413))
                return
            address = urlsplit(self.path)
            answer = standin.respond(
                Call(
                    method=self.command,
                    path=address.path,
                    query=dict(parse_qsl(address.query, keep_blank_values=True)),
                    headers={name.lower(): value for name, value in self.headers.items()},
                    body=self.rfile.read(size),
                )
            )
            if answer is None:
                self.close_connection = True
            else:
                self._send(answer)

        # The names that http.server looks for.
        do_GET = _serve  # noqa: N815 (the name http.server calls)
        do_POST = _serve  # noqa: N815 (the name http.server calls)
        do_PATCH = _serve  # noqa: N815 (the name http.server calls)
        do_DELETE = _serve  # noqa: N815 (the name http.server calls)

        def _send(self, answer: Answer) -> None:
            body, headers = answer.encoded()
            self.send_response(answer.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name http.server gives it)
            """Silence: what arrived is remembered by the stand-in."""

    return Handler


def serve_until_told(standin: StandIn) -> None:
    """Serve as a process: say the address on stdout once it answers, end at SIGTERM or SIGINT."""
    told = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda _signum, _frame: told.set())
    with standin:
        sys.stdout.write(f"listening on {standin.url}\n")
        sys.stdout.flush()
        told.wait()
