r"""Reads a plain dump, SQL as pg_dump writes it, and loads it without psql.

psql would carry out every backslash command of such a file as whoever runs it: `\!` runs a program, `\copy` reads and
writes files of this host, `\connect` goes elsewhere (CVE-2025-8714). `\restrict` turns them off only in a psql that
knows it (of August 2025), and which psql a host has is not ours to say. So no client reads the file: it is taken apart
here into the statements and the rows of its COPYs, and each is sent to the server as it is. A backslash outside of a
quotation, a comment or a row is refused, and only what pg_dump itself writes is let through: no COPY of the server's
own files and programs, nothing that reaches beyond the database, nothing that ends the one transaction. The functions
and triggers of a dump are the server's affair, as they are when pg_restore reads them.

The same walk through the file examines it before anything is made, and loads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Timer
from typing import IO, Final

import psycopg

from lastgood.core.errors import Refused
from lastgood.targets.postgres.connect import Connection
from lastgood.targets.postgres.server_log import OURS

HEADER: Final = (b"--", b"-- PostgreSQL database dump", b"--")
_CLUSTER: Final = b"-- PostgreSQL database cluster dump"
TRAILER: Final = b"-- PostgreSQL database dump complete"
LONGEST: Final = 1 << 30
"""Bytes of a statement: the server takes no more in one (PostgreSQL source, MaxAllocSize)."""
_ROWS_AT_ONCE: Final = 1 << 18
_SHOWN: Final = 60

# pg_dump 15 to 18, without --create. What it writes for a cluster, for other databases, or in binary upgrades is left
# out, and so is what only a person would write.
_KNOWN: Final = frozenset(
    {
        "alter", "comment", "copy", "create", "drop", "grant", "insert", "refresh", "revoke",
        "security", "select", "set",
    }
)  # fmt: skip
_BEYOND: Final = re.compile(
    rb"(?:ALTER|CREATE|DROP)\s+(?:DATABASE|SYSTEM|ROLE|GROUP|TABLESPACE|SUBSCRIPTION|USER(?!\s+MAPPING))\b"
    rb"|COMMENT\s+ON\s+(?:DATABASE|ROLE|TABLESPACE)\b"
    rb"|SECURITY\s+LABEL\s+(?:FOR\s+\S+\s+)?ON\s+(?:DATABASE|ROLE|TABLESPACE)\b"
    rb"|(?:GRANT|REVOKE)\s+[A-Z,\s]+\sON\s+(?:DATABASE|TABLESPACE|PARAMETER)\b"
    rb"|(?:GRANT|REVOKE)\s(?:(?!\sON\s).)*$",  # a role
    re.IGNORECASE | re.DOTALL,
)
_SELECTS: Final = re.compile(
    rb"SELECT\s+(?:\*\s+FROM\s+)?pg_catalog\."
    rb"(?:set_config|setval|lo_create|lo_open|lo_close|lo_unlink|lowrite|pg_restore_\w+_stats)\s*\(",
    re.IGNORECASE,
)
_OWN_TRANSACTION: Final = re.compile(rb"(?:BEGIN|COMMIT)\s*;", re.IGNORECASE)
_COPY: Final = re.compile(rb"COPY\s(.*?)\sFROM\s+stdin\s*;", re.IGNORECASE | re.DOTALL)
_STRINGS: Final = re.compile(rb"SET\s+standard_conforming_strings\s*(?:=|TO)\s*'?(\w+)", re.IGNORECASE)
_ENCODING: Final = re.compile(rb"SET\s+client_encoding\s*(?:=|TO)\s*'?(\w+)", re.IGNORECASE)
_AMBIGUOUS: Final = frozenset({"BIG5", "GB18030", "GBK", "JOHAB", "SHIFT_JIS_2004", "SJIS", "UHC"})
"""In these a byte of a character may look like a quote or a backslash (PostgreSQL docs 23.3.1: no server encodings)."""
_VERSION: Final = re.compile(rb"-- Dumped from database version (\d+)")
_ROWS_OF: Final = re.compile(rb"-- Data for Name: .*; Type: TABLE DATA; ")
_RESTRICT: Final = re.compile(rb"\\(restrict|unrestrict) ([A-Za-z0-9]+)")
_END_OF_ROWS: Final = re.compile(rb"\\\.\r?\n?")

# What matters outside of quotations (PostgreSQL docs 4.1). A word takes its dollars along: `a$b$` quotes nothing.
_TOKEN: Final = re.compile(
    rb"--[^\r\n]*|/\*|[eE]'|'|\"|\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$|[A-Za-z0-9_\x80-\xff][\w$\x80-\xff]*"
    rb"|[;()\\\x00]"
)
_PARTS: Final = {b"'": re.compile(rb"'"), b'"': re.compile(rb'"'), b"e'": re.compile(rb"\\.|''|'", re.DOTALL)}
_COMMENT: Final = re.compile(rb"/\*|\*/")


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, and where it begins, from 1. rows: of its COPY, to be used up before the next statement is asked
    for; None when it is no COPY."""

    text: bytes
    line: int
    rows: Iterator[bytes] | None = None


@dataclass(slots=True)
class PlainDump:
    """What a plain dump says of itself. major: of the server it is of, 0 where it does not say. tables: whose rows it
    holds."""

    major: int = 0
    tables: int = 0


def examine(file: IO[bytes], *, what: str) -> PlainDump:
    """Read a dump whole. what: its name, for what is said. Raises Refused, naming the line, when it is not a dump, not
    all of one, or has anything in it that pg_dump does not write."""
    script = _Script(file, what)
    for statement in script:
        for _ in statement.rows or ():
            pass
    return script.said


def load(connection: Connection, file: IO[bytes], *, what: str, deadline_s: float) -> None:
    """Load a dump into the empty database that is connected to, all or nothing. The session has the dump's settings
    afterwards, and must not be used for anything else.

    Raises Refused with the line, and what the server said of it.
    """
    with _no_longer_than(connection, deadline_s), connection.transaction():
        connection.execute("SET LOCAL standard_conforming_strings = on")
        for statement in _Script(file, what):
            try:
                _send(connection, statement)
            except psycopg.errors.QueryCanceled:
                raise
            except psycopg.Error as error:
                if connection.broken:
                    raise
                told = " ".join(str(error).split())
                raise Refused(f"{what}: line {statement.line}: `{_shown(statement.text)}`: {told}") from error


def _send(connection: Connection, statement: Statement) -> None:
    if statement.rows is None:
        connection.execute(OURS + statement.text)
        return
    with connection.cursor() as cursor, cursor.copy(OURS + statement.text) as copy:
        for block in statement.rows:
            copy.write(block)


@contextmanager
def _no_longer_than(connection: Connection, deadline_s: float) -> Generator[None]:
    """The dump turns statement_timeout off."""
    too_long = Timer(deadline_s, connection.cancel)
    too_long.start()
    try:
        yield
    finally:
        too_long.cancel()


def _shown(text: bytes) -> str:
    return " ".join(text.decode("utf-8", "replace").split())[:_SHOWN]


@dataclass(slots=True)
class _Script:
    r"""One walk through the file. said: what was found out so far.

    _key: of `\restrict`. _complete: the trailer was seen, and nothing may follow but the end of the restriction.
    """

    _file: IO[bytes]
    _what: str
    said: PlainDump = field(default_factory=PlainDump)
    _line: int = 0
    _key: bytes = b""
    _complete: bool = False
    _began: bool = False

    def __iter__(self) -> Iterator[Statement]:
        self._check_header()
        reading = _Reading()
        while line := self._next():
            if reading.is_between and (note := line.strip()):
                if note.startswith(b"\\") and self._restricts(note, line):
                    continue
                if note.startswith(b"--"):
                    self._take_note(note)
            for text in reading.take(line, self._refuse):
                yield from self._checked(Statement(text=text, line=self._line - text.count(b"\n")))
        if not self._complete or not reading.is_between:
            raise Refused(f"{self._what} ends at line {self._line}: expected `{TRAILER.decode()}`, so it is not whole")
        if self._key:
            raise Refused(f"{self._what} ends at line {self._line}: expected its `\\unrestrict`, so it is not whole")

    def _next(self) -> bytes:
        self._line += 1
        line = self._file.readline(LONGEST)
        if len(line) == LONGEST:
            raise self._refuse(f"is longer than {LONGEST} bytes")
        return line

    def _check_header(self) -> None:
        for expected in HEADER:
            line = self._next().rstrip(b"\r\n")
            if line == expected:
                continue
            if line == _CLUSTER:
                raise Refused(f"{self._what} is of a whole cluster: expected what pg_dump makes of one database")
            if not line and self._line == 1:
                raise Refused(f"{self._what} is empty, or begins with an empty line: expected a dump")
            raise Refused(f"{self._what} begins with `{_shown(line)}`: expected `{HEADER[1].decode()}`")

    def _restricts(self, note: bytes, line: bytes) -> bool:
        r"""Whether the line is pg_dump's own `\restrict`, or the end of it: the two that are allowed, each at its one
        place."""
        found = _RESTRICT.fullmatch(note)
        if found is None or not line.startswith(b"\\"):
            return False
        begins, key = found[1] == b"restrict", found[2]
        if begins and not self._key and not self._began:
            self._key, self._began = key, True
        elif not begins and self._complete and key == self._key:
            self._key = b""
        else:
            raise self._refuse(f"`{_shown(note)}` is not where pg_dump writes it: expected it there alone")
        return True

    def _take_note(self, note: bytes) -> None:
        """A comment between two statements."""
        if self._complete and note != b"--":
            raise self._refuse("goes on after the end of the dump: expected nothing there")
        if note == TRAILER:
            self._complete = True
        elif found := _VERSION.match(note):
            self.said.major = int(found[1])
        elif _ROWS_OF.match(note):
            self.said.tables += 1

    def _checked(self, statement: Statement) -> Iterator[Statement]:
        text = statement.text
        first = re.match(rb"\w*", text)
        if self._complete:
            raise self._refuse("goes on after the end of the dump: expected nothing there")
        self._began = True
        if _OWN_TRANSACTION.fullmatch(text):
            return  # of a large object: all of the dump is one transaction
        word = first[0].decode("ascii", "replace").lower() if first else ""
        if word not in _KNOWN or (word == "select" and not _SELECTS.match(text)):
            raise self._refuse(f"`{_shown(text)}` is nothing that pg_dump writes: expected only that")
        if _BEYOND.match(text):
            raise self._refuse(f"`{_shown(text)}` reaches beyond the database: expected pg_dump without --create")
        if (found := _STRINGS.match(text)) and found[1].lower() != b"on":
            raise self._refuse("standard_conforming_strings is off: expected a dump of a database where it is on")
        if (found := _ENCODING.match(text)) and found[1].decode("ascii", "replace").upper() in _AMBIGUOUS:
            raise self._refuse(f"is encoded in {found[1].decode()}: expected pg_dump --encoding=UTF8")
        if word != "copy":
            yield statement
            return
        if _COPY.fullmatch(text) is None:
            raise self._refuse(f"`{_shown(text)}` is nothing that pg_dump writes: expected only that")
        rows = self._rows()
        yield Statement(text=text, line=statement.line, rows=rows)
        for _ in rows:
            pass

    def _rows(self) -> Iterator[bytes]:
        """The rows of a COPY, many at once, without the line that ends them."""
        block: list[bytes] = []
        held, began = 0, self._line
        while line := self._next():
            if _END_OF_ROWS.fullmatch(line):
                yield b"".join(block)
                return
            block.append(line)
            held += len(line)
            if held > _ROWS_AT_ONCE:
                yield b"".join(block)
                block, held = [], 0
        raise Refused(
            f"{self._what} ends in the middle of the rows of line {began}: expected `\\.`, so it is not whole"
        )

    def _refuse(self, why: str) -> Refused:
        return Refused(f"{self._what}: line {self._line}: {why}")


@dataclass(slots=True)
class _Reading:
    """Where in the SQL a line begins: what is open, and what there is of a statement that is not over.

    _within: what is quoted by: a quote, a dollar's tag, or `/*` with its depth. _words: the first of the statement, for
    the bodies of functions that are SQL themselves (PostgreSQL docs, CREATE FUNCTION: BEGIN ATOMIC ... END).
    """

    _parts: list[bytes] = field(default_factory=list[bytes])
    _held: int = 0
    _within: bytes = b""
    _depth: int = 0
    _brackets: int = 0
    _blocks: int = 0
    _words: list[bytes] = field(default_factory=list[bytes])

    @property
    def is_between(self) -> bool:
        """Whether no statement is open."""
        return not self._parts and not self._within

    def take(self, line: bytes, refuse: Callable[[str], Refused]) -> Iterator[bytes]:
        """Yield the statements that end in this line. refuse: makes an error that names the line."""
        at = begins = 0
        while at < len(line):
            if self._within:
                at = self._leave(line, at)
                continue
            found = _TOKEN.search(line, at)
            if found is None:
                break
            token, at = found[0], found.end()
            if token.startswith(b"--"):
                line = line[: found.start()] + line[at:]
                at = found.start()
            elif token == b"\\":
                word = re.match(rb"\\\S*", line[found.start() :])
                told = _shown(word[0]) if word else "\\"
                raise refuse(f"`{told}` is a command for psql, which would run on this host: expected SQL only")
            elif token == b"\x00":
                raise refuse("has a byte that no text has: expected SQL")
            elif self._ends(token):
                yield b"".join((*self._parts, line[begins:at])).strip()
                begins = at
                self._begin_anew()
        rest = line[begins:]
        if self._parts or self._within or rest.strip():
            self._parts.append(rest)
            self._held += len(rest)
            if self._held > LONGEST:
                raise refuse(f"is of a statement of more than {LONGEST} bytes")

    def _begin_anew(self) -> None:
        self._parts, self._words = [], []
        self._held = self._brackets = self._blocks = 0

    def _leave(self, line: bytes, at: int) -> int:
        """Look for the end of what is quoted; return where to go on."""
        if self._within == b"/*":
            found = _COMMENT.search(line, at)
            if found is not None:
                self._depth += 1 if found[0] == b"/*" else -1
                self._within = b"/*" if self._depth else b""
        elif self._within.startswith(b"$"):
            end = line.find(self._within, at)
            if end < 0:
                return len(line)
            end += len(self._within)
            self._within = b""
            return end
        else:
            found = _PARTS[self._within].search(line, at)
            if found is not None and found[0] in (b"'", b'"'):
                self._within = b""
        return found.end() if found else len(line)

    def _ends(self, token: bytes) -> bool:
        """Take a token outside of quotations, and say whether it ends the statement."""
        match token:
            case b"/*":
                self._within, self._depth = token, 1
            case b"'" | b'"':
                self._within = token
            case b"e'" | b"E'":
                self._within = b"e'"
            case b"(":
                self._brackets += 1
            case b")":
                self._brackets -= 1
            case b";":
                return not self._brackets and not self._blocks
            case _ if token.startswith(b"$"):
                self._within = token
            case _:
                self._take_word(token.lower())
        return False

    def _take_word(self, word: bytes) -> None:
        if len(self._words) < 4:
            self._words.append(word)
        made = [w for w in self._words if w not in (b"or", b"replace")][:2]
        if made not in ([b"create", b"function"], [b"create", b"procedure"]) or self._brackets:
            return
        if word == b"begin" or (word == b"case" and self._blocks):
            self._blocks += 1
        elif word == b"end" and self._blocks:
            self._blocks -= 1
