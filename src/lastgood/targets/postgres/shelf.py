"""What is kept on disk: dumps and exports, each with a manifest that is written last. Without one, it is a leftover.

Everything is 0600 in folders of 0700, and is read only as long as it is: what others may write, or a link to somewhere
else, is nothing that lastgood kept. A manifest is written beside, flushed and renamed, so that it is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import IO, Final, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from lastgood.core.errors import Refused
from lastgood.core.release import NAME_GRAMMAR, RestorePoint
from lastgood.core.report import Loss, Rehearsed, Replayed
from lastgood.targets.postgres.catalog import Sequence, Table
from lastgood.targets.postgres.server import Identity

_CHUNK: Final = 1 << 20
_OTHERS: Final = 0o077
"""Rights of group and everybody."""
Manifest = TypeVar("Manifest")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPoint:
    """A proved restore point. schema: its objects by name; tables, sequences: their identities at that moment.

    clone_snapshot: Postgres' snapshot text of when the clone was proved: later transactions are none of ours.
    slot: of the capture that began with it, empty without one; position: from where it reads; identities: the replica
    identities that it changed, as KEPT_IDENTITIES, which the dump may show; ready: the end of the server's log when the
    point was proved. identity: of the database that was dumped. Empty and None where an older
    version took it.
    """

    point: RestorePoint
    schema: dict[str, str]
    tables: tuple[Table, ...]
    sequences: tuple[Sequence, ...]
    clone_snapshot: str
    slot: str = ""
    position: str = ""
    identities: dict[int, str] = field(default_factory=dict[int, str])
    ready: str = ""
    identity: Identity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptDump:
    """A finished safety dump. path: relative to its folder."""

    name: str
    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptExport:
    """A finished export. rewritten: rows that the migration changed, by table; notes: what could not be told."""

    export: str
    losses: tuple[Loss, ...]
    rewritten: tuple[Loss, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CaughtUp:
    """A replay that has caught up. took_s: its last round. narrow: whether invariants are looked at no more than the
    rows of a batch ask for. stale: materialized views that could not be refreshed."""

    took_s: float
    narrow: bool = False
    stale: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherKeys:
    """How the keys of a table differed from the clone's when a migration was over. gone, made: keys that were not there
    any more, and new ones of rows that the migration wrote, each as `row_replay` writes it. whole: these are all."""

    gone: tuple[str, ...]
    made: tuple[str, ...]
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TouchedKeys:
    """Rows of a table that were written to before a migration began. keys: as `writes` writes them; none of a table
    without a key. whole: these are all."""

    keys: tuple[str, ...]
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptMigration:
    """What was seen around the command of a migration. began, ended: positions of the log before and after it; ended:
    empty as long as nobody saw it end. keys: by the oid of each table of which keys are gone. touched: by the oid of
    each table that was written to since the restore point when it began; None where nobody looked."""

    began: str
    ended: str = ""
    keys: dict[int, OtherKeys] = field(default_factory=dict[int, OtherKeys])
    touched: dict[int, TouchedKeys] | None = None


KEPT_POINT: Final = TypeAdapter(KeptPoint)
KEPT_DUMP: Final = TypeAdapter(KeptDump)
KEPT_EXPORT: Final = TypeAdapter(KeptExport)
CAUGHT_UP: Final = TypeAdapter(CaughtUp)
KEPT_IDENTITIES: Final = TypeAdapter(dict[int, str])
"""Replica identity of each table before a capture, as it is written in ALTER TABLE, by the table's oid."""
KEPT_REWRITTEN: Final = TypeAdapter(dict[int, tuple[int, ...]])
"""Columns by table that a migration rewrote."""
KEPT_MIGRATION: Final = TypeAdapter(KeptMigration)
KEPT_REPLAY: Final = TypeAdapter(Replayed)
KEPT_REHEARSAL: Final = TypeAdapter(Rehearsed)
KEPT_ASIDE: Final = TypeAdapter(tuple[Loss, ...])
FAILED_DOWN: Final = TypeAdapter(str)
"""Why down migrations are not to be chosen again."""


def folder(path: Path) -> Path:
    """Make a folder for its owner only, and return it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def checked(name: str) -> str:
    """Return a name that is safe as a file's. Raises Refused for any other."""
    if not NAME_GRAMMAR.fullmatch(name):
        raise Refused(f"{name!r} cannot be a file's name")
    return name


def names(of: Path) -> frozenset[str]:
    """Return the names of the manifests in a folder."""
    return frozenset(path.stem for path in of.glob("*.json"))


def write(path: Path, adapter: TypeAdapter[Manifest], manifest: Manifest) -> None:
    """Put a manifest on disk, whole."""
    _write(path, [adapter.dump_json(manifest, indent=1)])


def mark(path: Path) -> None:
    """Put an empty file there, durably."""
    folder(path.parent)
    _write(path, ())


def write_lines(path: Path, lines: Iterable[object]) -> None:
    """Put objects on disk, one JSON line each, whole."""
    write_json_lines(path, map(json_text, lines))


def write_json_lines(path: Path, lines: Iterable[str]) -> None:
    """Put what is JSON already on disk, one line each, whole."""
    _write(path, (line.encode() + b"\n" for line in lines))


def json_text(value: object) -> str:
    """Write JSON as the server would: a Decimal is a number, to its last digit, and not a text."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:  # somewhere in it is what json does not know
        if isinstance(value, Decimal):
            return str(value)
        if isinstance(value, dict):
            members = cast("dict[str, object]", value).items()
            return "{" + ", ".join(f"{json.dumps(name)}: {json_text(of)}" for name, of in members) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(json_text, cast("list[object]", value))) + "]"
        raise


def _write(path: Path, parts: Iterable[bytes]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    flushed = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(flushed)
    finally:
        os.close(flushed)


@contextmanager
def opened(path: Path, *, what: str, hint: str) -> Generator[IO[bytes]]:
    """Open what is kept there. Raises Refused when nothing is, when it is no file, or one that others may get at."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Refused(f"there is no {what}: expected {path}", hint=hint) from None
    except OSError as error:  # a symbolic link as well: ELOOP
        raise Refused(f"{what}: {path}: {error.strerror}: expected a file that can be read", hint=hint) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode) or mode & _OTHERS:
        os.close(descriptor)
        if stat.S_ISREG(mode):
            told = f"others may get at {path} ({stat.filemode(mode)}): expected -rw-------"
            raise Refused(f"{what}: {told}", hint=f"chmod 600 {path}")
        raise Refused(f"{what}: {path} is none: expected a file", hint=hint)
    with os.fdopen(descriptor, "rb") as file:
        yield file


def read(path: Path, adapter: TypeAdapter[Manifest], *, what: str, hint: str, sha256: str = "") -> Manifest:
    """Read a manifest. sha256: which it must have, by default any. Raises Refused when there is none, when it was
    damaged, or is another one."""
    with opened(path, what=what, hint=hint) as file:
        content = file.read()
    found = hashlib.sha256(content).hexdigest()
    if sha256 and found != sha256:
        told = f"the hash of {path} is {found[:12]}, expected {sha256[:12]}"
        raise Refused(f"{what} is not the one that was proved: {told}", hint=hint)
    try:
        return adapter.validate_json(content)
    except ValidationError as error:
        told = f"{path}: {str(error).splitlines()[0]}: expected its manifest"
        raise Refused(f"{what} cannot be read: {told}", hint=hint) from None


def hashed(path: Path, *, what: str, hint: str) -> str:
    """Return the SHA-256 of what is kept there. Raises as `opened` does."""
    digest = hashlib.sha256()
    with opened(path, what=what, hint=hint) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def members(path: Path, *, what: str, hint: str) -> list[Path]:
    """Return the files of a folder that is kept as one thing, by name. Raises Refused when there is none, or one that
    others may get at."""
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise Refused(f"{what}: {path}: {error.strerror}: expected a folder", hint=hint) from None
    if not stat.S_ISDIR(mode):
        raise Refused(f"{what}: {path} is none: expected a folder", hint=hint)
    if mode & _OTHERS:
        told = f"others may get at {path} ({stat.filemode(mode)}): expected drwx------"
        raise Refused(f"{what}: {told}", hint=f"chmod 700 {path}")
    return sorted(path.iterdir())


@contextmanager
def passing(path: Path) -> Generator[Path]:
    """Lend a file name that is gone afterwards, and was free before."""
    path.unlink(missing_ok=True)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
