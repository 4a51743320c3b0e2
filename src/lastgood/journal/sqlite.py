"""The journal in an SQLite file beside the stack: one table, written through SQLAlchemy Core, so that Postgres can
follow with the same chain.

Per append, under the lock of journal.lock: read the newest line and the head, insert, commit (WAL, synchronous=FULL),
then replace journal.head. A process that dies between commit and head leaves the head one line behind; the next append
moves it on first. Any other difference between the two is damage, and nothing goes on.
A connection lives for one call: a file that was swapped for an old copy is read as what it is now, and no descriptor
is shared by a fork.
Never: change or remove a line; append to a chain that does not hold at its end.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Final, ParamSpec, TypeVar
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    insert,
    inspect,
    select,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from lastgood.core.errors import NeedsHuman, Refused
from lastgood.core.ports import Clock, Lease, Right
from lastgood.core.record import EVENT, Event, Record
from lastgood.journal import lease
from lastgood.journal.chain import START, Head, Line, faults, head_fault, is_one_behind, seal
from lastgood.journal.private_file import (
    locked,
    make_directory,
    open_private,
    refuse_link,
    replace_whole,
)

BUSY_TIMEOUT_S: Final = 10.0
FILES: Final = ("journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm", "journal.head", "journal.lock")
LEASES: Final = {Right.RUN: "lease.lock", Right.WATCH: "watch.lock", Right.PREPARE: "prepare.lock"}

RECORDS: Final = Table(
    "records",
    MetaData(),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", String(40), nullable=False),
    Column("event", Text, nullable=False),
    Column("prev", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)
_HEAD: Final = TypeAdapter(Head)
# UnicodeDecodeError: a damaged file can make sqlite3 fail to decode the text of its own error
_UNUSABLE: Final = (OSError, SQLAlchemyError, sqlite3.Error, UnicodeDecodeError)
_P = ParamSpec("_P")
_R = TypeVar("_R")


def _or_needs_human(act: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn every way in which a disk or SQLite says no into NeedsHuman: without a memory nothing may be done."""

    @wraps(act)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return act(*args, **kwargs)
        except _UNUSABLE as error:
            raise NeedsHuman(
                f"the journal cannot be used: {_reason(error)}; nothing further is done",
                hint="df -h, then lastgood audit verify",
            ) from error

    return guarded


class SqliteJournal:
    """core.ports.Journal in `directory`. Nothing is made there before the first append or claim."""

    def __init__(self, directory: Path, *, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock
        self._engine = _engine(directory / "journal.sqlite")
        # the part of the chain that this process has verified: later reads only verify what follows it
        self._verified = START
        self._thread = threading.RLock()

    @_or_needs_human
    def append(self, event: Event) -> Record:
        text = _canonical(event)
        with self._alone(), self._engine.execution_options(begin="BEGIN IMMEDIATE").connect() as connection:
            RECORDS.create(connection, checkfirst=True)
            last, head = _last_line(connection), self._head()
            changed = faults([last], after=Head(seq=last.seq - 1, hash=last.prev)) if last else ()
            self._hold([*changed, *filter(None, [self._fault_at_end(last, head)])])
            if last is not None and is_one_behind(last, head):
                self._keep_head(last.head)
            line = seal(last.head if last else START, at=self._clock.now().isoformat(), event=text)
            connection.execute(insert(RECORDS), [_row(line)])
            connection.commit()
            self._keep_head(line.head)
        return Record(seq=line.seq, at=datetime.fromisoformat(line.at), event=event, hash=line.hash)

    @_or_needs_human
    def records(self, *, after: int = 0) -> Sequence[Record]:
        with self._thread:
            known = self._verified if after >= self._verified.seq else START
            lines, last, head = self._read(known)
            self._hold([*faults(lines, after=known), *filter(None, [self._fault_at_end(last, head)])])
            found = [_decoded(line) for line in lines if line.seq > after]
            self._verified = last.head if last else START
        return found

    @contextmanager
    def claim(self, owner: str, right: Right = Right.RUN) -> Generator[Lease]:
        descriptor, holder = self._take(owner, right)
        try:
            yield Lease(owner=holder.owner, fencing=holder.fencing)
        finally:
            os.close(descriptor)

    @_or_needs_human
    def holder(self, right: Right = Right.RUN) -> str | None:
        path = self._directory / LEASES[right]
        if not os.path.lexists(path):
            return None
        with self._alone():
            found = lease.look(path)
        return str(found) if found else None

    def verify(self) -> tuple[str, ...]:
        try:
            with self._thread:
                lines, last, head = self._read(START)
        except _UNUSABLE as error:
            return (f"the journal cannot be read: {_reason(error)}",)
        except NeedsHuman as error:
            return (error.message,)
        return (*faults(lines, after=START), *filter(None, [self._fault_at_end(last, head)]))

    @_or_needs_human
    def _take(self, owner: str, right: Right) -> tuple[int, lease.Holder]:
        make_directory(self._directory)
        with self._alone():
            try:
                return lease.take(self._directory / LEASES[right], owner=owner, now=self._clock.now())
            except Refused as error:
                raise Refused(f"the right to {right.value} is {error.message}", hint=error.hint) from error

    @contextmanager
    def _alone(self) -> Generator[None]:
        """Make what is not there yet, and keep every other thread and process out for the length of the block."""
        make_directory(self._directory)
        for name in FILES:
            refuse_link(self._directory / name)
        with self._thread, locked(self._directory / "journal.lock"):
            # with 0600 before SQLite opens it: it gives -wal and -shm the rights of the file they belong to
            os.close(open_private(self._directory / "journal.sqlite"))
            yield

    def _read(self, known: Head) -> tuple[list[Line], Line | None, Head]:
        """Return the stored lines after `known`, the newest stored line, and the head. Raises NeedsHuman when `known`
        itself is not there any more."""
        path = self._directory / "journal.sqlite"
        if not os.path.lexists(path):
            return [], None, self._head()
        for name in FILES:
            refuse_link(self._directory / name)
        with locked(self._directory / "journal.lock", shared=True), self._engine.connect() as connection:
            head = self._head()
            if not inspect(connection).has_table(RECORDS.name):
                return [], None, head
            lines = _lines(connection, since=known.seq)
        if known != START:
            if not lines or lines[0].head != known:
                self._hold([f"record {known.seq} is not the one that was read here before: an old copy was put back"])
            return lines[1:], lines[-1], head
        return lines, lines[-1] if lines else None, head

    def _fault_at_end(self, last: Line | None, head: Head) -> str:
        """Compare the newest line with its own hash, with the head, and with what this process saw before."""
        seq = last.seq if last else 0
        if seq < self._verified.seq:
            return f"record {self._verified.seq} was read here before and is gone: the newest is record {seq}"
        return head_fault(last, head)

    def _hold(self, found: Sequence[str]) -> None:
        """Stop on the first fault."""
        if found:
            raise NeedsHuman(f"the journal does not hold: {found[0]}", hint="lastgood audit verify")

    def _head(self) -> Head:
        path = self._directory / "journal.head"
        refuse_link(path)
        try:
            return _HEAD.validate_json(path.read_bytes())
        except FileNotFoundError:
            return START
        except ValidationError:
            raise NeedsHuman(
                "the journal does not hold: journal.head is damaged", hint="lastgood audit verify"
            ) from None

    def _keep_head(self, head: Head) -> None:
        replace_whole(self._directory / "journal.head", _HEAD.dump_json(head))


def _engine(path: Path) -> Engine:
    """Make an engine whose transactions begin as `begin` of the execution options says."""

    def connect() -> sqlite3.Connection:
        # mode=rw: SQLite makes no file by itself, the journal does, with its rights. isolation_level=None: it sends no
        # BEGIN of its own, which would be too late to read the newest line under the write lock.
        address = f"file:{quote(str(path.absolute()))}?mode=rw"
        connection = sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
        except BaseException:
            connection.close()
            raise
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction] # SQLAlchemy calls it
        connection.exec_driver_sql(str(connection.get_execution_options().get("begin", "BEGIN")))

    return engine


def _lines(connection: Connection, *, since: int) -> list[Line]:
    """Read lines from `since` on, that one included, as they are stored: foreign types are made to fail their hash."""
    rows = connection.execute(select(RECORDS).where(RECORDS.c.seq >= since).order_by(RECORDS.c.seq))
    return [_line(*row) for row in rows]


def _last_line(connection: Connection) -> Line | None:
    row = connection.execute(select(RECORDS).order_by(RECORDS.c.seq.desc()).limit(1)).first()
    return _line(*row) if row else None


def _line(seq: object, at: object, event: object, prev: object, hash_: object) -> Line:
    return Line(seq=seq if isinstance(seq, int) else -1, at=str(at), event=str(event), prev=str(prev), hash=str(hash_))


def _row(line: Line) -> dict[str, str | int]:
    return {"seq": line.seq, "at": line.at, "event": line.event, "prev": line.prev, "hash": line.hash}


def _canonical(event: Event) -> str:
    """Write the event as JSON, and make sure that it can be read again: a line that cannot would block every later
    command."""
    try:
        text = EVENT.dump_json(event, warnings="error")
        if EVENT.validate_json(text) == event:
            return text.decode()
    except (PydanticSerializationError, ValidationError) as error:
        raise NeedsHuman(f"a {event.kind} record cannot be written so that it can be read again") from error
    raise NeedsHuman(f"a {event.kind} record cannot be written so that it can be read again")


def _decoded(line: Line) -> Record:
    try:
        event = EVENT.validate_json(line.event)
        return Record(seq=line.seq, at=datetime.fromisoformat(line.at), event=event, hash=line.hash)
    except ValueError as error:
        kind = _kind(line.event)
        raise NeedsHuman(
            f"record {line.seq} ({kind}) cannot be read by this version: a newer lastgood wrote it",
            hint="pip install --upgrade lastgood",
        ) from error


def _kind(text: str) -> str:
    """Name the kind of an event that this version does not know."""
    try:
        found: object = json.loads(text)["kind"]
    except (ValueError, KeyError, TypeError):
        return "without a kind"
    return f"{found!s:.60}"


def _reason(error: Exception) -> str:
    """One line of what the disk or SQLite said."""
    said = str(getattr(error, "orig", None) or error)
    return said.splitlines()[0][:200] if said else type(error).__name__
