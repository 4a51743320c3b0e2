"""Exits 0 when the service on that port of this container answers. It starts once a second in each: no asyncio here."""

from __future__ import annotations

import socket
import sys

with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=2) as wire:
    wire.sendall(b"GET /health HTTP/1.0\r\n\r\n")
    sys.exit(0 if wire.recv(64).split(b" ")[1:2] == [b"200"] else 1)
