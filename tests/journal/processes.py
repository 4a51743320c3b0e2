"""What the tests let other processes do to a journal. Each says over its pipe how far it is."""

from __future__ import annotations

import os
import resource
from multiprocessing.connection import Connection
from pathlib import Path

from lastgood.core.errors import NeedsHuman, Refused
from lastgood.core.record import Frozen
from lastgood.journal.sqlite import SqliteJournal
from lastgood.testing.world import SteppedClock


def journal_in(directory: Path) -> SqliteJournal:
    return SqliteJournal(directory, clock=SteppedClock())


def append_many(directory: Path, name: str, count: int, said: Connection) -> None:
    """Append `count` records; say each number once it is durable."""
    journal = journal_in(directory)
    for n in range(count):
        said.send(journal.append(Frozen(by=name, why=str(n))).seq)
    said.close()


def claim_once(directory: Path, name: str, go: Connection, said: Connection) -> None:
    """At each message try to claim; say the fencing number, or 0 when refused; hold it until the next message."""
    journal = journal_in(directory)
    while go.recv() != "stop":
        try:
            with journal.claim(name) as lease:
                said.send(lease.fencing)
                go.recv()
        except Refused:
            said.send(0)
            go.recv()
        said.send("free")


def append_until_full(directory: Path, limit_bytes: int, said: Connection) -> None:
    """Append under a limit on the size of files, as on a full disk; say what was raised."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))
    journal = journal_in(directory)
    durable = 0
    try:
        while durable < 10_000:
            durable = journal.append(Frozen(by="ada", why="x" * 500)).seq
    except NeedsHuman as error:
        said.send((durable, error.message))
    os._exit(0)
