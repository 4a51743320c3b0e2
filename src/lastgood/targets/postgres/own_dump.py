"""Makes a restore point of an operator's own dump: copied, examined, restored beside the live database, and kept.

It is proved as every restore point is, by a trial restore that is kept as the clone, and by the schema that a good
release left. What it lacks is a snapshot: nobody knows which transactions it saw, so nothing that was written since can
be told from what was there. It may be in pg_dump's custom format, in its folder format, or plain SQL; each as it is or,
in one file, compressed by gzip.

The copy is what counts from then on, and what is examined: the file that it was made from may change meanwhile.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import stat
import zlib
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Final

import psycopg

from lastgood.core.errors import Refused
from lastgood.core.ports import Clock
from lastgood.core.release import NAME_GRAMMAR, DumpFormat, LogPoint, RestorePoint
from lastgood.targets.postgres import catalog, plain_dump, restore_point, shelf
from lastgood.targets.postgres.capture import PREFIX, Captures
from lastgood.targets.postgres.connect import Connection
from lastgood.targets.postgres.server import LONGEST_NAME, Server, create_beside, identity

ADDING: Final = ".adding"
"""The copy's name until it is known what it is."""
HINT: Final = "lastgood restore-points add --help"
LEAST_FREE_BYTES: Final = 256 << 20
"""Left on the disk while a dump is copied: what else writes there must go on."""
_CHUNK: Final = 1 << 20
_LOOK_EVERY_BYTES: Final = 64 << 20
_GZIP: Final = b"\x1f\x8b"
_CUSTOM: Final = b"PGDMP"
_TAR: Final = (257, b"ustar")
_CONTENTS: Final = "toc.dat"
_MOST_NAMED: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a dump says of itself. major: of the server that it is of, 0 where it does not say; database: its name,
    empty where it does not say. tables: whose rows it holds. made_at: as the clock of the host on which it was made
    showed it, without a zone; None where it does not say."""

    major: int
    tables: int
    database: str = ""
    made_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """A dump that was copied and looked at. what: the file it is of, for what is said."""

    path: Path
    kind: DumpFormat
    what: str
    told: Told
    sha256: str


def register(
    server: Server,
    folder: Path,
    source: Path,
    *,
    name: str | None,
    taken_at: datetime | None,
    expected: Mapping[str, str],
    known: Collection[RestorePoint],
    deadline_s: float,
    clock: Clock,
    log: LogPoint | None = None,
) -> RestorePoint:
    """Keep a dump as a restore point, proved; the same dump again is the same restore point.

    name, taken_at: None for what the dump says. log: up to where what was dumped had been recovered, which is when it
    was taken. expected: fingerprint of the schema by release; it must be one of them, where there are any. known: the
    restore points of the journal. Raises Refused with what is wrong and what was expected: then nothing of it is left,
    neither here nor on the server.
    """
    until = clock.now() + timedelta(seconds=deadline_s)

    def left_s() -> float:
        return max((until - clock.now()).total_seconds(), 1.0)

    shelf.folder(folder)
    with _copied(source, folder / ADDING) as path:
        kind, what = _format(path, source), str(source)
        told = _examined(server, path, kind, what=what, deadline_s=left_s())
        _check_origin(server, told, what=what)
        moment = log.at if log else _moment(taken_at, told, source, clock)
        digest = restore_point.hash_of(path, kind, what=f"copy of {what}")
        copy = _Copy(path=path, kind=kind, what=what, told=told, sha256=digest)
        alike = (p for p in known if p.own and p.sha256 == digest and p.database == server.live)
        if (same := next((p for p in alike if is_there(server, folder, p, deadline_s=left_s())), None)) is not None:
            return same
        chosen = _checked_name(server, name or f"own-{moment:%Y%m%d-%H%M%S}")
        for other in (*known, *(kept.point for kept in restore_point.every(folder))):
            if other.id == chosen and not (other.own and other.sha256 == digest):
                taken = f"{chosen} is the name of another restore point"
                raise Refused(f"{taken}: expected a free one", hint="lastgood restore-points add FILE --name NAME")
        kept = _made(server, folder, copy, chosen, moment, log, expected=expected, left_s=left_s, clock=clock)
    return restore_point.first_read(folder, kept.point.id)


def is_there(server: Server, folder: Path, point: RestorePoint, *, deadline_s: float) -> bool:
    """Whether an own dump is still what was proved, in every byte: what is not must be made anew."""
    try:
        kept = restore_point.as_journaled(folder, point)
        restore_point.dump_as_proved(folder, point)
        restore_point.clone_as_proved(server, kept, deadline_s=deadline_s)
    except Refused:
        return False
    return True


def _made(
    server: Server,
    folder: Path,
    copy: _Copy,
    name: str,
    moment: datetime,
    log: LogPoint | None,
    *,
    expected: Mapping[str, str],
    left_s: Callable[[], float],
    clock: Clock,
) -> shelf.KeptPoint:
    """Restore the copy beside, prove it, and write down what it is. What an earlier attempt left goes first."""
    dump, clone = restore_point.dump_of(folder, name, copy.kind), server.clone_name(name)
    with server.maintenance(statement_s=left_s()) as maintenance:

        def clean_up() -> None:
            restore_point.clean_up(server, maintenance, clone, dump)

        (folder / f"{name}.json").unlink(missing_ok=True)
        clean_up()
        copy.path.rename(dump)
        try:
            create_beside(maintenance, server, clone)
            _restore(server, dump, copy, clone, left_s=left_s)
            point = RestorePoint(
                id=name,
                database=server.live,
                taken_at=moment,
                path=dump.name,
                sha256=copy.sha256,
                size_bytes=restore_point.size_of(dump),
                fingerprint="",
                snapshot="",
                clone=clone,
                own=copy.kind,
                log=log,
            )
            kept = _proved(server, folder, point, copy, expected=expected, statement_s=left_s(), clock=clock)
            shelf.write(folder / f"{name}.json", shelf.KEPT_POINT, kept)
        except BaseException:
            with suppress(psycopg.Error):  # what went wrong first is what is told; the next attempt does it as well
                clean_up()
            raise
        return kept


# --- the copy --------------------------------------------------------------------------------------------------------


@contextmanager
def _copied(source: Path, to: Path) -> Generator[Path]:
    """Lend a copy that only its owner reads, decompressed, in one file or one folder; gone afterwards where it still
    has that name."""
    _remove(to)
    try:
        try:
            if source.is_dir():
                _copy_folder(source, to)
            else:
                _copy_file(source, to)
        except OSError as error:
            raise Refused(
                f"{error.filename or source}: {error.strerror or error}: expected a dump", hint=HINT
            ) from error
        yield to
    finally:
        _remove(to)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _copy_folder(source: Path, to: Path) -> None:
    to.mkdir(mode=0o700)
    members = sorted(source.iterdir())
    if _CONTENTS not in {member.name for member in members}:
        raise Refused(f"{source} has no {_CONTENTS}: expected what pg_dump --format=directory makes", hint=HINT)
    for member in members:
        with _file(member, os.O_NOFOLLOW) as file:
            _write(file, to / member.name, what=str(member))


def _copy_file(source: Path, to: Path) -> None:
    with _file(source) as file:
        begins = file.read(len(_GZIP))
        file.seek(0)
        if begins != _GZIP:
            _write(file, to, what=str(source))
            return
        try:
            with gzip.GzipFile(fileobj=file) as inside:
                _write(inside, to, what=str(source))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Refused(f"{source}: {str(error).lower()}: expected a whole gzip", hint=HINT) from error


@contextmanager
def _file(path: Path, flags: int = 0) -> Generator[IO[bytes]]:
    """Open a file, and nothing that waits for somebody to write to it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Refused(f"{path} is no file: expected what pg_dump makes", hint=HINT)
    with os.fdopen(descriptor, "rb") as file:
        yield file


def _write(file: IO[bytes] | gzip.GzipFile, to: Path, *, what: str) -> None:
    written = 0
    with os.fdopen(os.open(to, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as copy:
        while chunk := file.read(_CHUNK):
            if written % _LOOK_EVERY_BYTES < len(chunk) and shutil.disk_usage(to.parent).free < LEAST_FREE_BYTES:
                free = f"expected at least {LEAST_FREE_BYTES / 1e6:.0f} MB that stay free on the disk of {to.parent}"
                raise Refused(f"{what} was copied up to {written / 1e6:.0f} MB: {free}", hint="df -h")
            copy.write(chunk)
            written += len(chunk)
        copy.flush()
        os.fsync(copy.fileno())


def _format(copy: Path, source: Path) -> DumpFormat:
    if copy.is_dir():
        return DumpFormat.DIRECTORY
    with copy.open("rb") as file:
        begins = file.read(_TAR[0] + len(_TAR[1]))
    if not begins:
        raise Refused(f"{source} is empty: expected a dump", hint=HINT)
    if begins.startswith(_CUSTOM):
        return DumpFormat.CUSTOM
    if begins[_TAR[0] :] == _TAR[1]:
        raise Refused(f"{source} is a tar: expected pg_dump's custom or directory format, or plain SQL", hint=HINT)
    return DumpFormat.PLAIN


# --- what it is of ---------------------------------------------------------------------------------------------------


def _examined(server: Server, copy: Path, kind: DumpFormat, *, what: str, deadline_s: float) -> Told:
    if kind is DumpFormat.PLAIN:
        with copy.open("rb") as file:
            said = plain_dump.examine(file, what=what)
        return Told(major=said.major, tables=said.tables)
    try:
        return read_contents(server.tools.contents(copy, deadline_s=deadline_s))
    except Refused as error:
        raise Refused(f"{what} cannot be read: expected a whole dump: {error.message}", hint=HINT) from error


def read_contents(said: str) -> Told:
    """Read what `pg_restore --list` says of a dump, as PostgreSQL 15 to 18 print it. Its time is that of a clock on the
    wall: a dump keeps no zone."""

    def line(name: str) -> str:
        found = re.search(rf"^; +{name}:? +(.+)$", said, re.MULTILINE)
        return found[1].strip() if found else ""

    made, version = line("Archive created at"), re.match(r"\d+", line("Dumped from database version"))
    with_date = re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", made)
    return Told(
        major=int(version[0]) if version else 0,
        tables=len(re.findall(r"^\d+; \d+ \d+ TABLE DATA ", said, re.MULTILINE)),
        database=line("dbname"),
        made_at=datetime.fromisoformat(with_date[0]) if with_date else None,
    )


def _check_origin(server: Server, told: Told, *, what: str) -> None:
    with server.connect() as live:
        major = identity(live).major
    if told.major != major:
        version = f"PostgreSQL {told.major}" if told.major else "a server that it does not name"
        raise Refused(f"{what} was dumped from {version}: expected PostgreSQL {major}, which serves now", hint=HINT)
    if told.database not in ("", server.live):
        raise Refused(f"{what} is a dump of {told.database}: expected one of {server.live}", hint=HINT)
    if not told.tables:
        raise Refused(f"{what} holds the rows of no table: expected a dump with its rows", hint=HINT)


def _moment(given: datetime | None, told: Told, source: Path, clock: Clock) -> datetime:
    """When it was taken: as a person says; else as the dump says, by this host's zone, which is that of most who make a
    dump here, or as its file says where that is earlier. What is named too early loses nothing in silence."""
    now = clock.now()
    if given is not None:
        if given > now:
            raise Refused(f"{given.isoformat()} is yet to come: expected when the dump was taken", hint=HINT)
        return given
    place = source / _CONTENTS if source.is_dir() else source
    by_file = datetime.fromtimestamp(place.stat().st_mtime, tz=UTC)
    by_itself = told.made_at.astimezone(UTC) if told.made_at else by_file
    moment = min(by_file, by_itself)
    if moment > now:
        raise Refused(
            f"{source} says that it was made at {moment:%Y-%m-%d %H:%M:%S} UTC, which is yet to come",
            hint="lastgood restore-points add FILE --taken-at TIME",
        )
    return moment


def _checked_name(server: Server, name: str) -> str:
    if not NAME_GRAMMAR.fullmatch(name):
        raise Refused(f"{name!r} cannot be a restore point's name", hint=HINT)
    clone = server.clone_name(name)
    if len(clone.encode()) > LONGEST_NAME:
        told = f"{clone} is longer than the {LONGEST_NAME} bytes of a database's name"
        raise Refused(f"{told}: expected a shorter one", hint="lastgood restore-points add FILE --name NAME")
    return name


# --- the proof -------------------------------------------------------------------------------------------------------


def _restore(server: Server, dump: Path, copy: _Copy, clone: str, *, left_s: Callable[[], float]) -> None:
    if copy.kind is DumpFormat.PLAIN:
        with server.connect(clone, statement_s=left_s()) as connection, dump.open("rb") as file:
            plain_dump.load(connection, file, what=copy.what, deadline_s=left_s())
        return
    try:
        server.tools.restore(dump, clone, session=restore_point.SESSION, deadline_s=left_s())
    except Refused as error:
        raise Refused(f"{copy.what} cannot be restored: expected a whole dump: {error.message}", hint=HINT) from error


def _proved(
    server: Server,
    folder: Path,
    point: RestorePoint,
    copy: _Copy,
    *,
    expected: Mapping[str, str],
    statement_s: float,
    clock: Clock,
) -> shelf.KeptPoint:
    """Compare the restored copy with what it must be, and describe it. Raises Refused."""
    what, told = copy.what, copy.told
    with server.connect() as live, server.connect(point.clone, statement_s=statement_s) as clone:
        _uncover(server, folder, live, clone)
        schema, there = catalog.objects(clone), catalog.tables(clone)
        fingerprint = catalog.fingerprint(schema)
        if expected and fingerprint not in expected.values():
            raise Refused(f"{what}: {_other_schema(folder, live, schema, expected)}", hint=HINT)
        in_live = {(t.schema, t.name) for t in catalog.tables(live)}
        if not expected and not in_live & {(t.schema, t.name) for t in there}:
            raise Refused(f"{what} has none of the tables of {server.live}: expected a dump of it", hint=HINT)
        with_history = len(catalog.tables(clone, history=True))
        if told.tables < with_history:
            raise Refused(
                f"{what} holds the rows of {told.tables} of {with_history} tables: expected all of them", hint=HINT
            )
        clone.execute("ANALYZE")
        row = clone.execute("SELECT pg_current_snapshot()::text").fetchone()
        numbers = {(s.schema, s.name): s.oid for s in catalog.sequences(live)}
        return shelf.KeptPoint(
            point=replace(point, fingerprint=fingerprint, rows=catalog.count_rows(clone, there), proved_at=clock.now()),
            schema=schema,
            tables=(),  # which table of the live database is which of these can only be guessed, by name
            sequences=tuple(
                replace(s, oid=numbers[s.schema, s.name])  # that two go on by one name does no harm
                for s in catalog.sequences(clone)
                if (s.schema, s.name) in numbers
            ),
            clone_snapshot=str(row[0]) if row else "",
            identity=replace(identity(live), oid=0),
        )


def _uncover(server: Server, folder: Path, live: Connection, clone: Connection) -> None:
    """A dump that was made while a capture ran shows what that did to the schema."""
    numbers = {(t.schema, t.name): t.oid for t in catalog.tables(live)}
    there = tuple(replace(t, oid=numbers.get((t.schema, t.name), 0)) for t in catalog.tables(clone))
    captures = Captures(server, folder / restore_point.CAPTURES)
    with catalog.no_event_fires(clone):
        for (slot,) in clone.execute("SELECT pubname FROM pg_publication WHERE starts_with(pubname, %s)", [PREFIX]):
            captures.uncover(clone, slot, there)


def _other_schema(folder: Path, live: Connection, schema: Mapping[str, str], expected: Mapping[str, str]) -> str:
    """Say how a schema is not the one that a release left: by its objects, where anything here still has that one."""
    told = f"its schema is not the one that {' or '.join(expected)} left"
    here = (catalog.objects(live), *(kept.schema for kept in restore_point.every(folder)))
    known = {catalog.fingerprint(one): one for one in here}
    release, wanted = next(((r, f) for r, f in expected.items() if f in known), next(iter(expected.items())))
    if wanted not in known:
        return f"{told}: its fingerprint is {catalog.fingerprint(schema)[:12]}, expected {wanted[:12]} of {release}"
    changes = catalog.difference(known[wanted], schema)
    named = "; ".join(f"{change.object} {change.change}" for change in changes[:_MOST_NAMED])
    more = f"; {len(changes) - _MOST_NAMED} more" if len(changes) > _MOST_NAMED else ""
    return f"{told}: expected that of {release}, but {named}{more}"
