"""How the load reads an answer: whole, cut off, or not at all."""

from __future__ import annotations

import asyncio

import pytest

from bench.switch.load import Answer, Wire
from bench.switch.request import Lost


class Line(asyncio.Transport):
    """A connection that takes everything and answers nothing by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def abort(self) -> None:
        pass


async def told(*parts: bytes, ends: bool = False) -> tuple[Wire, Answer | None]:
    """What becomes of a request that is answered by these parts. None: it still waits."""
    wire = Wire()
    wire.connection_made(Line())
    asked = asyncio.ensure_future(wire.ask(b"GET / HTTP/1.1\r\n\r\n"))
    await asyncio.sleep(0)
    for part in parts:
        wire.data_received(part)
    if ends:
        wire.eof_received()
        wire.connection_lost(None)
    await asyncio.sleep(0)
    if asked.done():
        return wire, asked.result()
    asked.cancel()
    return wire, None


HEAD = b"HTTP/1.1 200 OK\r\nX-Release: v1\r\nContent-Length: 4\r\n\r\n"


@pytest.mark.parametrize(
    "parts,ends,answer,reusable",
    [
        ((HEAD + b"body",), False, (200, "v1"), True),
        ((HEAD[:9], HEAD[9:] + b"bo", b"dy"), False, (200, "v1"), True),
        ((HEAD.replace(b"X-", b"Connection: close\r\nX-") + b"body",), False, (200, "v1"), False),
        ((b"HTTP/1.1 503 Service Unavailable\r\n\r\nnobody",), True, (503, ""), False),
        ((HEAD + b"bo",), True, (Lost.RESET, ""), False),
        ((), True, (Lost.RESET, ""), False),
        ((HEAD + b"bo",), False, None, False),
    ],
    ids=["whole", "in parts", "asked to close", "without a length", "cut off", "closed", "not whole yet"],
)
def test_an_answer_counts_when_it_is_whole(
    parts: tuple[bytes, ...], *, ends: bool, answer: Answer | None, reusable: bool
) -> None:
    wire, found = asyncio.run(told(*parts, ends=ends))
    assert found == answer
    assert wire.reusable == reusable


def test_a_connection_that_was_closed_while_nobody_asked_is_known_to_be_closed() -> None:
    wire, _ = asyncio.run(told(HEAD + b"body"))
    assert not wire.closed
    wire.connection_lost(None)
    assert wire.closed
