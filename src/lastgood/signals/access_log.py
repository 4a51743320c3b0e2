"""Requests, errors and slow ones, counted from the lines that a reverse proxy adds to its access log.

The proxy sees what users see, also when no instance answers. A line is a finished request, so everything hangs on
reading each line once while the log is rotated under the reader, by a change of names or by a copy that is emptied:
    NAME                              NAME.1              counted
    goes on where the reading ended   any                 what was added
    begins anew                       goes on there       the rest of NAME.1, and all of NAME
    emptied                           none, or as it was  all of NAME: nobody can know what was not kept
    begins anew                       any other           nothing: SourceDown, since lines are missing
What is added to NAME.1 later is counted, too: a proxy writes on in it until it is told to open its log anew. Whatever
cannot be trusted as a whole is not used in part: lines that are not in the format are counted and the first is shown,
that reading is SourceDown, and the next one goes on behind them. The log is never written, locked or kept open.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lastgood.core.config import LogFormat
from lastgood.core.reading import NoData, Reading, SourceDown, Traffic, Window
from lastgood.wire.foreign_text import one_line

MAX_BYTES: Final = 16 << 20
MAX_LINES: Final = 200_000
MAX_LINE: Final = 16_384
REMEMBERED: Final = 512
"""So many bytes before the end of the reading are remembered, to find the place again."""

# what the proxies let stand between quotes: a quote is escaped there, so nobody can write a status into a line
_QUOTED: Final = rb'"(?:[^"\\]|\\.)*"'
_COMBINED: Final = (
    rb'[^ "]+ [^"]+\] "(?P<request>(?:[^"\\]|\\.)*)" (?P<status>\d{3}) (?:\d+|-) ' + _QUOTED + b" " + _QUOTED
)
_LINES: Final = {
    LogFormat.COMBINED: re.compile(_COMBINED),
    LogFormat.COMBINED_TIMED: re.compile(_COMBINED + rb" (?P<s>\d{1,9}\.\d{3})"),
    # the first times are HAProxy's, later ones may be a client's; a long line is cut, so the last quote may be missing
    LogFormat.HAPROXY: re.compile(
        rb'(?>[^"{]+? (?:-?\d+/){4}(?P<ms>\d{1,12}) )(?P<status>-1|\d{3}) \d+ [^"]*"(?P<request>[^"]*)"?'
    ),
}
_PATH: Final = re.compile(rb"[^ ]+ (?:[a-z]+://[^/ ?]*)?([^ ?]*)")


class _Unusable(Exception):
    """What was added cannot be counted; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a reading ended: behind a whole line. before: the bytes in front of it, by which a copy is known, and a
    file that was emptied and grew again."""

    inode: int
    offset: int
    before: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A file that is open, and how long it was then."""

    descriptor: int
    inode: int
    size: int

    def part(self, start: int, end: int) -> bytes:
        found = bytearray()
        while len(found) < end - start and (
            more := os.pread(self.descriptor, end - start - len(found), start + len(found))
        ):
            found += more
        return bytes(found)

    def end(self) -> _Place:
        """The place behind its last whole line; the very end when that line has no end in sight."""
        start = max(0, self.size - MAX_LINE)
        last = self.part(start, self.size).rfind(b"\n")
        offset = start + last + 1 if last >= 0 or not start else self.size
        return _Place(inode=self.inode, offset=offset, before=self.part(max(0, offset - REMEMBERED), offset))

    def goes_on(self, place: _Place) -> bool:
        """Whether it holds what was read up to `place`, as itself or as a copy."""
        return self.size >= place.offset and self.part(place.offset - len(place.before), place.offset) == place.before

    def holds(self, place: _Place) -> bool:
        """Whether it is the file of `place`, not begun anew."""
        return self.inode == place.inode and self.goes_on(place)

    def begins_like(self, other: _File) -> bool:
        return self.part(0, REMEMBERED).startswith(other.part(0, REMEMBERED))


class AccessLog:
    """core.ports.SignalSource over the log at `path`.

    exclude: paths whose requests are not traffic. latency_limit_s: needs a format with durations; None when nothing
    asks for slow requests. A window without length begins the counting anew.
    """

    def __init__(
        self, name: str, path: Path, log_format: LogFormat, exclude: Sequence[str], latency_limit_s: float | None
    ) -> None:
        self._name = name
        self._path = path
        self._format = log_format
        self._exclude = frozenset(path.encode() for path in exclude)
        self._latency_limit_s = latency_limit_s
        self._log: _Place | None = None
        self._rotated: _Place | None = None

    @property
    def name(self) -> str:
        return self._name

    def read(self, window: Window) -> Reading:
        if window.length_s <= 0:
            self._log = None
        try:
            with _opened(self._path) as log, _opened_if_there(Path(f"{self._path}.1")) as rotated:
                added = self._added(log, rotated)
            if added is None:
                return NoData(reason="the first reading has nothing to compare with")
            return self._traffic(added)
        except OSError as error:
            return SourceDown(reason=one_line(f"{self._path}: {(error.strerror or 'cannot be read').lower()}"))
        except _Unusable as error:
            return SourceDown(reason=one_line(f"{self._path}: {error}"))

    def _added(self, log: _File, rotated: _File | None) -> list[bytes] | None:
        """Return the lines that were added since the reading before, None when there was none, and remember how far
        they go: what cannot be used is not read again."""
        starts = self._starts(log, rotated)
        ends = {file: file.end() for file in (log, rotated) if file}
        self._log, self._rotated = ends[log], ends[rotated] if rotated else None
        if starts is None:
            return None
        if not starts:
            raise _Unusable(f"began anew, and {self._path.name}.1 does not go on where the reading ended")
        if sum(ends[file].offset - start for file, start in starts.items()) > MAX_BYTES:
            raise _Unusable(f"grew by more than {MAX_BYTES >> 20} MiB since it was read")
        parts = [file.part(start, ends[file].offset) for file, start in starts.items()]
        if sum(part.count(b"\n") for part in parts) > MAX_LINES:
            raise _Unusable(f"grew by more than {MAX_LINES:,} lines since it was read")
        return [line for part in parts for line in part.removesuffix(b"\n").split(b"\n") if part]

    def _starts(self, log: _File, rotated: _File | None) -> dict[_File, int] | None:
        """Return which files are to be read from where; none when lines are missing, None at the first reading."""
        known = self._log
        if known is None:
            return None
        late: dict[_File, int] = {}
        if rotated and self._rotated and rotated.holds(self._rotated):
            late = {rotated: self._rotated.offset}
        moved = None
        if rotated and rotated.goes_on(known):
            copied = log.inode == known.inode and not late
            moved = rotated if copied or rotated.inode == known.inode else None
        # a log that was empty goes on anywhere: then its beginning tells a copy that was emptied from one that will be
        if log.holds(known) and (known.offset or not moved or log.begins_like(moved)):
            return late | {log: known.offset}
        if moved:
            return {moved: known.offset, log: 0}
        emptied = log.inode == known.inode and (late or not rotated)
        return late | {log: 0} if emptied else {}

    def _traffic(self, lines: Sequence[bytes]) -> Traffic:
        requests = errors = slow = 0
        unreadable: list[bytes] = []
        for line in lines:
            found = _LINES[self._format].fullmatch(line) if len(line) <= MAX_LINE else None
            if found is None:
                unreadable.append(line)
                continue
            path = _PATH.match(found["request"])
            if path and path[1] in self._exclude:
                continue
            requests += 1
            errors += found["status"].startswith(b"5")
            slow += self._latency_limit_s is not None and _seconds(found) > self._latency_limit_s
        if unreadable:
            # what stands behind a question mark may be a secret
            first = one_line(unreadable[0][:MAX_LINE].partition(b"?")[0].decode("utf-8", "replace"), 80)
            raise _Unusable(f"{len(unreadable)} of {len(lines)} lines are not {self._format.value}, the first: {first}")
        return Traffic(requests=requests, errors=errors, slow=slow)


def _seconds(line: re.Match[bytes]) -> float:
    found = line.groupdict()
    return float(found["s"]) if "s" in found else int(found["ms"]) / 1000


@contextmanager
def _opened(path: Path) -> Generator[_File]:
    """Open a regular file. Raises OSError when there is none, _Unusable when it is something else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise _Unusable("is not a regular file")
        yield _File(descriptor=descriptor, inode=found.st_ino, size=found.st_size)
    finally:
        os.close(descriptor)


@contextmanager
def _opened_if_there(path: Path) -> Generator[_File | None]:
    with ExitStack() as stack:
        try:
            found = stack.enter_context(_opened(path))
        except (OSError, _Unusable):
            found = None
        yield found
